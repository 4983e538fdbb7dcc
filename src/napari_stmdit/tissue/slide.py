"""Plain H&E slides: no counts, so the spots are a virtual grid on the tissue, or the positions of a table of predicted expression."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import BadFile, is_number, user_path
from ..storage.fingerprint import of_file
from ..text import counted, shorten
from ..types import ExpressionSource, Genes, PredictedUnits, Section, SlideImage, SpotTable
from .counts import MAX_COUNTS, note_empty, refuse_twice
from .geometry import VISIUM_PITCH_UM, check_positions, swap_axes
from .images import open_image
from .one_section import refuse_libraries
from .slide_scale import calibrate_slide
from .spaceranger import one_number, section_name
from .tables import genes_of, obs_columns
from .tissue_mask import TissueMask, find_tissue
from .zarr_codecs import damage_as_section_error

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_VALUES = 2**31
"""Maximum number of rows times genes of a table."""
MAX_LOG = 25.0
"""Maximum natural logarithm of a count: exp(25) is beyond 2^31."""
MAX_TOTAL = 1e7
"""Maximum total of a spot, measured or normalised; a million is the largest in use."""
_ROWS_AT_ONCE = 4096
_SAME_SUM = 1e-3
_MEANT = "its obsm['spatial'] must be (x, y) in pixels of the full-resolution slide, not microns, not (y, x), and not pixels of a smaller level"
_UNITS = (
    "say what they are with --predicted-units (predicted_units=...): 'counts', expected counts a spot, or 'log1p', natural logarithms of one plus "
    "normalised counts"
)


@dataclass(frozen=True)
class PredictedTable:
    """Predicted table.

    Attributes
    ----------
    spots
        Its rows at their own positions; the diameter is not known here.
    source
        Name, hash and units.
    """

    spots: SpotTable
    source: ExpressionSource


def read_predicted(path: str | Path, units: PredictedUnits | None = None) -> PredictedTable:
    """Read a table of predicted expression.

    Parameters
    ----------
    path
        A .h5ad with ``X`` (n, g), gene names in ``var``, and ``obsm["spatial"]`` (n, 2), (x, y) in full-resolution pixels.
    units
        Units of ``X``. By default whole numbers are counts; a table with ``uns["log1p"]``, which scanpy writes, is log1p with the
        base stated there; otherwise they must be given.

    Raises
    ------
    SectionError
        It cannot be read, lacks positions, or holds what cannot be expression.
    """
    try:
        file = user_path(path)
    except BadFile as error:
        raise SectionError(f"the predicted table cannot be opened: {error}") from error
    if not file.is_file():
        raise SectionError(f"there is no file {file}; expected a predicted table, .h5ad")
    with damage_as_section_error(file.name, "a predicted table (.h5ad)"):
        return _table(file, units)


# ------------------------------------------------------------------------------------------------- the file


def _table(file: Path, units: PredictedUnits | None) -> PredictedTable:
    values, obs, var, xy, log_base = _read(file)
    ids = obs.index.to_numpy(dtype=np.str_)
    genes = genes_of(var)
    if not len(ids) or not len(genes):
        raise SectionError(f"{file.name} has {len(ids)} rows and {len(genes)} genes; expected at least one of each")
    refuse_twice(ids, file.name)
    columns = obs_columns(obs, set())
    refuse_libraries(ids, columns, None, file.name)
    check_positions(xy, ids, f"of {file.name}", "(x, y)")
    counts, found = _as_counts(file, values, units, log_base)
    spots = SpotTable(ids, swap_axes(xy), 0.0, counts, genes, None, columns)
    return PredictedTable(spots, ExpressionSource("predicted", file.name, of_file(file), found))


def _read(file: Path) -> tuple[csr_matrix, Any, Any, NDArray[np.float64], float | None]:
    """Return X, obs, var, positions, and the base of the logarithm; None where the file states none."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(file, "r") as root:
        missing = [name for name in ("X", "obs", "var") if name not in root]
        if missing:
            raise SectionError(f"{file.name} lacks {', '.join(missing)}; expected a table as anndata writes it, .h5ad")
        if "obsm" not in root or "spatial" not in root["obsm"]:
            raise SectionError(f"{file.name} has no positions; {_MEANT}")
        obs, var = read_elem(root["obs"]), read_elem(root["var"])
        positions = root["obsm"]["spatial"]
        if not isinstance(positions, h5py.Dataset) or positions.shape != (len(obs), 2):
            shape = getattr(positions, "shape", type(positions).__name__)
            raise SectionError(f"{file.name}: obsm['spatial'] is {shape}, expected {(len(obs), 2)}; {_MEANT}")
        values = _values(file, root["X"], len(obs), len(var))
        return values, obs, var, np.asarray(positions[:], dtype=np.float64), _log_base(root)


