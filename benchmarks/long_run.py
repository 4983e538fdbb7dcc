"""Does memory grow over thousands of patches?

Run ``python benchmarks/long_run.py`` from the checkout. It synthesizes 2,000 patches with a checkpoint of two blocks, on a canvas on
disk as the command line does, and fits a line through the memory after the first 200. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from checkpoints import write_tiny_checkpoint
from large_section import memory_mb
from standins import make_section


def main() -> None:
    from napari_stmdit import Request, load_checkpoint
    from napari_stmdit.synthesis.session import synthesize

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--settled", type=int, default=200, help="patches before memory is looked at")
    options = parser.parse_args()
    columns = int(np.ceil(np.sqrt(options.patches)))
    section = make_section(mpp=0.7, rows=columns, columns=columns, genes=200)
    keep = slice(0, options.patches)
    spots = section.spots
    section = dataclasses.replace(
        section,
        spots=dataclasses.replace(
            spots, ids=spots.ids[keep], yx=spots.yx[keep], counts=spots.counts[keep], array_rc=None
        ),
    )
    seen: list[tuple[int, float]] = []

    def look(progress):
        if progress.step == 0 and (not seen or progress.patches_done >= seen[-1][0] + 50):
            gc.collect()
            seen.append((progress.patches_done, memory_mb("VmRSS")))

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        model = load_checkpoint(
            write_tiny_checkpoint(home / "tiny", tuple(f"GENE{k}" for k in range(200))), device="cpu"
        )
        own = home / "tmp"
        own.mkdir()
        tempfile.tempdir = str(own)
        result = synthesize(section, Request(steps=2), model, batch=8, folder=home / "run", on_progress=look)
        left = [path.name for path in own.iterdir()]
        tempfile.tempdir = None
    done, mb = np.array([s for s in seen if s[0] >= options.settled]).T
    slope = float(np.polyfit(done, mb, 1)[0]) * 1000
    typical = float(theilslopes(mb, done)[0]) * 1000  # a single step of the allocator does not tilt it
    facts = {
        "patches": len(result.done),
        "looked_at_after": options.settled,
        "mb_per_1000_patches_least_squares": round(slope, 2),
        "mb_per_1000_patches_median_of_slopes": round(typical, 2),
        "mb_at": {str(int(n)): round(m, 1) for n, m in seen[:: max(1, len(seen) // 10)]},
        "temporary_files_left": left,
    }
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
