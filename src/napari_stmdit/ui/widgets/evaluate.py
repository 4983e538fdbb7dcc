"""Evaluation: the close-up of a spot with its measures, its contact sheets, and the open section evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QDialog, QFileDialog, QGridLayout, QLabel, QScrollArea, QSizePolicy, QWidget
from superqt.utils import qdebounced

from ...errors import StmditError
from ...evaluation.cases import EvaluationRequest
from ...evaluation.evaluate import Evaluated
from ...evaluation.pictures import save_sheet
from ...synthesis.variants import ContactSheet
from ..presenter import Presenter
from ..state import CloseUp, RunStatus
from .common import Connections, Text, boxed, button, column, connect_state, form_of, labelled, row
from .results import pixmap_of
from .synthesize import duration

TITLES = {"real": "Slide", "baseline": "Baseline", "edited": "Edited", "synthetic": "Synthetic", "change": "Difference"}
MAX_COLUMNS = 3
IMAGE_PX = 84
MINUS = "−"
LOOK_MS = 150
"""Milliseconds that the mouse has to rest on a spot before its patches are cut out and measured."""


class SpotPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """View of a `CloseUp`, and contact sheets of its spot."""

    unfolded = Signal()
    """Signal when the panel was folded or unfolded."""

    def __init__(self) -> None:
        super().__init__()
        self.title, self.words = Text("info"), Text("quiet")
        self._images = [QLabel() for _ in range(MAX_COLUMNS)]
        self.heads = [QLabel() for _ in range(MAX_COLUMNS)]
        for image in self._images:
            image.setFixedHeight(IMAGE_PX)
            image.setMinimumWidth(40)
            image.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            image.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._grid = QGridLayout()
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(6)
        self._grid.setVerticalSpacing(3)
        for place, (head, image) in enumerate(zip(self.heads, self._images, strict=True)):
            head.setAlignment(Qt.AlignmentFlag.AlignCenter)
            self._grid.addWidget(head, 0, place)
            self._grid.addWidget(image, 1, place)
            self._grid.setColumnStretch(place, 1)
        self._table = QGridLayout()
        self._table.setContentsMargins(0, 4, 0, 0)
        self._table.setHorizontalSpacing(6)
        self._table.setVerticalSpacing(1)
        self._cells: list[QLabel] = []
        tip = "This spot at seven strengths of the last edit, from 0 to 1, with common noise"
        self.dose = button("Dose strip", "Dose strip", tip, width=40, once=True)
        tip = "This spot under three scales of each guidance, with common noise"
        self.guidance = button("Guidance 3 × 3", "Guidance grid", tip, width=40, once=True)
        pictures, numbers = boxed(self._grid), boxed(self._table)
        self._parts = (pictures, numbers)
        self.setLayout(
            column(self.title, pictures, numbers, self.words, row(self.dose, self.guidance, stretch=None), spacing=4)
        )
        self.show_close_up(None, None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, close_ups, sheets = presenter.state, presenter.close_ups, presenter.sheets

        def show() -> None:
            self.show_close_up(state.close_up, close_ups.spot)

        def look() -> None:
            if not self.isHidden():  # nobody sees it while it is folded away
                close_ups.look()
            show()

        def with_spot(make: Callable[[str], None]) -> None:
            if close_ups.spot is not None:
                make(close_ups.spot)

        rested = qdebounced(look, timeout=LOOK_MS, parent=self)  # ends with the dock, whatever it still waits for
        self.unfolded.connect(look)
        self.dose.clicked.connect(lambda: with_spot(sheets.dose_strip))
        self.guidance.clicked.connect(lambda: with_spot(sheets.guidance_grid))
        return connect_state(
            state.events,
            ("close_up", show),
            ("hovered selected results chosen_result checkpoint", lambda: rested()),
        )

    def show_close_up(self, close_up: CloseUp | None, spot: str | None) -> None:
        """Show the close-up of a spot, or that there is none."""
        for part in self._parts:
            part.setVisible(True)
        self.dose.setEnabled(spot is not None)
        self.guidance.setEnabled(spot is not None)
        if close_up is None or close_up.spot != spot:
            for part in self._parts:
                part.setVisible(False)
            self.title.show_text("Point at a spot or select one." if spot is None else f"Spot {spot}", "quiet")
            self.words.show_text("")
            return
        self.title.show_text(f"Spot {close_up.spot}, {close_up.patch_um:.0f} µm across", "info")
        colours = (
            "" if close_up.change is None else f"{_scale_of(close_up.limit)}.\n"
        )  # wrapped: as a cell it widened the dock
        self.words.show_text(colours + close_up.words)
        columns = [name for name in TITLES if name in close_up.patches]
        columns = [*columns, *([] if close_up.change is None else ["change"])][:MAX_COLUMNS]
        for place, (head, image) in enumerate(zip(self.heads, self._images, strict=True)):
            shown = place < len(columns)
            head.setVisible(shown)
            image.setVisible(shown)
            if shown:
                self._draw(head, image, columns[place], close_up)
        self._fill(close_up, columns)

    def texts(self) -> list[str]:
        """Return the table's texts, row by row, for tests and screen readers."""
        return [cell.text() for cell in self._cells]

    # --- private

    def _draw(self, head: QLabel, image: QLabel, name: str, close_up: CloseUp) -> None:
        head.setText(TITLES[name])
        ratio = self.devicePixelRatioF()
        change = close_up.change if name == "change" else None
        pixmap = pixmap_of(close_up.patches[name] if change is None else change).scaledToHeight(
            round(IMAGE_PX * ratio), Qt.TransformationMode.SmoothTransformation
        )
        pixmap.setDevicePixelRatio(ratio)
        image.setPixmap(pixmap)
        image.setAccessibleName(f"{TITLES[name]} patch of spot {close_up.spot}")
        tips = {"real": "The slide's own crop", "change": _scale_of(close_up.limit)}
        made = "Edited real tissue: a generative model made what differs from the slide"
        image.setToolTip(
            tips.get(name, "Synthetic image made by a generative model" if close_up.change is None else made)
        )

    def _fill(self, close_up: CloseUp, columns: list[str]) -> None:
        """Fill a line with a measure's name and the difference, and under it the numbers, each under its picture."""
        for cell in self._cells:
            self._table.removeWidget(cell)
            cell.hide()
            cell.deleteLater()
        self._cells = []
        if "change" in columns:
            self._fill_change(close_up)
            return
        pair = ("edited", "baseline") if "baseline" in columns else (columns[-1], "real") if len(columns) > 1 else None
        tip = "" if pair is None else f"Δ: {TITLES[pair[0]].lower()} minus {TITLES[pair[1]].lower()}"
        for line, found in enumerate(close_up.rows):
            change = None if pair is None else found.difference(*pair)
            words = f"{found.name}, {found.unit}"
            if change is not None:
                sign = "+" if change > 0 else MINUS if change < 0 else "±"
                words += f":  Δ {sign}{abs(change):,.{found.digits}f}"
            self._put(2 * line, 0, words, len(columns), tip)
            for place, name in enumerate(columns):
                self._put(2 * line + 1, place, f"{found.values[name]:,.{found.digits}f}", 1, f"{TITLES[name]}: {words}")

    def _fill_change(self, close_up: CloseUp) -> None:
        """Fill before, after and their difference, each under its picture."""
        for line, found in enumerate(close_up.rows):
            words = f"{found.name}, {found.unit}"
            self._put(2 * line, 0, words, MAX_COLUMNS, "Difference: edited minus slide")
            values = (found.values["real"], found.values["edited"])
            for place, value in enumerate(values):
                self._put(2 * line + 1, place, f"{value:,.{found.digits}f}", 1, words)
            change = round(values[1] - values[0], found.digits)
            sign = "+" if change > 0 else MINUS if change < 0 else "±"
            self._put(2 * line + 1, 2, f"{sign}{abs(change):,.{found.digits}f}", 1, words)

    def _put(self, line: int, place: int, text: str, span: int, tip: str) -> None:
        cell = QLabel(text)
        head = span > 1 or line % 2 == 0
        cell.setAlignment(Qt.AlignmentFlag.AlignLeft if head else Qt.AlignmentFlag.AlignCenter)
        cell.setToolTip(tip)
        if head:
            cell.setStyleSheet("font-weight: bold; padding-top: 3px;")
        self._table.addWidget(cell, line, place, 1, span)
        self._table.setColumnStretch(place, 1)
        self._cells.append(cell)