def _values(file: Path, x: Any, rows: int, columns: int) -> csr_matrix:
    """Return X as sparse float32; its sizes are compared before anything is read."""
    import h5py
    from anndata.io import read_elem
    from scipy.sparse import csr_matrix, vstack

    shape = tuple(int(n) for n in (x.shape if isinstance(x, h5py.Dataset) else x.attrs["shape"]))
    if shape != (rows, columns):
        raise SectionError(f"{file.name}: X is {shape}, but obs and var say {(rows, columns)}")
    if rows * columns > MAX_VALUES:
        raise SectionError(f"{file.name} has {rows:,} x {columns:,} values, more than can be read; leave out genes")
    if isinstance(x, h5py.Dataset):
        if x.dtype.kind not in "iuf":
            raise SectionError(f"{file.name}: X holds {x.dtype}, where numbers are expected")
        parts = [
            csr_matrix(x[start : start + _ROWS_AT_ONCE].astype(np.float32)) for start in range(0, rows, _ROWS_AT_ONCE)
        ]
        return vstack(parts, format="csr") if parts else csr_matrix((0, columns), dtype=np.float32)
    sizes = {name: x[name].shape for name in ("data", "indices")}
    if sizes["data"] != sizes["indices"] or sizes["data"][0] > rows * columns:
        raise SectionError(f"{file.name}: the parts of X do not fit each other ({sizes})")
    sparse = csr_matrix(read_elem(x)).astype(np.float32)
    sparse.check_format(full_check=True)
    return sparse


def _log_base(root: Any) -> float | None:
    """Return the base of the logarithm by ``uns["log1p"]``, e where it names none; None without it."""
    import h5py

    if "uns" not in root or "log1p" not in root["uns"]:
        return None
    entry = root["uns"]["log1p"]
    base = entry["base"][()] if isinstance(entry, h5py.Group) and isinstance(entry.get("base"), h5py.Dataset) else None
    base = one_number(base)
    if base is None or isinstance(base, h5py.Empty) or (isinstance(base, float) and np.isnan(base)):
        return float(np.e)
    if not is_number(base) or base <= 1:
        raise SectionError(
            f"{root.filename}: uns['log1p'] states the base {shorten(repr(base))}, which is no base of logarithms; expected a number above 1, or none for e"
        )
    return float(base)


def _as_counts(
    file: Path, values: csr_matrix, units: PredictedUnits | None, log_base: float | None
) -> tuple[csr_matrix, PredictedUnits]:
    """Convert the values of a table to counts; return these and the units."""
    data = values.data
    if not np.isfinite(data).all():
        raise SectionError(
            f"{file.name} holds {int((~np.isfinite(data)).sum())} values that are no finite numbers; expected a prediction for every gene and row, "
            "so leave the others out"
        )
    if data.size and data.min() < 0:
        raise SectionError(
            f"{file.name} holds negative values, down to {data.min():.3g}, as z-scores and residuals are; expected counts, or logarithms of one "
            "plus counts, which are never below zero"
        )
    whole = not data.size or bool((data == np.rint(data)).all())
    if log_base is not None and units == "counts" and not whole:
        raise SectionError(
            f"{file.name} says of itself that it is log1p (uns['log1p']), but predicted_units is counts; remove the one that is wrong"
        )
    found: PredictedUnits | None = units or ("counts" if whole else "log1p" if log_base is not None else None)
    if found is None:
        raise SectionError(f"{file.name} holds fractions up to {data.max():.3g} and does not state its units; {_UNITS}")
    if found == "log1p":
        logs = data * np.float32(np.log(log_base or np.e))
        if logs.size and logs.max() > MAX_LOG:
            raise SectionError(
                f"{file.name} holds values up to {data.max():.3g}, which are no logarithms of counts; {_UNITS}"
            )
        even = units is None and _same_sums(values)
        values = values.copy()
        values.data = np.expm1(logs)
        if units is None and (fault := _not_logged(values, even)):
            raise SectionError(
                f"{file.name} says of itself that it is log1p (uns['log1p'], which is left also where a layer was logged), but {fault}; {_UNITS}"
            )
    elif data.size and float(data.max()) > MAX_COUNTS:
        raise SectionError(f"{file.name} holds a count of {data.max():.3g}; no spot has so many")
    values.eliminate_zeros()
    values.sort_indices()
    return values, found


