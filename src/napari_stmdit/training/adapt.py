"""Adaptation to one's own tissue: every stage of a training in a given time, evaluated on held-out tissue, and given a name."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..downloads.places import data_directory
from ..errors import RequestError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.counterfactual import CounterfactualCheck
from ..model.autoencoder import FACTOR
from ..progress import BATCH, CancelToken, finish
from ..storage.atomic import LOCK, check_free, holding, replacing, write_text
from ..tissue.open import SectionSource
from ..types import Orientation
from .adapt_config import MAX_CROPS, build_config, check_room, programs_among
from .adaptation import (
    CONFIG,
    NOTHING,
    PROGRESS,
    REQUEST,
    STAGES,
    STOP,
    AdaptProgress,
    AdaptRequest,
    default_name,
    home_of,
    read_progress,
    read_request,
    request_of,
)
from .batches import Batches, batch_loss
from .config import TrainingConfig, load_config
from .diffusion import MAX_SPOTS, build_transformer, optimizers
from .export import check_target, export_checkpoint
from .latents import fit_expression, load_cache, measure_encoding
from .parallel import (
    Control,
    TrainingProgress,
    TrainingStoppedError,
    Worker,
    choose_compute,
    require_extra,
    run_alone,
    run_workers,
)
from .sections import kept_open, source_sections
from .start import apply_start, open_start, starting_objective
from .state import load_record, save_record, timed
from .train import record_inputs, run_stage

CROPS_SHARE, EVALUATION_SHARE, EXPORT_SHARE = 0.10, 0.15, 0.04
"""Shares of the time for encoding, evaluation (where a part is held out) and export; the transformer trains in the rest."""
MIN_CROPS = 48
MIN_STEPS = 12
VALIDATIONS, SHEETS = 6, 3
BRANCHES, CASES = 8, 6
"""Forward passes per denoising step of a sample sheet, and condition combinations of a validation."""
PACE_SHARE, PACE_LATEST, PACE_SLACK, MIN_PACE_STEPS = 0.1, 0.35, 0.15, 5
"""Pace control: interval and end of the checks as shares of the transformer's time and steps; smallest relative change; first step."""
MIN_PAIRS, MAX_PAIRS, PROGRAM_SPOTS = 8, 64, 8
"""Minimum and maximum of spots evaluated, and spots in which each program is raised."""
PROGRESS_S = 1.0
"""Seconds between two reports of progress."""
OnProgress = Callable[[AdaptProgress], None]


@dataclass(frozen=True)
class Adapted:
    """Outcome of an adaptation: name and folder of the checkpoint, work folder, and figures of the evaluation."""

    name: str
    folder: Path
    work: Path
    figures: Mapping[str, Any]
    words: str


