"""The demo: edit the bundled section's tissue with the bundled checkpoint, and report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from ..assemble import load_checkpoint
from ..edits import Towards
from ..errors import StoreError
from ..expression.changes import Profile
from ..expression.genes import match_genes
from ..expression.normalise import cp10k_log1p
from ..intent import CheckpointCard, Request
from ..progress import Progress
from ..regions import Polygons
from ..storage.atomic import write_text
from ..synthesis.result import Result, finished
from ..synthesis.session import synthesize
from ..tissue.open import open_sample_section
from ..types import Section
from .measures import blank_fraction, crops_at, haematoxylin_density, nuclei_places, stain_density
from .paper_figure import window_of, write_figure

FULL_UM, END_UM = 100.0, 180.0
"""Radii of the soft brush: full weight within the first, none from the second."""
SIDE_UM = 520.0
"""Side of the edited region: the brush and the windows around it."""
EDIT_SCALE = 1.5
"""Scale of the edit, so that the change is plain at a glance; it is printed."""
PALE_SPOTS = 12
"""Number of spots with the least haematoxylin, whose mean expression is the target."""
TARGET = "its palest spots"


@dataclass(frozen=True)
class DemoOutcome:
    """Outcome of the demo: the store it wrote, and the measured effect."""

    store: Path
    facts: dict[str, Any]
    summary: str


def run_demo(
    output: str | Path, *, seed: int = 0, on_progress: Callable[[Progress], None] | None = None
) -> DemoOutcome:
    """Edit the tissue of the bundled sample section over a nest of tumour.

    Parameters
    ----------
    output
        Folder for ``OUT.zarr``, ``comparison.png``, ``report.md`` and ``report.json``; must not hold any of them yet.
    seed
        Recorded, without effect: an edit of this tissue starts from the noise of the slide itself.

    Raises
    ------
    StoreError
        One of them exists already.
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
    request, centre = demo_request(section, model.profiles, model.card, seed)
    result = synthesize(section, request, model, on_progress=on_progress)
    name = result.save(store, "edited")
    write_figure(result, picture)
    facts = _facts(section, result, centre, name)
    write_text(figures, json.dumps(facts, indent=2), new=True)
    write_text(report, _report(facts), new=True)
    return DemoOutcome(store, facts, _summary(facts, folder))


def demo_request(
    section: Section, profiles: Mapping[str, Profile], card: CheckpointCard, seed: int = 0
) -> tuple[Request, NDArray[np.float64]]:
    """Return the demo's request, and the centre (y, x) of its brush in full-resolution pixels."""
    spots, mpp = section.spots, section.mpp
    centre = spots.yx[_tumour_spot(section, profiles["tumour"], profiles["stroma"])]
    away = np.linalg.norm(spots.yx - centre, axis=1) * mpp
    weight = np.clip((END_UM - away) / (END_UM - FULL_UM), 0, 1)
    painted = {str(spots.ids[row]): round(float(weight[row]), 3) for row in np.flatnonzero(weight > 0)}
    half = SIDE_UM / 2 / mpp
    y, x = (float(value) for value in centre)
    ring = ((y - half, x - half), (y - half, x + half), (y + half, x + half), (y + half, x - half))
    edit = Towards(name=f"towards {TARGET}", target_spots=_palest_spots(section, card), spots=painted)
    request = Request(
        section="sample",
        region=Polygons(rings=(ring,)),
        edits=(edit,),
        mode="continuous",
        counterfactual="on",
        edit_scale=EDIT_SCALE,
        seed=seed,
    )
    return request, centre


def _tumour_spot(section: Section, tumour: Profile, stroma: Profile) -> int:
    """Return the row of the most tumour-like spot that has all its neighbours."""
    spots = section.spots
    columns = match_genes(tumour.genes, spots.genes).columns
    counts = spots.counts[:, columns].toarray().astype(np.float64)
    x = cp10k_log1p(counts, np.maximum(counts.sum(axis=1, keepdims=True), 1))
    score = (x - x.mean(axis=0)) @ (tumour.mean - stroma.mean)
    distance = np.linalg.norm(spots.yx[:, None] - spots.yx[None], axis=2)
    pitch = np.sort(distance, axis=1)[:, 1].min()
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :19]  # a spot and two rings around it
    whole = np.take_along_axis(distance, nearest, axis=1).max(axis=1) < 2.1 * pitch
    return int(np.argmax(np.where(whole, score[nearest].mean(axis=1), -np.inf)))


def _palest_spots(section: Section, card: CheckpointCard) -> tuple[str, ...]:
    """Return the spots with the least haematoxylin, of three times as many that the coarsest level shows pale: crops are slow to read."""
    spots, slide = section.spots, section.slide
    level = np.asarray(slide.levels[-1])
    scale = slide.levels[0].shape[0] * slide.pixel_size / level.shape[0]
    around = uniform_filter(stain_density(level)[..., 0], round(card.patch_um / section.mpp / scale))
    y, x = np.clip((spots.yx / scale).astype(int), 0, np.array(around.shape) - 1).T
    pale = np.argsort(around[y, x])[: 3 * PALE_SPOTS]
    haematoxylin = [haematoxylin_density(crop) for crop in crops_at(section, spots.yx[pale], card)]
    return tuple(spots.ids[pale[np.argsort(haematoxylin)[:PALE_SPOTS]]].tolist())