def _same_sums(values: csr_matrix) -> bool:
    sums = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    return len(sums) > 1 and bool(np.ptp(sums) <= _SAME_SUM * sums.max())


def _not_logged(turned_back: csr_matrix, even: bool) -> str:
    """Return the reason why values that were converted back were no logarithms; "" where there is none.

    ``even``: whether the rows had one sum before. Those of normalised counts have, those of their logarithms do not.
    """
    if even and not _same_sums(turned_back):
        return "all rows of X have the same sum, as normalised counts have and their logarithms have not"
    most = float(turned_back.sum(axis=1, dtype=np.float64).max())
    return f"X turned back would give a row {most:.3g} counts" if most > MAX_TOTAL else ""


# ------------------------------------------------------------------------------------------------- onto the slide


def at_own_positions(
    table: PredictedTable, size: tuple[float, float], mask: TissueMask | None, share: float, radius: float
) -> tuple[SpotTable, list[str]]:
    """Return the rows of a table as spots at their own positions, and notes about rows left out.

    Rows off the slide, and rows at the place of an earlier one, are left out. Rows off the tissue are kept: the mask is a rule of
    thumb, and the positions are the user's.

    Raises
    ------
    SectionError
        Most rows lie off the slide or its tissue: the positions then belong to another image or scale.
    """
    spots, name = table.spots, table.source.file
    on_slide, first, notes = _usable(table, size)
    keep = np.flatnonzero(on_slide & first)
    spots = _rows_of(spots, keep)
    if mask is not None:
        off = int((mask.fraction(spots.yx, radius) < share).sum())
        if off > len(spots) / 2:
            raise SectionError(
                f"{off} of {len(spots)} rows of {name} lie off the tissue that was found ({mask.rule}): {_MEANT}. If they are, give "
                "tissue_fraction=0 (--tissue-fraction 0), and no tissue is looked for"
            )
        if off:
            notes.append(f"{counted(off, 'row lies', 'rows lie')} off the tissue that was found and kept all the same")
    notes.insert(0, f"spots: the {len(spots)} positions of {name}, {len(spots.genes):,} genes, {_words(table)}")
    return replace(spots, diameter=2 * radius), notes + note_empty(spots.counts)


