"""Opening of a section or a plain slide, its facts, and its alignment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QFormLayout, QLabel, QLineEdit, QMenu, QWidget

from ...errors import SectionError
from ...tissue.alignment import WORDS, Alignment
from ...tissue.geometry import VISIUM_PITCH_UM
from ...tissue.images import IMAGE_SUFFIXES
from ...tissue.open import SectionSource
from ...tissue.slide import SPOT_UM, TISSUE_FRACTION
from ...types import Section
from ..presenter import Presenter
from ..tools import recent_sections
from .common import (
    Connections,
    Fold,
    Text,
    ask_what_to_read,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    labelled,
    named,
    primary,
    row,
)
from .downloads import SectionsPanel
from .results import pixmap_of

IMAGES = "Images (*.jpg *.jpeg *.png *.tif *.tiff *.btf *.svs *.ndpi *.qptiff *.scn)"


UNITS = (("as the file says", None), ("counts", "counts"), ("log1p of normalised counts", "log1p"))
HEADING = "font-size: 15px; font-weight: bold;"
TABLES = "Predicted expression (*.h5ad)"


class SlidePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Options of a `SectionSource` for plain images."""

    submitted = Signal()
    """Signal when Enter was pressed in one of the fields."""

    def __init__(self) -> None:
        super().__init__()
        self.pitch = self._number(
            "Grid pitch",
            f"{VISIUM_PITCH_UM:g}",
            f"Microns between the centres of the virtual spots, which have {SPOT_UM:g} µm",
        )
        self.fraction = self._number(
            "Part on tissue",
            f"{TISSUE_FRACTION:g}",
            "Part of a spot that must lie on tissue, 0 to 1; with 0 tissue is not detected and spots cover the slide",
        )
        self.table = QLineEdit()
        named(
            self.table,
            "Predicted table",
            "A .h5ad with predicted expression and obsm['spatial'], (x, y) in full-resolution pixels. Its positions become the spots; "
            "with a pitch, the grid's spots take the nearest row",
        )
        self.table.setPlaceholderText("none: expression is null")
        self.table.returnPressed.connect(self.submitted)
        self.table.textChanged.connect(self._table_changed)
        browse = button("…", "Choose the predicted table", "Choose the predicted table, .h5ad", self._browse)
        browse.setFixedWidth(30)
        self.units = combo("Units of the table", "Fractions are asked about: expected counts, or logarithms", UNITS)
        self.about = Text("quiet")
        self.setLayout(
            column(
                labelled(
                    ("Pitch, µm", self.pitch),
                    ("On tissue", self.fraction),
                    ("Predicted", row(self.table, browse)),
                    ("Units", self.units),
                ),
                self.about,
            )
        )
        self._table_changed("")

    def value(self) -> dict[str, Any]:
        """Return the options in the fields, by their names in `SectionSource`.

        Raises
        ------
        ValueError
            Pitch or part are no numbers; the message says which.
        """
        table = self.table.text().strip() or None
        return {
            "grid_pitch": _number(self.pitch),
            "tissue_fraction": _number(self.fraction),
            "predicted_expression": table,
            "predicted_units": self.units.currentData() if table else None,
        }

    def setValue(self, options: SectionSource) -> None:
        """Fill the fields."""
        for field, number in ((self.pitch, options.grid_pitch), (self.fraction, options.tissue_fraction)):
            field.setText("" if number is None else f"{number:g}")
        self.table.setText(str(options.predicted_expression or ""))
        self.units.setCurrentIndex(max(0, self.units.findData(options.predicted_units)))

    def _number(self, name: str, hint: str, tip: str) -> QLineEdit:
        field: QLineEdit = named(QLineEdit(), name, tip)
        field.setPlaceholderText(hint)
        field.setMinimumWidth(60)
        field.textChanged.connect(lambda _: self._table_changed(self.table.text()))
        field.returnPressed.connect(self.submitted)
        return field

    def _table_changed(self, text: str) -> None:
        there = bool(text.strip())
        self.units.setEnabled(there)
        if not there:
            self.about.show_text("No expression is used: it is null at every spot, and results say so.")
        elif self.pitch.text().strip():
            self.about.show_text("The grid's spots take the nearest row of the table; those without one are left out.")
        else:
            self.about.show_text("The table's positions are the spots. Give a pitch to match them to a grid.")
        self.pitch.setPlaceholderText("the table's positions" if there else f"{VISIUM_PITCH_UM:g}")

    def _browse(self) -> None:
        if chosen := ask_what_to_read(self, "Choose the predicted table", TABLES, self.table.text()):
            self.table.setText(chosen)


