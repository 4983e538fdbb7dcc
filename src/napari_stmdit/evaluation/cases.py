"""Cases of an evaluation: the conditions of each, and which of them are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ..edits import Edit
from ..frozen import Frozen, Weight
from ..intent import CheckpointCard, Guidance, Request, SpotProfile
from ..regions import SpotList

MIN_SPOTS = 8
"""Minimum number of spots of an interval."""


class EvaluationRequest(Frozen):
    """Request of an evaluation, without checkpoint and sections.

    ``spots`` are drawn with the seed, evenly over the sections; ``seeds`` is the number of images per spot and case. ``feature_spaces`` are names
    as of `napari_stmdit.evaluation.spaces.open_spaces`; expression is read off patches in the first, unless a predictor is given. ``genes`` is the
    number of the most variable genes that fidelity is measured on. Without ``edits``, the checkpoint's profile farthest from the sections is moved
    towards; edits may name ``programs`` and ``profiles``, as in a `napari_stmdit.Request`. ``draws`` are bootstrap samples. ``parts``: images
    under true and broken ``conditions``, or ``counterfactual`` edits of real tissue, checked on ``pairs`` pairs of spots of one section, whose
    expression is swapped in single patches (``mode`` spots) or in painted regions of the size of a patch (continuous).
    """

    spots: Annotated[int, Field(ge=MIN_SPOTS, le=100_000)] = 60
    seeds: Annotated[int, Field(ge=1, le=20)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Guidance = Guidance()
    feature_spaces: tuple[str, ...] = ("encoder", "random")
    genes: Annotated[int, Field(ge=1, le=20_000)] = 200
    edits: tuple[Edit, ...] = ()
    programs: dict[str, Annotated[dict[str, Weight], Field(min_length=1)]] = {}
    profiles: dict[str, SpotProfile] = {}
    predictor: str | None = None
    draws: Annotated[int, Field(ge=100, le=20_000)] = 1000
    allow_gene_mismatch: bool = False
    parts: Annotated[tuple[Literal["conditions", "counterfactual"], ...], Field(min_length=1)] = ("conditions",)
    pairs: Annotated[int, Field(ge=MIN_SPOTS, le=100_000)] = 64
    mode: Literal["spots", "continuous"] = "spots"


LATER: dict[str, Any] = {"parts": ["conditions"], "pairs": 64, "mode": "spots"}
"""Fields that earlier versions did not have, with their defaults in JSON types: an evaluation without them is the same work."""


@dataclass(frozen=True)
class Case:
    """One combination of conditions.

    Attributes
    ----------
    key
        Key in figures.
    description
        Description of the conditions, for readers.
    morphology, expression
        As a request has them; ``across`` is the expression of a spot of another section.
    edited
        Whether the edits are applied.
    """

    key: str
    description: str
    morphology: Literal["own", "null"]
    expression: Literal["own", "shuffled", "across", "null"]
    edited: bool = False

    def request(self, wanted: EvaluationRequest, ids: Sequence[str], number: int, checkpoint: str) -> Request:
        """Return the request of this case, for some spots and seed number ``number``."""
        return Request(
            region=SpotList(ids=tuple(ids)),
            edits=wanted.edits if self.edited else (),
            programs=wanted.programs if self.edited else {},
            profiles=wanted.profiles if self.edited else {},
            guidance=wanted.guidance,
            morphology=self.morphology,
            expression="own" if self.expression == "across" else self.expression,
            steps=wanted.steps,
            seed=wanted.seed + number,
            checkpoint=checkpoint,
            allow_gene_mismatch=wanted.allow_gene_mismatch,
        )


CASES = (
    Case("both", "own morphology and own expression", "own", "own"),
    Case("both, expression shuffled", "own morphology, expression of another spot of the section", "own", "shuffled"),
    Case("both, expression across", "own morphology, expression of a spot of another section", "own", "across"),
    Case("morphology alone", "own morphology, no expression (null)", "own", "null"),
    Case("expression alone", "own expression, no morphology (null)", "null", "own"),
    Case("expression alone, shuffled", "expression of another spot of the section, no morphology", "null", "shuffled"),
    Case("neither", "no condition at all", "null", "null"),
    Case(
        "expression alone, edited", "own expression, edited; the noise is that of expression alone", "null", "own", True
    ),
)

COMPARED = (
    ("expression alone", "expression alone, shuffled"),
    ("expression alone", "neither"),
    ("both", "both, expression shuffled"),
    ("both", "both, expression across"),
    ("both", "morphology alone"),
    ("morphology alone", "neither"),
)
"""Pairs of (true condition, control): the report says whether the first beats the second."""
EDITED = ("expression alone, edited", "expression alone")
"""The edited case and its baseline."""


def cases_of(card: CheckpointCard, several: bool, edited: bool) -> tuple[Case, ...]:
    """Return the cases that apply to a checkpoint: a condition that it does not take is not varied.

    Parameters
    ----------
    card
        The checkpoint's card.
    several
        Whether expression of another section is available.
    edited
        Whether there are edits.
    """
    if "expression" not in card.conditions:
        return tuple(case for case in CASES if case.expression == "null")
    cases = [case for case in CASES if (several or case.expression != "across") and (edited or not case.edited)]
    if "morphology" not in card.conditions:
        cases = [case for case in cases if case.morphology == "null"]
    return tuple(cases)
