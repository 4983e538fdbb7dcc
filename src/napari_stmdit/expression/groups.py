"""Comparison of two groups of spots: fold changes and tests of genes and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import GeneError
from ..storage.atomic import write_text
from ..types import SpotTable
from .genes import match_genes
from .normalise import sparse_cp10k_log1p, totals_of
from .programs import Programs

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_matrix, csr_matrix

MIN_SPOTS = 3
"""Spots that a group needs at least."""
_GENES_AT_ONCE = 512
COLUMNS = ("name", "kind", "log2_fold_change", "mean_a", "mean_b", "detected_a", "detected_b", "p", "fdr")


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Differences between two groups of spots.

    Attributes
    ----------
    names
        Names of the groups a and b.
    ids
        Ids of their spots.
    table
        One row for each gene with counts and each program, sorted by kind, ``p`` and size of the change:

        - ``kind``: *gene* or *program*.
        - ``log2_fold_change``: a over b. Genes: log2((mean counts per 10,000 in a + 1) / (in b + 1)); programs: difference of mean levels.
        - ``mean_a``, ``mean_b``: mean log(1 + counts per 10,000).
        - ``detected_a``, ``detected_b``: share of spots with a count.
        - ``p``, ``fdr``: two-sided Wilcoxon rank-sum test on log(1 + counts per 10,000), and its Benjamini-Hochberg value within the kind.
    """

    names: tuple[str, str]
    ids: tuple[tuple[str, ...], tuple[str, ...]]
    table: pd.DataFrame

    @property
    def statement(self) -> str:
        """Sentence that names the groups, and the limits of the p-values."""
        (a, b), (ids_a, ids_b) = self.names, self.ids
        return f"{a} ({len(ids_a):,} spots) against {b} ({len(ids_b):,}). Neighbouring spots are alike, so p-values rank genes and prove nothing."

    def top(self, kind: str, count: int) -> pd.DataFrame:
        """Return the first rows of a kind: the surest differences."""
        return self.table[self.table["kind"] == kind].head(count)

    def write(self, path: str | Path) -> None:
        """Write the table as CSV, with the comparison in its first line, behind #; an existing file is replaced."""
        rows = self.table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(Path(path).expanduser(), f"# {self.statement}\n{rows}")


def compare_groups(
    spots: SpotTable,
    a: Sequence[str],
    b: Sequence[str] | None = None,
    programs: Programs | None = None,
    names: tuple[str, str] = ("selection", "the rest"),
) -> GroupTable:
    """Compare the expression of two groups of spots.

    Parameters
    ----------
    spots
        The section's spots.
    a, b
        Ids of the groups, which share no spot; without ``b`` all other spots.
    programs
        Name -> gene -> weight; a program's level is the weighted mean of its genes' levels. Those without a gene here are left out.
    names
        What to call the groups.

    Raises
    ------
    GeneError
        A group has fewer than three spots, they share some, one is not in the section, or the section has no expression.

    Examples
    --------
    >>> ids = section.spots.ids.tolist()
    >>> found = st.compare_groups(section.spots, ids[:20], ids[20:40])
    >>> list(found.top("gene", 2).columns)[:3]
    ['name', 'kind', 'log2_fold_change']
    """
    import pandas as pd

    known = spots.ids.tolist()
    chosen = set(a)
    others = [spot for spot in known if spot not in chosen] if b is None else list(dict.fromkeys(b))
    if strangers := (chosen | set(others)) - set(known):
        raise GeneError(
            f"{len(strangers)} spots are not in this section, such as {min(strangers)!r}; choose spots of it"
        )
    if shared := chosen & set(others):
        raise GeneError(
            f"{names[0]} and {names[1]} share {len(shared)} spots, such as {min(shared)!r}; groups must be apart"
        )
    for name, group in zip(names, (chosen, set(others)), strict=True):
        if len(group) < MIN_SPOTS:
            raise GeneError(
                f"{name} has {len(group)} spots, and at least {MIN_SPOTS} are needed to compare; choose more"
            )
    if not spots.counts.nnz:
        raise GeneError("the section has no expression; there is nothing to compare")
    rows = np.sort(spots.rows(list(chosen))), np.sort(spots.rows(others))
    levels = sparse_cp10k_log1p(spots.counts.astype(np.float64), totals_of(spots.counts))
    genes = _compared(levels.tocsc(), rows, spots.genes.symbols, "gene")
    scored = {
        name: score for name, genes in (programs or {}).items() if (score := _score(levels, spots, genes)) is not None
    }
    parts = [genes]
    if scored:
        from scipy.sparse import csc_matrix

        scores = np.stack(list(scored.values()), axis=1)
        parts.append(_compared(csc_matrix(scores), rows, np.array(list(scored), dtype=np.str_), "program"))
    ids = tuple(tuple(spots.ids[group].tolist()) for group in rows)
    return GroupTable(names, (ids[0], ids[1]), pd.concat(parts, ignore_index=True))


def _score(levels: csr_matrix, spots: SpotTable, weights: Mapping[str, float]) -> NDArray[np.float64] | None:
    """Return the weighted mean level of a program's genes, (n,); None where the section has none of them."""
    columns = match_genes(tuple(weights), spots.genes).columns
    weight = np.where(columns >= 0, np.array(list(weights.values()), dtype=np.float64), 0.0)
    if not weight.sum():
        return None
    here = columns >= 0
    return np.asarray(levels[:, columns[here]] @ (weight[here] / weight.sum())).ravel()


def _compared(
    levels: csc_matrix, rows: tuple[NDArray[np.int64], NDArray[np.int64]], names: NDArray[np.str_], kind: str
) -> pd.DataFrame:
    """Return one row a column of (n, k) levels that has any above 0."""
    import pandas as pd
    from scipy.stats import false_discovery_control, mannwhitneyu

    found: list[pd.DataFrame] = []
    for start in range(0, len(names), _GENES_AT_ONCE):
        dense = levels[:, start : start + _GENES_AT_ONCE].toarray()
        one, two = dense[rows[0]], dense[rows[1]]
        there = (one > 0).any(axis=0) | (two > 0).any(axis=0)
        one, two = one[:, there], two[:, there]
        if not there.any():
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            p = mannwhitneyu(one, two, axis=0, method="asymptotic").pvalue
        means = [np.expm1(part).mean(axis=0) + 1 for part in (one, two)]
        change = np.log2(means[0] / means[1]) if kind == "gene" else (one.mean(axis=0) - two.mean(axis=0)) / np.log(2)
        values = (
            change,
            one.mean(axis=0),
            two.mean(axis=0),
            (one > 0).mean(axis=0),
            (two > 0).mean(axis=0),
            np.nan_to_num(p, nan=1.0),
        )
        part = {"name": names[start : start + _GENES_AT_ONCE][there], "kind": kind}
        found.append(pd.DataFrame(part | dict(zip(COLUMNS[2:8], values, strict=True))))
    whole = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS[:8]))
    whole["fdr"] = false_discovery_control(whole["p"]) if len(whole) else whole["p"]
    order = np.lexsort((-whole["log2_fold_change"].abs(), whole["p"]))
    return whole.iloc[order].reset_index(drop=True)
