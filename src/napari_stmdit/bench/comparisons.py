"""Benchmarks in turns, ours against straightforward loops, edits of real tissue, threads that sleep; and the report of `stmdit bench`."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..assemble import Checkpoint, load_checkpoint
from ..devices import WAITING, choose_device
from ..editing import NOISE_BYTES
from ..edits import Towards
from ..encoders.cache import EmbeddingCache
from ..errors import StmditError
from ..intent import Preset, Request
from ..model.autoencoder import decode_latents
from ..model.guidance import Branch, combine
from ..model.inference import ConditionTensors, combined, repeat_conditions
from ..model.sampling import denoise, model_input, model_time, ready
from ..regions import Polygons, SpotList
from ..synthesis.plan import PRESETS, plan
from ..synthesis.session import run, synthesize
from ..tissue.open import open_sample_section
from ..types import Section
from .stages import (
    Subject,
    Timing,
    around,
    decoding,
    describe,
    in_dtype,
    interleaved,
    matmul_peak,
    name_of,
    of_checkpoint,
    random_base,
    ratio,
    request_for,
    sampling,
)


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes
    ----------
    checkpoint
        Name or folder; None leaves it out.
    base
        Whether the random DiT-B/2 with an SD3-style autoencoder is measured too.
    device
        As `load_checkpoint` takes it.
    batches
        Patches at once, for sampling and decoding.
    seconds
        Time for one figure; longer ones are measured once, or left out and named.
    rounds
        Rounds of every comparison.
    steps
        Denoising steps of the comparisons; None: the checkpoint's own, and 20.
    """

    checkpoint: str | None = "demo"
    base: bool = False
    device: str = "auto"
    batches: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 3.0
    rounds: int = 5
    steps: int | None = None


def run_bench(
    settings: Settings, on_stage: Callable[[str], None] = lambda _: None, base: Callable[..., Subject] = random_base
) -> dict[str, Any]:
    """Run the benchmark and return a report of JSON types; raises CheckpointError where checkpoint or device are missing.

    ``on_stage`` is called with the name of each stage; ``base`` makes the random model on a device.
    """
    device, dtype = choose_device(settings.device)
    report: dict[str, Any] = {"machine": describe(device), "precision": name_of(dtype)}
    on_stage("peak of matrix products")
    dtypes = [torch.float32] if dtype == torch.float32 else [torch.float32, dtype]
    peaks = {kind: matmul_peak(device, kind, min(0.6, settings.seconds)) for kind in dtypes}
    report["peak_gflops"] = {name_of(kind): round(peak / 1e9, 1) for kind, peak in peaks.items()}
    report["models"] = []
    if settings.checkpoint is not None:
        report["models"].append(_of_checkpoint(settings, device, peaks, on_stage))
    if settings.base:
        on_stage("a random DiT-B/2 and SD3-style autoencoder")
        report["models"].append(_of_subject(base(device), settings, peaks, on_stage))
    report["machine"]["load_after"] = describe(device).get("load")
    return report


