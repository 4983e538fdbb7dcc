"""A seam between two layers of the same tissue: left of it one, right of it the other. Dragged with the mouse. No Qt.

napari has no clipping planes for 2-D images. The pixels beyond the seam are made transparent as they are drawn, in stand-ins that
the layers show for the time being: the layers keep their extent and their affine, only what is drawn is read, and the result's own
array, which is what is saved, is never touched.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import layers
from .compare import Kept, camera_of

GRAB_PX = 10
"""A press within so many screen pixels of the seam takes hold of it."""
STEP_S = 0.05
"""While the seam is dragged, the picture follows at most so often."""
LINE_PX = 2.0


class Veiled:
    """An RGBA image of which some columns are transparent: nothing is copied, and only what is drawn is read.

    Parameters
    ----------
    own
        (h, w, 4) uint8, numpy or dask.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self.shape, self.ndim, self.dtype = tuple(own.shape), 3, own.dtype
        self._seen = np.ones((1, self.shape[1], self.shape[2]), dtype=bool)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))

    def hide(self, columns: slice) -> None:
        """Hide these columns and show all others."""
        self._seen[..., 3] = True
        self._seen[:, columns, 3] = False

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        seen = np.broadcast_to(self._seen, self.shape)[key]
        return np.where(seen, np.asarray(self.own[key]), np.uint8(0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class Curtain:
    """Makes one side of a layer transparent, without touching its own data.

    Parameters
    ----------
    layer
        An RGBA image layer, single- or multiscale.
    keep
        The side of the seam that stays.
    """

    def __init__(self, layer: Any, keep: Literal["left", "right"]) -> None:
        self.layer = layer
        self._keep = keep
        self._data = layer.data
        many = bool(layer.multiscale)
        self._shown = [Veiled(level) for level in (layer.data if many else [layer.data])]
        layer.data = self._shown if many else self._shown[0]

    def move(self, column: float) -> None:
        """Put the seam at a column of the largest level, measured from the left border; may lie outside."""
        full = self._shown[0].shape[1]
        for shown in self._shown:
            width = shown.shape[1]
            seam = int(np.clip(round(column * width / full), 0, width))
            shown.hide(slice(0, seam) if self._keep == "right" else slice(seam, width))
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def restore(self) -> None:
        """Show the layer's own data again."""
        self.layer.data = self._data


class Swipe:
    """The seam, its line, and its handle.

    Parameters
    ----------
    viewer
        Held weakly.
    moved
        Told where the seam is, 0 to 1 over the right layer's width, when the mouse moved it.
    """

    def __init__(self, viewer: Any, moved: Callable[[float], None]) -> None:
        self._viewer = weakref.ref(viewer)
        self._moved = weakref.WeakMethod(moved)
        self._kept = Kept()
        self._curtains: list[Curtain] = []
        self._line: Any = None
        self._right: Any = None
        self._shown: tuple[Any, ...] = ()
        self.position = 0.5

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return bool(self._curtains)

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self.active and any(layer is one for one in self._shown)

    def start(self, left: Any, right: Any, others: list[Any], position: float) -> None:
        """Show ``right`` right of the seam and ``left`` left of it; ``others`` are hidden for the time being."""
        self.stop()
        viewer = self._viewer()
        section = layers.section_of(right)
        if viewer is None or section is None:
            return
        for layer in others:
            self._kept.change(layer, visible=False)
        for layer in (left, right):
            self._kept.change(layer, visible=True)
        self._right, self._shown = right, (left, right)
        self._curtains = [Curtain(right, "right")]
        if layers.role_of(left) != "slide":
            self._curtains.append(Curtain(left, "left"))
        width = LINE_PX / max(camera_of(viewer).zoom, 1e-6)
        self._line = layers.insert(viewer, layers.seam_layer(section, self._ends(position), width), above=right)
        viewer.mouse_drag_callbacks.append(self._drag)
        self.move(position)

    def move(self, position: float) -> None:
        """Put the seam at a share of the right layer's width."""
        if not self.active:
            return
        self.position = float(np.clip(position, 0, 1))
        ends = self._ends(self.position)
        middle = ends.mean(axis=0)
        for curtain in self._curtains:
            curtain.move(float(curtain.layer.world_to_data(middle)[-1]) + 0.5)
        if self._line is not None:
            self._line.data = layers.seam_data(ends)

    def stop(self) -> None:
        """Take the seam away and give the layers their own data and visibility back."""
        viewer = self._viewer()
        curtains, self._curtains = self._curtains, []
        line, self._line, self._right, self._shown = self._line, None, None, ()
        for curtain in curtains:
            curtain.restore()
        self._kept.restore()
        if viewer is None:
            return
        if self._drag in viewer.mouse_drag_callbacks:
            viewer.mouse_drag_callbacks.remove(self._drag)
        if line is not None and line in viewer.layers:
            viewer.layers.remove(line)

    # --- private

    def _ends(self, position: float) -> NDArray[np.float64]:
        """Ends of the seam, (2, 2) in the world: it runs along the right layer's columns."""
        data = self._right.data[0] if self._right.multiscale else self._right.data
        height, width = data.shape[:2]
        column = position * width - 0.5
        return np.array([self._right.data_to_world((row, column))[-2:] for row in (-0.5, height - 0.5)])

    def _share(self, world: Any) -> float:
        data = self._right.data[0] if self._right.multiscale else self._right.data
        return (float(self._right.world_to_data(world)[-1]) + 0.5) / int(data.shape[1])

    def _drag(self, viewer: Any, event: Any) -> Iterator[None]:
        camera = camera_of(viewer)
        reach = GRAB_PX / max(camera.zoom, 1e-6)
        ends = self._ends(self.position)
        along = (ends[1] - ends[0]) / max(float(np.linalg.norm(ends[1] - ends[0])), 1e-9)
        away = np.asarray(event.position, dtype=float)[-2:] - ends[0]
        if event.button != 1 or abs(away[0] * along[1] - away[1] * along[0]) > reach:
            return
        pan, camera.mouse_pan = camera.mouse_pan, False
        event.handled = True
        try:
            yield
            last = 0.0
            while event.type == "mouse_move":
                if time.perf_counter() - last >= STEP_S:
                    self._drag_to(event.position)
                    last = time.perf_counter()
                yield
            self._drag_to(event.position)
        finally:
            camera.mouse_pan = pan

    def _drag_to(self, world: Any) -> None:
        if not self.active:
            return
        self.move(self._share(world))
        tell = self._moved()
        if tell is not None:
            tell(self.position)
