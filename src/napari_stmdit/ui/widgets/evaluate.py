"""The open section evaluated with the chosen checkpoint, and contact sheets of one spot."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QDialog, QFileDialog, QGridLayout, QLabel, QScrollArea, QWidget

from ...errors import StmditError
from ...evaluation.cases import EvaluationRequest
from ...evaluation.evaluate import Evaluated
from ...evaluation.pictures import save_sheet
from ...synthesis.variants import ContactSheet
from ..presenter import Presenter
from ..state import RunStatus
from .common import Connections, Text, button, column, connect_state, form_of, labelled, row
from .results import pixmap_of

IMAGE_PX = 132


class SheetWindow(QDialog):  # type: ignore[misc,unused-ignore]
    """A `ContactSheet` as it grows, and its export; a window of its own, as it belongs to no place on the tissue."""

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
        """Show a sheet, also where the window was closed before."""
        if sheet is None:
            return
        fresh = self._sheet is None or (sheet.title, sheet.spot) != (self._sheet.title, self._sheet.spot)
        self._sheet = sheet
        edited = any(cell.provenance.get("counterfactual") for cell in sheet.cells)
        what = "edited real tissue, synthetic" if edited else "synthetic images with common noise"
        self.title.show_text(f"{sheet.title}, spot {sheet.spot}: {what}, {sheet.patch_um:.0f} µm across")
        for cell in self._cells:
            self._grid.removeWidget(cell)
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
            wide = min((sheet.columns + 1) * (IMAGE_PX + 10) + 40, 1200)
            self.resize(wide, rows * (IMAGE_PX + 40) + 110)
            self.show()

    def _put(self, down: int, across: int, words: str, pixels: object) -> None:
        cell, image, label = QWidget(), QLabel(), QLabel(words)
        ratio = self.devicePixelRatioF()
        pixmap = pixmap_of(pixels).scaledToHeight(round(IMAGE_PX * ratio), Qt.TransformationMode.SmoothTransformation)
        pixmap.setDevicePixelRatio(ratio)
        image.setPixmap(pixmap)
        image.setAccessibleName(words)
        label.setWordWrap(True)
        label.setFixedWidth(IMAGE_PX)
        cell.setLayout(column(image, label, spacing=2))
        self._grid.addWidget(cell, down, across, Qt.AlignmentFlag.AlignTop)
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
        """Write the sheet; says where, or why not."""
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
    """How many spots and seeds, a button that evaluates and one that opens the report."""

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
        self.count, self.found = Text("quiet"), Text("info")
        for widget in self.form.values():
            widget.changed.connect(self._count, max_args=0)
        self.setLayout(
            column(
                Text("quiet", ABOUT),
                labelled(("Spots", self.spots), ("Seeds", self.seeds)),
                self.count,
                row(self.go, self.open, stretch=None),
                self.found,
            )
        )
        self.show_status(RunStatus.IDLE, False)
        self.show_evaluation(None)
        self._count()

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state = presenter.state

        def choose() -> None:
            if chosen := QFileDialog.getExistingDirectory(self, "Folder for the report"):
                presenter.evaluations.evaluate(chosen, self.form["spots"].value, self.form["seeds"].value)

        def show_status() -> None:
            self.show_status(state.status, state.section is not None and state.checkpoint is not None)

        self.go.clicked.connect(choose)
        return connect_state(
            state.events,
            ("evaluation", lambda: self.show_evaluation(state.evaluation)),
            ("status section checkpoint", show_status),
        )

    def show_status(self, status: RunStatus, ready: bool) -> None:
        """Let it be pressed where a section and a checkpoint are there; while a run is under way, the evaluation waits for it."""
        self.go.setEnabled(ready)
        self.go.setText("Queue…" if status.busy else "Evaluate…")

    def show_evaluation(self, found: Evaluated | None) -> None:
        """Show what the latest evaluation found about condition fidelity."""
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
        self.count.show_text(f"About {patches:,} patches: up to seven cases of each spot and seed.")

    def _open(self) -> None:
        if self._report is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._report))
