"""Space Ranger folders (``outs``), versions 1 to 3."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import BadFile, is_number, read_json, read_text
from ..text import shorten
from ..types import Calibration, ExpressionSource, Genes, Section, SlideImage, SpotTable
from .counts import (
    CountMatrix,
    find_counts,
    lacks_counts,
    note_empty,
    read_counts,
    refuse_twice,
)
from .crops import computed
from .geometry import IMAGE_SCALE, Affine, calibrate, check_positions, scaling
from .images import IMAGE_SUFFIXES, image_size, open_image, overview
from .one_section import refuse_aggregated, refuse_bins, refuse_libraries
from .original_slide import ALIKE_UNASKED, unlike
from .pseudo_spots import CLUSTERS
from .slide_scale import stated_mpp

if TYPE_CHECKING:
    import pandas as pd


_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_MAX_LINE, _MAX_COLUMNS = 2**21, 100
POSITION_FILES = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_GIVEN_SCALE = re.compile(r"^\s*image_scale\s*=\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?),?\s*$", re.MULTILINE)
_MIN_FACTOR = 1e-4
_MAX_INDEX = 2**31
_SAME_PLACE_PX = 1.0
"""Maximum distance between positions of one spot in two files: version 1 rounds to whole pixels."""
_THUMBNAILS = (("hires", "tissue_hires_scalef"), ("lowres", "tissue_lowres_scalef"))
_SAME_SCALE = 0.05
"""Maximum relative difference between the scale of a slide file and the section's: lattices are printed and fitted to within that."""
SYNTHETIC_MARKER = "SYNTHETIC.json"


@dataclass(frozen=True)
class Positions:
    """All positions of the array, on and off tissue.

    Attributes
    ----------
    barcodes
        (n,).
    yx
        (n, 2) in full-resolution pixels.
    array_rc
        (n, 2).
    in_tissue
        (n,) bool.
    """

    barcodes: NDArray[np.str_]
    yx: NDArray[np.float64]
    array_rc: NDArray[np.int64]
    in_tissue: NDArray[np.bool_]


def open_spaceranger(
    path: Path, fullres: Path | None = None, mpp: float | None = None, beside: Path | None = None
) -> Section:
    """Open a Space Ranger folder.

    Parameters
    ----------
    path
        The folder with ``spatial`` and the counts. Without counts its expression is none, and every position on tissue a spot.
    fullres
        The image that Space Ranger was run on; by default it is looked for.
    mpp
        Microns per full-resolution pixel; by default found by the rules of `geometry.calibrate`.
    beside
        Another folder to look for the full-resolution image in.

    Raises
    ------
    SectionError
        Files are missing or contradict each other, or the image does not fit the spots.
    """
    scalefactors = read_scalefactors(path)
    positions = read_positions(path)
    diameter = spot_diameter(scalefactors, path)
    expression = ExpressionSource("none" if lacks_counts(path) else "measured")
    if expression.kind == "none":
        spots, notes = _without_counts(positions, diameter, path)
    else:
        spots, notes = join(positions, read_counts(find_counts(path)), diameter)
        spots = replace(spots, obs=clusters_of(path, spots.ids))
    calibration = calibrate(scalefactors, positions.yx, positions.array_rc, mpp)
    refuse_libraries(spots.ids, {}, spots.array_rc, str(path))
    refuse_bins(spots, calibration.mpp, path)
    name = section_name(path)
    places = [*slide_places(path), *([] if beside is None else [beside])]
    image, image_notes = choose_image(path, scalefactors, spots.yx, fullres, places, calibration)
    synthetic, synthetic_notes = synthetic_marker(path)
    return Section(
        name=name,
        path=path,
        kind="spaceranger",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems=coordinate_systems(name, scalefactors),
        synthetic=synthetic,
        notes=(*synthetic_notes, *notes, *image_notes),
        expression=expression,
    )


# ------------------------------------------------------------------------------------------------- the tables


