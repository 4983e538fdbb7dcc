"""Continuous mode on real tissue: windows that an edit reaches are inverted and sampled; elsewhere the slide stays as it is.

Windows are processed in blocks that fit into memory. A block's change is weighted by its windows' share of all windows at a place, so that it
fades out towards windows that the edit does not reach, and blends from block to block.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import cKDTree

from ..errors import NotFiniteError, SynthesisError
from ..progress import Progress
from ..tissue.crops import read_patches
from ..types import PatchResult, Windows
from .conditions import Conditions, condition_rows, spot_rows
from .continuous import TileDecoder, tiles_on
from .counterfactual import Before, content_key
from .models import Edited, Event
from .windows import in_latents, mixing

if TYPE_CHECKING:
    from .session import Session

MAX_BLOCK = 16
"""Maximum number of windows along each side of a block; each keeps about 0.2 GB at the bundled checkpoint's size."""
TILE, MARGIN = 512, 64
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
            rows = self._expression(own, conditions.measured()), self._expression(own, conditions)
            encoded.append((self._morphology(own), *rows))
            yield self._report(start)

        yield from self.session.batches.each(block, encode, self.session.stopped)
        if self.session.stopped():
            return None
        m, e, edited = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        image = self._slide(low * self.factor, high * self.factor)
        latents = self._latents(low, high)
        corners = self.corners[block] - low
        rows, weights = self.windows.rows[block], self.windows.weights[block]
        spots = np.searchsorted(spot_rows(self.plan), np.unique(rows))
        key = content_key(image, corners, rows, weights, before.counts[spots], before.depth[spots])
        moved = Edited(m + before.map.delta(e, edited), edited, (key,), self.plan.request.edit_scale)
        how = corners, self.weight, self.plan.steps, self.session.batches
        work = self.model.editor.edit_canvas(latents, m, e, moved, *how)
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
            size, margin = np.array(self.shape[1:]), MARGIN // self.factor
            low = np.maximum((y - margin, x - margin), 0)
            high = np.minimum((y + side + margin, x + side + margin), size)
            whole = self.model.editor.encode(self._slide(low * self.factor, high * self.factor))
            top, left = y - low[0], x - low[1]
            while len(self.encoded) > 3 * (size[1] // side + 2):  # the oldest goes first
                self.encoded.pop(next(iter(self.encoded)))
            self.encoded[y, x] = whole[:, top : top + side, left : left + side]
        return self.encoded[y, x]

    def _morphology(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        boxes = [tuple(box) for box in self.windows.source_boxes[numbers].tolist()]
        crops = read_patches(self.section.slide, boxes, self.windows.side)
        names = tuple(self.section.spots.ids[self.windows.rows[numbers, 0]].tolist())
        return self.model.encode_morphology(crops, names)

    def _expression(self, numbers: NDArray[np.int64], conditions: Conditions) -> NDArray[np.float32]:
        rows = np.searchsorted(spot_rows(self.plan), self.windows.rows[numbers])
        weights = self.windows.weights[numbers]
        mix = mixing(rows, weights, len(conditions.sources))
        nearest = rows[np.arange(len(rows)), weights.argmax(axis=1)].tolist()
        encoded = conditions.mixed(mix, nearest, self.section, self.model)
        assert encoded is not None  # the plan is counterfactual
        return encoded

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
