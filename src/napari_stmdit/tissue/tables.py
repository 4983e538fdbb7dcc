"""Spots in a SpatialData store: their circles, the table that annotates them, and its columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import is_number
from ..types import Genes, Outlines, SpotTable
from .counts import EXPRESSION_FEATURE, are_controls, canonical, fault_of_counts, note_empty, refuse_twice
from .geometry import Affine, apply, fit_lattice, swap_axes
from .one_section import MIN_PITCH_UM, bin_size_of, one_bin_size, refuse_libraries
from .pseudo_spots import CLUSTERS, DISC_UM, SHARES, outlines_of
from .spaceranger import one_number, whole_numbers

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "feature_name")
_LAYER = "counts"
"""Layer in which scanpy and squidpy keep counts that X no longer holds."""
_KIND_COLUMNS = ("feature_types", "feature_type", "feature_biotype")
_OTHER_KINDS = ("Antibody Capture", "CRISPR Guide Capture", "Multiplexing Capture", "Antigen Capture", "Custom")
_SPIKE_IN = "spike-in"
_SQUARE_TABLE = re.compile(r"square_0*(\d+)um")
_PREFERRED_BINS = (8.0, 16.0, 2.0)
_XENIUM_COLUMNS = {"cell_id", "cell_area", "transcript_counts"}
"""Columns of the table that spatialdata-io makes of Xenium."""
_XENIUM_CELLS = "cell_boundaries"
_SAME_AREA = 0.05
_LABELS, _RELABELED = "_labels", "relabeled_"
"""What spatialdata adds to the names of bins that it draws into a label image, and to the column with their ids in it."""
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "feature_id")


@dataclass(frozen=True)
class SpotRows:
    """Spots as a store holds them.

    Attributes
    ----------
    table_name, circles_name
        Elements that they were read from.
    ids
        (n,) names of the table's rows.
    yx
        (n, 2) centres in the units of the circles.
    radius
        Median radius of the circles.
    counts, genes, array_rc
        As in `SpotTable`.
    scalefactors
        Space Ranger's scalefactors in the table.
    notes
        Notes about what was left out.
    obs
        Further columns, each (n,): numbers as float, everything else as text.
    bin_um
        Side of a bin of Visium HD; None where they are none.
    empty
        (m, 2) centres of the bins that the table has no row of, if there are any.
    areas
        (n,) areas of cells and nuclei, in square units of their shapes; None where they are none.
    unit_um
        Microns per unit of the shapes, if the table states it; else None.
    outlines
        Outlines of cells, in units of the shapes; None where they have none.
    """

    table_name: str
    circles_name: str
    ids: NDArray[np.str_]
    yx: NDArray[np.float64]
    radius: float
    counts: csr_matrix
    genes: Genes
    array_rc: NDArray[np.int64] | None
    scalefactors: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    bin_um: float | None = None
    empty: NDArray[np.float64] | None = None
    areas: NDArray[np.float64] | None = None
    unit_um: float | None = None
    outlines: Outlines | None = None

    @property
    def is_small(self) -> bool:
        """Whether they are bins of Visium HD or cells, to be summed to spots."""
        return self.areas is not None or (self.bin_um is not None and self.bin_um < MIN_PITCH_UM)

    def table(self, yx: NDArray[np.float64], scale: float) -> SpotTable:
        """Return them at other positions, their circles scaled."""
        return SpotTable(self.ids, yx, 2 * self.radius * scale, self.counts, self.genes, self.array_rc, self.obs)


def spot_rows(
    sdata: Any,
    kind: str | None,
    chosen: str | None,
    affines_of: Callable[[Any], dict[str, Affine]],
    predicted: bool = False,
) -> tuple[SpotRows, dict[str, Affine]]:
    """Find and read the spots.

    Parameters
    ----------
    sdata
        The store.
    kind, chosen
        ``shapes`` or ``tables`` and the name of the element that the user chose; None for the only one.
    affines_of
        Returns an element's affine into each coordinate system.
    predicted
        Whether the store's expression is predicted, and may be fractions.

    Returns
    -------
    tuple
        The spots, and coordinate system -> affine from their units.

    Raises
    ------
    SectionError
        There are none, or several.
    """
    pairs = annotated_circles(sdata)
    if chosen is not None or not pairs or all(_bin_of(sdata, pair) is not None for pair in pairs):
        pairs = annotated_circles(sdata) + annotated_polygons(sdata)
    if chosen is not None:
        pairs = [pair for pair in pairs if chosen == pair[0 if kind == "tables" else 1]]
        if not pairs:
            raise SectionError(f"{kind}/{chosen} of the store is no set of Visium spots that a table annotates")
    if not pairs:
        raise SectionError(
            f"the store holds no circles that a table annotates, which is how Visium spots look, nor polygons, as bins and cells; {_what_it_has(sdata)}"
        )
    if chosen is None:
        pairs, passed = _preferred(sdata, pairs)
        # bins and cells of one section lie on each other; of those of another one none is the better choice
        pairs = pairs + [pair for pair in passed if not _lies_with(sdata, pairs[0][1], pair[1], affines_of)]
    if len(pairs) > 1:
        listed = ", ".join(f"shapes/{shapes} (tables/{table})" for table, shapes in pairs)
        place = Path(str(sdata.path or "STORE.zarr")).name
        raise SectionError(
            f"the store holds several sets of spots: {listed}; choose one by its path, for instance {place}/shapes/{pairs[0][1]} or, "
            f"where one set has several tables, {place}/tables/{pairs[0][0]}"
        )
    table, shapes = pairs[0]
    element = sdata.shapes[shapes]
    rows = _read(_of_shapes(sdata.tables[table], shapes), element, table, shapes, predicted, _bin_of(sdata, pairs[0]))
    if rows.bin_um is not None:
        said = rows.scalefactors.get("bin_size_um")
        stated = {"its barcodes or the table's name": rows.bin_um, "bin_size_um of its scalefactors": said}
        one_bin_size({by: size for by, size in stated.items() if is_number(size)}, f"the table {table} of {shapes}")
    if chosen is None:
        others = dict.fromkeys(name for _, name in annotated_shapes(sdata) if name != shapes)
        left = [f"{shapes} is used, not {', '.join(others)}"] if others else []
        rows = replace(rows, notes=(*left, *_of_labels(sdata), *rows.notes))
    if rows.areas is not None and not _are_circles(element):
        rows = replace(rows, outlines=Outlines(lambda: outlines_of(element.geometry.to_numpy())))
    return rows, affines_of(element)


def _are_circles(shapes: Any) -> bool:
    """Return whether shapes are circles, by the first; polygons that were made of circles keep the column of their radius."""
    import shapely

    return (
        "radius" in shapes.columns and len(shapes) > 0 and shapely.get_type_id(shapes.geometry.iloc[0]) == 0
    )  # a point


def annotated_polygons(sdata: Any) -> list[tuple[str, str]]:
    """Return the names of each table of a store with those of the polygons that it annotates: HD bins as squares, cells, nuclei."""
    return [(table, name) for table, name in annotated_shapes(sdata) if not _are_circles(sdata.shapes[name])]


def _bin_of(sdata: Any, pair: tuple[str, str]) -> float | None:
    """Return the side of a table's bins in microns, by their barcodes or else the table's name; None where they are no bins."""
    table = sdata.tables[pair[0]]
    some = [bin_size_of(name) for name in table.obs_names[:10].tolist()]
    if some and all(some):
        return some[0]
    square = not _are_circles(sdata.shapes[pair[1]]) and _SQUARE_TABLE.search(pair[0])
    return float(square[1]) if square else None


def _preferred(sdata: Any, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the preferred sets of bins or cells, and the others: 8 um, 16, 2, other bins, cells, nuclei, in this order."""

    def rank(pair: tuple[str, str]) -> int:
        bin_um = _bin_of(sdata, pair)
        if bin_um is not None:
            return _PREFERRED_BINS.index(bin_um) if bin_um in _PREFERRED_BINS else len(_PREFERRED_BINS)
        return 10 + ("nucle" in pair[1].lower())

    if not all(_bin_of(sdata, pair) is not None or pair in annotated_polygons(sdata) for pair in pairs):
        return pairs, []
    best = min(map(rank, pairs))
    return [p for p in pairs if rank(p) == best], [p for p in pairs if rank(p) != best]


