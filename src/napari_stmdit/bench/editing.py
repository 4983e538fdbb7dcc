"""Edits of real tissue: the first picture, which takes the slide to its noise, and the next ones, which start from it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from ..assemble import Checkpoint
from ..editing import NOISE_BYTES
from ..encoders.cache import EmbeddingCache
from ..intent import Polygons, Request, SpotList, TowardsEdit
from ..synthesis.session import synthesize
from ..types import Section

SIDE_UM = 700.0
"""Side of the painted region."""


def editing(checkpoint: Checkpoint, section: Section, rounds: int) -> dict[str, Any]:
    """Time edits of a painted region and of one spot, from the request to the canvas, at the checkpoint's own steps.

    Each of the ``rounds`` begins without noise; the section needs a slide and a scale, and is at least `SIDE_UM` wide.

    Returns
    -------
    dict
        ``dtype``, ``steps``, ``side_um``, ``rounds``; for ``region`` and ``spot``: the median seconds of the ``first`` picture and of the
        ``next`` one, at another strength, and how many crops or windows were taken to their noise for each.
    """
    spots, mpp = section.spots, section.calibration.mpp
    assert mpp is not None and section.image is not None  # the sample section has both
    half = SIDE_UM / 2 / mpp
    y, x = (n / 2 for n in section.image.shape)
    square = ((y - half, x - half), (y - half, x + half), (y + half, x + half), (y + half, x - half))
    painted = spots.ids[(np.abs(spots.yx - (y, x)) <= half).all(axis=1)].tolist()
    target = tuple(spots.ids[np.argsort(spots.relative_depth)[:12]].tolist())
    edit = TowardsEdit(name="bench", target_spots=target, spots=dict.fromkeys(painted, 1.0))
    about: dict[str, Any] = {"edits": (edit,), "counterfactual": "on", "allow_gene_mismatch": True}
    requests = {
        "region": Request(region=Polygons(rings=(square,)), mode="continuous", **about),
        "spot": Request(region=SpotList(ids=(painted[len(painted) // 2],)), **about),
    }
    found: dict[str, Any] = {
        "dtype": checkpoint.provenance["dtype"],
        "steps": checkpoint.card.steps,
        "side_um": SIDE_UM,
        "rounds": rounds,
    }
    for name, request in requests.items():
        seconds: dict[str, list[float]] = {"first": [], "next": []}
        for turn in range(rounds + 1):  # the first does not count: it reads weights and the slide
            # a cache of its own: what was found out in another run would make the first picture a second one
            model = checkpoint.with_noise_cache(EmbeddingCache(NOISE_BYTES))
            editor = model.editor
            counted = {}
            for which, strength in (("first", 1.0), ("next", 0.5)):
                edits = (edit.model_copy(update={"strength": strength}),)
                before, start = editor.abducted, time.perf_counter()
                synthesize(section, request.model_copy(update={"edits": edits}), model)
                if turn:
                    seconds[which].append(time.perf_counter() - start)
                counted[which] = editor.abducted - before
        found[name] = {
            **{which: round(statistics.median(times), 3) for which, times in seconds.items()},
            "taken_to_noise": counted,
        }
    return found
