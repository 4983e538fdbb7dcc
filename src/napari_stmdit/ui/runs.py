"""Runs: the queue, the cycle from request to result, and the layer that grows with finished patches. No Qt."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, StmditError
from ..intent import Request
from ..progress import BATCH, Progress
from ..regions import SpotList
from ..synthesis.canvas import MemoryCanvas, fits_in_memory
from ..synthesis.models import Event, Pasted, PatchModel, Preview
from ..synthesis.plan import counterfactual_fault, edited_places, estimate, evaluations, region_rows
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import provenance_of
from ..synthesis.session import Session
from ..synthesis.variants import baseline_of, samples_of
from ..text import counted
from ..tissue.elements import halved_rgba
from ..tissue.images import MIN_LEVEL_PX
from ..types import PatchResult, Plan, Section
from . import jobs, layers
from .compare import grid_of
from .jobs import Handlers, Lane, Start
from .layers import KEY, MAX_SINGLE_PX, LayerTuple, result_layer, result_words
from .results import ResultList
from .state import Offer, QueuedRun, RunStatus, WorkbenchState


class GrowingLayer:
    """Canvas on the screen.

    Parameters
    ----------
    canvas
        Canvas of the run. Its pixels are shown as they are; coarser levels, if any, follow in `changed`.
    section
        The section it belongs to.
    name
        Name of the layer.
    """

    def __init__(self, canvas: MemoryCanvas, section: Section, name: str) -> None:
        self._canvas, self._section, self._name = canvas, section, name
        self.layer: Any = None
        self.levels: list[NDArray[np.uint8]] = [canvas.rgba]
        if canvas.rgba.shape[0] * canvas.rgba.shape[1] > MAX_SINGLE_PX:
            while max(self.levels[-1].shape[:2]) > MIN_LEVEL_PX and min(self.levels[-1].shape[:2]) > 1:
                height, width = self.levels[-1].shape[:2]
                self.levels.append(np.zeros((height // 2, width // 2, 4), dtype=np.uint8))

    def changed(self, box: tuple[int, int, int, int]) -> None:
        """Update the coarser levels under a box (y0, x0, y1, x1) of canvas pixels."""
        y0, x0, y1, x1 = box
        for fine, coarse in zip(self.levels, self.levels[1:], strict=False):
            y0, x0 = y0 // 2, x0 // 2
            y1, x1 = min(-(-y1 // 2), coarse.shape[0]), min(-(-x1 // 2), coarse.shape[1])
            block = np.moveaxis(fine[2 * y0 : 2 * y1, 2 * x0 : 2 * x1], -1, 0)
            coarse[y0:y1, x0:x1] = np.moveaxis(halved_rgba(block), 0, -1)

    def add(self, insert: Callable[[LayerTuple], Any], run: Mapping[str, Any]) -> None:
        """Add the layer; ``run`` goes into its metadata."""
        data, state, kind = result_layer(self._canvas.rgba, self._canvas.frame, self._section, self._name, run)
        if len(self.levels) > 1:
            data, state = self.levels, {**state, "multiscale": True}
        self.layer = insert((data, state, kind))

    def refresh(self) -> None:
        """Send the changes to the screen."""
        if self.layer is not None:
            layers.send(self.layer)

    def finish(self, more: Mapping[str, Any]) -> None:
        """Complete metadata and thumbnail when the run has ended."""
        if self.layer is not None:
            self.layer.metadata[KEY].update(more)
            self.layer.refresh(extent=False, highlight=False)


# The live look at the patch that is being denoised: one small layer at the patch's place, gone when the run ends.


class LivePreview:
    """Preview of a patch while it is denoised.

    Nothing provisional is put on the run's own canvas: what is saved is finished.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._layer: Any = None

    def show(self, patch: PatchResult, plan: Plan, section: Section) -> None:
        """Show a patch in place of the former one."""
        viewer = self._viewer()
        if viewer is None:
            return
        if self._layer is None or self._layer not in viewer.layers:
            if grid_of(viewer).enabled:  # it would take a cell of it
                return
            below = [x for x in viewer.layers if layers.role_of(x) in ("slide", "result")]
            data = layers.preview_layer(patch, plan.frame, section)
            self._layer = layers.insert(viewer, data, above=below[-1] if below else None)
            return
        layers.redraw(self._layer, patch.pixels, layers.patch_affine(patch, plan.frame, section))

    def clear(self) -> None:
        """Remove the layer."""
        layer, self._layer = self._layer, None
        layers.remove(self._viewer(), layer)


