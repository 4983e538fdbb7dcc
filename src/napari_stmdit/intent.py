"""Requests, guidance and the checkpoint card: frozen pydantic models of plain data.

Form, YAML file and provenance are the same object; all faults of an input are reported at once, with their place.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .edits import Edit
from .frozen import Frozen, Weight
from .regions import AllSpots, Region

GuidanceRule = Literal["nested_morphology_first", "nested_expression_first", "additive"]
Preset = Literal["exact", "fast", "draft"]


class Guidance(Frozen):
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


class SpotProfile(Frozen):
    """Mean expression profile measured elsewhere, such as in a region of another section.

    ``values`` are gene -> mean of log(1 + counts per 10,000) over that region's spots, normalised over the genes listed.
    """

    source: str = ""
    """Description of where it was measured."""
    values: Annotated[dict[str, Annotated[float, Field(ge=0, le=math.log1p(1e4))]], Field(min_length=1)]
    spreads: dict[str, Annotated[float, Field(ge=0, le=math.log1p(1e4))]] = {}
    """Standard deviation over the spots, gene by gene, if known; without it spots move to the mean alone."""
    depth: Annotated[float, Field(ge=-10, le=10)] | None = None
    """Mean, over the spots, of the logarithm of their total relative to the median spot of their section; None: not known."""


class Request(Frozen):
    """Request for a synthesis; independent of how and where it is computed.

    >>> request = st.Request(region=st.regions.SampleOfSpots(count=4), seed=1)
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


class CheckpointCard(Frozen):
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
