"""Spots in a SpatialData store: which circles are meant, which table annotates them, and what its columns say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..types import Genes, SpotTable
from .geometry import Affine, swap_axes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "feature_name")
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "feature_id")


@dataclass(frozen=True)
class SpotRows:
    """Spots as a store holds them.

    Attributes
    ----------
    ids
        (n,) names of the table's rows.
    yx
        (n, 2) centres in the units of the circles.
    radius
        Of the circles, median.
    counts, genes, array_rc
        As in `SpotTable`.
    scalefactors
        What the table keeps of Space Ranger's scalefactors.
    notes
        What was left out.
    obs
        Further columns, each (n,): numbers as float, everything else as text.
    """

    ids: NDArray[np.str_]
    yx: NDArray[np.float64]
    radius: float
    counts: csr_matrix
    genes: Genes
    array_rc: NDArray[np.int64] | None
    scalefactors: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def table(self, yx: NDArray[np.float64], scale: float) -> SpotTable:
        """Return them at other positions, their circles scaled."""
        return SpotTable(self.ids, yx, 2 * self.radius * scale, self.counts, self.genes, self.array_rc, self.obs)


def spot_rows(
    sdata: Any,
    kind: str | None,
    chosen: str | None,
    affines_of: Callable[[Any], dict[str, Affine]],
) -> tuple[SpotRows, dict[str, Affine]]:
    """Find the spots that are meant and read them.

    Parameters
    ----------
    sdata
        The store.
    kind, chosen
        ``shapes`` or ``tables`` and the name of the element that the user chose; None where there should be one alone.
    affines_of
        Gives an element's affine into each coordinate system.

    Returns
    -------
    tuple
        The spots, and coordinate system -> affine from their units.

    Raises
    ------
    SectionError
        Where there are none, or several.
    """
    pairs = _annotated_circles(sdata)
    if chosen is not None:
        pairs = [pair for pair in pairs if chosen == pair[0 if kind == "tables" else 1]]
        if not pairs:
            raise SectionError(f"{kind}/{chosen} of the store is no set of Visium spots that a table annotates")
    if not pairs:
        raise SectionError(
            f"the store holds no circles that a table annotates, which is how Visium spots look; {_polygons(sdata)}"
        )
    if len(pairs) > 1:
        listed = ", ".join(f"shapes/{shapes} (tables/{table})" for table, shapes in pairs)
        place = Path(str(sdata.path or "STORE.zarr")).name
        raise SectionError(
            f"the store holds several sets of spots: {listed}; choose one by its path, for instance {place}/shapes/{pairs[0][1]} or, "
            f"where one set has several tables, {place}/tables/{pairs[0][0]}"
        )
    table, shapes = pairs[0]
    element = sdata.shapes[shapes]
    return _read(sdata.tables[table], element, shapes), affines_of(element)


def _annotated_circles(sdata: Any) -> list[tuple[str, str]]:
    pairs = []
    for name, table in sdata.tables.items():
        region = (table.uns.get("spatialdata_attrs") or {}).get("region")
        regions = [region] if isinstance(region, str) else list(region if region is not None else [])
        pairs += [(str(name), str(r)) for r in regions if r in sdata.shapes and "radius" in sdata.shapes[r].columns]
    return pairs


def _polygons(sdata: Any) -> str:
    shapes = sorted(n for n in sdata.shapes if "radius" not in sdata.shapes[n].columns)
    if shapes:
        return (
            f"its shapes ({', '.join(shapes)}) are polygons, as cells or HD bins are: for Visium HD give the Space Ranger folder "
            "binned_outputs"
        )
    return f"it has the shapes {sorted(sdata.shapes)} and the tables {sorted(sdata.tables)}"


def _read(table: Any, shapes: Any, name: str) -> SpotRows:
    attrs = table.uns["spatialdata_attrs"]
    rows = table[(table.obs[attrs["region_key"]].astype(str) == name).to_numpy()]
    notes = []
    if "in_tissue" in rows.obs:
        on_tissue = rows.obs["in_tissue"].astype(int).to_numpy() > 0
        if not on_tissue.all():
            notes.append(f"{int((~on_tissue).sum())} rows of the table are not on tissue and are left out")
            rows = rows[on_tissue]
    place = {instance: i for i, instance in enumerate(shapes.index.tolist())}
    at = np.array([place.get(instance, -1) for instance in rows.obs[attrs["instance_key"]].tolist()], dtype=np.int64)
    if (at < 0).any():
        notes.append(f"{int((at < 0).sum())} rows of the table have no circle and are left out")
        rows, at = rows[at >= 0], at[at >= 0]
    ids = rows.obs_names.to_numpy(dtype=np.str_)
    if len(np.unique(ids)) != len(ids):
        raise SectionError(f"the table of {name} names a spot twice")
    circles = shapes.iloc[at]
    yx = swap_axes(np.stack([circles.geometry.x.to_numpy(), circles.geometry.y.to_numpy()], axis=1))
    counts, told = _counts(rows, name)
    empty = int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum())
    if empty:
        told.append(f"{empty} of {len(ids)} spots have a total count of zero")
    radius = float(np.median(circles["radius"])) if len(circles) else 0.0
    array_rc = None
    if {"array_row", "array_col"} <= set(rows.obs.columns):
        array_rc = rows.obs[["array_row", "array_col"]].to_numpy(dtype=np.int64)
    obs = _columns(rows.obs, {attrs["region_key"], attrs["instance_key"], "in_tissue", "array_row", "array_col"})
    return SpotRows(ids, yx, radius, counts, _genes(rows.var), array_rc, _scalefactors(rows.uns), (*notes, *told), obs)


def _columns(obs: Any, known: set[str]) -> dict[str, NDArray[Any]]:
    """The table's further columns; missing values become NaN, or an empty text."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    columns: dict[str, NDArray[Any]] = {}
    for name in obs.columns:
        if name in known:
            continue
        values = obs[name]
        if is_numeric_dtype(values) and not is_bool_dtype(values):
            columns[str(name)] = values.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            columns[str(name)] = values.astype(object).where(values.notna(), "").astype(str).to_numpy(dtype=np.str_)
    return columns


