"""Ours against the straightforward ways, in one run, turn by turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assemble import Checkpoint, load_checkpoint
from ..devices import choose_device
from ..intent import Preset
from ..model.guidance import Branch, combine
from ..model.inference import ConditionTensors, combined, repeat_conditions
from ..model.sampling import denoise, model_input, model_time, ready
from ..model.vae import decode_latents
from ..synthesis.plan import PRESETS, plan
from ..synthesis.session import run, synthesize
from ..types import Section
from .machine import Timing, interleaved, ratio
from .stages import name_of, request_for
from .subjects import Subject, in_dtype

PLAIN = "straightforward, float32"


@dataclass
class _Way:
    """One way to make a patch; without a ``net``, ours."""

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
    """Compare one patch, all steps and decoding, with loops that save nothing.

    One loop is float32 and makes a forward for every branch at every step; one is in the fast precision and makes one forward for
    all branches. Their autoencoders are as they are loaded. Ours in float32 must give what the first gives.

    Parameters
    ----------
    plain
        In float32.
    dtype
        The fast precision.
    rounds
        Of all ways in turn.
    plain_net
        Makes what the loops call of a transformer; by default our own forward.

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
    """Denoise (b, c, h, w) noise as one would write it down: at every step a forward for every branch, or one for all of them.

    Returns
    -------
    Tensor
        (b, c, h, w) float32.
    """
    scheduler = ready(scheduler, steps)
    latents = noise.to(net.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    channels = latents.shape[1]
    for index, time in enumerate(scheduler.timesteps):
        scaled = model_input(scheduler, latents, time)
        now = model_time(scheduler, index, time).to(net.device)
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
        latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
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
        made = plan(section, request_for(model.card, count), model.card)

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
