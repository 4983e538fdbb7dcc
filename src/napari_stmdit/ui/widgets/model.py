"""Choice of checkpoint and device, conversion of foreign checkpoints, and adaptation to one's own tissue."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qtpy.QtCore import Qt, QTimer, QUrl, Signal
from qtpy.QtGui import QDesktopServices, QPixmap
from qtpy.QtWidgets import QFileDialog, QLabel, QLineEdit, QMenu, QProgressBar, QPushButton, QSizePolicy, QWidget

from ...assemble import list_checkpoints
from ...errors import StmditError
from ...intent import CheckpointCard
from ...text import capitalised
from ...training.adaptation import CORNERS, NOTHING, STAGES, AdaptRequest, default_name
from ...types import Section
from ..checkpoints import Adaptation, Adaptations, ConvertIntent
from ..presenter import Presenter
from ..state import Foreign, ModelChoice
from .common import (
    Connections,
    Fold,
    Text,
    ask_what_to_read,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    form_of,
    labelled,
    named,
    row,
)
from .downloads import DownloadsPanel


class ConvertPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Foreign checkpoint, and questions that its files do not answer."""

    convertRequested = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._foreign: Foreign | None = None
        self.summary = Text("info")
        self.question = Text("warning")
        tip = "No published file states it; a wrong value puts every image at the wrong scale"
        self.mpp = combo("Microns per pixel of its patches", tip)
        self.mpp.setEditable(True)
        self.mpp.lineEdit().setPlaceholderText("µm/px")
        self.why = Text("quiet")
        self.name = named(QLineEdit(), "Name of the checkpoint", "Its name in the list of checkpoints")
        self.genes = named(
            QLineEdit(), "Gene list", "Text file, one symbol a line, in the order of its expression encoder"
        )
        self.genes.setPlaceholderText("none: embeddings only")
        browse = button("…", "Choose the gene list", "Choose the gene list", self._browse)
        browse.setFixedWidth(32)
        self.genes_row = boxed(row(self.genes, browse))
        tip = "Make a checkpoint folder of it, once; its files stay as they are"
        self.convert = button("Convert", "Convert", tip, self._convert)
        self.mpp.editTextChanged.connect(self._explain)
        form = labelled(("µm/px", self.mpp), ("Name", self.name), ("Genes", self.genes_row))
        self.setLayout(column(self.summary, self.question, form, self.why, self.convert))
        self.show_foreign(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state
        self.convertRequested.connect(presenter.acquisition.convert)
        return connect_state(
            state.events,
            ("foreign", lambda: self.show_foreign(state.foreign)),
            ("converting", lambda: self.show_converting(state.converting)),
        )

    def show_foreign(self, foreign: Foreign | None) -> None:
        """Ask about a foreign checkpoint; None hides the panel."""
        self._foreign = foreign
        self.setVisible(foreign is not None)
        if foreign is None:
            return
        self.summary.show_text(f"{Path(foreign.path).name}: {foreign.summary}")
        self.question.show_text(
            f"Its files do not say how many microns a pixel of its {foreign.patch_px} px patches has."
        )
        with blocked(self.mpp):
            self.mpp.clear()
            self.mpp.addItems([f"{mpp:g}" for mpp, _ in foreign.candidates])
            self.mpp.setCurrentIndex(-1)
            self.mpp.setEditText("")
        self.name.setText(re.sub(r"[^\w.-]+", "-", Path(foreign.path).stem).strip("-."))
        self.genes.setText("")
        self.genes_row.setEnabled(foreign.takes_expression)
        self._explain()

    def show_converting(self, on: bool) -> None:
        """Show that it is being converted."""
        self.convert.setText("Converting…" if on else "Convert")
        self.setEnabled(not on)

    def value(self) -> float | None:
        """Return the microns per pixel entered; None where that is no positive number."""
        try:
            mpp = float(self.mpp.currentText().strip().replace(",", "."))
        except ValueError:
            return None
        return mpp if 0 < mpp < 100 else None

    def _explain(self) -> None:
        foreign, mpp = self._foreign, self.value()
        self.convert.setEnabled(foreign is not None and mpp is not None)
        if foreign is None:
            return
        if mpp is None:
            listed = "; ".join(f"{value:g}: {why}" for value, why in foreign.candidates)
            self.why.show_text(f"See its model card. Candidates: {listed}.")
            return
        known = next((why for value, why in foreign.candidates if abs(value - mpp) < 1e-9), "")
        side = f"A patch then shows {foreign.patch_px * mpp:.0f} µm of tissue."
        self.why.show_text(f"{side} {capitalised(known)}." if known else side)

    def _browse(self) -> None:
        if chosen := ask_what_to_read(self, "Gene list, one symbol a line", "Text (*.txt *.tsv *.csv);;All files (*)"):
            self.genes.setText(chosen)

    def _convert(self) -> None:
        if self._foreign is not None:
            genes = self.genes.text().strip() or None
            self.convertRequested.emit(ConvertIntent(self._foreign.path, self.value(), self.name.text(), genes))


LACKING_ADVICE = (
    "Get what is missing under 'Get checkpoints and encoders', or use embeddings that were computed elsewhere:"
)
CPU_NOTICE = "Runs on the CPU."


class ModelPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Form of a `ModelChoice`, with the checkpoint's card."""

    valueChanged = Signal(object)
    pathChosen = Signal(str)  # a folder or a file: ours is loaded, a foreign one is asked about

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint = combo("Checkpoint", "The model that patches are synthesized with", length=5)
        self._shown = "demo"
        self._embeddings: dict[str, str | None] = {"morphology": None, "expression": None}
        self.open = button("Open…", "Open a checkpoint", "A checkpoint folder, or weights of STMDiT or PixCell")
        menu = QMenu(self.open)
        menu.addAction("Folder…", self._browse_folder)
        menu.addAction("Weights file…", self._browse_file)
        self.open.setMenu(menu)
        self.device = combo("Device", "Where the model runs; auto takes the fastest", length=5)
        self.unload = button("Unload", "Unload the checkpoint", "Free the checkpoint's memory")
        self.notice = Text("warning")
        self.lacking = Text("warning")
        self.embeddings: dict[str, QPushButton] = {}
        for what in ("morphology", "expression"):
            self.embeddings[what] = button(
                f"{what.capitalize()} embeddings from a file…",
                f"Choose {what} embeddings",
                f"Use {what} embeddings of the spots, computed elsewhere, in place of the encoder (.npy, .h5, .h5ad, .zarr, .csv)",
                lambda _=False, what=what: self._browse_embeddings(what),
            )
            self.embeddings[what].setVisible(False)
        self.using = Text("quiet")
        self.convert, self.downloads = ConvertPanel(), DownloadsPanel()
        self.facts = Text("quiet")
        self.limits = Text("quiet")
        self.checkpoint.activated.connect(self._changed)
        self.device.activated.connect(self._changed)
        for one in (self.open, self.unload):
            one.setFixedWidth(72)
        limits = boxed(column(self.limits))  # the text shows and hides itself, and must not unfold what is folded
        self.downloads_fold = Fold("Get checkpoints and encoders", self.downloads, unfolded=False, inner=True)
        self.setLayout(
            column(
                row(self.checkpoint, self.open),
                self.convert,
                row(QLabel("Device"), self.device, self.unload, stretch=1),
                self.notice,
                self.lacking,
                *self.embeddings.values(),
                self.using,
                self.facts,
                Fold("Intended use and limits", limits, unfolded=True, inner=True),
                self.downloads_fold,
            )
        )
        self.offer_devices(())
        self.show_model(None, "")

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state

        def show_model() -> None:
            model = state.checkpoint
            device = "" if model is None else str(model.provenance.get("device", ""))
            self.show_model(None if model is None else model.card, device, getattr(model, "lacking", None))

        def offer_converted() -> None:
            if not state.converting:
                self.offer_checkpoints([entry.name for entry in list_checkpoints()])

        self.valueChanged.connect(presenter.load_model)
        self.unload.clicked.connect(lambda: presenter.unload_model())
        self.pathChosen.connect(presenter.acquisition.choose)
        connections = connect_state(
            state.events,
            ("converting", offer_converted),
            ("devices", lambda: self.offer_devices(state.devices)),
            ("model", lambda: self.setValue(state.model)),
            ("checkpoint", show_model),
            ("status", lambda: self.setEnabled(not state.status.busy)),
        )
        connections.add(self.downloads.bind(presenter).close)
        connections.add(self.convert.bind(presenter).close)
        return connections

    # --- value

    def value(self) -> ModelChoice:
        """Return the chosen checkpoint and device."""
        return ModelChoice(
            str(self.checkpoint.currentData() or "demo"),
            str(self.device.currentData() or "auto"),
            self._embeddings["morphology"],
            self._embeddings["expression"],
        )

    def setValue(self, choice: ModelChoice) -> None:
        """Show a choice."""
        for box, key in ((self.checkpoint, choice.checkpoint), (self.device, choice.device)):
            if box.findData(key) < 0:
                box.addItem(key.rstrip("/").rsplit("/", 1)[-1], key)
            box.setCurrentIndex(box.findData(key))
        self._shown = choice.checkpoint
        self._embeddings = {"morphology": choice.morphology_embeddings, "expression": choice.expression_embeddings}
        used = [f"{what} from {Path(path).name}" for what, path in self._embeddings.items() if path]
        self.using.show_text(f"Embeddings in place of encoders: {', '.join(used)}." if used else "")

    # --- what is known

    def offer_checkpoints(self, names: Sequence[str]) -> None:
        """Offer the checkpoints that can be loaded by name."""
        for name in names:
            if self.checkpoint.findText(name) < 0:  # not twice where its folder was loaded
                self.checkpoint.addItem(name, name)

    def offer_devices(self, devices: Sequence[tuple[str, str]]) -> None:
        """Offer auto and the devices at hand, as (id, label)."""
        present = self.device.currentData()
        self.device.clear()
        for key, label in (("auto", "auto"), *devices):
            self.device.addItem(label, key)
        self.device.setCurrentIndex(max(0, self.device.findData(present)))

    def show_model(
        self, card: CheckpointCard | None, device: str, lacking: Mapping[str, StmditError] | None = None
    ) -> None:
        """Show the card of the loaded checkpoint, its device, and missing encoders."""
        self.unload.setEnabled(card is not None)
        self.notice.show_text(CPU_NOTICE if card is not None and device.startswith("cpu") else "")
        lacking = lacking or {}
        reasons = [capitalised(getattr(error, "reason", str(error))) for error in lacking.values()]
        self.lacking.show_text("\n\n".join([*reasons, LACKING_ADVICE] if reasons else []))
        for what, choose in self.embeddings.items():
            takes = card is not None and what in card.conditions
            choose.setVisible(takes and (f"{what}_encoder" in lacking or self._embeddings[what] is not None))
        wanted = next((error.reference.name for error in lacking.values() if hasattr(error, "reference")), None)
        if wanted is not None:
            self.downloads.choose(wanted)
            self.downloads_fold.unfold()
        if card is None:
            self.facts.show_text("No checkpoint is loaded.")
            self.limits.show_text("")
            return
        side = f"{card.patch_px} px at {card.patch_mpp:.3g} µm/px = {card.patch_um:.0f} µm"
        genes = f"{len(card.genes):,} genes; " if card.genes else ""
        self.facts.show_text(f"Patches of {side}; {genes}runs on {device}. Licence: {card.licence.rstrip('.')}.")
        self.limits.show_text(card.limits)

    def _changed(self) -> None:
        chosen = str(self.checkpoint.currentData() or "demo")
        if chosen != self._shown:
            self._embeddings = {"morphology": None, "expression": None}  # they belong to the checkpoint before
        self._shown = chosen
        self.valueChanged.emit(self.value())

    def _browse_folder(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "Choose a checkpoint folder"):
            self.pathChosen.emit(chosen)

    def _browse_file(self) -> None:
        kinds = "Weights (*.safetensors *.pt *.pth *.ckpt *.bin);;All files (*)"
        if chosen := ask_what_to_read(self, "Choose the weights of a checkpoint", kinds):
            self.pathChosen.emit(chosen)

    def _browse_embeddings(self, what: str) -> None:
        kinds = "Embeddings (*.npy *.h5 *.hdf5 *.h5ad);;All files (*)"
        if chosen := ask_what_to_read(self, f"Choose {what} embeddings", kinds):
            self._embeddings[what] = chosen
            self.valueChanged.emit(self.value())


ABOUT = (
    "Trains a checkpoint on this tissue, on this computer. A part is held out, and shows in the end how far the checkpoint can be trusted. "
    "Training continues when napari is closed."
)
LOOK_MS = 1000
PLACES = {name: name.replace("-", " ").capitalize() + " quarter" for name in CORNERS} | {
    NOTHING: "Nothing (no evaluation)"
}
"""Parts of a section that may be held out -> label."""


class AdaptPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Adaptation to the open section: options, progress and outcome."""

    finished = Signal(str)  # name of a checkpoint that has been made

    def __init__(self) -> None:
        super().__init__()
        self.adaptations = Adaptations()
        self._name, self._told, self._picture = "", set[str](), ("", 0)
        self._section: Callable[[], Section | None] = lambda: None
        tip = "Total time in minutes; more time gives better images"
        self.form = form_of(AdaptRequest, minutes=("Minutes", tip, {"step": 5, "min": 1, "max": 10_000}))
        self.minutes = self.form["minutes"].native
        self.minutes.setDecimals(0)
        places = [(words, key) for key, words in PLACES.items()]
        self.hold_out = combo(
            "Held out",
            "Spots to evaluate on; never trained on. With nothing held out, all the time trains",
            places,
            length=8,
        )
        self.name = named(QLineEdit(), "Name of the checkpoint", "Its name in the list of checkpoints")
        tip = "Start learning from the open section"
        self.go = button("Adapt", "Adapt to this section", tip, self._begin)
        self.choice = combo("Adaptations", "Those begun on this computer", length=8)
        self.choice.activated.connect(lambda: self._follow(str(self.choice.currentData() or "")))
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the adaptation")
        tip = "Save and stop; it can be continued later, also after napari was closed"
        self.stop = button("Stop", "Stop the adaptation", tip, lambda: self.adaptations.stop(self._name))
        self.more = button("Go on", "Go on with the adaptation", "Continue from what was saved", self._go_on)
        self.use = button("Use it", "Use the checkpoint", "Load this checkpoint")
        self.told, self.fault, self.figures = Text("info"), Text("error"), Text("quiet")
        self.picture = named(
            QLabel(), "Newest samples", "Click to see it large: the slide, then synthetic tissue of its conditions"
        )
        self.picture.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.picture.setCursor(Qt.CursorShape.PointingHandCursor)
        self.picture.mousePressEvent = lambda _: self._open_picture()
        self.known = boxed(
            column(
                self.choice,
                self.bar,
                self.told,
                self.fault,
                row(self.stop, self.more, self.use, stretch=None),
                self.picture,
                self.figures,
            )
        )
        self.asked = Text("error")
        form = labelled(("Minutes", self.minutes), ("Held out", self.hold_out), ("Name", self.name))
        self.setLayout(column(Text("quiet", ABOUT), form, self.go, self.asked, self.known))
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self.look)
        self.show_section(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state
        self._section = lambda: state.section

        def use() -> None:
            choice = replace(state.model, checkpoint=self._name, morphology_embeddings=None, expression_embeddings=None)
            presenter.load_model(choice)

        self.use.clicked.connect(use)
        self._timer.start()
        self._follow(next(iter(self.adaptations.names()), ""))
        connections = connect_state(state.events, ("section", lambda: self.show_section(state.section)))
        connections.add(self._timer.stop)
        return connections

    def show_section(self, section: Section | None) -> None:
        """Offer to adapt to the open section."""
        path = None if section is None else section.path
        self.go.setEnabled(path is not None)
        self.name.setPlaceholderText("" if path is None else default_name(path))

    # --- what was begun

    def look(self) -> None:
        """Show the present progress."""
        if not self._name:
            self.known.setVisible(False)
            return
        self.known.setVisible(True)
        self.show_adaptation(self.adaptations.look(self._name))

    def show_adaptation(self, known: Adaptation) -> None:
        """Show the progress of an adaptation, and its actions."""
        at = known.progress
        self.stop.setVisible(known.alive and not known.done)
        self.more.setVisible(not known.alive and not known.done and at is not None)
        self.use.setVisible(known.done)
        self.bar.setVisible(known.alive and not known.done)
        self.fault.show_text("" if known.alive or known.done else known.fault)
        self.bar.setValue(0 if at is None else round(1000 * at.fraction))
        if at is None:
            self.told.show_text("Opening the section and preparing." if known.alive else "")
        elif known.done:
            self.told.show_text(f"{known.name} is among the checkpoints.")
        else:
            left = "" if at.remaining_s is None else f", about {max(at.remaining_s / 60, 1):.0f} min left"
            head = (
                f"{STAGES[at.stage]}{left}"
                if known.alive
                else f"Stopped at {100 * at.fraction:.0f} %: {STAGES[at.stage].lower()}"
            )
            self.told.show_text(f"{head}. {capitalised(at.words)}." if at.words else f"{head}.")
        self.figures.show_text(at.short if at is not None and known.done else "")
        self._show_picture("" if at is None else at.sheet or "")
        if known.done and known.name not in self._told:
            self._told.add(known.name)
            self.finished.emit(known.name)

    def _follow(self, name: str) -> None:
        self._name = name
        with blocked(self.choice):
            self.choice.clear()
            for one in self.adaptations.names():
                self.choice.addItem(one, one)
            self.choice.setCurrentIndex(max(self.choice.findData(name), 0))
        self.choice.setVisible(self.choice.count() > 1)
        self.look()

    def _begin(self) -> None:
        self.asked.show_text("")
        try:
            name = self.adaptations.begin(
                self._section(), self.name.text(), float(self.form["minutes"].value), str(self.hold_out.currentData())
            )
        except StmditError as error:
            self.asked.show_text(str(error))
            return
        self._told.discard(name)
        self._follow(name)

    def _go_on(self) -> None:
        self.adaptations.go_on(self._name)
        self.look()

    def _show_picture(self, path: str) -> None:
        """Show a sheet of samples as wide as the dock; read again only for another sheet or width."""
        width = max(self.width() - 16, 100)
        if (path, width) == self._picture:
            return
        self._picture = path, width
        found = QPixmap(path) if path else QPixmap()
        self.picture.setVisible(not found.isNull())
        if found.isNull():
            self.picture.clear()
            return
        ratio = self.devicePixelRatioF()
        shown = found.scaledToWidth(round(width * ratio), Qt.TransformationMode.SmoothTransformation)
        shown.setDevicePixelRatio(ratio)
        self.picture.setPixmap(shown)
        self.picture.setFixedHeight(round(shown.height() / ratio))

    def _open_picture(self) -> None:
        if self._picture[0]:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._picture[0]))