def read_scalefactors(path: Path) -> dict[str, Any]:
    """Read ``spatial/scalefactors_json.json``."""
    file = path / "spatial" / "scalefactors_json.json"
    if not file.is_file():
        raise SectionError(f"{file} is missing; without it spots and images cannot be brought together")
    try:
        content = read_json(file)
    except BadFile as error:
        raise SectionError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SectionError(f"{file} holds a {type(content).__name__}; expected an object of numbers")
    factors = {name: one_number(value) for name, value in content.items()}
    scale = _image_scale(path)
    return factors if scale is None else {IMAGE_SCALE: scale} | factors


def _image_scale(path: Path) -> float | None:
    """Return the microns per pixel that Space Ranger 4 was given for the microscope image, by the ``_invocation`` above ``outs``."""
    for folder in (path, *path.parents[:3]):
        try:
            found = _GIVEN_SCALE.search(read_text(folder / "_invocation", most_mb=1))
        except BadFile:
            continue
        return None if found is None else float(found[1])
    return None


def one_number(value: Any) -> Any:
    """Return the number in a list or array of one number, as R writes all numbers; anything else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value


def spot_diameter(scalefactors: Mapping[str, Any], source: object) -> float:
    """Return ``spot_diameter_fullres``, used for drawing only."""
    diameter = scalefactors.get("spot_diameter_fullres")
    if not is_number(diameter) or diameter <= 0:
        raise SectionError(
            f"{source}: spot_diameter_fullres of the scalefactors is {shorten(repr(diameter))}; expected pixels above 0"
        )
    return float(diameter)


def thumbnail_factor(scalefactors: Mapping[str, Any], key: str) -> float | None:
    """Return pixels of a thumbnail per full-resolution pixel; None where it is missing or not valid."""
    factor = scalefactors.get(key)
    return float(factor) if is_number(factor) and _MIN_FACTOR <= factor <= 1 else None


def read_positions(path: Path) -> Positions:
    """Read the positions file of any version; several must agree."""
    files = [path / "spatial" / n for n in POSITION_FILES if (path / "spatial" / n).is_file()]
    if not files:
        raise SectionError(f"{path / 'spatial'} holds no positions; expected one of {', '.join(POSITION_FILES)}")
    positions = _read_positions(files[0])
    for other in files[1:]:
        _refuse_contradiction(files[0], positions, other)
    return positions


def _refuse_contradiction(file: Path, positions: Positions, other: Path) -> None:
    """Refuse a second positions file that contradicts the first on shared spots."""
    try:
        others = _read_positions(other)
    except SectionError:
        return  # it says nothing
    place = {barcode: i for i, barcode in enumerate(others.barcodes.tolist())}
    at = np.array([place.get(barcode, -1) for barcode in positions.barcodes.tolist()], dtype=np.int64)
    here, there = np.flatnonzero(at >= 0), at[at >= 0]
    away = np.abs(positions.yx[here] - others.yx[there]).max(axis=1, initial=0.0)
    differ = (away > _SAME_PLACE_PX) | (positions.in_tissue[here] != others.in_tissue[there])
    differ |= (positions.array_rc[here] != others.array_rc[there]).any(axis=1)
    if not len(here) or differ.any():
        how = (
            f"{int(differ.sum())} of {len(here)} spots differ in them, by up to {np.nanmax(away, initial=0):.4g} px"
            if len(here)
            else "no spot is in both"
        )
        raise SectionError(
            f"{file.parent} holds {file.name} and {other.name}, which contradict each other: {how}; keep the one that belongs to this slide"
        )


def _read_positions(file: Path) -> Positions:
    table = _positions_table(file)
    missing = [c for c in _COLUMNS if c not in table.columns]
    if missing:
        raise SectionError(
            f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if table["barcode"].isna().any() or (table["barcode"] == "").any():
        raise SectionError(f"{file} holds a position without a barcode")
    try:
        yx = table[["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy(dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise SectionError(f"{file} holds something that is no number: {error}") from error
    rows, columns = (whole_numbers(table[c], c, str(file)) for c in ("array_row", "array_col"))
    in_tissue = whole_numbers(table["in_tissue"], "in_tissue", str(file))
    if len(in_tissue) and not np.isin(in_tissue, (0, 1)).all():
        raise SectionError(f"{file}: in_tissue holds {in_tissue[~np.isin(in_tissue, (0, 1))][0]}; expected 0 or 1")
    barcodes = table["barcode"].to_numpy(dtype=np.str_)
    refuse_twice(barcodes, str(file))
    return Positions(barcodes, yx, np.stack([rows, columns], axis=1), in_tissue == 1)


def whole_numbers(column: Any, name: str, source: str) -> NDArray[np.int64]:
    """Return a column of a table as integers; raises SectionError where a value is no whole number of a sensible size."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~(np.abs(numbers) < _MAX_INDEX) | (numbers != np.rint(numbers))
    if wrong.any():
        raise SectionError(
            f"{source}: {name} holds something that is no number, or not a whole one: {shorten(str(column.to_numpy()[wrong][0]))}"
        )
    whole: NDArray[np.int64] = numbers.astype(np.int64)
    return whole


