"""Small parts shared by the panels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from magicgui.widgets import create_widget
from pydantic import BaseModel
from qtpy.QtCore import QObject, QStringListModel, Qt, Signal
from qtpy.QtGui import QAction, QGuiApplication
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QCompleter,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QLineEdit,
    QListWidget,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import qthrottled, signals_blocked

# contrast with the background of napari's dark and light theme is at least 4.5 : 1 for each
COLOURS = {
    True: {"info": "#c8ccd2", "warning": "#f0b35a", "error": "#ff8f80", "quiet": "#a9aeb6"},
    False: {"info": "#33383f", "warning": "#7a4d00", "error": "#a8201a", "quiet": "#555b63"},
}


LINK = {True: "#8cc4ff", False: "#0a5fb4"}
"""Colour of links, and of the border of the focused control, in the dark and in the light theme."""


class Connections:
    """Connections to undo when a dock closes, as state and viewer outlive it."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def connect(self, signal: Any, slot: Callable[..., Any]) -> None:
        """Connect a signal to a slot without arguments."""
        signal.connect(slot, max_args=0)
        self._undo.append(partial(signal.disconnect, slot))

    def add(self, undo: Callable[[], Any]) -> None:
        """Register a function to call when the dock closes."""
        self._undo.append(undo)

    def __len__(self) -> int:
        return len(self._undo)

    def close(self) -> None:
        """Undo everything, the latest first."""
        while self._undo:
            self._undo.pop()()


def connect_state(events: Any, *shows: tuple[str, Callable[[], Any]]) -> Connections:
    """Connect fields of a state, now and whenever they change; ``shows`` are (fields parted by spaces, slot)."""
    connections = Connections()
    for names, show in shows:
        for name in names.split():
            connections.connect(getattr(events, name), show)
        show()
    return connections


PACE_MS = 2000
"""Minimum milliseconds between two updates of progress: with software rendering each repaint takes time from the work itself."""


def paced(parent: QWidget, show: Callable[[], Any], under_way: Callable[[], bool]) -> Callable[[], None]:
    """Return a slot that shows progress at that pace during work, and at once when it begins and ends."""
    soon = qthrottled(show, timeout=PACE_MS, parent=parent)

    def tell() -> None:
        (soon if under_way() else show)()

    return tell


@contextmanager
def blocked(*controls: Any) -> Iterator[None]:
    """Block the signals of controls while they are set."""
    with ExitStack() as stack:
        for control in controls:
            stack.enter_context(signals_blocked(control))
        yield


def named(widget: Any, name: str, tip: str) -> Any:
    """Set the accessible name and the tooltip of a control; return it."""
    widget.setAccessibleName(name)
    widget.setToolTip(tip)
    return widget


def primary(made: QPushButton) -> QPushButton:
    """Mark a button as the primary one; the dock colours it."""
    made.setProperty("primary", True)
    made.setMinimumHeight(30)
    return made


class OnceButton(QPushButton):  # type: ignore[misc,unused-ignore]
    """Button that begins work; a double click counts as one click."""

    def mouseDoubleClickEvent(self, event: Any) -> None:
        """Ignore the second press."""
        event.accept()


def button(
    text: str, name: str, tip: str, clicked: Callable[..., Any] | None = None, width: int = 0, once: bool = False
) -> QPushButton:
    """Return a button with its accessible name, tooltip, slot, and minimum width.

    With ``once`` a double click is one click: for buttons that begin work, not for those pressed many times in a row.
    """
    made: QPushButton = named((OnceButton if once else QPushButton)(text), name, tip)
    if clicked is not None:
        made.clicked.connect(clicked)
    if width:
        made.setMinimumWidth(width)
    return made


def combo(name: str, tip: str, options: Sequence[tuple[str, Any]] = (), length: int = 0) -> QComboBox:
    """Return a combo box of (label, data); ``length`` in characters keeps long labels from widening the dock."""
    made: QComboBox = named(QComboBox(), name, tip)
    if length:
        made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        made.setMinimumContentsLength(length)
    for label, data in options:
        made.addItem(label, data)
    return made


