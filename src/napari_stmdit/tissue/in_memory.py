"""Sections that are in memory already: a SpatialData, or an AnnData as scanpy and squidpy read Visium."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SectionError
from ..text import shorten
from ..types import Section
from .geometry import check_positions
from .spaceranger import one_number, section_label, spot_diameter, thumbnail_factor
from .spatialdata_store import quiet, section_of
from .zarr_codecs import told_as_damage

_ADATA = "the AnnData"
_LEGACY = ("region", "instance_id")
"""Columns that spatialdata_io writes over."""


def open_in_memory(
    data: Any, fullres: str | Path | None = None, mpp: float | None = None, coordinate_system: str | None = None
) -> Section:
    """Open a SpatialData or an AnnData as a section; the object is not changed.

    Parameters
    ----------
    data
        A ``SpatialData`` with circles that a table annotates. Or an ``AnnData`` with ``obsm["spatial"]``, (x, y) in full-resolution
        pixels, and one library in ``uns["spatial"]`` with its scalefactors and, as a rule, its images.
    fullres, mpp, coordinate_system
        As for `napari_stmdit.open_section`.

    Raises
    ------
    SectionError
        With what is missing, or where several things could be meant.
    """
    if hasattr(data, "obsm"):
        library, sdata, notes = _from_anndata(data)
        with told_as_damage(_ADATA, "a section"):
            section = section_of(sdata, None, fullres, mpp, coordinate_system)
        return replace(section, name=library, notes=(*notes, *section.notes))
    root = None if data.path is None else Path(data.path)
    with told_as_damage("the SpatialData", "a section"):
        return section_of(data, root, fullres, mpp, coordinate_system)


def _from_anndata(adata: Any) -> tuple[str, Any, list[str]]:
    """Name of the library, the AnnData as SpatialData, and what was left out."""
    from spatialdata_io.experimental import from_legacy_anndata

    library, content = _library(adata)
    _check_positions(adata)
    factors = {str(key): one_number(value) for key, value in content.get("scalefactors", {}).items()}
    spot_diameter(factors, _ADATA)
    images, notes = _images(content.get("images"), factors)
    with quiet(), told_as_damage(_ADATA, "a section"):
        legacy = adata.copy()
        legacy.uns["spatial"] = {library: {"scalefactors": factors, "images": images}}
        legacy.obs = legacy.obs.rename(columns={name: f"{name}_of_table" for name in _LEGACY})
        return library, from_legacy_anndata(legacy, rgb=True), notes


def _library(adata: Any) -> tuple[str, Mapping[str, Any]]:
    libraries = adata.uns.get("spatial")
    if not isinstance(libraries, Mapping) or not libraries:
        raise SectionError(
            f"{_ADATA} has no uns['spatial'] with the scalefactors of its library, which say how large its spots are and how they lie to its images; "
            "read the section with squidpy.read.visium, or give its Space Ranger folder"
        )
    if len(libraries) > 1:
        names = shorten(", ".join(map(str, libraries)))
        raise SectionError(
            f"{_ADATA} holds several libraries (uns['spatial']: {names}), and a section is one of them; keep the rows and the entry of one"
        )
    ((name, content),) = libraries.items()
    if not isinstance(content, Mapping) or not isinstance(content.get("scalefactors"), Mapping):
        raise SectionError(f"{_ADATA} has no scalefactors in uns['spatial'][{name!r}]; expected those of Space Ranger")
    return section_label(str(name)), content


def _check_positions(adata: Any) -> None:
    meant = "expected (x, y) of every spot in pixels of the full-resolution slide"
    if "spatial" not in adata.obsm:
        raise SectionError(f"{_ADATA} has no positions, obsm['spatial']; {meant}")
    try:
        xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(f"obsm['spatial'] of {_ADATA} holds something that is no number: {error}; {meant}") from None
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise SectionError(f"obsm['spatial'] of {_ADATA} has the shape {xy.shape}; {meant}")
    check_positions(xy, adata.obs_names.to_numpy(dtype=np.str_), f"of {_ADATA}", "(x, y)")


def _images(given: Any, factors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Images with a scale, as (h, w, 3 or 4) uint8: scanpy keeps those of PNG files as numbers from 0 to 1."""
    images, notes = {}, []
    for name, pixels in given.items() if isinstance(given, Mapping) else ():
        array = np.asarray(pixels)
        if thumbnail_factor(factors, f"tissue_{name}_scalef") is None:
            notes.append(f"image {name} is not shown: its tissue_{name}_scalef is missing or no scale")
            continue
        if array.ndim != 3 or array.shape[2] not in (3, 4) or array.dtype.kind not in "uf":
            notes.append(f"image {name} is not shown: it is no colour image ({array.dtype}, {array.shape})")
            continue
        if array.dtype.kind == "f" and array.size and 0 <= array.min() and array.max() <= 1:
            array = np.rint(255 * array).astype(np.uint8)
        images[str(name)] = array
    return images, notes
