"""The report of an evaluation: what it is about, what may be claimed, and the two files it is written into."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError
from ..synthesis.models import PatchModel
from ..types import Plan, Section
from .cases import EvaluationRequest
from .figures import Claim, Figures
from .page import page_of

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
        "guidance": plan.guidance.model_dump(mode="json"),
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
    }


def write_report(folder: Path, about: Mapping[str, Any], figures: Sequence[Figures], command: str) -> EvaluationReport:
    """Write ``report.json`` and ``report.html`` into a folder.

    Raises
    ------
    StoreError
        It cannot be written.
    """
    facts = {
        "synthetic": True,
        "statement": STATEMENT,
        "software": {"name": "napari-stmdit", "version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **about,
        "figures": [one.facts for one in figures],
        "caveats": list(CAVEATS),
    }
    html, figures_file = folder / "report.html", folder / "report.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures_file.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        html.write_text(page_of(facts, figures), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}; give another --output") from error
    claims = tuple(claim for one in figures for claim in one.claims)
    return EvaluationReport(html, figures_file, claims, facts)
