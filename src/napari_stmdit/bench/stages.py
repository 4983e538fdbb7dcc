"""Stages of a patch: the cost of each and the share of the machine's peak that it reaches; the models and how they are measured."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assemble import Checkpoint
from ..devices import decoder_on
from ..intent import CheckpointCard, Preset, Request
from ..model.autoencoder import decode_images, decode_latents, latent_channels, spatial_factor
from ..model.guidance import Branch, branches
from ..model.inference import ConditionTensors, prediction
from ..model.transformer import STMDiTTransformer2D
from ..progress import BATCH
from ..regions import SampleOfSpots
from ..synthesis.canvas import MemoryCanvas
from ..synthesis.plan import plan
from ..tissue.crops import read_patches
from ..types import PatchResult, Section

BASE_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 32,
    "num_layers": 12,
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "morphology_dim": 1536,
    "expression_dim": 256,
    "expression_adaln": True,
    "position_scale": 0.5,
}
"""DiT-B/2 (Peebles & Xie, 2023, arXiv 2212.09748) on latents of 16 x 32 x 32, one UNI2-h vector, CancerFoundation's in the time."""

SD3_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Settings of the SD3.5 autoencoder, for ``AutoencoderKL`` of diffusers."""

STEPS = 20


@dataclass(frozen=True)
class Subject:
    """Transformer, autoencoder and scheduler on their device, with their guidance branches, steps and the side of their latents."""

    name: str
    transformer: STMDiTTransformer2D
    vae: Any
    scheduler: Any
    guidance: tuple[Branch, ...]
    steps: int
    side: int = 32

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return torch.device(self.transformer.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        found: torch.dtype = self.transformer.dtype
        return found

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape (b, c, h, w) of the latents of ``batch`` patches."""
        return (batch, latent_channels(self.vae), self.side, self.side)

    def conditions(self, batch: int) -> ConditionTensors:
        """Draw conditions of ``batch`` patches, the same at every call."""
        config, generator = self.transformer.config, torch.Generator().manual_seed(1)
        images = torch.randn(batch, config["morphology_tokens"], config["morphology_dim"], generator=generator)
        if config["expression_dim"] is None:
            return ConditionTensors(images)
        return ConditionTensors(images, torch.randn(batch, config["expression_dim"], generator=generator))

    def noise(self, batch: int) -> Tensor:
        """Draw standard normal latents of ``batch`` patches, the same at every call."""
        return torch.randn(self.shape(batch), generator=torch.Generator().manual_seed(0))


def of_checkpoint(checkpoint: Checkpoint) -> Subject:
    """Return a loaded checkpoint as a subject, with its own steps and guidance."""
    card, pipeline = checkpoint.card, checkpoint.pipeline
    scales = card.guidance
    assert scales.rule is not None  # a card states its rule
    expression = "expression" in card.conditions and pipeline.transformer.config["expression_dim"] is not None
    guidance = branches(
        scales.rule,
        1.0 if scales.morphology is None else scales.morphology,
        1.0 if scales.expression is None else scales.expression,
        has_morphology="morphology" in card.conditions,
        has_expression=expression,
    )
    side = card.patch_px // spatial_factor(pipeline.vae)
    return Subject(card.name, pipeline.transformer, pipeline.vae, pipeline.scheduler, guidance, card.steps, side)


def random_base(
    device: torch.device, sizes: dict[str, Any] | None = None, vae_sizes: dict[str, Any] | None = None
) -> Subject:
    """Make a DiT-B/2 and an SD3-style autoencoder of random weights in float32, 20 steps and both guidance scales.

    ``sizes`` and ``vae_sizes`` override some of theirs.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    transformer = STMDiTTransformer2D(**{**BASE_SIZES, **(sizes or {})}).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():  # what training starts at zero would otherwise be nothing to compute
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    torch.nn.Module.to(transformer, device=device)
    vae = decoder_on(AutoencoderKL(**{**SD3_VAE, **(vae_sizes or {})}), device, torch.float32)
    guidance = branches("nested_morphology_first", 1.5, 2.0, has_morphology=True, has_expression=True)
    side = int(transformer.config["sample_size"])
    return Subject(
        "DiT-B/2 + SD3-style VAE", transformer, vae, FlowMatchEulerDiscreteScheduler(), guidance, STEPS, side
    )


def in_dtype(subject: Subject, dtype: torch.dtype) -> Subject:
    """Return a subject in another precision, a copy where it differs. Start from float32: what was rounded stays rounded."""
    if subject.dtype == dtype:
        return subject
    transformer = copy.deepcopy(subject.transformer)
    torch.nn.Module.to(transformer, dtype=dtype)
    vae = decoder_on(copy.deepcopy(subject.vae), subject.device, dtype)
    return replace(subject, transformer=transformer, vae=vae)


_STATUS = Path("/proc/self/status")
PEAK_SIDES = (1024, 2048, 4096)
MAX_ROUNDS = 15


@dataclass(frozen=True)
class Timing:
    """Seconds over ``rounds`` repetitions after a warm-up; ``rounds`` 0: the warm-up itself."""

    median: float
    least: float
    rounds: int


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine in JSON types, without names of people or places."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    if device.type == "cpu":
        facts["cpu"] = torch.backends.cpu.get_cpu_capability()
        facts["matrix_tiles"] = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
        facts["load"] = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return facts


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], Any], device: torch.device, seconds: float, rounds: int = MAX_ROUNDS) -> Timing:
    """Time some work as often as fits into ``seconds``, at most ``rounds`` times, after a warm-up.

    Where the warm-up takes longer than that, it is the result.
    """
    first = once(work, device)
    if first > seconds:
        return Timing(first, first, 0)
    found: list[float] = []
    while len(found) < rounds and (not found or sum(found) + found[-1] <= seconds):
        found.append(once(work, device))
    return Timing(statistics.median(found), min(found), len(found))


def once(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that some work takes once."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def interleaved(
    works: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    warm: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Time several works in turn, A B C A B C, so that other load falls on all of them; ``warm`` may replace the first, uncounted time."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        (warm or works).get(name, work)()
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(once(work, device))
    return {name: Timing(statistics.median(times), min(times), len(times)) for name, times in found.items()}


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """Return the highest rate (FLOP/s) of a plain product of square matrices, over a few sizes."""
    best = 0.0
    with torch.inference_mode():
        for side in PEAK_SIDES:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            taken = timed(lambda a=a, b=b: a @ b, device, seconds, rounds=50)  # type: ignore[misc]
            best = max(best, 2 * side**3 / taken.least)
            if taken.least * 8 > seconds:  # the next one has eight times the operations
                break
    return best


def flops(work: Callable[[], Any]) -> float:
    """Return the floating-point operations of some work, two for a multiplication and addition.

    It is done once, as in training: fused operations have no count.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        work()
    return float(counter.get_total_flops())


class PeakMemory:
    """Peak memory from here on, in MB: of the device where it keeps count, else of this process by the kernel.

    Elsewhere than on Linux the kernel's mark cannot be reset, and earlier work may be in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _STATUS.is_file():
            with suppress(OSError):  # not allowed in every container
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float | None:
        """Return the peak so far; None where it is not counted."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device)) / 1e6
        if _STATUS.is_file():
            lines = _STATUS.read_text().splitlines()
            return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
        try:
            import resource
        except ImportError:  # Windows
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times faster the second is, by the medians."""
    return slow.median / fast.median


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
    made = plan(section, request, checkpoint)
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
