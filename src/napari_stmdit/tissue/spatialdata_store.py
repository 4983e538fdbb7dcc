"""SpatialData stores with Visium spots: circles, the table that annotates them, and slide images, in one frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import BadFile, is_number, read_json
from ..text import shorten
from ..types import (
    Calibration,
    CalibrationSource,
    ExpressionSource,
    PredictedUnits,
    Section,
    SlideImage,
    StoreElements,
)
from .excluded import excluded_as_kept
from .geometry import (
    Affine,
    apply,
    calibrate,
    check_mpp,
    compose,
    fit_lattice,
    is_plausible_mpp,
    mean_scale,
    uniform_scale,
)
from .images import EXPECTED, Samples, as_rgb, resolve_fullres, samples_of_channels, with_overview
from .one_section import refuse_bins
from .original_slide import ALIKE_UNASKED, Original, find_original, unlike
from .pseudo_spots import aggregate
from .slide_scale import refuse_stretched, stated_mpp
from .spaceranger import open_fullres, section_label
from .tables import SpotRows, spot_rows
from .zarr_codecs import damage_as_section_error, refuse_pickles

RESULT_PREFIX = "stmdit_"
SECTION_ATTRS = "stmdit_section"
"""Key of the store's attrs with the record of the section, in a store of ours."""
RESULT_ATTRS = "stmdit"
OWN_TABLE = "table"
"""Name of the table in a store of ours."""
_ELEMENT_FOLDERS = ("shapes", "tables", "images")
_OLD_ELEMENT = {"spatialdata_attrs", "spatialdata-encoding-type"}
_RELEASE = re.compile(r"^(\d+)\.(\d+)")
_SAME_FOOTPRINT = 0.02
_SAME_UNIT = 0.05
"""Maximum relative difference of two statements of one scale: a lattice fitted to rounded positions, and a scanner's."""
_SAME_SIZE = 0.01
_SAME_SCALE = 1e-6
_EXPRESSION_KINDS = ("measured", "predicted", "factors", "none")
MAX_MPP = 1e4
"""Maximum microns per pixel of a calibration in a store."""


@dataclass(frozen=True)
class _Candidate:
    """Image of a store that may be the slide.

    Attributes
    ----------
    name
        Its name.
    levels
        Dask arrays (y, x, 3), largest first.
    systems
        Coordinate system -> affine from its pixels.
    """

    name: str
    levels: tuple[Any, ...]
    systems: Mapping[str, Affine]

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.levels[0].shape[:2]
        return int(height), int(width)


@dataclass(frozen=True)
class _Frame:
    """Frame of full-resolution pixels: the affine from there to the spots' own coordinates, and the slide in them.

    ``fault`` is the reason why there is none, or none in full resolution.
    """

    to_spots: Affine
    image: SlideImage | None
    fault: str = ""


def open_spatialdata(
    path: Path,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
) -> Section:
    """Open a SpatialData store.

    Full-resolution pixels are the coordinates that the spots are stored in, as Visium readers write them, if the slide image
    only scales into those; else they are the pixels of the slide image.

    Parameters
    ----------
    path
        The store, or one of its elements (``STORE.zarr/shapes/NAME``, ``STORE.zarr/tables/NAME``) where it holds several.
    fullres
        Name of one of its images, or a file.
    mpp
        Microns per full-resolution pixel; by default found by the rules of `geometry.calibrate`.
    coordinate_system
        System that relates spots and slide; needed only if the choice matters.

    Raises
    ------
    SectionError
        It is no SpatialData, holds no Visium spots, or is ambiguous.
    """
    root, kind, chosen = _split(path)
    sdata = read_store(root)
    with damage_as_section_error(root, "SpatialData"):
        section = section_of(sdata, root, fullres, mpp, coordinate_system, kind, chosen)
    return replace(section, path=path)


