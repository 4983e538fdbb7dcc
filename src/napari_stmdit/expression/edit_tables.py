"""Tables that other tools predict for the spots of a section, one row a spot, to be applied as an edit.

Models of perturbations (SpatialProp, CONCERT, SpaceTravLR) write what expression would become; an edit brings it to the tissue. The other way, edits are
written as they take them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..edits import Edit, KnockOut, Scale, Table
from ..errors import GeneError, first_line
from ..files import is_number, read_header, user_path
from ..storage import fingerprint
from ..types import SpotTable
from .genes import match_genes
from .normalise import PER, sparse_cp10k_log1p

MAX_LOG = float(np.log1p(PER))
MAX_BYTES = 4_000_000_000
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class EditTable:
    """Prediction of a file for some spots, as natural logarithms of 1 + counts per 10,000.

    Attributes
    ----------
    ids
        Spot id -> row.
    genes
        Symbols of the g columns.
    levels
        (n, g) levels to move to, or where ``relative``, changes to add; over all genes of the table.
    relative
        Whether the levels are changes.
    normalised
        Whether the levels of a spot are relative to these genes alone; else to more genes, of which these are some.
    """

    ids: dict[str, int]
    genes: tuple[str, ...]
    levels: csr_matrix
    relative: bool
    normalised: bool = True

    def target(
        self,
        x: NDArray[np.float32],
        ids: Sequence[str],
        own: NDArray[np.int64],
        there: NDArray[np.int64],
        share: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return the target levels (m, c) of some of its spots.

        Parameters
        ----------
        x
            Measured levels, relative to the spots' totals.
        ids
            (m,) spots, all of them in the table.
        own
            (c,) the table's column of each, -1 for zero, from `target_columns`.
        there
            The table's columns that the section has.
        share
            (m,) share of each spot's measured total in these genes.
        """
        rows = np.array([self.ids[spot] for spot in ids], dtype=np.int64)
        levels: NDArray[np.float32] = np.zeros_like(x)
        levels[:, own >= 0] = self.levels[rows][:, own[own >= 0]].toarray()
        if self.relative:
            moved: NDArray[np.float32] = np.maximum(x + levels, 0)
            return moved
        if not self.normalised:
            return levels
        among = np.asarray(self.levels[rows][:, there].expm1().sum(axis=1)).ravel()
        scale = share * PER / np.maximum(among, 1e-12)
        return np.asarray(np.log1p(np.expm1(levels) * scale[:, None]), dtype=np.float32)


def read_edit_table(edit: Table) -> EditTable:
    """Read the table of an edit, once while it does not change.

    Raises
    ------
    GeneError
        The file cannot be read or was changed since the edit was made, or its values are not in the unit that the edit states.
    """
    path = user_path(edit.table)
    if not path.is_file():
        raise GeneError(f"there is no file {path}; expected a table of spots by genes, .h5ad or CSV")
    if path.stat().st_size > MAX_BYTES:
        raise GeneError(
            f"{path.name} has {path.stat().st_size / 1e9:.1f} GB; a table for an edit may have {MAX_BYTES / 1e9:.0f}"
        )
    digest = fingerprint.of_file(path)
    if edit.sha256 and edit.sha256 != digest:
        raise GeneError(
            f"{path.name} has changed since the edit was made (SHA-256 {digest[:12]}, was {edit.sha256[:12]}); choose it again"
        )
    return _read(str(path), digest, edit.unit, edit.layer, edit.baseline)


def signed(edit: Table) -> Table:
    """Return an edit that states the whole path of its table, and its SHA-256; unchanged where the table cannot be read."""
    path = user_path(edit.table)
    if not path.is_file():
        return edit
    return edit.model_copy(update={"table": str(path.absolute()), "sha256": edit.sha256 or fingerprint.of_file(path)})


def table_fault(edit: Table, spots: SpotTable) -> str | None:
    """Return why the table of an edit cannot be applied to a section, or None where it can."""
    try:
        table = read_edit_table(edit)
    except GeneError as error:
        return str(error)
    name = Path(edit.table).name
    shared = sum(spot in table.ids for spot in spots.ids.tolist())
    if not shared:
        theirs, ours = next(iter(table.ids), "none"), str(spots.ids[0]) if len(spots) else "none"
        return f"{name} has none of this section's spots: its first is {theirs!r}, the section's {ours!r}; the ids must be the same"
    match = match_genes(table.genes, spots.genes)
    if not match.shared:
        return f"{name} has none of this section's genes: its first is {table.genes[0]!r}; gene names match exactly"
    there, counts = np.unique(match.columns[match.columns >= 0], return_counts=True)
    if (counts > 1).any():
        one = int(there[counts > 1][0])
        twins = [gene for gene, column in zip(table.genes, match.columns.tolist(), strict=True) if column == one]
        return f"{name} names the gene {spots.genes.symbols[one]} twice, as {' and '.join(twins)}; leave one out"
    return None


