from __future__ import annotations

import pytest
from tiny import TINY_GENES


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A complete checkpoint with random weights, for the genes of the tiny section. Do not write in it."""
    from checkpoints import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)
