from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def workshop(tiny_folder, tiny_zarr, tmp_path_factory):
    """Makes the scenes of the cases and runs them."""
    from fuzz.harness import Workshop

    return Workshop(tiny_folder, tiny_zarr, tmp_path_factory.mktemp("fuzz"))
