"""Colours of spots: values of a gene, a program or a column, as measured, edited, or changed. No napari."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edits import Edit
from ..expression.changes import Measured, Profile
from ..expression.edits import edited_levels
from ..expression.genes import match_genes
from ..expression.programs import Programs, bundled_programs
from ..types import Genes, SpotTable
from .state import Colouring, ColourScale, Span

DIVERGING = "blue-orange"
"""The colour map of changes; see `colouring.colormap_of`."""
MAX_CATEGORIES = 20
"""Maximum number of distinct whole numbers in a column of categories."""
MAX_NAMES = 200
"""Maximum number of distinct texts in a column of categories: nobody could tell more colours apart."""
_LOG, _LINEAR = "log(1 + counts per 10,000)", "counts per 10,000"
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Edited:
    """Edits on show, and what they refer to."""

    edits: tuple[Edit, ...] = ()
    programs: Programs = field(default_factory=bundled_programs)
    profiles: Mapping[str, Profile] = field(default_factory=dict)


class SpotValues:
    """Values of one section's spots; caches the last genes, so that edits are followed quickly."""

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
        """Return the values and the meaning of their colours; no values where nothing or nothing known is requested."""
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
        """Return genes with their weights, their name, and a fault."""
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
        if values.dtype.kind not in "fiu" and len(categories) > MAX_NAMES:
            fault = f"{colouring.obs!r} holds {len(categories):,} different texts; at most {MAX_NAMES} can be shown as categories"
            return None, ColourScale(fault=fault)
        if categories:
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
    """Return the levels of each named gene; of a symbol with several columns, of their sum."""
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
    """Return the categories in a column, sorted, numbers by size; none where it holds measurements."""
    if values.dtype.kind in "fiu":
        known = values[np.isfinite(values.astype(np.float64))]
        different = np.unique(known)
        whole = (different == np.rint(different)).all()
        if not different.size or not whole or len(different) > MAX_CATEGORIES or len(different) > len(values) / 3:
            return ()
        return tuple(f"{value:.0f}" for value in different)
    return tuple(name for name in np.unique(values.astype(np.str_)).tolist() if name)


def unknown_gene(spots: SpotTable, gene: str) -> str:
    """Return a message that a gene is missing, with the nearest names."""
    near = difflib.get_close_matches(gene.upper(), [str(s) for s in spots.genes.symbols], n=3, cutoff=0.7)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return f"{gene!r} is not among the {len(spots.genes):,} genes of this section{hint}"


def auto_limits(values: NDArray[np.float32], span: Span = "zero_p99") -> tuple[float, float]:
    """Return limits from the values; by default zero and the 99th percentile, so that one bright spot does not darken all others."""
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
    """Return symmetric limits of a change, at least half a log unit, so that noise does not look like a change."""
    most = max(0.5, float(np.abs(values).max()) if values.size else 0.0)
    return -most, most


COLORMAPS = ("viridis", "magma", "inferno", "plasma", "gray_r")
"""Perceptually uniform colour maps, the first the default; all can be read with the common colour vision deficiencies."""
RING = (0.10, 0.18, 0.30, 0.9)
"""Outline of a spot without a value: dark blue, visible on pink tissue and on bright glass."""
SELECTED = (0.0, 0.90, 1.0, 1.0)
"""Outline of a selected spot: cyan, the hue that an H&E stain has least of."""
PAINTED = (1.0, 0.62, 0.0, 1.0)
"""Outline of a spot that the chosen edit changes: orange, which everyone can tell from cyan."""
UNKNOWN = (0.6, 0.6, 0.6, 0.5)
"""Colour of a spot whose value is missing."""
FACE_ALPHA = 0.85
THIN_PX = 20.0
"""Diameter of a spot on the screen, in pixels, up to which rings grow with it; the outline of a selected one is then 3 px wide."""
_CHANGE = ((0.02, 0.19, 0.58), (0.35, 0.60, 0.90), (0.96, 0.96, 0.96), (0.98, 0.62, 0.22), (0.55, 0.22, 0.0))
"""Colours of less (blue), no change (white) and more (orange): both sides darken alike, and no one confuses the two hues."""
_CATEGORIES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"),  # Okabe and Ito
    *("#882255", "#44AA99", "#999933", "#332288", "#DDCC77", "#AA4499", "#88CCEE", "#117733"),  # Tol, muted
)


