"""This package against the straightforward ways, in one run, turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assemble import Checkpoint, load_checkpoint
from ..devices import choose_device
from ..model.sampler import denoise
from ..model.vae import decode_latents
from ..synthesis.plan import plan
from ..synthesis.result import synthesize
from ..synthesis.run import run
from ..types import Request, SampleOfSpots, Section
from .machine import Timing, interleaved, ratio
from .stages import name_of
from .stock import Forward, StockTransformer, straightforward
from .subjects import Subject, in_dtype

PLAIN, BATCHED = "one forward a branch, float32", "one forward a step"


def against_straightforward(subject: Subject, rounds: int) -> dict[str, Any]:
    """Compare one patch, all steps and decoding, with loops that save nothing.

    Two are float32 and three forwards a step, or the fast dtype and one forward a step; of diffusers' own blocks where it has them for
    such a transformer, else of our own forward, which is asked anew for everything. The third is ours in float32, which must give
    what the first gives.

    Returns
    -------
    dict
        Seconds of each, with and without decoding; how many times faster ours is; the largest difference of the latents in float32.
    """
    plain, fast = in_dtype(subject, torch.float32), subject
    nets = {what: _straightforward_net(one) for what, one in (("plain", plain), ("fast", fast))}
    made: dict[str, Tensor] = {}

    def loop(name: str, one: Subject, net: Forward | None, batched: bool) -> Callable[[], Any]:
        def work() -> None:
            made[name] = _denoised(one) if net is None else _loop(one, net, batched)

        return work

    ours = f"ours, {name_of(fast.dtype)}"
    batched = f"{BATCHED}, {name_of(fast.dtype)}"
    ways: dict[str, tuple[Subject, Callable[[], Any]]] = {
        PLAIN: (plain, loop(PLAIN, plain, nets["plain"], False)),
        batched: (fast, loop(batched, fast, nets["fast"], True)),
        ours: (fast, loop(ours, fast, None, False)),
    }
    exact = "ours, float32"
    ways.setdefault(exact, (plain, loop(exact, plain, None, False)))
    sampled = interleaved({name: work for name, (_, work) in ways.items()}, subject.device, rounds)
    decoders = {
        "float32, stock layout": (_stock_layout(plain.vae), plain),
        f"{name_of(fast.vae.dtype)}, stock layout": (_stock_layout(fast.vae), fast),
        "ours, float32": (plain.vae, plain),
        "ours": (fast.vae, fast),
    }
    decoded = interleaved(
        {name: lambda vae=vae, one=one: decode_latents(vae, one.noise(1)) for name, (vae, one) in decoders.items()},  # type: ignore[misc]
        subject.device,
        rounds,
    )
    decoding = dict(zip((PLAIN, batched, exact, ours), decoded.values(), strict=False))
    if ours == exact:
        decoding[ours] = decoded["ours"]
    ends = {name: Timing(time.median + decoding[name].median, 0.0, time.rounds) for name, time in sampled.items()}
    stock = isinstance(nets["plain"], StockTransformer)
    return {
        "blocks": "of diffusers (PixArtTransformer2DModel)" if stock else "ours, asked anew at every step",
        "steps": subject.steps,
        "branches": len(subject.guidance),
        "seconds_denoising": {name: round(time.median, 3) for name, time in sampled.items()},
        "seconds_decoding": {name: round(decoding[name].median, 3) for name in sampled},
        "rounds": rounds,
        "times_faster": {
            f"than {name}": {
                "denoising": round(ratio(sampled[name], sampled[ours]), 2),
                "with decoding": round(ratio(ends[name], ends[ours]), 2),
            }
            for name in (PLAIN, batched, *([exact] if exact != ours else []))
        },
        "float32_times_faster": round(ratio(sampled[PLAIN], sampled[exact]), 2),
        "largest_difference_in_float32": float((made[PLAIN] - made[exact]).abs().max()),
        "standard_deviation_of_latents": round(float(made[PLAIN].std()), 3),
    }


def _straightforward_net(subject: Subject) -> Forward:
    from ..errors import SynthesisError

    try:
        net = StockTransformer(subject.transformer)
    except SynthesisError:
        return subject.transformer  # type: ignore[return-value]
    return net.to(subject.device, subject.dtype)


def _loop(subject: Subject, net: Forward, batched: bool) -> Tensor:
    conditions = subject.conditions(1)
    return straightforward(
        net, subject.scheduler, subject.noise(1), conditions, subject.guidance, subject.steps, batched=batched
    )


def _denoised(subject: Subject) -> Tensor:
    conditions = subject.conditions(1)
    *_, (_, latents) = denoise(
        subject.transformer, subject.scheduler, subject.noise(1), conditions, subject.guidance, subject.steps
    )
    return latents


def _stock_layout(vae: Any) -> Any:
    """Copy an autoencoder with its convolutions as they are loaded."""
    import copy

    return copy.deepcopy(vae).to(memory_format=torch.contiguous_format)


def end_to_end(
    checkpoint: Checkpoint, section: Section, rounds: int, counts: tuple[int, ...] = (1, 16)
) -> dict[str, Any]:
    """Time whole runs, from the request to the canvas, of so many patches at the checkpoint's own steps, and of each preset."""
    from ..synthesis.presets import PRESETS

    device = torch.device(checkpoint.device)

    def whole(count: int, **changes: Any) -> Callable[[], Any]:
        request = Request(region=SampleOfSpots(count=count), **changes)
        return lambda: synthesize(section, request, checkpoint)

    presets = interleaved({name: whole(1, preset=name) for name in PRESETS}, device, rounds, each=2)
    runs = {count: interleaved({"run": whole(count)}, device, max(1, rounds // 2))["run"] for count in counts[1:]}
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
        made = plan(section, Request(region=SampleOfSpots(count=count)), model.card)

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
