"""Edits: the form of an edit, the brush, and the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFrame,
    QHeaderView,
    QLabel,
    QLineEdit,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from ...edits import Edit
from ...errors import GeneError
from ...expression.edits import Mover
from ...expression.following import ProgramReach, Reach
from ...expression.programs import ProgramNote, bundled_notes, known_programs
from ...types import Genes, Section
from ..presenter import Presenter
from ..state import Brush, EditDraft
from ..strokes import parse_names, written
from .common import (
    Connections,
    Fold,
    Lens,
    NameField,
    Text,
    ask_what_to_read,
    ask_where_to_write,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    labelled,
    named,
    row,
)
from .dialogs import TableDialog
from .input import WheelGuard

OPERATIONS = (
    ("scale", "Multiply by", "Multiply normalised expression by a factor"),
    ("add", "Add", "Add to log(1 + counts per 10,000); a negative number takes away, never below zero"),
    ("set_quantile", "Set to quantile", "Set to this quantile of the section's own spots"),
    ("knock_out", "Knock out", "Set to zero"),
    ("towards", "Move towards", "Move towards the mean of other spots or a profile; without genes, all of them move"),
    ("swap", "Swap two groups", "Let two groups of spots change places: each moves by the difference of their means"),
)
EXAMPLES = ("ERBB2", "KRT8", "EPCAM", "COL1A1")
"""Genes that a field may name as examples, if a section has them."""
PROFILES = "Profiles (*.json *.tsv *.txt)"
_FILE = ("file", "")


class GroupField(QComboBox):  # type: ignore[misc,unused-ignore]
    """Choice of spots: the present selection or a named one; optionally of profiles."""

    picked = Signal(object)
    """Signal (kind, value): ``spots`` with ids, ``profile`` with a name, or ``file``."""

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
        """Offer selections and profiles, the chosen one first."""
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


def percent_slider(name: str, tip: str) -> QSlider:
    """Return a slider from 0 to 100."""
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(0, 100)
    slider.setPageStep(10)
    slider.setMinimumWidth(60)
    return named(slider, name, tip)


class DraftForm(Lens):
    """Form of an `EditDraft`."""

    profileRequested = Signal(str)
    """Signal with the path of a profile's file to read and choose."""

    def __init__(self) -> None:
        super().__init__()
        self._value = EditDraft()
        self._genes: Genes | None = None
        self._programs: tuple[str, ...] = ()
        self._known: tuple[Any, ...] = ((), {}, ())
        self._notes: Mapping[str, ProgramNote] = {}
        self._reaches: Mapping[str, ProgramReach] = {}
        self.presets = combo("Start from", "Fill the form with an edit that this checkpoint can show", length=8)
        self._presets: list[tuple[str, str, dict[str, Any]]] = []
        self.what = NameField(several=True)
        named(self.what, "Genes and programs", "What is changed: genes and programs, separated by commas")
        options = [(label, key) for key, label, _ in OPERATIONS]
        self.operation = combo("Operation", "How their expression is changed", options)
        for place, (*_, tip) in enumerate(OPERATIONS):
            self.operation.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        self.amounts = {
            "factor": self._amount("Factor", 0, 1000, 0.5, " ×"),
            "log_units": self._amount("Log units", -10, 10, 0.25, " log"),
            "quantile": self._amount("Quantile", 0, 1, 0.05, ""),
        }
        self.follow = named(
            QCheckBox("What varies with it follows"),
            "What varies with it follows",
            "Other genes, and the depth of spots, change as they covary with these genes in this section; covariation is not causation",
        )
        self.target = GroupField("Target", "The spots or the profile that the expression moves towards")
        self.group_a = GroupField("First group", "Spots that change places with the second group")
        self.group_b = GroupField("Second group", "Spots that change places with the first group")
        self.faults = {"what": Text("error"), "target": Text("error")}
        self.about = Text("quiet")
        self._groups = boxed(labelled(("First", self.group_a), ("Second", self.group_b)))
        self._target = boxed(row(QLabel("to"), self.target, stretch=1))
        how = row(self.operation, *self.amounts.values())
        parts = (self.presets, self.what, self.faults["what"], self.about, how, self.follow)
        self.setLayout(column(*parts, self._target, self._groups, self.faults["target"], spacing=4))
        self.presets.activated.connect(self._preset_chosen)
        self.what.changed.connect(self._named)
        self.operation.activated.connect(lambda _: self._change(operation=self.operation.currentData()))
        for field, box in self.amounts.items():
            box.valueChanged.connect(lambda value, field=field: self._change(**{field: round(value, 4)}))
        self.follow.toggled.connect(lambda on: self._change(follow="section" if on else "none"))
        self.target.picked.connect(self._target_picked)
        self.group_a.picked.connect(lambda data: self._change(group_a=data[1]))
        self.group_b.picked.connect(lambda data: self._change(group_b=data[1]))
        self.setValue(EditDraft())

    # --- value

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
        known = [name for name in value.programs if name in self._notes]
        said = [f"{name}: {self._notes[name].about}." for name in known]
        said += [f"{name}: {self._reaches[name].words}." for name in value.programs if name in self._reaches]
        self.about.show_text("\n".join(said))
        self.about.setToolTip("\n".join(f"{name}: {self._notes[name].source}" for name in known))

    # --- what is known

    def show_section(self, section: Section | None) -> None:
        """Offer a section's genes."""
        self._genes = None if section is None else section.spots.genes
        self._offer_names()

    def show_programs(
        self, programs: Sequence[str], notes: Mapping[str, ProgramNote], reaches: Mapping[str, ProgramReach]
    ) -> None:
        """Offer programs with origin and reach; those without effect are greyed."""
        self._programs, self._notes, self._reaches = tuple(programs), notes, reaches
        self._offer_names()
        self.setValue(self._value)

    def show_groups(
        self, selected: Sequence[str], groups: Mapping[str, Sequence[str]], profiles: Sequence[str]
    ) -> None:
        """Offer spots and profiles to move towards or to swap."""
        self._known = (selected, groups, profiles)
        self._offer_presets()
        self._offer()

    def show_faults(self, faults: Mapping[str, str]) -> None:
        """Show faults, each beside its field."""
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
        self._offer_presets()
        ineffective = {name: reach.words for name, reach in self._reaches.items() if reach.ineffective}
        self.what.offer(
            () if self._genes is None else self._genes.symbols.tolist(), self._programs, ineffective=ineffective
        )

    def _offer_presets(self) -> None:
        """Offer edits that work here: towards the checkpoint's profiles, and more of each program; those without effect last and greyed."""
        ineffective = {name: reach.words for name, reach in self._reaches.items() if reach.ineffective}
        none: dict[str, Any] = {"genes": (), "programs": ()}
        towards = {**none, "operation": "towards", "target_spots": ()}
        more = {**none, "operation": "add", "log_units": 1.5}
        entries = [(f"towards {name}", "", {**towards, "target_profile": name}) for name in self._known[2]]
        for name in sorted(self._programs, key=lambda name: (name in ineffective, name)):
            entries.append((f"more {name}", ineffective.get(name, ""), {**more, "programs": (name,)}))
        symbols = () if self._genes is None else self._genes.symbols.tolist()
        known = [name for name in EXAMPLES if name in symbols] or list(symbols[:1])
        effective = [name for name in sorted(self._programs) if name not in ineffective]
        example = ", ".join((*effective[:1], *known[:1]))
        self.what.setPlaceholderText("genes and programs" + (f", e.g. {example}" if example else ""))
        if entries == self._presets:
            return
        self._presets = entries
        self.presets.clear()
        self.presets.addItem("Start from an example…")
        for place, (label, reason, _) in enumerate(entries, start=1):
            self.presets.addItem(label)
            if reason:
                self.presets.model().item(place).setEnabled(False)
                self.presets.setItemData(place, reason, Qt.ItemDataRole.ToolTipRole)

    def _preset_chosen(self, place: int) -> None:
        self.presets.setCurrentIndex(0)
        if place:
            self._change(**self._presets[place - 1][2])

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
            path = ask_what_to_read(self, "Choose a profile", PROFILES)
            self.setValue(self._value)
            if path:
                self.profileRequested.emit(path)
        elif data[0] == "profile":
            self._change(target_profile=data[1], target_spots=())
        else:
            self._change(target_profile=None, target_spots=data[1])