def match_to_grid(
    table: PredictedTable, grid: SpotTable, size: tuple[float, float], radius: float
) -> tuple[SpotTable, list[str]]:
    """Give each spot of a grid the nearest row of a table within a spot's radius; spots without one are left out.

    A row goes only to its nearest spot.

    Raises
    ------
    SectionError
        Most rows lie off the slide, or no spot finds a row.
    """
    from scipy.spatial import cKDTree

    spots, name = table.spots, table.source.file
    on_slide, first, notes = _usable(table, size)
    usable = np.flatnonzero(on_slide & first)
    distance, spot = cKDTree(grid.yx).query(spots.yx[usable])
    order = np.argsort(distance, kind="stable")
    near = order[distance[order] <= radius]
    taken, place = np.unique(spot[near], return_index=True)  # of rows near one spot, the nearest comes first
    rows = usable[near[place]]
    if not len(rows):
        raise SectionError(
            f"no row of {name} lies within a spot's radius (27.5 um, {radius:.3g} px) of the grid's {len(grid)} spots on tissue: {_MEANT}"
        )
    matched = _rows_of(spots, rows)
    array_rc = None if grid.array_rc is None else grid.array_rc[taken]
    found = replace(matched, ids=grid.ids[taken], yx=grid.yx[taken], diameter=2 * radius, array_rc=array_rc)
    far, shared = len(usable) - len(near), len(near) - len(rows)
    remark = f"{len(rows)} of the grid's {len(grid)} spots found a row of {name} within 27.5 um, {len(spots.genes):,} genes, {_words(table)}"
    notes.insert(0, remark + "; the others are left out" * (len(rows) < len(grid)))
    if far:
        notes.append(
            f"{counted(far, 'row is', 'rows are')} farther than 27.5 um from every spot of the grid on tissue and left out"
        )
    if shared:
        notes.append(f"{counted(shared, 'row has', 'rows have')} a nearer one at the same spot and left out")
    return found, notes + note_empty(found.counts)


