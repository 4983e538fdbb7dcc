"""Kill a run at random moments and continue it each time: is the image the one of a run that nobody touched?

Run ``python benchmarks/kill_and_resume.py --kills 20`` from the checkout. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from checkpoints import write_tiny_checkpoint
from killing import command, killed_and_resumed, uninterrupted
from tiny import TINY_GENES, TINY_MPP, analytic_image, tiny_arrays

MODES = {
    "spots": ("--mode", "spots", "--all", "--batch", 1, "--steps", 40),
    "continuous": ("--mode", "continuous", "--all", "--batch", 16, "--steps", 12),
}


def main() -> None:
    from napari_stmdit.tissue.st_array import write_spaceranger_folder
    from napari_stmdit.types import Genes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="for each mode")
    parser.add_argument("--per-run", type=int, default=5, help="kills of one run, before it may end and another starts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        checkpoint = write_tiny_checkpoint(home / "tiny", TINY_GENES)
        write_spaceranger_folder(
            home / "section", image=analytic_image(), genes=Genes(np.array(TINY_GENES)), mpp=TINY_MPP, slide_name="slide.png",
            **tiny_arrays(),
        )  # fmt: skip
        for mode, wishes in MODES.items():
            whole = home / f"{mode}.zarr"
            straight = uninterrupted(command(home / "section", checkpoint, whole, *wishes), whole)
            done, differences, rewritten, runs = [], [], 0, 0
            while len(done) < options.kills:
                output = home / f"{mode}-{runs}.zarr"
                count = min(options.per_run, options.kills - len(done))
                arguments = command(home / "section", checkpoint, output, *wishes)
                outcome = killed_and_resumed(arguments, output, count, straight.seconds, rng)
                done += outcome.kills
                rewritten += outcome.rewritten
                differences.append(int(np.abs(outcome.image - straight.image).max()))
                runs += 1
            facts[mode] = {
                "kills": len(done),
                "runs": runs,
                "patches_safe_at_each_kill": done,
                "safe_patches_computed_again": rewritten,
                "largest_difference_in_grey_levels": max(differences),
                "seconds_of_the_uninterrupted_run": round(straight.seconds, 1),
            }
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
