"""Report of `stmdit bench`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..assemble import load_checkpoint
from ..devices import choose_device
from ..errors import StmditError
from ..tissue.open import open_sample_section
from .comparisons import against_straightforward, editing, end_to_end, precisions, waiting
from .stages import (
    Subject,
    around,
    decoding,
    describe,
    in_dtype,
    matmul_peak,
    name_of,
    of_checkpoint,
    random_base,
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
        stages += [*rows, *decoding(subject, _few(settings.batches), peak, settings.seconds)]
        left_out += missing
    found["stages"] = [stage.facts() for stage in stages]
    found["left_out"] = [dataclasses.asdict(one) for one in left_out]
    return found


def _few(batches: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(batches))[:2]
