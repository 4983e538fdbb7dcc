"""Move tumour spots of the held-out section towards fat and towards stroma, in this tissue, and write tissue_edits.json.

    python docs/evidence/tissue_edits.py --root DATA [--spots 30] [--checkpoint demo]

The spots whose expression lies furthest towards the tumour profile are edited as a user would: an edit towards a profile of the checkpoint at
seven strengths, kept noise, default settings. Real fat is that of the profile's own spots, in the card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from counterfactual import CONFIG
from intervals import mean_interval, rounded
from parts_conditions import STRENGTHS, tumour_spots
from scipy.stats import spearmanr

import napari_stmdit as st
from napari_stmdit.evaluation.measures import measure
from napari_stmdit.training.config import load_config
from napari_stmdit.training.sections import open_source

HERE = Path(__file__).resolve().parent
MEASURES = ("haematoxylin", "eosin", "nuclei", "blank")


def edited(section: Any, model: Any, ids: tuple[str, ...], target: str, strength: float) -> np.ndarray:
    """Return the (n, 4) measures of the spots' patches after an edit."""
    edit = st.edits.Towards(target_profile=target, strength=strength)
    request = st.Request(region=st.regions.SpotList(ids=ids), edits=(edit,), counterfactual="on", seed=0)
    found = measure(np.asarray(st.synthesize(section, request, model).patches), model.card.patch_mpp)
    return np.column_stack([getattr(found, name) for name in MEASURES])


def falling(density: np.ndarray) -> dict[str, Any]:
    """Return how haematoxylin (strengths, n) follows the strength."""
    rho = np.array([spearmanr(STRENGTHS, column).statistic for column in density.T])
    return {
        "by_strength": density.mean(axis=1).round(3).tolist(),
        "at_strength_1": rounded(mean_interval(density[-1], np.random.default_rng(0)), 3),
        "share_in_order": round(float((rho <= -0.9).mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--spots", type=int, default=30)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--output", type=Path, default=HERE / "tissue_edits.json")
    given = parser.parse_args()
    config, model = load_config(CONFIG, given.root), st.load_checkpoint(given.checkpoint, dtype="float32")
    section = open_source(config.held_out[0], config)
    ids = tuple(section.spots.ids[tumour_spots(section, model, given.spots)].tolist())
    ends, out = {}, {}
    for target in ("adipose", "stroma"):
        made = np.stack([edited(section, model, ids, target, float(strength)) for strength in STRENGTHS])
        out[f"tumour to {target}"] = falling(made[..., 0])
        ends[target] = made[-1]
        print(target, json.dumps(out[f"tumour to {target}"]), flush=True)
    differs = {
        name: rounded(mean_interval(gap, np.random.default_rng(0)), 4)
        for name, gap in zip(MEASURES, (ends["stroma"] - ends["adipose"]).T, strict=True)
    }
    print("stroma - fat", differs)
    facts = {"checkpoint": model.provenance["sha256"], "section": section.name, "spots": len(ids)}
    given.output.write_text(json.dumps({**facts, **out, "stroma_minus_adipose": differs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
