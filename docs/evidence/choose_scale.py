"""Which scale of expression a checkpoint should have by default: what each does on training sections, expression alone.

    python docs/evidence/choose_scale.py --root DATA --checkpoint FOLDER

The held-out section is not touched: what is chosen by these figures must not be judged by them. Correlations of training sections flatter;
what matters is how they and the bias of the density change with the scale.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from intervals import correlate
from synthesizer import Spots, Synthesizer, open_named

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Print a line for each section and scale, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "configs" / "demo.yaml")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--sections", nargs="+", default=["C5", "B4"])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 1.5, 2.0, 2.5, 3.0])
    parser.add_argument("--spots", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("out/scale"))
    parser.add_argument("--output", type=Path, default=HERE / "scale.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    maker = Synthesizer(options.checkpoint, options.work, options.workers, "auto", None)
    found = {"checkpoint": maker.checkpoint.provenance["sha256"], "spots": options.spots, "seeds": options.seeds}
    for name in options.sections:
        section = open_named(options.config, options.root, name)
        rows = np.sort(np.random.default_rng(0).permutation(len(section.spots))[: options.spots])
        spots = Spots(section, rows, maker.checkpoint)
        found[name] = {f"{scale:g}": figures(maker, spots, scale, options.seeds) for scale in options.scales}
        for scale, line in found[name].items():
            print(name, scale, json.dumps(line), flush=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


def figures(maker: Synthesizer, spots: Spots, scale: float, seeds: int) -> dict[str, object]:
    """Return r of haematoxylin for each seed and for their mean, and the mean density over the real one."""
    guidance = maker.guidance(expression=scale)
    stacks = [maker.images(spots.seeds(seed), None, spots.expression, guidance) for seed in range(seeds)]
    density = np.stack([spots.measured(stack).haematoxylin for stack in stacks])
    real = spots.real.haematoxylin
    return {
        "r_per_seed": [round(correlate(values, real), 3) for values in density],
        "r_mean_of_seeds": round(correlate(density.mean(axis=0), real), 3),
        "density_over_real": round(float(density.mean() / real.mean()), 3),
    }


if __name__ == "__main__":
    main()