def _lies_with(sdata: Any, one: str, other: str, affines_of: Callable[[Any], dict[str, Affine]]) -> bool:
    """Return whether two sets of shapes lie on each other in a shared coordinate system: the middle of one within the other."""
    boxes = []
    try:
        systems = [affines_of(sdata.shapes[name]) for name in (one, other)]
    except SectionError:  # nothing says how they lie
        return False
    shared = next((system for system in systems[0] if system in systems[1]), None)
    if shared is None:
        return False
    for name, affines in zip((one, other), systems, strict=True):
        left, top, right, bottom = sdata.shapes[name].total_bounds
        corners = apply(affines[shared], [(top, left), (top, right), (bottom, left), (bottom, right)])
        boxes.append((corners.min(axis=0), corners.max(axis=0)))
    (low, high), (low_2, high_2) = boxes
    middle, middle_2 = (low + high) / 2, (low_2 + high_2) / 2
    apart = ((middle_2 < low) | (middle_2 > high)).any() and ((middle < low_2) | (middle > high_2)).any()
    return not apart


def annotated_circles(sdata: Any) -> list[tuple[str, str]]:
    """Return the names of each table of a store with those of the circles that it annotates."""
    return [(table, name) for table, name in annotated_shapes(sdata) if _are_circles(sdata.shapes[name])]


