"""Continuous mode: windows of a canvas denoised together, synthesized or edited, and decoded in tiles that are blended at their borders."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ..errors import NotFiniteError, SynthesisError
from ..progress import Progress
from ..tissue.crops import read_patches
from ..types import Patch, PatchResult, Plan, Section, Windows
from .conditions import Conditions, EncodedRows, condition_rows, spot_rows
from .counterfactual import Before, content_key
from .models import Edited, Event, PatchModel
from .windows import field_noise, in_latents, mixing

if TYPE_CHECKING:
    from ..model.sampling import CanvasSolver
    from .session import Session

RAMP = 32
"""Pixels on either side of a border over which tiles are blended."""
MARGIN = 128
"""Margin in pixels that a tile is decoded with: the ramp, and context for the decoder."""


class TileDecoder:
    """Decoder of a canvas of latents, tile by tile; memory grows with the width of the canvas, not with its area.

    Parameters
    ----------
    latents
        (c, h, w) of the area of the windows.
    plan, windows
        Its tiles and their place.
    factor
        Pixels per latent cell.
    decode
        Decodes latents (c, h, w) at a corner (y, x) on the canvas in pixels to an image (h * factor, w * factor, 3).
    """

    def __init__(
        self,
        latents: NDArray[np.float32],
        plan: Plan,
        windows: Windows,
        factor: int,
        decode: Callable[[NDArray[np.float32], tuple[int, int]], NDArray[Any]],
    ) -> None:
        self._latents, self._windows, self._factor, self._decode = latents, windows, factor, decode
        self._tiles = {patch.canvas_box[:2]: patch for patch in plan.patches}
        self._decoded: OrderedDict[tuple[int, int], _Decoded] = OrderedDict()
        # tiles come row by row, and each needs the rows above and below its own
        self._most = 3 * (plan.frame.shape[1] // windows.tile + 2)

    def tile(self, patch: Patch) -> PatchResult:
        """Return a finished tile, with the mask of its pixels that belong to the region."""
        return PatchResult(patch, np.rint(self.blended(patch)).astype(np.uint8), self.mask(patch))

    def blended(self, patch: Patch) -> NDArray[np.float32]:
        """Return a decoded tile, (side, side, 3), blended with its neighbours at its borders."""
        side = self._windows.tile
        y, x = patch.canvas_box[:2]
        total = np.zeros((side, side, 3), dtype=np.float32)
        weights = np.zeros((side, side), dtype=np.float32)
        for dy in (-side, 0, side):
            for dx in (-side, 0, side):
                if (y + dy, x + dx) in self._tiles:
                    self._add((y + dy, x + dx), (y, x), total, weights)
        return np.asarray(total / np.maximum(weights, np.float32(1e-6))[..., None], dtype=np.float32)

    def _add(
        self, at: tuple[int, int], corner: tuple[int, int], total: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        side = self._windows.tile
        decoded = self._get(at)
        ramps, here, there = [], [], []
        for own, other, start, size in zip(corner, at, decoded.corner, decoded.pixels.shape[:2], strict=True):
            low = max(own, other - RAMP, start)
            high = min(own + side, other + side + RAMP, start + size)
            if low >= high:
                return
            middle = np.arange(low, high) + 0.5
            rise = np.minimum(middle - (other - RAMP), other + side + RAMP - middle) / (2 * RAMP)
            ramps.append(np.clip(rise, 0, 1).astype(np.float32))
            here.append(slice(low - own, high - own))
            there.append(slice(low - start, high - start))
        weight = ramps[0][:, None] * ramps[1][None]
        total[tuple(here)] += weight[..., None] * decoded.pixels[tuple(there)]
        weights[tuple(here)] += weight

    def _get(self, at: tuple[int, int]) -> _Decoded:
        if at in self._decoded:
            self._decoded.move_to_end(at)
            return self._decoded[at]
        top, left = self._windows.origin
        side, factor = self._windows.tile, self._factor
        height, width = (n * factor for n in self._latents.shape[1:])
        y0, x0 = max(at[0] - MARGIN - top, 0), max(at[1] - MARGIN - left, 0)
        y1, x1 = min(at[0] + side + MARGIN - top, height), min(at[1] + side + MARGIN - left, width)
        crop = self._latents[:, y0 // factor : y1 // factor, x0 // factor : x1 // factor]
        corner = (y0 + top, x0 + left)
        found = _Decoded(corner, self._decode(np.ascontiguousarray(crop), corner))
        self._decoded[at] = found
        while len(self._decoded) > self._most:
            self._decoded.popitem(last=False)
        return found

    def mask(self, patch: Patch) -> NDArray[np.bool_]:
        """Return which pixels (side, side) of a tile belong to the region."""
        y, x = patch.canvas_box[:2]
        cell, side = self._windows.cell, self._windows.tile
        cells = self._windows.cells[y // cell : (y + side) // cell, x // cell : (x + side) // cell]
        return cells.repeat(cell, axis=0).repeat(cell, axis=1)


class _Decoded:
    """Decoded tile with its margin: its corner on the canvas, and its pixels."""

    def __init__(self, corner: tuple[int, int], pixels: NDArray[Any]) -> None:
        self.corner, self.pixels = corner, pixels


# Continuous mode: windows share every denoising step, tiles are decoded one by one.


COMMIT_STEPS = 4
COMMIT_SECONDS = 60.0
"""Seconds after which the solver's state is saved, beside every few steps."""

