"""Whatever a reader raises on a damaged file comes out as one error that names the file."""

from __future__ import annotations

import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.zarr_codecs import damage_as_section_error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("X"), "may be damaged, incomplete or of another kind: 'X'"),
        (TypeError(), "another kind: TypeError"),
        (RecursionError(), "nested too deeply"),
        (MemoryError("Unable to allocate 8 TiB"), "takes more memory than there is .Unable to allocate 8 TiB"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_an_error_of_a_reader_becomes_ours(error, says):
    with (
        pytest.raises(SectionError, match=f"a.zarr cannot be read as a store.*{says}"),
        damage_as_section_error("a.zarr", "a store"),
    ):
        raise error


def test_ours_and_an_interrupt_pass_as_they_are():
    for error in (SectionError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)), damage_as_section_error("a.zarr", "a store"):
            raise error


@pytest.mark.parametrize("reader", ["spaceranger.read_scalefactors", "counts.find_counts", "spaceranger.choose_image"])
def test_no_exception_of_python_leaves_open_section(tiny_folder, monkeypatch, reader):
    """A share that goes away, say: the fault of any part of a reader is told as ours."""

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    name = reader.split(".")[1]
    monkeypatch.setattr(f"napari_stmdit.tissue.spaceranger.{name}", fail)
    with pytest.raises(SectionError, match="tiny_section cannot be read as a tissue section.*Input/output error"):
        open_section(tiny_folder)
