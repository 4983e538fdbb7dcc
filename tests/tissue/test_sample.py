"""The bundled sample opens and says that it is synthetic; opening never needs heavy imports before it must."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_sample_section, synthesis_fault


@pytest.mark.parametrize("tissue", ["breast", "colon"])
def test_a_sample_section_is_synthetic_and_can_be_synthesized_from(tissue):
    section = open_sample_section(tissue)
    assert section.synthetic and section.notes[0].startswith("synthetic")
    assert min(section.image.shape) >= 2500 and section.image.pixel_size == 1
    assert 300 <= len(section.spots) <= 800
    assert synthesis_fault(section, section.calibration.mpp) is None
    with pytest.raises(SectionError, match="no sample section of 'brain'; give one of breast, colon"):
        open_sample_section("brain")


def test_the_tissue_room_is_imported_without_its_heavy_furniture():
    heavy = ("spatialdata", "dask", "zarr", "anndata", "pandas", "shapely", "tifffile", "PIL", "napari", "torch")
    code = (
        "import sys, napari_stmdit, napari_stmdit.tissue.open, napari_stmdit.tissue.crops, napari_stmdit.tissue.geometry, "
        f"napari_stmdit.tissue.store, napari_stmdit.expression.genes; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
