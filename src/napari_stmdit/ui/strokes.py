"""Strokes of the brush as weights of spots, and forms as edits. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ..edits import Add, Edit, Scale, SetQuantile, Swap, Table, Towards
from ..errors import RequestError
from ..expression.genes import match_genes
from ..intent import Request
from ..regions import AllSpots
from ..types import Genes, SpotTable
from .state import Brush, EditDraft

DECIMALS = 4
"""Decimal places of a weight, so that the drawn, stored and synthesized ones are the same."""


def falloff(distance: NDArray[np.float64], brush: Brush) -> NDArray[np.float64]:
    """Return the weight at distances from a stroke's path, in radii: 1 within the hard core, then down a cosine to 0 at 1."""
    if brush.softness <= 0:
        return (distance <= 1).astype(np.float64)
    beyond = np.clip((distance - (1 - brush.softness)) / brush.softness, 0, 1)
    return np.where(distance <= 1, 0.5 * (1 + np.cos(np.pi * beyond)), 0.0)


class Stroke:
    """Stroke: the maximum weight that its path gave to each spot, combined with the edit's former weights.

    Within a stroke weights do not add up, so the result does not depend on how often the mouse is polled. A stroke
    over weight w leaves w + (1 - w) * v, an erasing one w * (1 - v), with v the stroke's own weight.

    ``tree`` is a k-d tree of the spots' positions and ``radius`` that of the brush, both in full-resolution pixels; ``before``
    is spot id -> weight of the edit, None for weight 1 everywhere.
    """

    def __init__(
        self, spots: SpotTable, tree: object, brush: Brush, radius: float, before: Mapping[str, float] | None
    ) -> None:
        self.spots, self.brush, self.radius = spots, brush, max(radius, 1e-9)
        self._tree = tree
        self._last: NDArray[np.float64] | None = None
        self._painted = np.zeros(len(spots))
        self._ids = spots.ids.tolist()
        if before is None:
            self._before = np.ones(len(spots))
        else:
            self._before = np.array([before.get(spot, 0.0) for spot in self._ids])

    def to(self, yx: NDArray[np.float64]) -> bool:
        """Move the brush to a place; return whether any spot's weight changed."""
        start = yx if self._last is None else self._last
        self._last = yx
        steps = max(1, int(np.ceil(np.linalg.norm(yx - start) / self.radius)))
        path = start + np.linspace(0, 1, steps + 1)[:, None] * (yx - start)
        # a spot within a radius of the path lies within 1.12 radii of one of the places, which are at most a radius apart
        found = self._tree.query_ball_point(path, 1.12 * self.radius)  # type: ignore[attr-defined]
        rows = np.unique(np.concatenate([np.array(near, dtype=np.int64) for near in found]))
        if not rows.size:
            return False
        distance = _to_segment(self.spots.yx[rows], start, yx) / self.radius
        weight = np.maximum(self._painted[rows], self.brush.strength * falloff(distance, self.brush))
        changed = bool((weight > self._painted[rows]).any())
        self._painted[rows] = weight
        return changed

    def weights(self) -> dict[str, float]:
        """Return the edit's weights after the stroke; spots without weight are left out."""
        painted, before = self._painted, self._before
        after = before * (1 - painted) if self.brush.erase else before + (1 - before) * painted
        after = np.round(after, DECIMALS)
        return {self._ids[row]: float(after[row]) for row in np.flatnonzero(after)}


def _to_segment(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    along = end - start
    length = float(along @ along)
    share = np.zeros(len(points)) if length == 0 else np.clip((points - start) @ along / length, 0, 1)
    distance: NDArray[np.float64] = np.linalg.norm(points - (start + share[:, None] * along), axis=1)
    return distance


_EDIT: TypeAdapter[Edit] = TypeAdapter(Edit)
PROGRAM_SUFFIX = " (program)"


def make_edit(draft: EditDraft, spots: Mapping[str, float] | None, name: str = "", **more: Any) -> Edit:
    """Return the edit of a form.

    Raises
    ------
    RequestError
        With faults by the field of the form: ``what`` or ``target``.
    """
    faults = []
    if draft.operation in ("scale", "add", "set_quantile", "knock_out") and not (draft.genes or draft.programs):
        faults.append(("what", "Name a gene or a program first."))
    if draft.operation == "towards" and draft.target_profile is None and not draft.target_spots:
        faults.append(("target", "Choose what the expression is to move towards."))
    if draft.operation == "swap" and not (draft.group_a and draft.group_b):
        faults.append(("target", "Choose two groups of spots that are to change places."))
    if faults:
        raise RequestError(faults)
    values: dict[str, Any] = {
        "operation": draft.operation,
        "name": name or describe(draft),
        "genes": draft.genes,
        "programs": draft.programs,
        "spots": None if spots is None else dict(spots),
        **more,
        **{field: getattr(draft, field) for field in _FIELDS.get(draft.operation, ())},
    }
    if values.get("target_profile") is not None:
        values["target_spots"] = ()
    try:
        return _EDIT.validate_python(values)
    except ValidationError as error:
        text = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False))
        raise RequestError([("target" if draft.operation in ("towards", "swap") else "what", text)]) from None


