"""Ours against the straightforward ways, in one run, turn by turn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assemble import Checkpoint, load_checkpoint
from ..devices import choose_device
from ..errors import SynthesisError
from ..intent import Preset
from ..model.sampling import denoise
from ..model.vae import decode_latents
from ..synthesis.plan import PRESETS, plan
from ..synthesis.run import run
from ..synthesis.session import synthesize
from ..types import Section
from .machine import Timing, interleaved, ratio
from .stages import name_of, request_for
from .stock import Forward, StockTransformer, straightforward
from .subjects import Subject, in_dtype

PLAIN = "straightforward, float32"


@dataclass
class _Way:
    """One way to make a patch; without a ``net``, ours."""

    subject: Subject
    vae: Any
    net: Forward | None = None
    batched: bool = False
    made: Tensor | None = None

    def denoise(self, steps: int | None = None) -> None:
        one, steps = self.subject, steps or self.subject.steps
        noise, conditions = one.noise(1), one.conditions(1)
        if self.net is None:
            *_, (_, self.made) = denoise(one.transformer, one.scheduler, noise, conditions, one.guidance, steps)
            return
        self.made = straightforward(
            self.net, one.scheduler, noise, conditions, one.guidance, steps, batched=self.batched
        )

    def decode(self) -> None:
        decode_latents(self.vae, self.subject.noise(1))


def against_straightforward(plain: Subject, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Compare one patch, all steps and decoding, with loops that save nothing.

    One is float32 and makes a forward for every branch at every step, one patch at a time; one is in the fast precision and makes one
    forward for all branches. Both are of diffusers' own blocks where it has them for such a transformer, else of our own forward,
    which is asked anew for everything; their autoencoders are as they are loaded. Ours in float32 must give what the first gives.

    Parameters
    ----------
    plain
        In float32.
    dtype
        The fast one.
    rounds
        Of all of them in turn.

    Returns
    -------
    dict
        Seconds of each, denoising and decoding; how many times faster ours is; the largest difference of the latents in float32.
    """
    fast = in_dtype(plain, dtype)
    ours, batched, exact = f"ours, {name_of(dtype)}", f"straightforward, batched, {name_of(dtype)}", "ours, float32"
    ways = {
        PLAIN: _Way(plain, _stock_layout(plain.vae), _straightforward_net(plain)),
        batched: _Way(fast, _stock_layout(fast.vae), _straightforward_net(fast), batched=True),
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
        "blocks": "of diffusers (PixArtTransformer2DModel)"
        if isinstance(ways[PLAIN].net, StockTransformer)
        else "ours",
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


def _straightforward_net(subject: Subject) -> Forward:
    try:
        net = StockTransformer(subject.transformer)
    except SynthesisError:
        return subject.transformer
    return net.to(subject.device, subject.dtype)


def _stock_layout(vae: Any) -> Any:
    """Copy an autoencoder with its convolutions as they are loaded."""
    return copy.deepcopy(vae).to(memory_format=torch.contiguous_format)


def end_to_end(
    checkpoint: Checkpoint, section: Section, rounds: int, counts: tuple[int, ...] = (1, 16)
) -> dict[str, Any]:
    """Time whole runs, from the request to the canvas, of so many patches at the checkpoint's own steps, and of each preset."""
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
    """Compare the images and the time of a checkpoint in its automatic precision with those in float32: same noise, same spots.

    Returns
    -------
    dict
        Difference in grey levels, mean and largest; the largest mean of a patch; how many times faster.
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
