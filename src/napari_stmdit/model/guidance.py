"""Classifier-free guidance with two conditions: predictions with and without each of them, combined linearly.

Ho & Salimans, 2022, arXiv 2207.12598; nested for two conditions as in Brooks et al., 2023, arXiv 2211.09800.
With e00, em, eg, emg the predictions under no condition, morphology, expression and both, and the scales wm and wg:

- nested_morphology_first: e00 + wm (em - e00) + wg (emg - em)
- nested_expression_first: e00 + wg (eg - e00) + wm (emg - eg)
- additive: e00 + wm (em - e00) + wg (eg - e00)

A condition whose scale is 0 is left out, as where it is null: each rule is then e00 + w (e - e00) of the other condition. In the
nested rules that is not the limit of small scales: with wm = 0 the first would be e00 + wg (emg - em).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from ..errors import SynthesisError
from ..intent import GuidanceRule

_ZERO = 1e-9  # coefficients cancel only up to rounding


@dataclass(frozen=True)
class Branch:
    """Branch of a guided prediction: its conditions and its coefficient."""

    morphology: bool
    expression: bool
    coefficient: float


class _Linear(Protocol):
    def __mul__(self, other: float, /) -> Self: ...
    def __add__(self, other: Self, /) -> Self: ...


T = TypeVar("T", bound=_Linear)


def branches(
    rule: GuidanceRule,
    w_morphology: float,
    w_expression: float,
    *,
    has_morphology: bool = True,
    has_expression: bool = True,
) -> tuple[Branch, ...]:
    """Return the predictions that a guided prediction is made of.

    Parameters
    ----------
    rule
        How the two scales combine.
    w_morphology, w_expression
        The scales; 0 leaves a condition out, 1 is the plain conditional prediction.
    has_morphology, has_expression
        False where the condition is null in the request: as scale 0. Predictions that then are the same are computed once.

    Returns
    -------
    tuple of Branch
        Coefficients sum to 1; a branch whose coefficient is zero is left out.

    Raises
    ------
    SynthesisError
        The rule is unknown.
    """
    wm, wg = w_morphology, w_expression
    rules = {
        "nested_morphology_first": {(0, 0): 1 - wm, (1, 0): wm - wg, (1, 1): wg},
        "nested_expression_first": {(0, 0): 1 - wg, (0, 1): wg - wm, (1, 1): wm},
        "additive": {(0, 0): 1 - wm - wg, (1, 0): wm, (0, 1): wg},
    }
    if rule not in rules:
        raise SynthesisError(f"Unknown guidance rule {rule!r}; expected one of {', '.join(rules)}.")
    merged: dict[tuple[bool, bool], float] = {}
    for (morphology, expression), coefficient in rules[rule].items():
        given = (bool(morphology and has_morphology and wm), bool(expression and has_expression and wg))
        merged[given] = merged.get(given, 0.0) + coefficient
    return tuple(Branch(*given, coefficient) for given, coefficient in merged.items() if abs(coefficient) > _ZERO)


def by_level(guidance: Sequence[Branch], levels: Sequence[float], above: float) -> list[tuple[Branch, ...]]:
    """Return the branches of each step: guided where its noise level (0 to 1) is at least ``above``, else the conditional one alone.

    A guidance interval (Kynkaanniemi et al., 2024, arXiv 2404.07724): near the end of denoising guidance changes little.
    """
    plain = (Branch(any(b.morphology for b in guidance), any(b.expression for b in guidance), 1.0),)
    return [tuple(guidance) if level >= above else plain for level in levels]


def combine(outputs: Sequence[T], branches: Sequence[Branch]) -> T:
    """Return the guided prediction: the outputs of the branches, weighted by their coefficients."""
    total, *rest = (output * branch.coefficient for output, branch in zip(outputs, branches, strict=True))
    for term in rest:
        total = total + term
    return total