TABLE = "Tables (*.csv)"
TABLES = "Tables (*.h5ad *.csv *.tsv *.txt)"
YAML = "Edits (*.yaml *.yml)"


class BrushForm(Lens):
    """Form of a `Brush`."""

    def __init__(self) -> None:
        super().__init__()
        self._value = Brush()
        self.radius = QDoubleSpinBox()
        self.radius.setRange(1, 5000)
        self.radius.setDecimals(0)
        self.radius.setSingleStep(25)
        named(self.radius, "Brush radius", "Radius of the brush on the tissue; [ and ] change it")
        self.softness = percent_slider("Softness", "Part of the radius over which the weight falls to zero")
        self.strength = percent_slider(
            "Brush strength", "Weight of one stroke; each further stroke adds the same share of what is left"
        )
        self.erase = named(QCheckBox("Erase"), "Erase", "Erase instead of painting; Alt does the same while it is held")
        self.radius.valueChanged.connect(lambda value: self._change(radius_um=float(value)))
        self.softness.valueChanged.connect(lambda value: self._change(softness=value / 100))
        self.strength.valueChanged.connect(lambda value: self._change(strength=value / 100))
        self.erase.toggled.connect(lambda on: self._change(erase=on))
        shape = row(QLabel("Soft"), self.softness, QLabel("Strength"), self.strength)
        shape.setStretch(0, 0)
        for place in (1, 3):
            shape.setStretch(place, 1)
        self.setLayout(column(row(QLabel("Brush"), self.radius, self.erase, stretch=1), shape, spacing=4))
        self.show_unit(True)
        self.setValue(Brush())

    def setValue(self, value: Brush) -> None:
        """Show a brush."""
        self._value = value
        with blocked(self.radius, self.softness, self.strength, self.erase):
            self.radius.setValue(value.radius_um)
            self.softness.setValue(round(100 * value.softness))
            self.strength.setValue(round(100 * value.strength))
            self.erase.setChecked(value.erase)

    def show_unit(self, calibrated: bool) -> None:
        """Show the unit of the radius."""
        self.radius.setSuffix(" µm" if calibrated else " px")