def _of_checkpoint(
    settings: Settings, device: torch.device, peaks: dict[torch.dtype, float], on_stage: Callable[[str], None]
) -> dict[str, Any]:
    assert settings.checkpoint is not None
    section = open_sample_section()
    model = load_checkpoint(settings.checkpoint, device=str(device))
    found: dict[str, Any] = {}
    if not model.lacking:  # without its encoders only the network can be measured
        on_stage(f"{model.card.name}: whole runs and presets")
        found["runs"] = end_to_end(model, section, settings.rounds)
        on_stage(f"{model.card.name}: images in each precision")
        found["precision"] = precisions(settings.checkpoint, section, str(device), max(1, settings.rounds // 2))
        if device.type == "cpu":
            on_stage(f"{model.card.name}: threads that sleep or spin, alone and beside a busy process")
            try:
                found["waiting"] = waiting(settings.checkpoint, max(1, settings.rounds // 2))
            except StmditError as error:  # two more processes with the checkpoint may be too much for the memory
                found["waiting"] = {"left_out": str(error)}
        if model.card.edits_tissue:
            on_stage(f"{model.card.name}: edits of real tissue, the first picture and the next one")
            found["editing"] = editing(model, section, max(1, settings.rounds // 2))
        on_stage(f"{model.card.name}: around the network")
        found["around"] = [stage.facts() for stage in around(model, section, settings.seconds / 3)]
    plain = of_checkpoint(load_checkpoint(settings.checkpoint, device=str(device), dtype="float32"))
    return {**_of_subject(plain, settings, peaks, on_stage), **found}


def _of_subject(
    plain: Subject, settings: Settings, peaks: dict[torch.dtype, float], on_stage: Callable[[str], None]
) -> dict[str, Any]:
    if settings.steps is not None:
        plain = dataclasses.replace(plain, steps=settings.steps)
    fast = list(peaks)[-1]
    on_stage(f"{plain.name}: against the straightforward loops")
    found: dict[str, Any] = {"name": plain.name, "comparison": against_straightforward(plain, fast, settings.rounds)}
    stages, left_out = [], []
    for dtype, peak in peaks.items():
        subject = in_dtype(plain, dtype)
        on_stage(f"{plain.name}: sampling and decoding in {name_of(dtype)}")
        rows, missing = sampling(subject, settings.batches, peak, settings.seconds)
        stages += [*rows, *decoding(subject, tuple(sorted(settings.batches))[:2], peak, settings.seconds)]
        left_out += missing
    found["stages"] = [stage.facts() for stage in stages]
    found["left_out"] = [dataclasses.asdict(one) for one in left_out]
    return found


PLAIN = "straightforward, float32"


@dataclass
class _Way:
    """Way to make a patch; without a ``net``, ours."""

    subject: Subject
    vae: Any
    net: Any = None
    batched: bool = False
    made: Tensor | None = None

    def denoise(self, steps: int | None = None) -> None:
        one, steps = self.subject, steps or self.subject.steps
        given = (one.scheduler, one.noise(1), one.conditions(1), one.guidance, steps)
        if self.net is None:
            *_, (_, self.made) = denoise(one.transformer, *given)
        else:
            self.made = straightforward(self.net, *given, batched=self.batched)

    def decode(self) -> None:
        decode_latents(self.vae, self.subject.noise(1))


def against_straightforward(
    plain: Subject, dtype: torch.dtype, rounds: int, plain_net: Callable[[Any], Any] = lambda transformer: transformer
) -> dict[str, Any]:
    """Compare one patch, all steps and decoding, with straightforward loops.

    One loop is float32 with a forward for every branch at every step; the other is in the fast precision with one forward for
    all branches. Their autoencoders are as loaded. Ours in float32 must give the result of the first.

    Parameters
    ----------
    plain
        In float32.
    dtype
        The fast precision.
    rounds
        Rounds of all ways in turn.
    plain_net
        Makes of a transformer what the loops call; by default our own forward.

    Returns
    -------
    dict
        Seconds of each, denoising and decoding; how many times faster ours is; the largest difference of the latents in float32.
    """
    fast = in_dtype(plain, dtype)
    ours, batched, exact = f"ours, {name_of(dtype)}", f"straightforward, batched, {name_of(dtype)}", "ours, float32"
    ways = {
        PLAIN: _Way(plain, _stock_layout(plain.vae), plain_net(plain.transformer)),
        batched: _Way(fast, _stock_layout(fast.vae), plain_net(fast.transformer), batched=True),
        exact: _Way(plain, plain.vae),
        ours: _Way(fast, fast.vae),
    }
    warm = {name: partial(way.denoise, 2) for name, way in ways.items()}
    denoised = interleaved({name: way.denoise for name, way in ways.items()}, plain.device, rounds, warm)
    decoded = interleaved({name: way.decode for name, way in ways.items()}, plain.device, rounds)
    whole = {name: denoised[name].median + decoded[name].median for name in ways}
    first, second = ways[PLAIN].made, ways[exact].made
    assert first is not None and second is not None  # they were just made
    return {
        "blocks": "ours",
        "steps": plain.steps,
        "branches": len(plain.guidance),
        "rounds": rounds,
        "seconds": {
            name: {"denoising": round(denoised[name].median, 3), "decoding": round(decoded[name].median, 3)}
            for name in ways
        },
        f"times faster: {ours}": {
            name: {
                "denoising": round(ratio(denoised[name], denoised[ours]), 2),
                "with decoding": round(whole[name] / whole[ours], 2),
            }
            for name in ways
            if name != ours
        },
        "largest_difference_in_float32": float((first - second).abs().max()),
        "standard_deviation_of_latents": round(float(first.std()), 3),
    }


@torch.inference_mode()
def straightforward(
    net: Any,
    scheduler: Any,
    noise: Tensor,
    conditions: ConditionTensors,
    guidance: Sequence[Branch],
    steps: int,
    *,
    batched: bool = False,
) -> Tensor:
    """Denoise (b, c, h, w) noise plainly: at every step a forward for every branch, or one for all of them.

    Returns
    -------
    Tensor
        (b, c, h, w) float32.
    """
    scheduler = ready(scheduler, steps)
    latents = noise.to(net.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    channels = latents.shape[1]
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = model_input(scheduler, latents, timestep)
        now = model_time(scheduler, index, timestep).to(net.device)
        if batched:
            many = scaled.repeat(len(guidance), 1, 1, 1)  # (branches * b, c, h, w)
            given = repeat_conditions(conditions, guidance, len(latents), net)
            predicted = combined(net(many, now.expand(len(many)), **given), guidance, channels)
        else:
            parts = []
            for branch in guidance:
                given = repeat_conditions(conditions, [branch], len(latents), net)
                parts.append(net(scaled, now.expand(len(scaled)), **given)[:, :channels].float())
            predicted = combine(parts, guidance)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents


def _stock_layout(vae: Any) -> Any:
    """Copy an autoencoder with its convolutions as they are loaded."""
    return copy.deepcopy(vae).to(memory_format=torch.contiguous_format)


def end_to_end(
    checkpoint: Checkpoint, section: Section, rounds: int, counts: tuple[int, ...] = (1, 16)
) -> dict[str, Any]:
    """Time whole runs of each of ``counts`` patches, from the request to the canvas, at the checkpoint's own steps, and of each preset."""
    device = torch.device(checkpoint.device)

    def whole(count: int, preset: Preset = "exact") -> Callable[[], Any]:
        request = request_for(checkpoint.card, count, preset)
        return lambda: synthesize(section, request, checkpoint)

    presets = interleaved({name: whole(1, name) for name in PRESETS}, device, rounds)
    runs = {count: interleaved({"run": whole(count)}, device, max(1, rounds // 3))["run"] for count in counts[1:]}
    first = presets["exact"]
    return {
        "dtype": checkpoint.provenance["dtype"],
        "steps": checkpoint.card.steps,
        "seconds": {str(counts[0]): _facts(first), **{str(count): _facts(time) for count, time in runs.items()}},
        "presets": {
            name: {**_facts(time), "times_faster": round(ratio(first, time), 2)} for name, time in presets.items()
        },
    }


def _facts(time: Timing) -> dict[str, Any]:
    return {"median": round(time.median, 3), "least": round(time.least, 3), "rounds": time.rounds}


def precisions(name: str, section: Section, device: str, rounds: int, count: int = 8) -> dict[str, Any]:
    """Compare images and time of a checkpoint in its automatic precision with those in float32: same noise, same spots.

    Returns the difference in grey levels, mean and largest, the largest mean of a patch, and how many times faster.
    """
    _, fast = choose_device(device, "auto")
    if fast == torch.float32:
        return {"dtype": "float32"}
    images: dict[str, Any] = {}
    works: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", name_of(fast)):
        model = load_checkpoint(name, device=device, dtype=dtype)
        made = plan(section, request_for(model.card, count), model)

        def work(dtype: str = dtype, model: Checkpoint = model, made: Any = made) -> None:
            done = [patch for patches, _ in run(made, section, model) for patch in patches]
            images[dtype] = np.stack([patch.pixels for patch in done]).astype(np.float64)

        works[dtype] = work
    times = interleaved(works, torch.device(model.device), rounds)
    off = np.abs(images[name_of(fast)] - images["float32"])
    return {
        "dtype": name_of(fast),
        "patches": count,
        "grey_levels_mean": round(float(off.mean()), 3),
        "grey_levels_worst_patch": round(float(off.mean(axis=(1, 2, 3)).max()), 3),
        "grey_levels_largest": float(off.max()),
        "times_faster": round(ratio(times["float32"], times[name_of(fast)]), 2),
    }


# Edits of real tissue: the first picture, which takes the slide to its noise, and the next ones, which start from it.


SIDE_UM = 700.0
"""Side of the painted region."""


def editing(checkpoint: Checkpoint, section: Section, rounds: int) -> dict[str, Any]:
    """Time edits of a painted region and of one spot, from the request to the canvas, at the checkpoint's own steps.

    Each of the ``rounds`` begins without noise; the section needs a slide and a scale, and is at least `SIDE_UM` wide.

    Returns
    -------
    dict
        ``dtype``, ``steps``, ``side_um``, ``rounds``; for ``region`` and ``spot``: the median seconds of the ``first`` picture and of the
        ``next`` one, at another strength, and how many crops or windows were taken to their noise for each.
    """
    spots, mpp = section.spots, section.mpp
    half = SIDE_UM / 2 / mpp
    y, x = (n / 2 for n in section.slide.shape)
    square = ((y - half, x - half), (y - half, x + half), (y + half, x + half), (y + half, x - half))
    painted = spots.ids[(np.abs(spots.yx - (y, x)) <= half).all(axis=1)].tolist()
    target = tuple(spots.ids[np.argsort(spots.relative_depth)[:12]].tolist())
    edit = Towards(name="bench", target_spots=target, spots=dict.fromkeys(painted, 1.0))
    about: dict[str, Any] = {"edits": (edit,), "counterfactual": "on", "allow_gene_mismatch": True}
    requests = {
        "region": Request(region=Polygons(rings=(square,)), mode="continuous", **about),
        "spot": Request(region=SpotList(ids=(painted[len(painted) // 2],)), **about),
    }
    found: dict[str, Any] = {
        "dtype": checkpoint.provenance["dtype"],
        "steps": checkpoint.card.steps,
        "side_um": SIDE_UM,
        "rounds": rounds,
    }
    for name, request in requests.items():
        seconds: dict[str, list[float]] = {"first": [], "next": []}
        for turn in range(rounds + 1):  # the first does not count: it reads weights and the slide
            # a cache of its own: what was found out in another run would make the first picture a second one
            model = checkpoint.with_noise_cache(EmbeddingCache(NOISE_BYTES))
            editor = model.editor
            counted = {}
            for which, strength in (("first", 1.0), ("next", 0.5)):
                edits = (edit.model_copy(update={"strength": strength}),)
                before, start = editor.abducted, time.perf_counter()
                synthesize(section, request.model_copy(update={"edits": edits}), model)
                if turn:
                    seconds[which].append(time.perf_counter() - start)
                counted[which] = editor.abducted - before
        found[name] = {
            **{which: round(statistics.median(times), 3) for which, times in seconds.items()},
            "taken_to_noise": counted,
        }
    return found


# What it saves that OpenMP's threads sleep while they wait (`devices.WAITING`), alone and beside a busy process. The setting is read
# once, when torch is imported, so each way is a process of its own; they take turns.


COUNT = 8
_LOOP = """import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100000): pass
"""
"""Program that keeps a core busy until its parent is gone."""
ALONE, BESIDE = "alone", "beside a busy process"


def waiting(checkpoint: str, rounds: int, count: int = COUNT) -> dict[str, Any]:
    """Time ``count`` patches of the sample section, preset draft, on the CPU: spinning as by default, and sleeping.

    ``rounds`` of both ways take turns, after one that does not count.

    Returns
    -------
    dict
        ``patches``, ``rounds``, ``setting``; for ``alone`` and ``beside a busy process``: the median seconds ``spinning`` and ``sleeping``,
        how many ``times_faster`` the latter is, and the machine's ``load`` before and after; ``alone`` is quiet only if that is low.

    Raises
    ------
    StmditError
        A process ended before its time.
    """
    plain = {name: value for name, value in os.environ.items() if name not in WAITING}
    ways = {"spinning": plain, "sleeping": {**plain, **WAITING}}
    found: dict[str, Any] = {"patches": count, "rounds": rounds, "setting": dict(WAITING)}
    with ExitStack() as stack:
        works = {name: stack.enter_context(_worker(checkpoint, count, env)) for name, env in ways.items()}
        for name, beside in ((ALONE, nullcontext), (BESIDE, _busy)):
            with beside():
                found[name] = _in_turn(works, rounds)
    return found


def _in_turn(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    before = _load()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(work())
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        **{name: round(value, 3) for name, value in seconds.items()},
        "times_faster": round(seconds["spinning"] / seconds["sleeping"], 2),
        "load": [before, _load()],
    }


@contextmanager
def _worker(checkpoint: str, count: int, environment: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    """Start a process that makes the patches when asked, and yield the function that asks and returns the seconds."""
    command = [sys.executable, "-m", "napari_stmdit.bench.comparisons", checkpoint, str(count)]
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the one who measures, who ends this one
    ) as process:

        def ask() -> float:
            assert process.stdin is not None and process.stdout is not None  # both are pipes
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                return float(json.loads(process.stdout.readline()))
            except (OSError, ValueError):
                raise StmditError(
                    "the process that was measured ended before its time; what it said is above"
                ) from None

        try:
            ask()  # loads and warms up
            yield ask
        finally:
            process.kill()


@contextmanager
def _busy() -> Iterator[None]:
    """Run another program that needs all of one core."""
    with subprocess.Popen([sys.executable, "-c", _LOOP], start_new_session=True) as process:
        try:
            yield
        finally:
            process.kill()


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _work(checkpoint: str, count: int, asked: IO[str], answers: IO[str]) -> None:
    section, model = open_sample_section(), load_checkpoint(checkpoint, device="cpu")
    request = request_for(model.card, count, "draft")
    for _ in asked:
        start = time.perf_counter()
        synthesize(section, request, model)
        answers.write(json.dumps(time.perf_counter() - start) + "\n")
        answers.flush()


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), sys.stdin, sys.stdout)
