"""The acceptance of a GPU: DiT-B/2 with an SD3-style autoencoder, random weights, 20 steps, three branches a step.

    python benchmarks/gpu.py [--device cuda] [--batches 1,4,16,64,128] [--json FILE]

Measures one patch after a warm-up, patches a second by batch with the share of the matrix peak, decoding in both memory layouts, the step
as it is and compiled with CUDA graphs, and looks for host synchronisation inside the loop. Prints one JSON object, with the targets.

It has not been run on a GPU yet: nobody had one at hand. ``--device cpu --small`` only tries out the script. What it measures and the package
does not do yet: compiling the step, channels-last decoding on a GPU, decoding beside the next batch's sampling. Each is a few lines,
and goes in where this script shows that it pays.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from napari_stmdit.bench.stages import (
    Subject,
    describe,
    in_dtype,
    interleaved,
    matmul_peak,
    name_of,
    random_base,
    ratio,
    sampling,
)
from napari_stmdit.devices import choose_device
from napari_stmdit.model.autoencoder import decode_latents
from napari_stmdit.model.inference import prediction
from napari_stmdit.model.sampling import denoise

TARGETS = {"one patch, s": 0.20, "patches a second": 80.0}
SMALL = ({"num_layers": 2, "num_attention_heads": 3}, {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4})


def whole(subject: Subject, batch: int) -> None:
    """Denoise and decode a batch, as a run does."""
    conditions, noise = subject.conditions(batch), subject.noise(batch)
    *_, (_, latents) = denoise(
        subject.transformer, subject.scheduler, noise, conditions, subject.guidance, subject.steps
    )
    decode_latents(subject.vae, latents)


def latency(subject: Subject) -> dict[str, Any]:
    """One patch: the first call, then the median of many."""
    start = time.perf_counter()
    whole(subject, 1)
    first = time.perf_counter() - start
    time_of = interleaved({"one": lambda: whole(subject, 1)}, subject.device, 20)["one"]
    return {"first_s": round(first, 3), "median_s": round(time_of.median, 4), "least_s": round(time_of.least, 4)}


def throughput(subject: Subject, batches: list[int]) -> dict[str, Any]:
    """Patches a second by batch, denoised and decoded; ends at the first batch that does not fit."""
    found: dict[str, Any] = {}
    for batch in batches:
        try:
            time_of = interleaved({"run": lambda batch=batch: whole(subject, batch)}, subject.device, 3)["run"]
        except torch.OutOfMemoryError:
            found[str(batch)] = "too little memory"
            break
        found[str(batch)] = round(batch / time_of.median, 2)
    return found


def layouts(subject: Subject, batch: int) -> dict[str, Any]:
    """Decoding as it is and with channels last, turn by turn."""
    other = copy.deepcopy(subject.vae).to(memory_format=torch.channels_last)
    works = {"as it is": subject.vae, "channels last": other}
    latents = subject.noise(batch)
    times = interleaved(
        {name: lambda vae=vae: decode_latents(vae, latents) for name, vae in works.items()}, subject.device, 5
    )
    return {
        **{name: round(found.median / batch, 5) for name, found in times.items()},
        "times faster with channels last": round(ratio(times["as it is"], times["channels last"]), 2),
    }


def compiled(subject: Subject, batch: int) -> dict[str, Any]:
    """A step as it is and compiled with CUDA graphs, with the seconds that compiling takes and how far the two are apart."""
    latents = subject.noise(batch).to(subject.device)
    times = torch.linspace(999, 50, subject.steps)
    plan = [subject.guidance] * subject.steps
    with torch.inference_mode():
        predict = prediction(subject.transformer, subject.conditions(batch), plan, times, subject.shape(batch))
        graph = torch.compile(lambda x: predict(1, x), mode="reduce-overhead")
        start = time.perf_counter()
        first = graph(latents).clone()
        seconds = time.perf_counter() - start
        works = {"as it is": lambda: predict(1, latents), "compiled": lambda: graph(latents)}
        found = interleaved(works, subject.device, 10)
        off = float((first - predict(1, latents)).abs().max())
    return {
        **{name: round(one.median, 5) for name, one in found.items()},
        "times faster compiled": round(ratio(found["as it is"], found["compiled"]), 2),
        "seconds to compile": round(seconds, 1),
        "largest difference": off,
    }


def synchronisations(subject: Subject, batch: int) -> dict[str, Any]:
    """What in the steps between the first and the last made the host wait for the device."""
    conditions, noise = subject.conditions(batch), subject.noise(batch)
    loop = denoise(subject.transformer, subject.scheduler, noise, conditions, subject.guidance, subject.steps)
    next(loop)  # prepares
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(subject.steps - 2):
                next(loop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)})
    return {"steps": subject.steps - 2, "places": places}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="1,4,16,64,128")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script out")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    device, dtype = choose_device(options.device)
    batches = [int(part) for part in options.batches.split(",")]
    plain = random_base(device, *SMALL) if options.small else random_base(device)
    subject, peak = in_dtype(plain, dtype), matmul_peak(device, dtype)
    steps, _ = sampling(subject, batches, peak, 2.0)
    report: dict[str, Any] = {
        "machine": describe(device),
        "precision": name_of(dtype),
        "peak_tflops": round(peak / 1e12, 1),
        "one patch": latency(subject),
        "patches a second": throughput(subject, batches),
        "steps": [row.facts() for row in steps],
        "decoding, s a patch": layouts(subject, batches[0]),
        "targets": TARGETS,
    }
    if device.type == "cuda":
        report["step, s"] = {str(batch): compiled(subject, batch) for batch in (1, 16)}
        report["host waits"] = synchronisations(subject, 4)
    best = max(value for value in report["patches a second"].values() if not isinstance(value, str))
    report["met"] = {
        "one patch": report["one patch"]["median_s"] <= TARGETS["one patch, s"],
        "throughput": best >= TARGETS["patches a second"],
        "no host waits": not report["host waits"]["places"] if "host waits" in report else None,
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json is not None:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
