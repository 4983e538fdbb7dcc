"""Live preview of edits of real tissue: spot by spot, coarse first, and only what changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edits import Swap
from ..expression.changes import active_edits, spot_weights
from ..intent import Request
from ..progress import CancelToken
from ..regions import SpotList
from ..types import CanvasFrame, Patch, PatchResult, Plan, Section
from .canvas import boxes_around, even
from .conditions import Conditions, condition_rows
from .counterfactual import content_key, follow_steps
from .models import Edited, Pasted, PatchBatch, PatchModel
from .plan import plan as make_plan
from .plan import resolve_counterfactual_steps, resolve_sampling
from .session import Session
from .spots import MeasuredSpots

Box = tuple[int, int, int, int]

COARSE_NODES = (2 / 3, 1)
"""Nodes of the path to the noise that the first picture of a spot follows, as shares of its steps, after the data."""
MAX_SPOTS = 48
"""Maximum number of spots shown at once."""
MAX_AHEAD = 64
"""Maximum number of spots to invert ahead: at 12 steps one takes about 2 MB at the bundled checkpoint's size."""
BATCH, COARSE_BATCH = 4, 2
"""Spots computed together: few, so that the first picture comes soon and a newer edit interrupts within a short step."""


@dataclass(frozen=True)
class LivePicture:
    """Live picture so far.

    Attributes
    ----------
    rgba
        (h, w, 4) uint8; alpha 0 where nothing is edited.
    frame
        Its place.
    steps
        Spot id -> steps of its patch.
    waiting
        Spots whose patch is of an earlier edit, coarse, or missing.
    hidden
        Edited spots that are not shown, as they are too many or out of view.
    """

    rgba: NDArray[np.uint8]
    frame: CanvasFrame
    steps: dict[str, int]
    waiting: int
    hidden: int


@dataclass(frozen=True)
class _Made:
    """Patch on the grid that starts at the slide's corner, with the key of its conditions, and its steps."""

    result: PatchResult
    key: str
    steps: int


