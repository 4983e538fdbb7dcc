"""Choosing the checkpoint and the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QLabel, QMenu, QPushButton, QWidget

from ...errors import StmditError
from ...types import CheckpointCard
from ..state import ModelChoice
from .common import Fold, Text, column, named, row
from .convert import ConvertPanel
from .downloads import DownloadsPanel

LACKING_ADVICE = (
    "Bring what is missing under 'Get checkpoints and encoders', or use embeddings that were computed elsewhere:"
)
CPU_NOTICE = "Runs on the CPU. A GPU is many times faster."


class ModelPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on a `ModelChoice`, with what the checkpoint says of itself."""

    valueChanged = Signal(object)
    unloadRequested = Signal()
    pathChosen = Signal(str)  # a folder or a file: ours is loaded, a foreign one is asked about

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint = named(QComboBox(), "Checkpoint", "The model that patches are synthesized with")
        self.checkpoint.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.checkpoint.setMinimumContentsLength(5)
        self._shown = "demo"
        self._embeddings: dict[str, str | None] = {"morphology": None, "expression": None}
        self.open = named(
            QPushButton("Open…"), "Open a checkpoint", "A checkpoint folder, or weights of STMDiT or PixCell"
        )
        menu = QMenu(self.open)
        menu.addAction("Folder…", self._browse_folder)
        menu.addAction("Weights file…", self._browse_file)
        self.open.setMenu(menu)
        self.device = named(QComboBox(), "Device", "Where the model runs; auto takes the fastest")
        self.device.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.device.setMinimumContentsLength(5)
        self.unload = named(QPushButton("Unload"), "Unload the checkpoint", "Free the checkpoint's memory")
        self.notice = Text("warning")
        self.lacking = Text("warning")
        self.embeddings: dict[str, QPushButton] = {}
        for what in ("morphology", "expression"):
            button = named(
                QPushButton(f"{what.capitalize()} embeddings from a file…"),
                f"Choose {what} embeddings",
                f"Use {what} embeddings of the spots, computed elsewhere, in place of the encoder (.npy, .h5, .h5ad, .zarr)",
            )
            button.clicked.connect(lambda _=False, what=what: self._browse_embeddings(what))
            button.setVisible(False)
            self.embeddings[what] = button
        self.using = Text("quiet")
        self.convert, self.downloads = ConvertPanel(), DownloadsPanel()
        self.facts = Text("quiet")
        self.limits = Text("quiet")
        self.checkpoint.activated.connect(self._changed)
        self.device.activated.connect(self._changed)
        self.unload.clicked.connect(self.unloadRequested)
        for button in (self.open, self.unload):
            button.setFixedWidth(72)
        label = QLabel("Device")
        limits = QWidget()  # the text shows and hides itself, and must not unfold what is folded
        limits.setLayout(column(self.limits))
        self.downloads_fold = Fold("Get checkpoints and encoders", self.downloads, unfolded=False, inner=True)
        self.setLayout(
            column(
                row(self.checkpoint, self.open),
                self.convert,
                row(label, self.device, self.unload, stretch=1),
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
            if self.checkpoint.findData(name) < 0:
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
        """Show what the loaded checkpoint says of itself, where it runs, and which of its encoders are not there."""
        self.unload.setEnabled(card is not None)
        self.notice.show_text(CPU_NOTICE if card is not None and device.startswith("cpu") else "")
        lacking = lacking or {}
        reasons = [_sentence(getattr(error, "reason", str(error))) for error in lacking.values()]
        self.lacking.show_text("\n\n".join([*reasons, LACKING_ADVICE] if reasons else []))
        for what, button in self.embeddings.items():
            takes = card is not None and what in card.conditions
            button.setVisible(takes and (f"{what}_encoder" in lacking or self._embeddings[what] is not None))
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
        chosen, _ = QFileDialog.getOpenFileName(self, "Choose the weights of a checkpoint", "", kinds)
        if chosen:
            self.pathChosen.emit(chosen)

    def _browse_embeddings(self, what: str) -> None:
        kinds = "Embeddings (*.npy *.h5 *.hdf5 *.h5ad);;All files (*)"
        chosen, _ = QFileDialog.getOpenFileName(self, f"Choose {what} embeddings", "", kinds)
        if chosen:
            self._embeddings[what] = chosen
            self.valueChanged.emit(self.value())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