def _number(field: Any) -> float | None:
    text = field.text().strip().replace(",", ".")
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{field.accessibleName()}: '{text}' is no number") from None


class SectionPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Choice of a section to open, and facts of the open one."""

    openRequested = Signal(object)
    """Signal with a `SectionSource`, or None for the bundled sample."""
    refused = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._section: Section | None = None
        self._stated_for = ""
        self.path = self._field("Section", "Space Ranger folder, .zarr or slide")
        self.path.setToolTip(
            "A Space Ranger 'outs' folder (Visium or Visium HD), a SpatialData .zarr with Visium spots, a .h5ad, or a plain H&E slide image"
        )
        self.path.textChanged.connect(self._path_changed)
        self.fullres = self._field("Full-resolution image", "found in the folder")
        self.fullres.setToolTip("The slide image that Space Ranger was run on, where the folder lacks it")
        self.factors = self._field("Factors", "none: counts are used")
        self.factors.setToolTip(
            "Values of each spot in the place of counts, for a checkpoint trained with such: FILE.h5ad::NAME of its obsm, or a .csv"
        )
        self.mpp = self._field("Microns per pixel", "from the files")
        self.mpp.setToolTip("Microns per full-resolution pixel; overrides what the files say")
        browse = button("…", "Choose the section", "Choose a section's folder or a plain H&E slide")
        browse.setFixedWidth(44)
        menu = QMenu(browse)
        menu.addAction("Section folder or .zarr…", self._browse_path)
        menu.addAction("Section in one .h5ad…", self._browse_table)
        menu.addAction("Plain H&&E slide…", self._browse_slide)
        browse.setMenu(menu)
        tip = "Choose the full-resolution image"
        browse_image = button("…", tip, tip, self._browse_image)
        browse_image.setFixedWidth(30)
        self.open_button = button("Open", "Open the section", "Open the section named above", self._open)
        self.sample_button = button(
            "Sample section",
            "Open the sample section",
            "Open the synthetic section that comes with the plugin",
            lambda: self.openRequested.emit(None),
        )
        self.example = primary(
            button(
                "Show me on an example",
                "Show me on an example",
                "Open the bundled section, paint an edit over it, and show this tissue before and after: about ten seconds",
                once=True,
            )
        )
        question = Text("info", "What would this tissue look like if its molecules were different?", HEADING)
        own = Text("quiet", "Or open your own section: drop it on the canvas, or choose it here.")
        self.welcome = boxed(column(question, self.example, own, spacing=10))
        self.welcome.setContentsMargins(0, 8, 0, 2)
        self._head()
        self.path.returnPressed.connect(self._open)
        self.mpp.returnPressed.connect(self._open)
        self.fullres.returnPressed.connect(self._open)
        self.factors.returnPressed.connect(self._open)
        self.correct = button(
            "Correct…",
            "Correct the scale",
            "Correct the microns per pixel and open the section again; edits and names are kept",
            self._correct,
        )
        self.asked = Text("warning")
        # of a section: a plain slide is its own image
        self.slide_image = boxed(labelled(("Slide image", row(self.fullres, browse_image)), ("Factors", self.factors)))
        inside = boxed(column(self.asked, self.slide_image, labelled(("µm per pixel", self.mpp)), spacing=4))
        self.overrides = Fold("Scale, slide image and factors, where missing", inside, unfolded=False, inner=True)
        self.slide = SlidePanel()
        self.slide.submitted.connect(self._open)
        self.slide_options = Fold("Spots of a plain slide", self.slide, inner=True)
        self.public = SectionsPanel()
        self.public_fold = Fold("Public sections", self.public, unfolded=False, inner=True)
        self._facts = QWidget()
        self._form = QFormLayout(self._facts)
        self._form.setContentsMargins(0, 2, 0, 0)
        self._form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
        self._form.setHorizontalSpacing(10)
        self._form.setVerticalSpacing(3)
        self.rows = {
            name: self._fact(name) for name in ("Name", "Spots", "Genes", "Scale", "Coordinates", "Shared genes")
        }
        self._form.insertRow(4, "", self.correct)
        self.rows["Scale"].setToolTip(
            "Microns per full-resolution pixel of the slide, and where that number comes from"
        )
        self.rows["Shared genes"].setToolTip("How many of the checkpoint's genes this section has")
        self.alignment = AlignmentLine()
        self.notes = Text("quiet")
        self.recent = boxed(column(spacing=0))
        self.recent.setAccessibleName("Recent sections")
        self.opening = boxed(
            column(
                row(self.path, browse),
                self.overrides,
                self.slide_options,
                row(self.open_button, self.sample_button, stretch=None),
                self.recent,
                self.public_fold,
            )
        )
        self.about = boxed(column(self._facts, self.alignment, self.notes))
        self.setLayout(column(self.welcome, self.opening, self.about))
        self._path_changed("")
        self.show_section(None)

    def _head(self) -> None:
        """Build the part that is always visible for an open section: its name, its facts in a line, and its faults."""
        self.title, self.line, self.fault = Text("info", style="font-weight: bold;"), Text("quiet"), Text("warning")
        self.title.setAccessibleName("Name of the section")
        self.details = button(
            "Details", "Details of the section", "Facts about this section, and what can be corrected"
        )
        self.another = button("Open…", "Open another section", "Show or hide the form that opens a section")
        for one in (self.details, self.another):
            one.setCheckable(True)
            one.toggled.connect(lambda _: self._show_parts())
        self.others = button(
            "Other checkpoint…", "Choose another checkpoint", "Choose a checkpoint that reads these genes"
        )
        self.ignore = button(
            "Ignore expression",
            "Ignore the expression",
            "Synthesize from morphology alone: the expression of this section is not used, and results say so",
        )
        self.find_slide = button(
            "Find the slide image…",
            "Find the slide image",
            "Show where the slide in full resolution is; selection, edits and results are kept",
            self._find_slide,
        )
        self.way_on = boxed(row(self.others, self.ignore, stretch=None))
        self.head = boxed(
            column(
                row(self.title, self.details, self.another),
                self.line,
                self.fault,
                self.way_on,
                self.find_slide,
                spacing=4,
            )
        )

    def _show_parts(self) -> None:
        there = self._section is not None
        self.head.setVisible(there)
        self.welcome.setVisible(not there)
        self.opening.setVisible(not there or self.another.isChecked())
        self.about.setVisible(there and self.details.isChecked())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state

        def show_alignment() -> None:
            if state.alignment is not None and state.alignment.verdict in ("other", "several"):
                self.details.setChecked(True)

        self.openRequested.connect(presenter.open)
        self.ignore.clicked.connect(lambda: presenter.ignore_expression())
        self.example.clicked.connect(lambda: presenter.example.show())
        self.refused.connect(lambda text: state.tell("error", text))
        connections = connect_state(
            state.events,
            ("section", lambda: self.show_section(state.section)),
            ("scale_asked", lambda: self.ask_scale(state.scale_asked)),
            (
                "section checkpoint faults request",
                lambda: self.show_fit(presenter.gene_overlap(), presenter.section_fault()),
            ),
            ("section checkpoint faults request", lambda: self.way_on.setVisible(bool(presenter.gene_fault()))),
            ("alignment", show_alignment),
            ("section", lambda: self.show_recent(recent_sections())),
            ("opening", lambda: self.show_busy(state.opening)),
        )
        connections.add(self.alignment.bind(presenter).close)
        connections.add(self.public.bind(presenter).close)
        connections.add(connect_state(state.events, ("offered", lambda: self.show_offered(state.offered))).close)
        return connections

    # --- value

    def value(self) -> SectionSource:
        """Return the section source in the fields.

        Raises
        ------
        ValueError, SectionError
            A number is none, or not allowed; the message says which.
        """
        mpp = self.mpp.text().strip().replace(",", ".")
        try:
            scale = float(mpp) if mpp else None
        except ValueError:
            raise ValueError(
                f"'{self.mpp.text()}' is not a number; expected microns per full-resolution pixel, such as 0.5"
            ) from None
        path = self.path.text().strip()
        fullres = None if is_slide(path) else self.fullres.text().strip() or None
        options = self.slide.value() if is_slide(path) else {"factors": self.factors.text().strip() or None}
        return SectionSource.given(path, fullres=fullres, mpp=scale, **options)

    def setValue(self, source: SectionSource) -> None:
        """Fill the fields."""
        self.path.setText(str(source.path))
        self.fullres.setText(str(source.fullres or ""))
        self.factors.setText(str(source.factors or ""))
        self.mpp.setText("" if source.mpp is None else f"{source.mpp:g}")
        self.slide.setValue(source)

    def ask_scale(self, path: str) -> None:
        """Ask for the scale of a slide that states none; an empty path withdraws the question."""
        self.asked.show_text("")
        if path:
            self.path.setText(path)
            self.another.setChecked(True)
            self.overrides.unfold()
            self.asked.show_text(
                "This slide does not state its scale. Give its microns per pixel here and press Enter: the scanner's export settings have them."
            )
            self.mpp.setFocus()

    def show_offered(self, name: str) -> None:
        """Show the public section that was asked for."""
        if name:
            self.another.setChecked(self._section is not None)
            self.public_fold.unfold()
            self.public.choose(name)

    # --- facts

    def show_section(self, section: Section | None) -> None:
        """Show a section's facts."""
        self._section = section
        for one in (self.details, self.another):
            one.setChecked(False)
        self._show_parts()
        self.correct.setEnabled(section is not None and section.path is not None)
        self.notes.show_text("")
        self.fault.show_text("")
        self.find_slide.setVisible(lacks_slide(section))
        if section is None:
            return
        if section.path is not None and not section.synthetic and self.path.text().strip() != str(section.path):
            self.path.setText(str(section.path))  # it was dropped on the viewer
        image = section.image
        self.rows["Name"].show_text(section.name + (" (synthetic)" if section.synthetic else ""))
        self.rows["Spots"].show_text(f"{len(section.spots):,}")
        genes = f"{len(section.spots.genes):,}"
        words = {"measured": genes, "predicted": f"{genes}, predicted in {section.expression.file}"}
        words["factors"] = f"none: {len(section.spots.genes):,} factors, {section.expression.file}"
        without = "a plain slide" if section.kind == "image" else "it has no counts"
        self.rows["Genes"].show_text(words.get(section.expression.kind, f"none: {without}, expression is null"))
        self.rows["Scale"].show_text(
            section.calibration.detail, "warning" if section.calibration.mpp is None else "info"
        )
        first, *others = section.coordinate_systems or ["full-resolution pixels"]
        self.rows["Coordinates"].show_text(first + (f" (and {len(others)} more)" if others else ""))
        self.rows["Coordinates"].setToolTip("Coordinate systems: " + ", ".join(section.coordinate_systems))
        self.rows["Shared genes"].show_text("known once a checkpoint is loaded")
        if image is None:
            self.fault.show_text("No slide image: spots can be coloured and selected, but not synthesized from.")
        self.notes.show_text("\n".join(f"• {note}" for note in section.notes))
        self.title.show_text(self.rows["Name"].plain())
        self._show_line(None)

    def show_fit(self, overlap: tuple[int, int] | None, fault: str) -> None:
        """Show how the section fits the checkpoint: shared genes, and why it cannot be synthesized from."""
        if self._section is not None and self._section.expression.kind == "none":
            self.rows["Shared genes"].show_text("none are needed without expression")
        elif overlap is not None:
            self.rows["Shared genes"].show_text(f"{overlap[0]:,} of the checkpoint's {overlap[1]:,}")
        self._show_line(overlap)
        if fault:
            self.fault.show_text(f"Cannot synthesize from this section: {fault}")
        elif overlap is not None:
            self.fault.show_text("")

    def show_busy(self, busy: bool) -> None:
        """Lock the buttons while a section is being opened."""
        self.open_button.setEnabled(not busy)
        self.sample_button.setEnabled(not busy)
        self.example.setEnabled(not busy)

    # --- private

    def _field(self, name: str, hint: str) -> QLineEdit:
        field = QLineEdit()
        field.setPlaceholderText(hint)
        field.setAccessibleName(name)
        field.setMinimumWidth(60)
        return field

    def _fact(self, name: str) -> Text:
        text = Text("info")
        text.setAccessibleName(name)
        label = QLabel(name)
        label.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._form.addRow(label, text)
        return text

    def _open(self) -> None:
        if not self.path.text().strip():
            self._browse_path()
            return
        try:
            source = self.value()
        except (ValueError, SectionError) as error:
            self.refused.emit(str(error))
            return
        self._stated_for = str(source.path)
        self.openRequested.emit(source)

    def _correct(self) -> None:
        if self._section is not None and self._section.path is not None and not self.path.text().strip():
            self.path.setText(str(self._section.path))
        self.another.setChecked(True)
        self.overrides.unfold()
        self.mpp.setFocus()

    def _find_slide(self) -> None:
        section = self._section
        if section is None or section.path is None:
            return
        if chosen := ask_what_to_read(self, "Where is the full-resolution slide image?", IMAGES, self._beside()):
            mpp = section.calibration.mpp if section.calibration.source == "override" else None
            factors = section.expression.place or None
            source = SectionSource.given(str(section.path), fullres=chosen, mpp=mpp, factors=factors)
            self.openRequested.emit(source)

    def _show_line(self, overlap: tuple[int, int] | None) -> None:
        section = self._section
        if section is None:
            return
        mpp = section.calibration.mpp
        genes = f"{len(section.spots.genes):,} genes"
        if section.expression.kind == "none":
            genes = "no expression"
        elif overlap is not None:
            shared, all_of = overlap
            genes = f"{shared:,} genes ✓" if shared == all_of else f"{shared:,} of {all_of:,} genes"
        scale = "scale unknown" if mpp is None else f"{mpp:.3g} µm/px ✓"
        facts = (f"{len(section.spots):,} spots", scale, genes)
        self.line.show_text(" · ".join(fact.replace(" ", "\u00a0") for fact in facts))  # broken between facts alone

    def show_recent(self, paths: Sequence[str]) -> None:
        """Offer the recent sections."""
        layout = self.recent.layout()
        while layout.count():
            gone = layout.takeAt(0).widget()
            gone.hide()  # it is deleted later
            gone.deleteLater()
        for path in paths:
            one = button(
                f"Recent: {Path(path).name}", f"Open {Path(path).name} again", path, partial(self._chosen, path)
            )
            one.setFlat(True)
            one.setStyleSheet("text-align: left;")
            one.setMinimumWidth(40)
            layout.addWidget(one)
        self.recent.setVisible(bool(paths))

    def _browse_path(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Choose a Space Ranger folder or a .zarr", self._beside())
        self._chosen(chosen)

    def _browse_table(self) -> None:
        self._chosen(ask_what_to_read(self, "Choose a .h5ad with its spots", "AnnData (*.h5ad)", self._beside()))

    def _browse_slide(self) -> None:
        self._chosen(ask_what_to_read(self, "Choose a plain H&E slide", IMAGES, self._beside()))

    def _beside(self) -> str:
        """Return the folder of the last section: the next is looked for beside it, not in it."""
        path = self.path.text().strip()
        return str(Path(path).parent) if path else ""

    def _chosen(self, path: str, *_: Any) -> None:
        if path:
            self.path.setText(path)
            self._open()

    def _path_changed(self, path: str) -> None:
        path = path.strip()
        if self._stated_for and path != self._stated_for:
            self._stated_for = ""
            self.mpp.clear()  # what was stated for one section must not be taken for the next
            self.fullres.clear()
            self.factors.clear()
            self.slide.table.clear()
        self.slide_options.setVisible(is_slide(path))
        self.slide_image.setVisible(not is_slide(path))

    def _browse_image(self) -> None:
        start = self.fullres.text() or self.path.text()
        if chosen := ask_what_to_read(self, "Choose the full-resolution slide image", IMAGES, start):
            self.fullres.setText(chosen)


def lacks_slide(section: Section | None) -> bool:
    """Return whether a section has spots of its own, but no slide image in full resolution."""
    if section is None or section.path is None or section.kind == "image":
        return False
    return section.image is None or section.image.pixel_size > 1


def is_slide(path: str) -> bool:
    """Return whether a path means a plain slide image, by its name alone."""
    return path.lower().endswith(IMAGE_SUFFIXES)


BOTH_PX, ONE_PX = 138, 210
"""Side of a check picture, beside another and alone."""


class AlignmentLine(QWidget):  # type: ignore[misc,unused-ignore]
    """Verdict on how spots and slide fit."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict = Text("quiet")
        self.verdict.setAccessibleName("Alignment of spots and slide")
        self.look = button(
            "Look", "Look at the spots on the slide", "Show the spots over the slide; orange ones have many counts"
        )
        self.look.setCheckable(True)
        self.apply = button(
            "", "Lay the spots so", "Turn the spots to the orientation that fits better; no file is changed"
        )
        self.pictures = [QLabel(), QLabel()]
        self.words = [Text("quiet"), Text("quiet")]
        self.shown = [boxed(column(*pair, spacing=2)) for pair in zip(self.pictures, self.words, strict=True)]
        self.setLayout(
            column(self.verdict, row(self.look, self.apply, stretch=None), row(*self.shown, stretch=None), spacing=4)
        )
        self.show_alignment(None)
        self.show_pictures((), None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, corrections = presenter.state, presenter.corrections
        self.look.clicked.connect(corrections.look)
        self.apply.clicked.connect(lambda _: corrections.orient())
        return connect_state(
            state.events,
            ("alignment", lambda: self.show_alignment(state.alignment)),
            ("check_pictures", lambda: self.show_pictures(state.check_pictures, state.alignment)),
        )

    def show_alignment(self, found: Alignment | None) -> None:
        """Show the verdict, and the button where another orientation fits clearly better."""
        self.setVisible(found is not None)
        self.apply.setVisible(found is not None and found.best is not None)
        if found is None:
            return
        self.verdict.show_text(found.statement, "warning" if found.verdict in ("other", "several") else "quiet")
        if found.best is not None:
            self.apply.setText("Lay them so")
            self.apply.setToolTip(f"Lay the spots over the slide {WORDS[found.best]}; no file is changed")

    def show_pictures(self, pictures: Any, found: Alignment | None) -> None:
        """Show the spots over the slide, as they are and as they fit better."""
        with blocked(self.look):
            self.look.setChecked(bool(pictures))
        side = BOTH_PX if len(pictures) > 1 else ONE_PX
        best = None if found is None or found.best is None else WORDS[found.best]
        for k, (box, label, words) in enumerate(zip(self.shown, self.pictures, self.words, strict=True)):
            box.setVisible(k < len(pictures))
            if k < len(pictures):
                mode = Qt.TransformationMode.SmoothTransformation
                label.setPixmap(pixmap_of(pictures[k]).scaled(side, side, Qt.AspectRatioMode.KeepAspectRatio, mode))
                words.show_text("as they are" if k == 0 else best or "")
