"""The report of an evaluation: what it is about, what may be claimed, and the two files it is written into."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError
from ..storage.atomic import write_text
from ..storage.owned import Work
from ..synthesis.models import PatchModel
from ..tissue.elements import fingerprint
from ..types import Plan, Section
from .cases import LATER, EvaluationRequest
from .figures import Claim, Figures
from .page import page_of
from .work import STACKS

FILES = ("report.html", "report.json")
METRICS = {"feature_spaces", "predictor", "genes", "draws"}
STATEMENT = "Images marked synthetic were made by a generative model. They are no evidence about a patient and not for diagnosis."
CAVEATS = (
    "Distances between distributions depend on the feature space and on the number of patches: figures of two spaces, of two N, or of two "
    "papers are not comparable. The Frechet distance is biased upwards for few patches; the floors beside it show by how much.",
    "A checkpoint's own encoder is also what it is conditioned on: in that space, cases with own morphology are favoured. The other space "
    "and the cases without morphology are free of that.",
    "Intervals are over spots, at the seeds and the shuffles that were drawn (one for each seed): other noise and other shuffles would give "
    "other figures. More seeds make that smaller.",
    "Neighbouring spots share tissue, stain and expression, so spots are not independent and the true intervals are wider than those given.",
    "Best of k grows with k, for noise as well; similarity to the one real patch is a weak measure where many images are right.",
    "Several comparisons are made at once, none corrected for: of twenty true ties, one is expected to look like a win or a loss.",
    "A predictor that reads expression off real patches poorly gives a low ceiling, and a share of a low ceiling means little.",
)

EDIT_CAVEATS = (
    "An edit moves along what goes together in the tissue that was seen: association, not cause. No experiment is simulated.",
    "What expression does not explain of a spot's looks is held as it is, so an edit shows less than what the other tissue shows: the "
    "ceiling says how much it could show at most.",
    "Encodings far from those of the section are outside what was seen; what an edit does there, none of these checks measures.",
)


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes
    ----------
    html, json
        The report, one self-contained page, and its figures.
    claims
        Whether each true condition beats its controls.
    facts
        Contents of the JSON file.
    """

    html: Path
    json: Path
    claims: tuple[Claim, ...]
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def summary(self) -> str:
        """The claims about condition fidelity and haematoxylin, one a line."""
        return "\n".join(claim.sentence for claim in self.claims if claim.fidelity or "haematoxylin" in claim.measure)


def about_checkpoint(
    plan: Plan, model: PatchModel, sections: Sequence[Section], request: EvaluationRequest, seconds: float
) -> dict[str, Any]:
    """Return what an evaluation of a checkpoint is about; JSON types only."""
    card = plan.card
    return {
        "kind": "checkpoint",
        "request": request.model_dump(mode="json"),
        "checkpoint": {
            "name": card.name,
            "patch_px": card.patch_px,
            "patch_mpp": card.patch_mpp,
            "conditions": list(card.conditions),
            "training_data": card.training_data,
            "licence": card.licence,
            "limits": card.limits,
            **model.provenance,
        },
        "sections": [about_section(section) for section in sections],
        "steps": plan.steps,
        "guidance": asdict(plan.guidance),
        "seconds": round(seconds, 1),
    }


def about_section(section: Section) -> dict[str, Any]:
    """Return what is said of a section."""
    return {
        "name": section.name,
        "spots": len(section.spots),
        "mpp": section.calibration.mpp,
        "scale": section.calibration.detail,
        "synthetic": section.synthetic,
        "fingerprint": fingerprint(section),
    }


def check_report(folder: Path, about: Mapping[str, Any], resume: bool) -> None:
    """Refuse, before anything is computed, a folder whose report may not be replaced.

    Parameters
    ----------
    folder
        The evaluation's folder.
    about
        What the evaluation is about.
    resume
        Whether it may go on in a folder that holds it; other metrics of the same patches are the same evaluation.

    Raises
    ------
    StoreError
        The folder holds the report of something else, or an evaluation and ``resume`` was not asked for.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise StoreError(f"{folder} cannot be written: it is no folder; give another --output")
    _work_of(about).check_files(folder, FILES)
    kept = folder / STACKS
    there = any((folder / name).exists() for name in FILES) or (kept.is_dir() and any(kept.iterdir()))
    if there and not resume:
        raise StoreError(
            f"{folder} holds an evaluation already; add --resume to go on with it, or give another --output"
        )


def _work_of(about: Mapping[str, Any]) -> Work:
    """Return what signs a report: all that its patches depend on, which the metrics are not."""
    request = {
        name: value
        for name, value in about.get("request", {}).items()
        if name not in METRICS and not (name in LATER and value == LATER[name])
    }
    checkpoint = about.get("checkpoint", {}).get("sha256")
    what = [about["kind"], about["sections"], request, checkpoint, about.get("results")]
    text = json.dumps(what, sort_keys=True, default=str)
    return Work(
        hashlib.sha256(text.encode()).hexdigest(),
        "this evaluation",
        "give another --output, or move away what is there",
    )


def write_report(
    folder: Path,
    about: Mapping[str, Any],
    figures: Sequence[Figures],
    command: str,
    counterfactual: Mapping[str, Any] | None = None,
) -> EvaluationReport:
    """Write ``report.json`` and ``report.html`` into a folder; ``counterfactual`` is what was found of edits of real tissue, if it was asked.

    Raises
    ------
    StoreError
        It cannot be written, or the folder holds the report of something else.
    """
    facts = {
        "synthetic": True,
        "statement": STATEMENT,
        "software": {"name": "napari-stmdit", "version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **about,
        "figures": [one.facts for one in figures],
        **({} if counterfactual is None else {"counterfactual": counterfactual}),
        "caveats": list(CAVEATS if figures else CAVEATS[3:4]) + ([] if counterfactual is None else list(EDIT_CAVEATS)),
    }
    html, figures_file = (folder / name for name in FILES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {html: page_of(facts, figures), figures_file: json.dumps(facts, indent=1, allow_nan=False) + "\n"}
        work = _work_of(about)
        work.check_files(folder, FILES)
        work.sign(folder, {file.name: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()})
        for file, text in texts.items():
            write_text(file, text)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}; give another --output") from error
    claims = tuple(claim for one in figures for claim in one.claims)
    return EvaluationReport(html, figures_file, claims, facts)
