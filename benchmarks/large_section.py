"""A section of 20,000 x 20,000 px with 5,000 spots and 18,000 genes: opening it, and continuous regions of it.

Run ``python benchmarks/large_section.py`` from the checkout (under Xvfb where there is no display); it needs 2 GB of disk under
the temporary directory. Every measurement is a process of its own. It prints one JSON object.

The regions are made with a checkpoint of two blocks and random weights but real sizes of patches and latents, and few steps: what is
measured is how memory and time grow with the area, not how long the bundled checkpoint takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SIDE, SPOTS, GENES, MPP = 20_000, 5_000, 18_000, 0.5
NAMES = tuple(f"GENE{k}" for k in range(GENES))


def memory_mb(which: str) -> float:
    """VmRSS (now) or VmHWM (most so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise LookupError(which)


def make_section(folder: Path) -> None:
    """A Space Ranger folder with a tiled TIFF, on a Visium lattice stretched to fill the slide."""
    from PIL import Image
    from scipy.sparse import csr_matrix

    from napari_stmdit.tissue.st_array import write_spaceranger_folder
    from napari_stmdit.types import Genes

    rng = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(SPOTS)))
    rc = np.array([(r, 2 * c + r % 2) for r in range(columns) for c in range(columns)])[:SPOTS]
    pitch = 0.94 * SIDE / columns
    yx = 0.03 * SIDE + rc * (pitch, pitch / 2)
    each = GENES // 8
    indices = np.concatenate([np.sort(rng.choice(GENES, each, replace=False)) for _ in range(SPOTS)])
    data = rng.geometric(0.4, len(indices)).astype(np.int32)
    counts = csr_matrix((data, indices, np.arange(0, len(indices) + 1, each)), shape=(SPOTS, GENES))
    tile = texture(rng, 512)
    # thumbnails must show what the slide shows
    coarsest = np.tile(tile, (2, 2, 1))[: SIDE >> 5, : SIDE >> 5]
    small = np.asarray(Image.fromarray(coarsest).resize((500, 500), Image.Resampling.BOX))
    write_spaceranger_folder(
        folder, image=small, ids=np.array([f"S{i:04d}-1" for i in range(SPOTS)]), yx=yx, counts=counts,
        genes=Genes(np.array(NAMES)), mpp=MPP, array_rc=rc, diameter=55 / MPP, slide_name="small.png",
    )  # fmt: skip
    factors = folder / "spatial" / "scalefactors_json.json"
    values = json.loads(factors.read_text())
    values["tissue_hires_scalef"] *= 500 / SIDE
    values["tissue_lowres_scalef"] *= 500 / SIDE
    factors.write_text(json.dumps(values))
    (folder / "small.png").unlink()
    write_slide(folder / "slide.tif", tile)


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=(side, side, 3)), (3, 3, 0), mode="wrap")
    return np.clip(170 + 45 * field / field.std(), 0, 255).astype(np.uint8)


def write_slide(path: Path, tile: NDArray[np.uint8]) -> None:
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(6):
            side = SIDE >> level
            count = (-(-side // 512)) ** 2
            tiff.write(
                (tile for _ in range(count)), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb",
                subfiletype=int(level > 0), **({"subifds": 5} if level == 0 else {}),
            )  # fmt: skip


def measure_opening(folder: Path) -> dict[str, Any]:
    """From the path to a drawn viewer with a coloured spot layer; the viewer is there already, as for a user who drops a folder."""
    import napari

    import napari_stmdit.tissue.open
    import napari_stmdit.ui.layers  # noqa: F401
    from napari_stmdit.tissue.open import open_section
    from napari_stmdit.ui.layers import section_layers

    viewer = napari.Viewer(show=True)
    viewer.screenshot(canvas_only=True, flash=False)
    imported = memory_mb("VmRSS")
    start, busy = time.perf_counter(), time.process_time()
    section = open_section(folder, fullres=folder / "slide.tif")
    opened = time.perf_counter() - start
    for data, state, kind in section_layers(section):
        getattr(viewer, f"add_{kind}")(data, **state)
    shot = viewer.screenshot(canvas_only=True, flash=False)
    facts = {
        "seconds_to_open": round(opened, 2),
        "seconds_to_drawn": round(time.perf_counter() - start, 2),
        "seconds_of_processor": round(time.process_time() - busy, 2),
        "mb_after_imports": round(imported),
        "mb_most": round(memory_mb("VmHWM")),
        "spots": len(section.spots),
        "genes": len(section.spots.genes),
        "drawn": bool(shot[..., :3].std() > 5),
    }
    viewer.close()
    return facts


def measure_region(folder: Path, checkpoint: Path, side: int, steps: int) -> dict[str, Any]:
    """Synthesize a square of so many canvas pixels, kept on disk, and measure time and the memory beyond the loaded model."""
    from napari_stmdit import Request, load_checkpoint, open_section
    from napari_stmdit.regions import Polygons
    from napari_stmdit.synthesis.session import synthesize

    section = open_section(folder, fullres=folder / "slide.tif")
    model = load_checkpoint(checkpoint, device="cpu")
    low = 0.1 * SIDE
    high = low + side * model.card.patch_mpp / MPP
    region = Polygons(rings=(((low, low), (low, high), (high, high), (high, low)),))
    with tempfile.TemporaryDirectory() as scratch:
        small = Request(
            region=Polygons(
                rings=(
                    (
                        (low, low),
                        (low, low + 300),
                        (low + 300, low),
                    ),
                )
            ),
            mode="continuous",
            steps=1,
        )
        synthesize(section, small, model, folder=Path(scratch) / "warm").canvas.discard()
        before = memory_mb("VmRSS")
        start, busy = time.perf_counter(), time.process_time()
        request = Request(region=region, mode="continuous", steps=steps)
        result = synthesize(section, request, model, batch=16, folder=Path(scratch) / "run")
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        saving = time.perf_counter()
        result.save(Path(scratch) / "out.zarr")
        saved = time.perf_counter() - saving
        pixels = int(np.count_nonzero(np.asarray(result.canvas.levels[-1])[..., 3])) * 4 ** (
            len(result.canvas.levels) - 1
        )
    return {
        "side_px": side,
        "steps": steps,
        "windows": len(result.plan.windows),
        "complete": result.complete,
        "pixels_about": pixels,
        "seconds": round(seconds, 1),
        "seconds_to_save": round(saved, 1),
        "seconds_of_processor": round(busy, 1),
        "microseconds_of_processor_per_pixel": round(1e6 * busy / side**2, 2),
        "milliseconds_of_processor_per_window_and_step": round(1e3 * busy / len(result.plan.windows) / steps, 2),
        "mb_with_model": round(before),
        "mb_most_beyond_model": round(memory_mb("VmHWM") - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--part", choices=["opening", "region"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "opening":
        facts = measure_opening(options.folder / "section")
    elif options.part == "region":
        facts = measure_region(
            options.folder / "section", options.folder / "checkpoint", options.sides[0], options.steps
        )
    else:
        facts = all_parts(options)
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


def all_parts(options: argparse.Namespace) -> dict[str, Any]:
    from checkpoints import write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        make_section(home / "section")
        write_tiny_checkpoint(home / "checkpoint", NAMES[:1000], patch_px=256)
        opening = _part(home, "opening")
        regions = [_part(home, "region", "--sides", str(side), "--steps", str(options.steps)) for side in options.sides]
    return {"opening": opening, "regions": regions}


def _part(home: Path, name: str, *more: str) -> dict[str, Any]:
    arguments = [sys.executable, __file__, "--part", name, "--folder", str(home), *more]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