class EditRow(QFrame):  # type: ignore[misc,unused-ignore]
    """Edit in the list: whether it is enabled, name, strength, and a warning where some of its genes have no effect."""

    def __init__(self, edits: EditList, number: int) -> None:
        super().__init__()
        self._edits, self.number = edits, number
        self._chosen: bool | None = None
        place = f"Edit {number + 1}"
        self.eye = named(QCheckBox(), f"{place}: on", "Whether this edit is applied")
        self.name = named(
            QLineEdit(), f"{place}: name", "Name of the edit; click to choose the edit, type to rename it"
        )
        self.name.setFrame(False)
        self.name.setMinimumWidth(50)
        self.mark = QLabel("⚠")
        self.mark.setAccessibleName(f"{place}: warning")
        self.strength = percent_slider(f"{place}: strength", "How strongly the edit acts, 0 to 100 %")
        self.strength.setFixedWidth(60)
        self.percent = QLabel()
        self.percent.setFixedWidth(50)
        self.percent.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        layout = row(self.eye, self.name, self.mark, self.strength, self.percent, stretch=1)
        layout.setContentsMargins(4, 2, 4, 2)
        self.setLayout(layout)
        self.eye.toggled.connect(lambda on: edits.enabledChanged.emit(number, on))
        self.name.editingFinished.connect(self._rename)
        self.strength.valueChanged.connect(lambda value: edits.strengthChanged.emit(number, value / 100))
        self.name.installEventFilter(self)
        WheelGuard(self).watch(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Choose the edit whose name is clicked."""
        if event.type() == QEvent.Type.FocusIn:
            self._edits.picked.emit(self.number)
        return False

    def mousePressEvent(self, event: Any) -> None:
        """Choose the edit that is clicked."""
        self._edits.picked.emit(self.number)

    def show_edit(self, edit: Edit, chosen: bool, warning: str) -> None:
        """Show an edit."""
        with blocked(self.eye, self.name, self.strength):
            self.eye.setChecked(edit.enabled)
            if not (self.name.hasFocus() and self.name.isModified()):
                self.name.setText(edit.name or edit.operation)
                self.name.setCursorPosition(0)
            if round(100 * edit.strength) != self.strength.value():
                self.strength.setValue(round(100 * edit.strength))
        self.percent.setText(f"{100 * edit.strength:.0f} %")
        self.mark.setVisible(bool(warning))
        self.mark.setToolTip(warning)
        if chosen != self._chosen:  # a style sheet is costly: Qt polishes everything under it anew
            self._chosen = chosen
            tint = "rgba(255, 158, 0, 60)" if chosen else "transparent"
            self.setStyleSheet(
                f"EditRow {{ background: {tint}; border-radius: 3px; }}"
                "QLineEdit, QLabel, QCheckBox { background: transparent; }"
            )

    def _rename(self) -> None:
        if self.name.isModified():
            self.name.setModified(False)
            self._edits.renamed.emit(self.number, self.name.text())


class EditList(QWidget):  # type: ignore[misc,unused-ignore]
    """List of edits. Rows are kept while it changes, so that a slider can be dragged."""

    picked = Signal(int)
    enabledChanged = Signal(int, bool)
    renamed = Signal(int, str)
    strengthChanged = Signal(int, float)

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[EditRow] = []
        self._rows = column(spacing=1)
        self.setLayout(self._rows)

    def show_edits(self, edits: Sequence[Edit], chosen: int | None, warnings: Sequence[str]) -> None:
        """Show edits, in the order in which they are applied."""
        while len(self.rows) > len(edits):
            gone = self.rows.pop()
            self._rows.removeWidget(gone)
            gone.hide()
            gone.deleteLater()
        while len(self.rows) < len(edits):
            self.rows.append(EditRow(self, len(self.rows)))
            self._rows.addWidget(self.rows[-1])
        for number, (line, edit, warning) in enumerate(zip(self.rows, edits, warnings, strict=True)):
            line.show_edit(edit, number == chosen, warning)
        self.setVisible(bool(edits))


class EditsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """The form, the brush and the list, with their actions."""

    def __init__(self) -> None:
        super().__init__()
        self._offered: tuple[Any, ...] = ()
        self.form, self.brush, self.list = DraftForm(), BrushForm(), EditList()
        small = partial(button, width=36)
        self.paint = small("Paint", "Paint with the brush", "Paint the edit over spots with the mouse. Ctrl+4")
        self.paint.setCheckable(True)
        self.to_selected = small("To selected", "Apply to selected spots", "Add this edit for the selected spots")
        self.to_all = small("To all", "Apply to all spots", "Add this edit for every spot")
        self.new = small("New", "New edit", "Begin a new edit with form and brush; the chosen one stays as it is")
        self.spots = small("Spots", "Select its spots", "Select the spots that the chosen edit changes")
        self.up = small("↑", "Move the edit up", "Edits are applied from the top")
        self.down = small("↓", "Move the edit down", "Edits are applied from the top")
        self.delete = small("Delete", "Delete the edit", "Remove the chosen edit from the list")
        self.undo = small("↶", "Undo", "Undo the last change of the edits. Ctrl+Z")
        self.redo = small("↷", "Redo", "Redo what was undone. Ctrl+Shift+Z")
        self.load = small("Load…", "Load edits", "Read edits from a YAML file")
        self.save = small("Save…", "Save edits", "Write the edits into a YAML file, for 'stmdit synthesize --edits'")
        self.sets = small("GMT…", "Import gene sets", "Add the gene sets of a GMT file to the programs")
        self.table = small(
            "Table…",
            "Edit from a table",
            "Add what another tool predicts for these spots: .h5ad, or CSV of spots by genes",
        )
        self.keep = small("Profile…", "Save a profile", "Write the mean expression of the selected spots, as a target")
        self.movers = named(
            QTableWidget(0, 3),
            "Genes that move most",
            "Mean log(1 + counts per 10,000) over the spots that the edits act on, as measured and after all edits",
        )
        self.movers.setHorizontalHeaderLabels(["gene", "before", "after"])
        self.movers.verticalHeader().hide()
        self.movers.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.movers.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.movers.setFixedHeight(160)
        self.save_movers = small("CSV…", "Save the genes that move most", "Write this table as a CSV file")
        self.warning = Text("warning")
        self.live = named(
            QCheckBox("Live"),
            "Live",
            "Show what the edits make of this tissue while you paint and drag strengths: a preview, coarse first; Run makes the result",
        )
        self.live_line = Text("quiet")
        self._lay_out()
        self.show_edits((), None, ())
        self.show_undoable((False, False))

    def _lay_out(self) -> None:
        order = row(self.new, self.spots, self.delete, self.up, self.down, self.undo, self.redo, stretch=None)
        for place, one in enumerate((self.up, self.down, self.undo, self.redo), start=3):
            one.setFixedWidth(28)
            order.setStretch(place, 0)
        order.setSpacing(3)
        files = column(
            row(self.load, self.save, stretch=None), row(self.sets, self.table, self.keep, stretch=None), spacing=3
        )
        self.order = boxed(order)
        most = boxed(column(self.movers, row(self.save_movers, stretch=None)))
        self.moving = Fold("Genes that move most", most, unfolded=False, inner=True)
        self.files = Fold("Files of edits, gene sets and profiles", boxed(files), unfolded=False, inner=True)
        apply, live = (
            row(self.paint, self.to_selected, self.to_all, stretch=None),
            row(self.live, self.live_line, stretch=1),
        )
        listed = (self.list, self.order, self.warning, self.moving, self.files)
        self.setLayout(column(self.form, apply, self.brush, live, *listed, spacing=4))

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, painting, files = presenter.state, presenter.painting, presenter.edit_files

        def chosen(do: Callable[[int], None]) -> None:
            if state.chosen_edit is not None:
                do(state.chosen_edit)

        self.form.valueChanged.connect(painting.take_draft)
        self.form.profileRequested.connect(files.import_profile)
        self.brush.valueChanged.connect(presenter.set_brush)
        self.paint.clicked.connect(lambda on: presenter.use_tool("brush" if on else "click"))
        self.live.toggled.connect(lambda on: setattr(state, "live", on))
        self.to_selected.clicked.connect(lambda: painting.add(state.selected))
        self.to_all.clicked.connect(lambda: painting.add(None))
        self.new.clicked.connect(lambda: painting.choose(None))
        self.spots.clicked.connect(lambda: presenter.select_edited())
        self.up.clicked.connect(lambda: chosen(lambda number: painting.move(number, -1)))
        self.down.clicked.connect(lambda: chosen(lambda number: painting.move(number, 1)))
        self.delete.clicked.connect(lambda: chosen(painting.delete))
        self.undo.clicked.connect(lambda: painting.undo())
        self.redo.clicked.connect(lambda: painting.redo())
        self.list.picked.connect(lambda number: None if number == state.chosen_edit else painting.choose(number))
        self.list.enabledChanged.connect(painting.set_enabled)
        self.list.renamed.connect(painting.rename)
        self.list.strengthChanged.connect(painting.set_strength)
        for clicked, ask, title, kinds, do in (
            (self.load.clicked, self._open, "Load edits", YAML, files.load),
            (self.sets.clicked, self._open, "Import gene sets", "Gene sets (*.gmt)", files.import_gmt),
            (self.save.clicked, self.write, "Save edits", YAML, files.save),
            (self.keep.clicked, self.write, "Save a profile", PROFILES, files.export_profile),
            (self.save_movers.clicked, self.write, "Save the genes that move most", TABLE, files.export_movers),
        ):
            clicked.connect(lambda _=False, ask=ask, title=title, kinds=kinds, do=do: ask(title, kinds, do))

        def import_table(path: str) -> None:
            try:
                ask = TableDialog(self, path)
            except GeneError as error:
                state.tell("error", str(error))
                return
            if ask.exec():
                files.import_table(path, *ask.value())

        self.table.clicked.connect(lambda: self._open("Edit from a table", TABLES, import_table))

        def show_section() -> None:
            section = state.section
            self.form.show_section(section)
            self.brush.show_unit(section is None or section.calibration.mpp is not None)
            self.setEnabled(section is not None)

        def show_programs() -> None:
            programs = tuple(known_programs(state.request.programs))
            wanted = (programs, state.section, state.checkpoint)
            if wanted != self._offered:  # reaches take time, and edits change often
                self._offered = wanted
                notes = {name: note for name, note in bundled_notes().items() if name not in state.request.programs}
                self.form.show_programs(programs, notes, painting.program_reaches())

        def show_movers() -> None:
            if self.moving.unfolded:
                self.show_movers(painting.movers())

        self.moving.unfolded_changed.connect(lambda on: show_movers())
        return connect_state(
            state.events,
            ("section", show_section),
            ("section request checkpoint", show_programs),
            ("section request checkpoint", show_movers),
            (
                "section request checkpoint selected named",
                lambda: self.form.show_groups(state.selected, state.named, painting.profile_names()),
            ),
            (
                "request chosen_edit checkpoint section",
                lambda: self.show_edits(painting.edits, state.chosen_edit, painting.reaches()),
            ),
            ("draft", lambda: self.form.setValue(state.draft)),
            ("live", lambda: self.live.setChecked(state.live)),
            ("live_text", lambda: self.live_line.show_text(state.live_text)),
            ("draft_faults", lambda: self.form.show_faults(state.draft_faults)),
            ("brush", lambda: self.brush.setValue(state.brush)),
            ("undoable", lambda: self.show_undoable(state.undoable)),
            ("selected draft", lambda: self.show_selected(len(state.selected), state.draft)),
            ("tool", lambda: self.show_tool(state.tool)),
        )

    # --- what is known

    def show_edits(self, edits: Sequence[Edit], chosen: int | None, reaches: Sequence[Reach]) -> None:
        """Show the list, and the chosen edit's genes without effect."""
        warnings = [reach.warning for reach in reaches]
        self.list.show_edits(edits, chosen, warnings)
        known = chosen is not None and chosen < len(edits)
        self.warning.show_text(warnings[chosen] if known and chosen is not None else "")
        for one in (self.new, self.spots, self.up, self.down, self.delete):
            one.setEnabled(known)
        self.save.setEnabled(bool(edits))
        self.moving.setVisible(bool(edits))
        self._show_order()

    def _show_order(self) -> None:
        """Show the actions on edits once there is one, or one to redo."""
        self.order.setVisible(bool(self.list.rows) or self.undo.isEnabled() or self.redo.isEnabled())

    def show_tool(self, tool: str) -> None:
        """Show the brush while it is the tool."""
        self.paint.setChecked(tool == "brush")
        self.brush.setVisible(tool == "brush")

    def show_movers(self, movers: Sequence[Mover]) -> None:
        """Show the genes that the edits move most."""
        self.movers.setRowCount(len(movers))
        for place, mover in enumerate(movers):
            for at, text in enumerate((mover.gene, f"{mover.before:.2f}", f"{mover.after:.2f}")):
                self.movers.setItem(place, at, QTableWidgetItem(text))
        self.save_movers.setEnabled(bool(movers))

    def show_undoable(self, undoable: tuple[bool, bool]) -> None:
        """Enable undo and redo."""
        self.undo.setEnabled(undoable[0])
        self.redo.setEnabled(undoable[1])
        self._show_order()

    def show_selected(self, count: int, draft: EditDraft) -> None:
        """Offer the actions for the form's edit; a swap names its own spots."""
        swap = draft.operation == "swap"
        self.paint.setEnabled(not swap)
        self.to_selected.setVisible(not swap)
        self.to_selected.setEnabled(count > 0)
        self.to_all.setText("Swap" if swap else "To all")
        self.keep.setEnabled(count > 0)

    # --- private

    def _open(self, title: str, kinds: str, do: Callable[[str], None]) -> None:
        if path := ask_what_to_read(self, title, kinds):
            do(path)

    def write(self, title: str, kinds: str, do: Callable[[str], None]) -> None:
        """Ask for a file to write, and do it."""
        if path := ask_where_to_write(self, title, kinds):
            do(path)
