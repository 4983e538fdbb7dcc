"""The bundled sample opens and says that it is synthetic; opening never needs heavy imports before it must."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue import open as opening


def test_the_sample_section_is_synthetic_and_can_be_synthesized_from():
    if not opening._SAMPLE.is_dir():
        with pytest.raises(SectionError, match="sample section"):
            opening.open_sample_section()
        pytest.skip("the sample section is not built yet")
    from napari_stmdit.tissue.open import synthesis_fault

    section = opening.open_sample_section()
    assert section.synthetic and section.notes[0].startswith("synthetic")
    assert 100 <= len(section.spots) <= 500 and section.image.pixel_size == 1
    assert synthesis_fault(section, section.calibration.mpp) is None


def test_the_tissue_room_is_imported_without_its_heavy_furniture():
    heavy = ("spatialdata", "dask", "zarr", "anndata", "pandas", "shapely", "tifffile", "PIL", "napari", "torch")
    code = (
        "import sys, napari_stmdit, napari_stmdit.tissue.open, napari_stmdit.tissue.crops, napari_stmdit.tissue.geometry, "
        f"napari_stmdit.tissue.store, napari_stmdit.expression.genes; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
