"""Identity of a section by content: its table, and the part of its slide that is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError, StoreError
from ..storage.fingerprint import PerObject, of_arrays, of_file, of_parts
from ..types import Section, SlideImage, SpotTable, StoreElements
from .crops import background_colour, chunks_under, computed, readable
from .elements import fingerprint, is_fingerprint_of
from .geometry import Affine, apply, compose, mean_scale
from .spatialdata_store import SECTION_ATTRS, affines_of
from .store_entries import StoredImage
from .tables import annotated_circles, annotated_shapes, rows_of

SMALL_FILE = 2**28
"""Maximum size of a slide file that is hashed as a whole, in about half a second; of a larger one the pixels are, where they are fewer."""

Boxes = Sequence[tuple[float, float, float, float]]

_tables = PerObject()


def table_hash(spots: SpotTable) -> str:
    """Return the hash of a table's counts and gene names."""
    counts = spots.counts
    return _tables.get(spots, lambda: of_arrays(counts.indptr, counts.indices, counts.data, spots.genes.symbols))


def section_identity(section: Section, boxes: Boxes = (), patch_px: int = 0) -> dict[str, Any]:
    """Return the identity of a section, as far as it is read; JSON types only.

    Parameters
    ----------
    section
        The section.
    boxes
        (y0, x0, y1, x1) in full-resolution pixels where its slide is read; none where it is not.
    patch_px
        Side of the patches that the boxes become.
    """
    found: dict[str, Any] = {
        "spots": fingerprint(section),
        "counts": table_hash(section.spots),
        "mpp": section.calibration.mpp,
    }
    if section.expression.kind != "measured":
        found["expression"] = {"kind": section.expression.kind, "sha256": section.expression.sha256}
    if section.image is not None and len(boxes):
        found["slide"] = slide_identity(section.image, boxes, patch_px)
    return found


def slide_identity(image: SlideImage, boxes: Boxes, patch_px: int) -> dict[str, Any]:
    """Return the identity of a slide under boxes, wherever it is stored; JSON types only.

    For a slide in a file that is the hash of the file, cached while the file does not change; for one in a store, or a large file of
    which little is read, the hash of every chunk that `read_patches` reads.
    """
    found: dict[str, Any] = {"pixel_size": image.pixel_size, "shape": list(image.shape)}
    with readable(image):
        size = 0 if image.file is None else image.file.stat().st_size
        chunks, outside = ([], False) if 0 < size <= SMALL_FILE else chunks_under(image, boxes, patch_px)
        if image.file is not None and size <= max(SMALL_FILE, sum(_nbytes(image, chunk) for chunk in chunks)):
            return {**found, "file": of_file(image.file)}
        found["pixels"] = _pixels(image, chunks)
        if outside:
            found["glass"] = list(background_colour(image))
    return found


def whole_slide_hash(image: SlideImage) -> str:
    """Return the hash of a whole slide: of its file, or of its finest level."""
    with readable(image):
        if image.file is not None:
            return of_file(image.file)
        rows, columns = (len(sizes) for sizes in image.levels[0].chunks[:2])
        return _pixels(image, [(0, row, column) for row in range(rows) for column in range(columns)])


def _nbytes(image: SlideImage, chunk: tuple[int, int, int]) -> int:
    level, row, column = chunk
    sizes = image.levels[level].chunks
    return int(sizes[0][row]) * int(sizes[1][column]) * 3


def _pixels(image: SlideImage, chunks: Sequence[tuple[int, int, int]]) -> str:
    import dask

    hashed = dask.delayed(of_arrays, pure=False)
    blocks = (image.levels[level].blocks[row, column] for level, row, column in chunks)
    found = computed(*(hashed(block) for block in blocks))  # by dask's threads, which hold a chunk each
    return of_parts(f"{chunk} {digest}" for chunk, digest in zip(chunks, found, strict=True))


# Which section of a store a result belongs to.


TOLERANCE_PX = 0.05
"""Maximum distance between the same spot in two files, in full-resolution pixels; files store more digits than this."""


@dataclass(frozen=True)
class Attribution:
    """Attribution of a result to a section, with the reason where it does not belong or is not certain."""

    mine: bool
    note: str = ""


