"""What can be downloaded by name: size and terms first, then the button."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QLabel, QProgressBar, QPushButton, QSizePolicy, QWidget

from ..acquisition import Offer
from ..state import Fetching
from .common import Text, column, named, row


class DownloadsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Offers the known checkpoints and encoders."""

    downloadRequested = Signal(str, object)  # name, folder or None
    stopRequested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._offers: dict[str, Offer] = {}
        self._fetching = False
        self.choice = named(QComboBox(), "Known checkpoints and encoders", "What to bring to this computer")
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.choice.setMinimumContentsLength(5)
        self.facts, self.licence = Text("info"), Text("quiet")
        self.terms = QLabel()
        self.terms.setOpenExternalLinks(True)
        self.terms.setWordWrap(True)
        self.terms.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.terms.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        named(self.terms, "Terms", "Where the terms can be read and, if it is gated, accepted")
        self.download = named(QPushButton("Download"), "Download", "Fetch it under these terms")
        self.folder = named(
            QPushButton("From folder…"), "Take it from a folder", "Copy its files from a folder on this computer"
        )
        self.stop = named(
            QPushButton("Stop"), "Stop the download", "What has arrived is kept; the next download goes on"
        )
        self.bar = named(QProgressBar(), "Download progress", "Share that has arrived")
        self.bar.setRange(0, 1000)
        self.bar.setFormat("%p %")
        self.file = Text("quiet")
        self.choice.currentIndexChanged.connect(self._show_choice)
        self.download.clicked.connect(lambda: self.downloadRequested.emit(self.name(), None))
        self.folder.clicked.connect(self._browse)
        self.stop.clicked.connect(self.stopRequested)
        self.setLayout(
            column(
                self.choice,
                self.facts,
                self.licence,
                self.terms,
                row(self.download, self.folder, stretch=None),
                row(self.bar, self.stop),
                self.file,
            )
        )
        self.show_fetching(None)

    def name(self) -> str:
        """Return the name of what is chosen."""
        return str(self.choice.currentData() or "")

    def offer(self, offers: Sequence[Offer]) -> None:
        """Show what there is, with its state."""
        present = self.name()
        self._offers = {offer.name: offer for offer in offers}
        self.choice.blockSignals(True)
        self.choice.clear()
        for offer in offers:
            self.choice.addItem(f"{offer.title}{' (here)' if offer.here else ''}", offer.name)
        self.choice.setCurrentIndex(max(0, self.choice.findData(present)))
        self.choice.blockSignals(False)
        self._show_choice()

    def choose(self, name: str) -> None:
        """Choose an offer by its name."""
        if (place := self.choice.findData(name)) >= 0:
            self.choice.setCurrentIndex(place)

    def show_fetching(self, fetching: Fetching | None) -> None:
        """Show a download under way, or the buttons that start one."""
        self._fetching = fetching is not None
        self.bar.setVisible(self._fetching)
        self.stop.setVisible(self._fetching)
        self.bar.setValue(round(1000 * fetching.fraction) if fetching is not None else 0)
        self.file.show_text("" if fetching is None else f"{fetching.name}: {fetching.file or 'asking the hub'}")
        self._enable()

    def _show_choice(self) -> None:
        offer = self._offers.get(self.name())
        self._enable()
        if offer is None:
            self.facts.show_text("Nothing is known.")
            self.licence.show_text("")
            self.terms.setText("")
            return
        state = "on this computer" if offer.here else "not on this computer"
        self.facts.show_text(f"{offer.kind.capitalize()}, {offer.size}; {state}.")
        hand = " It is on no hub: get the files from the page below and choose their folder." if offer.by_hand else ""
        self.licence.show_text(f"Licence: {offer.licence}.{hand}")
        gate = "accept the terms there first" if offer.gated else "terms"
        self.terms.setText(f'<a href="{offer.terms}">{offer.terms.split("//")[-1].split("/")[0]}</a>: {gate}')
        self.terms.setVisible(bool(offer.terms))

    def _enable(self) -> None:
        offer = self._offers.get(self.name())
        free = offer is not None and not self._fetching
        self.choice.setEnabled(not self._fetching)
        self.download.setEnabled(free and offer is not None and not offer.by_hand and not offer.here)
        self.folder.setEnabled(free and offer is not None and not offer.here)

    def _browse(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, f"Folder with the files of {self.name()}"):
            self.downloadRequested.emit(self.name(), chosen)
