"""A plain slide of 10,000 x 10,000 px: opened lazily, a grid on its tissue, a run with null expression; time and memory.

``python benchmarks/large_slide.py [--side 10000] [--spots 16] [--steps 8]``. The slide is made, a JPEG-compressed tiled TIFF with its
halves, and used in a fresh process, whose peak of resident memory (Linux: VmHWM) is read after each part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

GLASS, STAIN = (243, 240, 245), (195, 120, 175)
TILE, LEVELS = 512, 5
DISCS = (((0.3, 0.35), 0.22), ((0.65, 0.6), 0.27), ((0.2, 0.8), 0.08))


def tiles(side: int, step: int):
    """The tiles of one level, made as they are asked for."""
    rng = np.random.default_rng(step)
    own = -(-side // step)
    for y0 in range(0, own, TILE):
        for x0 in range(0, own, TILE):
            y, x = np.mgrid[y0 : y0 + TILE, x0 : x0 + TILE] * (step / side)
            on = np.zeros((TILE, TILE), dtype=bool)
            for (cy, cx), radius in DISCS:
                on |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
            tile = np.empty((TILE, TILE, 3), np.uint8)
            tile[:] = GLASS
            grain = np.kron(rng.normal(size=(TILE // 8, TILE // 8, 1)), np.ones((8, 8, 1))) / step
            tile[on] = np.clip(STAIN - grain * (30, 25, 15), 0, 255)[on]
            yield tile


def write(path: Path, side: int) -> None:
    """Write the pyramid."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            own = -(-side // 2**level)
            tiff.write(
                tiles(side, 2**level),
                shape=(own, own, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                subifds=LEVELS - 1 if level == 0 else None,
                subfiletype=1 if level else 0,
                resolution=(20000 / 2**level,) * 2,
                resolutionunit="CENTIMETER",
            )


def peak_mb() -> float:
    """Most memory that this process has held, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def use(path: Path, spots: int, steps: int) -> dict[str, object]:
    """Open, synthesize, save; in a process of its own."""
    import napari_stmdit as st

    facts: dict[str, object] = {}
    began = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal began
        facts[name] = {"seconds": round(time.perf_counter() - began, 2), "peak_mb": round(peak_mb())}
        began = time.perf_counter()

    model = st.load_checkpoint("demo", device="cpu")
    mark("checkpoint loaded")
    section = st.open_section(path)
    mark("slide opened, grid laid")
    facts["section"] = {"spots": len(section.spots), "shape": section.image.shape, "notes": section.notes}
    centres = section.spots.yx / section.image.shape[0]
    on = np.zeros(len(centres), dtype=bool)
    for centre, radius in DISCS:
        on |= ((centres - centre) ** 2).sum(axis=1) <= radius**2
    facts["spots whose centre is on the tissue as drawn"] = int(on.sum())
    result = st.synthesize(section, st.Request(region=st.regions.SampleOfSpots(count=spots), steps=steps), model)
    mark(f"{spots} patches, {steps} steps")
    result.save(path.with_name("out.zarr"))
    mark("saved")
    facts["result"] = {"patches": len(result.done), "notes": result.notes}
    return facts


def main() -> None:
    """Make the slide and have it used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--spots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.use is not None:
        print(json.dumps(use(options.use, options.spots, options.steps), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write(path, options.side)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, {options.side**2 * 3 / 1e6:.0f} MB as pixels")
        again = ["--use", path, "--spots", options.spots, "--steps", options.steps]
        subprocess.run([sys.executable, __file__, *map(str, again)], check=True)


if __name__ == "__main__":
    main()
