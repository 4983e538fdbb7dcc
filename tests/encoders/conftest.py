from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small are slower on several threads, and much slower where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numeric fixtures made with the reference implementations; they are not part of the repository."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"../shared is not here: {folder}")
    return folder
