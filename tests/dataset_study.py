"""A store with seven runs of thirty spots, made by the tiny checkpoint through the loop itself."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from napari_stmdit.edits import Scale, Swap, Towards
from napari_stmdit.intent import Request


def requests(ids):
    """Seven requests: a baseline, an edit of it with the same noise, two of the real tissue, two controls, and another seed."""
    weights = {spot: round(0.1 * (k % 11), 1) for k, spot in enumerate(ids[:20])}
    base = Request(seed=3, steps=2)
    return {
        "measured": base,
        "towards": base.model_copy(
            update={"edits": (Towards(target_profile="tumour", spots=weights),), "counterfactual": "off"}
        ),
        "more": base.model_copy(
            update={
                "edits": (
                    Scale(genes=("ERBB2",), factor=5, strength=0.5, name="more ERBB2"),
                    Scale(genes=("KRT8",), factor=2, enabled=False),
                )
            }
        ),
        "swapped": base.model_copy(update={"edits": (Swap(group_a=tuple(ids[:3]), group_b=tuple(ids[5:9])),)}),
        "shuffled": base.model_copy(update={"expression": "shuffled"}),
        "null": base.model_copy(update={"expression": "null"}),
        "other_seed": base.model_copy(update={"seed": 4}),
    }


@dataclass
class Study:
    """A store, the results that were saved into it, and what they were conditioned on."""

    store: Path
    section: object
    results: dict
    counts: dict
    checkpoint: Path


@pytest.fixture(scope="session")
def study(tmp_path_factory, tiny_folder, tiny_checkpoint):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.conditions import condition_rows
    from napari_stmdit.synthesis.session import synthesize
    from napari_stmdit.tissue.open import open_section

    place = tmp_path_factory.mktemp("study")
    section = open_section(shutil.copytree(tiny_folder, place / "section"))
    model = load_checkpoint(tiny_checkpoint, device="cpu")
    results, counts = {}, {}
    for name, request in requests(section.spots.ids.tolist()).items():
        request = request.model_copy(update={"section": str(section.path), "checkpoint": str(tiny_checkpoint)})
        results[name] = synthesize(section, request, model, batch=30)
        results[name].save(place / "out.zarr", name)
        rows = condition_rows(results[name].plan, section, model).counts
        counts[name] = None if rows is None else rows.toarray().astype(np.float32)
    return Study(place / "out.zarr", section, results, counts, tiny_checkpoint)