def annotated_shapes(sdata: Any) -> list[tuple[str, str]]:
    """Return the names of each table of a store with those of the shapes that it annotates, or whose label image it does."""
    pairs = []
    for name, table in sdata.tables.items():
        regions = _regions(table)
        pairs += [(str(name), r) for r in regions if r in sdata.shapes]
        shapes = [r.removesuffix(_LABELS) for r in regions if r.endswith(_LABELS) and r not in sdata.shapes]
        pairs += [(str(name), r) for r in shapes if r in sdata.shapes and _key_of_shapes(table, sdata.shapes[r].index)]
        if not set(regions) & set(sdata.shapes) and _is_xenium(table) and _XENIUM_CELLS in sdata.shapes:
            pairs.append((str(name), _XENIUM_CELLS))
    return pairs


def _regions(table: Any) -> list[str]:
    region = (table.uns.get("spatialdata_attrs") or {}).get("region")
    return [region] if isinstance(region, str) else [str(r) for r in (region if region is not None else ())]


def _key_of_shapes(table: Any, index: Any) -> str | None:
    """Return the column of a table of labels that names the shapes behind them; spatialdata keeps it beside that of the labels."""
    attrs = table.uns["spatialdata_attrs"]
    key = str(attrs["instance_key"]).removeprefix(_RELABELED)
    return key if key in table.obs and table.obs[key].isin(index).all() else None


def _of_labels(sdata: Any) -> list[str]:
    """Return which tables annotate label images without shapes."""
    known = {table for table, _ in annotated_shapes(sdata)}
    labels = {name: [r for r in _regions(table) if r in sdata.labels] for name, table in sdata.tables.items()}
    return [
        f"tables/{name} annotates the labels {', '.join(regions)}, which are not read"
        for name, regions in labels.items()
        if regions and name not in known
    ]


def _is_xenium(table: Any) -> bool:
    return set(table.obs.columns) >= _XENIUM_COLUMNS


def _of_shapes(table: Any, shapes: str) -> Any:
    """Return the table for shapes; it may annotate a label image of the bins, or as that of Xenium of the cells, not their outlines."""
    attrs = table.uns["spatialdata_attrs"]
    if shapes in _regions(table):
        return table
    key = "cell_id" if _is_xenium(table) else str(attrs["instance_key"]).removeprefix(_RELABELED)
    other = (table if _is_xenium(table) else rows_of(table, shapes + _LABELS)).copy()
    other.obs[attrs["region_key"]] = shapes
    other.uns["spatialdata_attrs"] = {**attrs, "region": shapes, "instance_key": key}
    return other


