"""All figures of docs/evidence/speed.md, one after the other, on a machine that does nothing else: python docs/evidence/speed.py.

Runs `stmdit bench` for the bundled checkpoint and for the random DiT-B/2, and the viewer's steps (on a screen, or under xvfb-run where
there is none), with as many threads as there are cores. ``--before`` takes the ``src`` folder of an earlier version, whose viewer is measured in
turn with this one's. About ten minutes on two cores. Writes speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(command: list[str], source: Path) -> dict[str, Any]:
    """Run a command that prints one JSON object, with a source folder first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(os.cpu_count())}
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def viewer(source: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure what a user waits for in the viewer."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "waiting.py"),
        "--folder",
        str(folder),
        "--rounds",
        str(rounds),
    ]
    if sys.platform == "linux" and "DISPLAY" not in os.environ and shutil.which("xvfb-run"):
        command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", *command]
    return run(command, source)


def main() -> None:
    """Measure and write, after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "large_section", help="keeps the made section")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--base-rounds", type=int, default=2)
    parser.add_argument("--parts", default="demo,base,viewer")
    parser.add_argument("--output", type=Path, default=HERE / "speed.json")
    options = parser.parse_args()
    bench = [sys.executable, "-m", "napari_stmdit.cli", "bench", "--json"]
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}

    def keep(part: str, value: Any) -> None:
        found[part] = value
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    parts = options.parts.split(",")
    if "demo" in parts:
        keep("demo", run([*bench, "--rounds", str(options.rounds)], ROOT / "src"))
    if "base" in parts:
        command = [*bench, "--checkpoint", "none", "--base", "--rounds", str(options.base_rounds), "--seconds", "8"]
        keep("base", run([*command, "--batches", "1,4,16"], ROOT / "src"))
    if "viewer" in parts:
        sources = {"before": options.before, "now": ROOT / "src"}
        turns = [{n: viewer(s, options.folder, 9) for n, s in sources.items() if s is not None} for _ in range(2)]
        keep("viewer", turns)


if __name__ == "__main__":
    main()
