"""State of one viewer's workbench, as one evented value holder; knows neither Qt nor napari."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import SignalGroupDescriptor

from ..edits import Edit, Swap
from ..errors import StmditError
from ..evaluation.evaluate import Evaluated
from ..evaluation.measures import MeasureRow
from ..evaluation.selection import EditEffect
from ..expression.groups import GroupTable
from ..intent import Request
from ..progress import Progress
from ..synthesis.models import PatchModel
from ..synthesis.plan import Estimate
from ..synthesis.result import Result
from ..synthesis.stored import StoredResult
from ..synthesis.unsaved import MAX_DAYS, KeptSession, results_and_edits
from ..synthesis.variants import ContactSheet
from ..text import counted
from ..tissue.alignment import Alignment
from ..types import Section

Combine = Literal["replace", "add", "subtract", "toggle"]
"""Effect of a click or a lasso on the selection."""
Tool = Literal["click", "rectangle", "lasso", "brush"]
Show = Literal["measured", "edited", "change"]
"""Expression as measured, after the edits, or the difference, which is always in log units."""
SpotLook = Literal["fill", "outline", "hide"]
"""Style of spots: filled with the colour of their value, as rings, or hidden."""
Span = Literal["zero_p99", "p1_p99", "min_max"]
"""Automatic limits: zero to 99th percentile, 1st to 99th percentile, minimum to maximum."""


class RunStatus(StrEnum):
    """Status of the viewer's run."""

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
class Colouring:
    """Colouring of spots: by a gene, a program or a column of the table; by none of them only rings are drawn."""

    gene: str | None = None  # symbol or Ensembl id
    log: bool = True  # log(1 + counts per 10,000) instead of counts per 10,000
    # values at the ends of the colour map; None takes them from the values, as ``span`` says
    limits: tuple[float, float] | None = None
    # name of a napari colour map; a change has a diverging one of ours and categories have their own colours
    colormap: str = "viridis"
    program: str | None = None  # name of a program: the weighted mean of its genes
    obs: str | None = None  # name of a column of the table
    show: Show = "measured"  # for genes and programs
    span: Span = "zero_p99"

    @property
    def key(self) -> tuple[str | None, ...]:
        """Gene, program or column; the user's limits are kept for each."""
        return (self.gene, self.program, self.obs, self.show, str(self.log))


@dataclass(frozen=True)
class ColourScale:
    """Meaning of the spots' colours: the limits and their unit, or why there are none.

    ``gene`` names the source of values; ``categories`` are (name, RGBA, spots) of a column of categories.
    """

    gene: str | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    fault: str = ""
    colormap: str = "viridis"
    categories: tuple[tuple[str, tuple[float, ...], int], ...] = ()


@dataclass(frozen=True)
class Brush:
    """Settings of the brush."""

    radius_um: float = 150.0  # in microns; in full-resolution pixels where the section is not calibrated
    softness: float = 0.5  # part of the radius over which the weight falls off to nothing, 0 to 1
    # weight that one stroke gives at its middle, 0 to 1; a further stroke adds that share of what is left to 1
    strength: float = 1.0
    erase: bool = False  # take weight away instead


@dataclass(frozen=True)
class EditDraft:
    """Content of the edit form; see `napari_stmdit.edits`."""

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
    """Choice of checkpoint, by name or folder, device, and embeddings in place of its encoders."""

    checkpoint: str = "demo"
    device: str = "auto"
    morphology_embeddings: str | None = None
    expression_embeddings: str | None = None


@dataclass(frozen=True)
class Fetching:
    """Download under way: its name, the share that has arrived, and the file."""

    name: str
    fraction: float = 0.0
    file: str = ""


@dataclass(frozen=True)
class Foreign:
    """Inspected foreign checkpoint that can be converted, with what has to be asked."""

    path: str  # its file or folder
    summary: str  # what it is, in words
    patch_px: int  # side of its patches
    candidates: tuple[tuple[float, str], ...]  # plausible microns per pixel, and what each would mean
    takes_expression: bool  # whether a gene list is of use to it


Kind = Literal["info", "warning", "error"]
Offer = Literal["again", "go_on"]
"""Action that a message offers: run again, or continue a stopped run."""


@dataclass(frozen=True)
class Message:
    """Sentence for the user that stays until the next one."""

    kind: Kind
    text: str
    offers: tuple[Offer, ...] = ()  # what can be done about it, a button each