def adapt(
    sections: str | Path | Sequence[str | Path],
    *,
    minutes: float = 30.0,
    name: str | None = None,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    factors: Sequence[str | Path] = (),
    exclude: str | Path | None = None,
    orientation: Orientation = "as-given",
    hold_out: str = "lower-right",
    start: str = "demo",
    seed: int = 0,
    workers: int | None = None,
    output: str | Path | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
    cancel: CancelToken | None = None,
) -> Adapted:
    """Train a checkpoint on one's own tissue, evaluate it on held-out tissue, and register it by name.

    The same call continues an adaptation that was stopped or killed.

    Parameters
    ----------
    sections
        One or several sections, as `napari_stmdit.open_section` takes them.
    minutes
        Total time on this computer.
    name
        Name of the checkpoint; None: the first section's folder.
    fullres, mpp
        Slide image and microns per pixel of the first section.
    factors
        Values of each spot in the place of counts, a table for each section, as `napari_stmdit.open_section` takes them; none: counts.
    exclude, orientation
        GeoJSON regions of spots to exclude and orientation of the spots, of the first section, as `napari_stmdit.open_section` takes them.
    hold_out
        ``lower-right`` or another corner of the first section, the name of a section, or ``none``.
    start
        Checkpoint to start from.
    seed
        Random seed.
    workers
        Training processes on a CPU; None: one a core, at most 4.
    output
        Work folder; None: by the name, in the data directory.
    on_progress, on_note
        Called with the progress, and with sentences about what is being done.
    cancel
        Once set, the adaptation saves its state and raises `TrainingStoppedError`.

    Raises
    ------
    RequestError
        A section cannot be used, or memory or disk is too small; names every fault.
    TrainingStoppedError
        It was asked to stop.
    StmditError
        Something is missing, or the checkpoint's place is taken.
    """
    given = [sections] if isinstance(sections, str | Path) else list(sections)
    if not given:
        raise RequestError([("section", "none was given; give the folder of one")])
    # absolute, as the same words mean other tissue in another folder
    first, *others = (SectionSource.given(one).absolute() for one in given)
    first = first.model_copy(update={"fullres": fullres, "exclude": exclude}).absolute()
    tables = [Path(one).expanduser().absolute() for one in factors]
    request = request_of(
        name=name or default_name(given[0]),
        sections=tuple(str(one.path) for one in (first, *others)),
        fullres=None if first.fullres is None else str(first.fullres),
        mpp=mpp,
        factors=tuple(str(one) for one in tables),
        exclude=None if first.exclude is None else str(first.exclude),
        orientation=orientation,
        minutes=minutes,
        hold_out=hold_out,
        start=start,
        seed=seed,
        workers=workers,
    )
    work = home_of(request.name) if output is None else Path(output).expanduser()
    return run_adaptation(request, work, on_progress, on_note, cancel)


# ------------------------------------------------------------------------------------------------- the stages in their order


