"""A tiny real checkpoint, for the conftest of whoever needs it."""

from pathlib import Path

import pytest
from checkpoints import write_tiny_checkpoint
from tiny import TINY_GENES


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of two blocks with random weights, for the tiny section."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)


@pytest.fixture
def tiny_model(tiny_checkpoint):
    from napari_stmdit.assemble import load_checkpoint

    return load_checkpoint(tiny_checkpoint, device="cpu")
