"""Values passed between packages: frozen dataclasses of arrays and settings.

Positions are (y, x) in full-resolution pixels of the slide image, measured
from the image's corner: the centre of pixel (0, 0) lies at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import SectionError
from .intent import DEFAULT_GUIDANCE, DEFAULT_STEPS, CheckpointCard, Guidance, GuidanceRule, Request

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

CalibrationSource = Literal["override", "scalefactors", "lattice", "image", "unknown"]
PredictedUnits = Literal["counts", "log1p"]
Orientation = Literal["as-given", "mirror-x", "mirror-y", "turn-180", "swap-xy", "turn-90", "turn-270", "swap-yx"]
"""Orientation of the spots on the slide, relative to the files; see `napari_stmdit.tissue.alignment`."""


# ------------------------------------------------------------------------------------------------- tissue


MAX_DEPTH = 2.0
"""Limit of relative depth, in natural logarithms: a factor of 7."""


@dataclass(frozen=True)
class Calibration:
    """Microns per full-resolution pixel and where that number comes from.

    Attributes
    ----------
    mpp
        Microns per full-resolution pixel; None if unknown.
    source
        ``override`` (the user), ``scalefactors`` (``microns_per_pixel``), ``lattice`` (fitted to the spots' array indices),
        ``image`` (stated in a synthetic result or an image's own metadata) or ``unknown``.
    detail
        One sentence for the user.
    """

    mpp: float | None
    source: CalibrationSource
    detail: str


@dataclass(frozen=True, eq=False)  # by identity: what is found in it once is kept for it
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
        (n, g) sparse counts, float32 or integer, never negative; fractions where they were predicted, and of factors. Without counts there is no gene: g is 0.
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

    def at(self, rows: NDArray[np.int64]) -> SpotTable:
        """Return some of the rows, as a table of their own."""
        return replace(
            self,
            ids=self.ids[rows],
            yx=self.yx[rows],
            counts=self.counts[rows],
            array_rc=None if self.array_rc is None else self.array_rc[rows],
            obs={name: values[rows] for name, values in self.obs.items()},
        )

    def rows(self, ids: tuple[str, ...] | list[str]) -> NDArray[np.int64]:
        """Return the row of each id; raises KeyError with the first unknown id."""
        import pandas as pd

        rows = self.index.get_indexer(pd.Index(ids, dtype=object))
        if (rows < 0).any():
            raise KeyError(ids[int(np.argmax(rows < 0))])
        return np.asarray(rows, dtype=np.int64)

    @cached_property
    def index(self) -> pd.Index[Any]:
        """The ids as a pandas Index: ``spot in index``, ``index.get_indexer(ids)`` for rows, with -1 for an unknown id."""
        import pandas as pd  # slow to load, and not needed by all who need types

        index: pd.Index[Any] = pd.Index(self.ids.tolist(), dtype=object)
        return index

    @cached_property
    def relative_depth(self) -> NDArray[np.float32]:
        """(n,) natural logarithm of each spot's total count relative to the median spot of the section, cut at a factor of 7.

        Within a section denser tissue gives more counts (Bhuva et al. 2024, Genome Biology 25:99); the ratio drops the experiment's depth.
        """
        totals = np.asarray(self.counts.sum(axis=1), dtype=np.float64).ravel()
        found = totals[totals > 0]
        if not len(found):
            return np.zeros(len(self), dtype=np.float32)
        ratio = np.maximum(totals, found.min()) / np.median(found)
        return np.asarray(np.clip(np.log(ratio), -MAX_DEPTH, MAX_DEPTH), dtype=np.float32)


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
        Description of where it was read from.
    file
        The file whose content the pixels are; None where they come from a store or memory.
    """

    levels: tuple[Any, ...]
    pixel_size: float
    source: str
    file: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of level 0 in its own pixels."""
        height, width = self.levels[0].shape[:2]
        return int(height), int(width)


@dataclass(frozen=True)
class ExpressionSource:
    """Origin of a section's expression.

    Attributes
    ----------
    kind
        ``measured``; ``predicted``, from the table of another model; ``factors`` of each spot in the place of counts; or ``none``: a plain H&E
        slide, or positions without counts.
    file, sha256
        Name and hash of the table of predictions or factors.
    units
        Unit of that table: counts, or natural logarithms of one plus normalised counts.
    place
        Where a table of factors was read, as `napari_stmdit.open_section` takes it; never recorded.
    """

    kind: Literal["measured", "predicted", "factors", "none"] = "measured"
    file: str = ""
    sha256: str = ""
    units: PredictedUnits | None = None
    place: str = field(default="", compare=False, repr=False)

    @property
    def statement(self) -> str:
        """Statement for results; empty where the expression was measured."""
        if self.kind == "none":
            return "no measured expression was used: the section has no counts, and expression is null where no embeddings of its spots are given"
        if self.kind == "predicted":
            return f"no measured expression was used: it was predicted, in {self.file} (SHA-256 {self.sha256[:12]}...)"
        if self.kind == "factors":
            return f"no counts were used: factors of each spot take their place, from {self.file} (SHA-256 {self.sha256[:12]}...)"
        return ""

    def facts(self) -> dict[str, str]:
        """Return the origin in JSON types, for records."""
        known = {"kind": self.kind, "file": self.file, "sha256": self.sha256, "units": self.units}
        return {name: value for name, value in known.items() if value} | (
            {"statement": self.statement} if self.statement else {}
        )


@dataclass(frozen=True)
class StoreElements:
    """Elements of a section in a SpatialData store: its folder, and the names of circles and table."""

    root: Path
    spots: str
    table: str


@dataclass(frozen=True)
class Excluded:
    """Excluded spots of a section, such as those under folds, pen and blur.

    Attributes
    ----------
    whole
        All spots of the section.
    regions
        Name of a region -> ids of its spots, in the table's order.
    """

    whole: SpotTable
    regions: Mapping[str, tuple[str, ...]]

    @property
    def ids(self) -> frozenset[str]:
        """The excluded spots."""
        return frozenset().union(*self.regions.values())

    @property
    def statement(self) -> str:
        """Sentence with the number of excluded spots and their regions."""
        listed = ", ".join(f"{name} {len(ids):,}" for name, ids in self.regions.items())
        return f"{len(self.ids):,} of {len(self.whole):,} spots are excluded ({listed}) and used for nothing"


class Outlines:
    """Outlines of cells, for drawing. Those of a large section take seconds to read, and are read when first asked for.

    Parameters
    ----------
    read
        Returns line segments (k, 2, 2): start and end of each, (y, x); raises SectionError where its file cannot be read.
    """

    def __init__(self, read: Callable[[], NDArray[np.float32]]) -> None:
        self._read: Callable[[], NDArray[np.float32]] | None = read
        self._found: NDArray[np.float32] | None = None
        self._lock = Lock()

    @property
    def pieces(self) -> NDArray[np.float32]:
        """The line segments, (k, 2, 2); raises SectionError where they cannot be read."""
        with self._lock:
            if self._found is None:
                assert self._read is not None
                self._found = self._read()
                self._read = None  # and what it holds
            return self._found

    def moved(self, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Outlines:
        """Return them at other places: ``change`` takes places (n, 2) to places (n, 2)."""

        def read() -> NDArray[np.float32]:
            ends = self.pieces.reshape(-1, 2).astype(np.float64)
            return change(ends).reshape(-1, 2, 2).astype(np.float32)

        return Outlines(read)


@dataclass(frozen=True)
class Section:
    """One tissue section: slide image, spots and calibration.

    Attributes
    ----------
    path
        Path as given when the section was opened; of a store also one of its elements.
    coordinate_systems
        Name -> (3, 3) affine that takes (y, x, 1) in full-resolution pixels into that coordinate system.
    synthetic
        True where the slide image or the expression was synthesized.
    notes
        Sentences for the user: what was assumed, aggregated or left out.
    expression
        Origin of the spots' expression.
    image_fault
        Reason why there is no slide image, or none in full resolution, if known.
    store
        Elements of the SpatialData store that it was read from.
    excluded
        Excluded spots, which ``spots`` does not hold; see `napari_stmdit.tissue.excluded`.
    outlines
        Outlines of summed cells, or of cells among summed bins, in full-resolution pixels.
    orientation
        Orientation that its spots were given over the slide, relative to the files.
    """

    name: str
    path: Path | None
    kind: Literal["spatialdata", "spaceranger", "visium_hd", "xenium", "image"]
    spots: SpotTable
    image: SlideImage | None
    calibration: Calibration
    coordinate_systems: Mapping[str, NDArray[np.float64]]
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    expression: ExpressionSource = ExpressionSource()
    image_fault: str = ""
    store: StoreElements | None = None
    excluded: Excluded | None = None
    outlines: Outlines | None = None
    orientation: Orientation = "as-given"

    @property
    def whole(self) -> Section:
        """The section with the spots that were left out."""
        if self.excluded is None:
            return self
        notes = tuple(note for note in self.notes if note != self.excluded.statement)
        return replace(self, spots=self.excluded.whole, notes=notes, excluded=None)

    @property
    def mpp(self) -> float:
        """Microns per full-resolution pixel; raises SectionError where they are not known."""
        if self.calibration.mpp is None:
            raise SectionError(f"{self.name} states no microns per pixel; give them with --mpp (mpp=...)")
        return self.calibration.mpp

    @property
    def slide(self) -> SlideImage:
        """The slide image; raises SectionError where there is none."""
        if self.image is None:
            raise SectionError(f"{self.name} has no slide image; give it with --fullres (fullres=...)")
        return self.image


# ------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Patch:
    """Patch of a plan.

    Attributes
    ----------
    index
        Place in the plan.
    spot_id, row
        Spot that conditions it, and its row in the section's table; of a tile, the spot nearest to its middle.
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
    """Overlapping windows of a seamless canvas, which share every denoising step. All in canvas pixels.

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
        (n, k) rows of the spots that a window's expression is made of, the nearest first, and their weights, which sum to one.
    cells
        (h, w) bool over the canvas: which blocks of ``cell`` x ``cell`` pixels belong to the region.
    cell
        Side of a block.
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

    def __len__(self) -> int:
        return len(self.corners)


@dataclass(frozen=True)
class GuidanceScales:
    """Resolved guidance; ``above`` is the noise level, 0 to 1, above which it acts."""

    expression: float
    morphology: float
    rule: GuidanceRule
    above: float

    @classmethod
    def of(cls, *wanted: Guidance) -> GuidanceScales:
        """Resolve each value from the first that states it, else from `DEFAULT_GUIDANCE`."""
        stated: dict[str, Any] = {"above": 0.0}
        for one in (DEFAULT_GUIDANCE, *reversed(wanted)):
            stated |= one.model_dump(exclude_none=True)
        return cls(**stated)


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of an image.

    Attributes
    ----------
    guidance, steps
        As resolved.
    fast_solver, preview_decoder
        Whether UniPC replaces the checkpoint's solver, and the preview decoder (if any) its decoder.
    nodes
        For a coarse edit of real tissue: nodes of the path to the noise that it follows, as shares of `steps`, after the data. Empty: all.
    """

    guidance: GuidanceScales = GuidanceScales.of()
    steps: int = DEFAULT_STEPS
    fast_solver: bool = False
    preview_decoder: bool = False
    nodes: tuple[float, ...] = ()


@dataclass(frozen=True)
class DenoiseStep:
    """State after one denoising step.

    The last one has the images, (b, patch_px, patch_px, 3) uint8. ``preview`` is the predicted first patch, if requested.
    """

    step: int
    steps: int
    images: NDArray[np.uint8] | None = None
    preview: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Plan:
    """Resolved request: the ordered patches, their places, and every setting.

    In continuous mode the patches are tiles of a canvas made of ``windows``. With ``counterfactual`` the edits change the real tissue, and
    ``steps`` count each way, to the noise and back.
    """

    request: Request
    card: CheckpointCard
    patches: tuple[Patch, ...]
    frame: CanvasFrame
    sampling: Sampling
    genes_shared: int
    notes: tuple[str, ...] = ()
    windows: Windows | None = None
    counterfactual: bool = False

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def guidance(self) -> GuidanceScales:
        """Resolved guidance."""
        return self.sampling.guidance

    @property
    def steps(self) -> int:
        """Resolved number of denoising steps."""
        return self.sampling.steps

    @property
    def has_morphology(self) -> bool:
        """Whether images are conditioned on morphology: requested, and taken by the checkpoint."""
        return self.request.morphology != "null" and "morphology" in self.card.conditions

    @property
    def has_expression(self) -> bool:
        """Whether images are conditioned on expression: requested, and taken by the checkpoint."""
        return self.request.expression != "null" and "expression" in self.card.conditions


@dataclass(frozen=True)
class PatchResult:
    """Finished patch.

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
