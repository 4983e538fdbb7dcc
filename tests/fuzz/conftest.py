from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def workshop(tiny_folder, tiny_zarr):
    """Makes the scenes of the cases and runs them."""
    from fuzz.harness import Workshop, scratch

    with scratch() as place:
        yield Workshop(tiny_folder, tiny_zarr, place)