def section_of(
    sdata: Any,
    root: Path | None,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    kind: str | None = None,
    chosen: str | None = None,
) -> Section:
    """Make a section of a SpatialData.

    Parameters
    ----------
    sdata
        The SpatialData.
    root
        The store that it was read from, if any.
    fullres, mpp, coordinate_system
        As for `open_spatialdata`.
    kind, chosen
        ``shapes`` or ``tables`` and the name of the chosen element; None for the only set of spots.
    """
    name = "the SpatialData" if root is None else str(root)
    own = _own(sdata, name)
    if chosen is not None and chosen not in (own_spots(str(own.get("name", ""))), OWN_TABLE):
        own = {}  # what the store says is of the section that it was made for, and this is another one
    expression = _expression(own)
    rows, spots_to = spot_rows(sdata, kind, chosen, affines_of, expression.kind in ("predicted", "factors"))
    if coordinate_system is not None and coordinate_system not in spots_to:
        raise SectionError(
            f"the spots are in no coordinate system {coordinate_system!r}; they have {', '.join(spots_to)}"
        )
    results = sorted(n for n in sdata.images if is_result_name(n))
    candidates, notes = _candidates(sdata, results)
    if results:
        notes.append(f"results in this store: {', '.join(results)}")
    if fullres is not None and str(fullres) not in sdata.images:
        file = resolve_fullres(fullres, Path() if root is None else root)
        frame = _frame_of_file(file, candidates, rows, spots_to, coordinate_system, bool(own), mpp)
    else:
        wanted = None if fullres is None else str(fullres)
        slide, others = _choose(candidates, wanted, rows, spots_to, coordinate_system)
        if slide is None:
            frame = _Frame(np.eye(3), None, _no_slide(candidates, spots_to, coordinate_system))
            notes.append(frame.fault)
        else:
            frame, more = _frame(slide, spots_to, coordinate_system)
            notes += more
            if root is not None and fullres is None:
                frame, more = _with_original(frame, slide, own, root, rows)
                notes += more
        notes += [f"other images of the store: {', '.join(others)}"] if others else []
    inverse = np.linalg.inv(frame.to_spots)
    spots = rows.table(apply(inverse, rows.yx), mean_scale(inverse))
    calibration = _calibration(own, rows, spots.yx, mean_scale(frame.to_spots), mpp)
    remarks: list[str] = []
    if bins_or_cells := rows.bin_um is not None or rows.is_small:
        areas = None if rows.areas is None else rows.areas * (mean_scale(inverse) * (calibration.mpp or 0)) ** 2
        empty = None if rows.empty is None else apply(inverse, rows.empty)
        spots, remarks = aggregate(spots, calibration, rows.bin_um, areas, empty)
    elif not own:  # ours hold spots, on a grid that may be narrow
        refuse_bins(spots, calibration.mpp, name)
    section = Section(
        name=str(own.get("name") or section_label(rows.circles_name if root is None else root.stem)),
        path=root,
        kind="xenium" if rows.unit_um is not None else "visium_hd" if bins_or_cells else "spatialdata",
        spots=spots,
        image=frame.image,
        calibration=calibration,
        coordinate_systems={name: compose(affine, frame.to_spots) for name, affine in spots_to.items()},
        synthetic=bool(own.get("synthetic", False)),
        notes=tuple(dict.fromkeys((*map(str, own.get("notes", ())), *rows.notes, *remarks, *notes))),
        expression=expression,
        image_fault=frame.fault,
        store=None if root is None or rows.is_small else StoreElements(root, rows.circles_name, rows.table_name),
        outlines=None if rows.outlines is None else rows.outlines.moved(lambda ends: apply(inverse, ends)),
    )
    return excluded_as_kept(section, own)


def read_store(root: Path) -> Any:
    """Open a SpatialData store lazily; raises SectionError where it is something else, damaged, or would run code.

    An unreadable image with a result's name is left out, so that section and other results still open.
    """
    if not is_spatialdata(root):
        raise SectionError(
            f"{root} is a zarr store, but no SpatialData; convert it with spatialdata-io, or give a Space Ranger folder"
        )
    try:
        return _read_zarr(root, "error")
    except SectionError as error:
        found = error
    try:
        sdata = _read_zarr(root, "warn")
        if all(kind == "images" and is_result_name(name) for kind, name in unread_elements(sdata, root)):
            return sdata
    except SectionError:
        pass
    if newer := _newer_writer(root):
        raise SectionError(
            f"{root} was written by SpatialData {newer}, newer than the one that is installed, which cannot read it; update SpatialData: {found}"
        ) from found
    raise found


