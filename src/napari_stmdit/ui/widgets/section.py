"""Opening a section and its facts."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QFormLayout, QLabel, QLineEdit, QMenu, QPushButton, QWidget

from ...errors import SectionError
from ...tissue.images import IMAGE_SUFFIXES
from ...tissue.open import SectionSource
from ...types import Section
from .common import Fold, Text, column, labelled, named, row
from .slide import SlidePanel

IMAGES = "Images (*.jpg *.jpeg *.png *.tif *.tiff *.btf *.svs *.ndpi *.qptiff *.scn)"


class SectionPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Says which section to open, and shows what is known of the open one."""

    openRequested = Signal(object)
    """Emits a `SectionSource`, or None for the bundled sample."""
    refused = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._section: Section | None = None
        self._stated_for = ""
        self.path = self._field("Section", "Space Ranger folder, .zarr or slide")
        self.path.setToolTip(
            "A Space Ranger 'outs' folder (Visium or Visium HD), a SpatialData .zarr with Visium spots, or a plain H&E slide image"
        )
        self.path.textChanged.connect(self._path_changed)
        self.fullres = self._field("Full-resolution image", "found in the folder")
        self.fullres.setToolTip("The slide image that Space Ranger was run on, where the folder lacks it")
        self.mpp = self._field("Microns per pixel", "from the files")
        self.mpp.setToolTip("Microns per full-resolution pixel; overrides what the files say")
        browse = named(QPushButton("…"), "Choose the section", "Choose a section's folder or a plain H&E slide")
        browse.setFixedWidth(44)
        menu = QMenu(browse)
        menu.addAction("Section folder or .zarr…", self._browse_path)
        menu.addAction("Plain H&E slide…", self._browse_slide)
        browse.setMenu(menu)
        browse_image = self._browser("Choose the full-resolution image", self._browse_image)
        self.open_button = named(QPushButton("Open"), "Open the section", "Open the section named above")
        self.sample_button = named(
            QPushButton("Sample section"),
            "Open the sample section",
            "Open the synthetic section that comes with the plugin",
        )
        self.open_button.clicked.connect(self._open)
        self.sample_button.clicked.connect(lambda: self.openRequested.emit(None))
        self.path.returnPressed.connect(self._open)
        self.mpp.returnPressed.connect(self._open)
        self.correct = named(
            QPushButton("Correct…"),
            "Correct the scale",
            "Give other microns per pixel than the files do and open the section again; edits and names are kept",
        )
        self.correct.clicked.connect(self._correct)
        inside = QWidget()
        self.asked = Text("warning")
        self.slide_image = QWidget()  # of a section: a plain slide is its own image
        self.slide_image.setLayout(labelled(("Slide image", row(self.fullres, browse_image))))
        inside.setLayout(column(self.asked, self.slide_image, labelled(("µm per pixel", self.mpp)), spacing=4))
        self.overrides = Fold("Where the files lack it", inside, unfolded=False, inner=True)
        self.slide = SlidePanel()
        self.slide.submitted.connect(self._open)
        self.slide_options = Fold("Spots of a plain slide", self.slide, inner=True)
        self._facts = QWidget()
        self._form = QFormLayout(self._facts)
        self._form.setContentsMargins(0, 2, 0, 0)
        self._form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
        self._form.setHorizontalSpacing(10)
        self._form.setVerticalSpacing(3)
        self.rows = {name: self._fact(name) for name in ("Name", "Spots", "Genes", "Scale", "System", "Shared genes")}
        self._form.insertRow(4, "", self.correct)
        self.rows["Scale"].setToolTip(
            "Microns per full-resolution pixel of the slide, and where that number comes from"
        )
        self.rows["Shared genes"].setToolTip(
            "How many of the genes that the checkpoint was trained with this section has"
        )
        self.fault = Text("warning")
        self.notes = Text("quiet")
        self.setLayout(
            column(
                row(self.path, browse),
                self.overrides,
                self.slide_options,
                row(self.open_button, self.sample_button, stretch=None),
                self._facts,
                self.fault,
                self.notes,
            )
        )
        self._path_changed("")
        self.show_section(None)

    # --- value

    def value(self) -> SectionSource:
        """Return which section the fields name.

        Raises
        ------
        ValueError, SectionError
            Where a number is none, or not allowed; the message says which.
        """
        mpp = self.mpp.text().strip().replace(",", ".")
        try:
            scale = float(mpp) if mpp else None
        except ValueError:
            raise ValueError(
                f"'{self.mpp.text()}' is no number; expected microns per full-resolution pixel, such as 0.5"
            ) from None
        path = self.path.text().strip()
        fullres = None if is_slide(path) else self.fullres.text().strip() or None
        options = self.slide.value() if is_slide(path) else {}
        return SectionSource.given(path, fullres=fullres, mpp=scale, **options)

    def setValue(self, source: SectionSource) -> None:
        """Fill the fields."""
        self.path.setText(str(source.path))
        self.fullres.setText(str(source.fullres or ""))
        self.mpp.setText("" if source.mpp is None else f"{source.mpp:g}")
        self.slide.setValue(source)

    def ask_scale(self, path: str) -> None:
        """Ask for the scale of a slide that does not state it; an empty path takes the question back."""
        self.asked.show_text("")
        if path:
            self.path.setText(path)
            self.overrides.unfold()
            self.asked.show_text(
                "This slide does not state its scale. Give its microns per pixel here and press Enter: the scanner's export settings have them."
            )
            self.mpp.setFocus()

    # --- facts

    def show_section(self, section: Section | None) -> None:
        """Show a section's facts."""
        self._facts.setVisible(section is not None)
        self._section = section
        self.correct.setEnabled(section is not None and section.path is not None)
        self.notes.show_text("")
        self.fault.show_text("")
        if section is None:
            return
        image = section.image
        self.rows["Name"].show_text(section.name + (" (synthetic)" if section.synthetic else ""))
        self.rows["Spots"].show_text(f"{len(section.spots):,}")
        genes = f"{len(section.spots.genes):,}"
        words = {"measured": genes, "predicted": f"{genes}, predicted in {section.expression.file}"}
        self.rows["Genes"].show_text(words.get(section.expression.kind, "none: a plain slide, expression is null"))
        self.rows["Scale"].show_text(
            section.calibration.detail, "warning" if section.calibration.mpp is None else "info"
        )
        first, *others = section.coordinate_systems or ["full-resolution pixels"]
        self.rows["System"].show_text(first + (f" (and {len(others)} more)" if others else ""))
        self.rows["System"].setToolTip("Coordinate systems: " + ", ".join(section.coordinate_systems))
        self.rows["Shared genes"].show_text("known once a checkpoint is loaded")
        if image is None:
            self.fault.show_text("No slide image: spots can be coloured and selected, but not synthesized from.")
        self.notes.show_text("\n".join(f"• {note}" for note in section.notes))

    def show_fit(self, overlap: tuple[int, int] | None, fault: str) -> None:
        """Show how the section fits the checkpoint: shared genes, and why it cannot be synthesized from."""
        if self._section is not None and self._section.expression.kind == "none":
            self.rows["Shared genes"].show_text("none are needed without expression")
        elif overlap is not None:
            self.rows["Shared genes"].show_text(f"{overlap[0]:,} of the checkpoint's {overlap[1]:,}")
        if fault:
            self.fault.show_text(f"Cannot synthesize from this section: {fault}")
        elif overlap is not None:
            self.fault.show_text("")

    def show_busy(self, busy: bool) -> None:
        """Lock the buttons while a section is being opened."""
        self.open_button.setEnabled(not busy)
        self.sample_button.setEnabled(not busy)

    # --- private

    def _field(self, name: str, hint: str) -> QLineEdit:
        field = QLineEdit()
        field.setPlaceholderText(hint)
        field.setAccessibleName(name)
        field.setMinimumWidth(60)
        return field

    def _browser(self, tip: str, slot: object) -> QPushButton:
        button = QPushButton("…")
        button.setFixedWidth(30)
        button.clicked.connect(slot)
        return named(button, tip, tip)

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
        if not self.path.text().strip():
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
        self.overrides.unfold()
        self.mpp.setFocus()

    def _browse_path(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Choose a Space Ranger folder or a .zarr", self.path.text())
        if chosen:
            self.path.setText(chosen)

    def _browse_slide(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Choose a plain H&E slide", self.path.text(), IMAGES)
        if chosen:
            self.path.setText(chosen)

    def _path_changed(self, path: str) -> None:
        path = path.strip()
        if self._stated_for and path != self._stated_for:
            self._stated_for = ""
            self.mpp.clear()  # what was stated for one section must not be taken for the next
            self.slide.table.clear()
        self.slide_options.setVisible(is_slide(path))
        self.slide_image.setVisible(not is_slide(path))

    def _browse_image(self) -> None:
        start = self.fullres.text() or self.path.text()
        chosen, _ = QFileDialog.getOpenFileName(self, "Choose the full-resolution slide image", start, IMAGES)
        if chosen:
            self.fullres.setText(chosen)


def is_slide(path: str) -> bool:
    """Tell from a path's name alone whether it means a plain slide image."""
    return path.lower().endswith(IMAGE_SUFFIXES)
