"""Sections in one .h5ad, as scanpy, squidpy and CELLxGENE write Visium, with the full-resolution image lazy if there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SectionError
from ..types import Section
from .in_memory import FULLRES, open_in_memory
from .zarr_codecs import damage_as_section_error

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK = 2048


def open_h5ad(
    path: Path, fullres: str | Path | None = None, mpp: float | None = None, coordinate_system: str | None = None
) -> Section:
    """Open a .h5ad with one library as a section.

    Parameters
    ----------
    path
        With ``obsm["spatial"]``, (x, y) in full-resolution pixels, and ``uns["spatial"]`` with scalefactors and, usually, images: ``hires``,
        and ``fullres`` if the file holds its slide. Without ``uns["spatial"]`` the slide's file and its scale are needed.
    fullres, mpp, coordinate_system
        As for `napari_stmdit.open_section`.

    Raises
    ------
    SectionError
        With what is missing or contradicts itself.
    """
    with damage_as_section_error(path, "a section (.h5ad)"):
        adata, factors = _read(path)
    section = open_in_memory(adata, fullres, mpp, coordinate_system, source=path)
    notes = section.notes
    if section.expression.kind == "none" and factors:
        listed = ", ".join(f"{name} ({width})" for name, width in factors.items())
        notes = (
            *notes,
            f"values of each spot in obsm: {listed}. A checkpoint that was trained with such values takes them in the place of counts: "
            f"--factors {path.name}::{next(iter(factors))}",
        )
    return replace(section, path=path, notes=notes)


def _read(path: Path) -> tuple[AnnData, dict[str, int]]:
    """Return the table with its spots, counts and pictures, and the widths of the other entries of ``obsm``.

    Graphs and embeddings stay in the file.
    """
    import anndata
    import h5py
    from anndata.io import read_elem

    file = h5py.File(path, "r")  # stays open: the slide's pixels are read from it when they are looked at
    missing = [name for name in ("obs", "var") if name not in file]
    if missing:
        raise SectionError(f"{path} lacks {', '.join(missing)}; expected a table as anndata writes it, .h5ad")
    parts: dict[str, Any] = {"X": read_elem(file["X"]) if "X" in file else None}
    parts |= {name: read_elem(file[name]) for name in ("obs", "var")}
    parts["layers"] = read_elem(file["layers"]) if "layers" in file else {}
    if "obsm" in file and "spatial" in file["obsm"]:
        parts["obsm"] = {"spatial": read_elem(file["obsm"]["spatial"])}
    adata = anndata.AnnData(**parts)
    if "raw" in file and "X" in file["raw"]:
        raw = anndata.AnnData(read_elem(file["raw"]["X"]), obs=adata.obs[[]], var=read_elem(file["raw"]["var"]))
        adata.raw = raw
    if "uns" in file and "spatial" in file["uns"]:
        adata.uns["spatial"] = _spatial(file["uns"]["spatial"])
    return adata, _widths(file["obsm"]) if "obsm" in file else {}


def _widths(obsm: Any) -> dict[str, int]:
    found = {}
    for name, entry in obsm.items():
        shape = getattr(entry, "shape", (0, len(entry.attrs.get("column-order", ()))))
        if name != "spatial" and len(shape) == 2 and shape[1]:
            found[name] = int(shape[1])
    return found


def _spatial(group: Any) -> dict[str, Any]:
    """Read ``uns["spatial"]`` with the full-resolution image lazy."""
    import dask.array as da
    import h5py
    from anndata.io import read_elem

    found: dict[str, Any] = {}
    for name, entry in group.items():
        if not isinstance(entry, h5py.Group):
            found[name] = read_elem(entry)
            continue
        library = {key: read_elem(part) for key, part in entry.items() if key != "images"}
        library["images"] = {}
        for kind, pixels in entry.get("images", {}).items():
            if kind == FULLRES and isinstance(pixels, h5py.Dataset) and pixels.ndim == 3:
                library["images"][kind] = da.from_array(pixels, chunks=(_CHUNK, _CHUNK, pixels.shape[2]))
            else:
                library["images"][kind] = read_elem(pixels)
        found[name] = library
    return found