class LiveTissue:
    """Edited spots of one section with one checkpoint, as they are now. Driven by one thread at a time.

    Each spot's noise is in the checkpoint's bounded cache. A session computes what changed, so that a patch equals that of a run with as many
    steps.

    Parameters
    ----------
    section, model
        As for a run.
    """

    def __init__(self, section: Section, model: PatchModel) -> None:
        self.section, self.model = section, model
        self._measured = MeasuredSpots(section, model)
        self._made: dict[str, _Made] = {}
        self._ahead: set[tuple[str, int]] = set()
        self._frame: CanvasFrame | None = None
        self._rgba = np.zeros((0, 0, 4), dtype=np.uint8)
        self.newest: Request | None = None
        """Newest request; any thread may set it. An `update` of an older one finishes spots that are the same in both, and ends."""

    def update(
        self,
        request: Request,
        in_view: NDArray[np.bool_] | None = None,
        cancel: CancelToken | None = None,
        tell: Callable[[str], None] = lambda words: None,
    ) -> Iterator[LivePicture]:
        """Compute the changes of a request's edits since the last picture.

        Parameters
        ----------
        request
            Its edits and sampling; the spots are those that the edits act on.
        in_view
            (n,) mask of the spots in view; None: all.
        cancel
            Asked at every call of the network.
        tell
            Called with what is done before the first picture, in words; at last with none.

        Yields
        ------
        LivePicture
            After each batch of spots; nothing where nothing changed.

        Raises
        ------
        RequestError
            The edits cannot be made, with every fault.
        """
        cancel = cancel or CancelToken()
        wanted, hidden = self._wanted(request, in_view)
        if not wanted:
            if self._drop(set()):
                yield self._picture(0, hidden)
            return
        changes = {"region": SpotList(ids=wanted), "mode": "spots", "counterfactual": "on"}
        plan = make_plan(self.section, request.model_copy(update=changes), self.model)
        try:
            for words in follow_steps(self.section, self.model.card, self.model):
                tell(words)
                if cancel.cancelled or self.newest not in (None, request):
                    return
        finally:
            tell("")
        conditions = condition_rows(plan, self.section, self.model)
        keys = _keys(plan, conditions)
        if self._drop(keys.keys()):
            yield self._picture(len(self._waiting(plan, keys, plan.steps)), hidden)
        for steps in sorted({min(len(COARSE_NODES), plan.steps), plan.steps}):  # all spots coarsely first, then finely
            coarse = steps < plan.steps
            stage = replace(plan, sampling=replace(plan.sampling, nodes=COARSE_NODES if coarse else ()))
            todo, batch = self._waiting(plan, keys, steps, finer=coarse), COARSE_BATCH if coarse else BATCH
            for start in range(0, len(todo), batch):
                own = todo[start : start + batch]
                until = _Until(self, request, [plan.patches[index].spot_id for index in own], cancel)
                how: dict[str, Any] = {"only": own, "conditions": conditions, "measured": self._measured}
                for event in Session(stage, self.section, self.model, batch=batch, cancel=until, **how).steps():
                    if isinstance(event, Pasted):
                        for result in event.images:
                            self._take(result, stage, keys[result.patch.spot_id], steps)
                        yield self._picture(len(self._waiting(plan, keys, plan.steps)), hidden)
                if cancel.cancelled or self.newest not in (None, request):
                    return

    def prepare(
        self, request: Request, in_view: NDArray[np.bool_] | None = None, cancel: CancelToken | None = None
    ) -> Iterator[int]:
        """Fit how morphology follows and invert spots in view ahead, until ``cancel`` is set or another request is the newest.

        Yields how many spots are left, of at most `MAX_AHEAD`.
        """
        fine = resolve_counterfactual_steps(request)
        near = np.arange(len(self.section.spots)) if in_view is None else np.flatnonzero(in_view)
        near = near[_from_the_middle(self.section, near)][:MAX_AHEAD]
        card = self.model.card
        boxes = boxes_around(self.section.spots.yx[near], card.patch_px, card.patch_mpp / self.section.mpp)
        patches = [
            Patch(k, str(self.section.spots.ids[row]), int(row), box.source, box.canvas, 0)
            for k, (row, box) in enumerate(zip(near, boxes, strict=True))
        ]

        def outdated() -> bool:
            return (cancel is not None and cancel.cancelled) or self.newest not in (None, request)

        sampling = replace(resolve_sampling(request, card, counterfactual=True), steps=fine)
        for _ in follow_steps(self.section, card, self.model):  # the first edit needs it
            if outdated():
                return
        todo = [patch for patch in patches if (patch.spot_id, fine) not in self._ahead]
        for start in range(0, len(todo), BATCH):
            own = tuple(todo[start : start + BATCH])
            for patch in own:  # a large encoder takes seconds for each
                if outdated():
                    return
                self._measured.of((patch,))
            at = self._measured.of(own)
            edited = Edited(at.morphology, at.expression, at.keys)  # nothing is: there is only the way to the noise
            batch = PatchBatch(own, at.crops, at.morphology, at.expression, (0,) * len(own), sampling, edited=edited)
            for _ in self.model.denoise(batch):
                if outdated():
                    return
            self._ahead |= {(patch.spot_id, fine) for patch in own}
            yield len(todo) - start - len(own)

    # --- private

    def _wanted(self, request: Request, in_view: NDArray[np.bool_] | None) -> tuple[tuple[str, ...], int]:
        """Return the spots to show, in the order of the table, and the number of further edited ones."""
        ids = self.section.spots.ids.tolist()
        acts = np.zeros(len(ids), dtype=bool)
        for edit in active_edits(request.edits):
            members = {*edit.group_a, *edit.group_b} if isinstance(edit, Swap) else None
            own = spot_weights(edit, ids) > 0
            acts |= own if members is None else own & np.array([spot in members for spot in ids])
        rows = np.flatnonzero(acts if in_view is None else acts & in_view)
        rows = np.sort(rows[_from_the_middle(self.section, rows)][:MAX_SPOTS])
        return tuple(ids[row] for row in rows), int(acts.sum()) - len(rows)

    def _waiting(self, plan: Plan, keys: dict[str, str], steps: int, finer: bool = False) -> list[int]:
        """Return the patches that are missing, outdated, or of another number of steps; with ``finer``, more steps are accepted."""
        found = []
        for patch in plan.patches:
            made, key = self._made.get(patch.spot_id), keys.get(patch.spot_id)
            there = made is not None and made.key == key and (made.steps == steps or (finer and made.steps > steps))
            if key is not None and not there:
                found.append(patch.index)
        return found

    def _drop(self, kept: Collection[str]) -> bool:
        """Drop the patches of all other spots; return whether there were any."""
        gone = [self._made.pop(spot) for spot in list(self._made) if spot not in kept]
        if gone:
            self._blend([made.result.patch.canvas_box for made in gone])
        return bool(gone)

    def _take(self, result: PatchResult, plan: Plan, key: str, steps: int) -> None:
        top, left = (round(n / plan.frame.pixel_size) for n in plan.frame.origin)
        y0, x0, y1, x1 = result.patch.canvas_box
        place = replace(result.patch, canvas_box=(y0 + top, x0 + left, y1 + top, x1 + left))
        self._made[place.spot_id] = _Made(replace(result, patch=place), key, steps)
        self._blend([place.canvas_box])

    def _blend(self, boxes: Sequence[Box]) -> None:
        """Blend the picture again under some boxes; all of it where its frame has changed."""
        pixel = self.model.card.patch_mpp / self.section.mpp
        frame = _frame_around([made.result.patch.canvas_box for made in self._made.values()], pixel)
        if frame != self._frame:
            self._frame, self._rgba = frame, np.zeros((*frame.shape, 4), dtype=np.uint8)
            boxes = [made.result.patch.canvas_box for made in self._made.values()]
        top, left = (round(n / pixel) for n in frame.origin)
        for y0, x0, y1, x1 in boxes:
            self._rgba[y0 - top : y1 - top, x0 - left : x1 - left] = _blended(self._made.values(), (y0, x0, y1, x1))

    def _picture(self, waiting: int, hidden: int) -> LivePicture:
        assert self._frame is not None  # something was taken or dropped
        steps = {spot: made.steps for spot, made in self._made.items()}
        return LivePicture(self._rgba.copy(), self._frame, steps, waiting, hidden)