# What waits for the present run to end.


@dataclass(frozen=True)
class _Waiting:
    entry: QueuedRun
    start: Callable[[], None]


class RunQueue:
    """Queue of work: started at once where nothing is under way, else in order.

    Work that the user stopped or that failed holds the queue: who presses Stop wants the computer to stop, and what failed
    once may fail again. `resume`, or the next run that ends well, releases it.
    """

    def __init__(self, state: WorkbenchState) -> None:
        self._state = state
        self._waiting: list[_Waiting] = []
        self._count = 0

    def add(self, title: str, start: Callable[[], None]) -> bool:
        """Start work or queue it; return whether it was started. ``start`` has to set the state to busy."""
        if not self._state.status.busy:
            start()
            return True
        self._count += 1
        self._waiting.append(_Waiting(QueuedRun(self._count, title), start))
        self._tell()
        return False

    def remove(self, number: int) -> None:
        """Remove one piece of work."""
        self._waiting = [one for one in self._waiting if one.entry.number != number]
        self._tell()

    def clear(self) -> int:
        """Remove all work; return how much there was."""
        count = len(self._waiting)
        self._waiting = []
        self._tell()
        return count

    def ended(self, well: bool) -> None:
        """Handle the end of the present work; the next starts if it ended ``well``."""
        self._state.queue_held = bool(self._waiting) and not well
        if self._state.queue_held:
            text = f"{self._state.message.text} {len(self._waiting)} queued: press Continue to go on."
            self._state.tell(self._state.message.kind, text, *self._state.message.offers)
        elif well:
            self.resume()

    def resume(self) -> None:
        """Start the next work where nothing is under way."""
        self._state.queue_held = False
        if self._waiting and not self._state.status.busy:
            one = self._waiting.pop(0)
            self._tell()
            one.start()

    def _tell(self) -> None:
        self._state.queue = tuple(one.entry for one in self._waiting)
        if not self._waiting:
            self._state.queue_held = False


# The request cycle of one viewer: what is wanted becomes a plan, the plan a run, the run a layer.


Then = Callable[[int], None]
"""Callback with a result's number when its run has ended well."""

TOO_LARGE = (
    "the selected spots span more than fits in memory; select fewer, or use the command line, `stmdit synthesize`, which keeps its canvas "
    "on disk"
)
REFRESH_S = 2.0
"""Minimum seconds between two updates of a growing canvas and of the preview, which slow the work down."""
MAX_PREVIEWS = 5
"""Maximum number of previews of a patch while it is denoised."""


class _Present:
    def __init__(self, number: int, session: Session, canvas: MemoryCanvas, name: str, then: Then | None) -> None:
        self.number, self.session, self.canvas, self.name, self.then = number, session, canvas, name, then
        self.growing = GrowingLayer(canvas, session.section, name)
        self.dirty = False
        self.look: PatchResult | None = None
        self.drawn_at = 0.0
        self.failed: StmditError | None = None
        self.stopped = False
        self.abducted = _abducted(session.model) if self.plan.counterfactual else 0

    @property
    def plan(self) -> Plan:
        return self.session.plan


def _abducted(model: PatchModel) -> int:
    """Return the number of patches or windows that a checkpoint has inverted so far."""
    editor = getattr(model, "editor", None)
    return 0 if editor is None else int(editor.abducted)


