"""Spots that are used for nothing: excluded by selection or from a file, included again, and written for runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtWidgets import QFileDialog, QLineEdit, QWidget

from ...types import Section
from ..presenter import Presenter
from .common import Connections, Text, ask_where_to_write, button, column, connect_state, named, row


class ExcludePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Which regions are excluded, and what can be done about it."""

    def __init__(self) -> None:
        super().__init__()
        self.about = Text("quiet")
        self.name = named(QLineEdit(), "Name of the region", "What is wrong there, such as fold, pen or blur")
        self.name.setPlaceholderText("fold, pen, blur ...")
        self.exclude = button(
            "Exclude",
            "Exclude the selection",
            "Use the selected spots for nothing: no run, edit, profile or evaluation",
        )
        self.file = button(
            "From file…", "Exclude the regions of a file", "Exclude the spots inside the polygons of a GeoJSON file"
        )
        self.include = button("Include all", "Include all spots again", "Use the excluded spots again")
        self.export = button(
            "Save…",
            "Save the excluded regions",
            "Write them as GeoJSON, for trainings, evaluations and runs from the command line",
        )
        self.setLayout(
            column(
                row(self.name, self.exclude),
                row(self.file, self.include, self.export, stretch=None),
                self.about,
                spacing=4,
            )
        )
        self.show_section(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state, corrections = presenter.state, presenter.corrections
        self.exclude.clicked.connect(lambda _: corrections.exclude(self.name.text()))
        self.include.clicked.connect(lambda _: corrections.include())
        self.file.clicked.connect(lambda _: self._open(corrections.exclude_file))
        self.export.clicked.connect(lambda _: self._save(corrections.export))
        return connect_state(state.events, ("section", lambda: self.show_section(state.section)))

    def show_section(self, section: Section | None) -> None:
        """Show which regions are excluded from a section."""
        excluded = None if section is None else section.excluded
        for one in (self.include, self.export):
            one.setEnabled(excluded is not None)
        said = "No spot is excluded." if excluded is None else f"{excluded.statement}."
        self.about.show_text(said)

    def _open(self, do: Callable[[str], None]) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Exclude the regions of a file", "", "Annotations (*.geojson *.json)"
        )
        if path:
            do(path)

    def _save(self, do: Callable[[str], None]) -> None:
        if path := ask_where_to_write(self, "Save the excluded regions", "Outlines (*.geojson)"):
            do(path)
