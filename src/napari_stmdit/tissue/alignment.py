"""Alignment check: whether spots lie on the tissue as they should, or would fit clearly better turned or mirrored.

Two criteria: spots with counts lie on tissue, and denser tissue gives more counts, which decides where tissue fills the slide.
docs/evidence/alignment.md has figures of real sections, each also turned and mirrored by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SectionError
from ..files import user_path
from ..storage.atomic import new_file
from ..types import Orientation, Section, SpotTable
from .crops import computed, readable
from .excluded import exclude
from .tissue_mask import coarse_picture, disc_means, optical_density

SHARE_MARGIN = 0.05
"""Minimum difference of the shares of spots on tissue to be clearly better."""
MIN_DENSITY = 0.05
"""Minimum mean optical density (log10) over the glass of a spot on tissue; fat is hardly denser."""
ERRORS = 2.0
"""Minimum difference of two correlations, in its standard errors (Fisher's transformation), to be clearly better."""
MIN_R = 0.3
"""Minimum correlation of counts and stain that decides anything."""
MIN_SPOTS = 30
MAX_DENSITY = 0.3
"""Maximum optical density that counts: darker pixels, such as folds and ink, have no more counts for it."""
_SPOT_UM = 55.0
"""Diameter of a spot, to choose a picture of fitting size where the scale is unknown; nothing is measured by it."""

WORDS: Mapping[Orientation, str] = {
    "as-given": "as they are",
    "mirror-x": "mirrored left to right",
    "mirror-y": "mirrored top to bottom",
    "turn-180": "turned by 180°",
    "swap-xy": "with x and y swapped",
    "turn-90": "turned by 90° clockwise",
    "turn-270": "turned by 90° anticlockwise",
    "swap-yx": "with x and y swapped and turned by 180°",
}
"""Description of each orientation."""
_STEPS: Mapping[Orientation, tuple[bool, tuple[bool, bool]]] = {
    "as-given": (False, (False, False)),
    "mirror-x": (False, (False, True)),
    "mirror-y": (False, (True, False)),
    "turn-180": (False, (True, True)),
    "swap-xy": (True, (False, False)),
    "turn-90": (True, (False, True)),
    "turn-270": (True, (True, False)),
    "swap-yx": (True, (True, True)),
}
"""Steps of each orientation: whether y and x are swapped, and whether each is then counted from the other side of the slide."""


@dataclass(frozen=True)
class Fit:
    """Fit of the spots in one orientation: share on tissue, and correlation r of log(1 + total counts) and stain."""

    on_tissue: float
    r: float


@dataclass(frozen=True)
class Alignment:
    """Fit of spots and slide, as they are and in the seven other orientations.

    Attributes
    ----------
    verdict
        ``fits``: clearly better than any other; ``other``: one other, ``best``, is clearly better than all; ``several``: several others are
        better, undecided which; ``unknown``: undecided, for ``reason``.
    fits
        Orientation -> its fit; empty where nothing could be measured.
    best
        The other orientation that is clearly better than all, or None.
    reason
        Reason why it is unknown, in words.
    """

    verdict: Literal["fits", "other", "several", "unknown"]
    fits: Mapping[Orientation, Fit] = field(default_factory=dict)
    best: Orientation | None = None
    reason: str = ""

    @property
    def statement(self) -> str:
        """The verdict in a sentence or two."""
        if self.verdict == "unknown":
            return f"Whether the spots lie right on the slide cannot be told: {self.reason}."
        now = self.fits["as-given"]
        others = [fit for name, fit in self.fits.items() if name != "as-given"]
        most, highest = max(fit.on_tissue for fit in others), max(fit.r for fit in others)
        here = f"{now.on_tissue:.0%} of them lie on tissue, counts follow the stain with r = {now.r:.2f}"
        if self.verdict == "fits":
            return f"The spots lie right on the slide: {here}; turned or mirrored at most {most:.0%} and {highest:.2f}."
        if self.verdict == "several":
            return (
                f"The spots do not fit the slide: {here}; turned or mirrored up to {most:.0%}, and which way is right cannot be told. Compare "
                "the positions with the slide that they were made for."
            )
        assert self.best is not None
        best = self.fits[self.best]
        return (
            f"The spots fit the slide clearly better {WORDS[self.best]}: {here} as they are, {best.on_tissue:.0%} and {best.r:.2f} so. "
            "Nothing was changed."
        )

    def facts(self) -> dict[str, object]:
        """Return the alignment in JSON types."""
        fits = {name: {"on_tissue": round(fit.on_tissue, 4), "r": round(fit.r, 4)} for name, fit in self.fits.items()}
        return {"verdict": self.verdict, "best": self.best, "statement": self.statement, "fits": fits}


def oriented(section: Section, orientation: Orientation) -> Section:
    """Return a section with its spots turned or mirrored over the slide, with a note.

    Such spots are no longer those of the store that the section was opened from, if any.

    Raises
    ------
    SectionError
        The section has no slide image, or was turned before in a way that both are none of the eight.
    """
    if orientation == "as-given":
        return section
    whole = section.whole
    size = np.array(section.slide.shape) * section.slide.pixel_size
    spots = replace(whole.spots, yx=turned_places(whole.spots.yx, size, orientation))
    outlines = whole.outlines
    if outlines is not None:
        outlines = outlines.moved(lambda ends: turned_places(ends, size, orientation))
    note = f"the spots lie on the slide {WORDS[orientation]} against what the files say, as asked"
    both = _both(whole.orientation, orientation, size)
    turned = replace(whole, spots=spots, notes=(*whole.notes, note), store=None, outlines=outlines, orientation=both)
    return turned if section.excluded is None else exclude(turned, section.excluded.regions)


def _both(first: Orientation, then: Orientation, size: ArrayLike) -> Orientation:
    """Return the orientation that two, one after the other, are; on a slide that is not square not all pairs are one."""
    points = np.array([[0.0, 0.0], [1.0, 3.0]])
    wanted = turned_places(turned_places(points, size, first), size, then)
    found = [name for name in _STEPS if np.allclose(turned_places(points, size, name), wanted)]
    if not found:
        raise SectionError(
            f"the spots lie {WORDS[first]} already, and {WORDS[then]} after it is none of the eight orientations of this slide; open the section "
            "again and give one"
        )
    return found[0]


def turned_places(yx: NDArray[np.float64], size: ArrayLike, orientation: Orientation) -> NDArray[np.float64]:
    """Return places (n, 2) on a slide of that ``size``, (height, width) in the same pixels, turned or mirrored over it."""
    swap, flips = _STEPS[orientation]
    turned = yx[:, ::-1] if swap else yx
    return np.ascontiguousarray(np.where(flips, np.asarray(size) - turned, turned))


def check_alignment(section: Section) -> Alignment:
    """Compare the fit of spots and slide as they are and in the seven other orientations.

    One is clearly better than another if more of its spots, by `SHARE_MARGIN`, lie on tissue; or, with like shares, if counts follow the stain
    with at least `MIN_R` and better by `ERRORS` standard errors.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`. A coarse picture of its slide is read.

    Raises
    ------
    SectionError
        The slide cannot be read.
    """
    reason = _unknown(section)
    if reason:
        return Alignment("unknown", reason=reason)
    fits = _fits(section)
    count = len(section.spots)
    best = next((a for a in fits if all(a == b or _clearly_better(fits[a], fits[b], count) for b in fits)), None)
    if best is not None:
        return Alignment("fits", fits) if best == "as-given" else Alignment("other", fits, best)
    now = fits["as-given"]
    if any(fit.on_tissue - now.on_tissue >= SHARE_MARGIN for fit in fits.values()):
        return Alignment("several", fits)
    return Alignment("unknown", fits, reason="turned or mirrored they would fit about as well")


def _clearly_better(one: Fit, other: Fit, count: int) -> bool:
    more = one.on_tissue - other.on_tissue
    if abs(more) >= SHARE_MARGIN:
        return more > 0
    error = math.sqrt(2 / (count - 3))
    return one.r >= MIN_R and math.atanh(min(one.r, 0.99)) - math.atanh(min(other.r, 0.99)) >= ERRORS * error


def _unknown(section: Section) -> str:
    """Return why nothing can be measured; empty where it can."""
    spots = section.spots
    if section.image is None:
        return "the section has no slide image"
    if section.expression.kind == "factors":
        return "factors stand in the place of its counts"
    if section.expression.kind == "none" or not len(spots.genes):
        return "a plain slide has no counts" if section.kind == "image" else "the section has no counts"
    if len(spots) < MIN_SPOTS:
        return f"it has {len(spots)} spots, and at least {MIN_SPOTS} are needed"
    if not _logs(spots).any():
        return "no spot has a count"
    return ""


def _logs(spots: SpotTable) -> NDArray[np.float64]:
    return np.asarray(np.log1p(np.asarray(spots.counts.sum(axis=1), dtype=np.float64).ravel()))


def _fits(section: Section) -> dict[Orientation, Fit]:
    spots, slide = section.spots, section.slide
    mpp = _scale_of(section)
    radius = max(spots.diameter, 1e-6) / 2
    with readable(slide):
        picture, step = coarse_picture(slide, mpp)
        density, _ = optical_density(np.asarray(computed(picture)[0]))
    logs = _logs(spots)
    found: dict[Orientation, Fit] = {}
    size = np.array(slide.shape) * slide.pixel_size
    for name in _STEPS:
        yx = turned_places(spots.yx, size, name)
        stain = disc_means(np.minimum(density, MAX_DENSITY), step, yx, radius)
        found[name] = Fit(float((stain >= MIN_DENSITY).mean()), _r(logs, stain))
    return found


def _scale_of(section: Section) -> float:
    return section.calibration.mpp or _SPOT_UM / max(section.spots.diameter, 1e-6)


def _r(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's correlation; 0 where one of the two is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


# ------------------------------------------------------------------------------------------------- the picture to check by


PICTURE_PX = 300
"""Longer side of the thumbnail in a check picture."""
_FEW, _MANY = (43, 103, 214), (232, 119, 34)
"""Colours of spots with few and with many counts: blue and orange, which colour-blind people tell apart."""


def check_picture(section: Section, orientation: Orientation = "as-given", side: int = PICTURE_PX) -> NDArray[np.uint8]:
    """Draw the spots over a thumbnail of the slide, in one of the eight orientations, (h, w, 3) uint8; orange spots have many counts.

    Parameters
    ----------
    section
        With a slide image.
    orientation
        Orientation of the spots, relative to the section's.
    side
        Longer side of the picture in its own pixels.
    """
    from PIL import Image, ImageDraw

    slide, spots = section.slide, section.spots
    with readable(slide):
        picture, step = coarse_picture(slide, _scale_of(section))
        pixels = np.asarray(computed(picture)[0]).clip(0, 255).astype(np.uint8)
    zoom = side / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * zoom)), max(1, round(pixels.shape[0] * zoom)))
    thumbnail = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    draw = ImageDraw.Draw(thumbnail)
    places = turned_places(spots.yx, np.array(slide.shape) * slide.pixel_size, orientation)
    yx = places / step * (np.array(size[::-1]) / pixels.shape[:2])
    radius = max(1.0, spots.diameter / 2 / step[0] * zoom)
    logs = _logs(spots)
    order = np.argsort(np.argsort(logs)) / max(len(logs) - 1, 1)
    for (y, x), share in zip(yx.tolist(), order.tolist(), strict=True):
        colour = tuple(round(few + share * (many - few)) for few, many in zip(_FEW, _MANY, strict=True))
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), outline=colour, fill=colour if radius < 3 else None
        )
    return np.asarray(thumbnail)


def write_check_picture(section: Section, path: str | Path, other: Orientation | None = None) -> None:
    """Write a PNG of the spots over the slide as they are, and beside it in another orientation.

    Raises
    ------
    SectionError
        The section has no slide image, or the file exists or cannot be written.
    """
    from PIL import Image

    shown = [check_picture(section, name, 2 * PICTURE_PX) for name in ("as-given", other) if name is not None]
    gap = np.full((shown[0].shape[0], 16, 3), 255, dtype=np.uint8)
    beside = np.concatenate([shown[0], *(part for one in shown[1:] for part in (gap, one))], axis=1)
    with new_file(user_path(path), SectionError) as draft:
        Image.fromarray(beside).save(draft, format="PNG")
