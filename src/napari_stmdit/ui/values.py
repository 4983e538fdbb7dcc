"""What a spot's colour stands for: the value of a gene, a program or a column, as measured, edited, or changed. No napari."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..expression.edits import edited_levels
from ..expression.genes import match_genes
from ..expression.measured import Measured, Profile
from ..expression.programs import Programs, bundled_programs
from ..types import Edit, Genes, SpotTable
from .state import Colouring, ColourScale, Span

DIVERGING = "blue-orange"
"""The colour map of changes; see `colouring.colormap_of`."""
MOST_CATEGORIES = 20
"""A column of whole numbers with at most so many different ones is taken for categories."""
MOST_NAMES = 200
"""A column of text with more different ones is no column of categories: nobody could tell so many colours apart."""
_LOG, _LINEAR = "log(1 + counts per 10,000)", "counts per 10,000"
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Edited:
    """The edits that are on show, and what they refer to."""

    edits: tuple[Edit, ...] = ()
    programs: Programs = field(default_factory=bundled_programs)
    profiles: Mapping[str, Profile] = field(default_factory=dict)


class SpotValues:
    """Values of one section's spots. Keeps the genes that were last asked for, so that edits are followed quickly."""

    def __init__(self, spots: SpotTable) -> None:
        self.spots = spots
        self._measured: Measured | None = None
        self._narrow: tuple[Any, Measured, Values] | None = None

    @property
    def measured(self) -> Measured:
        """The whole table, as edits take it."""
        if self._measured is None:
            self._measured = Measured.of(self.spots)
        return self._measured

    # --- columns

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that spots can be coloured by."""
        return (*self.spots.obs, *(name for name in ("total counts", "genes detected") if name not in self.spots.obs))

    def column(self, name: str) -> NDArray[Any] | None:
        """Return a column, (n,), or None where there is none of this name."""
        if name in self.spots.obs:
            return np.asarray(self.spots.obs[name])
        if name == "total counts":
            return np.asarray(self.spots.counts.sum(axis=1), dtype=np.float64).ravel()
        if name == "genes detected":
            return np.asarray((self.spots.counts > 0).sum(axis=1), dtype=np.float64).ravel()
        return None

    def categories(self, name: str) -> tuple[str, ...]:
        """Return the categories of a column, in their order; none where it holds numbers, or more than `MOST_NAMES` texts."""
        values = self.column(name)
        found = () if values is None else categories_of(values)
        return found if len(found) <= MOST_NAMES else ()

    # --- genes and programs

    def genes(self, names: Sequence[str], edited: Edited, show: str, log: bool) -> Values:
        """Return values of genes, (n, genes), in the order of ``names``, which must be in the section.

        A change is always in log units.
        """
        narrow, before = self._narrowed(tuple(names), edited)
        if show == "measured":
            levels = before
        else:
            after = edited_levels(narrow, edited.edits, edited.programs, edited.profiles)
            levels = _gather(after, names, narrow.genes)
            if show == "change":
                return levels - before
        return levels if log else np.expm1(levels)

    def _narrowed(self, names: tuple[str, ...], edited: Edited) -> tuple[Measured, Values]:
        profiles = {name for edit in edited.edits if (name := getattr(edit, "target_profile", None)) is not None}
        key = (names, tuple((name, id(edited.profiles.get(name))) for name in sorted(profiles)))
        if self._narrow is None or self._narrow[0] != key:
            used = {name: edited.profiles[name] for name in profiles if name in edited.profiles}
            narrow = self.measured.narrowed(names, used)
            levels = narrow.levels(np.arange(len(narrow.genes)))
            self._narrow = (key, narrow, _gather(levels, names, narrow.genes))
        return self._narrow[1], self._narrow[2]

    def of(self, colouring: Colouring, edited: Edited | None = None) -> tuple[NDArray[Any] | None, ColourScale]:
        """Return the values that are drawn and what their colours mean; no values where nothing or nothing known is asked for."""
        if colouring.obs is not None:
            return self._of_column(colouring)
        edited = edited or Edited()
        weights, label, fault = self._asked_for(colouring, edited.programs)
        if fault or not weights:
            return None, ColourScale(fault=fault)
        table = self.genes(tuple(weights), edited, colouring.show, colouring.log)
        share = np.array(list(weights.values()), dtype=np.float32)
        values: Values = (table @ (share / share.sum())).astype(np.float32)
        if colouring.show == "change":
            limits = colouring.limits or around_zero(values)
            return values, ColourScale(f"change of {label}", limits, f"change of {_LOG}", colormap=DIVERGING)
        label += " after edits" if colouring.show == "edited" else ""
        limits = colouring.limits or auto_limits(values, colouring.span)
        return values, ColourScale(label, limits, _LOG if colouring.log else _LINEAR, colormap=colouring.colormap)

    def _asked_for(self, colouring: Colouring, programs: Programs) -> tuple[dict[str, float], str, str]:
        """Genes with their weights, what they are called, and what is wrong."""
        if colouring.gene is not None:
            if match_genes((colouring.gene,), self.spots.genes).shared:
                return {colouring.gene: 1.0}, colouring.gene, ""
            return {}, "", unknown_gene(self.spots, colouring.gene)
        if colouring.program is None:
            return {}, "", ""
        genes = programs.get(colouring.program)
        if genes is None:
            return {}, "", f"{colouring.program!r} is no program; known are {', '.join(sorted(programs))}"
        missing = set(match_genes(tuple(genes), self.spots.genes).missing)
        there = {gene: weight for gene, weight in genes.items() if gene not in missing and weight > 0}
        if not there:
            return {}, "", f"this section has none of the {len(genes)} genes of {colouring.program!r}"
        return there, f"{colouring.program} ({len(there)} of {len(genes)} genes)", ""

    def _of_column(self, colouring: Colouring) -> tuple[NDArray[Any] | None, ColourScale]:
        assert colouring.obs is not None
        values = self.column(colouring.obs)
        if values is None:
            choice = ", ".join(self.columns())
            return None, ColourScale(fault=f"{colouring.obs!r} is no column of the table; there are: {choice}")
        categories = categories_of(values)
        if values.dtype.kind not in "fiu" and len(categories) > MOST_NAMES:
            fault = f"{colouring.obs!r} holds {len(categories):,} different texts; at most {MOST_NAMES} can be shown as categories"
            return None, ColourScale(fault=fault)
        if categories:
            from .colouring import category_colours

            names = as_text(values)
            counts = Counter(names.tolist())
            colours = category_colours(len(categories))
            legend = tuple(
                (name, tuple(colour), counts[name]) for name, colour in zip(categories, colours.tolist(), strict=True)
            )
            return names, ColourScale(colouring.obs, unit="categories", categories=legend)
        numbers = values.astype(np.float32)
        limits = colouring.limits or auto_limits(numbers, colouring.span)
        return numbers, ColourScale(colouring.obs, limits, "as in the table", colormap=colouring.colormap)


def _gather(levels: Values, names: Sequence[str], genes: Genes) -> Values:
    """Levels of each named gene; of a symbol with several columns, of their sum."""
    match = match_genes(tuple(names), genes)
    gathered = levels[:, match.columns]
    for place, name in enumerate(names):
        if name in match.ambiguous:
            gathered[:, place] = np.log1p(np.expm1(levels[:, list(match.ambiguous[name])]).sum(axis=1))
    return gathered


def as_text(values: NDArray[Any]) -> NDArray[np.str_]:
    """Return categories as text; whole numbers without a point."""
    if values.dtype.kind == "f":
        return np.array(["" if np.isnan(v) else f"{v:.0f}" for v in values])
    return values.astype(np.str_)


def categories_of(values: NDArray[Any]) -> tuple[str, ...]:
    """Return the categories that a column holds, sorted, numbers by size; none where it holds measurements."""
    if values.dtype.kind in "fiu":
        known = values[np.isfinite(values.astype(np.float64))]
        different = np.unique(known)
        whole = (different == np.rint(different)).all()
        if not different.size or not whole or len(different) > MOST_CATEGORIES or len(different) > len(values) / 3:
            return ()
        return tuple(f"{value:.0f}" for value in different)
    return tuple(name for name in np.unique(values.astype(np.str_)).tolist() if name)


def unknown_gene(spots: SpotTable, gene: str) -> str:
    """Say that a gene is not there, and name the nearest that are."""
    near = difflib.get_close_matches(gene.upper(), [str(s) for s in spots.genes.symbols], n=3, cutoff=0.7)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return f"{gene!r} is not among the {len(spots.genes):,} genes of this section{hint}"


def auto_limits(values: NDArray[np.float32], span: Span = "zero_p99") -> tuple[float, float]:
    """Return limits from the values; by default zero and the 99th percentile: one bright spot does not darken all others."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    least, most = float(known.min()), float(known.max())
    if span == "min_max":
        low, high = least, most
    else:
        low = float(np.percentile(known, 1)) if span == "p1_p99" or least < 0 else 0.0
        high = float(np.percentile(known, 99))
        high = high if high > low else most
    return (low, high) if high > low else (low, low + 1.0)


def around_zero(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return limits of a change: as far below zero as above, at least half a log unit, so that no noise looks like a change."""
    most = max(0.5, float(np.abs(values).max()) if values.size else 0.0)
    return -most, most
