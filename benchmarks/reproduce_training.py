"""Does a training reproduce? The diffusion stage for some steps, twice from one seed, and once killed half-way and continued.

    python benchmarks/reproduce_training.py CONFIG --work FOLDER_WITH_A_LATENT_CACHE --steps 200

The folder is a finished `latents` stage of the same config; it is copied (by links) and left as it is. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, again, killed = (prepare(options, Path(folder) / name) for name in ("first", "again", "killed"))
        for run in (first, again):
            subprocess.run(command(run, options), check=True, stderr=subprocess.DEVNULL)
        stopped_at = kill_half_way(killed, options)
        subprocess.run(command(killed, options), check=True, stderr=subprocess.DEVNULL)
        a, b, c = (losses(run) for run in (first, again, killed))
        print(
            json.dumps(
                {
                    "steps": options.steps,
                    "losses_compared": len(a),
                    "largest_difference_same_seed": max(abs(a[step] - b[step]) for step in a),
                    "last_loss": a[max(a)],
                    "killed_after_step": stopped_at,
                    "continued_from_step": continued_from(killed),
                    "continued_to_step": max(c),
                }
            )
        )


def prepare(options: argparse.Namespace, folder: Path) -> Path:
    """Make a work folder with the finished stages and a config of so many steps."""
    folder.mkdir()
    for name in (
        "latents.pt",
        "encoders",
        "autoencoder.pt",
        "autoencoder_decoder.pt",
        "started_from.json",
        "sections.json",
    ):
        if (options.work / name).exists():
            (folder / name).symlink_to((options.work / name).resolve())
    content = yaml.safe_load(options.config.read_text())
    content["diffusion"] = content.get("diffusion", {}) | {
        "steps": options.steps,
        "sample_every": 0,
        "validate_every": options.steps,
    }
    content |= {"checkpoint_seconds": 5.0, "output": "."}
    content["root"] = str((options.root or options.config.parent / content["root"]).resolve())
    content.pop("export", None)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def command(run: Path, options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "napari_stmdit.cli", "train", str(run / "config.yaml"), "--stage", "diffusion"]


def kill_half_way(run: Path, options: argparse.Namespace) -> int:
    """Start, wait until half of the steps are logged and a state is saved, and kill the process outright."""
    process = subprocess.Popen(command(run, options), stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if (run / "diffusion.pt").is_file() and max(losses(run), default=0) >= options.steps // 2:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    process.wait()
    time.sleep(3)  # its workers notice and leave
    reached = max(losses(run))
    with (run / "diffusion.jsonl").open("a") as file:
        file.write('{"killed": true}\n')
    return reached


def lines(run: Path) -> list[dict]:
    path = run / "diffusion.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(run: Path) -> dict[int, float]:
    """Loss by step, as logged."""
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}


def continued_from(run: Path) -> int:
    """Return the first step that was logged after the kill."""
    written = lines(run)
    place = next(k for k, line in enumerate(written) if line.get("killed"))
    return min(line["step"] for line in written[place + 1 :] if "loss" in line)


if __name__ == "__main__":
    main()
