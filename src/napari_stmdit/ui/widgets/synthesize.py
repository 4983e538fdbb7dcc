"""Request form, queue and run bar."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFrame,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QSlider,
    QSpinBox,
    QWidget,
)
from superqt.utils import qdebounced

from ...intent import CheckpointCard, Request
from ...progress import Progress
from ...synthesis.plan import Estimate, resolve_counterfactual_steps, resolve_steps
from ...text import counted
from ..presenter import Presenter
from ..state import Kind, Offer, QueuedRun, RunStatus, WorkbenchState
from .common import (
    Choice,
    Connections,
    Fold,
    Scrolled,
    Text,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    fit_lines,
    form_of,
    labelled,
    named,
    paced,
    primary,
    row,
    without_steppers,
)
from .input import with_key

SOURCES = (
    ("Own crop of each spot", "own"),
    ("Mean of the section", "mean"),
    ("Another spot", "spot"),
    ("None", "null"),
)
TISSUES = (
    (
        "edit",
        "Edit this tissue",
        "Edit the tissue of the slide; what the edits do not reach stays the same, pixel for pixel",
    ),
    ("new", "Make new tissue", "Synthesize new tissue of this expression and morphology, from noise"),
)
MODES = (("Patches at the spots", "spots"), ("Seamless tissue", "continuous"))
PRESETS = (
    ("exact", "Exact", "The checkpoint's own steps, guided throughout"),
    ("fast", "Fast", "Fewer steps, guided only while the coarse content forms"),
    ("draft", "Draft", "A first look: fewest steps, and the preview decoder where the checkpoint has one"),
)
NO_CHANCE = "Without fresh noise an edit of this tissue involves no chance: every sample is the same"
MAX_GUIDANCE = 10.0
"""Maximum of the slider; the number beside it takes up to 30."""
_STEPS_PER_UNIT = 20
PREVIEW_MS = 120
"""Milliseconds that form and selection have to rest before they are planned."""


class ScaleSlider(QWidget):  # type: ignore[misc,unused-ignore]
    """One guidance scale: a slider and a number. None is the checkpoint's default, which is shown."""

    valueChanged = Signal()

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        self._default = 1.0
        self._value: float | None = None
        self.slider = named(QSlider(Qt.Orientation.Horizontal), f"{name} slider", tip)
        self.slider.setRange(0, int(MAX_GUIDANCE * _STEPS_PER_UNIT))
        self.slider.setPageStep(_STEPS_PER_UNIT // 2)
        self.slider.setMinimumWidth(80)
        self.number = named(QDoubleSpinBox(), name, tip)
        self.number.setRange(0, 30)
        self.number.setDecimals(2)
        self.number.setSingleStep(0.25)
        without_steppers(self.number, 58)  # the slider beside it has the steps
        self.slider.valueChanged.connect(lambda at: self._moved(at / _STEPS_PER_UNIT))
        self.number.valueChanged.connect(self._moved)
        self.setLayout(row(self.slider, self.number))

    def value(self) -> float | None:
        """Return the scale; None for the default."""
        return self._value

    def setValue(self, value: float | None) -> None:
        """Show a scale."""
        self._value = value
        shown = self._default if value is None else value
        with blocked(self.slider, self.number):
            self.slider.setValue(round(min(shown, MAX_GUIDANCE) * _STEPS_PER_UNIT))
            self.number.setValue(shown)

    def set_default(self, default: float) -> None:
        """Set the value that None stands for."""
        self._default = default
        self.setValue(self._value)

    def _moved(self, value: float) -> None:
        self.setValue(round(value, 2))
        self.valueChanged.emit()


class SynthesizePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Form of a `Request`; fields that it does not show are kept."""

    valueChanged = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._value = Request()
        self._card: CheckpointCard | None = None
        self._fault = "Choose a checkpoint first."
        self.tissue = Choice(TISSUES)
        self.form = form_of(
            Request,
            edit_scale=(
                "Edit scale",
                "How much of the difference that the edit makes is shown; 1 is the model's own",
                {"step": 0.25},
            ),
            fresh_noise=(
                "Fresh noise",
                "Share of the noise that is drawn with the seed: details differ from the slide; 0: exactly this tissue",
                {"step": 0.1},
            ),
            mode=(
                "Kind of synthesis",
                "Patches at the spots, or one seamless tissue between and around them (slower)",
                {"choices": MODES},
            ),
            preset=(
                "Preset",
                "How much image quality may be given up for speed; the result says which was used",
                {"choices": [(label, key) for key, label, _ in PRESETS]},
            ),
            seed=("Seed", "The same seed gives the same pixels", {"step": 1}),
            allow_gene_mismatch=(
                "Allow gene mismatch",
                "Genes that the checkpoint needs and the section lacks are set to their training mean",
                {"text": "Run although genes are missing"},
            ),
        )
        self.scale, self.fresh, self.mode, self.preset, self.seed, self.mismatch = (
            w.native for w in self.form.values()
        )
        for place, (_, _, tip) in enumerate(PRESETS):
            self.preset.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        for box in (self.scale, self.fresh, self.seed):
            box.setMinimumWidth(64)
        self.expression = ScaleSlider(
            "Expression guidance", "How strongly the image follows the expression; 1 is the plain model, 0 ignores it"
        )
        self.morphology = ScaleSlider(
            "Morphology guidance", "How strongly the image follows the morphology; 1 is the plain model, 0 ignores it"
        )
        tip = "Where the morphology that a patch is conditioned on is read"
        self.source = combo("Morphology source", tip, SOURCES)
        self.spot = named(QLineEdit(), "Spot for the morphology", "Id of the spot whose morphology all patches get")
        self.spot.setPlaceholderText("spot id")
        self.pick = button("selected", "Take the selected spot", "Take the first selected spot")
        self.steps = named(QSpinBox(), "Steps", "Denoising steps; more is slower and finer")
        self.steps.setRange(0, 1000)
        self.steps.setMinimumWidth(64)
        self.dice = button("new", "New seed", "Draw a new seed", lambda: self.seed.setValue(random.randrange(2**32)))
        self.batch = named(
            QSpinBox(), "Patches at once", "Patches denoised together; does not change the result in float32"
        )
        self.batch.setRange(0, 256)
        self.batch.setSpecialValueText("auto")
        self.samples = named(
            QSpinBox(),
            "Samples",
            "Results to make, each with a seed of its own: how much chance alone changes the image",
        )
        self.samples.setRange(1, 16)
        self.faults = {name: Text("error") for name in ("guidance", "morphology", "steps", "seed", "region", "other")}
        self.faults |= {name: Text("error") for name in ("mode", "counterfactual", "fresh_noise")}
        self.estimate, self.notes = Text("info"), Text("warning")
        self._lay_out()
        self._connect()
        self.setValue(Request())
        self.set_defaults(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, runs = presenter.state, presenter.runs
        preview = qdebounced(runs.preview, timeout=PREVIEW_MS, parent=self)

        def show_card() -> None:
            self.set_defaults(None if state.checkpoint is None else state.checkpoint.card)

        def show_estimate() -> None:
            self.show_estimate(state.estimate, state.notes, "" if state.faults else state.obstacle)

        def set_samples(count: int) -> None:
            state.samples = count
            runs.preview()

        def pick() -> None:
            if state.selected:
                self.use_spot(state.selected[0])

        self.valueChanged.connect(lambda request: setattr(state, "request", request))
        self.samples.valueChanged.connect(set_samples)
        self.batch.valueChanged.connect(lambda count: setattr(state, "batch", count or None))
        self.pick.clicked.connect(pick)
        presenter.preview_soon = preview
        connections = connect_state(
            state.events,
            ("request", lambda: preview()),
            ("checkpoint", show_card),
            ("request", lambda: self.setValue(state.request)),
            ("request checkpoint section", lambda: self.show_editable(runs.edit_fault())),
            ("faults", lambda: self.show_faults(state.faults)),
            ("estimate notes faults section checkpoint selected busy", show_estimate),
            ("samples", lambda: self.show_samples(state.samples)),
        )
        connections.add(lambda: setattr(presenter, "preview_soon", runs.preview))
        return connections

    def _lay_out(self) -> None:
        self._spot_row = boxed(row(self.spot, self.pick))
        self.only_edit = boxed(
            column(
                labelled(("Edit scale", self.scale), ("Fresh noise", self.fresh)), self.faults["fresh_noise"], spacing=4
            )
        )
        self.only_new = boxed(
            column(
                QLabel("Expression guidance"),
                self.expression,
                QLabel("Morphology guidance"),
                self.morphology,
                self.faults["guidance"],
                QLabel("Morphology from"),
                self.source,
                self._spot_row,
                spacing=4,
            )
        )
        self.chance = boxed(labelled(("Seed", row(self.seed, self.dice)), ("Samples", self.samples)))
        self.noted = Fold("Notes", boxed(column(self.notes)), unfolded=False, inner=True)
        self.kind = boxed(column(self.tissue, self.faults["counterfactual"], self.noted, spacing=4))
        """Choice between edited and new tissue, with notes; the dock puts it beside the edits."""
        self.setLayout(
            column(
                self.mode,
                self.faults["mode"],
                self.only_edit,
                self.only_new,
                self.faults["morphology"],
                labelled(("Preset", self.preset), ("Steps", self.steps), ("Patches at once", self.batch)),
                self.chance,
                self.faults["steps"],
                self.faults["seed"],
                self.mismatch,
                self.faults["region"],
                self.faults["other"],
                self.estimate,
                spacing=4,
            )
        )

    def _connect(self) -> None:
        self.tissue.chosen.connect(self._tissue_chosen)
        for widget in self.form.values():
            widget.changed.connect(self._edited, max_args=0)
        for signal in (
            self.expression.valueChanged,
            self.morphology.valueChanged,
            self.source.activated,
            self.spot.editingFinished,
            self.steps.valueChanged,
        ):
            signal.connect(lambda *_: self._edited())

    # --- value

    def value(self) -> Request:
        """Return the request in the form."""
        source = str(self.source.currentData())
        guidance = self._value.guidance.model_copy(
            update={"expression": self.expression.value(), "morphology": self.morphology.value()}
        )
        return self._value.model_copy(
            update={
                **{field: widget.value for field, widget in self.form.items()},
                "guidance": guidance,
                "morphology": (self.spot.text().strip() or "spot") if source == "spot" else source,
                "steps": self.steps.value() or None,
            }
        )

    def setValue(self, request: Request) -> None:
        """Show a request."""
        self._value = request
        for field, widget in self.form.items():
            with widget.changed.blocked():
                widget.value = getattr(request, field)
        self.expression.setValue(request.guidance.expression)
        self.morphology.setValue(request.guidance.morphology)
        source = request.morphology if request.morphology in dict(SOURCES).values() else "spot"
        with blocked(self.source, self.spot, self.steps):
            self.source.setCurrentIndex(self.source.findData(source))
            if source == "spot" and request.morphology != "spot" and not self.spot.hasFocus():
                self.spot.setText(request.morphology)
            self._show_default_steps()
            self.steps.setValue(request.steps or 0)
        self._spot_row.setVisible(source == "spot")
        self._show_tissue()

    @property
    def editing(self) -> bool:
        """Whether the slide's own tissue is to be edited: stated, or left open and possible."""
        asked = self._value.counterfactual
        return asked == "on" or (asked == "auto" and not self._fault)

    def show_editable(self, fault: str) -> None:
        """Offer to edit this tissue, or show why that cannot be; empty where it can."""
        self._fault = fault
        self._show_tissue()
        self._show_default_steps()

    def _show_tissue(self) -> None:
        editing, button = self.editing, self.tissue.button("edit")
        self.tissue.setValue("edit" if editing else "new")
        button.setEnabled(not self._fault)
        button.setToolTip(self._fault or TISSUES[0][2])
        self.only_edit.setVisible(editing)
        self.only_new.setVisible(not editing)
        self.chance.setEnabled(not editing or self._value.fresh_noise > 0)
        self.chance.setToolTip("" if self.chance.isEnabled() else NO_CHANCE)

    def _tissue_chosen(self, key: str) -> None:
        value = self._value.model_copy(update={"counterfactual": "on" if key == "edit" else "off"})
        changed = value != self._value
        self.setValue(value)
        if changed:
            self.valueChanged.emit(value)

    def set_defaults(self, card: CheckpointCard | None) -> None:
        """Show the defaults of unset fields."""
        self._card = card
        self._show_default_steps()
        if card is not None:
            self.expression.set_default(1.0 if card.guidance.expression is None else card.guidance.expression)
            self.morphology.set_default(1.0 if card.guidance.morphology is None else card.guidance.morphology)

    def _show_default_steps(self) -> None:
        card = self._card
        free = self._value.model_copy(update={"steps": None})
        plain = None if card is None else resolve_steps(free, card)
        if self.editing:
            plain = resolve_counterfactual_steps(free)
        self.steps.setSpecialValueText("default" if plain is None else f"default ({plain})")

    # --- what is known

    def show_samples(self, count: int) -> None:
        """Show the number of results of one request."""
        with blocked(self.samples):
            self.samples.setValue(count)

    def show_faults(self, faults: Mapping[str, str]) -> None:
        """Show faults, each beside its field."""
        texts: dict[str, list[str]] = {name: [] for name in self.faults}
        for place, message in faults.items():
            first = place.split(".")[0]
            texts[first if first in texts else "other"].append(message)
        for name, label in self.faults.items():
            label.show_text("\n".join(texts[name]))

    def show_estimate(self, estimate: Estimate | None, notes: Sequence[str], why_not: str) -> None:
        """Show the cost of a run, or why it is unknown."""
        self.notes.show_text("\n".join(f"• {note}" for note in notes))
        self.noted.setVisible(bool(notes))
        self.noted.show_title(f"⚠ {counted(len(notes), 'note')} on this request")
        if estimate is None:
            self.estimate.show_text(why_not, "quiet")
            return
        time = "" if estimate.seconds is None else f", about {duration(estimate.seconds)}"
        self.estimate.show_text(
            f"{counted(estimate.patches, 'patch', 'patches')}, {memory(estimate.canvas_bytes)} of memory{time}", "info"
        )

    def use_spot(self, spot: str) -> None:
        """Set a spot as the source of morphology."""
        self.source.setCurrentIndex(self.source.findData("spot"))
        self.spot.setText(spot)
        self._edited()

    def _edited(self) -> None:
        value = self.value()
        if value != self._value:
            self.setValue(value)
            self.valueChanged.emit(value)


def duration(seconds: float) -> str:
    """Format a duration for reading."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory(count: int) -> str:
    """Format a number of bytes for reading."""
    return f"{max(1, round(count / 2**20)):,} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"


MAX_LINES = 3


class QueuePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Queued runs; hidden where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.head = QLabel()
        self.list = named(QListWidget(), "Queued runs", "Runs that start when the present one has ended well")
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.remove = button("Remove", "Remove from the queue", "Remove the chosen run from the queue")
        self.resume = button("Continue", "Continue the queue", "Start the next queued run")
        self.setLayout(column(self.head, self.list, row(self.remove, self.resume, stretch=None), spacing=3))
        self.show_queue((), False)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state

        def remove() -> None:
            item = self.list.currentItem()
            if item is not None:
                presenter.queue.remove(int(item.data(Qt.ItemDataRole.UserRole)))

        self.remove.clicked.connect(remove)
        self.resume.clicked.connect(lambda: presenter.queue.resume())
        return connect_state(state.events, ("queue queue_held", lambda: self.show_queue(state.queue, state.queue_held)))

    def show_queue(self, queue: Sequence[QueuedRun], held: bool) -> None:
        """Show the queue, and whether it waits for the user."""
        self.setVisible(bool(queue))
        self.head.setText(f"{len(queue)} queued" + (", held" if held else ""))
        chosen = max(self.list.currentRow(), 0)
        self.list.clear()
        for entry in queue:
            item = QListWidgetItem(entry.title)
            item.setData(Qt.ItemDataRole.UserRole, entry.number)
            item.setToolTip(entry.title)
            self.list.addItem(item)
        if queue:
            self.list.setCurrentRow(min(chosen, len(queue) - 1))
        fit_lines(self.list, len(queue), MAX_LINES, 16)
        self.resume.setEnabled(held)


RUN_TIP = "Synthesize patches for the selected spots"
OFFERS: Mapping[Offer, tuple[str, str]] = {
    "again": ("Make it again", "Make it once more, although it is there already"),
    "go_on": ("Continue with the rest", "Make the patches that were still missing when the run was stopped"),
}
"""Offer of a message -> the button's label and tooltip."""
MESSAGE_LINES = 3
"""Maximum lines of a message without scrolling: it must not push the panels out of the dock."""


def request_words(state: WorkbenchState, editing: bool, of_section: str = "") -> tuple[str, Kind]:
    """Return a line on what Run would do, where and how long, or why it cannot, and the kind of message; a fault ``of_section`` stands beside it."""
    if state.obstacle:
        return state.obstacle, "info"
    if state.faults:
        faults = ["the reason stands above." if text == of_section else text for text in state.faults.values()]
        return f"Cannot run: {' '.join(dict.fromkeys(faults))}", "error"
    spots, edits = state.targets, [edit for edit in state.request.edits if edit.enabled]
    where = "" if state.selected else "painted "
    parts = [f"{len(spots):,} {where}spots" if len(spots) > 1 else f"1 {where}spot"]
    names = [edit.name or edit.operation for edit in edits]
    parts.append((names[0] if len(names) == 1 else f"{len(names)} edits") if names else "as measured")
    parts.append("this tissue" if editing else "new tissue")
    if state.samples > 1 and not editing:
        parts.append(f"{state.samples} samples")
    device = "" if state.checkpoint is None else str(state.checkpoint.provenance.get("device", "cpu"))
    took = None if state.estimate is None else state.estimate.seconds
    parts.append(("CPU" if device.startswith("cpu") else "GPU") + ("" if took is None else f", about {duration(took)}"))
    return " · ".join(parts), "info"


class RunBar(QWidget):  # type: ignore[misc,unused-ignore]
    """Last message, request in words, progress, Run and Stop: always visible below the panels."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = QueuePanel()
        self.run = primary(button("Run", "Run", RUN_TIP, once=True))
        self.stop = button("Stop", "Stop", "End the run at its next denoising step; finished patches are kept")
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        named(self.bar, "Progress", "Progress of the run")
        self.count = Text("quiet")
        self.back = button("Back to where I was", "Back", "Return to the view from before the result was shown")
        self.message, self.words = Text("info"), Text("info")
        self.message.setAccessibleName("Message")
        self.words.setAccessibleName("What Run does")
        self.stop.setMinimumHeight(30)
        self.offers = {key: button(label, label, tip, once=True) for key, (label, tip) in OFFERS.items()}
        self.room = Scrolled(self.message, MESSAGE_LINES)
        self.line = QFrame()
        self.line.setObjectName("line")
        self.line.setFixedHeight(1)
        self.setLayout(
            column(
                self.line,
                self.room,
                row(self.back, *self.offers.values(), stretch=None),
                self.words,
                self.bar,
                self.count,
                self.queue,
                row(self.run, self.stop),
                spacing=4,
            )
        )
        self._busy, self._since = "", 0.0
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._tick)
        self.show_status(RunStatus.IDLE, "")
        self.show_progress(None, "")

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state
        self.run.clicked.connect(lambda: presenter.run(again=shift_is_held()))
        self.stop.clicked.connect(lambda: presenter.stop())
        self.back.clicked.connect(lambda: presenter.looking.back())

        for key, one in self.offers.items():
            one.clicked.connect(lambda _=False, key=key: presenter.act(key))

        def show_status() -> None:
            fault = state.obstacle or " ".join(state.faults.values())
            self.show_status(state.status, fault, 0 if state.selected else len(state.painted))
            there = state.section is not None
            self.run.setVisible(there)
            self.line.setVisible(there)
            words = request_words(state, presenter.runs.editing, presenter.section_fault())
            self.words.show_text(*words if there else ("",))

        def show_message() -> None:
            self.message.show_text(state.message.text, state.message.kind)
            self.room.fit()
            for key, one in self.offers.items():
                one.setVisible(key in state.message.offers)

        show_progress = paced(
            self, lambda: self.show_progress(state.progress, state.busy), lambda: state.progress is not None
        )
        connections = connect_state(
            state.events,
            ("status busy section checkpoint selected request faults estimate samples", show_status),
            ("progress busy", show_progress),
            ("way_back", lambda: self.back.setVisible(state.way_back)),
            ("message", show_message),
        )
        connections.add(self.queue.bind(presenter).close)
        return connections

    def show_status(self, status: RunStatus, obstacle: str, painted: int = 0) -> None:
        """Enable the actions, for ``painted`` spots where none is selected; the reason why Run is disabled is its tooltip."""
        self.run.setEnabled(not obstacle)
        where = f" on {counted(painted, 'painted spot')}" if painted else ""
        self.run.setText(("Queue" if status.busy else "Run") + where)
        tip = "Queue this run: it starts when the present one has ended" if status.busy else RUN_TIP
        self.run.setToolTip(obstacle or with_key(tip, "run"))
        self.stop.setEnabled(status is RunStatus.RUNNING)
        self.stop.setText("Stopping …" if status is RunStatus.STOPPING else "Stop")
        self.stop.setVisible(status.busy)

    def show_progress(self, progress: Progress | None, busy: str) -> None:
        """Show the progress of a run, or what is being opened or loaded and since when; without animation."""
        self.bar.setVisible(progress is not None)
        if busy != self._busy:
            self._busy, self._since = busy, time.monotonic()
        if progress is None:
            self._tick()
            if busy and not self._clock.isActive():
                self._clock.start(1000)
            return
        self._clock.stop()
        self.bar.setUpdatesEnabled(False)  # else it draws itself at once, and the words beside it once more
        self.bar.setValue(round(1000 * progress.fraction))
        self.bar.setUpdatesEnabled(True)
        left = "" if progress.eta_s is None else f", {duration(progress.eta_s)} left"
        done = f"{progress.patches_done} of {counted(progress.patches_total, 'patch', 'patches')}"
        self.count.show_text(progress.doing or f"{done}{left}")

    def _tick(self) -> None:
        seconds = round(time.monotonic() - self._since)
        if not self._busy:
            self._clock.stop()
        self.count.show_text(
            f"{self._busy} … {seconds} s" if self._busy and seconds else self._busy and f"{self._busy} …"
        )


def shift_is_held() -> bool:
    """Return whether Shift is held, which makes an existing result again."""
    return bool(QGuiApplication.keyboardModifiers() & Qt.KeyboardModifier.ShiftModifier)
