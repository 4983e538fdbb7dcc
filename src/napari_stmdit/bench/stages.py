"""Cost of each stage of a patch, and the share of the machine's peak that it reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..assemble import Checkpoint
from ..intent import CheckpointCard, Preset, Request, SampleOfSpots
from ..model.inference import prediction
from ..model.vae import decode_images, decode_latents
from ..progress import BATCH
from ..synthesis.canvas import MemoryCanvas
from ..synthesis.plan import plan
from ..tissue.crops import read_patches
from ..types import PatchResult, Section
from .machine import PeakMemory, Timing, flops, timed
from .subjects import Subject


@dataclass(frozen=True)
class Stage:
    """Stage: one line of the table.

    Attributes
    ----------
    stage, dtype, batch
        Name, precision, and patches at once.
    milliseconds
        Median for the whole batch; of ``sample``, of one denoising step.
    rounds
        Repetitions; 0: once, without warm-up.
    gflop
        Operations for the batch; None where not counted.
    utilisation
        Share, 0 to 1, of the measured peak of matrix products on this device in this precision.
    peak_mb
        Peak memory.
    """

    stage: str
    dtype: str
    batch: int
    milliseconds: float
    rounds: int
    gflop: float | None = None
    utilisation: float | None = None
    peak_mb: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return the stage in JSON types."""
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class LeftOut:
    """Batch that was not measured, as its expected time was too long."""

    stage: str
    dtype: str
    batch: int
    expected_seconds: float


def sampling(
    subject: Subject, batches: Sequence[int], peak: float, seconds: float
) -> tuple[list[Stage], list[LeftOut]]:
    """Time a denoising step, all branches, for several batches; a batch too large for the memory ends the row."""
    rows: list[Stage] = []
    left_out: list[LeftOut] = []
    dtype = name_of(subject.dtype)
    each = _flops_of_a_step(subject)
    for batch in sorted(batches):
        expected = rows[-1].milliseconds / 1e3 * batch / rows[-1].batch if rows else 0.0
        if expected > 2 * seconds:
            left_out.append(LeftOut("sample", dtype, batch, round(expected, 1)))
            continue
        memory = PeakMemory(subject.device)
        with torch.inference_mode():
            taken = timed(_step(subject, batch), subject.device, seconds)  # conditions are prepared outside of it
        rows.append(_row("sample", subject, batch, taken, each * batch, peak, memory.read()))
    return rows, left_out


def _step(subject: Subject, batch: int) -> Callable[[], Any]:
    """Return the work of one prepared step of a batch: the second, or the first where it is the only one."""
    latents = subject.noise(batch).to(subject.device)
    times = torch.linspace(999, 50, subject.steps)
    plan = [subject.guidance] * subject.steps
    predict = prediction(subject.transformer, subject.conditions(batch), plan, times, subject.shape(batch))
    return lambda: predict(min(1, subject.steps - 1), latents)


def _flops_of_a_step(subject: Subject) -> float:
    with torch.enable_grad():
        work = _step(subject, 1)
    return flops(work)


def decoding(subject: Subject, batches: Sequence[int], peak: float, seconds: float) -> list[Stage]:
    """Time the decoding of several batches into uint8 images."""
    rows: list[Stage] = []
    each = flops(lambda: decode_images(subject.vae, subject.noise(1)))
    for batch in sorted(batches):
        expected = rows[-1].milliseconds / 1e3 * batch / rows[-1].batch if rows else 0.0
        if expected > 2 * seconds:
            break
        latents, memory = subject.noise(batch), PeakMemory(subject.device)
        taken = timed(lambda latents=latents: decode_latents(subject.vae, latents), subject.device, seconds)  # type: ignore[misc]
        rows.append(_row("decode", subject, batch, taken, each * batch, peak, memory.read()))
    return rows


def around(checkpoint: Checkpoint, section: Section, seconds: float, batch: int = BATCH) -> list[Stage]:
    """Time the stages around the network: planning, reading and encoding the conditions of a batch, pasting a patch."""
    device = torch.device(checkpoint.device)
    request = request_for(checkpoint.card, batch)
    made = plan(section, request, checkpoint.card)
    rows = [patch.row for patch in made.patches]
    boxes = [patch.source_box for patch in made.patches]
    image, spots, card = section.slide, section.spots, checkpoint.card
    crops = read_patches(image, boxes, card.patch_px)
    canvas = MemoryCanvas(made.frame)
    pixels = np.zeros((card.patch_px, card.patch_px, 3), dtype=np.uint8)
    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "plan": (batch, lambda: plan(section, request, card)),
        "read crops": (batch, lambda: read_patches(image, boxes, card.patch_px)),
        "encode morphology": (batch, lambda: checkpoint.encode_morphology(crops)),
        "encode expression": (
            batch,
            lambda: checkpoint.encode_expression(spots.counts[rows], spots.genes, depth=spots.relative_depth[rows]),
        ),
        "paste": (1, lambda: canvas.paste(PatchResult(made.patches[0], pixels))),
    }
    found = []
    for name, (size, function) in work.items():
        taken = timed(function, device, seconds)
        found.append(Stage(name, "", size, taken.median * 1e3, taken.rounds))
    return found


def request_for(card: CheckpointCard, count: int, preset: Preset = "exact") -> Request:
    """Return a request for ``count`` patches of the sample section; genes other than the checkpoint's cost no time."""
    morphology = "own" if "morphology" in card.conditions else "null"
    region = SampleOfSpots(count=count)
    return Request(region=region, morphology=morphology, preset=preset, allow_gene_mismatch=True)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a precision."""
    return str(dtype).removeprefix("torch.")


def _row(
    stage: str, subject: Subject, batch: int, taken: Timing, count: float, peak: float, memory: float | None
) -> Stage:
    dtype = subject.vae.dtype if stage == "decode" else subject.dtype
    share = count / taken.median / peak
    return Stage(stage, name_of(dtype), batch, taken.median * 1e3, taken.rounds, count / 1e9, share, memory)
