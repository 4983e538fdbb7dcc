"""Evaluation of stored results by the same measures, beside the real patches. Nothing is synthesized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dataset.contents import AnyResult, find_slide, open_results
from ..errors import CheckpointError, RequestError, StoreError
from ..progress import CancelToken
from ..storage.fingerprint import of_json
from ..synthesis.models import PatchModel
from ..synthesis.result import NO_PATCH, Finished
from ..tissue.crops import read_patches
from ..tissue.identity import section_identity
from .cases import MIN_SPOTS
from .evaluate import OUTPUT, Evaluated
from .figures import Measurements, figures_of
from .measures import CaseValues, PatchMetrics, find_lpips
from .report import about_section, check_report, write_report
from .spaces import FeatureSpace, open_spaces

Family = Sequence[Finished]
"""Results of the same spots at the same scale, comparable spot by spot."""


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
        A SpatialData store with results, or results in memory.
    output
        Folder for the report.
    runs
        Results of the store to take; none: all.
    feature_spaces
        Names of spaces; ``encoder`` needs the checkpoint.
    checkpoint
        The checkpoint that made them, for its encoder.
    section, fullres
        Location of the slide, if the store does not refer to it.
    draws
        Bootstrap samples.
    command
        Command line for the report.
    resume
        Whether to replace the report of the same results in the folder; starts where there is none.
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
        first = family[0]
        slide = find_slide(first, section, fullres)
        notes.append(f"real patches of {_names(family)}: {slide.description}")
        real = read_patches(slide.image, [patch.source_box for patch in first.patches], first.patch_px)
        metrics = PatchMetrics(real, first.patch_px * first.patch_mpp, spaces, lpips)
        cases = []
        for one in family:
            if cancel.cancelled:
                return Evaluated(folder, done, len(results))
            cases.append(_case(one, family, metrics))
            done += 1
            if one.source != "as made":
                notes.append(f"patches of {one.name} are {one.source}")
        figures.append(figures_of(_measurements(family, metrics, cases), draws))
    about = _about(results, spaces, notes)
    command = command or "napari_stmdit.evaluate_result(...) from Python"
    return Evaluated(folder, done, len(results), write_report(folder, about, figures, command))


def _model(results: Sequence[Finished], checkpoint: str | Path | PatchModel | None) -> Any:
    """Return the checkpoint that made the results, and no other: its encoder is the space."""
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


def _families(results: Sequence[Finished]) -> list[list[Finished]]:
    """Group results of the same spots of the same tissue: ids recur, of grids and of arrays, and so do their places."""
    found: dict[Any, list[Finished]] = {}
    tissues: dict[tuple[int, tuple[str, ...]], str] = {}
    for one in results:
        spots = tuple(patch.spot_id for patch in one.patches)
        if (known := (id(one.section), spots)) not in tissues:
            boxes = [patch.source_box for patch in one.patches]
            tissues[known] = of_json(section_identity(one.section, boxes, one.patch_px))
        key = (tissues[known], spots, one.patch_px, one.patch_mpp)
        found.setdefault(key, []).append(one)
    return list(found.values())


def _names(results: Sequence[Finished]) -> str:
    return ", ".join(one.name for one in results)


def _stack(one: Finished) -> NDArray[np.uint8]:
    return np.stack([one.pixels(at) for at in range(len(one))])


def _case(one: Finished, family: Family, metrics: PatchMetrics) -> CaseValues:
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


def _baseline(one: Finished, family: Family) -> Finished | None:
    """Return the result of the same request without its edits, if there is one; edited real tissue has the slide instead."""
    if one.provenance.get("counterfactual") or not any(edit.enabled for edit in one.request.edits):
        return None
    return next((other for other in family if _same(one, other, "edits") and not other.request.edits), None)


def _same(a: Finished, b: Finished, *but: str) -> bool:
    left_out = {"section", "programs", "profiles", *but}
    return bool(a is not b and a.request.model_dump(exclude=left_out) == b.request.model_dump(exclude=left_out))


def _measurements(family: Family, metrics: PatchMetrics, cases: list[CaseValues]) -> Measurements:
    plain = [one for one in family if not any(edit.enabled for edit in one.request.edits)]
    compared = [
        (a.name, b.name)
        for a in plain
        for b in plain
        if a.request.expression == "own" and b.request.expression != "own" and _same(a, b, "expression", "edits")
    ]
    edits = [(one.name, base.name) for one in family if (base := _baseline(one, family)) is not None]
    spots = tuple(patch.spot_id for patch in family[0].patches)
    title = f"{_names(family)} in {family[0].section.name}"
    return Measurements(
        title, np.zeros(len(spots), dtype=np.int64), spots, metrics.real, (), tuple(cases), compared, edits
    )


def _about(results: Sequence[Finished], spaces: Sequence[FeatureSpace], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": "result",
        "result": _names(results),
        "results": {
            one.name: {
                "request": one.request.model_dump(mode="json"),
                "checkpoint": one.provenance.get("checkpoint"),
                "created": one.provenance.get("created"),
            }
            for one in results
        },
        "spaces": [space.name for space in spaces],
        "sections": [about_section(one) for one in {id(made.section): made.section for made in results}.values()],
        "notes": list(dict.fromkeys(notes)),
    }