def run_adaptation(
    request: AdaptRequest,
    work: Path,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
    cancel: CancelToken | None = None,
) -> Adapted:
    """Begin or continue the adaptation of a work folder; see `adapt`."""
    require_extra()
    note, work = on_note or (lambda _: None), work.resolve()
    target = data_directory() / "checkpoints" / request.name
    with _held(work):
        request = _same_request(request, work, note)
        with _stops(work, cancel or CancelToken()) as token, kept_open():
            if not (work / REQUEST).is_file():
                check_free(target, "give another name")
                content, estimate = build_config(request)
                check_room(estimate, work)
                until = time.strftime("%H:%M", time.localtime(time.time() + 60 * request.minutes))
                note(f"{estimate.words}, in {work}. It goes on until about {until}.")
                _write_config(work, content)
                write_text(work / REQUEST, request.model_dump_json(indent=1) + "\n")
            return _Run(request, work, target, token, on_progress or (lambda _: None)).go()


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Hold a work folder; raises StoreError where it holds something else, or another process is at work in it."""
    if read_request(work) is None and not _is_held_alone(work):
        check_free(work, "give another name or another --output")
    with holding(work):
        try:
            yield
        finally:
            if not (work / REQUEST).exists():  # nothing was begun
                with suppress(OSError):
                    (work / LOCK).unlink(missing_ok=True)
                    work.rmdir()


def _is_held_alone(work: Path) -> bool:
    """Return whether another process has just taken a folder: a lock is all there is."""
    return work.is_dir() and {file.name for file in work.iterdir()} <= {LOCK, STOP}


def _same_request(request: AdaptRequest, work: Path, note: Callable[[str], None]) -> AdaptRequest:
    """Return the request of a work folder; raises RequestError where it differs."""
    before = read_request(work)
    if before is None:
        return request
    if before.model_copy(update={"minutes": request.minutes}) != request:
        raise RequestError(
            [
                (
                    "name",
                    f"{work} holds another adaptation, of {', '.join(before.sections)}; give another name, or ask for the same",
                )
            ]
        )
    if before.minutes != request.minutes:
        note(f"It keeps the {before.minutes:g} minutes that it was begun with.")
    return before


@contextmanager
def _stops(work: Path, token: CancelToken) -> Iterator[CancelToken]:
    """Cancel a token when the stop file appears; the file is removed before and after."""
    file, over = work / STOP, threading.Event()
    file.unlink(missing_ok=True)

    def look() -> None:
        while not over.wait(0.3):
            if file.exists():
                token.cancel()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield token
    finally:
        over.set()
        watcher.join()
        file.unlink(missing_ok=True)


def _write_config(work: Path, content: Mapping[str, Any]) -> None:
    head = (
        "# Written by `stmdit train --section`; `stmdit train THIS_FILE` runs the same stages without the evaluation.\n"
    )
    write_text(work / CONFIG, head + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


class _Run:
    """One run of an adaptation, from wherever earlier runs ended."""

    def __init__(
        self, request: AdaptRequest, work: Path, target: Path, token: CancelToken, on_progress: OnProgress
    ) -> None:
        self.request, self.work, self.target, self.token, self.on_progress = request, work, target, token, on_progress
        self.total_s = 60 * request.minutes
        before = read_progress(work)
        self.before_s = 0.0 if before is None else before.spent_s
        self.progress = AdaptProgress(request.name) if before is None else before
        self.progress.state, self.progress.message = "running", ""
        self.began, self.stage_began, self._reported_at = time.monotonic(), time.monotonic(), 0.0
        self._first_share: float | None = None
        self.planned: dict[str, float] = {
            "preparing": 0.03 * self.total_s,
            "latents": CROPS_SHARE * self.total_s,
            "evaluation": 0.0 if request.hold_out == NOTHING else EVALUATION_SHARE * self.total_s,
            "export": EXPORT_SHARE * self.total_s,
        }
        self.planned["transformer"] = self.total_s - sum(self.planned.values())

    @property
    def spent_s(self) -> float:
        """Seconds of this and all earlier runs."""
        return self.before_s + time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        """Seconds that are left for the transformer."""
        return self.total_s - self.spent_s - self.planned["evaluation"] - self.planned["export"]

    def go(self) -> Adapted:
        """Run the remaining stages."""
        if (done := self._finished()) is not None:
            return done
        try:
            return self._stages()
        except BaseException as error:
            stopped = isinstance(error, TrainingStoppedError | KeyboardInterrupt)
            self.progress.state = "stopped" if stopped else "failed"
            self.progress.message = "" if stopped else str(error)
            self._save()
            raise

    def _finished(self) -> Adapted | None:
        found = load_record(self.work / "evaluation.json")
        if self.progress.checkpoint is None or not (self.target / "stmdit.json").is_file():
            return None
        self.progress.state = "done"
        self._save()
        return Adapted(self.request.name, self.target, self.work, found or {}, self.progress.figures)

    def _stages(self) -> Adapted:
        self._enter("preparing")
        if "crops" not in self._config().latents.model_fields_set:
            self._prepare()
        self._enter("latents")
        self._stage("autoencoder")
        self._stage("latents")
        if "steps" not in self._config().diffusion.model_fields_set:
            self._set("diffusion", **self._lengths(self._steps()))
        self._learn()
        if not (self.work / "checkpoint" / "stmdit.json").is_file():
            self._stage("export")
        self._check()
        figures, words = self._evaluated()
        self._enter("export")
        config = self._config()
        card = {
            **config.card,
            "figures": words,
            "hardware": f"{self.spent_s / 60:.0f} minutes, {choose_compute(config).device} with {config.workers} processes",
        }
        final = config.model_copy(update={"card": card, "export": self.target})
        check_target(final)
        export_checkpoint(apply_start(final))
        self.progress.state, self.progress.fraction, self.progress.remaining_s = "done", 1.0, 0.0
        self.progress.checkpoint, self.progress.figures, self.progress.short = (
            str(self.target),
            words,
            summary_of(figures),
        )
        self._save()
        return Adapted(self.request.name, self.target, self.work, figures, words)

    def _config(self) -> TrainingConfig:
        return load_config(self.work / CONFIG)

    def _stage(self, name: str) -> None:
        run_stage(self._config(), name, Control(self._report, self.token))

    def _check(self) -> None:
        Control(cancel=self.token).check(self._config())

    def _set(self, part: str, **values: Any) -> None:
        """Write settings of a stage into the config once; later runs keep them."""
        content = yaml.safe_load((self.work / CONFIG).read_text(encoding="utf-8"))
        content[part] = {**content.get(part, {}), **values}
        _write_config(self.work, content)

    # --- how long each stage is

    def _prepare(self) -> None:
        """Fit the programs, and measure in a scratch folder how many crops can be encoded in time."""
        scratch = self.work / "preparing"
        shutil.rmtree(scratch, ignore_errors=True)
        config = apply_start(self._config())
        trial, file = config.model_copy(update={"output": scratch}), self.work / "speed_crops.json"
        run_alone(trial, fit_expression, trial)
        self._check()
        run_workers(trial, Control(cancel=self.token), measure_encoding, trial, file)
        workers = config.workers if choose_compute(config).device == "cpu" else 1
        most = self.planned["latents"] * workers / load_record(file)["crop"]
        self._set("latents", crops=int(np.clip(most, MIN_CROPS, MAX_CROPS)))
        run_alone(config, record_inputs, apply_start(self._config()), "latents")
        for made in scratch.iterdir():
            made.rename(self.work / made.name)
        scratch.rmdir()

    def _steps(self) -> int:
        """Return how many steps the transformer can take, from the measured speed."""
        config = apply_start(self._config())
        file = self.work / "speed.json"
        if not file.is_file():
            run_workers(config, Control(cancel=self.token), measure_speed, config)
        speed = load_record(file)
        diffusion, share = config.diffusion, config.diffusion.small_fraction
        left = self.left_s
        self.planned["transformer"] = max(left, 1.0)
        denoising = int(config.card.get("steps", open_start(config).card.steps))
        sheet = speed["forward"] * BRANCHES * diffusion.samples * denoising
        # validation runs on small crops; a forward pass is taken to grow with the area
        validation = speed["forward"] * CASES * MAX_SPOTS * (diffusion.small_cells * FACTOR / config.patch_px) ** 2
        left -= SHEETS * sheet + VALIDATIONS * validation
        return max(MIN_STEPS, int(left / (share * speed["small"] + (1 - share) * speed["whole"])))

    def _lengths(self, steps: int) -> dict[str, int]:
        return {
            "steps": steps,
            "warmup": max(1, min(100, steps // 10)),
            "validate_every": max(1, steps // VALIDATIONS),
            "sample_every": max(1, steps // SHEETS),
        }

    def _learn(self) -> None:
        """Train the transformer; change the number of steps where the pace differs from what was measured."""
        while True:
            self._enter("transformer")
            pace = _Pace(self)
            try:
                run_stage(self._config(), "diffusion", Control(pace.report, pace))
                return
            except TrainingStoppedError:
                if self.token.cancelled or pace.steps is None:
                    raise
                self._set("diffusion", **self._lengths(pace.steps))
                self.planned["transformer"] = max(self.left_s, 1.0)

    # --- evaluation

    def _evaluated(self) -> tuple[dict[str, Any], str]:
        """Return the figures of the evaluation on held-out tissue, and a sentence about them."""
        config = self._config()
        if not config.held_out:
            return {}, summary_of({})
        self._enter("evaluation")
        kept = self.work / "evaluation.json"
        found: dict[str, Any] | None = load_record(kept)
        if found is None:
            found = self._evaluate(apply_start(config))
            save_record(kept, found)
        return found, card_of(found, config.held_out[0].name)

    def _evaluate(self, config: TrainingConfig) -> dict[str, Any]:
        from ..assemble import load_checkpoint

        (section,) = source_sections(config, "held_out")
        model = load_checkpoint(self.work / "checkpoint", device=config.device)
        programs = {
            name: dict.fromkeys(genes, 1.0)
            for name, genes in programs_among(section.spots.genes.symbols.tolist()).items()
            if genes
        }
        request = EvaluationRequest(parts=("counterfactual",), pairs=MAX_PAIRS, seed=config.seed, programs=programs)
        folder = self.work / "evaluation"

        def check_of(pairs: int) -> CounterfactualCheck:
            asked = request.model_copy(update={"pairs": pairs})
            checks = ("identity", "swaps", "programs")
            return CounterfactualCheck(
                section, model, asked, folder, BATCH, self.token, checks, program_spots=PROGRAM_SPOTS
            )

        settings = load_record(self.work / "pairs.json")
        if settings is None:
            speed = load_record(self.work / "speed.json") or {"forward": 0.1}
            threads = torch.get_num_threads() if choose_compute(config).device == "cpu" else 1
            calls = self.planned["evaluation"] / speed["forward"] * max(1.0, 0.7 * threads)
            pairs = next(
                (n for n in range(MAX_PAIRS, MIN_PAIRS, -4) if 2 * check_of(n).total * check_of(n).steps < calls),
                MIN_PAIRS,
            )
            settings = {"pairs": pairs}
            save_record(self.work / "pairs.json", settings)
        check = check_of(settings["pairs"])
        found = finish(check.run(), lambda at: self._report_stage(at.fraction, at.patches_done, at.patches_total))
        if found is None:  # stopped
            self._check()
        return dict(found or {})

    # --- progress

    def _enter(self, stage: str) -> None:
        self.progress.stage, self.progress.step, self.progress.steps = stage, 0, 0
        self.stage_began, self._reported_at, self._first_share = time.monotonic(), 0.0, None
        self._report_stage(0.0)

    def _report(self, at: TrainingProgress) -> None:
        if at.loss is not None:
            self.progress.loss = round(at.loss, 4)
        self._report_stage(at.step / at.steps, at.step, at.steps)

    def _report_stage(self, share: float, step: int = 0, steps: int = 0) -> None:
        """Report the progress of a stage, every `PROGRESS_S` and at its end."""
        now, known = time.monotonic(), self.progress
        if now - self._reported_at < PROGRESS_S and share < 1:
            return
        self._reported_at = now
        order = list(STAGES)
        later = sum(self.planned[name] for name in order[order.index(known.stage) + 1 :])
        if self._first_share is None and share > 0:  # what earlier runs did must not count as speed of this one
            self._first_share, self.stage_began = share, now
        stage_s, done = now - self.stage_began, share - (self._first_share or 0.0)
        # the measured speed is noise in the first seconds
        own = stage_s * (1 - share) / done if done > 0.02 and stage_s > 5 else self.planned[known.stage] * (1 - share)
        known.step, known.steps, known.remaining_s = step, steps, round(own + later, 1)
        known.fraction = round(self.spent_s / (self.spent_s + own + later), 4)
        if known.stage == "transformer":
            known.controls = _controls(self.work / "diffusion.jsonl") or known.controls
            sheets = sorted((self.work / "samples").glob("step_*.png"))
            known.sheet = str(sheets[-1]) if sheets else known.sheet
        self._save()
        self.on_progress(known)

    def _save(self) -> None:
        self.progress.spent_s = round(self.spent_s, 1)
        with suppress(OSError), replacing(self.work / PROGRESS, durable=False) as draft:
            draft.write_text(json.dumps(asdict(self.progress), indent=1), encoding="utf-8")


class _Pace(CancelToken):
    """Pace check of the transformer: ends the stage early, while its learning rate is high, where it would not be done in time."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run
        self.steps: int | None = None
        self._measured: tuple[float, int] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the stage is to end, by the user's wish or for another number of steps."""
        return self._run.token.cancelled or self.steps is not None

    def report(self, at: TrainingProgress) -> None:
        """Pass progress on, and check the pace now and then."""
        self._run._report(at)
        now = time.monotonic()
        self._measured = self._measured or (now, at.step)
        began, first = self._measured
        if now - began < PACE_SHARE * self._run.planned["transformer"] or at.step - first < MIN_PACE_STEPS:
            return
        self._measured = now, at.step
        steps = max(MIN_STEPS, at.step + int(self._run.left_s * (at.step - first) / (now - began)))
        if at.step < PACE_LATEST * at.steps and abs(steps / at.steps - 1) > PACE_SLACK:
            self.steps = steps


