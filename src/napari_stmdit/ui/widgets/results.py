"""Results of this viewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QModelIndex, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFont, QIcon, QImage, QPainter, QPalette, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QMessageBox,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from ...evaluation.selection import EditEffect
from ...synthesis.result import ExportKind
from ...tissue.spatialdata_store import is_spatialdata
from ..presenter import Presenter
from ..state import ResultEntry
from .common import Connections, Fold, Text, blocked, boxed, button, column, connect_state, named, paced, row
from .dialogs import FigureDialog

NUMBER, TITLE, FACTS = (Qt.ItemDataRole.UserRole + k for k in range(3))
MAX_PX = 172
"""Maximum height of the list in pixels: the step fits a laptop's screen."""
CARD_PX, ICON_PX = 46, 40
EXPORTS: tuple[tuple[ExportKind, str, str, str], ...] = (
    ("ome-zarr", "OME-Zarr…", "Export as OME-Zarr", "OME-Zarr (*.zarr)"),
    ("ome-tiff", "OME-TIFF…", "Export as OME-TIFF, for QuPath and others", "OME-TIFF (*.ome.tif)"),
    ("patches", "Patches and table…", "Export every patch as PNG, with a table as CSV and Parquet", "Folder (*)"),
)


class CardDelegate(QStyledItemDelegate):  # type: ignore[misc,unused-ignore]
    """Draws a result as a card: its picture, its name, and its facts in a small line; the chosen one has room for its actions below."""

    def __init__(self, parent: Cards) -> None:
        super().__init__(parent)
        self._cards = parent

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:
        """Return the height of a card; the width is the list's."""
        below = self._cards.actions.sizeHint().height() if index == self._cards.currentIndex() else 0
        return QSize(0, CARD_PX + below)

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Draw, tick and rename in the upper part of a card, and its title in the upper line there."""
        super().initStyleOption(option, index)
        option.rect.setHeight(CARD_PX)
        option.text = f"{index.data(TITLE)}\u2028 "

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Draw the ground of the whole card, the upper part as any item of a list, and the facts."""
        style, shown = self._cards.style(), QStyleOptionViewItem(option)
        self.initStyleOption(shown, index)
        whole = QStyleOptionViewItem(shown)
        whole.rect = option.rect
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, whole, painter, self._cards)
        super().paint(painter, option, index)
        place = style.subElementRect(QStyle.SubElement.SE_ItemViewItemText, shown, self._cards).adjusted(3, 0, -3, 0)
        font, colour = QFont(option.font), QColor(shown.palette.color(QPalette.ColorRole.Text))
        font.setPointSizeF(0.85 * font.pointSizeF())
        colour.setAlphaF(0.8)
        painter.save()
        painter.setFont(font)
        painter.setPen(colour)
        text = painter.fontMetrics().elidedText(index.data(FACTS), Qt.TextElideMode.ElideRight, place.width())
        painter.drawText(place.adjusted(0, place.height() // 2, 0, 0), Qt.AlignmentFlag.AlignLeft, text)
        painter.restore()


class Cards(QListWidget):  # type: ignore[misc,unused-ignore]
    """A list of cards; the actions of the chosen one lie on it."""

    def __init__(self, actions: QWidget) -> None:
        super().__init__()
        self.actions = actions
        actions.setParent(self.viewport())
        actions.setObjectName("actions")
        actions.setStyleSheet("QWidget#actions { background: transparent; }")
        self.setItemDelegate(CardDelegate(self))
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setIconSize(QSize(ICON_PX, ICON_PX))
        self.setEditTriggers(QAbstractItemView.EditTrigger.EditKeyPressed)
        self.verticalScrollBar().valueChanged.connect(lambda _: self._place())

    def updateGeometries(self) -> None:
        """Put the actions onto the chosen card, wherever it lies now."""
        super().updateGeometries()
        self._place()

    def fit(self) -> None:
        """Take the height of the cards, up to some, and lay them out anew."""
        below = self.actions.sizeHint().height() if self.currentRow() >= 0 else 0
        self.setFixedHeight(min(max(self.count(), 1) * CARD_PX + below, MAX_PX) + 2 * self.frameWidth() + 2)
        self.doItemsLayout()
        self.scrollToItem(self.currentItem())

    def _place(self) -> None:
        card = self.visualRect(self.currentIndex())
        self.actions.setVisible(card.isValid())
        self.actions.setGeometry(card.adjusted(4, CARD_PX, -4, 0))


class ResultsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """List of results: ticked ones are visible; the chosen one is saved, run again or compared."""

    saveRequested = Signal(int, str)

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[int, ResultEntry] = {}
        self._exporting = ""
        self._changes: frozenset[int] = frozenset()
        self.save = button("Save", "Save the result", "Write the chosen result to disk", width=40)
        tip = "Run the chosen result's request as it is: the same seed, the same pixels"
        self.again = button("Run again", "Run again", tip, width=40, once=True)
        tip = "Put the chosen result's request into the form and select its spots"
        self.reuse = button("Use settings", "Use its settings", tip, width=40)
        self.delete = button("Delete", "Delete the result", "Remove the chosen result from the viewer", width=40)
        self.change = button(
            "Show the change",
            "Show the change",
            "A layer with haematoxylin of the edited tissue minus that of the slide: blue is less, orange is more",
        )
        self.change.setCheckable(True)
        self.effect = Text("info")
        self.effect.setAccessibleName("Effect of the edit")
        self.chance = button(
            "Compare with chance",
            "Compare with chance",
            "Synthesize some of its spots without the edit and with two seeds: what another seed alone changes",
            once=True,
        )
        self.table = button(
            "Save table…",
            "Save the table",
            "Write these numbers as CSV: before, after, difference, 95 % interval, chance",
        )
        self.measures, self.writing = Text("info"), Text("quiet")
        numbers = boxed(column(self.measures, row(self.chance, self.table, stretch=None), spacing=4))
        self.numbers = Fold("In numbers", numbers, unfolded=False, inner=True)
        self._menu()
        lines = row(self.save, self.delete, self.again, stretch=None), row(self.reuse, self.change, stretch=None)
        actions = column(*lines, spacing=3)
        actions.setContentsMargins(0, 0, 0, 4)
        self.list = named(
            Cards(boxed(actions)),
            "Results",
            "Tick to show a result; choose one for what can be done with it; a double click goes to it, F2 renames it",
        )
        self.setLayout(column(self.list, self.effect, self.numbers, self.writing))
        self.show_exporting("")
        self.show_results((), None)

    def _menu(self) -> None:
        menu = QMenu(self.save)
        menu.setToolTipsVisible(True)
        self.save_store = menu.addAction("Into SpatialData…")
        self.save_store.setToolTip("Write the result into a SpatialData .zarr, registered to its section")
        self.save_as = {kind: menu.addAction(label) for kind, label, _, _ in EXPORTS}
        for kind, _, tip, _ in EXPORTS:
            self.save_as[kind].setToolTip(tip)
        self.save_figure = menu.addAction("Figure…")
        self.save_figure.setToolTip("Slide, edit, result and difference side by side for a paper, as PDF, SVG or PNG")
        self.figure = FigureDialog(self)
        self.save_data_set = menu.addAction("")
        self.save.setMenu(menu)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, results = presenter.state, presenter.results

        def chosen(do: Callable[..., Any], *more: Any) -> None:
            """Call a function with the number of the chosen result, if any."""
            if (number := self.value()) is not None:
                do(number, *more)

        def edited(item: QListWidgetItem) -> None:
            entry = self._entries[int(item.data(NUMBER))]
            shown = item.checkState() == Qt.CheckState.Checked
            if shown != entry.visible:
                results.show(entry.number, shown)
            elif item.text() != entry.name:
                results.rename(entry.number, item.text())

        def choose() -> None:
            self._describe()
            state.chosen_result = self.value()

        def export(number: int, kind: ExportKind, title: str, files: str) -> None:
            word = "edited_synthetic" if self._entries[number].counterfactual else "synthetic"
            if path := self._asked(title, number, word, files):
                results.export(number, path, kind)

        def draw_figure(number: int) -> None:
            if answer := self.figure.ask(self._place(number, "figure")):
                results.draw_figure(number, *answer)

        def export_data_set(number: int) -> None:
            title = "Export a data set: a new folder, or one that was stopped, to go on"
            if self._exporting:
                presenter.data_sets.stop()
            elif path := self._asked(title, number, "dataset", "Folder (*)", QFileDialog.Option.DontConfirmOverwrite):
                presenter.data_sets.export(number, path)

        def save_table(number: int) -> None:
            if path := self._asked("Save the effect as a table", number, "effect", "Table (*.csv)"):
                presenter.effects.save(number, path if path.endswith(".csv") else f"{path}.csv")

        def show_effect() -> None:
            self.show_effects(
                state.effects, state.effect_faults, presenter.results.baseline(state.chosen_result) is not None
            )

        def delete(number: int) -> None:
            if self._may_go(number):
                results.delete(number)

        self.list.itemChanged.connect(edited)
        self.list.currentItemChanged.connect(lambda *_: choose())
        self.list.itemDoubleClicked.connect(lambda item: presenter.looking.go(int(item.data(NUMBER))))
        self.saveRequested.connect(results.save)
        self.save_store.triggered.connect(lambda _: chosen(self._save))
        for kind, _, tip, files in EXPORTS:
            self.save_as[kind].triggered.connect(
                lambda _, kind=kind, tip=tip, files=files: chosen(export, kind, tip, files)
            )
        self.save_figure.triggered.connect(lambda _: chosen(draw_figure))
        self.save_data_set.triggered.connect(lambda _: chosen(export_data_set))
        self.again.clicked.connect(lambda _: chosen(presenter.runs.run_again))
        self.reuse.clicked.connect(lambda _: chosen(presenter.reuse))
        self.delete.clicked.connect(lambda _: chosen(delete))
        self.chance.clicked.connect(lambda _: chosen(presenter.effects.compare_with_chance))
        self.table.clicked.connect(lambda _: chosen(save_table))
        self.change.clicked.connect(lambda on: chosen(presenter.changes.show, on))
        return connect_state(
            state.events,
            ("results", lambda: self.show_results(state.results, state.chosen_result)),
            ("chosen_result", lambda: self.show_chosen(state.chosen_result)),
            ("effects effect_faults chosen_result results", show_effect),
            ("changes", lambda: self.show_changes(state.changes)),
            ("exporting", paced(self, lambda: self.show_exporting(state.exporting), lambda: bool(state.exporting))),
        )

    def value(self) -> int | None:
        """Return the number of the chosen result."""
        item = self.list.currentItem()
        return None if item is None else int(item.data(NUMBER))

    def show_results(self, entries: Sequence[ResultEntry], chosen: int | None) -> None:
        """Show the results, the latest first."""
        self._entries = {entry.number: entry for entry in entries}
        with blocked(self.list):
            self._fill(entries, chosen)
        self.setEnabled(bool(entries))
        self._describe()

    def _fill(self, entries: Sequence[ResultEntry], chosen: int | None) -> None:
        self.list.clear()
        for entry in reversed(entries):
            item = QListWidgetItem(entry.name)
            item.setData(NUMBER, entry.number)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEditable)
            item.setCheckState(Qt.CheckState.Checked if entry.visible else Qt.CheckState.Unchecked)
            saved = f"Saved in {entry.saved}" if entry.saved else "Not saved yet."
            item.setToolTip(f"{entry.name}\n{summary(entry)}\n{saved}")
            item.setData(TITLE, entry.title[0])
            item.setData(FACTS, facts(entry))
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{entry.name}, {facts(entry)}")
            if entry.thumbnail is not None:
                item.setIcon(icon_of(entry.thumbnail))
            self.list.addItem(item)
            if entry.number == chosen:
                self.list.setCurrentItem(item)

    def show_chosen(self, number: int | None) -> None:
        """Mark the chosen result."""
        for place in range(self.list.count()):
            if int(self.list.item(place).data(NUMBER)) == number and self.value() != number:
                with blocked(self.list):
                    self.list.setCurrentRow(place)
        self._describe()

    def show_exporting(self, words: str) -> None:
        """Offer to write a data set, or to stop the present export."""
        self._exporting = words
        self.save_data_set.setText("Stop the data set" if words else "Data set…")
        tip = "Export synthetic and real patches with expression for Hugging Face datasets and AnnData, paired with the baseline"
        self.save_data_set.setToolTip(words or tip)
        self.writing.show_text(words)

    def show_changes(self, numbers: frozenset[int]) -> None:
        """Show which results' changes are visible."""
        self._changes = numbers
        self._describe()

    def show_effects(self, effects: Mapping[int, EditEffect], faults: Mapping[int, str], has_baseline: bool) -> None:
        """Show the effect of the chosen result's edits over all its spots."""
        entry = self._entries.get(self.value() or 0)
        edited = entry is not None and any(edit.enabled for edit in entry.request.edits)
        effect = effects.get(self.value() or 0)
        self.numbers.setVisible(effect is not None)
        self.chance.setEnabled(effect is not None and not effect.chance_spots)
        if entry is None or not edited:
            self.effect.show_text("")
        elif effect is not None:
            answer, _, more = effect.words.partition("\n")
            self.effect.show_text(answer, "info" if effect.visible else "warning")
            self.measures.show_text(more)
        elif entry.number in faults:
            self.effect.show_text(f"Its effect cannot be measured: {faults[entry.number]}", "warning")
        elif entry.counterfactual or has_baseline:
            self.effect.show_text("Measuring what the edit changes …", "quiet")
        else:
            self.effect.show_text("Compare it with its baseline to see in numbers what the edit changes.", "quiet")

    # --- private

    def _describe(self) -> None:
        entry = self._entries.get(self.value() or 0)
        self.change.setVisible(entry is not None and entry.counterfactual)
        self.change.setChecked(entry is not None and entry.number in self._changes)
        if entry is not None:
            self.save.setEnabled(entry.source is not None)
            self.save_store.setEnabled(entry.result is not None or entry.saved is None)  # others are in a store already
        self.list.fit()

    def _may_go(self, number: int) -> bool:
        if self._entries[number].saved is not None:
            return True
        text = f"{self._entries[number].name} is not saved. Delete it anyway?"
        answer = QMessageBox.question(self, "Delete the result?", text)
        return bool(answer == QMessageBox.StandardButton.Yes)

    def _save(self, number: int) -> None:
        section = self._entries[number].section
        own = None if section.store is None else section.store.root
        suggestion = own or (section.path or Path(section.name)).with_suffix(".zarr")
        path, _ = QFileDialog.getSaveFileName(
            self,
            "Save into a SpatialData store: a new one, or one to add to",
            str(suggestion),
            "SpatialData (*.zarr)",
            options=QFileDialog.Option.DontConfirmOverwrite,  # nothing is overwritten: a new element is added
        )
        if path:
            known = path.endswith(".zarr") or is_spatialdata(Path(path))
            self.saveRequested.emit(number, path if known else f"{path}.zarr")

    def _place(self, number: int, word: str) -> str:
        section = self._entries[number].section
        folder = section.path.parent if section.path is not None else Path.cwd()
        return str(folder / f"{section.name}_{word}_{number}")

    def _asked(self, title: str, number: int, word: str, files: str, *options: Any) -> str:
        place = self._place(number, word)
        path, _ = QFileDialog.getSaveFileName(self, title, place, files, **({"options": options[0]} if options else {}))
        return str(path)


def facts(entry: ResultEntry) -> str:
    """Say in a line what tells a result from others; what differs comes first."""
    which, stopped = entry.title[1], len(entry.spots) < entry.planned
    parts = [which] if which else []
    parts += [f"stopped at {len(entry.spots)} of {entry.planned}"] if stopped else []
    parts += ["saved" if entry.saved else "not saved", f"seed {entry.request.seed}"]
    return " · ".join([*parts, f"{entry.provenance.get('steps')} steps"])


def summary(entry: ResultEntry) -> str:
    """Return a few lines about how a result was made."""
    request, kept = entry.request, entry.provenance
    guidance = dict(kept.get("guidance") or {})
    state = "" if len(entry.spots) >= entry.planned else f" of {entry.planned}, stopped"
    scales = "; ".join(f"{name} {guidance[name]:g}" for name in ("expression", "morphology") if name in guidance)
    edits = [edit for edit in request.edits if edit.enabled]
    one, many = (
        ("patch", "patches") if request.mode == "spots" else ("spot of seamless tissue", "spots of seamless tissue")
    )
    what = one if len(entry.spots) == 1 and not state else many
    words = ", ".join(edit.name or edit.operation.replace("_", " ") for edit in edits[:3]) + (
        f" and {len(edits) - 3} more" if len(edits) > 3 else ""
    )
    preset = "" if request.preset == "exact" else f", preset {request.preset}"
    if entry.counterfactual:
        edit = dict(kept.get("edit") or {})
        follows = dict(edit.get("map") or {}).get("statement", "")
        share = request.fresh_noise
        fresh = f", {100 * share:g} % fresh noise of seed {request.seed}" if share else ""
        return (
            f"Edited real tissue, synthetic: {len(entry.spots)} {what}{state}; {kept.get('steps')} steps each way{preset}; scale "
            f"{request.edit_scale:g}{fresh}; edits: {words}.{' ' + follows if follows else ''}"
        )
    return (
        f"{len(entry.spots)} {what}{state}; seed {request.seed}, {kept.get('steps')} steps{preset}; guidance: {scales}; morphology: "
        f"{request.morphology}; edits: {words or 'none'}."
    )


def icon_of(rgba: Any) -> QIcon:
    """Return an icon of (h, w, 4) uint8 pixels, centred on a transparent square."""
    icon, pixmap = QIcon(), pixmap_of(rgba)
    for mode in (
        QIcon.Mode.Normal,
        QIcon.Mode.Selected,
    ):  # a chosen one is not tinted: it would look like another stain
        icon.addPixmap(pixmap, mode)
    return icon


def pixmap_of(pixels: Any) -> QPixmap:
    """Return a pixmap of (h, w, 3 or 4) uint8 pixels."""
    square = np.zeros((max(*pixels.shape[:2], 1), max(*pixels.shape[:2], 1), 4), dtype=np.uint8)
    height, width = pixels.shape[:2]
    top, left = (square.shape[0] - height) // 2, (square.shape[1] - width) // 2
    square[top : top + height, left : left + width, 3] = 255
    square[top : top + height, left : left + width, : pixels.shape[2]] = pixels
    side = square.shape[0]
    image = QImage(square.tobytes(), side, side, 4 * side, QImage.Format.Format_RGBA8888)
    return QPixmap.fromImage(image.copy())
