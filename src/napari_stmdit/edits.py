"""Edits of a request: virtual changes of expression, one class an operation.

They share ``name``, ``genes``, ``programs``, ``spots``, ``strength`` and ``enabled``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .frozen import Frozen, Weight

Follow = Literal["section", "none"]


class _Edit(Frozen):
    """Base of all edits: genes or programs, weighted spots, and strength."""

    name: str = ""
    genes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    spots: dict[str, Weight] | None = None
    """Spot id -> weight between 0 and 1; None: every spot with weight 1. Empty: nothing painted yet, cannot be run."""
    strength: Weight = 1.0
    enabled: bool = True


class _GeneEdit(_Edit):
    follow: Follow = "section"
    """``section``: other genes and depth follow as they vary with the edited ones in this section. ``none``: they stay as measured."""

    @model_validator(mode="after")
    def _names_something(self) -> _GeneEdit:
        if not self.genes and not self.programs:
            raise ValueError("an edit needs at least one gene or program")
        return self


class Scale(_GeneEdit):
    """Multiply normalised expression by a factor."""

    operation: Literal["scale"] = "scale"
    factor: Annotated[float, Field(ge=0, le=1000)]


class Add(_GeneEdit):
    """Add to expression in natural-log units, log(1 + counts per 10,000)."""

    operation: Literal["add"] = "add"
    log_units: Annotated[float, Field(ge=-10, le=10)]


class SetQuantile(_GeneEdit):
    """Set expression to a quantile of the section's own spots."""

    operation: Literal["set_quantile"] = "set_quantile"
    quantile: Annotated[float, Field(ge=0, le=1)]


class KnockOut(_GeneEdit):
    """Set expression to zero."""

    operation: Literal["knock_out"] = "knock_out"


class Towards(_Edit):
    """Move expression towards the mean of other spots, or towards a profile of the request or of the checkpoint.

    Without genes and programs the whole profile moves.
    """

    operation: Literal["towards"] = "towards"
    target_profile: str | None = None
    target_spots: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_target(self) -> Towards:
        if (self.target_profile is None) == (not self.target_spots):
            raise ValueError("give either target_profile or target_spots")
        return self


class Swap(_Edit):
    """Swap two groups of spots: each spot moves by the difference between the groups' means.

    In log units a spot of group a moves by mean(b) - mean(a), a spot of group b by the opposite, never below zero; the means
    are of the measured expression. Every spot keeps how it differs from its own group. Without genes and programs the whole
    profile moves. ``spots`` may give members a weight; a spot of neither group is never changed.
    """

    operation: Literal["swap"] = "swap"
    group_a: Annotated[tuple[str, ...], Field(min_length=1)]
    group_b: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _groups_are_apart(self) -> Swap:
        both = sorted(set(self.group_a) & set(self.group_b))
        if both:
            raise ValueError(f"the two groups share {len(both)} spots, such as {both[0]!r}; they must be apart")
        return self


class Table(_Edit):
    """Move expression to what a table predicts for each spot, as models of perturbations do; see `napari_stmdit.expression.edit_tables`.

    ``unit`` of ``layer``: ``counts``, ``log1p_cp10k`` (the natural logarithm of 1 + counts per 10,000) or ``difference`` (added to that).
    With a ``baseline``, another layer of the same file, spots move by the difference of the two. Without genes and programs all genes of the
    table move; nothing else follows.
    """

    operation: Literal["table"] = "table"
    table: Annotated[str, Field(min_length=1)]
    """Path of an .h5ad, or of text with spots as rows and genes as columns."""
    unit: Literal["counts", "log1p_cp10k", "difference"]
    layer: str | None = None
    """``X`` or the name of a layer of an .h5ad; a text table has none."""
    baseline: str | None = None
    sha256: str = ""
    """SHA-256 of the file in a run; empty before planning."""


Edit = Annotated[
    Scale | Add | SetQuantile | KnockOut | Towards | Swap | Table,
    Field(discriminator="operation"),
]
