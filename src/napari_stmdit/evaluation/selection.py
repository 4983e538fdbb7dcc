"""Effect of an edit over all spots of a result: before, after, difference with interval, and change by chance alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, StoreError
from ..expression.regression import evenly_spaced
from ..files import user_path
from ..intent import Request
from ..progress import CancelToken, Progress
from ..regions import SpotList
from ..storage.atomic import new_file
from ..synthesis.canvas import MemoryCanvas
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import NO_PATCH, Finished, Result, finished
from ..synthesis.session import Session
from ..synthesis.stored import StoredResult
from ..synthesis.variants import baseline_of, noise_key, sample_seed
from ..text import capitalised, counted
from ..tissue.crops import read_patches
from ..types import Section
from .measures import STATISTICS, statistics_of
from .statistics import DRAWS, Interval, mean_draws, spot_weights

MAX_SPOTS = 400
"""Maximum number of spots to measure, evenly spaced in the result's order."""
MAX_CHANCE_SPOTS = 12
"""Maximum number of spots synthesized with two seeds to estimate chance."""
VISIBLE = 1.0
"""Smallest visible mean change of a pixel, in grey levels of 255: rounding to 8 bit moves a pixel by up to half of one."""
MEASURES = {"haematoxylin": 3, "nuclei": 0, "blank": 3}
"""Keys of `STATISTICS` to show -> digits after the point. Eosin by fixed stain vectors is negative on some slides."""
FRESH = (
    "A part of the noise is fresh, so the difference from the slide is of the edit and of that noise together, and chance is not told apart from "
    "the edit. To see the edit alone, compare with the same fresh noise at strength 0, or take the slide's own noise."
)
NO_SEED = (
    "The edit itself has no chance in it: from the tissue's own noise, the same spots without an edit are the slide, so their difference "
    "is 0. Chance is what another seed alone changes in new tissue of such spots."
)
_COLUMNS = (
    "measure",
    "unit",
    "before",
    "after",
    "difference",
    "low_95",
    "high_95",
    "spots",
    "chance_95",
    "beyond_chance",
)