def measure_speed(worker: Worker, config: TrainingConfig) -> None:
    """Write ``speed.json``: seconds per training step on small crops and on whole patches, and per forward pass of a patch."""
    settings = config.diffusion
    cache = load_cache(config)
    model = worker.place(build_transformer(config, cache))
    batches = Batches(cache, settings, seed=config.seed, objective=starting_objective(config))
    learners = [optimizer for optimizer, _ in optimizers(model, settings)]

    def step(count: int, small: bool) -> None:
        loss = batch_loss(model, batches, count, small, worker.device, worker.autocast).total(settings.coarse_weight)
        worker.update(loss, learners, 1.0)

    speed = {
        "small": timed(lambda: step(settings.small_batch, True), 3),
        "whole": timed(lambda: step(settings.batch, False), 3),
    }
    with torch.no_grad():
        speed["forward"] = timed(lambda: batch_loss(model, batches, BATCH, False, worker.device), 1) / BATCH
    if worker.leads:
        save_record(config.output / "speed.json", speed)
    worker.wait()


def _controls(log: Path) -> dict[str, float]:
    """Return the latest losses on held-out spots with their own expression and with another spot's."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(line)["validation"]
            return {case: float(found[case]["flow"]) for case in ("expression", "expression_shuffled")}
    return {}


def _interval(facts: Mapping[str, Any]) -> str:
    value, low, high = (facts.get(key) for key in ("coefficient", "low", "high"))
    return "not known" if value is None or low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def summary_of(found: Mapping[str, Any]) -> str:
    """Return a summary of the evaluation in a few sentences."""
    if not found:
        return "Nothing was held out, so there are no figures for unseen tissue."
    swap, control = found["swap"]["haematoxylin"], found["swap_control"]["haematoxylin"]
    return (
        f"On held-out tissue, a spot given another's expression moves towards its haematoxylin by {_interval(swap)}; given a third spot's, by "
        f"{_interval(control)} (it should be about 0). The maximum that expression allows is {swap['ceiling']:.2f}."
    )


def card_of(found: Mapping[str, Any], held_out: str) -> str:
    """Return the figures of an evaluation as Markdown for a checkpoint's card."""
    swap, control, programs = found["swap"], found["swap_control"], found["programs"]
    ceiling = swap["haematoxylin"]["ceiling"]
    identity = found["identity"]
    agreement = programs.get("correlation")
    said = (
        f"correlation with the trend of real tissue {agreement:.2f} [{programs['low']:.2f}, {programs['high']:.2f}] over {programs['n']} programs"
        if agreement is not None and programs.get("low") is not None
        else f"too few programs have genes here ({programs.get('n', 0)}) to say anything"
    )
    return f"""Measured on {held_out}, which was never trained on; 95 % bootstrap intervals.

| test | haematoxylin | nuclei |
|---|---|---|
| swap: a spot given another's expression moves towards it by | {_interval(swap["haematoxylin"])} | {_interval(swap["nuclei"])} |
| control: given a third spot's instead | {_interval(control["haematoxylin"])} | {_interval(control["nuclei"])} |

- {found["pairs"]} pairs. The maximum for a swap, the part of haematoxylin that expression predicts: {ceiling:.2f}.
- No edit: latents come back to {identity["latents"]:.4f} of a mean size of {identity["latent_size"]:.2f}; pixels change by {identity["pixels"]} grey levels.
- Programs raised by two standard deviations, with what varies with them: {said}.
- Expression explains {100 * found["morphology_explained"]:.0f} % of the variance of morphology; the rest of a spot's appearance is kept.
"""
