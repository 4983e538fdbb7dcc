"""AnnData and SpatialData objects: opened as sections, and made of a section for other plugins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..text import shorten
from ..types import ExpressionSource, Section, SpotTable, StoreElements
from .alignment import WORDS, turned_places
from .counts import note_empty, refuse_twice
from .geometry import check_positions, swap_axes
from .images import open_image, resolve_fullres
from .one_section import refuse_bins, refuse_libraries
from .slide_scale import calibrate_slide
from .spaceranger import one_number, section_label, spot_diameter, thumbnail_factor, whole_numbers
from .spatialdata_store import quiet, read_store, section_of
from .tables import counts_of, obs_columns, rows_of
from .tissue_mask import TissueMask, find_tissue
from .zarr_codecs import damage_as_section_error

_ADATA = "the AnnData"
FULLRES = "fullres"
"""Key of a library's image in full-resolution pixels, which has no scalefactor; CELLxGENE writes it."""
_SPOT_UM = 55.0
"""Diameter at which spots are drawn where a table states none: that of Visium."""
_ON_TISSUE = 0.5
_NO_LIBRARY = ("is_single",)
"""Entries of ``uns["spatial"]`` that are no library."""
_LEGACY = ("region", "instance_id")
"""Columns that spatialdata_io overwrites."""


def open_in_memory(
    data: Any,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    source: Path | None = None,
) -> Section:
    """Open a SpatialData or an AnnData as a section; the object is not changed.

    Parameters
    ----------
    data
        A ``SpatialData`` with circles that a table annotates. Or an ``AnnData`` with ``obsm["spatial"]``, (x, y) in full-resolution
        pixels, and one library in ``uns["spatial"]`` with its scalefactors and, usually, its images; without it the slide's file and its
        scale are needed.
    fullres, mpp, coordinate_system
        As for `napari_stmdit.open_section`.
    source
        The file that an AnnData was read from, for messages and to find ``fullres`` beside it.

    Raises
    ------
    SectionError
        With what is missing or ambiguous.
    """
    if hasattr(data, "obsm"):
        return _of_anndata(data, fullres, mpp, coordinate_system, source)
    root = None if data.path is None else Path(data.path)
    with damage_as_section_error("the SpatialData", "a section"):
        return section_of(data, root, fullres, mpp, coordinate_system)


def _of_anndata(
    adata: Any, fullres: str | Path | None, mpp: float | None, coordinate_system: str | None, source: Path | None
) -> Section:
    whose = _ADATA if source is None else str(source)
    place = Path() if source is None else source.parent
    _check_positions(adata, whose)
    if not adata.uns.get("spatial") and fullres is not None:
        with damage_as_section_error(whose, "a section"):
            return _on_its_slide(adata, resolve_fullres(fullres, place), mpp, whose, source)
    library, sdata, notes = _from_anndata(adata, whose)
    if fullres is not None and str(fullres) not in sdata.images:
        fullres = resolve_fullres(fullres, place)
    with damage_as_section_error(whose, "a section"):
        section = section_of(sdata, None, fullres, mpp, coordinate_system)
    remarks = notes + list(section.notes)
    if adata.n_vars == 0:
        remarks = [note for note in remarks if "total count of zero" not in note]
        section = replace(section, expression=ExpressionSource("none"))
        remarks.insert(0, section.expression.statement)
    return replace(section, name=library, notes=tuple(remarks))


