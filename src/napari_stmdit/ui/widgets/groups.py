"""A table of what differs between the selection and other spots, to be saved, and to be made an edit of."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from ...expression.groups import GroupTable
from ..groups import REST
from ..presenter import Presenter
from .common import (
    Choice,
    Connections,
    Text,
    ask_where_to_write,
    blocked,
    button,
    column,
    combo,
    connect_state,
    named,
    row,
)

SHOWN = 100
HEIGHT_PX = 190


class GroupsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Compares the selection with the rest, or with a named selection."""

    def __init__(self) -> None:
        super().__init__()
        self.other = combo("Compare with", "The spots that the selection is compared with", length=8)
        self.compare = button(
            "Compare",
            "Compare the selection",
            "Find the genes and programs that differ between the selection and these",
        )
        self.kind = Choice(
            (
                ("gene", "Genes", "Genes, the surest difference first"),
                ("program", "Programs", "Programs, the surest difference first"),
            )
        )
        self.kind.setValue("gene")
        self.table = named(
            QTableWidget(0, 3),
            "What differs",
            "log2 fold change of the selection over the others, and false discovery rate",
        )
        self.table.setHorizontalHeaderLabels(["", "log2 change", "FDR"])
        self.table.verticalHeader().setVisible(False)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFixedHeight(HEIGHT_PX)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for place in (1, 2):
            header.setSectionResizeMode(place, QHeaderView.ResizeMode.ResizeToContents)
        self.about = Text("quiet")
        self.save = button("Save table…", "Save the table", "Write all genes and programs as CSV")
        self.alike = button("Make alike", "Make the first group like the second", "Add an edit that does so")
        self.setLayout(
            column(
                row(self.other, self.compare),
                self.about,
                self.kind,
                self.table,
                row(self.save, self.alike, stretch=None),
                spacing=4,
            )
        )
        self._found: GroupTable | None = None
        self.show_groups(None)
        self.show_named(())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state, groups = presenter.state, presenter.groups
        self.compare.clicked.connect(lambda _: groups.compare(self.other.currentData()))
        self.kind.chosen.connect(lambda _: self.show_groups(self._found))
        self.save.clicked.connect(lambda _: self._save(presenter))
        self.alike.clicked.connect(lambda _: groups.make_alike())
        return connect_state(
            state.events,
            ("groups", lambda: self.show_groups(state.groups)),
            ("named", lambda: self.show_named(tuple(state.named))),
        )

    def show_named(self, names: tuple[str, ...]) -> None:
        """Offer the rest, and the named selections."""
        chosen = self.other.currentData()
        with blocked(self.other):
            self.other.clear()
            self.other.addItem(REST, None)
            for name in names:
                self.other.addItem(name, name)
            self.other.setCurrentIndex(max(0, self.other.findData(chosen)) if chosen else 0)

    def show_groups(self, found: GroupTable | None) -> None:
        """Show what differs, the surest first."""
        self._found = found
        for part in (self.kind, self.table, self.save, self.alike):
            part.setVisible(found is not None)
        if found is None:
            self.about.show_text("Select spots, and compare them with the rest or a named selection.")
            return
        self.about.show_text(found.statement)
        self.alike.setText("Make alike")
        self.alike.setToolTip(
            f"Add an edit that makes {found.names[0]} like {found.names[1]}: all genes move towards its mean"
        )
        rows = found.top(self.kind.value(), SHOWN)
        self.table.setRowCount(len(rows))
        for at, (name, change, fdr) in enumerate(zip(rows["name"], rows["log2_fold_change"], rows["fdr"], strict=True)):
            for place, text in enumerate((str(name), f"{change:+.2f}", f"{fdr:.1e}")):
                item = QTableWidgetItem(text)
                if place:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(at, place, item)

    def _save(self, presenter: Presenter) -> None:
        if path := ask_where_to_write(self, "Save the table", "Table (*.csv)"):
            presenter.groups.export(path)
