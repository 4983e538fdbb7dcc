"""Which genes edits move most, before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..storage.atomic import write_text
from ..types import Edit, SpotTable
from .changes import active_edits, spot_weights
from .depths import moved_totals
from .edits import apply_edits
from .measured import PER, Profile, totals_of
from .programs import Programs

MOST_SPOTS = 256
"""Painted spots, evenly spaced over the table, that a mean is taken over."""


@dataclass(frozen=True)
class Mover:
    """A gene's mean log(1 + counts per 10,000) over painted spots, as measured and after the edits."""

    gene: str
    before: float
    after: float


def most_moved(
    spots: SpotTable, edits: Sequence[Edit], programs: Programs, profiles: Mapping[str, Profile], most: int = 20
) -> tuple[Mover, ...]:
    """Return the genes that edits move most over the spots that they act on, what follows them included; the largest change first."""
    ids = spots.ids.tolist()
    acting = [spot_weights(edit, ids) for edit in active_edits(edits)]
    touched = np.flatnonzero(np.max(acting, axis=0)) if acting else np.empty(0, dtype=np.int64)
    if touched.size == 0:
        return ()
    rows = touched[np.unique(np.linspace(0, len(touched) - 1, min(MOST_SPOTS, len(touched))).round().astype(np.int64))]
    own = spots.counts[rows].astype(np.float32)
    scale = PER / totals_of(own)
    moved = apply_edits(rows, spots, edits, programs, profiles)
    factors = moved_totals(rows, spots, edits, profiles)
    before, after = (
        np.log1p(counts.multiply(by[:, None]).toarray()).mean(axis=0, dtype=np.float64)
        for counts, by in ((own, scale), (moved, scale / factors))
    )
    order = np.argsort(-np.abs(after - before), kind="stable")[:most]
    return tuple(
        Mover(str(spots.genes.symbols[k]), float(before[k]), float(after[k])) for k in order if after[k] != before[k]
    )


def write_movers(movers: Sequence[Mover], path: str | Path) -> None:
    """Write movers as a CSV of gene, before, after and change."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("gene", "before_mean_log1p_cp10k", "after_mean_log1p_cp10k", "change"))
    table.writerows(
        (one.gene, f"{one.before:.4f}", f"{one.after:.4f}", f"{one.after - one.before:.4f}") for one in movers
    )
    write_text(Path(path), text.getvalue())