def _on_its_slide(adata: Any, file: Path, mpp: float | None, whose: str, source: Path | None) -> Section:
    """Return the section of a table without a slide: the file's scale is stated or given, and its tissue lies under the spots."""
    image = open_image(file)
    scale, calibration = calibrate_slide(file, mpp)
    rows, notes = _rows(adata)
    ids, yx = rows.obs_names.to_numpy(dtype=np.str_), swap_axes(np.asarray(rows.obsm["spatial"], dtype=np.float64))
    meant = f"obsm['spatial'] of {whose} must be (x, y) in pixels of {file.name}"
    radius, mask = _SPOT_UM / 2 / scale, find_tissue(image, scale)
    now = int((mask.fraction(yx, radius) >= _ON_TISSUE).sum())
    fits = {way: _on_tissue(turned_places(yx, image.shape, way), image.shape, mask, radius) for way in WORDS}
    best, needed = max(fits, key=lambda way: fits[way]), _ON_TISSUE * len(yx)
    off = int(((yx < 0) | (yx > image.shape)).any(axis=1).sum())
    if fits[best] < needed and off:
        raise SectionError(
            f"{off} of {len(yx)} spots lie off {file.name} ({image.shape[0]} x {image.shape[1]} pixels): {meant}"
        )
    if fits[best] < needed:
        raise SectionError(
            f"{len(yx) - now} of {len(yx)} spots lie off the tissue that was found in {file.name}: {meant}. If they are, "
            "write its scalefactors into uns['spatial'], and no tissue is looked for"
        )
    better = (
        f"the spots do not lie on its tissue as they are: {fits[best]} of {len(yx)} do {WORDS[best]}; if that is right, lay them so with "
        f"--orientation {best} (orientation={best!r})"
    )
    none = rows.n_vars == 0
    counts, genes, remarks = counts_of(rows, "spots")
    obs = obs_columns(rows.obs, {"in_tissue", "array_row", "array_col"})
    refuse_twice(ids, whose)
    refuse_libraries(ids, obs, None, whose)
    expression = ExpressionSource("none" if none else "measured")
    name = section_label(file.stem if source is None else source.stem)
    spots = SpotTable(ids, yx, 2 * radius, counts, genes, None, obs)
    refuse_bins(spots, scale, whose)
    return Section(
        name=name,
        path=source,
        kind="spatialdata",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems={name: np.eye(3)},
        notes=(
            *([expression.statement] if none else note_empty(counts)),
            f"obsm['spatial'] is taken as pixels of {file.name}, as AnnData has it: {now} of {len(yx)} spots lie on its tissue, which "
            "does not prove that it is the slide of these spots: look at them on it",
            *([better] if fits["as-given"] < needed else []),
            f"spots are drawn {_SPOT_UM:g} um wide, as those of Visium: the table does not say how large they are",
            *notes,
            *remarks,
        ),
        expression=expression,
    )


def _on_tissue(yx: NDArray[np.float64], size: tuple[int, int], mask: TissueMask, radius: float) -> int:
    """Return how many spots lie on the slide's tissue, none where some are not on the slide."""
    if ((yx < 0) | (yx > size)).any():
        return 0
    return int((mask.fraction(yx, radius) >= _ON_TISSUE).sum())


def _rows(adata: Any) -> tuple[Any, list[str]]:
    if "in_tissue" not in adata.obs:
        return adata, []
    on_tissue = whole_numbers(adata.obs["in_tissue"], "in_tissue", "the table") > 0
    left = int((~on_tissue).sum())
    return adata[on_tissue], [f"{left} rows of the table are not on tissue and are left out"] if left else []


def _from_anndata(adata: Any, whose: str) -> tuple[str, Any, list[str]]:
    """Return the name of the library, the AnnData as SpatialData, and notes about what was left out."""
    from spatialdata import sanitize_table
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, set_transformation
    from spatialdata_io.experimental import from_legacy_anndata

    library, content = _library(adata, whose)
    factors = {str(key): one_number(value) for key, value in content.get("scalefactors", {}).items()}
    spot_diameter(factors, whose)
    given = content.get("images")
    images, notes = _images(
        {k: v for k, v in given.items() if k != FULLRES} if isinstance(given, Mapping) else {}, factors
    )
    with quiet(), damage_as_section_error(whose, "a section"):
        legacy = sanitize_table(adata, inplace=False)  # names such as 'cell type' are common, and refused
        legacy.uns["spatial"] = {library: {"scalefactors": factors, "images": images}}
        legacy.obs = legacy.obs.rename(columns={name: f"{name}_of_table" for name in _LEGACY})
        sdata = from_legacy_anndata(legacy, rgb=True)
        slide = given.get(FULLRES) if isinstance(given, Mapping) else None
        if slide is not None and (slide.ndim != 3 or slide.shape[2] not in (3, 4) or slide.dtype != np.uint8):
            notes.append(f"image {FULLRES} is not shown: it is no 8-bit colour image ({slide.dtype}, {slide.shape})")
        elif slide is not None:
            system = f"{library}_{FULLRES}"
            sdata.images[system] = Image2DModel.parse(
                slide, dims=("y", "x", "c"), transformations={system: Identity()}, rgb=True
            )
            for circles in sdata.shapes.values():
                set_transformation(circles, Identity(), system)
        return library, sdata, notes