def _positions_table(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        with file.open(encoding="utf-8-sig") as stream:
            first = stream.readline(_MAX_LINE)
        # version 1 has no header, whatever the file is called
        has_header = first.startswith("barcode") or _COLUMNS[-1] in first
        if first.count(",") > _MAX_COLUMNS or (not has_header and first.count(",") != len(_COLUMNS) - 1):
            raise SectionError(
                f"{file} cannot be read as a positions table: its first line is neither a header nor {len(_COLUMNS)} values "
                f"between commas, but {shorten(first.strip())}"
            )
        options: dict[str, Any] = {} if has_header else {"header": None, "names": list(_COLUMNS)}
        if [value.strip().strip('"') for value in first.split(",")] == [str(i) for i in range(len(_COLUMNS))]:
            options["skiprows"] = 1  # pandas numbers columns without a header, and writes the numbers
        table: pd.DataFrame = pd.read_csv(
            file, dtype={"barcode": str}, float_precision="round_trip", encoding="utf-8-sig", **options
        )
        return table
    except (OSError, ValueError) as error:
        raise SectionError(f"{file} cannot be read as a positions table: {error}") from error


def join(
    positions: Positions, matrix: CountMatrix, diameter: float, noun: str = "spots"
) -> tuple[SpotTable, list[str]]:
    """Keep the barcodes on tissue with a row of counts, in the order of the counts."""
    refuse_aggregated(matrix.barcodes, positions.barcodes, matrix.source)
    place = {barcode: i for i, barcode in enumerate(positions.barcodes.tolist())}
    at = np.array([place.get(barcode, -1) for barcode in matrix.barcodes.tolist()], dtype=np.int64)
    if not (at >= 0).any():
        raise SectionError(
            f"no barcode of {matrix.source} has a position: counts have barcodes like {_first(matrix.barcodes)}, positions like "
            f"{_first(positions.barcodes)}"
        )
    keep = np.flatnonzero((at >= 0) & positions.in_tissue[at])
    if keep.size == 0:
        raise SectionError(f"none of the {len(at)} barcodes of {matrix.source} lies on tissue (in_tissue = 1)")
    at = at[keep]
    yx = positions.yx[at]
    check_positions(yx, matrix.barcodes[keep], "of the spots on tissue", "(y, x)")
    counts = matrix.counts[keep]
    spots = SpotTable(matrix.barcodes[keep], yx, diameter, counts, matrix.genes, positions.array_rc[at])
    notes = []
    without = int(positions.in_tissue.sum()) - len(spots)
    if without > 0:
        notes.append(f"{without} positions on tissue have no counts and are left out")
    if len(matrix.barcodes) > len(spots):
        notes.append(f"{len(matrix.barcodes) - len(spots)} barcodes of the counts are not on tissue and are left out")
    return spots, notes + note_empty(counts, noun)


def clusters_of(folder: Path, ids: NDArray[np.str_]) -> dict[str, NDArray[np.str_]]:
    """Return the graph clusters by 10x's pipelines as a column for some barcodes; no column where there are none.

    Parameters
    ----------
    folder
        The folder with ``analysis``.
    ids
        (n,); one without a cluster gets an empty text.
    """
    import pandas as pd

    for inner in ("gene_expression_graphclust", "graphclust"):
        file = folder / "analysis" / "clustering" / inner / "clusters.csv"
        if file.is_file():
            try:
                table = pd.read_csv(file, dtype=str).set_index("Barcode")["Cluster"]
                column = table.reindex(ids.astype(object)).fillna("").to_numpy(dtype=np.str_)
            except (OSError, ValueError, KeyError):
                return {}
            return {CLUSTERS: column} if (column != "").any() else {}
    return {}


def _without_counts(positions: Positions, diameter: float, path: Path) -> tuple[SpotTable, list[str]]:
    """Return the positions on tissue as spots without genes, with notes."""
    from scipy.sparse import csr_matrix

    keep = positions.in_tissue
    if not keep.any():
        raise SectionError(f"none of the {len(keep)} positions of {path} lies on tissue (in_tissue = 1)")
    ids, yx = positions.barcodes[keep], positions.yx[keep]
    check_positions(yx, ids, "of the spots on tissue", "(y, x)")
    nothing: Any = csr_matrix((len(ids), 0), dtype=np.float32)
    genes = Genes(np.array([], dtype=np.str_))
    notes = [
        ExpressionSource("none").statement,
        f"spots: the {len(ids)} positions on tissue; {path} holds no counts (filtered_feature_bc_matrix.h5, or the folder of that name), put them there to "
        "use expression",
    ]
    return SpotTable(ids, yx, diameter, nothing, genes, positions.array_rc[keep]), notes


def _first(values: NDArray[np.str_]) -> str:
    return repr(str(values[0])) if len(values) else "nothing"


# ------------------------------------------------------------------------------------------------- images


def slide_places(path: Path) -> list[Path]:
    """Return where the slide of a folder may lie: in it, and above one that is called outs."""
    return [path, path.parent] if path.name.startswith("outs") else [path]


def choose_image(
    path: Path,
    scalefactors: Mapping[str, Any],
    yx: NDArray[np.float64],
    fullres: Path | None,
    places: Sequence[Path],
    calibration: Calibration,
) -> tuple[SlideImage | None, list[str]]:
    """Open the finest image there is: the full-resolution one given or found, else the hires, else the lowres PNG."""
    expected, thumbnail = expected_size(path, scalefactors), _thumbnail(path)
    if fullres is not None:
        return open_fullres(fullres, expected, yx, thumbnail), _scale_of(fullres, calibration, expected is not None)
    found, notes = _search_fullres(places, expected, thumbnail)
    if found is not None:
        return found, notes + _scale_of(Path(found.source), calibration, True)
    for kind, key in _THUMBNAILS:
        file = path / "spatial" / f"tissue_{kind}_image.png"
        factor = thumbnail_factor(scalefactors, key)
        if factor is None and scalefactors.get(key) is not None:
            notes.append(
                f"{key} of the scalefactors is {shorten(repr(scalefactors[key]))}, which is no scale; it is not used"
            )
        if file.is_file() and factor is not None:
            try:
                return open_image(file, 1.0 / factor), [
                    *notes,
                    f"shown on the {kind} image, {1 / factor:.3g} times coarser",
                ]
            except SectionError as error:
                notes.append(f"left out: {error}")
    return None, notes


def expected_size(path: Path, scalefactors: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return height, width and tolerance of the full-resolution image in its pixels, from the hires or lowres image."""
    for kind, key in _THUMBNAILS:
        file = path / "spatial" / f"tissue_{kind}_image.png"
        factor = thumbnail_factor(scalefactors, key)
        if file.is_file() and factor is not None:
            try:
                height, width = image_size(file)
            except SectionError:
                continue  # `choose_image` tells of it where it matters
            return height / factor, width / factor, 1 / factor + 2  # the thumbnail was rounded to whole pixels
    return None


def _thumbnail(path: Path) -> SlideImage | None:
    """Return the smallest readable picture of the slide by Space Ranger."""
    for kind, _ in reversed(_THUMBNAILS):
        file = path / "spatial" / f"tissue_{kind}_image.png"
        if file.is_file():
            try:
                image = open_image(file)
                computed(image.levels[0])
                return image
            except SectionError:
                continue  # `choose_image` tells of it where it matters
    return None


def open_fullres(
    fullres: Path,
    expected: tuple[float, float, float] | None,
    yx: NDArray[np.float64],
    thumbnail: SlideImage | None,
) -> SlideImage:
    """Open the full-resolution image; refuse one that the spots' positions cannot have been measured on.

    Parameters
    ----------
    fullres
        The file.
    expected
        Height, width and tolerance, if known.
    yx
        (n, 2) positions in full-resolution pixels.
    thumbnail
        A small picture of the whole slide in the orientation of the positions, if there is one.

    Raises
    ------
    SectionError
        It cannot be read, has another size, is turned or mirrored, or shows something else.
    """
    fault = None
    if not _is_rotated(fullres, expected):
        check_fullres(fullres, expected, yx)
    elif expected is not None:
        fault = f"lies on its side: it is {expected[1]:.0f} pixels high, the section's thumbnails say wide"
    image = open_image(fullres)
    if thumbnail is not None and expected is not None:
        fault = unlike(overview(image), thumbnail) or fault
    if fault is not None:
        raise SectionError(
            f"{fullres} {fault}; the spots would lie on other tissue: give the image that Space Ranger was run on, lying as the "
            "section's thumbnails do"
        )
    return image


def _is_rotated(fullres: Path, expected: tuple[float, float, float] | None) -> bool:
    """Return whether an image has the expected height as its width, and the reverse."""
    if expected is None or not fullres.is_file():
        return False
    height, width = image_size(fullres)
    return _fits((width, height), expected) and not _fits((height, width), expected)


def check_fullres(fullres: Path, expected: tuple[float, float, float] | None, yx: NDArray[np.float64]) -> None:
    """Refuse an image whose size cannot be that of the one that positions were measured on."""
    if not fullres.is_file():
        raise SectionError(f"there is no image file {fullres}")
    height, width = image_size(fullres)
    if expected is not None:
        if not _fits((height, width), expected):
            raise SectionError(
                f"{fullres} has {height} x {width} pixels, the section's scalefactors and thumbnail ask for about "
                f"{expected[0]:.0f} x {expected[1]:.0f}; give the image that Space Ranger was run on, uncropped and unscaled"
            )
    # turned ones fit the other way round: `alignment` says so, and lays them as they are asked to lie
    elif len(yx) and ((yx < 0).any() or not ((yx <= (height, width)).all() or (yx <= (width, height)).all())):
        raise SectionError(
            f"{fullres} has {height} x {width} pixels, but spots lie between {np.round(yx.min(axis=0)).tolist()} and "
            f"{np.round(yx.max(axis=0)).tolist()} (y, x); give the image that Space Ranger was run on"
        )


def _scale_of(file: Path, calibration: Calibration, compared: bool) -> list[str]:
    """Compare the scale that a slide file states with the section's.

    If size and appearance of the slide agree with a thumbnail, a differing statement is stale, as after resampling. If nothing was compared, the
    spots may have been measured on another image.
    """
    stated, mpp = stated_mpp(file)[0], calibration.mpp
    if stated is None or mpp is None or abs(stated[0] / mpp - 1) <= _SAME_SCALE:
        return []
    if compared or calibration.source == "override":
        return [f"{file.name} states {stated[0]:.4g} um/px ({stated[1]}); the section's {mpp:.4g} um/px is used"]
    raise SectionError(
        f"{file} states {stated[0]:.4g} um/px ({stated[1]}), and the section has {calibration.detail}: the spots' positions belong to an image "
        "of another size. Give the image that Space Ranger was run on, or, where the file is wrong, the scale with --mpp"
    )


def _fits(size: tuple[int, int], expected: tuple[float, float, float]) -> bool:
    height, width, tolerance = expected
    return abs(size[0] - height) <= tolerance and abs(size[1] - width) <= tolerance


def _search_fullres(
    places: Sequence[Path], expected: tuple[float, float, float] | None, thumbnail: SlideImage | None
) -> tuple[SlideImage | None, list[str]]:
    """Return the one image in these folders with the size and appearance of the slide; unusable files are notes."""
    if expected is None:
        return None, ["no hires or lowres image to tell the full-resolution image by; give it with --fullres"]
    files = {  # a file once, though two places are one folder, or one name is a link to the other
        f.resolve(): f
        for place in places
        for f in sorted(place.iterdir())
        if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()
    }
    fitting, notes = [], []
    for file in files.values():
        try:
            if not _fits(image_size(file), expected):
                continue
            image = open_image(file)
            fault = None if thumbnail is None else unlike(overview(image), thumbnail, ALIKE_UNASKED)
        except SectionError as error:
            notes.append(f"left out: {error}")
            continue
        if fault is None:
            fitting.append(image)
        else:
            notes.append(f"{file.name} has the size of the full-resolution image, but {fault}; it is not used")
    names = ", ".join(Path(image.source).name for image in fitting)
    if len(fitting) == 1:
        return fitting[0], [*notes, f"full-resolution image found by its size: {names}"]
    if fitting:
        remark = f"several images have the size of the full-resolution image ({names}); choose one with --fullres"
    else:
        remark = "no full-resolution image is in the folder; give it with --fullres (fullres_image_file)"
    return None, [*notes, remark]


# ------------------------------------------------------------------------------------------------- names


def section_name(path: Path) -> str:
    """Return a name from the folder's, or its parent's where the folder is called outs; fit for SpatialData elements.

    That of an image is its name without the suffix.
    """
    path = path.resolve()
    if path.name == "outs":
        path = path.parent
    name = path.name
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        name = re.sub(r"\.ome$", "", path.stem, flags=re.IGNORECASE)
    return section_label(name)


def section_label(name: str) -> str:
    """Return a name in letters that SpatialData elements may have."""
    return re.sub(r"[^0-9A-Za-z_.-]", "_", name).lstrip("_") or "section"


def coordinate_systems(name: str, scalefactors: Mapping[str, Any]) -> dict[str, Affine]:
    """Return the coordinate systems that spatialdata_io gives a section of this name, from full-resolution pixels."""
    systems = {name: np.eye(3)}
    for kind, key in _THUMBNAILS:
        factor = thumbnail_factor(scalefactors, key)
        if factor is not None:
            systems[f"{name}_downscaled_{kind}"] = scaling(factor)
    return systems


def synthetic_marker(path: Path) -> tuple[bool, list[str]]:
    """Return whether a folder is marked as synthetic, and its words."""
    file = path / SYNTHETIC_MARKER
    if not file.is_file():
        return False, []
    try:
        content = read_json(file)
    except BadFile as error:
        raise SectionError(f"{file} cannot be read: {error}") from error
    note = content.get("note", "") if isinstance(content, dict) else None
    if not isinstance(note, str):
        raise SectionError(f"{file} cannot be read: expected an object with a text 'note'")
    return True, [note if note.startswith("synthetic") else f"synthetic: {note}"]
