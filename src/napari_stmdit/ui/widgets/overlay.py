"""Lines and labels over the canvas, drawn by Qt: at once, of one width at every zoom, and without a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QObject, QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QPainter, QPainterPath, QPaintEvent, QPen, QPolygonF
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QWidget

from ..compare import SPACING_PX, cells_of, grid_of
from ..gestures import Line, camera_of
from ..presenter import Presenter
from .common import Connections, connect_state

HALO, LASSO, FRAME = QColor(0, 0, 0, 170), QColor(0, 230, 255), QColor(255, 255, 255)
"""Colours of lines; each has a dark one under it, to be visible on pale and on dark tissue."""
MIN_FRAME_PX = 8
"""Minimum size of a frame on the screen; a smaller one would hide its content."""
MAX_FRAMES = 200
"""Maximum number of patches with frames of their own, which follow every camera move; more get one frame around all."""
MARGIN_PX = 8


@dataclass(frozen=True)
class Label:
    """Label on the canvas: at a place (x, y) in pixels, to its left (-1), around it (0) or to its right (1)."""

    text: str
    at: tuple[float, float]
    side: int = 0


class Overlay(QWidget):  # type: ignore[misc,unused-ignore]
    """Drawing over a canvas; takes no events, and is hidden while there is nothing to draw."""

    def __init__(self, canvas: QWidget) -> None:
        super().__init__(canvas)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._line: Line = ()
        self.frames: NDArray[np.float64] = np.empty((0, 4, 2))
        """Corners (n, 4, 2) of the frames, (y, x) in the world."""
        self.labels: Sequence[Label] = ()
        self._presenter: Presenter | None = None
        self._viewer: Any = None
        canvas.installEventFilter(self)
        self.resize(canvas.size())
        self.hide()

    def bind(self, presenter: Presenter, viewer: Any) -> Connections:
        """Connect with a presenter; return the connections."""
        self._presenter, self._viewer = presenter, viewer
        presenter.hand.show_line = self.show_line
        connections = connect_state(
            presenter.state.events, ("results chosen_result comparison section", self._show_results)
        )
        # napari frees what a layer had on the graphics card in whatever context is current: that of another window would lose its own
        removing, own = viewer.layers.events.removing, self._own_context
        removing.connect(own)
        connections.add(partial(removing.disconnect, own))
        camera, dims, grid = camera_of(viewer), viewer.dims, grid_of(viewer)
        for emitter in (camera.events.zoom, camera.events.center, dims.events.ndisplay, grid.events.enabled):
            emitter.connect(self._moved)
            connections.add(partial(emitter.disconnect, self._moved))
        connections.add(lambda: setattr(presenter.hand, "show_line", lambda line: None))
        return connections

    def _own_context(self, event: Any = None) -> None:
        self.parentWidget().makeCurrent()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow the size of the canvas."""
        if event.type() == QEvent.Type.Resize:
            self.resize(self.parentWidget().size())
            self._moved()
        return False

    # --- what is drawn

    @property
    def line(self) -> Line:
        """The unfinished ring."""
        return self._line

    def show_line(self, line: Line) -> None:
        """Show the unfinished ring."""
        self._line = tuple(line)
        self._show()

    def _show_results(self) -> None:
        """Frame the patches of the chosen result, if it is visible."""
        presenter = self._presenter
        assert presenter is not None
        entry = presenter.results.entry(presenter.state.chosen_result)
        shown = entry is not None and entry.visible
        self.frames = presenter.looking.frames(entry.number if entry is not None and shown else None)
        self._moved()

    def _moved(self, event: Any = None) -> None:
        self.labels = self._labels()
        self._show()

    def _show(self) -> None:
        flat = self._viewer is None or (self._viewer.dims.ndisplay == 2 and bool(self._cells()))
        self.setVisible(bool(self._line) or (flat and bool(len(self.frames) or self.labels)))
        self.update()

    def _cells(self) -> list[QRectF]:
        """Return where the section is shown: the canvas, or the cells of a comparison side by side; none of a grid of the user's own."""
        comparison = None if self._presenter is None else self._presenter.state.comparison
        if grid_of(self._viewer).enabled and (comparison is None or comparison.mode != "grid"):
            return []
        rows, columns = cells_of(self._viewer).tolist()
        width, height = (self.width() + SPACING_PX) / columns, (self.height() + SPACING_PX) / rows
        size = width - SPACING_PX, height - SPACING_PX
        return [QRectF(x * width, y * height, *size) for y in range(rows) for x in range(columns)]

    def _labels(self) -> list[Label]:
        """Return the labels of the sides of a seam, of the cells, or of the picture that is shown."""
        if self._presenter is None or (comparison := self._presenter.state.comparison) is None:
            return []
        left, right = self._presenter.compare.names(comparison)
        if comparison.mode == "swipe" and self._presenter.compare.swipe.active:
            ends = [self.on_canvas(end) for end in self._presenter.compare.swipe.ends(comparison.position)]
            # above the picture, where there is room
            x, y = ends[0].x(), max(min(end.y() for end in ends) - 4 * MARGIN_PX, MARGIN_PX)
            return [Label(left, (x - MARGIN_PX, y), -1), Label(right, (x + MARGIN_PX, y), 1)]
        if comparison.mode == "grid":
            cells = self._cells()
            texts = ("the slide", left, right)[-len(cells) :]
            return [
                Label(text, (cell.center().x(), cell.top() + MARGIN_PX))
                for text, cell in zip(texts, cells, strict=False)
            ]
        if comparison.mode in ("blink", "fade"):
            text = right if comparison.position >= 0.5 else left
            return [Label(text, (self.width() / 2, MARGIN_PX))]
        return []

    def on_canvas(self, world: Any) -> QPointF:
        """Return the position on the canvas of a place (y, x) in the world."""
        x, y = self._places(np.asarray(world, dtype=np.float64)[-2:]).tolist()
        return QPointF(x, y)

    def _places(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return places (..., 2), (x, y) in pixels, of places (..., 2), (y, x) in the world."""
        camera = camera_of(self._viewer)
        # napari's zoom counts Qt's pixels, whatever the display makes of them
        yx = (world - np.asarray(camera.center, dtype=np.float64)[-2:]) * camera.zoom
        return np.asarray(yx[..., ::-1] + (self.width() / 2, self.height() / 2))

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for cell in self._cells() if self._viewer is not None else ():
            painter.save()
            painter.setClipRect(cell)
            painter.translate(cell.center() - QRectF(self.rect()).center())
            self._frame(painter)
            painter.restore()
        if len(self._line) > 1:
            ring = QPolygonF([QPointF(x, y) for x, y in (*self._line, self._line[0])])
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(LASSO.red(), LASSO.green(), LASSO.blue(), 30))
            painter.drawPolygon(ring)
            self._stroke(painter, ring, LASSO, 2)
        for label in self.labels:
            self._write(painter, label)

    def _frame(self, painter: QPainter) -> None:
        """Frame each patch; overlapping patches get a common frame."""
        if not len(self.frames):
            return
        places = self._places(self.frames)
        low, high = places.min(axis=1), places.max(axis=1)
        large = np.ptp(places, axis=1).max(axis=1) >= MIN_FRAME_PX
        places = places[large & (high >= 0).all(axis=1) & (low <= (self.width(), self.height())).all(axis=1)]
        if len(places) > MAX_FRAMES:
            (x0, y0), (x1, y1) = low.min(axis=0), high.max(axis=0)
            places = np.array([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]])
        covered = QPainterPath()
        covered.setFillRule(Qt.FillRule.WindingFill)
        for quad in places.tolist():
            covered.addPolygon(QPolygonF([QPointF(x, y) for x, y in (*quad, quad[0])]))
        for outline in covered.simplified().toSubpathPolygons():
            self._stroke(painter, outline, FRAME, 1)

    def _stroke(self, painter: QPainter, line: QPolygonF, colour: QColor, width: int) -> None:
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for one, wide in ((HALO, width + 2), (colour, width)):
            painter.setPen(QPen(one, wide))
            painter.drawPolyline(line)

    def _write(self, painter: QPainter, label: Label) -> None:
        metrics = painter.fontMetrics()
        cells = self._cells()
        most = cells[0].width() if len(cells) > 1 else self.width() / 2  # the halves of a seam
        text = metrics.elidedText(label.text, Qt.TextElideMode.ElideRight, int(most - 4 * MARGIN_PX))
        width, height = metrics.horizontalAdvance(text) + 2 * MARGIN_PX, metrics.height() + MARGIN_PX
        x = label.at[0] - width * (1 - label.side) / 2
        x = min(max(x, 0), self.width() - width)  # also where the seam is near the border
        box = QRectF(x, min(label.at[1], self.height() - height), width, height)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(HALO)
        painter.drawRoundedRect(box, 4, 4)
        painter.setPen(FRAME)
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, text)


def canvas_in(window: QWidget) -> QWidget | None:
    """Return the canvas of a napari window, or None."""
    found: QWidget | None = window.findChild(QOpenGLWidget)
    return found
