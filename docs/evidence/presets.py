"""What the presets and the lower precision cost: python docs/evidence/presets.py --root DATA [--section C5] [--output FILE.json].

Spots of a section that was trained on (what was held out stays blind to such choices), the same noise for every row. Correlations are with
the real patches, distances in a space of random convolutions; the difference is the mean absolute one, in grey levels, from the first row.
A second seed shows how much noise alone changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from intervals import bootstrap_correlation, rounded
from synthesizer import Spots, open_named, quarters

from napari_stmdit.assemble import Checkpoint, load_checkpoint
from napari_stmdit.evaluation.spaces import Frame, RandomConvolutions, frechet_distance
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.plan import PRESETS, resolve_sampling

HERE = Path(__file__).resolve().parent
AT_ONCE = 8
ROWS = {  # name: preset, precision, seed; the first is what the others are compared with
    "morphology + expression": {
        "exact, float32": ("exact", "float32", 0),
        "exact": ("exact", "auto", 0),
        "fast": ("fast", "auto", 0),
        "draft": ("draft", "auto", 0),
        "exact, other noise": ("exact", "auto", 1),
    },
    "expression": {
        "exact": ("exact", "auto", 0),
        "fast": ("fast", "auto", 0),
        "draft": ("draft", "auto", 0),
        "exact, other noise": ("exact", "auto", 1),
    },
}


def images(checkpoint: Checkpoint, spots: Spots, preset: str, seed: int, morphology: bool) -> np.ndarray:
    """Synthesize all spots as a run with this preset would."""
    request = Request(preset=preset)
    sampling = resolve_sampling(request, checkpoint.card)
    seeds, found = spots.seeds(seed), []
    for start in range(0, len(seeds), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        *_, last = checkpoint.pipeline.denoise_images(
            morphology=spots.morphology[part] if morphology else None,
            expression=spots.expression[part],
            seeds=seeds[part],
            sampling=sampling,
        )
        found.append(last.images)
    return np.concatenate(found)


def figures(made: np.ndarray, exact: np.ndarray, spots: Spots, space: RandomConvolutions) -> dict[str, Any]:
    """Return what one set of images amounts to."""
    measured, real = spots.measured(made), spots.real
    reference = space.features(quarters(spots.crops))
    frame = Frame.of(reference)
    off = np.abs(made.astype(np.int16) - exact.astype(np.int16))
    out: dict[str, Any] = {}
    for name in ("haematoxylin", "nuclei"):
        fit = bootstrap_correlation(getattr(measured, name), getattr(real, name))
        out[f"r_{name}"] = rounded(fit)
    for name in ("haematoxylin", "nuclei", "blank", "high_frequency"):
        out[name] = round(float(getattr(measured, name).mean()), 3)
    distance = frechet_distance(frame.project(space.features(quarters(made))), frame.project(reference))
    out["frechet"] = round(distance, 2)
    out["difference_mean"] = round(float(off.mean()), 2)
    out["difference_largest"] = int(off.max())
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=None, help="folder of the sections")
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "configs" / "demo.yaml")
    parser.add_argument("--section", default="C5")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--limit", type=int, default=0, help="use so many spots only")
    parser.add_argument("--output", type=Path, default=HERE / "presets.json")
    options = parser.parse_args()
    models = {dtype: load_checkpoint(options.checkpoint, device="cpu", dtype=dtype) for dtype in ("float32", "auto")}
    section = open_named(options.config, options.root, options.section)
    rows = np.random.default_rng(0).permutation(len(section.spots))[: options.limit or None]
    spots, space = Spots(section, np.sort(rows), models["float32"]), RandomConvolutions()
    found: dict[str, Any] = {
        "section": options.section,
        "spots": len(rows),
        "checkpoint_sha256": models["float32"].provenance["sha256"],
        "precision": models["auto"].provenance["dtype"],
        "real": {name: round(float(values.mean()), 3) for name, values in vars(spots.real).items()},
        "presets": {name: vars(settings) for name, settings in PRESETS.items()},
    }
    for case, rows_of in ROWS.items():
        found[case], first = {}, None
        for name, (preset, dtype, seed) in rows_of.items():
            made = images(models[dtype], spots, preset, seed, case != "expression")
            first = made if first is None else first
            found[case][name] = figures(made, first, spots, space)
            print(case, name, found[case][name], flush=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
        print(table(found, case))


def table(found: dict[str, Any], case: str) -> str:
    """Return the figures of one case as a table of the documentation."""
    lines = [f"| {case} | r(H) | r(nuclei) | H | nuclei | HF | FD | difference | largest |", "|---" * 9 + "|"]
    for name, row in found[case].items():
        r = [
            "{:.2f} ({:.2f} to {:.2f})".format(*(value + 0.0 for value in row[key]))
            for key in ("r_haematoxylin", "r_nuclei")
        ]
        lines.append(
            f"| {name} | {r[0]} | {r[1]} | {row['haematoxylin']:.2f} | {row['nuclei']:.0f} | {row['high_frequency']:.2f} | "
            f"{row['frechet']:.1f} | {row['difference_mean']:.2f} | {row['difference_largest']} |"
        )
    real = found["real"]
    lines.append(
        f"| real | | | {real['haematoxylin']:.2f} | {real['nuclei']:.0f} | {real['high_frequency']:.2f} | 0 | | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