def origin_of(section: Section, elements: StoreElements | None) -> dict[str, Any]:
    """Return the record of a result's section; JSON types only.

    Parameters
    ----------
    section
        The section that it was made from.
    elements
        Its spots in the store of the result; None where they are not there.
    """
    section = section.whole
    spots = section.spots
    return {
        "name": section.name,
        "fingerprint": fingerprint(section),
        "spots": len(spots),
        "genes": len(spots.genes),
        "counts": float(spots.counts.sum(dtype=np.float64)),
        "element": None if elements is None else {"spots": elements.spots, "table": elements.table},
    }


def attribute(image: StoredImage, section: Section, sdata: Any) -> Attribution:
    """Decide whether a result of a store belongs to a section that was opened from it.

    The record decides. Stores of earlier versions have none: then the positions of its patches decide, or the coordinate systems that it shares
    with the spots, or it belongs to the only set of spots in the store, or to none.

    Parameters
    ----------
    image
        The result.
    section
        With `Section.store`.
    sdata
        That store.
    """
    return _recorded(image, section, sdata) if image.origin else _attribute_unrecorded(image, section, sdata)


def _recorded(image: StoredImage, section: Section, sdata: Any) -> Attribution:
    origin, now = image.origin, origin_of(section, section.store)
    element, pair = dict(origin.get("element") or {}), _pair(section)
    named = (element.get("table"), element.get("spots"))
    same = is_fingerprint_of(origin.get("fingerprint"), section)
    if named != pair and named in annotated_circles(sdata):
        return Attribution(False, f"it belongs to shapes/{named[1]} with tables/{named[0]}")
    if not same and not (named == pair and _agrees(image, sdata, pair) and _in_frame(image, section)):
        return Attribution(
            False, f"it was made from other spots, or in the pixels of another slide image ({origin.get('name')})"
        )
    changed = [key for key in ("genes", "counts") if not np.isclose(origin.get(key, now[key]), now[key], rtol=1e-6)]
    if changed:
        return Attribution(True, f"the table has changed since it was made: other {' and '.join(changed)}")
    return Attribution(True)


def _attribute_unrecorded(image: StoredImage, section: Section, sdata: Any) -> Attribution:
    own = dict(sdata.attrs.get(SECTION_ATTRS) or {})
    if own:  # such a store has taken results of its own section alone
        mine = is_fingerprint_of(own.get("fingerprint"), section)
        return Attribution(mine, "" if mine else f"it was made from {own.get('name')}")
    pair = _pair(section)
    sets = {circles: (table, circles) for table, circles in annotated_circles(sdata)}  # of one set, any table will do
    votes: dict[str, bool | None] = dict.fromkeys([pair[1]], False)
    votes.update({circles: _agrees(image, sdata, one) for circles, one in sets.items()})
    others = [circles for circles, vote in votes.items() if circles != pair[1] and vote is not False]
    if votes[pair[1]] is False:
        return Attribution(False, "its patches do not lie at these spots")
    if others:
        return Attribution(
            False, f"it does not say which section it was made from, and may be of {', '.join(others)} as well"
        )
    if not _in_frame(image, section):
        return Attribution(False, "it was made in the pixels of another slide image")
    if votes[pair[1]] or len(votes) > 1:  # its patches lie here, or it shares no coordinate system with the other spots
        return Attribution(True)
    return Attribution(True, "it does not say which section it was made from, and is taken for this one's")


def _pair(section: Section) -> tuple[str, str]:
    if section.store is None:
        raise StoreError(f"{section.name} was not opened from a store, so that no result of one can be its own")
    return section.store.table, section.store.spots


def _in_frame(image: StoredImage, section: Section) -> bool:
    """Return whether a result's affine leads to a section's full-resolution pixels, which depend on the slide image it was opened with."""
    height, width = image.levels[0].shape[:2]
    corners = [(0, 0), (height, width)]
    return any(
        np.abs(
            apply(compose(section.coordinate_systems[name], image.pixel_to_fullres), corners)
            - apply(image.systems[name], corners)
        ).max()
        <= mean_scale(image.systems[name])
        for name in image.systems
        if name in section.coordinate_systems
    )