class _Until(CancelToken):
    """Token that ends the work on some spots when cancelled, or when the newest request changes one of them."""

    def __init__(self, tissue: LiveTissue, request: Request, spots: Sequence[str], cancel: CancelToken) -> None:
        super().__init__()
        self._tissue, self._request, self._spots, self._cancel = tissue, request, spots, cancel
        self._compared: tuple[Request, bool] = (request, True)

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end."""
        newest = self._tissue.newest or self._request
        # asked at every call of the network, so each request is compared only once
        if newest is not self._compared[0]:
            self._compared = newest, self._request == newest or _same_for(self._spots, self._request, newest)
        return self._cancel.cancelled or not self._compared[1]


def _same_for(spots: Sequence[str], one: Request, other: Request) -> bool:
    """Return whether two requests are the same for some spots: they differ only in the weights of other spots."""
    if len(one.edits) != len(other.edits):
        return False
    for a, b in zip(one.edits, other.edits, strict=True):
        if a.model_dump(exclude={"spots"}) != b.model_dump(exclude={"spots"}):
            return False
        if not np.array_equal(spot_weights(a, spots), spot_weights(b, spots)):
            return False
    return one.model_dump(exclude={"edits"}) == other.model_dump(exclude={"edits"})


def _keys(plan: Plan, conditions: Conditions) -> dict[str, str]:
    """Return the content keys of the patches of the spots that the edits change."""
    before, request = conditions.before, plan.request
    assert (
        before is not None and conditions.counts is not None and conditions.depth is not None
    )  # it is an edit of tissue
    sampled = f"{request.edit_scale} {request.fresh_noise} {request.seed if request.fresh_noise else 0}"
    found = {}
    for patch in plan.patches:
        if before.touched[patch.index]:
            own = slice(patch.index, patch.index + 1)
            arrival = () if conditions.arrival is None else (conditions.arrival[own],)
            found[patch.spot_id] = f"{content_key(conditions.counts[own], conditions.depth[own], *arrival)} {sampled}"
    return found


def _from_the_middle(section: Section, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort spots by their distance from the middle of all of them."""
    yx = section.spots.yx[rows]
    return np.argsort(((yx - yx.mean(axis=0)) ** 2).sum(axis=1), kind="stable") if len(rows) else rows


def _frame_around(boxes: Sequence[Box], pixel: float) -> CanvasFrame:
    """Return the smallest frame of boxes on the grid that starts at the slide's corner."""
    if not boxes:
        return CanvasFrame((0, 0), (0.0, 0.0), pixel)
    low, high = np.array(boxes)[:, :2].min(axis=0), np.array(boxes)[:, 2:].max(axis=0)
    height, width = (high - low).tolist()
    return CanvasFrame((height, width), (float(low[0] * pixel), float(low[1] * pixel)), pixel)


def _blended(patches: Iterable[_Made], box: Box) -> NDArray[np.uint8]:
    """Return a box (h, w, 4) of a canvas of some patches, as `MemoryCanvas` blends edited ones."""
    y0, x0, y1, x1 = box
    sums = np.zeros((y1 - y0, x1 - x0, 4), dtype=np.float32)
    for made in sorted(patches, key=lambda one: one.result.patch.row):
        top, left, bottom, right = made.result.patch.canvas_box
        low, high = (max(top, y0), max(left, x0)), (min(bottom, y1), min(right, x1))
        if low[0] >= high[0] or low[1] >= high[1]:
            continue
        own = slice(low[0] - top, high[0] - top), slice(low[1] - left, high[1] - left)
        here = slice(low[0] - y0, high[0] - y0), slice(low[1] - x0, high[1] - x0)
        weight = even(bottom - top)[own][..., None]
        sums[here] += np.concatenate([weight * made.result.pixels[own], weight], axis=-1)
    there = sums[..., 3] > 0
    rgba = np.zeros(sums.shape, dtype=np.uint8)
    rgba[there, :3] = np.rint(sums[there, :3] / sums[there, 3:]).astype(np.uint8)
    rgba[there, 3] = 255
    return rgba