class RunCycle:
    """Cycle of runs and its state.

    1. `run` freezes form, selection and checkpoint into a Request.
    2. `plan` resolves it against section and card in milliseconds. Faults go beside their fields and end the cycle here. While
       another run is under way, the plan waits in the queue.
    3. The lane takes the next generation number and a worker drives a `Session`; from now on only that number is listened to.
    4. The session pastes finished patches on the canvas, and reports them on the GUI thread. The first patch adds the layer; later
       ones are sent to the screen at most every two seconds.
    5. However the run ends (done, stopped, failed), finished patches become a Result with its provenance, and Run is free.

    Parameters
    ----------
    state
        Of the viewer.
    start
        Starts a job.
    queue
        Queue of runs.
    results
        List of results.
    live
        Preview of a patch.
    redraw
        Called when spots have to be drawn differently, because patches now lie under them.
    """

    def __init__(
        self,
        state: WorkbenchState,
        start: Start,
        queue: RunQueue,
        results: ResultList,
        live: LivePreview,
        redraw: Callable[[], None],
    ) -> None:
        self.state = state
        self.live_preview = True
        self.edited_tissue: Callable[[int], None] = lambda number: None
        """Callback with a result's number when an edit of real tissue has ended well."""
        self._lane = Lane(start)
        self._queue = queue
        self._results = results
        self._live = live
        self._redraw = redraw
        self._present: _Present | None = None
        self._pace: dict[str, float] = {}
        self._noise: dict[tuple[Any, ...], set[Any]] = {}
        self._left: Request | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the present run."""
        return None if self._present is None else self._present.plan

    # --- what is wanted

    def request(self) -> Request:
        """Return the whole request: the form's, for the selected spots and the chosen checkpoint."""
        state = self.state
        update: dict[str, Any] = {"checkpoint": state.model.checkpoint}
        if state.targets:
            update["region"] = SpotList(ids=state.targets)
        wanted = state.request
        if wanted.expression == "own":  # what is usual; a section without expression then has null
            wanted = wanted.leaving_open("expression")
        return wanted.model_copy(update=update)

    def edit_fault(self) -> str:
        """Return why the request cannot edit this tissue; empty where it can."""
        model = self.state.checkpoint
        if model is None or self.state.section is None:
            return "Choose a checkpoint first." if self.state.section is not None else "Open a section first."
        return counterfactual_fault(self.request(), model.card) or ""

    @property
    def editing(self) -> bool:
        """Whether a run would edit this tissue rather than make new tissue."""
        wanted = self.state.request.counterfactual
        return wanted == "on" or (wanted == "auto" and not self.edit_fault())

    @property
    def _samples(self) -> int:
        """Number of results of a run; an edit of one and the same tissue has only one, as its noise is fixed."""
        return 1 if self.editing and not self.state.request.fresh_noise else self.state.samples

    def preview(self) -> None:
        """Plan without running; show the cost, or the faults beside their fields."""
        state = self.state
        plan = None
        if state.section is None or state.checkpoint is None or not state.targets:
            state.faults = {}
        else:
            plan = self._planned(self.request())
        state.estimate = None
        if plan is not None and state.section is not None:
            pace, kept = self._pace.get(self._device()), self._kept_noise(plan, state.section)
            state.estimate = estimate(plan, pace, self._samples, ids=state.section.spots.ids, kept=kept)
        state.notes = () if plan is None else plan.notes

    def _planned(self, request: Request) -> Plan | None:
        state = self.state
        assert state.section is not None and state.checkpoint is not None
        try:
            plan = make_plan(state.section, request, state.checkpoint)
        except RequestError as error:
            state.faults = dict(error.faults)
            return None
        state.faults = {} if fits_in_memory(plan.frame) else {"region": TOO_LARGE}
        return None if state.faults else plan

    # --- the run

    def run(self) -> None:
        """Run the request, or queue it; with several samples, one run for each."""
        state = self.state
        if state.obstacle:
            state.tell("warning", state.obstacle)
            return
        for request in samples_of(self.request(), self._samples):
            if not self.submit(request):
                return

    def submit(self, request: Request, then: Then | None = None) -> bool:
        """Plan a whole request and run or queue it; return whether it could be planned."""
        state = self.state
        section, model = state.section, state.checkpoint
        if section is None or model is None:
            state.tell("warning", state.obstacle)
            return False
        plan = self._planned(request)
        if plan is None:
            if not state.status.busy:
                state.status = RunStatus.FAILED
            text = " ".join(dict.fromkeys(state.faults.values()))
            state.tell("error", f"This cannot be run: {text}")
            self.preview()  # the form has faults of its own, if any
            return False
        edits = f", {counted(len(request.edits), 'edit')}" if request.edits else ""
        title = f"{counted(len(plan), 'patch', 'patches')}, seed {request.seed}{edits}"
        if not self._queue.add(title, partial(self._launch, plan, section, model, then)):
            state.tell("info", f"Queued: {title}.")
        return True

    def run_baseline(self, number: int, then: Then | None = None) -> bool:
        """Run a result's request without its edits, with the same seeds; return whether it could be planned."""
        entry = self._results.entry(number)
        if entry is not None and entry.counterfactual:
            self.state.tell("warning", f"The baseline of {entry.name} is the slide; compare it with that.")
            return False
        if fault := self._results.elsewhere(number):
            self.state.tell("warning", fault)
            return False
        return entry is not None and self.submit(baseline_of(entry.request), then)

    def run_again(self, number: int) -> bool:
        """Run a result's request again, to the same pixels; return whether it could be planned."""
        entry = self._results.entry(number)
        if entry is None:
            return False
        if fault := self._results.elsewhere(number):
            self.state.tell("warning", fault)
            return False
        model = self.state.checkpoint
        before = dict(entry.provenance.get("checkpoint") or {})
        if model is not None and before.get("sha256") not in (None, model.provenance.get("sha256")):
            text = (
                f"{entry.name} was made with checkpoint {before.get('name')!r} in another state; load that one first."
            )
            self.state.tell("warning", text)
            return False
        return self.submit(entry.request)

    def _launch(self, plan: Plan, section: Section, model: PatchModel, then: Then | None) -> None:
        state = self.state
        number = self._results.next_number()
        new = not plan.counterfactual
        spots = section.spots.ids[region_rows(section, plan.request, [])].tolist()
        name = result_words(plan.request, spots, section, plan.counterfactual, number)
        every = max(1, -(-plan.steps // MAX_PREVIEWS)) if self.live_preview else 0
        canvas = MemoryCanvas(plan.frame, plan.counterfactual)
        session = Session(plan, section, model, canvas, batch=state.batch or BATCH, preview_every=every)
        self._present = _Present(number, session, canvas, name, then)
        state.progress = None
        state.status = RunStatus.RUNNING
        state.tell("info", f"{'Synthesizing' if new else 'Editing'} {counted(len(plan), 'patch', 'patches')} ...")
        self._redraw()
        self._lane.submit(jobs.synthesis(session), Handlers(self._advance, self._failed, self._ended))

    def stop(self) -> None:
        """Ask the run to end at its next denoising step; finished patches are kept."""
        if self._present is not None:
            self._present.stopped = True
            self.state.status = RunStatus.STOPPING
            self._lane.cancel()

    def abandon(self) -> None:
        """End the run now and ignore further answers; what arrived is kept."""
        if self._present is not None:
            self._present.stopped = True
            self._lane.abandon()
            self._present.session.close()
            self._ended()

    def forget(self, number: int) -> None:
        """Handle the removal of a result's layer; its run, if under way, is ended and dropped."""
        if self._present is not None and self._present.number == number:
            self._lane.abandon()
            self._present.session.close()
            self._present = None
            self._live.clear()
            self.state.status = RunStatus.STOPPED
            self.state.tell("info", "The run was ended, as its layer was removed.")
            self._queue.ended(well=False)

    def _advance(self, event: Event) -> None:
        present = self._present
        if present is None:
            return
        match event:
            case Preview(image=image):
                present.look = image
            case Pasted(images=images):
                for image in images:
                    present.growing.changed(image.patch.canvas_box)
                present.dirty, present.look = True, None
            case Progress():
                self.state.progress = event
        due = present.dirty or present.look is not None
        if due and time.perf_counter() - present.drawn_at >= REFRESH_S:
            if present.dirty:
                self._draw(present)
            if present.look is not None and self.state.comparison is None:
                self._live.show(present.look, present.plan, present.session.section)
            present.look, present.drawn_at = None, time.perf_counter()

    def _draw(self, present: _Present) -> None:
        if present.growing.layer is None:
            run = {"run": present.number, "provenance": self._provenance(present)}
            present.growing.add(self._results.insert, run)
        else:
            present.growing.refresh()
        present.dirty = False
        present.drawn_at = time.perf_counter()

    def _failed(self, error: StmditError) -> None:
        if self._present is not None:
            self._present.failed = error

    def _ended(self) -> None:
        present, self._present = self._present, None
        if present is None:
            return
        try:
            self._show_ended(present)
        finally:  # whatever fails there, the next work begins
            if self.state.status.busy:
                self.state.status = RunStatus.FAILED
            self._queue.ended(self.state.status is RunStatus.DONE)

    def _show_ended(self, present: _Present) -> None:
        self._live.clear()
        if present.canvas.finished:
            if present.stopped:  # what was pasted since the last event
                present.growing.changed((0, 0, *present.plan.frame.shape))
            self._draw(present)
            self._keep(present)
        self._close(present)
        self._redraw()
        self.preview()
        if self.state.status is not RunStatus.DONE:
            return
        if present.then is not None:
            present.then(present.number)
        elif present.plan.counterfactual:
            self.edited_tissue(present.number)

    def _keep(self, present: _Present) -> None:
        seconds = present.session.watch.seconds
        self._measure(present, seconds)
        result = present.session.result()
        if present.growing.layer is None:
            return
        present.growing.finish({"provenance": dict(result.provenance), "result": result})
        self._results.keep(present.number, present.growing.layer.name, result)

    def _measure(self, present: _Present, seconds: float) -> None:
        """Record the pace, and the places whose noise is cached now."""
        session, plan, done = present.session, present.plan, len(present.canvas.finished)
        section, model = session.section, session.model
        kept = 0.0
        if plan.counterfactual:
            if done < len(plan):
                return
            places = edited_places(plan, section.spots.ids)
            known = self._noise.setdefault(self._noise_key(plan, section), set())
            known |= places if plan.windows is None else {places}
            kept = 1 - min(1.0, (_abducted(model) - present.abducted) / max(1, len(places)))
        made = evaluations(plan, done, ids=section.spots.ids, kept=kept)
        if made:
            self._pace[self._device(model)] = seconds / made

    def _noise_key(self, plan: Plan, section: Section) -> tuple[Any, ...]:
        return (
            id(section),
            self._device(),
            plan.steps,
            plan.request.mode,
            plan.frame if plan.windows is not None else None,
        )

    def _kept_noise(self, plan: Plan, section: Section) -> float:
        """Return the share of the places in reach of an edit whose noise is cached."""
        known = self._noise.get(self._noise_key(plan, section), set())
        if not plan.counterfactual or not known:
            return 0.0
        places = edited_places(plan, section.spots.ids)
        if plan.windows is not None:
            return float(places in known)
        return len(places & known) / max(1, len(places))

    def _close(self, present: _Present) -> None:
        state, done, total = self.state, len(present.canvas.finished), len(present.plan)
        kept = f" {done} of {total} patches are finished and kept." if done else " No patch was finished."
        notes = "".join(f" Note: {note.rstrip('.')}." for note in present.session.progress.notes)
        if present.failed is not None:
            state.status = RunStatus.FAILED
            state.tell("error", f"{present.failed}{kept}")
        elif done < total:
            state.status = RunStatus.STOPPED
            how = "Stopped" if present.stopped else "Not everything could be made"
            state.tell("warning", f"{how}.{kept}{notes}", *self._leave(present))
        else:
            state.status = RunStatus.DONE
            words = ("patch of edited real tissue", "patches of edited real tissue")
            what = counted(done, *(words if present.plan.counterfactual else ("synthetic patch", "synthetic patches")))
            state.tell("info", f"{what} in {present.session.watch.seconds:.1f} s: {present.name}.{notes}")
        state.progress = None

    def _leave(self, present: _Present) -> tuple[Offer, ...]:
        """Keep the rest of a stopped run, to continue it; edited and seamless tissue cannot be split."""
        plan = present.plan
        left = [patch.spot_id for k, patch in enumerate(plan.patches) if k not in present.canvas.finished]
        if plan.request.mode != "spots" or plan.counterfactual or not present.canvas.finished or not left:
            return ()
        self._left = plan.request.model_copy(update={"region": SpotList(ids=tuple(left))})
        return ("go_on",)

    def go_on(self) -> None:
        """Run the rest of the last stopped run, as a result of its own."""
        if self._left is not None:
            self.submit(self._left)

    # --- details

    def _provenance(self, present: _Present) -> dict[str, Any]:
        session = present.session
        made = [session.plan.patches[index] for index in sorted(present.canvas.finished)]
        return provenance_of(session.plan, session.section, session.model, made, session.watch.seconds)

    def _device(self, model: PatchModel | None = None) -> str:
        model = model or self.state.checkpoint
        return "" if model is None else f"{model.card.name} on {model.provenance.get('device', 'cpu')}"
