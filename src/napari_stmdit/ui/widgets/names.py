"""A field for names of genes, programs and columns, with search and completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qtpy.QtCore import QObject, QStringListModel, Qt, Signal
from qtpy.QtWidgets import QCompleter, QLineEdit, QWidget

PROGRAM, COLUMN = " (program)", " (column)"


class Names(QStringListModel):  # type: ignore[misc,unused-ignore]
    """Names, of which some are greyed and cannot be chosen; their tooltip says why."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.greyed: Mapping[str, str] = {}

    def flags(self, index: Any) -> Any:
        """Take from greyed names that they can be chosen."""
        flags = super().flags(index)
        greyed = self.data(index, Qt.ItemDataRole.DisplayRole) in self.greyed
        return flags & ~(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable) if greyed else flags

    def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the reason as the tooltip of a greyed name."""
        if role == Qt.ItemDataRole.ToolTipRole:
            return self.greyed.get(super().data(index, Qt.ItemDataRole.DisplayRole))
        return super().data(index, role)


class NameField(QLineEdit):  # type: ignore[misc,unused-ignore]
    """A line with completion: what is typed may stand anywhere in a name. With ``several``, names are parted by commas."""

    changed = Signal(str)
    """The text, when a name was chosen, Return was pressed, or the field was left or emptied."""

    def __init__(self, parent: QWidget | None = None, several: bool = False) -> None:
        super().__init__(parent)
        self._several = several
        self._told = ""
        self.names = Names(self)
        completer = QCompleter(self.names, self)
        completer.setFilterMode(Qt.MatchFlag.MatchContains)
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        completer.setMaxVisibleItems(12)
        completer.setWidget(self)
        completer.activated[str].connect(self._completed)
        self._completer = completer
        self.setClearButtonEnabled(True)
        self.setMinimumWidth(60)
        self.textEdited.connect(self._typed)
        self.editingFinished.connect(self._tell)
        self.textChanged.connect(lambda text: None if text else self._tell())

    def offer(
        self,
        genes: Iterable[str] = (),
        programs: Sequence[str] = (),
        columns: Sequence[str] = (),
        blind: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Offer names: programs and columns first, they are few. ``blind`` programs are greyed, each with its reason."""
        self.names.greyed = {f"{name}{PROGRAM}": reason for name, reason in blind.items()}
        named = [*(f"{name}{PROGRAM}" for name in sorted(programs)), *(f"{name}{COLUMN}" for name in columns)]
        self.names.setStringList([*named, *sorted(set(genes))])

    def show_text(self, text: str) -> None:
        """Show a text that was set elsewhere; what is being typed is left alone."""
        if not self.hasFocus() or not self.isModified():
            self.blockSignals(True)
            self.setText(text)
            self.blockSignals(False)
            self._told = text

    def _typed(self, text: str) -> None:
        part = text[: self.cursorPosition()].rpartition(",")[2].strip() if self._several else text.strip()
        if not part:
            self._completer.popup().hide()
            return
        self._completer.setCompletionPrefix(part)
        if self._completer.completionCount():
            self._completer.complete()
        else:
            self._completer.popup().hide()

    def _completed(self, name: str) -> None:
        if self._several:
            before = self.text()[: self.cursorPosition()].rpartition(",")
            after = self.text()[self.cursorPosition() :]
            self.setText(f"{before[0]}{', ' if before[1] else ''}{name}{after}")
        else:
            self.setText(name)
        self._tell()

    def _tell(self) -> None:
        self.setModified(False)
        if self.text() != self._told:
            self._told = self.text()
            self.changed.emit(self.text())
