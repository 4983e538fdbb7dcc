"""Downloads by name, in the dock: checkpoints and encoders, and public sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QProgressBar, QWidget

from ...model.zoo import ZooEntry
from ...text import capitalised, size_words
from ...tissue.public import PublicSection
from ..checkpoints import Acquisition, Downloadable, downloadable_sections, downloadables
from ..presenter import Presenter
from ..state import Fetching
from .common import Connections, Text, blocked, button, column, combo, connect_state, named, paced, row


class DownloadsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Downloads of checkpoints and encoders: size and terms first, then the button."""

    WHAT = "Known checkpoints and encoders"

    downloadRequested = Signal(str, object)  # name, folder or None

    def __init__(self) -> None:
        super().__init__()
        self._offers: dict[str, Downloadable] = {}
        self._fetching = False
        self.choice = combo(self.WHAT, "What to download", length=5)
        self.facts, self.licence = Text("info"), Text("quiet")
        self.terms = Text("quiet")
        self.terms.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        named(self.terms, "Terms", "Where the terms can be read and, if it is gated, accepted")
        self.download = button(
            "Download",
            "Download",
            "Download it under these terms",
            lambda: self.downloadRequested.emit(self.name(), None),
        )
        self.folder = button(
            "From folder…", "Take it from a folder", "Copy its files from a folder on this computer", self._browse
        )
        self.stop = button(
            "Stop", "Stop the download", "What has arrived is kept; the next download continues from there"
        )
        self.bar = named(QProgressBar(), "Download progress", "Progress of the download")
        self.bar.setRange(0, 1000)
        self.bar.setFormat("%p %")
        self.file = Text("quiet")
        self.choice.currentIndexChanged.connect(self._show_choice)
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

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, acquisition = presenter.state, presenter.acquisition

        def show() -> None:
            if state.fetching is None:
                self.offer(self.known())
            self.show_fetching(state.fetching)

        self.downloadRequested.connect(self.fetcher(acquisition))
        self.stop.clicked.connect(lambda: acquisition.stop_download())
        return connect_state(state.events, ("fetching", paced(self, show, lambda: state.fetching is not None)))

    def known(self) -> Sequence[Downloadable]:
        """Return what can be downloaded."""
        return downloadables()

    def fetcher(self, acquisition: Acquisition) -> Callable[[str, str | None], None]:
        """Return the function that downloads by name."""
        return acquisition.download

    def describe(self, offer: Downloadable) -> tuple[str, str]:
        """Return description with size, and terms."""
        kind = offer.entry.kind.replace("_", " ").capitalize() if isinstance(offer.entry, ZooEntry) else ""
        hand = " It is on no hub: get the files from the page below and choose their folder." if offer.by_hand else ""
        return f"{kind}, {offer.size}; {offer.state}.", f"Licence: {offer.entry.licence}.{hand}"

    def name(self) -> str:
        """Return the name of the chosen offer."""
        return str(self.choice.currentData() or "")

    def offer(self, known: Sequence[Downloadable]) -> None:
        """Show what can be downloaded, with its state."""
        present = self.name()
        self._offers = {offer.entry.name: offer for offer in known}
        with blocked(self.choice):
            self.choice.clear()
            for offer in known:
                self.choice.addItem(f"{offer.entry.title}{' (here)' if offer.here else ''}", offer.entry.name)
            self.choice.setCurrentIndex(max(0, self.choice.findData(present)))
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
        self.file.show_text("" if fetching is None else f"{fetching.name}: {fetching.file or 'asking the server'}")
        self._enable()

    def _show_choice(self) -> None:
        offer = self._offers.get(self.name())
        self._enable()
        if offer is None:
            self.facts.show_text("Nothing is known.")
            self.licence.show_text("")
            self.terms.show_text("")
            return
        entry, (facts, licence) = offer.entry, self.describe(offer)
        self.facts.show_text(facts)
        self.licence.show_text(licence)
        gate = "accept the terms there first" if entry.gated else "terms"
        self.terms.show_link(entry.terms or "", after=f": {gate}")

    def _enable(self) -> None:
        offer = self._offers.get(self.name())
        free = offer is not None and not self._fetching
        self.choice.setEnabled(not self._fetching)
        self.download.setEnabled(free and offer is not None and not offer.by_hand and not offer.here)
        self.folder.setEnabled(free and offer is not None and not offer.here)

    def _browse(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, f"Folder with the files of {self.name()}"):
            self.downloadRequested.emit(self.name(), chosen)


class SectionsPanel(DownloadsPanel):
    """Public sections: description, size, licence and citation; then the button that opens one."""

    WHAT = "Public sections"

    def __init__(self) -> None:
        super().__init__()
        self._ask: Callable[[str], None] = lambda name: None
        self._sizes: Callable[[], Mapping[str, int | None]] = dict
        named(
            self.download,
            "Open the public section",
            "Open it; if it is not on this computer, download it first under these terms",
        )
        self.choice.activated.connect(lambda _: self._want_size())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        self._ask, self._sizes = presenter.acquisition.ask_size, lambda: presenter.state.sizes
        connections = super().bind(presenter)
        connections.add(connect_state(presenter.state.events, ("sizes", self._show_choice)).close)
        return connections

    def known(self) -> Sequence[Downloadable]:
        """Return what can be downloaded."""
        return downloadable_sections()

    def fetcher(self, acquisition: Acquisition) -> Callable[[str, str | None], None]:
        """Return the function that downloads by name."""
        return acquisition.download_section

    def choose(self, name: str) -> None:
        """Choose a section by its name; an unknown size is looked up."""
        super().choose(name)
        self._want_size()

    def describe(self, offer: Downloadable) -> tuple[str, str]:
        """Return description with size, and terms."""
        entry = offer.entry
        assert isinstance(entry, PublicSection)
        size = entry.size_bytes or self._sizes().get(entry.name)
        asked = entry.name in self._sizes()
        words = size_words(size) if size else "its size is not known" if asked else "its size is asked for"
        facts = [f"{capitalised(entry.about)}.", f"{capitalised(words)}; {offer.state}."]
        terms = [f"Licence: {entry.licence}.", f"Cite: {entry.citation}.", *entry.notes]
        return "\n".join(facts), "\n".join(terms)

    def _want_size(self) -> None:
        offer = self._offers.get(self.name())
        if offer is not None and not offer.here:
            self._ask(offer.entry.name)

    def _enable(self) -> None:
        super()._enable()
        offer = self._offers.get(self.name())
        here = offer is not None and offer.here
        self.download.setText("Open" if here else "Download and open")
        self.download.setEnabled(offer is not None and not self._fetching)
