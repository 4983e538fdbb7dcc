"""The values that flow between rooms.

User intent (`Request` and what it holds) are frozen pydantic models, so that the form, the YAML file and the provenance are the
same object. Array holders are frozen dataclasses. Positions are (y, x) in full-resolution pixels of the slide image, measured
from the image's corner: the centre of pixel (0, 0) lies at (0.5, 0.5).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Weight = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
CalibrationSource = Literal["override", "scalefactors", "lattice", "image", "unknown"]
GuidanceRule = Literal["nested_morphology_first", "nested_expression_first", "additive"]


class Intent(BaseModel):
    """Base of everything a user can ask for: immutable, serialisable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ------------------------------------------------------------------------------------------------- intent


class Guidance(Intent):
    """The two guidance scales and how they combine; None means the checkpoint's own default."""

    expression: Annotated[float, Field(ge=0, le=30)] | None = None
    morphology: Annotated[float, Field(ge=0, le=30)] | None = None
    rule: GuidanceRule | None = None

    def filled(self, default: Guidance) -> Guidance:
        """Return these scales with every None taken from ``default``."""
        own = self.model_dump(exclude_none=True)
        return Guidance(**{**default.model_dump(), **own})


class SpotList(Intent):
    """Spots by their ids."""

    kind: Literal["spots"] = "spots"
    ids: Annotated[tuple[str, ...], Field(min_length=1)]


class Polygons(Intent):
    """Every spot whose centre lies in one of the rings; vertices are (y, x) in full-resolution pixels."""

    kind: Literal["polygons"] = "polygons"
    rings: Annotated[tuple[tuple[tuple[Finite, Finite], ...], ...], Field(min_length=1)]


class SampleOfSpots(Intent):
    """So many spots, drawn with the request's seed."""

    kind: Literal["sample"] = "sample"
    count: Annotated[int, Field(gt=0)]


class AllSpots(Intent):
    """Every spot of the section that lies on tissue and has counts."""

    kind: Literal["all"] = "all"


Region = Annotated[SpotList | Polygons | SampleOfSpots | AllSpots, Field(discriminator="kind")]


class _Edit(Intent):
    """What all edits share: which genes or programs, which spots with which weight, how strongly."""

    name: str = ""
    genes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    spots: dict[str, Weight] | None = None
    """Spot id -> weight between 0 and 1; None means every spot with weight 1. Empty while nothing is painted yet: it cannot be run."""
    strength: Weight = 1.0
    enabled: bool = True