LEFT_OUT, FAILED = "windows_left_out", "tiles_failed"
"""Names, in the saved state, of the windows that were left out and of the failed tiles."""
NOT_FINITE = "windows that it is made of are not finite"


def run_windows(session: Session, windows: Windows) -> Iterator[Event]:
    """Denoise all windows of a session's region together, then decode them tile by tile."""
    run = _Canvas(session, windows)
    try:
        yield from run.go()
    finally:
        run.conditions.close()


@dataclass
class _Canvas:
    session: Session
    windows: Windows
    bad: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.plan, self.model = self.session.plan, self.session.model
        self.conditions = WindowConditions(self.plan, self.windows, self.session.section, self.model)
        latent = in_latents(self.windows, self.model.latent_grid)
        self.factor, self.side, self.corners, self.shape, self.weight = latent

    def go(self) -> Iterator[Event]:
        states = self.session.states
        state = None if states is None else states.load_state()
        if state is not None:
            self._restore(state)
        yield self.session.report()
        if not self.session.todo:
            return
        solver = self._solver(state)
        del state  # as large as the canvas
        kept, kept_at = solver.step, time.perf_counter()
        while solver.step < solver.steps:
            yield from self._step(solver)
            last = solver.step == solver.steps or self.session.stopped()
            due = solver.step % COMMIT_STEPS == 0 or time.perf_counter() - kept_at > COMMIT_SECONDS
            if states is not None and solver.step > kept and (last or due):
                states.save_state({**solver.state(), **self._losses()})
                kept, kept_at = solver.step, time.perf_counter()
            if self.session.stopped():
                return
        yield from self._decode(solver.latents)

    def _solver(self, state: Mapping[str, NDArray[Any]] | None) -> CanvasSolver:
        y, x = (n // self.factor for n in self.windows.absolute)
        noise = field_noise(self.plan.request.seed, self.shape[0], (y, x), self.shape[1:])
        return self.model.solver(
            noise,
            self.plan.sampling,
            has_morphology=self.plan.has_morphology,
            has_expression=self.plan.has_expression,
            state=state,
        )

    def _losses(self) -> dict[str, NDArray[np.int64]]:
        """Return the lost windows and tiles, saved with the solver's state: a later session cannot see them in the latents."""
        kept = {LEFT_OUT: self.bad, FAILED: self.session.failed}
        return {name: np.array(sorted(places), dtype=np.int64) for name, places in kept.items()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        for place in state.get(LEFT_OUT, ()):
            self._leave_out(int(place))
        self.session.leave_out(map(int, state.get(FAILED, ())), NOT_FINITE)

    # --- denoising

    def _step(self, solver: CanvasSolver) -> Iterator[Event]:
        """Predict all windows, average them, and take a solver step."""
        canvas, count = solver.inputs(), len(self.windows)
        total = np.zeros(self.shape, dtype=np.float32)
        weights = np.zeros(self.shape[1:], dtype=np.float32)

        def work(own: range) -> Iterator[Event]:
            predicted = self._predict(solver, canvas, own.start, own.stop)
            for place, window in zip(own, predicted, strict=True):
                self._add(place, window, total, weights)
            if own.stop < count:
                yield self.session.report(solver.step, own.stop / count)

        yield from self.session.batches.each(range(count), work, self.session.stopped)
        if self.session.stopped():
            return
        np.divide(total, np.maximum(weights, 1e-6), out=total)
        solver.advance(total)
        self._fail_uncovered(weights)
        yield self.session.report(solver.step)

    def _predict(self, solver: CanvasSolver, canvas: NDArray[np.float32], first: int, stop: int) -> NDArray[np.float32]:
        crops = np.stack([canvas[:, y : y + self.side, x : x + self.side] for y, x in self.corners[first:stop]])
        return solver.predict(crops, *self.conditions.get(first, stop))

    def _add(
        self, place: int, window: NDArray[np.float32], total: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        if not np.isfinite(window).all():
            self._leave_out(place)
            return
        y, x = self.corners[place]
        total[:, y : y + self.side, x : x + self.side] += self.weight * window
        weights[y : y + self.side, x : x + self.side] += self.weight

    def _leave_out(self, place: int) -> None:
        """Leave out a window whose prediction is not finite, so that it does not spread; its neighbours cover most of it."""
        if place not in self.bad:
            self.bad.add(place)
            y, x = (self.windows.source_boxes[place][:2] + self.windows.source_boxes[place][2:]) / 2
            note = (
                f"the prediction of the window around y {y:.0f}, x {x:.0f} (full-resolution pixels) is not finite and was left out; "
                "use --dtype float32 or bfloat16"
            )
            self.session.leave_out((), NOT_FINITE, note)
        if len(self.bad) == len(self.windows):
            raise SynthesisError(
                "no window's prediction is finite: the checkpoint overflows in this precision; use --dtype float32"
            )

    def _fail_uncovered(self, weights: NDArray[np.float32]) -> None:
        """Mark tiles with cells that only left-out windows cover as failed."""
        if self.bad:
            uncovered = self._covered() & (weights == 0)
            self.session.leave_out(tiles_on(uncovered, self.plan, self.windows, self.factor), NOT_FINITE)

    def _covered(self) -> NDArray[np.bool_]:
        """Return which cells (h, w) windows cover."""
        covered = np.zeros(self.shape[1:], dtype=bool)
        for y, x in self.corners:
            covered[y : y + self.side, x : x + self.side] = True
        return covered

    # --- decoding

    def _decode(self, latents: NDArray[np.float32]) -> Iterator[Event]:
        preview = self.plan.sampling.preview_decoder

        def decode(part: NDArray[np.float32], _: tuple[int, int]) -> NDArray[np.uint8]:
            return self.model.decode(part, preview=preview)

        # zeros, their mean, where no window lies: noise there would be decoded into the region's rim
        whole = np.where(self._covered()[None] & np.isfinite(latents), latents, np.float32(0))
        decoder = TileDecoder(whole, self.plan, self.windows, self.factor, decode)
        for patch in self.session.todo:
            if self.session.stopped():
                return
            yield from self.session.keep([decoder.tile(patch)], self.plan.steps)


def tiles_on(cells: NDArray[np.bool_], plan: Plan, windows: Windows, factor: int) -> list[int]:
    """Return the indices of the tiles that contain any of some cells (h, w) of the windows' latents."""
    found = []
    for patch in plan.patches:
        low = [max((n - o) // factor, 0) for n, o in zip(patch.canvas_box[:2], windows.origin, strict=True)]
        high = [max((n - o) // factor, 0) for n, o in zip(patch.canvas_box[2:], windows.origin, strict=True)]
        if cells[low[0] : high[0], low[1] : high[1]].any():
            found.append(patch.index)
    return found


class WindowConditions:
    """Morphology and expression of windows, encoded at first use and kept for further steps."""

    def __init__(self, plan: Plan, windows: Windows, section: Section, model: PatchModel) -> None:
        self._plan, self._windows, self._section, self._model = plan, windows, section, model
        self._shared: Conditions | None = None
        self._morphology = EncodedRows(len(windows))
        self._expression = EncodedRows(len(windows))

    def get(self, first: int, stop: int) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Return morphology (b, t, d) and expression (b, d) or (b, g, d) of some windows; None for null."""
        return self._morphology_of(first, stop), self._expression_of(first, stop)

    def close(self) -> None:
        """Release all encodings."""
        self._morphology.close()
        self._expression.close()

    def _conditions(self) -> Conditions:
        if self._shared is None:
            self._shared = condition_rows(self._plan, self._section, self._model)
        return self._shared

    def _expression_of(self, first: int, stop: int) -> NDArray[np.float32] | None:
        if not self._plan.has_expression:
            return None
        if not self._expression.has(first, stop):
            numbers = np.arange(first, stop)
            encoded = _windows_expression(
                self._conditions(), self._plan, self._windows, numbers, self._section, self._model
            )
            self._expression.put(first, encoded)
        return self._expression.get(first, stop)

    def _morphology_of(self, first: int, stop: int) -> NDArray[np.float32] | None:
        if not self._plan.has_morphology:
            return None
        if self._plan.request.morphology != "own":
            shared = self._conditions().morphology
            assert shared is not None  # neither own nor null
            return np.repeat(shared[None], stop - first, axis=0)
        if not self._morphology.has(first, stop):
            own = _windows_morphology(self._windows, np.arange(first, stop), self._section, self._model)
            self._morphology.put(first, own)
        return self._morphology.get(first, stop)


def _windows_morphology(
    windows: Windows, numbers: NDArray[np.int64], section: Section, model: PatchModel
) -> NDArray[np.float32]:
    """Return the morphology (b, t, d) of the slide in some windows."""
    boxes = [tuple(box) for box in windows.source_boxes[numbers].tolist()]
    crops = read_patches(section.slide, boxes, windows.side)
    return model.encode_morphology(crops, tuple(section.spots.ids[windows.rows[numbers, 0]].tolist()))


def _windows_mixing(plan: Plan, windows: Windows, numbers: NDArray[np.int64], count: int) -> csr_matrix:
    """Return the weights (b, count) of the plan's spots in some windows."""
    rows = np.searchsorted(spot_rows(plan), windows.rows[numbers])
    return mixing(rows, windows.weights[numbers], count)


def _windows_expression(
    conditions: Conditions,
    plan: Plan,
    windows: Windows,
    numbers: NDArray[np.int64],
    section: Section,
    model: PatchModel,
) -> NDArray[np.float32]:
    """Return the expression (b, d) or (b, g, d) of some windows, mixed from their spots, of a plan that has expression."""
    mix = _windows_mixing(plan, windows, numbers, len(conditions.sources))
    nearest = np.searchsorted(spot_rows(plan), windows.rows[numbers, 0])
    encoded = conditions.mixed(mix, nearest.tolist(), section, model)
    assert encoded is not None  # the plan has expression
    return encoded


MAX_BLOCK = 16
"""Maximum number of windows along each side of a block; each keeps about 0.2 GB at the bundled checkpoint's size."""
TILE, TILE_MARGIN = 512, 64
"""Pixels of the slide encoded together, and margin for the encoder's context."""


def run_edited_windows(session: Session, windows: Windows) -> Iterator[Event]:
    """Edit the windows of a session's region that an edit reaches; its other tiles are the slide."""
    yield from _EditedCanvas(session, windows).go()


def changed_windows(windows: Windows, rows: NDArray[np.int64], touched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which windows (n,) read a spot that the edits touch; ``touched`` is of the spots at ``rows``, which are sorted."""
    at = np.searchsorted(rows, windows.rows)
    return np.asarray((touched[at] & (windows.weights > 0)).any(axis=1), dtype=bool)


def reached_windows(windows: Windows, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which windows to compute: the changed ones and those that overlap one."""
    if not changed.any():
        return changed
    apart, _ = cKDTree(windows.corners[changed]).query(windows.corners, p=np.inf)
    return np.asarray(apart < windows.side, dtype=bool)


def blocks_of(windows: Windows, reached: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the windows of each block: connected components, cut where they are larger than `MAX_BLOCK` windows."""
    numbers = np.flatnonzero(reached)
    if not len(numbers):
        return []
    places = windows.corners[numbers] // windows.stride
    places -= places.min(axis=0)
    grid = np.zeros(places.max(axis=0) + 1, dtype=bool)
    grid[tuple(places.T)] = True
    pieces, _ = label(grid, structure=np.ones((3, 3)))
    piece = pieces[tuple(places.T)]
    blocks = []
    for name in np.unique(piece):
        own = np.flatnonzero(piece == name)
        corner = places[own] - places[own].min(axis=0)
        cells = corner // MAX_BLOCK if corner.max() >= MAX_BLOCK else np.zeros_like(corner)
        _, block = np.unique(cells, axis=0, return_inverse=True)
        blocks += [numbers[own[block.ravel() == k]] for k in range(block.max() + 1)]
    return blocks


@dataclass
class _EditedCanvas:
    """Change of a canvas of latents while it is computed."""

    session: Session
    windows: Windows
    blocks_done: set[int] = field(default_factory=set)
    encoded: dict[tuple[int, int], NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan, self.section, self.model = self.session.plan, self.session.section, self.session.model
        latent = in_latents(self.windows, self.model.latent_grid)
        self.factor, self.side, self.corners, self.shape, self.weight = latent

    def go(self) -> Iterator[Event]:
        yield self.session.report()
        if not self.session.todo:
            return
        yield from self.session.read_tissue()
        if self.session.stopped():
            return
        conditions = condition_rows(self.plan, self.section, self.model)
        before = conditions.before
        assert before is not None  # the plan is counterfactual
        self.session.follows(before)
        changed = changed_windows(self.windows, spot_rows(self.plan), before.touched)
        reached = reached_windows(self.windows, changed)
        blocks = blocks_of(self.windows, reached)
        change = self._restore()
        total = self._weights(np.arange(len(self.windows)))
        for number, block in enumerate(blocks):
            if number in self.blocks_done:
                continue
            try:
                found = yield from self._edit(block, conditions, before, number / len(blocks), 1 / len(blocks))
            except NotFiniteError as error:
                self._leave_out(block, error, len(blocks))
                continue
            if found is None:
                return
            change += found * (self._weights(block) / np.maximum(total, 1e-6))
            self.blocks_done.add(number)
            if self.session.states is not None:
                done = np.array(sorted(self.blocks_done), dtype=np.int64)
                self.session.states.save_state({"change": change, "blocks": done})
        yield from self._decode(change, self._weights(np.flatnonzero(reached)) > 0)

    def _restore(self) -> NDArray[np.float32]:
        states = self.session.states
        kept = None if states is None else states.load_state()
        if kept is None:
            return np.zeros(self.shape, dtype=np.float32)
        self.blocks_done = set(map(int, kept["blocks"]))
        return np.array(kept["change"], dtype=np.float32)

    def _weights(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        total = np.zeros(self.shape[1:], dtype=np.float32)
        for y, x in self.corners[numbers]:
            total[y : y + self.side, x : x + self.side] += self.weight
        return total

    # --- one block

    def _edit(
        self, block: NDArray[np.int64], conditions: Conditions, before: Before, start: float, share: float
    ) -> Generator[Event, None, NDArray[np.float32] | None]:
        """Return a block's change on the whole canvas; None where the run was cancelled."""
        low, high = self.corners[block].min(axis=0), self.corners[block].max(axis=0) + self.side
        encoded: list[tuple[NDArray[np.float32], ...]] = []

        def encode(own: NDArray[np.int64]) -> Iterator[Event]:
            measured, edited = self._expression(own, conditions.measured()), self._expression(own, conditions)
            morphology = _windows_morphology(self.windows, own, self.section, self.model)
            mix = _windows_mixing(self.plan, self.windows, own, len(conditions.sources))
            along = None if before.along is None else mix @ before.along
            others = None if before.others is None else self._expression(own, before.others)
            moved = before.follows.moved(morphology, measured, edited, along, others)
            encoded.append((morphology, measured, edited, moved))
            yield self._report(start)

        yield from self.session.batches.each(block, encode, self.session.stopped)
        if self.session.stopped():
            return None
        m, e, edited, moved = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        image = self._slide(low * self.factor, high * self.factor)
        latents = self._latents(low, high)
        corners = self.corners[block] - low
        rows, weights = self.windows.rows[block], self.windows.weights[block]
        spots = np.searchsorted(spot_rows(self.plan), np.unique(rows))
        key = content_key(image, corners, rows, weights, before.counts[spots], before.depth[spots])
        after = Edited(moved, edited, (key,), self.plan.request.edit_scale)
        how = corners, self.weight, self.plan.steps, self.session.batches
        work = self.model.editor.edit_canvas(latents, m, e, after, *how)
        while True:
            try:
                part = next(work)
            except StopIteration as ended:
                whole = np.zeros(self.shape, dtype=np.float32)
                whole[:, low[0] : high[0], low[1] : high[1]] = ended.value
                return whole
            yield self._report(start + share * part)
            if self.session.stopped():
                work.close()
                return None

    def _slide(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the slide (h, w, 3) uint8 between two corners (y, x), in pixels from the corner of the windows' area."""
        size = high - low
        side = int(max(size))
        pixel = self.plan.frame.pixel_size
        y0, x0 = (float(v) for v in (low + self.windows.origin) * pixel + np.array(self.plan.frame.origin))
        box = (y0, x0, y0 + side * pixel, x0 + side * pixel)
        whole: NDArray[np.uint8] = read_patches(self.section.slide, [box], side)[0]
        return whole[: size[0], : size[1]]

    def _latents(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the latents (c, h, w) of the slide between two corners (y, x), in cells from the corner of the windows' area."""
        channels, *size = self.shape
        found = np.zeros((channels, *(high - low)), dtype=np.float32)
        # on a fixed grid, so that neighbouring blocks see the same latents
        side = TILE // self.factor
        for y in range(low[0] // side * side, high[0], side):
            for x in range(low[1] // side * side, high[1], side):
                tile = self._encoded(y, x, side)
                y0, x0 = max(y, low[0]), max(x, low[1])
                y1, x1 = min(y + side, size[0], high[0]), min(x + side, size[1], high[1])
                found[:, y0 - low[0] : y1 - low[0], x0 - low[1] : x1 - low[1]] = tile[
                    :, y0 - y : y1 - y, x0 - x : x1 - x
                ]
        return found

    def _encoded(self, y: int, x: int, side: int) -> NDArray[np.float32]:
        """Return the latents of the tile at (y, x); tiles come row by row, so those of three rows are cached."""
        if (y, x) not in self.encoded:
            size, margin = np.array(self.shape[1:]), TILE_MARGIN // self.factor
            low = np.maximum((y - margin, x - margin), 0)
            high = np.minimum((y + side + margin, x + side + margin), size)
            whole = self.model.editor.encode(self._slide(low * self.factor, high * self.factor))
            top, left = y - low[0], x - low[1]
            while len(self.encoded) > 3 * (size[1] // side + 2):  # the oldest goes first
                self.encoded.pop(next(iter(self.encoded)))
            self.encoded[y, x] = whole[:, top : top + side, left : left + side]
        return self.encoded[y, x]

    def _expression(self, numbers: NDArray[np.int64], conditions: Conditions) -> NDArray[np.float32]:
        return _windows_expression(conditions, self.plan, self.windows, numbers, self.section, self.model)

    def _leave_out(self, block: NDArray[np.int64], error: NotFiniteError, blocks: int) -> None:
        """Mark the tiles of a block without a finite prediction as failed."""
        touched = tiles_on(self._weights(block) > 0, self.plan, self.windows, self.factor)
        self.session.leave_out(touched, str(error), f"{len(block)} windows were left out: {error}")
        if blocks == 1 and len(self.session.failed) == len(self.plan):
            raise SynthesisError(str(error))

    # --- pixels

    def _decode(self, change: NDArray[np.float32], reached: NDArray[np.bool_]) -> Iterator[Event]:
        factor, origin = self.factor, np.array(self.windows.origin)

        def difference(part: NDArray[np.float32], corner: tuple[int, int]) -> NDArray[np.float32]:
            height, width = (n * factor for n in part.shape[1:])
            if not part.any():
                return np.zeros((height, width, 3), dtype=np.float32)
            low = (np.array(corner) - origin) // factor
            high = low + part.shape[1:]
            found = self.model.editor.decode_change(self._latents(low, high), part)
            own = reached[low[0] : high[0], low[1] : high[1]]
            return found * own.repeat(factor, axis=0).repeat(factor, axis=1)[..., None]

        decoder = TileDecoder(change, self.plan, self.windows, factor, difference)
        for patch in self.session.todo:
            if self.session.stopped():
                return
            real = read_patches(self.section.slide, [patch.source_box], self.windows.tile)[0]
            pixels = np.clip(np.rint(real + decoder.blended(patch)), 0, 255).astype(np.uint8)
            yield from self.session.keep([PatchResult(patch, pixels, decoder.mask(patch))], self.plan.steps)

    def _report(self, share: float) -> Progress:
        steps = share * self.plan.steps
        return self.session.report(int(steps), steps - int(steps))