def table_note(edit: Table, spots: SpotTable) -> str:
    """Say how much of a section the table of an edit covers; the table must be without fault."""
    table = read_edit_table(edit)
    shared = sum(spot in table.ids for spot in spots.ids.tolist())
    genes = match_genes(table.genes, spots.genes).shared
    return (
        f"{Path(edit.table).name} covers {shared:,} of {len(spots):,} spots and {genes:,} of {len(spots.genes):,} genes; what it lacks stays as "
        "measured"
    )


def layers_of(path: str | Path) -> tuple[str, ...]:
    """Return the matrices that an .h5ad holds, ``X`` first; a CSV has one, which needs no name.

    Raises
    ------
    GeneError
        The file cannot be read.
    """
    file = user_path(path)
    if not _is_hdf5(file):
        return ()
    return _layers(_open(file))


def perturbation_of(edits: Sequence[Edit], name: str) -> dict[str, dict[str, float]]:
    """Return the gene factors of edits as SpatialProp takes them: ``{group: {gene: factor}}``.

    Raises
    ------
    GeneError
        An edit does something else than multiply genes, names programs, or the edits act on different spots.
    """
    factors: dict[str, float] = {}
    active = [edit for edit in edits if edit.enabled and edit.spots != {}]
    groups = {None if edit.spots is None else frozenset(s for s, w in edit.spots.items() if w > 0) for edit in active}
    if len(groups) > 1:
        raise GeneError(
            f"the {len(active)} edits act on {len(groups)} different sets of spots; a group of spots has one factor a gene: give the edits of "
            "one set"
        )
    for edit in active:
        if not isinstance(edit, Scale | KnockOut) or edit.programs or edit.strength != 1:
            raise GeneError(
                f"the edit {edit.name or edit.operation!r} cannot be written as a factor a gene; only scaling and knocking out genes at full "
                "strength can"
            )
        if any(0 < weight < 1 for weight in (edit.spots or {}).values()):
            raise GeneError(
                f"the edit {edit.name or edit.operation!r} is painted with weights below 1 on some spots; a factor a gene is the same for all spots "
                "of a group"
            )
        for gene in dict.fromkeys(edit.genes):
            factors[gene] = factors.get(gene, 1.0) * (edit.factor if isinstance(edit, Scale) else 0.0)
    if not factors:
        raise GeneError("no edit multiplies a gene; there is nothing to write")
    return {name: factors}


def _layers(table: Any) -> tuple[str, ...]:
    # anndata 0.13 counts X among the layers, under the name None
    return (*(("X",) if table.X is not None else ()), *(name for name in table.layers if name is not None))


@lru_cache(maxsize=4)
def _read(path: str, digest: str, unit: str, layer: str | None, baseline: str | None) -> EditTable:
    file = Path(path)
    if _is_hdf5(file):
        table = _open(file)
        ids, genes = [str(name) for name in table.obs_names], [str(name) for name in table.var_names]
        if layer is None:
            there = ", ".join(layers_of(file))
            raise GeneError(f"{file.name} holds {there or 'no matrix'}: say which one is meant (layer)")
        stated = table.uns.get("log1p")
        of_x = stated.get("base") if isinstance(stated, Mapping) else None
        if (
            of_x is not None
            and unit != "counts"
            and None not in (layer, baseline)
            and "X" in {layer, baseline} != {"X"}
        ):
            raise GeneError(
                f"{file.name} says of its X that its logarithm has the base {of_x!r} (uns['log1p']), and nothing of the layer "
                f"{baseline if layer == 'X' else layer!r}; compare layers of natural logarithms, or of counts"
            )
        values, base = (
            None if name is None else _of_stated_log(_matrix(table, name, file.name), name, stated, unit, file.name)
            for name in (layer, baseline)
        )
        assert values is not None  # of a layer that was named
    else:
        if layer is not None or baseline is not None:
            raise GeneError(f"{file.name} is a text table and has no layers; leave 'layer' and 'baseline' out")
        ids, genes, values = _read_text(file)
        base = None
    for what, names in (("spot", ids), ("gene", genes)):
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise GeneError(f"{file.name} names the {what} {twice!r} twice; expected each once")
    if unit == "difference":
        if base is not None:
            raise GeneError("a table of differences needs no baseline; leave 'baseline' out")
        _check(values, -MAX_LOG, MAX_LOG, unit, file.name)
        levels = values
    else:
        levels = _log_levels(values, unit, file.name)
        if base is not None:
            levels = csr_matrix(levels - _log_levels(base, unit, file.name))
    sums = np.asarray(levels.expm1().sum(axis=1)).ravel()
    return EditTable(
        {spot: row for row, spot in enumerate(ids)},
        tuple(genes),
        levels.astype(np.float32),
        unit == "difference" or base is not None,
        bool((sums[sums > 0] > 0.99 * PER).all()),
    )