def _newer_writer(root: Path) -> str:
    """Return the version of SpatialData that wrote a store if it is newer than the one here, else nothing."""
    import spatialdata

    attrs = _json_object(root / "zarr.json").get("attributes") or _json_object(root / ".zattrs")
    said = attrs.get("spatialdata_attrs") if isinstance(attrs, dict) else None
    written = str(said.get("spatialdata_software_version", "")) if isinstance(said, dict) else ""
    numbers = [_RELEASE.match(version) for version in (written, spatialdata.__version__)]
    if not all(numbers):
        return ""
    theirs, ours = (tuple(map(int, found.groups())) for found in numbers if found is not None)
    return written if theirs > ours else ""


def _read_zarr(root: Path, on_bad_files: Any, kinds: tuple[str, ...] | None = None) -> Any:
    import spatialdata

    with quiet(), damage_as_section_error(root, "SpatialData"):
        refuse_pickles(root, damaged=on_bad_files == "warn")
        return spatialdata.read_zarr(root, selection=kinds, on_bad_files=on_bad_files)


def read_spots(root: Path) -> Any:
    """Open only the spots, circles and tables of a store: quick, however many images there are."""
    return _read_zarr(root, "error", ("shapes", "tables"))


def unread_elements(sdata: Any, root: Path) -> set[tuple[str, str]]:
    """Return kind and name of the elements in a store's folders that were not read."""
    return {(kind, name) for kind, name in elements_there(root) if name not in getattr(sdata, kind)}