def _facts(section: Section, result: Result, centre: NDArray[np.float64], name: str) -> dict[str, Any]:
    record, window = result.provenance, window_of(finished(result))
    places_um = (np.arange(len(window.before)) + 0.5) * window.pixel_um
    y, x = (places_um + (at - o) * section.mpp for at, o in zip(window.corner, centre, strict=True))
    radius_um = np.hypot(y[:, None], x[None])
    blend_um = result.plan.card.patch_um / 2  # how far beyond the brush spots and windows carry a change
    zones = {"inside": radius_um < FULL_UM, "outside": radius_um > END_UM + blend_um}
    images = {"before": window.before, "after": window.after}
    places = {when: nuclei_places(image, window.pixel_um) for when, image in images.items()}
    density = {when: stain_density(image)[..., 0] for when, image in images.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for zone, mask in zones.items():
        mm2 = float(mask.sum()) * window.pixel_um**2 / 1e6
        found[zone] = {
            when: {
                "haematoxylin density": round(float(density[when][mask].mean()), 3),
                "nuclei per mm2": round(float(mask[tuple(places[when].T)].sum()) / mm2),
                "blank fraction": round(blank_fraction(image[mask][:, None]), 3),
            }
            for when, image in images.items()
        }
    change = np.abs(window.after.astype(int) - window.before)
    return {
        "synthetic": True,
        "counterfactual": True,
        "statement": record["statement"],
        "elements": [name],
        "section": section.name,
        "spots": len(result.plan.request.edits[0].spots or {}),
        "mpp": section.mpp,
        "scale": section.calibration.detail,
        "edit": result.plan.request.edits[0].model_dump(mode="json"),
        "edit_scale": result.plan.request.edit_scale,
        "brush_um": {"full": FULL_UM, "end": END_UM},
        "region_um": SIDE_UM,
        "steps_each_way": result.plan.steps,
        "checkpoint": record["checkpoint"],
        "seconds": round(record["seconds"], 2),
        "windows": len(result.plan.windows or ()),
        "map": record["edit"]["map"],
        "zones": found,
        "change_in_grey_levels": {
            "inside_mean": round(float(change[zones["inside"]].mean()), 2),
            "outside_mean": round(float(change[zones["outside"]].mean()), 2),
            "outside_the_region_largest": int(change[~window.made].max(initial=0)),
        },
        "limits": result.plan.card.limits,
    }


def _summary(facts: dict[str, Any], folder: Path) -> str:
    before, after = (facts["zones"]["inside"][when] for when in ("before", "after"))
    lines = [
        f"{facts['region_um']:.0f} x {facts['region_um']:.0f} um of this tissue edited under a brush of {2 * FULL_UM:.0f} um "
        f"at edit scale {facts['edit_scale']:g}, in {facts['seconds']:.1f} s",
        *(f"{name} under the brush: {value:g} before, {after[name]:g} after" for name, value in before.items()),
        f"mean change: {facts['change_in_grey_levels']['inside_mean']:g} grey levels under the brush, "
        f"{facts['change_in_grey_levels']['outside_mean']:g} beyond it, "
        f"{facts['change_in_grey_levels']['outside_the_region_largest']} outside the region",
        facts["map"]["statement"],
        f"written: {folder / 'OUT.zarr'} ({', '.join(facts['elements'])}), comparison.png, report.md, report.json",
    ]
    return "\n".join(lines)


def _report(facts: dict[str, Any]) -> str:
    rows = [
        f"| {zone} | {name} | {value:g} | {ends['after'][name]:g} |"
        for zone, ends in facts["zones"].items()
        for name, value in ends["before"].items()
    ]
    table, change = "\n".join(rows), facts["change_in_grey_levels"]
    return f"""# This tissue, edited: the bundled synthetic section

{facts["statement"]}

![This tissue, where the edit acts, this tissue after it, and what differs](comparison.png)

The expression of {facts["spots"]} spots was moved from tumour towards the mean of the {PALE_SPOTS} palest spots of the section with a soft brush: full weight within
{FULL_UM:.0f} um of its centre, none from {END_UM:.0f} um on. The noise that gives the slide's own pixels was found, the expression edited, and the
image predicted again from that noise ({facts["steps_each_way"]} steps each way, edit scale {facts["edit_scale"]:g}). {facts["map"]["statement"]}

| where | | before | after |
|---|---|---|---|
{table}

Mean change of a pixel: {change["inside_mean"]} grey levels where the weight is full, {change["outside_mean"]} beyond the brush and the windows that
blend it; outside the region {change["outside_the_region_largest"]} at most: there the picture is the slide.

Checkpoint: {facts["checkpoint"]["name"]}; {facts["windows"]} windows in {facts["seconds"]} s. Scale: {facts["scale"]}

Limits: {facts["limits"]}
"""
