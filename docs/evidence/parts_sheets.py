"""Contact sheets at 1:1. Those with real crops are for looking at, in the work folder; the synthetic rows go to the pictures."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from parts_conditions import SPOTS, STRENGTHS, moved, tumour_spots
from parts_table import case_images, test_spots
from PIL import Image
from synthesizer import Spots, Synthesizer

COLUMNS = 8
GAP = 6


def sheets(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Write the sheets and return what their rows are."""
    spots = test_spots(maker, options)
    order = np.argsort(spots.real.haematoxylin)
    chosen = order[np.linspace(0.02 * len(order), len(order) - 1, COLUMNS).astype(int)]
    cases = ("both", "expression", "morphology", "none")
    rows = [case_images(maker, spots, case, 0)[chosen] for case in cases]
    save(options.work / "contact_with_real.png", [spots.crops[chosen], *rows])
    save(options.pictures / "contact_sheet.png", rows)
    written = {"contact_sheet.png": list(cases)}
    for name, target in (
        (options.trained_on[0], "adipose"),
        (options.trained_on[0], "stroma"),
        (options.section, "adipose"),
    ):
        section = options.open(name)
        part = Spots(
            section, tumour_spots(section, maker.checkpoint, min(SPOTS, options.limit or SPOTS)), maker.checkpoint
        )
        strips = [maker.images(part.seeds(0), None, moved(part, maker.checkpoint, target, s))[:3] for s in STRENGTHS]
        file = f"strip_{name}_{target}.png"
        save(options.pictures / file, list(np.stack(strips, axis=1)))
        written[file] = [f"3 spots, strength {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}"]
    return written


def save(path, rows: list[np.ndarray]) -> None:
    """Write rows of patches with white gaps."""
    side = rows[0].shape[1]
    height, width = len(rows) * (side + GAP) - GAP, len(rows[0]) * (side + GAP) - GAP
    sheet = np.full((height, width, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, patch in enumerate(row):
            sheet[r * (side + GAP) : r * (side + GAP) + side, c * (side + GAP) : c * (side + GAP) + side] = patch
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
