"""Does a training reproduce itself? The diffusion stage of a config, twice from the same cache and seed, compared step by step.

    python benchmarks/reproduce_training.py configs/demo.yaml --work ../runs/demo --steps 200

``--work`` is a folder in which the stages before have run; only its cache is read (linked), nothing in it is changed. Prints the losses
of both runs and the largest difference; exit code 1 where it is larger than ``--tolerance``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from napari_stmdit.training.config import TrainingConfig, load_config
from napari_stmdit.training.train import run_stage

CACHED = ("latents.pt", "started_from.json", "sections.json", "autoencoder.pt", "autoencoder_decoder.pt")


def short(config: TrainingConfig, steps: int, output: Path) -> TrainingConfig:
    """The config for so many steps, without validation and samples, which do not touch the training."""
    diffusion = config.diffusion.model_copy(update={"steps": steps, "validate_every": steps + 1, "sample_every": 0})
    return config.model_copy(update={"diffusion": diffusion, "output": output, "tensorboard": False})


def losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / "diffusion.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def run(config: TrainingConfig, work: Path, steps: int, output: Path) -> dict[int, float]:
    output.mkdir(parents=True)
    for name in CACHED:
        if (work / name).is_file():
            try:
                os.link(work / name, output / name)
            except OSError:  # another file system
                shutil.copy(work / name, output / name)
    run_stage(short(config, steps, output), "diffusion")
    return losses(output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder with latents.pt")
    parser.add_argument("--root", type=Path, help="folder of the data, in place of the config's")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()
    if not (arguments.work / "latents.pt").is_file():
        parser.error(f"{arguments.work} holds no latents.pt; run the stages before: stmdit train CONFIG --stage latents")
    config = load_config(arguments.config, root=arguments.root)
    with tempfile.TemporaryDirectory(prefix="stmdit-reproduce-") as place:
        first, second = (run(config, arguments.work, arguments.steps, Path(place) / name) for name in ("a", "b"))
    print("step  first     second    difference")
    for step in first:
        print(f"{step:4d}  {first[step]:.6f}  {second[step]:.6f}  {abs(first[step] - second[step]):.2e}")
    largest = max(abs(first[step] - second[step]) for step in first)
    print(f"largest difference: {largest:.2e} (at most {arguments.tolerance:g} is asked for)")
    return int(largest > arguments.tolerance or first.keys() != second.keys())


if __name__ == "__main__":
    sys.exit(main())
