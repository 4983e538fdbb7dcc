"""Do window and tile borders show in continuous mode?

The energy of the grey-level gradient across the lines where windows end (every half patch) and tiles meet is compared with its energy across
all other lines of the same region. As tissue itself varies, the same ratio is also taken for every shift of the lattice by less than
half a patch: a seam would stand out from these.

Run ``python docs/evidence/seams.py SECTION --fullres IMAGE``; it prints one JSON object and writes a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CELL = 8
"""Side of a latent cell in pixels."""


def energies(rgba: NDArray[np.uint8], axis: int) -> NDArray[np.float64]:
    """Mean squared gradient across each line between two rows (axis 0) or columns (axis 1), inside the region; NaN outside."""
    grey = rgba[..., :3].astype(np.float64).mean(axis=2)
    inside = rgba[..., 3] == 255
    grey, inside = (np.moveaxis(a, axis, 0) for a in (grey, inside))
    both = inside[1:] & inside[:-1]
    square = np.where(both, np.diff(grey, axis=0) ** 2, 0).sum(axis=1)
    count = both.sum(axis=1)
    return np.where(count > 50, square / np.maximum(count, 1), np.nan)  # entry k: between lines k and k + 1


def seam_ratios(
    rgba: NDArray[np.uint8], origin: tuple[int, int], period: int, near: int | None = None
) -> NDArray[np.float64]:
    """(period,) ratio of the energy across the lattice shifted by 0, 1, ... pixels to that elsewhere, both axes together.

    Elsewhere is every other line, or, with ``near``, the lines at 8, 16, ... up to ``near`` pixels on either side: they cross the same tissue,
    and like the borders of windows they are borders of latent cells, which a decoder may show for its own reasons.
    """
    per_axis = [energies(rgba, axis) for axis in (0, 1)]
    ratios = []
    for shift in range(period):
        on, off = [], []
        for axis, energy in enumerate(per_axis):
            distance = (np.arange(len(energy)) + 1 + origin[axis] - shift) % period
            distance = np.minimum(distance, period - distance)
            on.append(energy[distance == 0])
            off.append(
                energy[distance > 0 if near is None else (distance > 0) & (distance % CELL == 0) & (distance <= near)]
            )
        ratios.append(np.nanmean(np.concatenate(on)) / np.nanmean(np.concatenate(off)))
    return np.array(ratios)


def main() -> None:
    from PIL import Image

    from napari_stmdit import Request, load_checkpoint, open_section
    from napari_stmdit.regions import Polygons
    from napari_stmdit.synthesis.session import synthesize

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", type=Path)
    parser.add_argument("--fullres")
    parser.add_argument("--side-um", type=float, default=455)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--picture", type=Path, default=Path("seams.png"))
    options = parser.parse_args()
    section = open_section(options.section, fullres=options.fullres)
    model = load_checkpoint(options.checkpoint)
    spots = section.spots.yx
    y, x = spots[np.linalg.norm(spots - spots.mean(axis=0), axis=1).argmin()]
    half = options.side_um / 2 / section.calibration.mpp
    ring = ((y - half, x - half), (y - half, x + half), (y + half, x + half), (y + half, x - half))
    request = Request(region=Polygons(rings=(ring,)), mode="continuous", steps=options.steps)
    result = synthesize(section, request, model, batch=16)
    Image.fromarray(result.rgba).save(options.picture)
    sys.stdout.write(json.dumps(facts_of(result.rgba, result.plan), indent=1) + "\n")


def facts_of(rgba, plan):
    """Ratios at the borders of windows and tiles, each beside those of all other shifts of the lattice."""
    size = plan.frame.pixel_size
    origin = tuple(round(v / size) for v in plan.frame.origin)
    facts = {"steps": plan.steps, "windows": len(plan.windows), "tiles": len(plan)}
    for name, period in (("window", plan.windows.stride), ("tile", plan.windows.tile)):
        for against, near in (("all_other_lines", None), ("cell_borders_within_32_px", 32)):
            ratios = seam_ratios(rgba, origin, period, near)
            ratios = ratios if near is None else ratios[::CELL]
            facts[f"{name}_borders_against_{against}"] = {
                "ratio": round(float(ratios[0]), 3),
                "other_shifts_5_50_95_percent": np.round(np.nanpercentile(ratios[1:], [5, 50, 95]), 3).tolist(),
            }
    return facts


if __name__ == "__main__":
    main()