@dataclass(frozen=True, eq=False)
class ResultEntry:
    """Result in the list: of a run of this viewer, or of the section's store."""

    number: int  # in this viewer; its identity
    name: str  # of its layer; says that it is synthetic
    section: Section  # what it was made from
    request: Request
    provenance: Mapping[str, Any]  # and how
    # ids of the spots that were finished; of seamless tissue those of the region that lie in finished tiles
    spots: tuple[str, ...]
    planned: int  # how many spots were asked for
    result: Result | None = None  # the run's own result; None for one that was read back
    visible: bool = True  # whether its layer is shown
    saved: str | None = None  # where it was saved, in words
    thumbnail: NDArray[np.uint8] | None = None  # (h, w, 4) uint8, small
    stored: StoredResult | None = None  # the result as it was read back; None for a run of this viewer

    @property
    def title(self) -> tuple[str, str]:
        """Name in two parts: what was done and where, and that it is synthetic, with its number."""
        head, _, tail = self.name.rpartition(" (")
        return (head, tail.removesuffix(")")) if head and "synthetic" in tail else (self.name, "")

    @property
    def label(self) -> str:
        """Name with what differs first, for narrow places."""
        what, which = self.title
        return f"{which}: {what}" if which else what

    @property
    def counterfactual(self) -> bool:
        """Whether real tissue was edited; its baseline is then the slide."""
        return bool(self.provenance.get("counterfactual"))

    @property
    def source(self) -> Result | StoredResult | None:
        """The result, for writing files."""
        return self.result if self.result is not None else self.stored


@dataclass(frozen=True)
class QueuedRun:
    """Queued work: its number in the queue, and its description."""

    number: int
    title: str


CompareMode = Literal["grid", "swipe", "blink", "fade"]


@dataclass(frozen=True)
class Comparison:
    """Active comparison."""

    mode: CompareMode  # side by side, swipe, blink or fade
    left: int | None  # number of a result, or None for the slide
    right: int  # number of a result
    position: float = 0.5  # of the seam (swipe) or the opacity of the right one (fade, blink), 0 to 1


@dataclass(frozen=True, eq=False)
class CloseUp:
    """Close-up of one spot: its patches by column (``real``, ``baseline``, ``edited`` or ``synthetic``), and their measures.

    Edited real tissue also has ``change``, a picture (h, w, 3) uint8 of the difference of haematoxylin, and the density at the ends of
    its colours.
    """

    spot: str
    patches: Mapping[str, NDArray[np.uint8]]
    rows: tuple[MeasureRow, ...]
    patch_um: float
    words: str = ""
    change: NDArray[np.uint8] | None = None
    limit: float = 0.0