Array = NDArray[np.float64]
Patches = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One measure over the spots.

    Attributes
    ----------
    key, name, digits
        Of the measure; its name has the unit.
    before, after
        Means over the spots; None for the change of a pixel, which has neither.
    change
        Mean difference, with its 95 % interval over spots.
    chance
        Half width, about 0, of the 95 % range of differences by another seed alone over as many spots; None where it was not estimated.
    """

    key: str
    name: str
    digits: int
    before: float | None
    after: float | None
    change: Interval
    chance: float | None = None

    @property
    def beyond_chance(self) -> bool | None:
        """Whether the difference exceeds 95 % of those by chance; None where chance is not known."""
        return None if self.chance is None else bool(abs(self.change.value) > self.chance)

    @property
    def words(self) -> str:
        """The row in a sentence."""

        def number(value: float) -> str:
            return f"{value:,.{self.digits}f}"

        low, high = self.change.low, self.change.high
        interval = f" (95\u00a0%: {number(low)} to {number(high)})" if self.change.n > 1 else ""
        if self.before is None or self.after is None:
            text = f"{self.name}: {number(self.change.value)}{interval}"
            return text if self.chance is None else f"{text}; another seed alone: {number(self.chance)}"
        sign = "+" if self.change.value >= 0 else ""
        text = f"{self.name}: {number(self.before)} → {number(self.after)}, {sign}{number(self.change.value)}{interval}"
        if self.chance is None:
            return text
        said = "more than chance" if self.beyond_chance else "within chance"
        if self.beyond_chance and low <= 0 <= high:
            said += ", but not the same way at all spots"
        return f"{text}; {said} (±\u00a0{number(self.chance)})"


@dataclass(frozen=True)
class EditEffect:
    """Effect of an edit over the spots of a result.

    Attributes
    ----------
    rows
        One for each measure; the first is the mean change of a pixel, in grey levels.
    spots, of
        Number of spots measured, and of the result.
    before
        Description of the baseline.
    chance_spots
        Number of spots synthesized with two seeds; 0 where chance was not estimated.
    edited_tissue
        Whether real tissue was edited, so that the edit itself has no chance in it.
    fresh_noise
        Share of its noise that was fresh: what is said of an edit of real tissue does not hold then.
    """

    rows: tuple[Row, ...]
    spots: int
    of: int
    before: str
    chance_spots: int = 0
    edited_tissue: bool = False
    fresh_noise: float = 0.0

    @property
    def visible(self) -> bool:
        """Whether the mean change of pixels is visible."""
        return self.rows[0].change.value >= VISIBLE

    @property
    def words(self) -> str:
        """The answer first, then a line for each measure, and the role of chance."""
        change = self.rows[0].change.value
        seen = "" if self.visible else ": not visible"
        spots = counted(self.spots, "spot")
        over = spots if self.spots == self.of else f"{self.spots:,} of {counted(self.of, 'spot')}, evenly taken"
        lines = [f"Against {self.before}, pixels change by {change:.1f} of 255 grey levels on average{seen} ({over})."]
        lines += [row.words for row in self.rows[1:]]
        if self.chance_spots:
            chance = self.rows[0].chance or 0.0
            lines.append(
                f"Another seed alone changes pixels by {chance:.1f} ({counted(self.chance_spots, 'spot')}, two seeds)."
            )
            if self.edited_tissue and not self.fresh_noise:
                lines.append(NO_SEED)
        if self.edited_tissue and self.fresh_noise:
            lines.append(FRESH)
        if self.spots < 5:
            few = "One spot has no interval" if self.spots == 1 else "So few spots tell little: intervals are rough"
            lines.append(f"{few}.")
        return "\n".join(lines)

    @property
    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in self.rows:
            name, _, unit = row.name.partition(" (")
            change = row.change.facts
            values = [row.before, row.after, change["value"], change["low"], change["high"], row.change.n, row.chance]
            cells = ["" if value is None else round(value, 5) for value in values]
            beyond = "" if row.beyond_chance is None or row.before is None else str(row.beyond_chance).lower()
            writer.writerow([name, unit.removesuffix(")"), *cells, beyond])
        return text.getvalue()

    def write_csv(self, path: str | Path) -> Path:
        """Write the table; nothing is overwritten.

        Raises
        ------
        StoreError
            The path is taken, or cannot be written.
        """
        file = user_path(path)
        with new_file(file) as draft:
            draft.write_bytes(self.table.encode())
        return file

    @property
    def facts(self) -> dict[str, Any]:
        """The effect for the result's record, in JSON types."""
        return {
            "spots": self.spots,
            "of": self.of,
            "before": self.before,
            "chance_spots": self.chance_spots,
            "edited_tissue": self.edited_tissue,
            "fresh_noise": self.fresh_noise,
            "rows": [
                {
                    "key": row.key,
                    "before": _rounded(row.before),
                    "after": _rounded(row.after),
                    "change": row.change.facts,
                    "chance": _rounded(row.chance),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> EditEffect | None:
        """Return the effect in a result's record; None where there is none that can be read."""
        try:
            facts = dict(record["effect"])
            rows = []
            for one in facts["rows"]:
                name, digits = _named(str(one["key"]))
                rows.append(
                    Row(one["key"], name, digits, one["before"], one["after"], _interval(one["change"]), one["chance"])
                )
            measured, of, before = int(facts["spots"]), int(facts["of"]), str(facts["before"])
            chance_spots, edited = int(facts["chance_spots"]), bool(facts["edited_tissue"])
            fresh = float(facts.get("fresh_noise", 0.0))
            return cls(tuple(rows), measured, of, before, chance_spots, edited, fresh) if rows else None
        except (KeyError, TypeError, ValueError):
            return None

    def recorded_in(self, result: Result) -> Result:
        """Return the result with this effect in its record, which a store then keeps."""
        return replace(result, provenance={**result.provenance, "effect": self.facts})


@dataclass(frozen=True)
class Chance:
    """Change by another seed alone at m spots: differences of the measures (m, k), and mean changes of a pixel (m,)."""

    differences: Array = field(repr=False)
    pixels: Array = field(repr=False)


def measure_edit(
    result: Result | StoredResult,
    baseline: Result | StoredResult | None = None,
    *,
    model: PatchModel | None = None,
    draws: int = DRAWS,
) -> EditEffect:
    """Measure the effect of an edit over all spots of a result.

    Parameters
    ----------
    result
        Result with edits, of a run or from a store. Edited tissue is compared with its slide.
    baseline
        For new tissue: the result of the same request without its edits.
    model
        The checkpoint; if given, up to `MAX_CHANCE_SPOTS` spots are synthesized with two seeds to estimate chance.
    draws
        Bootstrap samples of the spots.

    Returns
    -------
    EditEffect
        With ``words``, a ``table`` as CSV, ``write_csv(path)``, and ``recorded_in(result)``.

    Raises
    ------
    StmditError
        The result has no edits or no whole patch, its slide cannot be read, or the baseline is missing or another one.

    Examples
    --------
    >>> effect = st.measure_edit(result)
    >>> effect.words.startswith("Against the slide, pixels change by")
    True
    >>> effect.write_csv("effect.csv").name
    'effect.csv'
    """
    effect = _measured(result, baseline, draws)
    if model is None or effect.fresh_noise:
        return effect
    known = [chance for chance, _ in chance_steps(result, model) if chance is not None]
    return with_chance(effect, known[0]) if known else effect


def _measured(result: Result | StoredResult, baseline: Result | StoredResult | None, draws: int) -> EditEffect:
    made = finished(result)
    if not any(edit.enabled for edit in made.request.edits):
        raise RequestError(
            [("edits", f"{made.name} has no edits that are switched on, so there is no effect to measure")]
        )
    if not len(made):
        raise StoreError(f"{made.name}: {NO_PATCH if made.request.mode == 'continuous' else 'no patch was finished'}")
    places = evenly_spaced(len(made), MAX_SPOTS).tolist()
    edited = bool(made.provenance.get("counterfactual"))
    after = np.stack([made.pixels(at) for at in places])
    before, words = _slide(made, places) if edited else _baseline(made, baseline, places)
    um = made.patch_px * made.patch_mpp
    pixels = _pixel_change(before, after)
    first, second = statistics_of(before, um), statistics_of(after, um)
    weights = spot_weights(np.zeros(len(places), dtype=np.int64), draws)
    name, digits = _named("pixels")
    rows = [Row("pixels", name, digits, None, None, _as_recorded(mean_draws(pixels, weights)))]
    for key in MEASURES:
        column = list(STATISTICS).index(key)
        a, b = first[:, column], second[:, column]
        name, digits = _named(key)
        means = (_rounded(float(a.mean())), _rounded(float(b.mean())))
        rows.append(Row(key, name, digits, *means, _as_recorded(mean_draws(b - a, weights))))
    fresh = made.request.fresh_noise if edited else 0.0
    return EditEffect(tuple(rows), len(places), len(made), words, edited_tissue=edited, fresh_noise=fresh)


def chance_steps(
    result: Result | StoredResult, model: PatchModel, cancel: CancelToken | None = None
) -> Iterator[tuple[Chance | None, Progress]]:
    """Synthesize spots of a result without its edits with two seeds; yield the chance, None until it is known.

    Parameters
    ----------
    result
        Result with edits.
    model
        The checkpoint that made it.
    cancel
        Asked at every denoising step; once cancelled, chance stays unknown.

    Raises
    ------
    StmditError
        The checkpoint is another one, or the spots cannot be synthesized.
    """
    made = finished(result)
    sha = dict(made.provenance.get("checkpoint") or {}).get("sha256")
    if sha not in (None, model.provenance.get("sha256")):
        raise RequestError(
            [("checkpoint", f"{made.name} was made with another checkpoint; load that one to compare with chance")]
        )
    if not len(made):
        raise StoreError(f"{made.name} has no whole patch to compare with chance")
    ids = tuple(made.patches[at].spot_id for at in evenly_spaced(len(made), MAX_CHANCE_SPOTS).tolist())
    asked = baseline_of(made.request).model_copy(update={"region": SpotList(ids=ids), "mode": "spots"})
    found: list[Patches] = []
    for number in range(2):
        request = asked.model_copy(update={"seed": sample_seed(asked.seed, number)})
        for patches, progress in _synthesized(request, made.section, model, cancel):
            done = number * len(ids) + progress.patches_done
            yield None, replace(progress, patches_done=done, patches_total=2 * len(ids))
            if patches is not None:
                found.append(patches)
        if len(found) <= number:
            return
    um = model.card.patch_um
    differences = statistics_of(found[1], um) - statistics_of(found[0], um)
    yield (
        Chance(differences, _pixel_change(*found)),
        replace(progress, patches_done=2 * len(ids), patches_total=2 * len(ids)),
    )


def with_chance(effect: EditEffect, chance: Chance, draws: int = DRAWS) -> EditEffect:
    """Return the effect with the change by chance alone.

    Two seeds are exchangeable, so each spot's difference may equally have the other sign: means of the differences under random signs are the
    null distribution (a sign-flip test). It is scaled from m spots to the number of the effect.
    """
    if effect.fresh_noise:  # both are in the difference, and the words say so
        return effect
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(draws, len(chance.pixels)))
    scale = np.sqrt(len(chance.pixels) / effect.spots)
    rows = [replace(effect.rows[0], chance=_rounded(float(chance.pixels.mean())))]
    for row in effect.rows[1:]:
        values = chance.differences[:, list(STATISTICS).index(row.key)]
        limit = np.quantile(np.abs(signs @ values) / len(values), 0.95)
        rows.append(replace(row, chance=_rounded(float(limit * scale))))
    return replace(effect, rows=tuple(rows), chance_spots=len(chance.pixels))


def _synthesized(
    request: Request, section: Section, model: PatchModel, cancel: CancelToken | None
) -> Iterator[tuple[Patches | None, Progress]]:
    plan = make_plan(section, request, model)
    session = Session(plan, section, model, MemoryCanvas(plan.frame), cancel=cancel)
    progress: Progress | None = None
    for event in session.steps():
        if isinstance(event, Progress):
            progress = event
            yield None, event
    result = session.result()
    if result.complete and progress is not None:
        yield result.patches, progress


def _slide(made: Finished, places: Sequence[int]) -> tuple[Patches, str]:
    image = made.section.image
    if image is None:
        raise StoreError(f"{made.section.name} has no slide image that {made.name} could be compared with")
    if (made.section.calibration.mpp or 0) * image.pixel_size > 1.5 * made.patch_mpp:
        raise StoreError(
            f"the slide image of {made.section.name} is coarser than {made.name}; show where the full-resolution one is"
        )
    return read_patches(image, [made.patches[at].source_box for at in places], made.patch_px), "the slide"


def _baseline(made: Finished, baseline: Result | StoredResult | None, places: Sequence[int]) -> tuple[Patches, str]:
    if baseline is None:
        raise RequestError(
            [
                (
                    "baseline",
                    f"{made.name} is new tissue: give its baseline, the same request without its edits, to see what the edits change",
                )
            ]
        )
    base = finished(baseline)
    if noise_key(base.request, base.provenance) != noise_key(made.request, made.provenance, edited=False):
        raise RequestError([("baseline", f"{base.name} is not the same request as {made.name} without its edits")])
    at = {patch.spot_id: place for place, patch in enumerate(base.patches)}
    wanted = [made.patches[place].spot_id for place in places]
    if missing := [spot for spot in wanted if spot not in at]:
        raise RequestError([("baseline", f"{base.name} lacks {counted(len(missing), 'spot')} of {made.name}")])
    return np.stack([base.pixels(at[spot]) for spot in wanted]), "the same tissue without the edit"


def _pixel_change(a: Patches, b: Patches) -> Array:
    """Return the mean change of a pixel (n,), in grey levels."""
    return np.array([np.abs(x.astype(np.int16) - y).mean(dtype=np.float64) for x, y in zip(a, b, strict=True)])


def _named(key: str) -> tuple[str, int]:
    if key == "pixels":
        return "Change of a pixel (grey levels)", 1
    name = STATISTICS[key]
    return {"nuclei": "Nuclei (per mm²)"}.get(key, capitalised(name)), MEASURES[key]


def _interval(facts: Mapping[str, Any]) -> Interval:
    value, low, high = (np.nan if facts[key] is None else float(facts[key]) for key in ("value", "low", "high"))
    return Interval(value, low, high, int(facts["n"]))


def _as_recorded(interval: Interval) -> Interval:
    """Return an interval as a record keeps it, rounded."""
    return _interval(interval.facts)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 5)