def _of_stated_log(values: csr_matrix, layer: str, stated: Any, unit: str, name: str) -> csr_matrix:
    """Return values in natural logarithms, X by the base that ``uns["log1p"]`` states; raises GeneError where it contradicts the unit."""
    if stated is None or layer != "X":
        return values
    if unit == "counts" and (values.data != np.rint(values.data)).any():
        raise GeneError(
            f"{name} says of its X that it is log1p (uns['log1p']), and counts were asked for; choose the unit log1p_cp10k, or a layer of counts"
        )
    base = stated.get("base") if isinstance(stated, Mapping) else None
    if base is None or unit == "counts":
        return values
    if not is_number(base) or base <= 1:
        raise GeneError(f"{name}: uns['log1p'] states the base {base!r}; expected a number above 1, or none for e")
    return csr_matrix(values * np.log(float(base)))


def _log_levels(values: csr_matrix, unit: str, name: str) -> csr_matrix:
    """Return log(1 + counts per 10,000) over the table's own genes."""
    if unit == "counts":
        _check(values, 0, np.inf, unit, name)
        return csr_matrix(sparse_cp10k_log1p(values, np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1e-12)))
    _check(values, 0, MAX_LOG, unit, name)
    shares = values.copy()
    shares.data = np.expm1(shares.data)
    most = float(np.asarray(shares.sum(axis=1)).max(initial=0))
    if most > 1.01 * PER:
        raise GeneError(
            f"{name}: the values of a spot add up to {most:,.0f} counts per 10,000, so they are not log(1 + counts per 10,000); give counts, or "
            "normalise to 10,000 before the logarithm"
        )
    return values


def _check(values: csr_matrix, low: float, high: float, unit: str, name: str) -> None:
    data = values.data
    if not np.isfinite(data).all():
        raise GeneError(f"{name} holds values that are no finite numbers; expected {unit}")
    if data.size and (data.min() < low or data.max() > high):
        bounds = f"{low:g} or more" if np.isinf(high) else f"{low:.3g} to {high:.3g}"
        raise GeneError(
            f"{name} holds values from {data.min():.3g} to {data.max():.3g}; {unit} are {bounds}: is another unit meant?"
        )


def _is_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError as error:
        raise GeneError(f"{path} cannot be read: {error.strerror}") from None


def _open(path: Path) -> Any:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes h5py and anndata raise
        raise GeneError(f"{path.name} cannot be read as an .h5ad: {first_line(error)}") from None


def _matrix(table: Any, layer: str, name: str) -> csr_matrix:
    found = table.X if layer == "X" else table.layers.get(layer)
    if found is None:
        there = ", ".join(_layers(table))
        raise GeneError(f"{name} has no layer {layer!r}; it has {there or 'none'}")
    try:
        return csr_matrix(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise GeneError(f"{name}: the layer {layer!r} does not hold numbers") from None


def _read_text(path: Path) -> tuple[list[str], list[str], csr_matrix]:
    """Read spots by genes from text: the first row names the genes, the first column the spots; commas, tabs or semicolons between them."""
    import pandas as pd

    try:
        separator, header = read_header(path)
        frame = pd.read_csv(path, sep=separator, index_col=0, dtype={0: str}, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:  # pandas' own errors are ValueErrors
        raise GeneError(f"{path.name} cannot be read as a table of spots by genes: {first_line(error)}") from None
    if frame.empty:
        raise GeneError(f"{path.name} is empty; expected a header of gene names and a row a spot")
    text = next((str(column) for column, kind in frame.dtypes.items() if kind.kind not in "iufb"), None)
    if text is not None:
        raise GeneError(
            f"{path.name}: the column {text!r} does not hold numbers; expected a value for each spot and gene"
        )
    # the header itself, as pandas renames a column that is there twice; R names no column of row names
    genes = header if len(header) == frame.shape[1] else header[1:]
    if len(genes) != frame.shape[1]:
        raise GeneError(
            f"{path.name}: its header names {len(header)} columns, and its rows have {frame.shape[1] + 1}; expected as many"
        )
    return [str(name) for name in frame.index], genes, csr_matrix(frame.to_numpy(dtype=np.float64))
