"""What the workbench of one viewer shows and does, as one evented value holder; knows neither Qt nor napari."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import SignalGroupDescriptor

from ..evaluation.evaluate import Evaluated
from ..evaluation.measures import MeasureRow
from ..intent import Request
from ..progress import Progress
from ..synthesis.estimate import Estimate
from ..synthesis.models import PatchModel
from ..synthesis.result import Result
from ..synthesis.stored import StoredResult
from ..synthesis.variants import ContactSheet
from ..tissue.slide import SlideOptions
from ..types import Section

Combine = Literal["replace", "add", "subtract", "toggle"]
"""What a click or a lasso does to the selection."""
Tool = Literal["click", "rectangle", "lasso", "brush"]
Show = Literal["measured", "edited", "change"]
"""Expression as measured, after the edits, or the difference, which is always in log units."""
Span = Literal["zero_p99", "p1_p99", "min_max"]
"""Automatic limits: zero to the 99th percentile, 1st to 99th percentile, least to greatest."""


class RunStatus(StrEnum):
    """Where the one run of a viewer stands."""

    IDLE = "idle"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self in (RunStatus.RUNNING, RunStatus.STOPPING)


@dataclass(frozen=True)
class OpenIntent:
    """Which section to open: its path, what the user says in place of the files, and what is asked of a plain slide."""

    path: str
    fullres: str | None = None
    mpp: float | None = None
    slide: SlideOptions = SlideOptions()


@dataclass(frozen=True)
class Colouring:
    """How spots are coloured: by a gene, a program or a column of the table; by none of them, rings alone are drawn.

    Attributes
    ----------
    gene
        Symbol or Ensembl id.
    log
        log(1 + counts per 10,000) instead of counts per 10,000.
    limits
        Values at the ends of the colour map; None takes them from the values, as ``span`` says.
    colormap
        Name of a napari colour map; a change has a diverging one of ours and categories have their own colours.
    program
        Name of a program: the weighted mean of its genes.
    obs
        Name of a column of the table.
    show
        For genes and programs.
    """

    gene: str | None = None
    log: bool = True
    limits: tuple[float, float] | None = None
    colormap: str = "viridis"
    program: str | None = None
    obs: str | None = None
    show: Show = "measured"
    span: Span = "zero_p99"

    @property
    def key(self) -> tuple[str | None, ...]:
        """What is coloured by, apart from how: limits that the user set are kept for each."""
        return (self.gene, self.program, self.obs, self.show, str(self.log))


@dataclass(frozen=True)
class ColourScale:
    """What the colours of the spots mean: the limits in force and their unit, or why there are none.

    ``gene`` is what is coloured by, in words; ``categories`` are (name, RGBA, spots) where it is a column of categories.
    """

    gene: str | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    fault: str = ""
    colormap: str = "viridis"
    categories: tuple[tuple[str, tuple[float, ...], int], ...] = ()


@dataclass(frozen=True)
class Brush:
    """How the brush paints.

    Attributes
    ----------
    radius_um
        In microns; in full-resolution pixels where the section is not calibrated.
    softness
        Part of the radius over which the weight falls off to nothing, 0 to 1.
    strength
        Weight that one stroke gives at its middle, 0 to 1; a further stroke adds that share of what is left to 1.
    erase
        Take weight away instead.
    """

    radius_um: float = 150.0
    softness: float = 0.5
    strength: float = 1.0
    erase: bool = False


@dataclass(frozen=True)
class EditDraft:
    """What the next edit is to be, or what the chosen one is; see the edits in `napari_stmdit.types`."""

    operation: Literal["scale", "add", "set_quantile", "knock_out", "towards", "swap"] = "add"
    genes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    factor: float = 3.0
    log_units: float = 1.0
    quantile: float = 0.95
    follow: Literal["section", "none"] = "section"
    target_profile: str | None = None
    target_spots: tuple[str, ...] = ()
    group_a: tuple[str, ...] = ()
    group_b: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelChoice:
    """Which checkpoint is to be used, by name or folder, on which device, and embeddings in place of its encoders."""

    checkpoint: str = "demo"
    device: str = "auto"
    morphology_embeddings: str | None = None
    expression_embeddings: str | None = None


@dataclass(frozen=True)
class Fetching:
    """A download under way: its name, the share that has arrived, and the file."""

    name: str
    fraction: float = 0.0
    file: str = ""


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint that was looked at and can be converted, with what has to be asked.

    Attributes
    ----------
    path
        Its file or folder.
    summary
        What it is, in words.
    patch_px
        Side of its patches.
    candidates
        Plausible microns per pixel, and what each would mean.
    takes_expression
        Whether a gene list is of use to it.
    """

    path: str
    summary: str
    patch_px: int
    candidates: tuple[tuple[float, str], ...]
    takes_expression: bool


@dataclass(frozen=True)
class Message:
    """A sentence for the user that stays until the next one."""

    kind: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, eq=False)
