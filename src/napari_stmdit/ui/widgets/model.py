"""Choosing the checkpoint and the device."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QLabel, QPushButton, QWidget

from ...types import CheckpointCard
from ..state import ModelChoice
from .common import Fold, Text, column, named, row

CPU_NOTICE = "Runs on the CPU. A GPU is many times faster."


class ModelPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on a `ModelChoice`, with what the checkpoint says of itself."""

    valueChanged = Signal(object)
    unloadRequested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint = named(QComboBox(), "Checkpoint", "The model that patches are synthesized with")
        self.checkpoint.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.checkpoint.setMinimumContentsLength(5)
        self.folder = named(QPushButton("Folder…"), "Choose a checkpoint folder", "Use a checkpoint from a folder")
        self.device = named(QComboBox(), "Device", "Where the model runs; auto takes the fastest")
        self.device.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.device.setMinimumContentsLength(5)
        self.unload = named(QPushButton("Unload"), "Unload the checkpoint", "Free the checkpoint's memory")
        self.notice = Text("warning")
        self.facts = Text("quiet")
        self.limits = Text("quiet")
        self.checkpoint.activated.connect(self._changed)
        self.device.activated.connect(self._changed)
        self.folder.clicked.connect(self._browse)
        self.unload.clicked.connect(self.unloadRequested)
        for button in (self.folder, self.unload):
            button.setFixedWidth(72)
        label = QLabel("Device")
        limits = QWidget()  # the text shows and hides itself, and must not unfold what is folded
        limits.setLayout(column(self.limits))
        self.setLayout(
            column(
                row(self.checkpoint, self.folder),
                row(label, self.device, self.unload, stretch=1),
                self.notice,
                self.facts,
                Fold("Intended use and limits", limits, unfolded=True, inner=True),
            )
        )
        self.offer_devices(())
        self.show_model(None, "")

    # --- value

    def value(self) -> ModelChoice:
        """Return the chosen checkpoint and device."""
        return ModelChoice(str(self.checkpoint.currentData() or "demo"), str(self.device.currentData() or "auto"))

    def setValue(self, choice: ModelChoice) -> None:
        """Show a choice."""
        for box, key in ((self.checkpoint, choice.checkpoint), (self.device, choice.device)):
            if box.findData(key) < 0:
                box.addItem(key.rstrip("/").rsplit("/", 1)[-1], key)
            box.setCurrentIndex(box.findData(key))

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

    def show_model(self, card: CheckpointCard | None, device: str) -> None:
        """Show what the loaded checkpoint says of itself, and where it runs."""
        self.unload.setEnabled(card is not None)
        self.notice.show_text(CPU_NOTICE if card is not None and device.startswith("cpu") else "")
        if card is None:
            self.facts.show_text("No checkpoint is loaded.")
            self.limits.show_text("")
            return
        side = f"{card.patch_px} px at {card.patch_mpp:.3g} µm/px = {card.patch_um:.0f} µm"
        self.facts.show_text(
            f"Patches of {side}; {len(card.genes):,} genes; runs on {device}. Licence: {card.licence}."
        )
        self.limits.show_text(card.limits)

    def _changed(self) -> None:
        self.valueChanged.emit(self.value())

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Choose a checkpoint folder (it holds stmdit.json)")
        if chosen:
            self.setValue(ModelChoice(chosen, self.value().device))
            self._changed()
