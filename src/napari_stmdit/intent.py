"""Requests, edits, regions and the checkpoint card: frozen pydantic models of plain data.

Form, YAML file and provenance are the same object; all faults of an input are reported at once, with their place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import CheckpointError

Weight = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
GuidanceRule = Literal["nested_morphology_first", "nested_expression_first", "additive"]
Preset = Literal["exact", "fast", "draft"]
Follow = Literal["section", "none"]


T = TypeVar("T", bound=BaseModel)


def validated(model: type[T], values: Mapping[str, Any], complaint: str, hint: str = "") -> T:
    """Build a model from a checkpoint's file; raises CheckpointError with every fault after the complaint."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CheckpointError(f"{complaint}: {faults}.{hint}") from None


class Intent(BaseModel):
    """Base of all requests: immutable, serialisable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a validated copy with some fields changed; pydantic's own copy does not validate.

        Raises
        ------
        pydantic.ValidationError
            A value is not allowed, or there is no such field.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}  # what was left open stays so
        return type(self).model_validate({**given, **update})

    def leaving_open(self, *names: str) -> Self:
        """Return a copy with some fields unset, at their defaults."""
        return type(self).model_validate({name: getattr(self, name) for name in self.model_fields_set - {*names}})


class Guidance(Intent):
    """Guidance scales and their rule; None means the checkpoint's own default.

    ``above`` is the noise level, 0 to 1, above which they act; below it the plain conditional prediction is made.
    """

    expression: Annotated[float, Field(ge=0, le=30)] | None = None
    morphology: Annotated[float, Field(ge=0, le=30)] | None = None
    rule: GuidanceRule | None = None
    above: Annotated[float, Field(ge=0, lt=1)] | None = None


DEFAULT_GUIDANCE = Guidance(expression=2.0, morphology=2.0, rule="nested_morphology_first")
"""Defaults where neither request nor card states guidance."""
DEFAULT_STEPS = 20


class SpotList(Intent):
    """Spots by their ids."""

    kind: Literal["spots"] = "spots"
    ids: Annotated[tuple[str, ...], Field(min_length=1)]


class Polygons(Intent):
    """Spots whose centre lies in one of the rings; vertices are (y, x) in full-resolution pixels."""

    kind: Literal["polygons"] = "polygons"
    rings: Annotated[tuple[tuple[tuple[Finite, Finite], ...], ...], Field(min_length=1)]


class SampleOfSpots(Intent):
    """A number of spots, drawn with the request's seed."""

    kind: Literal["sample"] = "sample"
    count: Annotated[int, Field(gt=0)]


class AllSpots(Intent):
    """All spots of the section that lie on tissue and have counts."""

    kind: Literal["all"] = "all"


Region = Annotated[SpotList | Polygons | SampleOfSpots | AllSpots, Field(discriminator="kind")]


class _Edit(Intent):
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


class ScaleEdit(_GeneEdit):
    """Multiply normalised expression by a factor."""

    operation: Literal["scale"] = "scale"
    factor: Annotated[float, Field(ge=0, le=1000)]


class AddEdit(_GeneEdit):
    """Add to expression in natural-log units, log(1 + counts per 10,000)."""

    operation: Literal["add"] = "add"
    log_units: Annotated[float, Field(ge=-10, le=10)]


class SetQuantileEdit(_GeneEdit):
    """Set expression to a quantile of the section's own spots."""

    operation: Literal["set_quantile"] = "set_quantile"
    quantile: Annotated[float, Field(ge=0, le=1)]


class KnockOutEdit(_GeneEdit):
    """Set expression to zero."""

    operation: Literal["knock_out"] = "knock_out"


class TowardsEdit(_Edit):
    """Move expression towards the mean of other spots, or towards a profile of the request or of the checkpoint.

    Without genes and programs the whole profile moves.
    """

    operation: Literal["towards"] = "towards"
    target_profile: str | None = None
    target_spots: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_target(self) -> TowardsEdit:
        if (self.target_profile is None) == (not self.target_spots):
            raise ValueError("give either target_profile or target_spots")
        return self


class SwapEdit(_Edit):
    """Swap two groups of spots: each spot moves by the difference between the groups' means.

    In log units a spot of group a moves by mean(b) - mean(a), a spot of group b by the opposite, never below zero; the means
    are of the measured expression. Every spot keeps how it differs from its own group. Without genes and programs the whole
    profile moves. ``spots`` may give members a weight; a spot of neither group is never changed.
    """

    operation: Literal["swap"] = "swap"
    group_a: Annotated[tuple[str, ...], Field(min_length=1)]
    group_b: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _groups_are_apart(self) -> SwapEdit:
        both = sorted(set(self.group_a) & set(self.group_b))
        if both:
            raise ValueError(f"the two groups share {len(both)} spots, such as {both[0]!r}; they must be apart")
        return self