def _what_it_has(sdata: Any) -> str:
    return "; ".join(
        (f"it has the shapes {sorted(sdata.shapes)} and the tables {sorted(sdata.tables)}", *_of_labels(sdata))
    )


def rows_of(table: Any, circles: str) -> Any:
    """Return the rows of a table that annotate circles of this name."""
    key = table.uns["spatialdata_attrs"]["region_key"]
    return table[(table.obs[key].astype(str) == circles).to_numpy()]


def _read(
    table: Any, shapes: Any, table_name: str, name: str, predicted: bool, bin_um: float | None = None
) -> SpotRows:
    attrs = table.uns["spatialdata_attrs"]
    rows = every = rows_of(table, name)
    notes = []
    if "in_tissue" in rows.obs:
        on_tissue = whole_numbers(rows.obs["in_tissue"], "in_tissue", f"the table of {name}") > 0
        if not on_tissue.all():
            notes.append(f"{int((~on_tissue).sum())} rows of the table are not on tissue and are left out")
            rows = rows[on_tissue]
    if not shapes.index.is_unique:
        raise SectionError(f"the circles of {name} have an index that is not unique; expected one circle a spot")
    place = {instance: i for i, instance in enumerate(shapes.index.tolist())}
    at = np.array([place.get(instance, -1) for instance in rows.obs[attrs["instance_key"]].tolist()], dtype=np.int64)
    if len(at) and (at < 0).all() and {str(i) for i in place} & set(map(str, rows.obs[attrs["instance_key"]])):
        raise SectionError(
            f"the column {attrs['instance_key']!r} of the table and the index of {name} hold the same ids, in one as text and in the other as numbers; "
            "make them one type"
        )
    if (at < 0).any():
        notes.append(f"{int((at < 0).sum())} rows of the table have no circle and are left out")
        rows, at = rows[at >= 0], at[at >= 0]
    if not len(at):
        raise SectionError(f"the table of {name} has no spot on tissue: {'; '.join(notes) or 'it has no row'}")
    ids = rows.obs_names.to_numpy(dtype=np.str_)
    refuse_twice(ids, f"the table of {name}")
    areas = unit_um = None
    if _are_circles(shapes):
        yx, radius = _circles(shapes.iloc[at], name)
        if _is_xenium(rows):
            areas = np.pi * shapes["radius"].to_numpy(dtype=np.float64)[at] ** 2
    else:
        yx, areas = _polygons(shapes.iloc[at], name)
        radius = float(np.sqrt(np.median(areas) / np.pi))
    if areas is not None and _is_xenium(rows):
        # the table has areas in square microns; outlines are simplified, so what is nearly one is one
        share = float(np.median(rows.obs["cell_area"].to_numpy(dtype=np.float64) / areas))
        unit_um = 1.0 if abs(share - 1) <= _SAME_AREA else None
    counts, genes, remarks = counts_of(rows, name, predicted)
    remarks += note_empty(counts)
    array_rc = None
    if {"array_row", "array_col"} <= set(rows.obs.columns):
        columns = [whole_numbers(rows.obs[c], c, f"the table of {name}") for c in ("array_row", "array_col")]
        array_rc = np.stack(columns, axis=1)
        # outlines of Visium spots; in microns by their size, as the lattice is known in these, whatever the unit of the shapes
        if areas is not None and fit_lattice(array_rc, yx * (DISC_UM / 2 / radius)) is not None:
            areas = None
    empty = None
    if bin_um is not None:
        areas = None
        middles = shapes.geometry[~shapes.index.isin(every.obs[attrs["instance_key"]])].centroid
        empty = np.stack([middles.y.to_numpy(), middles.x.to_numpy()], axis=1) if len(middles) else None
    obs = obs_columns(rows.obs, {attrs["region_key"], attrs["instance_key"], "in_tissue", "array_row", "array_col"})
    refuse_libraries(ids, obs, array_rc, f"the table of {name}")
    return SpotRows(
        table_name,
        name,
        ids,
        yx,
        radius,
        counts,
        genes,
        array_rc,
        _scalefactors(rows.uns),
        (*notes, *remarks),
        obs,
        bin_um,
        empty,
        areas,
        unit_um,
    )


