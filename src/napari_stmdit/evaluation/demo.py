"""The main job on the bundled section and checkpoint: synthesize before and after a painted edit, and report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..assemble import load_checkpoint
from ..errors import StoreError
from ..expression.edits import Profile
from ..expression.genes import match_genes
from ..progress import Progress
from ..storage.atomic import write_text
from ..synthesis.result import Result, synthesize
from ..tissue.sample import open_sample_section
from ..types import Request, Section, SpotList, TowardsEdit
from .image import measure
from .picture import comparison_picture, save_picture

SPOTS = 19
"""A spot and two rings of its hexagonal neighbours."""

MEASURES = {
    "haematoxylin": "haematoxylin density",
    "nuclei": "nuclei a patch",
    "blank": "blank fraction",
}


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo wrote and measured."""

    store: Path
    facts: dict[str, Any]
    summary: str


def run_demo(
    output: str | Path, *, seed: int = 0, on_progress: Callable[[Progress], None] | None = None
) -> DemoOutcome:
    """Synthesize on the bundled sample section before and after an edit.

    Parameters
    ----------
    output
        Folder for ``OUT.zarr``, ``comparison.png``, ``report.md`` and ``report.json``; must not hold any of them yet.
    seed
        Seed of the noise, the same before and after, so that what differs is the effect of the edit.

    Raises
    ------
    StoreError
        Where one of them is already there.
    """
    folder = Path(output)
    store = folder / "OUT.zarr"
    picture, figures, report = (folder / name for name in ("comparison.png", "report.json", "report.md"))
    for place in (store, picture, figures, report):
        if os.path.lexists(place):
            raise StoreError(f"{place} is already there; remove it or choose another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}; choose another --output") from error
    section = open_sample_section()
    model = load_checkpoint("demo")
    weights = _painted_weights(section, model.profiles["tumour"], model.profiles["stroma"])
    edit = TowardsEdit(name="tumour to adipose", target_profile="adipose", spots=weights)
    base = Request(section="sample", region=SpotList(ids=tuple(weights)), morphology="null", seed=seed)
    before = synthesize(section, base, model, on_progress=on_progress)
    after = synthesize(section, base.model_copy(update={"edits": (edit,)}), model, on_progress=on_progress)
    names = (before.save(store, "measured"), after.save(store, "edited"))
    save_picture(
        comparison_picture(section, before, after, weights, "towards the adipose profile, painted with a soft brush"),
        picture,
    )
    facts = _facts(section, before, after, weights, names)
    write_text(figures, json.dumps(facts, indent=2), new=True)
    summary = _summary(facts, folder)
    write_text(report, _report(facts), new=True)
    return DemoOutcome(store, facts, summary)


def _painted_weights(section: Section, tumour: Profile, stroma: Profile) -> dict[str, float]:
    """Weights of a soft brush over the most tumour-like place that has all its neighbours."""
    spots = section.spots
    columns = match_genes(tumour.genes, spots.genes).columns
    counts = spots.counts[:, columns].toarray().astype(np.float64)
    x = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    score = (x - x.mean(axis=0)) @ (tumour.mean - stroma.mean)
    distance = np.linalg.norm(spots.yx[:, None] - spots.yx[None], axis=2)
    pitch = np.sort(distance, axis=1)[:, 1].min()
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :SPOTS]
    whole = np.take_along_axis(distance, nearest, axis=1).max(axis=1) < 2.1 * pitch
    around = np.where(whole, score[nearest].mean(axis=1), -np.inf)
    centre = int(np.argmax(around))
    weight = np.clip(1.25 - 0.5 * (distance[centre, nearest[centre]] / pitch - 1), 0, 1)
    return {
        str(spots.ids[row]): round(float(w), 3)
        for row, w in sorted(zip(nearest[centre].tolist(), weight.tolist(), strict=True))
    }


def _facts(
    section: Section, before: Result, after: Result, weights: dict[str, float], names: tuple[str, str]
) -> dict[str, Any]:
    ends = {}
    full = np.array([weights[p.spot_id] >= 0.999 for p in before.plan.patches])
    for label, result in (("measured", before), ("edited", after)):
        table = measure(result.patches[full])
        ends[label] = {words: round(float(getattr(table, name).mean()), 3) for name, words in MEASURES.items()}
    change = np.abs(after.patches.astype(int) - before.patches.astype(int)).mean(axis=(1, 2, 3))
    return {
        "synthetic": True,
        "elements": list(names),
        "section": section.name,
        "spots": len(weights),
        "spots_at_full_weight": int(full.sum()),
        "mpp": section.calibration.mpp,
        "scale": section.calibration.detail,
        "edit": after.plan.request.edits[0].model_dump(mode="json"),
        "seed": before.plan.request.seed,
        "steps": before.plan.steps,
        "guidance": before.plan.guidance.model_dump(mode="json"),
        "checkpoint": before.provenance["checkpoint"],
        "seconds": round(before.provenance["seconds"] + after.provenance["seconds"], 2),
        "patches": len(before.done) + len(after.done),
        "mean_over_spots_at_full_weight": ends,
        "mean_change_in_grey_levels": {
            "full_weight": round(float(change[full].mean()), 2),
            "lower_weight": round(float(change[~full].mean()), 2),
        },
        "limits": before.plan.card.limits,
    }


def _summary(facts: dict[str, Any], folder: Path) -> str:
    return (
        f"{facts['patches']} synthetic patches over {facts['spots']} spots in {facts['seconds']:.1f} s\n"
        + f"{_lines(facts)}\n"
        + f"written: {folder / 'OUT.zarr'} ({', '.join(facts['elements'])}), comparison.png, report.md, report.json"
    )


def _lines(facts: dict[str, Any]) -> str:
    ends = facts["mean_over_spots_at_full_weight"]
    rows = [
        f"{name}: {value:g} with the expression as measured, {ends['edited'][name]:g} after the edit"
        for name, value in ends["measured"].items()
    ]
    return "\n".join(rows)


def _report(facts: dict[str, Any]) -> str:
    ends = facts["mean_over_spots_at_full_weight"]
    table = "\n".join(f"| {n} | {v:g} | {ends['edited'][n]:g} |" for n, v in ends["measured"].items())
    change = facts["mean_change_in_grey_levels"]
    return f"""# Virtual edit on the bundled synthetic section

Every image here is synthetic; so is the section itself. Not for diagnosis.

![comparison](comparison.png)

The expression of {facts["spots"]} spots was moved from tumour towards the checkpoint's adipose profile with a soft brush
({facts["spots_at_full_weight"]} of them with full weight) and H&E patches were synthesized before and after with the same noise, from
expression alone. Means over the spots at full weight:

| | as measured | edited |
|---|---|---|
{table}

Mean change of a pixel between the two images: {change["full_weight"]} grey levels where the weight is full, {change["lower_weight"]} elsewhere
(the same noise was used, so an unchanged spot changes by 0).

Checkpoint: {facts["checkpoint"]["name"]}; {facts["steps"]} steps; guidance {facts["guidance"]}; seed {facts["seed"]};
{facts["patches"]} patches in {facts["seconds"]} s. Scale: {facts["scale"]}

Limits: {facts["limits"]}
"""
