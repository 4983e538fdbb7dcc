"""What the workbench of one viewer shows and does, as one evented value holder; knows neither Qt nor napari."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal

from psygnal import SignalGroupDescriptor

from ..progress import Progress
from ..synthesis.estimate import Estimate
from ..synthesis.result import Result
from ..synthesis.run import PatchModel
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
    """One run in the list of results: its number in this viewer, its layer's name, the result, and where it was saved."""

    number: int
    name: str
    result: Result
    visible: bool = True
    saved: str | None = None


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
    generation
        Number of the present run; what comes from an earlier one is dropped.
    faults
        Field of the request -> what is wrong with it.
    busy
        What is being opened, loaded or saved, in words; empty where nothing is.
    fetching
        The download under way.
    foreign, converting
        A foreign checkpoint that waits for the user's answers, and whether it is being converted.
    """

    events: ClassVar[SignalGroupDescriptor] = SignalGroupDescriptor(
        equality_operators={
            "section": operator.is_,
            "checkpoint": operator.is_,
            "results": operator.is_,
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
    fetching: Fetching | None = None
    foreign: Foreign | None = None
    converting: bool = False
    results: tuple[ResultEntry, ...] = ()
    chosen_result: int | None = None
    comparing: bool = False

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