class TableEdit(_Edit):
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
    ScaleEdit | AddEdit | SetQuantileEdit | KnockOutEdit | TowardsEdit | SwapEdit | TableEdit,
    Field(discriminator="operation"),
]


class SpotProfile(Intent):
    """Mean expression profile measured elsewhere, such as in a region of another section.

    ``values`` are gene -> mean of log(1 + counts per 10,000) over that region's spots, normalised over the genes listed.
    """

    source: str = ""
    """Description of where it was measured."""
    values: Annotated[dict[str, Annotated[float, Field(ge=0, le=math.log1p(1e4))]], Field(min_length=1)]
    spreads: dict[str, Annotated[float, Field(ge=0, le=math.log1p(1e4))]] = {}
    """Standard deviation over the spots, gene by gene, if known; without it spots move to the mean alone."""
    depth: Finite | None = None
    """Mean, over the spots, of the logarithm of their total relative to the median spot of their section; None: not known."""


class Request(Intent):
    """Request for a synthesis; independent of how and where it is computed.

    >>> request = st.Request(region=st.SampleOfSpots(count=4), seed=1)
    >>> request.model_copy(update={"steps": 8}).steps
    8

    ``exclude`` is a GeoJSON file of regions whose spots are excluded. ``morphology`` is ``own`` (each spot's own crop), ``mean`` (of the
    section), ``null`` or a spot id; ``expression`` is ``own``, ``shuffled`` (permuted within the section, a control) or ``null``.

    ``counterfactual`` decides whether the edits change this tissue (``on``) or new tissue is made (``off``); ``auto`` changes this tissue if
    there are edits and section and checkpoint allow it. ``edit_scale`` then weights the change, and ``fresh_noise`` is the share of its noise
    that is drawn with the seed, so that details differ from the slide and between seeds. ``guidance`` is for new tissue only, and so is
    ``seed`` without fresh noise.

    ``preset`` trades quality for time where steps and guidance interval are unset: see `napari_stmdit.synthesis.plan`. ``programs`` and
    ``profiles`` are the user's own, which edits may name beside the bundled ones; of two with one name, the user's counts.
    """

    section: str | None = None
    exclude: str | None = None
    region: Region = AllSpots()
    edits: tuple[Edit, ...] = ()
    programs: dict[str, Annotated[dict[str, Weight], Field(min_length=1)]] = {}
    profiles: dict[str, SpotProfile] = {}
    guidance: Guidance = Guidance()
    morphology: str = "own"
    expression: Literal["own", "shuffled", "null"] = "own"
    counterfactual: Literal["auto", "on", "off"] = "auto"
    edit_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    fresh_noise: Weight = 0.0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    preset: Preset = "exact"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint: str = "demo"
    mode: Literal["spots", "continuous"] = "spots"
    allow_gene_mismatch: bool = False

    @field_validator("counterfactual", mode="before")
    @classmethod
    def _on_and_off_as_yaml_reads_them(cls, value: Any) -> Any:
        """Accept true and false, since YAML reads unquoted on and off as these."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CheckpointCard(Intent):
    """Card of a checkpoint: the contents of ``stmdit.json``.

    ``genes`` are the symbols that the expression encoder reads, in order; ``profiles`` name the tissue profiles (mean log(1 + counts per
    10,000) over those genes) stored beside the weights. ``conditions`` are the transformer's; without expression it synthesizes from morphology
    alone. Three fields are set on loading: ``edits_tissue``, whether it can edit real tissue (its autoencoder has an encoder),
    ``expression_given``, whether embeddings of spots replace counts, and ``reads_factors``, whether ``genes`` are factors in their place.
    """

    format_version: Literal[1] = 1
    name: str
    patch_px: Annotated[int, Field(gt=0)]
    patch_mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    guidance: Guidance
    steps: Annotated[int, Field(gt=0)]
    conditions: tuple[Literal["expression", "morphology"], ...] = ("expression", "morphology")
    edits_tissue: bool = True
    expression_given: Annotated[bool, Field(exclude=True)] = False
    reads_factors: Annotated[bool, Field(exclude=True)] = False
    genes: tuple[str, ...] = ()
    gene_hash: str = ""
    minimum_gene_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    profiles: tuple[str, ...] = ()
    training_data: str
    licence: str
    limits: str

    @model_validator(mode="after")
    def _gene_hash_fits(self) -> CheckpointCard:
        if self.genes and self.gene_hash != hash_genes(self.genes):
            raise ValueError(f"gene_hash {self.gene_hash!r} does not fit the {len(self.genes)} genes listed")
        return self

    @property
    def patch_um(self) -> float:
        """Side of a patch in microns."""
        return self.patch_px * self.patch_mpp


def hash_genes(genes: tuple[str, ...]) -> str:
    """Return the SHA-256 of the gene symbols, one a line, in their order."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()