@dataclass(frozen=True)
class SpotPaint:
    """Colours (n, 4) of faces and borders, 0 to 1, and border widths (n,) relative to the diameter."""

    face: NDArray[np.float32]
    border: NDArray[np.float32]
    width: NDArray[np.float32]


def colormap_of(name: str) -> Any:
    """Return a napari colour map; the diverging one of changes is ours."""
    from napari.utils.colormaps import Colormap, ensure_colormap

    if name == DIVERGING:
        return Colormap(np.array([(*colour, 1.0) for colour in _CHANGE]), name=DIVERGING, display_name="blue to orange")
    return ensure_colormap(name)


def category_colours(count: int) -> NDArray[np.float32]:
    """Return (count, 4) colours that can be told apart with colour vision deficiencies; they repeat after sixteen."""
    rgb = [[int(code[k : k + 2], 16) / 255 for k in (1, 3, 5)] for code in _CATEGORIES]
    return np.array([[*rgb[k % len(rgb)], 1.0] for k in range(count)], dtype=np.float32).reshape(count, 4)


def face_of(values: NDArray[Any] | None, scale: ColourScale, hollow: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the colour of each spot's value, (n, 4)."""
    face = np.zeros((len(hollow), 4), dtype=np.float32)
    if values is None:
        return face
    face[:] = UNKNOWN
    alpha: Any = FACE_ALPHA
    if scale.categories:
        colours = {name: colour for name, colour, _ in scale.categories} | {"": UNKNOWN}
        face[:] = np.array([colours.get(name, UNKNOWN) for name in values.tolist()], dtype=np.float32).reshape(-1, 4)
        known = values != ""
    else:
        low, high = scale.limits
        known = np.isfinite(values)
        share = np.clip((values[known] - low) / max(high - low, 1e-9), 0, 1)
        face[known] = np.asarray(colormap_of(scale.colormap).map(share), dtype=np.float32)
        if scale.colormap == DIVERGING:  # where nothing changes the tissue is seen
            alpha = FACE_ALPHA * np.clip(0.15 + 2 * np.abs(2 * share - 1), 0, 1)
    face[known, 3] = alpha
    face[hollow, 3] = 0
    return face


def look_of(
    values: NDArray[Any] | None,
    scale: ColourScale,
    selected: NDArray[np.bool_],
    hollow: NDArray[np.bool_],
    painted: NDArray[np.bool_] | None = None,
    outline: bool = False,
    diameter_px: float = 0.0,
) -> SpotPaint:
    """Return colours and borders of spots.

    ``values`` are (n,) numbers or names of categories, or None for rings alone. Masks (n,): ``selected`` spots have the selection's
    outline, ``hollow`` ones are not drawn, so that the synthetic tissue under them is visible, and ``painted`` ones are changed by the
    chosen edit. With ``outline`` all spots are rings, thin ones over synthetic tissue. ``diameter_px`` is a spot's on the screen:
    from `THIN_PX` on, rings keep their width, so that they do not hide the tissue.
    """
    face = face_of(values, scale, np.ones_like(hollow) if outline else hollow)
    border = np.tile(np.array(RING, dtype=np.float32), (len(selected), 1))
    width = np.full(len(selected), 0.07, dtype=np.float32)
    if values is not None:
        border[:, :3] = face[:, :3]
        border[:, 3] = 1.0
    if painted is not None:
        border[painted], width[painted] = PAINTED, 0.10
    border[selected], width[selected] = SELECTED, 0.14
    width[hollow] = 0.05 if outline else 0
    if not outline:
        border[hollow, 3] = 0
    width *= min(1.0, THIN_PX / max(diameter_px, THIN_PX))
    return SpotPaint(face, border, width)