def _usable(table: PredictedTable, size: tuple[float, float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[str]]:
    """Return which rows lie on the slide, which are the first at their place, and notes."""
    yx, name = table.spots.yx, table.source.file
    on_slide: NDArray[np.bool_] = np.asarray(((yx >= 0) & (yx <= size)).all(axis=1), dtype=np.bool_)
    off = int((~on_slide).sum())
    if off > len(yx) / 2:
        raise SectionError(
            f"{off} of {len(yx)} rows of {name} lie off the slide of {size[0]:.0f} x {size[1]:.0f} pixels (y, x), at up to "
            f"{np.round(yx.max(axis=0)).tolist()}: {_MEANT}"
        )
    first = np.zeros(len(yx), dtype=bool)
    first[np.unique(np.round(yx, 2), axis=0, return_index=True)[1]] = True
    twice = int((~first & on_slide).sum())
    notes = []
    if off:
        notes.append(f"{counted(off, 'row lies', 'rows lie')} off the slide and left out")
    if twice:
        notes.append(f"{counted(twice, 'row has', 'rows have')} the position of an earlier one and left out")
    return on_slide, first, notes


def _rows_of(spots: SpotTable, rows: NDArray[np.int64]) -> SpotTable:
    obs = {name: values[rows] for name, values in spots.obs.items()}
    return replace(spots, ids=spots.ids[rows], yx=spots.yx[rows], counts=spots.counts[rows], obs=obs)


def _words(table: PredictedTable) -> str:
    return "counts" if table.source.units == "counts" else "log1p, turned back into counts"


SPOT_UM = 55.0
"""Diameter of a virtual spot: that of a Visium spot."""
TISSUE_FRACTION = 0.5
"""Minimum share of a spot on tissue."""
PITCH_WITHIN = (10.0, 10_000.0)
MAX_SPOTS = 1_000_000


def open_slide(
    path: Path,
    mpp: float | None = None,
    *,
    grid_pitch: float | None = None,
    tissue_fraction: float = TISSUE_FRACTION,
    predicted_expression: str | Path | None = None,
    predicted_units: PredictedUnits | None = None,
) -> Section:
    """Open a plain H&E image as a section.

    Parameters
    ----------
    path
        JPEG, PNG or TIFF, with scanner formats based on TIFF (SVS, NDPI, OME-TIFF).
    mpp
        Microns per pixel; by default as the file states, see `slide_scale`.
    grid_pitch, tissue_fraction, predicted_expression, predicted_units
        Grid, tissue and predicted expression, see `napari_stmdit.tissue.open.SectionSource`.

    Returns
    -------
    Section
        Of the kind ``image``. Its expression is none (no gene) or predicted, and labelled so.

    Raises
    ------
    ScaleError
        The scale is neither stated nor given.
    SectionError
        A file cannot be read, no spot lies on tissue, or the predicted table does not fit the slide.
    """
    image = open_image(path)
    scale, calibration = calibrate_slide(path, mpp)
    table = None if predicted_expression is None else read_predicted(predicted_expression, predicted_units)
    mask = find_tissue(image, scale) if tissue_fraction > 0 else None
    spots, notes = _spots(image, scale, mask, tissue_fraction, table, grid_pitch)
    expression = ExpressionSource("none") if table is None else table.source
    name = section_name(path)
    return Section(
        name=name,
        path=path,
        kind="image",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems={name: np.eye(3)},
        notes=(expression.statement, *notes),
        expression=expression,
    )


def _spots(
    image: SlideImage,
    mpp: float,
    mask: TissueMask | None,
    share: float,
    table: PredictedTable | None,
    pitch: float | None,
) -> tuple[SpotTable, list[str]]:
    """Return the spots of a slide: the table's own positions, or a grid, alone or with the nearest rows of the table."""
    height, width = (side * image.pixel_size for side in image.shape)
    radius = SPOT_UM / 2 / mpp
    remarks = [] if mask is None else [f"tissue: {mask.rule}; {mask.mask.mean():.0%} of the slide"]
    if table is not None and pitch is None:
        spots, notes = at_own_positions(table, (height, width), mask, share, radius)
        return spots, [*remarks, *notes]
    grid, rc = hex_grid((height, width), (pitch or VISIUM_PITCH_UM) / mpp)
    keep = np.ones(len(grid), dtype=bool)
    if mask is not None:
        keep = mask.fraction(grid, radius) >= share
    if not keep.any():
        raise SectionError(
            f"no spot of the grid lies on tissue ({remarks[0] if remarks else 'the slide is smaller than its pitch'}); give a smaller "
            "grid_pitch, or tissue_fraction=0 to cover the whole slide"
        )
    spots = _grid_table(grid[keep], rc[keep], 2 * radius, pitch or VISIUM_PITCH_UM)
    where = "on the slide" if mask is None else f"on tissue (at least {share:.0%} of the spot)"
    remarks.append(
        f"virtual grid: {len(spots)} spots of {SPOT_UM:g} um, {pitch or VISIUM_PITCH_UM:g} um apart, hexagonal, {where}"
    )
    if table is None:
        return spots, remarks
    spots, notes = match_to_grid(table, spots, (height, width), radius)
    return spots, [*remarks, *notes]


def hex_grid(size: tuple[float, float], pitch: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Lay a hexagonal grid over an image from its corner.

    Parameters
    ----------
    size
        Height and width in full-resolution pixels.
    pitch
        Distance between centres, in full-resolution pixels.

    Returns
    -------
    tuple
        (n, 2) centres (y, x) in full-resolution pixels, and their (n, 2) array rows and columns, as on Visium: columns in half
        pitches.

    Raises
    ------
    SectionError
        There would be more than `MAX_SPOTS`.
    """
    row, half = pitch * math.sqrt(3) / 2, pitch / 2
    rows, columns = (max(0, math.ceil(side / step - 0.5)) for side, step in zip(size, (row, half), strict=True))
    if rows * columns / 2 > MAX_SPOTS:
        raise SectionError(
            f"a grid of this pitch has {rows * columns // 2:,} spots on the slide; give a larger grid_pitch"
        )
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    rc = np.stack([r, c], axis=-1).reshape(-1, 2)
    rc = rc[rc.sum(axis=1) % 2 == 0].astype(np.int64)
    return (rc + 0.5) * (row, half), rc


def _grid_table(yx: NDArray[np.float64], rc: NDArray[np.int64], diameter: float, pitch: float) -> SpotTable:
    from scipy.sparse import csr_matrix

    ids = np.array([f"grid_{r:03d}x{c:03d}" for r, c in rc.tolist()], dtype=np.str_)
    nothing: Any = csr_matrix((len(yx), 0), dtype=np.float32)
    # array indices mean a Visium lattice to every reader, and that has 100 um
    visium = rc if pitch == VISIUM_PITCH_UM else None
    return SpotTable(ids, yx, diameter, nothing, Genes(np.array([], dtype=np.str_)), visium)
