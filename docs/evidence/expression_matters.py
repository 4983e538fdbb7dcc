"""Does the image answer to the expression? Synthesis of a held-out section with true and with shuffled expression.

Every spot of the held-out section is synthesized from noise with

- its own expression alone (morphology null),
- the expression of another spot of the section alone (the control: pairs broken, values the same),
- its own morphology and expression together,
- its own morphology alone, and nothing at all,

and haematoxylin density, nuclei count and blank fraction of the synthetic patch are correlated with those of the real patch at the spot.

    python docs/evidence/expression_matters.py --output expression_matters.json
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from napari_stmdit.evaluation.controls import bootstrap_correlation, permutation_interval, shuffle_within
from napari_stmdit.evaluation.image import measure
from napari_stmdit.types import Guidance

HERE = Path(__file__).resolve().parent
CASES = {  # (morphology, expression)
    "expression": (None, "own"),
    "expression_shuffled": (None, "shuffled"),
    "both": ("own", "own"),
    "both_shuffled": ("own", "shuffled"),
    "morphology": ("own", None),
    "none": (None, None),
}
QUANTITIES = ("haematoxylin", "nuclei", "blank")


def synthesize(job: dict) -> np.ndarray:
    """Synthesize the spots of one job with one case and seed -> (n, side, side, 3) uint8."""
    import torch

    torch.set_num_threads(1)
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.plan import boxes_around, patch_seed
    from napari_stmdit.synthesis.run import PatchBatch
    from napari_stmdit.tissue.crops import read_patches
    from napari_stmdit.training.config import load_config
    from napari_stmdit.training.sections import open_source
    from napari_stmdit.types import Patch

    config = load_config(job["config"], job["root"])
    source = next(s for s in (*config.held_out, *config.train) if s.name == job["section"])
    section = open_source(source, config)
    checkpoint = load_checkpoint(job["checkpoint"], device="cpu", dtype="float32")
    card, spots, rows = checkpoint.card, section.spots, np.array(job["rows"])
    boxes = [b.source for b in boxes_around(spots.yx[rows], card.patch_px, card.patch_mpp / section.calibration.mpp)]
    crops = read_patches(section.image, boxes, card.patch_px)
    if job["case"] == "real":
        return crops
    use_morphology, use_expression = CASES[job["case"]]
    donors = shuffle_within(len(spots), job["seed"])[rows] if use_expression == "shuffled" else rows
    expression = checkpoint.encode_expression(spots.counts[donors], spots.genes) if use_expression else None
    morphology = checkpoint.encode_morphology(crops) if use_morphology else None
    guidance = Guidance(expression=job["scale_expression"], morphology=job["scale_morphology"]).filled(card.guidance)
    images = []
    for start in range(0, len(rows), 8):
        part = slice(start, start + 8)
        seeds = tuple(patch_seed(job["seed"], str(spots.ids[row])) for row in rows[part])
        patches = tuple(
            Patch(i, str(spots.ids[r]), int(r), (0, 0, 0, 0), (0, 0, 0, 0), s)
            for i, (r, s) in enumerate(zip(rows[part], seeds, strict=True))
        )
        batch = PatchBatch(
            patches,
            None,
            None if morphology is None else morphology[part],
            None if expression is None else expression[part],
            seeds,
            guidance,
            job["steps"] or card.steps,
        )
        *_, last = checkpoint.denoise(batch)
        images.append(last.images)
    return np.concatenate(images)


def spots_of(config_path: Path, root: Path | None, section: str) -> int:
    """Number of spots of a section."""
    from napari_stmdit.training.config import load_config
    from napari_stmdit.training.sections import open_source

    config = load_config(config_path, root)
    return len(open_source(next(s for s in (*config.held_out, *config.train) if s.name == section), config).spots)


def run(options: argparse.Namespace) -> tuple[dict, dict[str, np.ndarray]]:
    """Synthesize all cases and return the figures and the images by case, (seeds, n, side, side, 3)."""
    count = spots_of(options.config, options.root, options.section)
    rows = np.arange(count)
    if options.limit and options.limit < count:
        rows = np.sort(np.random.default_rng(0).permutation(count)[: options.limit])
    common = {
        "config": options.config, "root": options.root, "section": options.section, "checkpoint": options.checkpoint,
        "scale_expression": options.expression, "scale_morphology": options.morphology, "steps": options.steps,
    }  # fmt: skip
    chunks = np.array_split(rows, options.workers)
    cases = ["real", *options.cases]
    images: dict[str, np.ndarray] = {}
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for case in cases:
            seeds = [0] if case == "real" else list(range(options.seeds))
            jobs = [common | {"case": case, "seed": s, "rows": c.tolist()} for s in seeds for c in chunks]
            parts = list(pool.map(synthesize, jobs))
            images[case] = np.stack(
                [np.concatenate(parts[k * len(chunks) : (k + 1) * len(chunks)]) for k in range(len(seeds))]
            )
    real = measure(images["real"][0])
    card = read_card(options.checkpoint)
    figures: dict = {
        "section": options.section,
        "spots": len(rows),
        "seeds": options.seeds,
        "steps": options.steps or card.steps,
        "guidance": Guidance(expression=options.expression, morphology=options.morphology)
        .filled(card.guidance)
        .model_dump(),
        "seconds": round(time.perf_counter() - started, 1),
        "real": {"means": means(real)},
    }
    for case in options.cases:
        per_seed = [measure(stack) for stack in images[case]]
        entry: dict = {"means": {k: round(float(np.mean([means(s)[k] for s in per_seed])), 4) for k in means(real)}}
        for quantity in QUANTITIES:
            target = getattr(real, quantity)
            values = np.array([getattr(s, quantity) for s in per_seed])
            entry[quantity] = {
                "r_per_seed": [round(bootstrap_correlation(v, target, draws=1).r, 3) for v in values],
                "r_mean_image": _rounded(asdict(bootstrap_correlation(values.mean(axis=0), target))),
                "r_first_seed": _rounded(asdict(bootstrap_correlation(values[0], target))),
                "unrelated_95": [round(x, 3) for x in permutation_interval(values[0], target)],
            }
        figures[case] = entry
    return figures, images


def read_card(checkpoint: str):
    """The checkpoint's card."""
    from napari_stmdit.assemble import load_checkpoint

    return load_checkpoint(checkpoint, device="cpu").card


def means(statistics) -> dict[str, float]:
    """Mean of every statistic."""
    return {name: round(float(values.mean()), 4) for name, values in vars(statistics).items()}


def _rounded(values: dict) -> dict:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "configs" / "demo.yaml")
    parser.add_argument("--root", type=Path, default=None, help="folder of the data, in place of the config's")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--section", default="C6")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["expression", "expression_shuffled", "both", "morphology", "none"],
        choices=list(CASES),
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="use so many spots only")
    parser.add_argument("--expression", type=float, default=None, help="guidance scale in place of the card's")
    parser.add_argument("--morphology", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "expression_matters.json")
    parser.add_argument(
        "--images", type=Path, default=None, help="also keep the images in this .npz; not for the repository"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse()
    result, pictures = run(chosen)
    chosen.output.write_text(json.dumps(result, indent=1) + "\n")
    if chosen.images is not None:
        np.savez_compressed(chosen.images, **pictures)
    print(json.dumps(result, indent=1))