def form_of(model: type[BaseModel], **fields: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    """Return magicgui's widgets for fields of a model: the kind by the field's type, the range by its constraints.

    Each field comes with its accessible name, its tooltip, and further options of magicgui.
    """
    form = {}
    for field, (name, tip, options) in fields.items():
        info = model.model_fields[field]
        limits: dict[str, Any] = {}
        for limit in info.metadata:
            limits |= {end: getattr(limit, key) for key, end in (("ge", "min"), ("le", "max")) if hasattr(limit, key)}
            if hasattr(limit, "lt"):
                limits["max"] = limit.lt - 1
        form[field] = create_widget(
            annotation=info.annotation, value=info.default, name=field, options={**limits, **options}
        )
        named(form[field].native, name, tip)
    return form


def without_steppers(box: Any, width: int) -> Any:
    """Turn a spin box into a plain number of a fixed width, without plus and minus; return it.

    ``NoButtons`` does not do it: napari's style sheet keeps the room of the buttons, which then covers the number.
    """
    box.setFixedWidth(width)
    box.setStyleSheet(
        "QAbstractSpinBox { padding: 2px 4px; min-width: 20px; }"
        "QAbstractSpinBox::up-button, QAbstractSpinBox::down-button { width: 0; height: 0; border: none; }"
        "QAbstractSpinBox::up-arrow, QAbstractSpinBox::down-arrow { width: 0; height: 0; image: none; }"
    )
    return box


def column(*parts: QWidget | QLayout, spacing: int = 6) -> QVBoxLayout:
    """Stack widgets and layouts."""
    layout = QVBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    _fill(layout, parts)
    return layout


def row(*parts: QWidget | QLayout, stretch: int | None = 0) -> QHBoxLayout:
    """Put widgets and layouts in a row; part number ``stretch`` takes the remaining room, or all equally."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(6)
    _fill(layout, parts)
    for place in range(len(parts)):
        layout.setStretch(place, int(stretch is None or place == stretch))
    return layout


def _fill(layout: Any, parts: Sequence[QWidget | QLayout]) -> None:
    for part in parts:
        (layout.addLayout if isinstance(part, QLayout) else layout.addWidget)(part)


def boxed(layout: QLayout) -> QWidget:
    """Wrap a layout into a widget, to show and hide it as one."""
    widget = QWidget()
    widget.setLayout(layout)
    return widget


def fit_lines(box: QListWidget, count: int, most: int, least_px: int = 18) -> None:
    """Set the height of a list to its lines, at most ``most``."""
    box.setFixedHeight(min(max(count, 1), most) * max(box.sizeHintForRow(0), least_px) + 6)


def labelled(*pairs: tuple[str, QWidget | QLayout]) -> QGridLayout:
    """Put labels in a column and their controls in the next, which takes the remaining room."""
    layout = QGridLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setHorizontalSpacing(8)
    layout.setVerticalSpacing(4)
    layout.setColumnStretch(1, 1)
    for place, (label, control) in enumerate(pairs):
        layout.addWidget(QLabel(label), place, 0)
        (layout.addLayout if isinstance(control, QLayout) else layout.addWidget)(control, place, 1)
    return layout


CONTROLS = {
    "mpp": "µm per pixel",
    "fullres": "Slide image",
    "predicted-units": "Units",
    "tissue-fraction": "On tissue",
    "allow-gene-mismatch": "Run although genes are missing",
}
"""Options of the command line -> the dock's control."""


def in_dock(text: str) -> str:
    """Replace the command line's options and Python's arguments in a message by the dock's controls."""
    for option, control in CONTROLS.items():
        text = re.sub(
            rf"(?:\b(?:with|as) )?--{option}\b(?: [A-Z]+\b| \d+)?(?: \((?:[a-z_]+=[^)]*|its [a-z_]+)\))?",
            f"under '{control}'",
            text,
        )
    text = re.sub(r"(give|giving|or) under 'Run", r"\1 switch on 'Run", text).replace("give switch on", "switch on")
    text = re.sub(
        r" \((?=[^()]*(?:--[a-z]|\b[a-z_]+=(?!\d)))[^()]*\)", "", text
    )  # what is left has no control of its own
    return re.sub(r" with --[a-z-]+(?: [A-Z]+\b)?", "", text)


class Text(QLabel):  # type: ignore[misc,unused-ignore]
    """Wrapped text that is hidden when it is empty."""

    def __init__(self, kind: str = "info", text: str = "", style: str = "") -> None:
        super().__init__()
        self.kind, self._style = kind, style
        self._dark = True
        self._link = ""
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setIndent(0)
        copy = QAction("Copy", self)
        copy.triggered.connect(lambda: QGuiApplication.clipboard().setText(self.plain()))
        self.addAction(copy)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.show_text(text)

    def show_text(self, text: str, kind: str | None = None) -> None:
        """Show a text, in the colour of its kind: info, quiet, warning or error."""
        self.kind, self._link = kind or self.kind, ""
        text = in_dock(re.sub(r"\bum\b", "µm", text))
        # long paths have no place to break: zero-width spaces after the separators make some
        self.setText(text.replace("/", "/\u200b").replace("_", "_\u200b"))
        self.setVisible(bool(text))
        self.use_theme(self._dark)

    def show_link(self, url: str, before: str = "", after: str = "") -> None:
        """Show an address by its host, with text around it; a click opens it in the browser."""
        host = url.split("//")[-1].split("/")[0]
        self._link = f'{before}<a href="{url}">{host}</a>{after}' if url else ""
        self.setTextFormat(Qt.TextFormat.RichText)
        self.setOpenExternalLinks(True)
        self.setVisible(bool(url))
        self.use_theme(self._dark)

    def plain(self) -> str:
        """Return the text as given."""
        return str(self.text()).replace("\u200b", "")

    def use_theme(self, dark: bool) -> None:
        """Take the colours of a dark or light theme."""
        self._dark = dark
        if self._link:  # Qt's own blue cannot be read on a dark ground
            self.setText(self._link.replace("<a ", f'<a style="color: {LINK[dark]}" '))
        style = f"color: {COLOURS[dark][self.kind]};{self._style}"
        if style != self.styleSheet():
            self.setStyleSheet(style)


class Scrolled(QScrollArea):  # type: ignore[misc,unused-ignore]
    """Text that takes the height of its lines, and scrolls beyond ``lines``."""

    def __init__(self, text: Text, lines: int) -> None:
        super().__init__()
        self._text, self._lines = text, lines
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(text)
        self.fit()

    def resizeEvent(self, event: Any) -> None:
        """Adapt the height to the width, by which lines are wrapped."""
        super().resizeEvent(event)
        self.fit()

    def fit(self) -> None:
        """Set the height to that of the text; 0 for an empty one."""
        text, line = self._text, self._text.fontMetrics().lineSpacing()
        self.setVisible(bool(text.text()))
        needed, most = max(text.heightForWidth(self.width()), line), self._lines * line + 6
        bar = Qt.ScrollBarPolicy  # as needed, it stays after a long text, which the next then lacks the width of
        self.setVerticalScrollBarPolicy(bar.ScrollBarAlwaysOff if needed <= most else bar.ScrollBarAlwaysOn)
        self.setFixedHeight(min(needed, most))


class Fold(QWidget):  # type: ignore[misc,unused-ignore]
    """Titled part that can be folded; its content takes the height that its wrapped texts need."""

    unfolded_changed = Signal(bool)

    def __init__(self, title: str, content: QWidget, unfolded: bool = True, inner: bool = False) -> None:
        super().__init__()
        self.content = content
        self._button = QToolButton()
        self._button.setText(title)
        self._button.setCheckable(True)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        weight = "normal" if inner else "bold"
        self._button.setStyleSheet(
            f"QToolButton {{ font-weight: {weight}; text-align: left; border: none; padding: 2px 0; }}"
        )
        named(self._button, f"{title}, fold or unfold", f"Fold or unfold: {title}")
        self._button.toggled.connect(self._toggled)
        layout = column(self._button, content, spacing=2)
        content.setContentsMargins(0 if inner else 8, 0, 0, 0)
        self.setLayout(layout)
        self._button.setChecked(unfolded)
        self._toggled(unfolded)

    def show_title(self, title: str) -> None:
        """Show another title."""
        self._button.setText(title)

    def unfold(self, on: bool = True) -> None:
        """Show or hide the content."""
        self._button.setChecked(on)

    @property
    def unfolded(self) -> bool:
        """Whether the content is shown."""
        return bool(self._button.isChecked())

    def _toggled(self, on: bool) -> None:
        self._button.setArrowType(Qt.ArrowType.DownArrow if on else Qt.ArrowType.RightArrow)
        self.content.setVisible(on)
        self.unfolded_changed.emit(on)


class Lens(QWidget):  # type: ignore[misc,unused-ignore]
    """Form of a value, which shows and emits what the user changes."""

    valueChanged = Signal(object)
    _value: Any

    def value(self) -> Any:
        """Return what the form says."""
        return self._value

    def setValue(self, value: Any) -> None:
        """Show a value."""
        raise NotImplementedError

    def _change(self, **changes: Any) -> None:
        value = replace(self._value, **changes)
        if value != self._value:
            self.setValue(value)
            self.valueChanged.emit(value)


class Choice(QWidget):  # type: ignore[misc,unused-ignore]
    """Group of buttons of which one is down."""

    chosen = Signal(str)

    def __init__(self, options: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self._buttons: dict[str, QPushButton] = {}
        self._group = group = QButtonGroup(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        for key, label, tip in options:
            one = button(label, label, tip, lambda _=False, key=key: self.chosen.emit(key), width=40)
            one.setCheckable(True)
            one.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            one.setMinimumHeight(26)
            group.addButton(one)
            layout.addWidget(one)
            self._buttons[key] = one

    def value(self) -> str:
        """Return the key of the button that is down."""
        return next((key for key, button in self._buttons.items() if button.isChecked()), "")

    def setValue(self, key: str) -> None:
        """Press a button without a signal; an unknown key releases all."""
        self._group.setExclusive(key in self._buttons)
        for name, button in self._buttons.items():
            button.setChecked(name == key)

    def button(self, key: str) -> QPushButton:
        """Return a button, for tests and shortcuts."""
        return self._buttons[key]


def ask_what_to_read(parent: QWidget, title: str, kinds: str, place: str = "") -> str:
    """Ask for a file to read, beginning at a place; empty where none was chosen."""
    return str(QFileDialog.getOpenFileName(parent, title, place, kinds)[0])


def ask_where_to_write(parent: QWidget, title: str, kinds: str) -> str:
    """Ask for a file to write; a name without an ending gets that of the kind, and is asked about again where such a file exists."""
    path, kind = QFileDialog.getSaveFileName(parent, title, "", kinds)
    if path and not Path(path).suffix:
        path += re.search(r"\*(\.\w+)", kind or kinds)[1]  # type: ignore[index]
        if Path(path).exists():  # the dialog asked about another name
            path, _ = QFileDialog.getSaveFileName(parent, title, path, kinds)
    return str(path)


PROGRAM, COLUMN = " (program)", " (column)"


class Names(QStringListModel):  # type: ignore[misc,unused-ignore]
    """List model of names; greyed ones cannot be chosen, and their tooltip says why."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.greyed: Mapping[str, str] = {}

    def flags(self, index: Any) -> Any:
        """Return flags that disable greyed names."""
        flags = super().flags(index)
        greyed = self.data(index, Qt.ItemDataRole.DisplayRole) in self.greyed
        return flags & ~(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable) if greyed else flags

    def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the reason as the tooltip of a greyed name."""
        if role == Qt.ItemDataRole.ToolTipRole:
            return self.greyed.get(super().data(index, Qt.ItemDataRole.DisplayRole))
        return super().data(index, role)


class NameField(QLineEdit):  # type: ignore[misc,unused-ignore]
    """Line edit with completion anywhere in a name. With ``several``, names are parted by commas."""

    changed = Signal(str)
    """Signal with the text, when a name was chosen, Return was pressed, or the field was left or emptied."""

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
        ineffective: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Offer names: the few programs and columns first. ``ineffective`` programs are greyed, each with its reason."""
        self.names.greyed = {f"{name}{PROGRAM}": reason for name, reason in ineffective.items()}
        named = [*(f"{name}{PROGRAM}" for name in sorted(programs)), *(f"{name}{COLUMN}" for name in columns)]
        self.names.setStringList([*named, *sorted(set(genes))])

    def show_text(self, text: str) -> None:
        """Show a text that was set elsewhere; unfinished typing is left alone."""
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
        """Emit the text if it differs."""
        self.setModified(False)
        if self.text() != self._told:
            self._told = self.text()
            self.changed.emit(self.text())
