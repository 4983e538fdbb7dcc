"""What shallow counts still say of an image: ridge regression on thinned counts, and on the checkpoint's program scores of the same counts.

    python docs/evidence/depth_ceiling.py --root DATA

Trained on the training sections at the depth it is tested at, tested on the held-out one; prints the correlation with real haematoxylin
density over its spots, for several thinnings. Relative depth is that of the whole section, which thinning leaves as it is. No image is synthesized.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from intervals import correlate
from sklearn.linear_model import RidgeCV
from synthesizer import crops_at, open_named

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.evaluation.measures import measure
from napari_stmdit.expression.genes import gather_counts, match_genes
from napari_stmdit.training.programs import log_normalise, thin

HERE = Path(__file__).resolve().parent
PENALTIES = np.logspace(-1, 5, 20)
THINNINGS = (1, 15)
REPEATS = 4
"""Thinnings of the tested section; the training sections are thinned as often, and learned from all at once."""


def main() -> None:
    """Print one line for each way of reading the counts and each depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "configs" / "demo.yaml")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--train", nargs="+", default=["C2", "C3", "C5"])
    parser.add_argument("--section", default="C6")
    options = parser.parse_args()
    checkpoint = load_checkpoint("demo", device="cpu", dtype="float32")
    genes = tuple(checkpoint.card.genes)
    counts, density, depth = {}, {}, {}
    for name in (*options.train, options.section):
        section = open_named(options.config, options.root, name)
        spots = section.spots
        counts[name] = gather_counts(spots.counts, match_genes(genes, spots.genes), genes).toarray().astype(np.float32)
        depth[name] = spots.relative_depth
        density[name] = measure(crops_at(section, spots.yx, checkpoint.card), checkpoint.card.patch_mpp).haematoxylin
    encode = checkpoint.expression.encode_counts
    readings = {
        "log-normalised counts": lambda c, _: log_normalise(c),
        "log-normalised counts and relative depth": lambda c, d: np.column_stack([log_normalise(c), d]),
        "program scores": lambda c, d: encode(c, None, d),
        "program scores without relative depth": lambda c, _: encode(c),
        "relative depth": lambda _, d: d[:, None],
    }
    for reading, read in readings.items():
        for factor in THINNINGS:
            found = [
                r_of(read, factor, counts, density, depth, options, seed)
                for seed in range(REPEATS if factor > 1 else 1)
            ]
            print(f"{reading}, thinned {factor}-fold: r {', '.join(f'{r:.2f}' for r in found)}")


def r_of(read, factor, counts, density, depth, options, seed) -> float:
    """Fit on the training sections, density centred within each, and return the correlation on the tested one."""
    rng = np.random.default_rng(seed)
    repeats = REPEATS if factor > 1 else 1
    x = np.concatenate(
        [read(thin(counts[n].copy(), factor, rng), depth[n]) for n in options.train for _ in range(repeats)]
    )
    y = np.concatenate([density[n] - density[n].mean() for n in options.train for _ in range(repeats)])
    mean, spread = x.mean(axis=0), x.std(axis=0) + 0.05
    fit = RidgeCV(PENALTIES * len(x) / 100).fit((x - mean) / spread, y)
    tested = read(thin(counts[options.section].copy(), factor, rng), depth[options.section])
    return correlate(fit.predict((tested - mean) / spread), density[options.section])


if __name__ == "__main__":
    main()