@dataclass(eq=False, repr=False)
class WorkbenchState:
    """State of all forms; each field has a signal of its name in ``events``."""

    events: ClassVar[SignalGroupDescriptor] = SignalGroupDescriptor(
        equality_operators={
            "section": operator.is_,
            "checkpoint": operator.is_,
            "results": operator.is_,
            "close_up": operator.is_,
            "sheet": operator.is_,
            "alignment": operator.is_,
            "groups": operator.is_,
            "check_pictures": operator.is_,
            "evaluation": operator.is_,
            "effects": operator.is_,
            "kept": operator.is_,
        }
    )

    section: Section | None = None
    alignment: Alignment | None = None  # how spots and slide fit; None while it is not known
    # the spots over the slide as they are and, where they fit clearly better so, turned or mirrored; empty while not asked for
    check_pictures: tuple[NDArray[np.uint8], ...] = ()
    colouring: Colouring = Colouring()
    colour_scale: ColourScale = ColourScale()
    selected: tuple[str, ...] = ()  # ids of the selected spots, in the order of the section's table
    tool: Tool = "click"
    spots_as: SpotLook = "fill"
    combine: Combine = "replace"
    model: ModelChoice = ModelChoice()
    checkpoint: PatchModel | None = None
    devices: tuple[tuple[str, str], ...] = ()
    request: Request = Request()  # the form's request; region, section and checkpoint are filled in when it is run
    batch: int | None = None  # patches denoised together; None is the default, `napari_stmdit.progress.BATCH`
    status: RunStatus = RunStatus.IDLE
    progress: Progress | None = None
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)  # field of the request -> what is wrong with it
    message: Message = Message("info", "")
    busy: str = ""  # what is being opened, loaded or saved, in words; empty where nothing is
    opening: bool = False  # whether a section is being opened
    scale_asked: str = ""  # path of the slide whose scale has to be given before it can be opened; empty where none
    exporting: str = ""  # the data set that is being written, in words; empty where none is
    fetching: Fetching | None = None  # the download under way
    offered: str = ""  # public section that was asked for and is not on this computer
    sizes: Mapping[str, int | None] = field(default_factory=dict)  # bytes of public sections whose servers were asked
    foreign: Foreign | None = None  # a foreign checkpoint that waits for the user's answers
    converting: bool = False  # whether it is being converted
    results: tuple[ResultEntry, ...] = ()
    chosen_result: int | None = None
    way_back: bool = False  # whether the camera was moved to a result, and where the user looked before is known
    draft: EditDraft = EditDraft()  # the form of an edit
    draft_faults: Mapping[str, str] = field(default_factory=dict)  # and what is wrong with it
    brush: Brush = Brush()
    # place in ``request.edits`` of the edit that the form shows and the brush paints on; None for a new one
    chosen_edit: int | None = None
    # whether a change of the edits can be undone, and whether one can be done again
    undoable: tuple[bool, bool] = (False, False)
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # selections that were given a name
    groups: GroupTable | None = None  # the selection compared with other spots
    comparison: Comparison | None = None
    live: bool = False  # whether this tissue is shown as the edits change it, before Run
    live_text: str = ""  # what of it is shown, in words
    # number of an edited result -> what its edits change over all its spots, or why that cannot be measured
    effects: Mapping[int, EditEffect] = field(default_factory=dict)
    effect_faults: Mapping[int, str] = field(default_factory=dict)
    changes: frozenset[int] = frozenset()  # numbers of the results whose change is shown by a layer
    samples: int = 1  # results to make of one request, each with a seed of its own; an edit of real tissue has one
    queue: tuple[QueuedRun, ...] = ()  # runs that wait
    queue_held: bool = False  # whether they wait for the user rather than for the present run
    hovered: str | None = None  # id of the spot under the mouse
    close_up: CloseUp | None = None  # what is known of that spot, or of the first selected one
    sheet: ContactSheet | None = None  # the contact sheet that was made last, or is being made
    evaluation: Evaluated | None = None  # the evaluation that was finished last
    kept: tuple[KeptSession, ...] = ()  # what earlier sessions left unsaved, and is offered
    # whether what is not saved is kept on disk from when it is made, and why the last of it could not be
    keeps: bool = False
    keep_fault: str = ""
    written_edits: tuple[Edit, ...] = ()  # the edits that were written to a file, or read from one, last

    def __repr__(self) -> str:
        """Return a line for reports of errors, without every gene of a section."""
        section = "no section" if self.section is None else self.section.name
        return f"<WorkbenchState: {section}, {self.status}, {counted(len(self.results), 'result')}>"

    def tell(self, kind: Kind, text: str, *offers: Offer) -> None:
        """Show a message to the user; it stays until the next one."""
        self.message = Message(kind, text, offers)

    def tell_error(self, error: Exception) -> None:
        """Show an error to the user."""
        self.tell("error", str(error))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Show an error in place of raising it."""
        try:
            yield
        except (StmditError, OSError) as error:
            self.tell_error(error)

    @property
    def unsaved_edits(self) -> tuple[Edit, ...]:
        """Edits that neither a file nor a saved result holds."""
        edits = self.request.edits
        saved = [entry.request.edits for entry in self.results if entry.saved is not None]
        return () if edits in (self.written_edits, *saved) else edits

    @property
    def loss(self) -> str:
        """Sentence on unsaved work when the window closes; empty where everything is saved."""
        then = "closing loses them. Cancel, then Save in the list of results keeps one."
        if self.keeps and not self.keep_fault:
            then = f"kept, and offered when you open this dock again within {MAX_DAYS} days."
        unsaved = sum(entry.saved is None for entry in self.results)
        return " ".join([*_not_saved(unsaved, len(self.unsaved_edits), then), *self._ending("closing")])

    def replacing(self, same: bool) -> str:
        """Return a sentence on a run and unsaved work when another section, or the ``same`` one anew, replaces the open one; empty where nothing changes."""
        section = self.section
        if section is None:
            return ""
        said = []
        if not same:  # else everything stays
            own, edits = sum(e.saved is None and e.section is section for e in self.results), len(self.unsaved_edits)
            stays = ["results stay in the list"] if own else []
            stays += [f"edits come back when you open {section.name} again"] if edits else []
            said = _not_saved(own, edits, f"{', '.join(stays)}.")
        return " ".join([*said, *self._ending("replacing the section")])

    def _ending(self, what: str) -> list[str]:
        """Return sentences on the work that something ends."""
        said = []
        if self.status.busy:
            of = self.progress
            done = "" if of is None else f" at {of.patches_done} of {of.patches_total} patches"
            said.append(f"A run is under way{done}: {what} ends it, and what is finished is kept.")
        if self.queue:
            said.append(f"{counted(len(self.queue), 'queued run')} will not be made.")
        return said

    @property
    def painted(self) -> tuple[str, ...]:
        """Ids of the spots of enabled edits, in the order of the section's table."""
        edits = [edit for edit in self.request.edits if edit.enabled]
        named = {spot for edit in edits for spot in edit.spots or ()}
        for edit in edits:
            if isinstance(edit, Swap):
                named |= {*edit.group_a, *edit.group_b}
        if self.section is None or not named:
            return ()
        return tuple(spot for spot in self.section.spots.ids.tolist() if spot in named)

    @property
    def targets(self) -> tuple[str, ...]:
        """Ids of the spots to run: the selected ones, or with none selected the painted ones."""
        return self.selected or self.painted

    @property
    def obstacle(self) -> str:
        """Reason why Run cannot be pressed; empty where it can."""
        if self.section is None:
            return "Open a section first."
        if self.busy:
            return f"{self.busy} ..."
        if self.checkpoint is None:
            return "Choose a checkpoint first."
        if not self.targets:
            return "Select spots first (click them or draw a lasso), or paint an edit on them."
        return ""


def _not_saved(results: int, edits: int, then: str) -> list[str]:
    words = results_and_edits(results, edits)
    return [f"{words} {'is' if results + edits == 1 else 'are'} not saved: {then}"] if words else []