def _agrees(image: StoredImage, sdata: Any, pair: tuple[str, str]) -> bool | None:
    """Return whether a result's patches lie at a set of spots in a shared coordinate system; None where that is unknown."""
    circles = _Circles.of(sdata, pair)
    shared = [name for name in image.systems if name in circles.systems]
    if not shared:
        return False
    record = dict(image.provenance.get("patches") or {})
    spots, boxes = (
        list(record.get("spots", ())),
        np.asarray(record.get("source_boxes_yx_fullres", ()), dtype=np.float64),
    )
    if not len(spots) or boxes.shape != (len(spots), 4):
        return None
    if not set(spots) <= set(circles.places):
        return False
    middles = apply(np.linalg.inv(image.pixel_to_fullres), (boxes[:, :2] + boxes[:, 2:]) / 2)  # in pixels of the result
    at = np.array([circles.places[spot] for spot in spots])
    return any(
        # patches are snapped to the pixels of the result
        np.abs(apply(image.systems[name], middles) - apply(circles.systems[name], at)).max()
        <= mean_scale(image.systems[name])
        for name in shared
    )


# ------------------------------------------------------------------------------------------------- a section in a store


def find_section(section: Section, sdata: Any) -> StoreElements | None:
    """Find a section's spots in a store: the same ids at the same places, in every coordinate system of the section.

    Returns
    -------
    StoreElements or None
        None where there are none.

    Raises
    ------
    StoreError
        Several sets of spots are the same, and the section was not opened from one of them.
    """
    root = Path("SpatialData") if sdata.path is None else Path(sdata.path)  # one in memory has no folder
    opened, pairs = section.store, annotated_circles(sdata)
    if opened is not None and opened.root.resolve() == root.resolve():
        pairs = [pair for pair in annotated_shapes(sdata) if pair == (opened.table, opened.spots)]
    found = [pair for pair in pairs if _same_places(section, _Circles.of(sdata, pair))]
    if len(found) > 1:
        total = float(section.spots.counts.sum(dtype=np.float64))
        ids = section.spots.ids.tolist()
        found = [(t, s) for t, s in found if np.isclose(_total(rows_of(sdata.tables[t], s)[ids]), total)] or found
    if len(found) > 1:
        listed = " and ".join(f"shapes/{spots} with tables/{table}" for table, spots in found)
        raise StoreError(
            f"{root} holds the spots of {section.name} several times ({listed}); open the section from there, as "
            f"{root.name}/shapes/{found[0][1]} or {root.name}/tables/{found[0][0]}, so that the result has its place"
        )
    return StoreElements(root, found[0][1], found[0][0]) if found else None


def _total(rows: Any) -> float:
    return 0.0 if rows.X is None else float(rows.X.sum(dtype=np.float64))


@dataclass(frozen=True)
class _Circles:
    """Spots of a store: id -> (2,) position in their own units, and coordinate system -> affine from these."""

    places: Mapping[str, NDArray[np.float64]]
    systems: Mapping[str, Affine]

    @classmethod
    def of(cls, sdata: Any, pair: tuple[str, str]) -> _Circles:
        table, circles = sdata.tables[pair[0]], sdata.shapes[pair[1]]
        rows = rows_of(table, pair[1]).obs
        middles = circles.geometry.centroid  # spots may be stored as polygons
        at = dict(zip(circles.index.tolist(), zip(middles.y, middles.x, strict=True), strict=True))
        instances = rows[table.uns["spatialdata_attrs"]["instance_key"]].tolist()
        listed = zip(rows.index.tolist(), instances, strict=True)
        places = {str(spot): np.array(at[one], dtype=np.float64) for spot, one in listed if one in at}
        try:
            return cls(places, affines_of(circles))
        except SectionError:  # no affine one: nothing can be compared
            return cls(places, {})


def _same_places(section: Section, circles: _Circles) -> bool:
    ids = section.spots.ids.tolist()
    if not section.coordinate_systems or not set(section.coordinate_systems) <= set(circles.systems):
        return False
    if not set(ids) <= set(circles.places):
        return False
    at = np.array([circles.places[spot] for spot in ids]).reshape(-1, 2)
    return all(
        np.abs(apply(affine, section.spots.yx) - apply(circles.systems[name], at)).max(initial=0.0)
        <= TOLERANCE_PX * mean_scale(affine)
        for name, affine in section.coordinate_systems.items()
    )
