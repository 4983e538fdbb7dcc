"""A tiny real checkpoint, for the conftest of whoever needs it."""

from functools import cache
from pathlib import Path

import pytest
from checkpoints import write_tiny_checkpoint
from tiny import TINY_GENES


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of two blocks with random weights, for the tiny section."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)


@cache
def _loaded(folder):
    from napari_stmdit.assemble import load_checkpoint

    return load_checkpoint(folder, device="cpu")


@pytest.fixture
def tiny_model(tiny_checkpoint):
    """That checkpoint, with caches of the test's own; its networks are those of other tests: do not change them."""
    from napari_stmdit.assemble import Checkpoint

    one = _loaded(tiny_checkpoint)
    given = (one.card, one.pipeline, one.expression, one.morphology, one.profiles, one.provenance, one.morphology_map)
    return Checkpoint(*given)