class ResultEntry:
    """One result in the list: a run of this viewer, or one read back from the section's store.

    Attributes
    ----------
    number
        In this viewer; its identity.
    name
        Of its layer; says that it is synthetic.
    section, request, provenance
        What it was made from, and how.
    spots
        Ids of the spots that were finished; of seamless tissue those of the region that lie in finished tiles.
    planned
        How many spots were asked for.
    result
        The run's own result; None for one that was read back.
    stored
        The result as it was read back; None for a run of this viewer.
    visible
        Whether its layer is shown.
    saved
        Where it was saved, in words.
    thumbnail
        (h, w, 4) uint8, small.
    """

    number: int
    name: str
    section: Section
    request: Request
    provenance: Mapping[str, Any]
    spots: tuple[str, ...]
    planned: int
    result: Result | None = None
    visible: bool = True
    saved: str | None = None
    thumbnail: NDArray[np.uint8] | None = None
    stored: StoredResult | None = None

    @property
    def counterfactual(self) -> bool:
        """Whether it is real tissue that was edited; its baseline is then the slide."""
        return bool(self.provenance.get("counterfactual"))

    @property
    def source(self) -> Result | StoredResult | None:
        """What files are made from."""
        return self.result if self.result is not None else self.stored


@dataclass(frozen=True)
class QueuedRun:
    """Work that waits for the present run to end: its number in the queue, and what it is in words."""

    number: int
    title: str


CompareMode = Literal["grid", "swipe", "blink", "fade"]


@dataclass(frozen=True)
class Comparison:
    """A comparison that is on.

    Attributes
    ----------
    mode
        Side by side, swipe, blink or fade.
    left
        Number of a result, or None for the slide.
    right
        Number of a result.
    position
        Of the seam (swipe) or the opacity of the right one (fade, blink), 0 to 1.
    """

    mode: CompareMode
    left: int | None
    right: int
    position: float = 0.5


@dataclass(frozen=True, eq=False)
class CloseUp:
    """One spot seen closely: its patches by column (``real``, ``baseline``, ``edited`` or ``synthetic``), and their measures.

    Of edited real tissue also ``change``, a picture (h, w, 3) uint8 of the difference of haematoxylin, and the density at the ends of
    its colours.
    """

    spot: str
    patches: Mapping[str, NDArray[np.uint8]]
    rows: tuple[MeasureRow, ...]
    patch_um: float
    words: str = ""
    change: NDArray[np.uint8] | None = None
    limit: float = 0.0


@dataclass(eq=False)
class WorkbenchState:
    """Everything the forms show; each field has a signal of its name in ``events``.

    Attributes
    ----------
    selected
        Ids of the selected spots, in the order of the section's table.
    request
        The form's request; region, section and checkpoint are filled in when it is run.
    batch
        Patches denoised together; None is the default, `napari_stmdit.progress.BATCH`.
    changes
        Numbers of the results whose change is shown by a layer.
    samples
        Results to make of one request, each with a seed of its own; an edit of real tissue has one.
    queue, queue_held
        Runs that wait, and whether they wait for the user rather than for the present run.
    hovered
        Id of the spot under the mouse.
    close_up
        What is known of that spot, or of the first selected one.
    sheet, evaluation
        The contact sheet that was made last, or is being made; the evaluation that was finished last.
    faults
        Field of the request -> what is wrong with it.
    busy
        What is being opened, loaded or saved, in words; empty where nothing is.
    scale_asked
        Path of the slide whose scale has to be given before it can be opened; empty where none.
    exporting
        The data set that is being written, in words; empty where none is.
    fetching
        The download under way.
    foreign, converting
        A foreign checkpoint that waits for the user's answers, and whether it is being converted.
    draft, draft_faults
        The form of an edit, and what is wrong with it.
    chosen_edit
        Place in ``request.edits`` of the edit that the form shows and the brush paints on; None for a new one.
    undoable
        Whether a change of the edits can be undone, and whether one can be done again.
    named
        Selections that were given a name.
    """

    events: ClassVar[SignalGroupDescriptor] = SignalGroupDescriptor(
        equality_operators={
            "section": operator.is_,
            "checkpoint": operator.is_,
            "results": operator.is_,
            "close_up": operator.is_,
            "sheet": operator.is_,
            "evaluation": operator.is_,
        }
    )

    section: Section | None = None
    colouring: Colouring = Colouring()
    colour_scale: ColourScale = ColourScale()
    selected: tuple[str, ...] = ()
    tool: Tool = "click"
    combine: Combine = "replace"
    model: ModelChoice = ModelChoice()
    checkpoint: PatchModel | None = None
    devices: tuple[tuple[str, str], ...] = ()
    request: Request = Request()
    batch: int | None = None
    status: RunStatus = RunStatus.IDLE
    progress: Progress | None = None
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    message: Message = Message("info", "Open a section to begin.")
    busy: str = ""
    scale_asked: str = ""
    exporting: str = ""
    fetching: Fetching | None = None
    foreign: Foreign | None = None
    converting: bool = False
    results: tuple[ResultEntry, ...] = ()
    chosen_result: int | None = None
    draft: EditDraft = EditDraft()
    draft_faults: Mapping[str, str] = field(default_factory=dict)
    brush: Brush = Brush()
    chosen_edit: int | None = None
    undoable: tuple[bool, bool] = (False, False)
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    comparison: Comparison | None = None
    changes: frozenset[int] = frozenset()
    samples: int = 1
    queue: tuple[QueuedRun, ...] = ()
    queue_held: bool = False
    hovered: str | None = None
    close_up: CloseUp | None = None
    sheet: ContactSheet | None = None
    evaluation: Evaluated | None = None

    @property
    def obstacle(self) -> str:
        """Why Run cannot be pressed, in words; empty where it can."""
        if self.section is None:
            return "Open a section first."
        if self.busy:
            return f"{self.busy} ..."
        if self.checkpoint is None:
            return "Choose a checkpoint first."
        if not self.selected:
            return "Select spots first: click them or draw a lasso."
        return ""