class _GeneEdit(_Edit):
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
    """Let two groups of spots change places: each spot moves by the difference between the groups' means.

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


Edit = Annotated[
    ScaleEdit | AddEdit | SetQuantileEdit | KnockOutEdit | TowardsEdit | SwapEdit, Field(discriminator="operation")
]


class SpotProfile(Intent):
    """A mean expression profile that was measured elsewhere, such as in a region of another section.

    ``values`` are gene -> mean of log(1 + counts per 10,000) over that region's spots, normalised over the genes listed.
    """

    source: str = ""
    """Where it was measured, in words."""
    values: Annotated[dict[str, Annotated[float, Field(ge=0, le=math.log1p(1e4))]], Field(min_length=1)]


class Request(Intent):
    """What the user wants; says nothing about how or where it is computed.

    ``morphology`` is ``own`` (each spot's own crop), ``mean`` (of the section), ``null`` or a spot id; ``expression`` is
    ``own``, ``shuffled`` (permuted within the section, a control) or ``null``. ``programs`` and ``profiles`` are the user's own,
    which edits may name beside the bundled programs and the checkpoint's profiles; of two with one name, the user's counts.
    """

    section: str | None = None
    region: Region = AllSpots()
    edits: tuple[Edit, ...] = ()
    programs: dict[str, Annotated[dict[str, Weight], Field(min_length=1)]] = {}
    profiles: dict[str, SpotProfile] = {}
    guidance: Guidance = Guidance()
    morphology: str = "own"
    expression: Literal["own", "shuffled", "null"] = "own"
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint: str = "demo"
    mode: Literal["spots", "continuous"] = "spots"
    allow_gene_mismatch: bool = False


class CheckpointCard(Intent):
    """What a checkpoint says of itself: the contents of ``stmdit.json``.

    ``genes`` are the symbols that the expression encoder sees, in its own order; ``profiles`` name the tissue profiles (mean
    log(1 + counts per 10,000) over those genes) stored beside the weights. ``conditions`` are what its transformer takes: one
    without expression is synthesized from morphology alone.
    """

    format_version: Literal[1] = 1
    name: str
    patch_px: Annotated[int, Field(gt=0)]
    patch_mpp: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    guidance: Guidance
    steps: Annotated[int, Field(gt=0)]
    conditions: tuple[Literal["expression", "morphology"], ...] = ("expression", "morphology")
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


# ------------------------------------------------------------------------------------------------- tissue


@dataclass(frozen=True)
class Calibration:
    """Microns per full-resolution pixel and where that number comes from.

    Attributes
    ----------
    mpp
        Microns per full-resolution pixel; None where it is not known and must be asked for.
    source
        ``override`` (the user), ``scalefactors`` (``microns_per_pixel``), ``lattice`` (fitted to the spots' array indices),
        ``image`` (stated in a synthetic result or an image's own metadata) or ``unknown``.
    detail
        One sentence for the user.
    """

    mpp: float | None
    source: CalibrationSource
    detail: str


@dataclass(frozen=True)
class Genes:
    """Names of the columns of an expression table: symbols (g,), and Ensembl ids (g,) where the file has them."""

    symbols: NDArray[np.str_]
    ids: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.symbols)


@dataclass(frozen=True)
class SpotTable:
    """Spots with their positions and expression; only spots that have counts.

    Attributes
    ----------
    ids
        (n,) barcodes, unique.
    yx
        (n, 2) centres in full-resolution pixels.
    diameter
        Diameter in full-resolution pixels, as drawn.
    counts
        (n, g) sparse counts, float32 or integer, never negative.
    genes
        Names of the g columns.
    array_rc
        (n, 2) array row and column, or None.
    obs
        Further columns, each (n,), by name.
    """

    ids: NDArray[np.str_]
    yx: NDArray[np.float64]
    diameter: float
    counts: csr_matrix
    genes: Genes
    array_rc: NDArray[np.int64] | None = None
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: tuple[str, ...] | list[str]) -> NDArray[np.int64]:
        """Return the row of each id; raises KeyError with the first unknown id."""
        position = {spot: row for row, spot in enumerate(self.ids.tolist())}
        return np.array([position[spot] for spot in ids], dtype=np.int64)


@dataclass(frozen=True)
class SlideImage:
    """A lazy multiscale RGB image.

    Attributes
    ----------
    levels
        Dask arrays (y, x, 3) uint8, largest first.
    pixel_size
        Full-resolution pixels per pixel of level 0; 1 for a full-resolution image, about 5 for a hires PNG.
    source
        Where it was read from.
    """

    levels: tuple[Any, ...]
    pixel_size: float
    source: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of level 0 in its own pixels."""
        height, width = self.levels[0].shape[:2]
        return int(height), int(width)


@dataclass(frozen=True)
class Section:
    """One tissue section: slide image, spots and calibration.

    Attributes
    ----------
    coordinate_systems
        Name -> (3, 3) affine that takes (y, x, 1) in full-resolution pixels into that coordinate system.
    synthetic
        True where the slide image or the expression was synthesized.
    notes
        Sentences for the user: what was assumed, aggregated or left out.
    """

    name: str
    path: Path | None
    kind: Literal["spatialdata", "spaceranger", "visium_hd", "image"]
    spots: SpotTable
    image: SlideImage | None
    calibration: Calibration
    coordinate_systems: Mapping[str, NDArray[np.float64]]
    synthetic: bool = False
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Patch:
    """One patch of a plan.

    Attributes
    ----------
    index
        Place in the plan.
    spot_id, row
        The spot it is conditioned on, and that spot's row in the section's table; of a tile, the spot nearest to its middle.
    source_box
        (y0, x0, y1, x1) in full-resolution pixels, fractional: where its morphology is read.
    canvas_box
        (y0, x0, y1, x1) in canvas pixels: where it is pasted.
    seed
        Seed of its noise; depends on the run's seed and the spot id alone. Of a tile, the run's seed.
    """

    index: int
    spot_id: str
    row: int
    source_box: tuple[float, float, float, float]
    canvas_box: tuple[int, int, int, int]
    seed: int


@dataclass(frozen=True)
class CanvasFrame:
    """Size and place of a canvas.

    Attributes
    ----------
    shape
        (height, width) in canvas pixels.
    origin
        (y, x) in full-resolution pixels of the canvas's corner.
    pixel_size
        Full-resolution pixels per canvas pixel.
    """

    shape: tuple[int, int]
    origin: tuple[float, float]
    pixel_size: float

    @property
    def affine(self) -> NDArray[np.float64]:
        """(3, 3) affine from (y, x, 1) canvas pixels to full-resolution pixels, both measured from their corners."""
        y, x = self.origin
        return np.array([[self.pixel_size, 0, y], [0, self.pixel_size, x], [0, 0, 1]], dtype=np.float64)


@dataclass(frozen=True)
class Windows:
    """How a seamless canvas is made: overlapping windows that share every denoising step. All in canvas pixels.

    Attributes
    ----------
    side, stride, tile
        Side of a window, from one window to the next, and side of the tiles that are finished one by one.
    size
        (height, width) of the area that the windows cover.
    origin
        (y, x) of that area's corner on the canvas; may be negative, as windows reach over the region.
    absolute
        (y, x) of the same corner on the grid that starts at the slide's corner: where its noise comes from.
    corners
        (n, 2) corners of the windows, from the area's corner.
    source_boxes
        (n, 4) (y0, x0, y1, x1) in full-resolution pixels: where their morphology is read.
    rows, weights
        (n, k) rows of the spots that a window's expression is made of, and their weights, which sum to one.
    cells
        (h, w) bool over the canvas: which blocks of ``cell`` x ``cell`` pixels belong to the region.
    cell
        Side of a block.
    rule
        How expression is interpolated, in a sentence.
    """

    side: int
    stride: int
    tile: int
    size: tuple[int, int]
    origin: tuple[int, int]
    absolute: tuple[int, int]
    corners: NDArray[np.int64]
    source_boxes: NDArray[np.float64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    cells: NDArray[np.bool_]
    cell: int
    rule: str

    def __len__(self) -> int:
        return len(self.corners)


@dataclass(frozen=True)
class Plan:
    """What will be computed: the ordered patches, where they go, and every setting resolved.

    In continuous mode ``windows`` says how the canvas is made, and the patches are the tiles it is finished in.
    """

    request: Request
    card: CheckpointCard
    patches: tuple[Patch, ...]
    frame: CanvasFrame
    guidance: Guidance
    steps: int
    genes_shared: int
    notes: tuple[str, ...] = ()
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.patches)


@dataclass(frozen=True)
class PatchResult:
    """A finished patch.

    Attributes
    ----------
    patch
        Its place in the plan.
    pixels
        (h, w, 3) uint8; of a patch, h and w are ``patch_px``.
    mask
        (h, w) bool, of a tile alone: which pixels belong to the region. A tile is pasted as it is; patches, which may overlap, are
        blended.
    """

    patch: Patch
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