def _library(adata: Any, whose: str) -> tuple[str, Mapping[str, Any]]:
    libraries = adata.uns.get("spatial")
    if isinstance(libraries, Mapping):
        if "is_single" in libraries and not bool(libraries["is_single"]):
            raise SectionError(
                f"{whose} holds several sections, by its uns['spatial']['is_single']; keep the rows and the entry of one"
            )
        libraries = {name: entry for name, entry in libraries.items() if name not in _NO_LIBRARY}
    if not isinstance(libraries, Mapping) or not libraries:
        raise SectionError(
            f"{whose} has no uns['spatial'] with the scalefactors of its library, which say how large its spots are and how they lie to its images; "
            "give its slide as well (--fullres, fullres=...) and the scale of that (--mpp, mpp=...), or its Space Ranger folder"
        )
    if len(libraries) > 1:
        names = shorten(", ".join(map(str, libraries)))
        raise SectionError(
            f"{whose} holds several libraries (uns['spatial']: {names}), and a section is one of them; keep the rows and the entry of one"
        )
    ((name, content),) = libraries.items()
    if not isinstance(content, Mapping) or not isinstance(content.get("scalefactors"), Mapping):
        raise SectionError(f"{whose} has no scalefactors in uns['spatial'][{name!r}]; expected those of Space Ranger")
    return section_label(str(name)), content


def _check_positions(adata: Any, whose: str) -> None:
    meant = "expected (x, y) of every spot in pixels of the full-resolution slide"
    if "spatial" not in adata.obsm:
        raise SectionError(f"{whose} has no positions, obsm['spatial']; {meant}")
    if hasattr(adata.obsm["spatial"], "columns"):
        columns = ", ".join(map(str, adata.obsm["spatial"].columns))
        raise SectionError(f"obsm['spatial'] of {whose} is a table with the columns {columns}, not an array; {meant}")
    try:
        xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(f"obsm['spatial'] of {whose} holds something that is no number: {error}; {meant}") from None
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise SectionError(f"obsm['spatial'] of {whose} has the shape {xy.shape}; {meant}")
    check_positions(xy, adata.obs_names.to_numpy(dtype=np.str_), f"of {whose}", "(x, y)")


def _images(given: Any, factors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return images with a scale, as (h, w, 3 or 4) uint8; scanpy keeps those of PNG files as numbers from 0 to 1."""
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


@dataclass(frozen=True)
class LinkedElements:
    """Elements of the spots in a layer, for other plugins.

    Attributes
    ----------
    sdata
        A ``SpatialData``: the store that the section was opened from, lazily, or one in memory with its spots and their table.
    adata
        The spots' rows of its table, in the order of the section's table.
    spots
        Name of the circles' element.
    table
        Name of the table.
    region_key, instance_key
        Columns of the table that name a row's element and its index there.
    indices
        Index of each spot in the element.
    system
        First coordinate system.
    systems
        All coordinate systems of the circles.
    """

    sdata: Any
    adata: Any
    spots: str
    table: str
    region_key: str
    instance_key: str
    indices: list[Any]
    system: str
    systems: frozenset[str]

    def metadata(self) -> dict[str, Any]:
        """Return them under the keys of ``layer.metadata`` by which napari-spatialdata knows a layer."""
        return {
            "sdata": self.sdata,
            "adata": self.adata,
            "name": self.spots,
            "region_key": self.region_key,
            "instance_key": self.instance_key,
            "table_names": [self.table],
            "indices": self.indices,
            "_n_indices": len(self.indices),
            "_columns_df": None,
            "_current_cs": self.system,
            "_active_in_cs": set(self.systems),
        }


def link_elements(section: Section) -> LinkedElements | None:
    """Return a section's elements; None where its store no longer holds its spots.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    """
    return _in_memory(section) if section.store is None else _of_store(section, section.store)


def _of_store(section: Section, elements: StoreElements) -> LinkedElements | None:
    sdata = read_store(elements.root)
    if elements.table not in sdata.tables or elements.spots not in sdata.shapes:
        return None
    table = sdata.tables[elements.table]
    rows, ids = rows_of(table, elements.spots), section.spots.ids.tolist()
    if not set(ids) <= set(rows.obs_names.tolist()):
        return None
    return _linked(section, sdata, rows[ids], elements.spots, elements.table, table.uns["spatialdata_attrs"])


def _in_memory(section: Section) -> LinkedElements:

    from spatialdata import SpatialData

    from .elements import section_elements

    elements = section_elements(replace(section, image=None, excluded=None), {"images": {}})
    with quiet():
        sdata = SpatialData(**{kind: dict(group) for kind, group in elements.items()})
    ((label, _),) = elements["shapes"].items()
    table = sdata.tables["table"]
    return _linked(section, sdata, table, label, "table", table.uns["spatialdata_attrs"])


def _linked(section: Section, sdata: Any, rows: Any, spots: str, table: str, attrs: Any) -> LinkedElements:
    instances = np.asarray(rows.obs[attrs["instance_key"]]).tolist()
    systems = tuple(section.coordinate_systems)
    return LinkedElements(
        sdata,
        rows,
        spots,
        table,
        str(attrs["region_key"]),
        str(attrs["instance_key"]),
        instances,
        systems[0] if systems else "global",
        frozenset(systems),
    )
