"""Evaluate results that are in a store: the same measures of their patches, beside the real ones. Nothing is synthesized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dataset.sources import AnyResult, find_slide, open_results
from ..errors import CheckpointError, RequestError, StoreError
from ..progress import CancelToken
from ..synthesis.models import PatchModel
from ..synthesis.result import NO_PATCH, Finished
from ..tissue.crops import read_patches
from .cases import MIN_SPOTS
from .evaluate import OUTPUT, Evaluated
from .figures import Evidence, figures_of
from .measures import CaseValues, PatchMetrics, find_lpips
from .report import about_section, check_report, write_report
from .spaces import FeatureSpace, open_spaces


@dataclass(frozen=True)
class _Family:
    """Results of the same spots at the same scale, which can be compared spot by spot."""

    results: tuple[Finished, ...]

    @property
    def first(self) -> Finished:
        return self.results[0]


def evaluate_result(
    result: AnyResult,
    *,
    output: str | Path = OUTPUT,
    runs: Sequence[str] = (),
    feature_spaces: Sequence[str] = ("random",),
    checkpoint: str | Path | PatchModel | None = None,
    section: str | Path | None = None,
    fullres: str | Path | None = None,
    draws: int = 1000,
    command: str | None = None,
    resume: bool = False,
    cancel: CancelToken | None = None,
) -> Evaluated:
    """Measure the patches of saved results against the real patches of their spots.

    Parameters
    ----------
    result
        A SpatialData store with results, or results at hand.
    output
        Folder for the report.
    runs
        Results of the store to take; all where none is named.
    feature_spaces
        By name; ``encoder`` needs the checkpoint.
    checkpoint
        The checkpoint that made them, for its encoder.
    section, fullres
        Where the slide is, if the store does not lead there.
    draws
        Bootstrap samples.
    command
        For the report.
    resume
        Replace the report of the same results that is in the folder; start where there is none.
    cancel
        Asked between results.

    Returns
    -------
    Evaluated
        With the report; ``done`` counts results.

    Raises
    ------
    StmditError
        There are no results, no slide that is fine enough, too few spots, or the folder holds another report.
    """
    results = open_results(result, runs)
    empty = [one.name for one in results if not len(one)]
    if empty:
        raise StoreError(f"{', '.join(empty)}: {NO_PATCH}")
    few = [f"{one.name}: {len(one)} patches" for one in results if len(one) < MIN_SPOTS]
    if few:
        raise RequestError(
            [("result", f"an interval from fewer than {MIN_SPOTS} patches says nothing ({'; '.join(few)})")]
        )
    spaces = open_spaces(feature_spaces, _model(results, checkpoint) if "encoder" in feature_spaces else None)
    folder = Path(output).expanduser()
    check_report(folder, _about(results, spaces, ()), resume)
    lpips, reason = find_lpips()
    cancel = cancel or CancelToken()
    figures, notes = [], [reason] if reason else []
    done = 0
    for family in _families(results):
        slide = find_slide(family.first, section, fullres)
        notes.append(f"real patches of {', '.join(one.name for one in family.results)}: {slide.words}")
        boxes = [patch.source_box for patch in family.first.patches]
        real = read_patches(slide.image, boxes, family.first.patch_px)
        metrics = PatchMetrics(real, family.first.patch_px * family.first.patch_mpp, spaces, lpips)
        cases = []
        for one in family.results:
            if cancel.cancelled:
                return Evaluated(folder, done, len(results))
            cases.append(_case(one, family, metrics))
            done += 1
            if one.source != "as made":
                notes.append(f"patches of {one.name} are {one.source}")
        figures.append(figures_of(_evidence(family, metrics, cases), draws))
    about = _about(results, spaces, notes)
    command = command or "napari_stmdit.evaluate_result(...) from Python"
    return Evaluated(folder, done, len(results), write_report(folder, about, figures, command))


def _model(results: Sequence[Finished], checkpoint: str | Path | PatchModel | None) -> Any:
    """The checkpoint that made the results, and no other: its encoder is the space."""
    from ..assemble import load_checkpoint

    records = {(one.provenance.get("checkpoint") or {}).get("sha256") for one in results}
    model: Any = checkpoint
    if checkpoint is None or isinstance(checkpoint, str | Path):
        model = load_checkpoint(checkpoint or results[0].request.checkpoint, device="cpu")
    if records != {model.provenance.get("sha256")}:
        raise CheckpointError(
            f"checkpoint {model.card.name!r} is not the one that made all of these results; give its folder with --checkpoint, choose "
            "results with --run, or another --feature-space"
        )
    return model


def _families(results: Sequence[Finished]) -> list[_Family]:
    found: dict[Any, list[Finished]] = {}
    for one in results:
        key = (tuple(patch.spot_id for patch in one.patches), one.patch_px, one.patch_mpp)
        found.setdefault(key, []).append(one)
    return [_Family(tuple(members)) for members in found.values()]


def _stack(one: Finished) -> NDArray[np.uint8]:
    return np.stack([one.pixels(at) for at in range(len(one))])


def _case(one: Finished, family: _Family, metrics: PatchMetrics) -> CaseValues:
    patches = _stack(one)
    base = _baseline(one, family)
    values = CaseValues(one.name, _description(one))
    values.per_seed.append(metrics.measure(patches, None if base is None else _stack(base)))
    values.shown = patches[metrics.shown]
    return values


def _description(one: Finished) -> str:
    request = one.request
    edits = sum(edit.enabled for edit in request.edits)
    edited = f", {edits} edits" if edits else ""
    return f"morphology {request.morphology}, expression {request.expression}{edited}, seed {request.seed}"


def _baseline(one: Finished, family: _Family) -> Finished | None:
    """The same request without its edits, where it is among the results; of an edit of real tissue it is the slide, and no result."""
    if one.provenance.get("counterfactual") or not any(edit.enabled for edit in one.request.edits):
        return None
    return next((other for other in family.results if _same(one, other, "edits") and not other.request.edits), None)


def _same(a: Finished, b: Finished, *but: str) -> bool:
    left_out = {"section", "programs", "profiles", *but}
    return bool(a is not b and a.request.model_dump(exclude=left_out) == b.request.model_dump(exclude=left_out))


def _evidence(family: _Family, metrics: PatchMetrics, cases: list[CaseValues]) -> Evidence:
    results = family.results
    plain = [one for one in results if not any(edit.enabled for edit in one.request.edits)]
    compared = [
        (a.name, b.name)
        for a in plain
        for b in plain
        if a.request.expression == "own" and b.request.expression != "own" and _same(a, b, "expression", "edits")
    ]
    edits = [(one.name, base.name) for one in results if (base := _baseline(one, family)) is not None]
    spots = tuple(patch.spot_id for patch in family.first.patches)
    title = f"{', '.join(one.name for one in results)} in {family.first.section.name}"
    return Evidence(title, np.zeros(len(spots), dtype=np.int64), spots, metrics.real, (), tuple(cases), compared, edits)


def _about(results: Sequence[Finished], spaces: Sequence[FeatureSpace], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": "result",
        "result": ", ".join(one.name for one in results),
        "results": {
            one.name: {
                "request": one.request.model_dump(mode="json"),
                "checkpoint": one.provenance.get("checkpoint"),
                "created": one.provenance.get("created"),
            }
            for one in results
        },
        "spaces": [space.name for space in spaces],
        "sections": [about_section(results[0].section)],
        "notes": list(dict.fromkeys(notes)),
    }