def _scale_of(limit: float) -> str:
    return f"Colours: haematoxylin {MINUS}{limit:.2f} (blue) to +{limit:.2f} (orange) OD"


SHEET_PX = 132


class Picture(QLabel):  # type: ignore[misc,unused-ignore]
    """Square picture as large as its room allows, never cut."""

    def __init__(self, pixels: object, words: str) -> None:
        super().__init__()
        self._whole = pixmap_of(pixels)
        self.setAccessibleName(words)
        self.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignBottom)
        self.setMinimumSize(SHEET_PX // 2, SHEET_PX // 2)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)

    def resizeEvent(self, event: Any) -> None:
        """Fill the room."""
        super().resizeEvent(event)
        ratio = self.devicePixelRatioF()
        side = round(min(self.width(), self.height()) * ratio)
        keep, mode = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        shown = self._whole.scaled(side, side, keep, mode)
        shown.setDevicePixelRatio(ratio)
        self.setPixmap(shown)


class SheetWindow(QDialog):  # type: ignore[misc,unused-ignore]
    """Window of a `ContactSheet` as it grows, with its export; it belongs to no place on the tissue."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Contact sheet (synthetic)")
        self.setAccessibleName("Contact sheet")
        self._sheet: ContactSheet | None = None
        self.title, self.message = Text("info"), Text("quiet")
        tip = "Write the sheet as one picture with its provenance"
        self.export = button("Export PNG…", "Export PNG", tip, self._export)
        inside = QWidget()
        self._grid = QGridLayout(inside)
        self._grid.setSpacing(8)
        self._cells: list[QWidget] = []
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(inside)
        layout = column(self.title, scroll, self.message, row(QWidget(), self.export))
        layout.setContentsMargins(10, 10, 10, 10)
        layout.setStretch(1, 1)
        self.setLayout(layout)

    def bind(self, presenter: Presenter) -> Connections:
        """Show the sheets of a presenter."""
        return connect_state(presenter.state.events, ("sheet", lambda: self.show_sheet(presenter.state.sheet)))

    def show_sheet(self, sheet: ContactSheet | None) -> None:
        """Show a sheet, also after the window was closed."""
        if sheet is None:
            return
        fresh = self._sheet is None or (sheet.title, sheet.spot) != (self._sheet.title, self._sheet.spot)
        self._sheet = sheet
        edited = any(cell.provenance.get("counterfactual") for cell in sheet.cells)
        what = "edited real tissue, synthetic" if edited else "synthetic images with common noise"
        self.title.show_text(f"{sheet.title}, spot {sheet.spot}: {what}, {sheet.patch_um:.0f} µm across")
        if fresh:
            self.message.show_text("")
        for cell in self._cells:
            self._grid.removeWidget(cell)
            cell.hide()  # it is deleted later
            cell.deleteLater()
        self._cells = []
        if sheet.real is not None:
            self._put(0, 0, "slide", sheet.real)
        for place, one in enumerate(sheet.cells):
            down, across = divmod(place, sheet.columns)
            self._put(down, across + 1, one.label, one.pixels)
        self.export.setEnabled(bool(sheet.cells))
        if fresh or not self.isVisible():
            rows = 1 if sheet.columns > 3 else sheet.columns
            wide = min((sheet.columns + 1) * (SHEET_PX + 10) + 40, 1200)
            self.resize(wide, rows * (SHEET_PX + 60) + 110)
            self.show()

    def _put(self, down: int, across: int, words: str, pixels: object) -> None:
        label = QLabel(words)
        label.setWordWrap(True)
        label.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        inside = column(Picture(pixels, words), label, spacing=2)
        inside.setStretch(0, 1)
        cell = boxed(inside)
        self._grid.addWidget(cell, down, across)
        self._grid.setColumnStretch(across, 1)
        self._grid.setRowStretch(down, 1)
        self._cells.append(cell)

    def _export(self) -> None:
        sheet = self._sheet
        if sheet is None:
            return
        name = f"{sheet.title}_{sheet.spot}".replace(" ", "_").lower()
        path, _ = QFileDialog.getSaveFileName(self, "Export the contact sheet", f"{name}.png", "PNG (*.png)")
        if path:
            self.save(path)

    def save(self, path: str | Path) -> None:
        """Write the sheet; report where, or why not."""
        if self._sheet is None:
            return
        try:
            self.message.show_text(f"Saved in {save_sheet(self._sheet, path)}.", "info")
        except StmditError as error:
            self.message.show_text(str(error), "error")


ABOUT = (
    "Synthesizes some spots under their true conditions and under controls, with the settings of the form, and reports what may be "
    "claimed. Choose a section that the checkpoint was not trained on."
)


class EvaluatePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Number of spots and seeds, a button that evaluates and one that opens the report."""

    def __init__(self) -> None:
        super().__init__()
        self._report: str | None = None
        self.form = form_of(
            EvaluationRequest,
            spots=(
                "Spots to evaluate",
                "Spots of the section, drawn with the seed; more give narrower intervals",
                {"step": 1},
            ),
            seeds=("Seeds a case", "Images of each spot in each case", {"step": 1}),
        )
        self.spots, self.seeds = (widget.native for widget in self.form.values())
        tip = "Choose a folder for the report and begin; the folder of one that was stopped goes on with it"
        self.go = button("Evaluate…", "Evaluate the section", tip)
        self.open = button("Open report", "Open the report", "Show the latest report in the browser", self._open)
        self.count, self.trained, self.found = Text("quiet"), Text("quiet"), Text("info")
        self._pace: float | None = None
        for widget in self.form.values():
            widget.changed.connect(self._count, max_args=0)
        self.setLayout(
            column(
                Text("quiet", ABOUT),
                labelled(("Spots", self.spots), ("Seeds", self.seeds)),
                self.count,
                self.trained,
                row(self.go, self.open, stretch=None),
                self.found,
            )
        )
        self.show_status(RunStatus.IDLE, False)
        self.show_evaluation(None)
        self._count()

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state

        def choose() -> None:
            if chosen := QFileDialog.getExistingDirectory(self, "Folder for the report"):
                presenter.evaluations.evaluate(chosen, self.form["spots"].value, self.form["seeds"].value)

        def show_status() -> None:
            self.show_status(state.status, state.section is not None and state.checkpoint is not None)

        def show_pace() -> None:
            known = state.estimate
            new_tissue = known is not None and known.seconds is not None and not presenter.runs.editing
            self._pace = known.seconds / known.patches if new_tissue and known and known.seconds else None
            self._count()

        def show_training() -> None:
            data = "" if state.checkpoint is None else state.checkpoint.card.training_data
            self.trained.show_text(f"Trained on: {data}" if data else "")

        self.go.clicked.connect(choose)
        return connect_state(
            state.events,
            ("evaluation", lambda: self.show_evaluation(state.evaluation)),
            ("status section checkpoint", show_status),
            ("checkpoint", show_training),
            ("estimate", show_pace),
        )

    def show_status(self, status: RunStatus, ready: bool) -> None:
        """Enable the button where there is a section and a checkpoint; during a run the evaluation is queued."""
        self.go.setEnabled(ready)
        self.go.setText("Queue…" if status.busy else "Evaluate…")

    def show_evaluation(self, found: Evaluated | None) -> None:
        """Show the latest evaluation's findings on condition fidelity."""
        report = None if found is None else found.report
        self.open.setEnabled(report is not None)
        if report is None:
            self.found.show_text("")
            return
        self._report = str(report.html)
        read = [claim for claim in report.claims if claim.fidelity]
        lost = list(dict.fromkeys(f"{c.true} does not beat {c.control}" for c in read if not c.holds))
        text = f"Condition fidelity: the true condition beats its control in {sum(c.holds for c in read)} of {len(read)} comparisons."
        self.found.show_text(text + (f" Not so: {'; '.join(lost)}." if lost else ""))

    def _count(self) -> None:
        patches = self.form["spots"].value * self.form["seeds"].value * 7
        time = "" if self._pace is None else f"; about {duration(self._pace * patches)} at the pace of runs here"
        self.count.show_text(f"About {patches:,} patches: up to seven cases of each spot and seed{time}.")

    def _open(self) -> None:
        if self._report is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._report))
