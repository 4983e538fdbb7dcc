"""What the bundled checkpoint can and cannot do, with controls: every figure of its card.

    python docs/evidence/demo_checkpoint.py --parts table edits swap memory depth sheets

Parts: ``table`` (all spots of the held-out section under every combination of conditions), ``edits`` (expression moved from tumour
towards fat and stroma), ``swap`` (another tissue's expression on top of a spot's own morphology), ``memory`` (nearest training
crops), ``depth`` (thinned counts, genes outside the list), ``sheets`` (contact sheets; those with real crops stay in the work folder).
A stopped run goes on; finished parts are kept in the output file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from parts_conditions import depth, edits, swap
from parts_memory import memory
from parts_sheets import sheets
from parts_table import table
from synthesizer import Synthesizer, open_named

from napari_stmdit.devices import choose_device

HERE = Path(__file__).resolve().parent
PARTS = {"table": table, "edits": edits, "swap": swap, "memory": memory, "depth": depth, "sheets": sheets}


def main() -> None:
    """Run the chosen parts."""
    options = parse()
    figures = json.loads(options.output.read_text()) if options.output.is_file() else {}
    maker = Synthesizer(options.checkpoint, options.work, options.workers, options.dtype, options.steps)
    card = maker.checkpoint.card
    figures["about"] = {
        "checkpoint": card.name,
        "sha256": maker.checkpoint.provenance["sha256"],
        "steps": maker.steps,
        "guidance": maker.guidance().model_dump(),
        "dtype": str(choose_device("cpu", options.dtype)[1]).removeprefix("torch."),
        "trained_on": options.trained_on,
        "synthetic": True,
    }
    for part in options.parts:
        figures[part] = PARTS[part](maker, options)
        options.output.write_text(json.dumps(figures, indent=1, default=plain) + "\n")
        print(part, json.dumps(figures[part], default=plain)[:600], flush=True)


def plain(value: object) -> object:
    """Turn numpy scalars and arrays into what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(type(value))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--config", type=Path, default=HERE.parents[1] / "configs" / "demo.yaml")
    parser.add_argument("--root", type=Path, default=None, help="folder of the data, in place of the config's")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--section", default="C6", help="section that is tested, not trained on")
    parser.add_argument("--trained-on", nargs="+", default=["B4", "C2", "C3", "C5"])
    parser.add_argument("--sibling", default="C5", help="real section that gives a floor of the distances")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a case; expression alone takes one more")
    parser.add_argument("--limit", type=int, default=0, help="use so many spots only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--work", type=Path, default=Path("out/evidence"))
    parser.add_argument(
        "--pictures", type=Path, default=None, help="folder for synthetic pictures; default: the work folder"
    )
    parser.add_argument("--output", type=Path, default=HERE / "demo_checkpoint.json")
    options = parser.parse_args()
    options.pictures = options.pictures or options.work
    options.open = lambda name: open_named(options.config, options.root, name)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