def _counts(rows: Any, name: str) -> tuple[csr_matrix, list[str]]:
    """The counts of a table: X, or the layer ``counts`` where X is something else."""
    from scipy.sparse import csr_matrix

    notes = []
    counts = csr_matrix(rows.X) if rows.X is not None else None
    if counts is None or not _are_counts(counts):
        if "counts" not in rows.layers or not _are_counts(csr_matrix(rows.layers["counts"])):
            raise SectionError(
                f"the table of {name} does not hold counts: its X has negative or fractional values, as normalised expression has. "
                "Put the raw counts into X or into the layer 'counts'"
            )
        counts = csr_matrix(rows.layers["counts"])
        notes.append("counts are those of the table's layer 'counts'; its X is something else")
    counts.sort_indices()
    return counts, notes


def _are_counts(matrix: csr_matrix) -> bool:
    data = matrix.data
    return bool(data.size == 0 or (data.min() >= 0 and np.isfinite(data).all() and (data == np.rint(data)).all()))


def _genes(var: Any) -> Genes:
    names = var.index.to_numpy(dtype=np.str_)
    columns = {str(column).lower(): column for column in var.columns}
    ids = next((columns[c] for c in _ID_COLUMNS if c in columns), None)
    symbols = next((columns[c] for c in _SYMBOL_COLUMNS if c in columns), None)
    if symbols is not None and len(names) and np.char.startswith(names, "ENS").mean() > 0.5:
        return Genes(var[symbols].astype(str).to_numpy(dtype=np.str_), names)
    return Genes(names, None if ids is None else var[ids].astype(str).to_numpy(dtype=np.str_))


def _scalefactors(uns: Mapping[str, Any]) -> dict[str, Any]:
    """Scalefactors as scanpy keeps them, if the table has those of one library."""
    libraries = uns.get("spatial")
    if not isinstance(libraries, Mapping) or len(libraries) != 1:
        return {}
    library = next(iter(libraries.values()))
    factors = library.get("scalefactors") if isinstance(library, Mapping) else None
    return {str(k): v for k, v in factors.items()} if isinstance(factors, Mapping) else {}
