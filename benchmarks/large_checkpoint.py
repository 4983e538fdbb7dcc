"""Peak memory and time of converting a checkpoint of PixCell-256's size (608 M parameters, random weights) and of one step with it.

    python benchmarks/large_checkpoint.py [--folder DIR]

Writes 4.9 GB below the folder and removes it again. Every stage runs in a process of its own; memory is the kernel's own account of it
(largest resident set, mapped files included).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

XL = {
    "in_channels": 16,
    "out_channels": 32,
    "learn_sigma": True,
    "sample_size": 32,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "morphology_dim": 1536,
    "position_scale": 0.5,
}
SETTINGS = {"model": {"input_size": 32, "num_heads": 16, "pe_interpolation": 0.5}, "diffusion": {"objective": "ddpm"}}


def make(folder: Path, naming: str) -> None:
    """Write random weights of that size in a naming."""
    import torch
    from safetensors.torch import save_file

    from napari_stmdit.model.foreign.keys import from_native
    from napari_stmdit.model.transformer import STMDiTTransformer2D

    with torch.device("meta"):
        net = STMDiTTransformer2D(**XL)
    native = {name: torch.randn(tensor.shape) * 0.02 for name, tensor in net.state_dict().items()}
    renamed = {name: tensor.contiguous() for name, tensor in from_native(native, naming).items()}
    if naming == "original":
        torch.save({"state_dict": renamed}, folder / "model.ckpt")
    else:
        save_file(renamed, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(SETTINGS))


def convert(folder: Path, target: Path) -> None:
    """Convert it."""
    from napari_stmdit.model.foreign.convert import convert as run

    run(folder, target, patch_mpp=0.5)


def step(target: Path) -> None:
    """Load it and predict once, one patch."""
    import torch

    from napari_stmdit import load_transformer

    net = load_transformer(target)
    with torch.inference_mode():
        net(torch.randn(1, 16, 32, 32), torch.tensor([500.0]), torch.randn(1, 1536))


def measured(stage: str, *arguments: str) -> dict[str, float]:
    """Run a stage in a process of its own -> seconds and peak memory in GB."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--stage", stage, *arguments], capture_output=True, text=True, check=True
    )
    return {"seconds": time.perf_counter() - start, "peak_gb": float(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    """Measure both namings and print a JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage", nargs="+")
    given, rest = parser.parse_known_args()
    if given.stage:
        name, *arguments = given.stage + rest
        if name == "make":
            make(Path(arguments[0]), arguments[1])
        elif name == "convert":
            convert(Path(arguments[0]), Path(arguments[1]))
        elif name == "step":
            step(Path(arguments[0]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        return
    report = {}
    for naming in ("original", "diffusers"):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            source, target = Path(name) / "source", Path(name) / "target"
            source.mkdir()
            measured("make", str(source), naming)
            size = max(file.stat().st_size for file in source.iterdir()) / 1e9
            done = measured("convert", str(source), str(target))
            report[naming] = {
                "file_gb": size,
                "convert": done,
                "convert_peak_to_file": done["peak_gb"] / size,
                "load_and_one_step": measured("step", str(target)),
            }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