def elements_there(root: Path) -> set[tuple[str, str]]:
    """Return kind and name of the elements with a folder in a store, readable or not."""
    return {
        (kind, entry.name)
        for kind in ("images", "labels", "points", "shapes", "tables")
        if (root / kind).is_dir()
        for entry in (root / kind).iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def is_result_name(name: str) -> bool:
    """Return whether an image has the name of a result."""
    return name.lower().startswith(RESULT_PREFIX)


def _own(sdata: Any, name: str) -> dict[str, Any]:
    """Return the record of the section in a store of ours; refused where it is not as we write it."""
    own = sdata.attrs.get(SECTION_ATTRS) or {}
    wrong = None
    kept = own.get("calibration") or {} if isinstance(own, Mapping) else {}
    if not isinstance(own, Mapping) or not isinstance(kept, Mapping):
        wrong = "it is no object of names and values"
    elif not isinstance(own.get("notes", []), list | tuple):
        wrong = f"notes are {shorten(repr(own['notes']))}, expected a list"
    elif kept.get("mpp") is not None and not (is_number(kept["mpp"]) and 0 < kept["mpp"] <= MAX_MPP):
        wrong = f"mpp is {shorten(repr(kept['mpp']))}, expected microns per pixel"
    elif kept and kept.get("source") not in get_args(CalibrationSource):
        wrong = f"the source of mpp is {shorten(repr(kept.get('source')))}, expected one of {', '.join(get_args(CalibrationSource))}"
    elif not isinstance(own.get("expression") or {}, Mapping) or _expression(own).kind not in _EXPRESSION_KINDS:
        wrong = f"expression is {shorten(repr(own['expression']))}, expected its kind, one of {', '.join(_EXPRESSION_KINDS)}"
    if wrong is not None:
        raise SectionError(
            f"{name}: its attribute {SECTION_ATTRS} is not as this package writes it: {wrong}; remove it to go on"
        )
    return dict(own)


def own_spots(name: str) -> str:
    """Return the name of a section's circles in a store of ours."""
    return f"{element_stem(name)}_spots"


def element_stem(name: str) -> str:
    """Return a section's name in letters that elements may have, and not looking like a result's."""
    stem = section_label(name)
    return f"section_{stem}" if stem.lower().startswith(RESULT_PREFIX) else stem


def _expression(own: Mapping[str, Any]) -> ExpressionSource:
    kept = own.get("expression") or {}
    units = kept.get("units")
    return ExpressionSource(
        kept.get("kind", "measured"),
        str(kept.get("file", "")),
        str(kept.get("sha256", "")),
        units if units in get_args(PredictedUnits) else None,
    )


def is_spatialdata(root: Path) -> bool:
    """Return whether a folder is a SpatialData store, from its metadata alone."""
    for name, inner in (("zarr.json", "attributes"), (".zattrs", None)):
        attrs: Any = _json_object(root / name)
        if inner is not None:
            attrs = attrs.get(inner)
        if isinstance(attrs, dict) and "spatialdata_attrs" in attrs:
            return True
    # until 0.2.6 the root had no attributes; those of its elements tell
    inner_files = (f for kind in ("shapes", "tables", "table") for f in sorted(root.glob(f"{kind}/*/.zattrs")))
    return (root / ".zgroup").is_file() and any(_OLD_ELEMENT & _json_object(file).keys() for file in inner_files)


def _json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where it is missing, damaged or something else."""
    try:
        content = read_json(file)
    except BadFile:
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence third-party warnings while reading and writing stores, which users can do nothing about."""
    import warnings

    with warnings.catch_warnings():
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield


def affines_of(element: Any) -> dict[str, Affine]:
    """Return coordinate system -> (3, 3) affine over (y, x, 1) of an element; other transformations are left out."""
    from spatialdata.transformations import get_transformation

    affines = {}
    for name, transformation in get_transformation(element, get_all=True).items():
        try:
            matrix = transformation.to_affine_matrix(input_axes=("y", "x"), output_axes=("y", "x"))
        except (ValueError, NotImplementedError):
            continue
        affine = np.asarray(matrix, dtype=np.float64)
        linear = affine[:2, :2]  # its size depends on the unit: metres make it tiny
        if not np.isfinite(affine).all() or abs(np.linalg.det(linear)) <= 1e-12 * np.square(linear).sum():
            raise SectionError(
                f"an element's transformation into coordinate system {name!r} cannot be undone: {affine.tolist()} over (y, x, 1)"
            )
        affines[str(name)] = affine
    if not affines:
        raise SectionError(
            "an element has no transformation into a coordinate system that is an affine one; add it and write again"
        )
    return affines


def _split(path: Path) -> tuple[Path, str | None, str | None]:
    """Split STORE/shapes/NAME into the store, the kind and the name."""
    if path.parent.name in _ELEMENT_FOLDERS and is_spatialdata(path.parent.parent):
        return path.parent.parent, path.parent.name, path.name
    return path, None, None


# ------------------------------------------------------------------------------------------------- the slide


def _candidates(sdata: Any, results: list[str]) -> tuple[list[_Candidate], list[str]]:
    candidates, notes = [], []
    for name in sorted(sdata.images):
        if name in results:
            continue
        element = sdata.images[name]
        arrays = [element] if hasattr(element, "dims") and not hasattr(element, "children") else _scales(element)
        samples = _samples(arrays[0])
        if isinstance(samples, str):
            notes.append(f"image {name} is not shown: {samples}; expected {EXPECTED}")
            continue
        levels = [as_rgb(array.transpose("c", "y", "x").data, "CYX", samples) for array in arrays]
        candidates.append(_Candidate(name, tuple(with_overview(levels)), affines_of(element)))
    return candidates, notes


def _scales(tree: Any) -> list[Any]:
    """Return the arrays of a multiscale element, largest first."""
    arrays = [next(iter(node.data_vars.values())) for node in tree.children.values() if node.data_vars]
    return sorted(arrays, key=lambda array: -array.sizes["y"])


def _samples(array: Any) -> Samples | str:
    """Return how the channels of an element become RGB, or why it is no picture of an H&E stain."""
    if set(array.dims) != {"c", "y", "x"} or array.dtype != np.uint8:
        return f"it is no 8-bit image ({array.dtype}, {array.shape})"
    names = [str(name) for name in array.coords["c"].values] if "c" in array.coords else []
    return samples_of_channels(names, array.sizes["c"])


def _choose(
    candidates: list[_Candidate],
    wanted: str | None,
    rows: SpotRows,
    spots_to: Mapping[str, Affine],
    coordinate_system: str | None,
) -> tuple[_Candidate | None, list[str]]:
    """Return the slide and the names of other images: the one wanted, else the finest of those that picture the same area alike."""
    if wanted is not None:
        for candidate in candidates:
            if candidate.name == wanted:
                if not _shared_systems(candidate, spots_to, coordinate_system):
                    raise SectionError(_unrelated(candidate, spots_to, coordinate_system))
                return candidate, []
        raise SectionError(f"image {wanted} is no 8-bit colour image, or a result; it cannot be the slide")
    placed = _placed(candidates, rows, spots_to, coordinate_system)
    if not placed:
        return None, [c.name for c in candidates]
    scale, footprint, slide = placed[0]
    for other_scale, other_footprint, other in placed[1:]:
        away = np.abs(other_footprint - footprint).max() > _SAME_FOOTPRINT * np.ptp(footprint, axis=0).max()
        fault = "" if away or other_scale < 1.01 * scale else _unlike(slide, other)
        if fault is not None:
            names = ", ".join(c.name for _, _, c in placed)
            raise SectionError(
                f"the store holds several images that may be the slide ({names}){fault}; choose one with --fullres NAME (fullres=NAME)"
            )
    return slide, [c.name for c in candidates if c is not slide]


def _unlike(slide: _Candidate, other: _Candidate) -> str | None:
    """Return how the finest image differs from another of the same area, if it does: an overlay or another stain may be finer."""
    finest, coarser = (SlideImage(image.levels, 1.0, image.name) for image in (slide, other))
    try:
        found = unlike(finest, coarser, ALIKE_UNASKED)
    except SectionError:  # pixels that cannot be read are told of where they are looked at
        return None
    return None if found is None else f": {slide.name}, the finest, {found}"


def _placed(
    candidates: list[_Candidate], rows: SpotRows, spots_to: Mapping[str, Affine], coordinate_system: str | None
) -> list[tuple[float, NDArray[np.float64], _Candidate]]:
    """Return the images under most of the spots, the finest first: the spots' units per pixel, corners in those units, image."""
    placed = []
    for candidate in candidates:
        shared = _shared_systems(candidate, spots_to, coordinate_system)
        if not shared:
            continue
        to_spots = compose(np.linalg.inv(spots_to[shared[0]]), candidate.systems[shared[0]])
        at = apply(np.linalg.inv(to_spots), rows.yx)
        if len(at) == 0 or np.mean(((at >= 0) & (at <= candidate.size)).all(axis=1)) > 0.5:
            placed.append((mean_scale(to_spots), _footprint(candidate, to_spots), candidate))
    return sorted(placed, key=lambda item: item[0])


def _unrelated(image: _Candidate, spots_to: Mapping[str, Affine], wanted: str | None) -> str:
    """Return a message that an image's place relative to the spots is unknown, and how to state it."""
    system = wanted or next(iter(spots_to))
    return (
        f"image {image.name} of the store shares no coordinate system with the spots: it is in {', '.join(image.systems)}, they are in "
        f"{wanted or ', '.join(spots_to)}; state how they lie to each other with spatialdata's set_transformation(sdata[{image.name!r}], ..., "
        f"to_coordinate_system={system!r}), Identity() where the spots are in its pixels, or give the slide's file with --fullres"
    )


def _no_slide(candidates: list[_Candidate], spots_to: Mapping[str, Affine], wanted: str | None) -> str:
    """Return why no image of a store is the slide, and what to do."""
    for image in candidates:
        if not _shared_systems(image, spots_to, wanted):
            return _unrelated(image, spots_to, wanted)
    if candidates:
        return (
            f"no image of the store pictures the spots ({', '.join(c.name for c in candidates)}): by their transformations most spots lie off "
            "each; correct those, or give the slide with --fullres"
        )
    return "no image of the store pictures the spots; give the slide with --fullres"


def _footprint(candidate: _Candidate, to_spots: Affine) -> NDArray[np.float64]:
    height, width = candidate.size
    return apply(to_spots, [(0, 0), (0, width), (height, 0), (height, width)])


def _shared_systems(candidate: _Candidate, spots_to: Mapping[str, Affine], wanted: str | None) -> list[str]:
    """Return the coordinate systems of spots and image, the plainest first: spots as stored, then ``global``."""
    shared = [name for name in spots_to if name in candidate.systems and wanted in (None, name)]
    return sorted(shared, key=lambda name: (not np.allclose(spots_to[name], np.eye(3)), name != "global", name))


# ------------------------------------------------------------------------------------------------- the frame


def _frame(slide: _Candidate, spots_to: Mapping[str, Affine], wanted: str | None) -> tuple[_Frame, list[str]]:
    shared = _shared_systems(slide, spots_to, wanted)
    relations = [compose(np.linalg.inv(spots_to[s]), slide.systems[s]) for s in shared]
    corners = [_footprint(slide, relation) for relation in relations]
    pixel = mean_scale(relations[0])  # in the spots' units, which may be millimetres
    if any(np.abs(corner - corners[0]).max() > pixel for corner in corners[1:]):
        raise SectionError(
            f"spots and image {slide.name} lie differently in the coordinate systems {', '.join(shared)}; choose one with "
            "open_section(..., coordinate_system=NAME)"
        )
    image_to_spots = relations[0]
    refuse_stretched(slide.name, image_to_spots)
    notes = [f"spots and image {slide.name} are brought together in coordinate system {shared[0]!r}"]
    scale = uniform_scale(image_to_spots)
    if scale is not None and scale > 0.999:
        size = 1.0 if abs(scale - 1) < 1e-6 else scale
        return _Frame(np.eye(3), SlideImage(slide.levels, size, slide.name)), notes
    notes.append(f"full-resolution pixels are those of image {slide.name}")
    return _Frame(image_to_spots, SlideImage(slide.levels, 1.0, slide.name)), notes


def _with_original(
    frame: _Frame, kept: _Candidate, own: Mapping[str, Any], root: Path, rows: SpotRows
) -> tuple[_Frame, list[str]]:
    """Replace the smaller picture in a store of ours by the original slide, if it is found."""
    original = find_original(own.get("slide"), root)
    if original is None or frame.image is None or frame.image.pixel_size <= original.pixel_size * (1 + _SAME_SIZE):
        return frame, []
    fault = original.fault
    if original.path is not None:
        try:
            image = _open_original(original, original.path, kept, frame.image.pixel_size, rows)
            return replace(frame, image=image), [f"the slide is {original.path}, which this store was made from"]
        except SectionError as error:
            fault = f"the slide that this store was made from cannot be used: {error}"
    remedy = "show where it is with --fullres IMAGE"
    return replace(frame, fault=f"{fault}; {remedy}"), [f"{fault}; the smaller picture that the store keeps is shown"]


def _open_original(original: Original, path: Path, kept: _Candidate, pixel_size: float, rows: SpotRows) -> SlideImage:
    if original.image is None:
        expected = (kept.size[0] * pixel_size, kept.size[1] * pixel_size, pixel_size + 2)
        return open_fullres(path, expected, rows.yx, SlideImage(kept.levels, 1.0, kept.name))
    candidates, _ = _candidates(read_store(path), [])
    image = next((one for one in candidates if one.name == original.image and one.size == original.shape), None)
    if image is None:
        raise SectionError(
            f"{path} holds no image {original.image} of {original.shape[0]} x {original.shape[1]} pixels"
        )
    slide = SlideImage(image.levels, original.pixel_size, image.name)
    if (fault := unlike(slide, SlideImage(kept.levels, pixel_size, kept.name))) is not None:
        raise SectionError(f"image {image.name} of {path} {fault}")
    return slide


def _frame_of_file(
    file: Path,
    candidates: list[_Candidate],
    rows: SpotRows,
    spots_to: Mapping[str, Affine],
    wanted: str | None,
    ours: bool,
    mpp: float | None,
) -> _Frame:
    """Relate a file to the spots: by an image of the store that it is the full resolution of, else as the pixels they are stored in."""
    for _, _, candidate in _placed(candidates, rows, spots_to, wanted)[:1]:
        frame, _ = _frame(candidate, spots_to, wanted)
        coarser = 1.0 if frame.image is None else frame.image.pixel_size
        expected = (candidate.size[0] * coarser, candidate.size[1] * coarser, coarser + 2)
        image = open_fullres(file, expected, rows.yx, SlideImage(candidate.levels, 1.0, candidate.name))
        return _Frame(frame.to_spots, image)
    image = open_fullres(file, None, rows.yx, None)
    if not ours:  # ours keep spots in full-resolution pixels
        _check_units(file, rows, mpp)
    return _Frame(np.eye(3), image)


def _check_units(file: Path, rows: SpotRows, mpp: float | None) -> None:
    """Refuse a file unless the spots are known to be stored in its pixels.

    Evidence is the spots' lattice against the scale of the file, stated or given; or Space Ranger's ``spot_diameter_fullres``
    against the circles.
    """
    if mpp is not None:
        check_mpp(mpp)
    unit = None if rows.array_rc is None else fit_lattice(rows.array_rc, rows.yx)
    stated, _ = stated_mpp(file)
    scale, by = (mpp, "as given") if mpp is not None else stated if stated is not None else (None, "")
    diameter = rows.scalefactors.get("spot_diameter_fullres")
    head = f"the store has no image that says how {file.name} lies to its spots"
    if unit is not None and scale is not None:
        if abs(unit / scale - 1) <= _SAME_UNIT:
            return
        raise SectionError(
            f"{head}, and they are not stored in its pixels: by the Visium lattice their unit is {unit:.4g} um, a pixel of the file has {scale:.4g} um "
            f"({by}). Add the slide to the store as an image with its transformation, or store the spots in its pixels"
        )
    if is_number(diameter) and abs(2 * rows.radius / diameter - 1) <= _SAME_SIZE:
        return
    add = "add the slide to the store as an image with its transformation"
    if unit is None:
        raise SectionError(f"{head}: their unit is unknown; {add}")
    raise SectionError(
        f"{head}: by the Visium lattice their unit is {unit:.4g} um, and the file states no scale; give its microns per pixel with --mpp (mpp=...), to be "
        f"held against that, or {add}"
    )


def _calibration(
    own: Mapping[str, Any], rows: SpotRows, yx: NDArray[np.float64], scale: float, override: float | None
) -> Calibration:
    """Calibrate full-resolution pixels, ``scale`` of the spots' units each; a store of ours records the calibration."""
    kept = own.get("calibration") or {}
    if override is None and isinstance(kept.get("mpp"), int | float):
        detail = kept.get("detail", f"{kept['mpp']:.4g} um/px")
        return Calibration(float(kept["mpp"]) * scale, kept["source"], f"{detail} (kept in the store)")
    if override is None and rows.unit_um is not None:
        mpp = rows.unit_um * scale
        return Calibration(mpp, "scalefactors", f"{mpp:.4g} um/px, by the areas of cells that Xenium's table states")
    per_pixel = rows.scalefactors.get("microns_per_pixel")
    if override is not None or not is_plausible_mpp(per_pixel):
        return calibrate(rows.scalefactors, yx, rows.array_rc, override, rows.bin_um)
    # it is of Space Ranger's pixels: those that the spots are stored in, or the slide's own. The lattice can tell; without one
    # it is what was stated where both are the same
    fitted = None if rows.array_rc is None else fit_lattice(rows.array_rc, yx, rows.bin_um)
    if fitted is None:
        meant, against = float(per_pixel), "the slide's pixels are others than the spots' units"
        clear = abs(scale - 1) < _SAME_SCALE
    else:
        meant = min((per_pixel * scale, float(per_pixel)), key=lambda mpp: abs(fitted - mpp))
        clear, against = abs(fitted / meant - 1) <= _SAME_UNIT, f"the spots' lattice gives {fitted:.4g}"
    if not clear:
        detail = f"the scale is unclear: the table states {per_pixel:.4g} microns_per_pixel, but {against}"
        return Calibration(None, "unknown", f"{detail}; give the size of a full-resolution pixel with --mpp (mpp=...)")
    return calibrate({**rows.scalefactors, "microns_per_pixel": meant}, yx, rows.array_rc, None, rows.bin_um)