def obs_columns(obs: Any, known: set[str]) -> dict[str, NDArray[Any]]:
    """Return a table's further columns; missing values become NaN, or an empty text.

    `SHARES` that are true or false are numbers, and clusters are text, numbered as 10x's folders have them.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    columns: dict[str, NDArray[Any]] = {}
    for name in obs.columns:
        if name in known:
            continue
        values = obs[name]
        if name == CLUSTERS:
            values = values.astype(object).map(lambda one: f"{one:g}" if is_number(one) else one, na_action="ignore")
        if is_numeric_dtype(values) and (name in SHARES or not is_bool_dtype(values)):
            columns[str(name)] = values.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            columns[str(name)] = values.astype(object).where(values.notna(), "").astype(str).to_numpy(dtype=np.str_)
    return columns


def _circles(circles: Any, name: str) -> tuple[NDArray[np.float64], float]:
    if not (circles.geometry.geom_type == "Point").all():
        raise SectionError(f"the shapes of {name} are not all circles, which are points with a radius")
    yx = swap_axes(np.stack([circles.geometry.x.to_numpy(), circles.geometry.y.to_numpy()], axis=1))
    if not np.isfinite(yx).all():
        raise SectionError(f"the position of a circle of {name} is no finite number")
    radius = float(np.median(circles["radius"]))
    if not np.isfinite(radius) or radius <= 0:
        raise SectionError(f"the radius of the circles of {name} is {radius}; expected a number above 0")
    return yx, radius


def _polygons(shapes: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not shapes.geometry.geom_type.isin(("Polygon", "MultiPolygon")).all():
        raise SectionError(f"the shapes of {name} are not all polygons, nor circles with a radius")
    centres, areas = shapes.geometry.centroid, shapes.geometry.area.to_numpy(dtype=np.float64)
    yx = np.stack([centres.y.to_numpy(), centres.x.to_numpy()], axis=1)
    if not np.isfinite(yx).all() or not (np.isfinite(areas) & (areas > 0)).all():
        raise SectionError(f"a polygon of {name} is empty, or has a corner that is no finite number")
    return yx, areas


def counts_of(rows: Any, name: str, predicted: bool = False) -> tuple[csr_matrix, Genes, list[str]]:
    """Return the counts of a table, their genes, and notes.

    The layer ``counts`` comes before X; where X is no counts, ``raw`` is taken. Antibodies and guides in the same table are left out.
    """
    counts, var, notes = _counts(rows, name, predicted)
    keep = _are_genes(var, name)
    if not keep.all():
        counts, var = counts[:, np.flatnonzero(keep)], var[keep]
        notes.append(
            f"{int((~keep).sum())} features of the table are no genes (antibodies, guides, spike-ins, controls) and are left out"
        )
    return counts, genes_of(var), notes


def _are_genes(var: Any, name: str) -> NDArray[np.bool_]:
    """Return which rows of ``var`` are genes: all, where no column states the kind.

    Cell Ranger names kinds of features; CELLxGENE has biotypes of genes in a column of nearly that name, and spike-ins.
    """
    keep = ~are_controls(genes_of(var).symbols)
    for column in _KIND_COLUMNS:
        if column not in var.columns:
            continue
        kinds = var[column].astype(str).to_numpy(dtype=np.str_)
        if np.isin(kinds, _OTHER_KINDS).any() or (kinds == EXPRESSION_FEATURE).any():
            keep &= kinds == EXPRESSION_FEATURE
        keep &= kinds != _SPIKE_IN
    if len(keep) and not keep.any():
        raise SectionError(
            f"the table of {name} holds no gene: its features are antibodies, guides, controls or others; expected some of the type {EXPRESSION_FEATURE!r}"
        )
    return keep


def _counts(rows: Any, name: str, predicted: bool) -> tuple[csr_matrix, Any, list[str]]:
    from scipy.sparse import csr_matrix

    counts = None if rows.X is None else csr_matrix(rows.X.astype(np.float32) if rows.X.dtype == np.float16 else rows.X)
    if counts is not None and predicted and counts.dtype.kind == "f":
        if np.isfinite(counts.data).all() and not (counts.data < 0).any():
            return canonical(counts), rows.var, []
    found = {"X": (canonical(counts), rows.var)} if counts is not None else {}
    if _LAYER in rows.layers:
        found["layer"] = (canonical(rows.layers[_LAYER]), rows.var)
    if rows.raw is not None and rows.raw.X is not None:
        found["raw"] = (canonical(rows.raw.X), rows.raw.var)
    faults = {place: fault_of_counts(matrix) for place, (matrix, _) in found.items()}
    chosen = next((place for place in ("layer", "X", "raw") if place in found and faults[place] is None), None)
    if chosen is None:
        raise SectionError(
            f"the table of {name} does not hold counts: its X has {faults.get('X', 'nothing')}. Normalised expression cannot be used: put the raw "
            f"counts into X or into the layer 'counts'{_layers_of_counts(rows)}"
        )
    taken, var = found[chosen]
    if chosen == "X":
        notes = [f"the table's layer 'counts' holds {faults['layer']}; X is taken"] if "layer" in found else []
        if (
            "raw" in found
            and faults["raw"] is None
            and not _agree(taken, genes_of(var), found["raw"][0], genes_of(found["raw"][1]))
        ):
            raise SectionError(
                f"the table of {name} holds two matrices of whole numbers that contradict each other, X and raw; put the counts into the layer 'counts'"
            )
        return taken, var, notes
    where = "the table's layer 'counts'" if chosen == "layer" else "the table's raw"
    same = "X" in found and faults["X"] is None and (found["X"][0] != taken).nnz == 0
    return taken, var, [] if same else [f"counts are those of {where}; its X is something else"]


def _layers_of_counts(rows: Any) -> str:
    """Return the layers that may hold counts, for a message."""
    from scipy.sparse import csr_matrix

    names = [
        name
        for name in rows.layers
        if name not in (None, _LAYER) and fault_of_counts(csr_matrix(rows.layers[name])) is None
    ]
    return f"; whole numbers are in {', '.join(names)}" if names else ""


def _agree(counts: csr_matrix, genes: Genes, others: csr_matrix, of_others: Genes) -> bool:
    """Return whether two matrices of the same rows agree on their shared genes."""
    if np.array_equal(genes.symbols, of_others.symbols):
        return bool((counts != others).nnz == 0)
    twice = {
        symbol
        for symbols in (genes.symbols, of_others.symbols)
        for symbol, count in Counter(symbols.tolist()).items()
        if count > 1
    }
    place = {symbol: i for i, symbol in enumerate(of_others.symbols.tolist()) if symbol not in twice}
    at = np.array([place.get(symbol, -1) for symbol in genes.symbols.tolist()], dtype=np.int64)
    return bool((counts[:, np.flatnonzero(at >= 0)] != others[:, at[at >= 0]]).nnz == 0)


def genes_of(var: Any) -> Genes:
    """Return the genes named in ``var``, by symbol and, if there is such a column, by id."""
    names = var.index.to_numpy(dtype=np.str_)
    columns = {str(column).lower(): column for column in var.columns}
    ids = next((columns[c] for c in _ID_COLUMNS if c in columns), None)
    symbols = next((columns[c] for c in _SYMBOL_COLUMNS if c in columns), None)
    if symbols is not None and len(names) and np.char.startswith(names, "ENS").mean() > 0.5:
        return Genes(var[symbols].astype(str).to_numpy(dtype=np.str_), names)
    return Genes(names, None if ids is None else var[ids].astype(str).to_numpy(dtype=np.str_))


def _scalefactors(uns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalefactors as scanpy keeps them, if the table has those of one library."""
    libraries = uns.get("spatial")
    if not isinstance(libraries, Mapping) or len(libraries) != 1:
        return {}
    library = next(iter(libraries.values()))
    factors = library.get("scalefactors") if isinstance(library, Mapping) else None
    return {str(k): one_number(v) for k, v in factors.items()} if isinstance(factors, Mapping) else {}
