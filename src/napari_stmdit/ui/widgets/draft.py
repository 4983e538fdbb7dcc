"""The form of one edit, and a field for names of genes, programs and columns with search and completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from qtpy.QtCore import QObject, QStringListModel, Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QCompleter, QDoubleSpinBox, QFileDialog, QLabel, QLineEdit, QWidget

from ...expression.programs import ProgramNote
from ...expression.reach import ProgramReach
from ...types import Genes, Section
from ..state import EditDraft
from ..strokes import parse_names, written
from .common import Text, blocked, boxed, column, labelled, named, row

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
        self.completer = completer
        self.setClearButtonEnabled(True)
        self.setMinimumWidth(60)
        self.textEdited.connect(self._typed)
        self.editingFinished.connect(self.commit)
        self.textChanged.connect(lambda text: None if text else self.commit())

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
            with blocked(self):
                self.setText(text)
            self._told = text

    def _typed(self, text: str) -> None:
        part = text[: self.cursorPosition()].rpartition(",")[2].strip() if self._several else text.strip()
        if not part:
            self.completer.popup().hide()
            return
        self.completer.setCompletionPrefix(part)
        if self.completer.completionCount():
            self.completer.complete()
        else:
            self.completer.popup().hide()

    def _completed(self, name: str) -> None:
        if self._several:
            before = self.text()[: self.cursorPosition()].rpartition(",")
            after = self.text()[self.cursorPosition() :]
            self.setText(f"{before[0]}{', ' if before[1] else ''}{name}{after}")
        else:
            self.setText(name)
        self.commit()

    def commit(self) -> None:
        """Say the text where it is another than before."""
        self.setModified(False)
        if self.text() != self._told:
            self._told = self.text()
            self.changed.emit(self.text())


OPERATIONS = (
    ("scale", "Multiply by", "Multiply normalised expression by a factor"),
    ("add", "Add", "Add to log(1 + counts per 10,000); a negative number takes away, never below zero"),
    ("set_quantile", "Set to quantile", "Set to this quantile of the section's own spots"),
    ("knock_out", "Knock out", "Set to zero"),
    ("towards", "Move towards", "Move towards the mean of other spots or a profile; without genes, all of them move"),
    ("swap", "Swap two groups", "Let two groups of spots change places: each moves by the difference of their means"),
)
PROFILES = "Profiles (*.json *.tsv *.txt)"
_FILE = ("file", "")


class GroupField(QComboBox):  # type: ignore[misc,unused-ignore]
    """A choice of spots: those selected now, or a named selection; and where wanted, of profiles."""

    picked = Signal(object)
    """(kind, value): ``spots`` with ids, ``profile`` with a name, or ``file``."""

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        named(self, name, tip)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        self._data: list[tuple[str, Any]] = []  # beside the items: Qt would copy thousands of ids into each
        self.activated.connect(lambda place: self.picked.emit(self._data[place]))

    def offer(
        self,
        chosen: tuple[str, Any],
        selected: Sequence[str],
        groups: Mapping[str, Sequence[str]],
        profiles: Any = None,
    ) -> None:
        """Offer what there is, with what is chosen in front."""
        entries: list[tuple[str, tuple[str, Any]]] = []
        if profiles is not None:
            entries += [(f"profile: {name}", ("profile", name)) for name in profiles]
        entries += [(f"{name} ({len(ids)} spots)", ("spots", tuple(ids))) for name, ids in groups.items()]
        if selected:
            entries.append((f"the {len(selected)} selected spots", ("spots", tuple(selected))))
        if profiles is not None:
            entries.append(("profile from a file…", _FILE))
        kind, value = chosen
        if value and chosen not in [data for _, data in entries]:
            entries.insert(0, (f"{len(value)} spots" if kind == "spots" else f"profile: {value}", chosen))
        if not value:
            entries.insert(0, ("choose…", (kind, value)))
        self._data = [data for _, data in entries]
        with blocked(self):
            self.clear()
            self.addItems([label for label, _ in entries])
            self.setCurrentIndex(self._data.index(chosen) if chosen in self._data else 0)


class DraftForm(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on an `EditDraft`."""

    valueChanged = Signal(object)
    profileRequested = Signal(str)
    """The path of a profile's file, which is to be read and chosen."""

    def __init__(self) -> None:
        super().__init__()
        self._value = EditDraft()
        self._genes: Genes | None = None
        self._programs: tuple[str, ...] = ()
        self._known: tuple[Any, ...] = ((), {}, ())
        self._notes: Mapping[str, ProgramNote] = {}
        self._reaches: Mapping[str, ProgramReach] = {}
        self.what = NameField(several=True)
        self.what.setPlaceholderText("genes and programs, e.g. hypoxia, ERBB2")
        named(self.what, "Genes and programs", "What is changed: genes and programs, parted by commas")
        self.operation = named(QComboBox(), "Operation", "What is done to their expression")
        for key, label, tip in OPERATIONS:
            self.operation.addItem(label, key)
            self.operation.setItemData(self.operation.count() - 1, tip, 3)  # Qt.ToolTipRole
        self.amounts = {
            "factor": self._amount("Factor", 0, 1000, 0.5, " ×"),
            "log_units": self._amount("Log units", -10, 10, 0.25, " log"),
            "quantile": self._amount("Quantile", 0, 1, 0.05, ""),
        }
        self.follow = named(
            QCheckBox("What varies with it follows"),
            "What varies with it follows",
            "Other genes, and how deep spots are, go along as they vary with these genes in this section: co-variation, no cause",
        )
        self.target = GroupField("Target", "The spots or the profile that the expression moves towards")
        self.group_a = GroupField("First group", "Spots that change places with the second group")
        self.group_b = GroupField("Second group", "Spots that change places with the first group")
        self.faults = {"what": Text("error"), "target": Text("error")}
        self.about = Text("quiet")
        self._lay_out()
        self._connect()
        self.setValue(EditDraft())

    def _lay_out(self) -> None:
        self._groups = boxed(labelled(("First", self.group_a), ("Second", self.group_b)))
        self._target = boxed(row(QLabel("to"), self.target, stretch=1))
        self.setLayout(
            column(
                self.what,
                self.faults["what"],
                self.about,
                row(self.operation, *self.amounts.values()),
                self.follow,
                self._target,
                self._groups,
                self.faults["target"],
                spacing=4,
            )
        )

    def _connect(self) -> None:
        self.what.changed.connect(self._named)
        self.operation.activated.connect(lambda _: self._change(operation=self.operation.currentData()))
        for field, box in self.amounts.items():
            box.valueChanged.connect(lambda value, field=field: self._change(**{field: round(value, 4)}))
        self.follow.toggled.connect(lambda on: self._change(follow="section" if on else "none"))
        self.target.picked.connect(self._target_picked)
        self.group_a.picked.connect(lambda data: self._change(group_a=data[1]))
        self.group_b.picked.connect(lambda data: self._change(group_b=data[1]))

    # --- value

    def value(self) -> EditDraft:
        """Return what the form says."""
        return self._value

    def setValue(self, value: EditDraft) -> None:
        """Show a draft."""
        self._value = value
        self.what.show_text(written(value.genes, value.programs))
        shown = {"scale": "factor", "add": "log_units", "set_quantile": "quantile"}.get(value.operation)
        with blocked(self.operation, self.follow, *self.amounts.values()):
            self.operation.setCurrentIndex(self.operation.findData(value.operation))
            self.follow.setChecked(value.follow == "section")
            for field, box in self.amounts.items():
                box.setValue(getattr(value, field))
                box.setVisible(field == shown)
        self.follow.setVisible(value.operation not in ("towards", "swap"))
        self._target.setVisible(value.operation == "towards")
        self._groups.setVisible(value.operation == "swap")
        self._offer()
        said = [
            f"{name}: {self._notes[name].about}. {self._notes[name].source}"
            for name in value.programs
            if name in self._notes
        ]
        said += [f"{name}: {self._reaches[name].words}." for name in value.programs if name in self._reaches]
        self.about.show_text("\n".join(said))

    # --- what is known

    def show_section(self, section: Section | None) -> None:
        """Offer a section's genes."""
        self._genes = None if section is None else section.spots.genes
        self._offer_names()

    def show_programs(
        self, programs: Sequence[str], notes: Mapping[str, ProgramNote], reaches: Mapping[str, ProgramReach]
    ) -> None:
        """Offer programs, say where the bundled ones are from and how much the checkpoint sees; what it cannot see at all is greyed."""
        self._programs, self._notes, self._reaches = tuple(programs), notes, reaches
        self._offer_names()
        self.setValue(self._value)

    def show_groups(
        self, selected: Sequence[str], groups: Mapping[str, Sequence[str]], profiles: Sequence[str]
    ) -> None:
        """Offer spots and profiles to move towards or to swap."""
        self._known = (selected, groups, profiles)
        self._offer()

    def show_faults(self, faults: Mapping[str, str]) -> None:
        """Show what is wrong, each beside its field."""
        for name, text in self.faults.items():
            text.show_text(faults.get(name, ""))

    # --- private

    def _amount(self, name: str, low: float, high: float, step: float, unit: str) -> QDoubleSpinBox:
        box = QDoubleSpinBox()
        box.setRange(low, high)
        box.setSingleStep(step)
        box.setDecimals(2)
        box.setSuffix(unit)
        box.setMinimumWidth(104)
        return named(box, name, f"{name} of the operation")

    def _offer_names(self) -> None:
        blind = {name: reach.words for name, reach in self._reaches.items() if reach.blind}
        self.what.offer(() if self._genes is None else self._genes.symbols.tolist(), self._programs, blind=blind)

    def _offer(self) -> None:
        selected, groups, profiles = self._known
        value = self._value
        by_profile = value.target_profile is not None
        chosen = ("profile", value.target_profile) if by_profile else ("spots", value.target_spots)
        self.target.offer(chosen, selected, groups, profiles)
        self.group_a.offer(("spots", value.group_a), selected, groups)
        self.group_b.offer(("spots", value.group_b), selected, groups)

    def _named(self, text: str) -> None:
        if self._genes is None:
            return
        genes, programs, fault = parse_names(text, self._genes, self._programs)
        self.faults["what"].show_text(fault)
        if not fault:
            self._change(genes=genes, programs=programs)

    def _target_picked(self, data: tuple[str, Any]) -> None:
        if data == _FILE:
            path, _ = QFileDialog.getOpenFileName(self, "Choose a profile", "", PROFILES)
            self.setValue(self._value)
            if path:
                self.profileRequested.emit(path)
        elif data[0] == "profile":
            self._change(target_profile=data[1], target_spots=())
        else:
            self._change(target_profile=None, target_spots=data[1])

    def _change(self, **changes: Any) -> None:
        value = replace(self._value, **changes)
        if value != self._value:
            self.setValue(value)
            self.valueChanged.emit(value)
