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

from ..evaluation.spot import MeasureRow
from ..progress import Progress
from ..synthesis.estimate import Estimate
from ..synthesis.result import Result
from ..synthesis.run import PatchModel
from ..synthesis.sheet import ContactSheet
from ..types import Request, Section

Combine = Literal["replace", "add", "subtract", "toggle"]
"""What a click or a lasso does to the selection."""
Tool = Literal["click", "lasso"]


class RunStatus(StrEnum):
    """Where the one run of a viewer stands."""

    IDLE = "idle"
    PLANNING = "planning"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self in (RunStatus.PLANNING, RunStatus.RUNNING, RunStatus.STOPPING)


@dataclass(frozen=True)
class OpenIntent:
    """Which section to open: its path, and what the user says in place of the files."""

    path: str
    fullres: str | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Colouring:
    """How spots are coloured.

    Attributes
    ----------
    gene
        Symbol or Ensembl id; None draws rings alone.
    log
        log(1 + counts per 10,000) instead of counts per 10,000.
    limits
        Values at the ends of the colour map; None takes zero and the 99th percentile.
    colormap
        Name of a napari colour map.
    """

    gene: str | None = None
    log: bool = True
    limits: tuple[float, float] | None = None
    colormap: str = "viridis"


@dataclass(frozen=True)
class ColourScale:
    """What the colours of the spots mean: the limits in force and their unit, or why there are none."""

    gene: str | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    fault: str = ""


@dataclass(frozen=True)
class ModelChoice:
    """Which checkpoint is to be used, by name or folder, and on which device."""

    checkpoint: str = "demo"
    device: str = "auto"


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
        Ids of the spots that were finished.
    planned
        How many patches were asked for.
    result
        The run's own result; None for one that was read back.
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
    """One spot seen closely: its patches by column (``real``, ``baseline``, ``edited`` or ``synthetic``), and their measures."""

    spot: str
    patches: Mapping[str, NDArray[np.uint8]]
    rows: tuple[MeasureRow, ...]
    patch_um: float
    words: str = ""


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
        Patches denoised together; None lets the device decide.
    samples
        Results to make of one request, each with a seed of its own.
    queue, queue_held
        Runs that wait, and whether they wait for the user rather than for the present run.
    hovered
        Id of the spot under the mouse.
    close_up
        What is known of that spot, or of the first selected one.
    sheet
        The contact sheet that was made last, or is being made.
    generation
        Number of the present run; what comes from an earlier one is dropped.
    faults
        Field of the request -> what is wrong with it.
    busy
        What is being opened, loaded or saved, in words; empty where nothing is.
    """

    events: ClassVar[SignalGroupDescriptor] = SignalGroupDescriptor(
        equality_operators={
            "section": operator.is_,
            "checkpoint": operator.is_,
            "results": operator.is_,
            "close_up": operator.is_,
            "sheet": operator.is_,
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
    generation: int = 0
    progress: Progress | None = None
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    message: Message = Message("info", "Open a section to begin.")
    busy: str = ""
    results: tuple[ResultEntry, ...] = ()
    chosen_result: int | None = None
    comparison: Comparison | None = None
    samples: int = 1
    queue: tuple[QueuedRun, ...] = ()
    queue_held: bool = False
    hovered: str | None = None
    close_up: CloseUp | None = None
    sheet: ContactSheet | None = None

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
