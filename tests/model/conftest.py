import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_tiny_checkpoint

GENES = tuple(f"GENE{k}" for k in range(30))


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small are slower on several threads, and much slower where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whole_checkpoint(tmp_path_factory) -> Path:
    """A complete checkpoint folder. Do not write in it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", GENES)


@pytest.fixture
def tiny_checkpoint(whole_checkpoint, tmp_path) -> Path:
    """A copy of a test's own, which it may damage."""
    return Path(shutil.copytree(whole_checkpoint, tmp_path / "tiny"))
