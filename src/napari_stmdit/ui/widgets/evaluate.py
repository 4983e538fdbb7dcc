"""Is it true? The open section evaluated with the chosen checkpoint."""

from __future__ import annotations

from qtpy.QtCore import QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog, QPushButton, QSpinBox, QWidget

from ...evaluation.cases import FEWEST, EvaluationRequest
from ...evaluation.evaluate import Evaluated
from ..state import RunStatus
from .common import Text, column, labelled, named, row

ABOUT = (
    "Synthesizes some spots under their true conditions and under controls, with the settings of the form, and reports what may be "
    "claimed. Choose a section that the checkpoint was not trained on."
)


class EvaluatePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """How many spots and seeds, a button that evaluates and one that opens the report."""

    evaluateRequested = Signal(str, int, int)

    def __init__(self) -> None:
        super().__init__()
        default = EvaluationRequest()
        self._report: str | None = None
        self.spots = named(
            QSpinBox(), "Spots to evaluate", "Spots of the section, drawn with the seed; more give narrower intervals"
        )
        self.spots.setRange(FEWEST, 100_000)
        self.spots.setValue(default.spots)
        self.seeds = named(QSpinBox(), "Seeds a case", "Images of each spot in each case")
        self.seeds.setRange(1, 20)
        self.seeds.setValue(default.seeds)
        self.go = named(
            QPushButton("Evaluate…"),
            "Evaluate the section",
            "Choose a folder for the report and begin; the folder of one that was stopped goes on with it",
        )
        self.open = named(QPushButton("Open report"), "Open the report", "Show the latest report in the browser")
        self.count, self.found = Text("quiet"), Text("info")
        for box in (self.spots, self.seeds):
            box.valueChanged.connect(self._count)
        self.go.clicked.connect(self._choose)
        self.open.clicked.connect(self._open)
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
        patches = self.spots.value() * self.seeds.value() * 7
        self.count.show_text(f"About {patches:,} patches: up to seven cases of each spot and seed.")

    def _choose(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "Folder for the report"):
            self.evaluateRequested.emit(chosen, self.spots.value(), self.seeds.value())

    def _open(self) -> None:
        if self._report is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._report))