_FIELDS = {
    "scale": ("factor", "follow"),
    "add": ("log_units", "follow"),
    "set_quantile": ("quantile", "follow"),
    "knock_out": ("follow",),
    "towards": ("target_profile", "target_spots"),
    "swap": ("group_a", "group_b"),
}


def draft_of(edit: Edit, before: EditDraft) -> EditDraft:
    """Return the form of an edit; fields that the edit lacks are kept from before."""
    if isinstance(edit, Table):  # no form shows a table
        return before
    changes: dict[str, Any] = {"operation": edit.operation, "genes": edit.genes, "programs": edit.programs}
    changes |= {field: getattr(edit, field) for field in _FIELDS.get(edit.operation, ())}
    return replace(before, **changes)


def without_spots(request: Request) -> tuple[Request, list[str]]:
    """Return a request that names no spots, for another section, and what cannot do without them."""
    needs = [
        edit
        for edit in request.edits
        if isinstance(edit, Swap | Table) or (isinstance(edit, Towards) and edit.target_spots)
    ]
    edits = tuple(edit.model_copy(update={"spots": None}) for edit in request.edits if edit not in needs)
    left_out = [edit.name or describe(edit) for edit in needs]
    changes: dict[str, Any] = {"edits": edits, "region": AllSpots(), "exclude": None}
    if request.morphology not in ("own", "mean", "null"):
        left_out.append(f"morphology of {request.morphology}")
        changes["morphology"] = "own"
    return request.model_copy(update=changes), left_out


def describe(draft: EditDraft | Edit) -> str:
    """Return a short description of an edit."""
    what = ", ".join((*draft.programs, *draft.genes)) or "all genes"
    what = what if len(what) <= 24 else what[:22] + "…"
    match draft:
        case EditDraft(operation="scale") | Scale():
            return f"{what} × {draft.factor:g}"
        case EditDraft(operation="add") | Add():
            return f"{what} {draft.log_units:+g}"
        case EditDraft(operation="set_quantile") | SetQuantile():
            return f"{what} to quantile {draft.quantile:g}"
        case EditDraft(operation="towards") | Towards():
            return f"{what} → {draft.target_profile or f'{len(draft.target_spots)} spots'}"
        case EditDraft(operation="swap") | Swap():
            return f"swap {what}: {len(draft.group_a)} and {len(draft.group_b)} spots"
        case Table():
            return f"{what} from {Path(draft.table).name}"
    return f"{what} knocked out"


def parse_names(text: str, genes: Genes, programs: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the genes and programs in a list with commas, and its faults.

    A name is a gene if the section has one of that name, else a program; ``(program)`` behind it decides.
    """
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    unknown = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            continue
        plain = name.removesuffix(PROGRAM_SUFFIX.strip()).strip()
        if plain != name or (plain in programs and not match_genes((plain,), genes).shared):
            if plain in programs:
                found[1][plain] = None
            else:
                unknown.append(name)
        elif match_genes((name,), genes).shared:
            found[0][name] = None
        else:
            unknown.append(name)
    fault = f"Neither a gene of this section nor a program: {', '.join(unknown[:5])}" if unknown else ""
    return tuple(found[0]), tuple(found[1]), fault


def written(genes: tuple[str, ...], programs: tuple[str, ...]) -> str:
    """Return the text that `parse_names` reads."""
    return ", ".join((*(f"{name}{PROGRAM_SUFFIX}" for name in programs), *genes))
