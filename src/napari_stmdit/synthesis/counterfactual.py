"""Edits of real tissue: the spots they reach, how morphology follows, and fading at a patch's rim."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..encoders.morphology_map import (
    MIN_SPOTS,
    MorphologyMap,
    MorphologyTrend,
    fit_morphology_map,
    fit_morphology_trend,
    vectors_of,
)
from ..expression.covariation import covariation_of
from ..expression.regression import evenly_spaced
from ..intent import CheckpointCard
from ..progress import drained, finish
from ..storage.fingerprint import PerObject, of_json
from ..tissue.crops import read_patches
from ..tissue.identity import section_identity
from ..types import Section
from .canvas import boxes_around

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from ..types import Genes
    from .conditions import Conditions
    from .models import PatchModel

MAX_MAP_SPOTS, MAX_FURTHER_SPOTS = 400, 200
"""Maximum number of spots to fit a map to, and to fit a checkpoint's further on, evenly spaced over the table: a large encoder takes seconds
for a crop."""
MAP_BATCH = 16
RIM = 0.12
"""Share of a patch's side over which a change fades out at its rim."""


class Encoders(Protocol):
    """Part of a `PatchModel` that the fit of a map needs."""

    def encode_expression(
        self, counts: Any, genes: Genes, spots: Sequence[str] = (), depth: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encode counts (n, g)."""

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode crops (n, patch_px, patch_px, 3)."""


@dataclass(frozen=True)
class Follows:
    """How a section's morphology follows its expression: the map of single spots, and its trend along what varies together, if it has one."""

    map: MorphologyMap
    trend: MorphologyTrend | None = None

    def moved(
        self,
        morphology: NDArray[np.float32],
        measured: NDArray[np.float32],
        edited: NDArray[np.float32],
        along: NDArray[np.float64] | None = None,
        others: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the morphology (b, t, dm) of places after edits.

        Parameters
        ----------
        morphology, measured
            As measured, and the expression, encoded.
        edited
            Expression after all edits, encoded.
        along
            (b, k) change of each factor by edits that others follow; None: there are none.
        others
            Expression after all other edits, encoded; None where all edits are followed.
        """
        if along is None or self.trend is None:
            return morphology + self.map.delta(measured, edited)
        moved = self.trend.moved(morphology, along)
        return moved if others is None else moved + self.map.delta(measured, others)


@dataclass(frozen=True)
class Before:
    """Measured conditions, before an edit.

    Attributes
    ----------
    counts, depth
        (n, g) counts and (n,) relative depth, in the rows of `Conditions` after the edits.
    touched
        (n,) bool: rows that the edits change.
    follows
        How morphology follows expression.
    along
        (n, k) change of each factor of the section's expression by edits that others follow; None: there are none, or the section's
        morphology has no trend.
    others
        Conditions after the other edits; None where there are none, or no ``along``.
    """

    counts: csr_matrix
    depth: NDArray[np.float32]
    touched: NDArray[np.bool_]
    follows: Follows
    along: NDArray[np.float64] | None = None
    others: Conditions | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences on how morphology follows these edits."""
        if self.along is None or self.follows.trend is None:
            return (self.follows.map.words,)
        return (
            (self.follows.trend.words,) if self.others is None else (self.follows.trend.words, self.follows.map.words)
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of how morphology follows for a result's record, in JSON types."""
        trend = {} if self.along is None or self.follows.trend is None else {"trend": self.follows.trend.facts()}
        return {"map": {**self.follows.map.facts(), "statement": " ".join(self.words)}, **trend}


def content_key(*parts: NDArray[Any] | csr_matrix) -> str:
    """Return a hash of arrays and sparse rows. Embeddings would not do: their last bits depend on the batch."""
    digest = hashlib.sha256()
    for part in parts:
        for array in (part,) if isinstance(part, np.ndarray) else (part.indptr, part.indices, part.data):
            digest.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def touched_rows(
    before: csr_matrix, after: csr_matrix, depth_before: NDArray[np.float32], depth_after: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return which rows (n,) of two tables of counts, or their depths, differ."""
    changed = abs(after - before)
    changed.eliminate_zeros()
    return np.asarray((np.diff(changed.tocsr().indptr) > 0) | (depth_before != depth_after), dtype=bool)


Encoded = dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""First row of a batch of spots -> its expression (n, d) and morphology (n, tokens, d)."""


def follow_steps(section: Section, card: CheckpointCard, model: PatchModel) -> Generator[str, None, Follows]:
    """Return how morphology follows expression in a section; it is fitted once and kept with the checkpoint.

    Before each batch of spots that is read for it, a sentence says how far it is. Whoever ends it there loses nothing: what is encoded is
    kept with the checkpoint for the next time.
    """
    stored: MorphologyMap | None = getattr(model, "morphology_map", None)
    # a synthesized section holds no tissue of its own to learn from, and a small one too little: no crop is read
    if stored is not None and (section.synthetic or len(section.spots) < MIN_SPOTS):
        return Follows(stored)
    kept: dict[str, Follows] = vars(model).setdefault("fitted", {})
    key, most = map_key(section, card, model), _most_spots(model)
    if key not in kept:
        known: dict[str, Encoded] = vars(model).setdefault("encoded_spots", {})
        encoded = yield from encoding_steps(section, card, model, most, known.setdefault(key, {}))
        together, rows = covariation_of(section.spots), evenly_spaced(len(section.spots), most)
        trend = None if together is None else fit_morphology_trend(together.scores(rows), encoded[1])
        kept[key] = Follows(section_map(model, *encoded), trend)
        known.pop(key, None)
    return kept[key]


follows_of = drained(follow_steps, "follows_of")


def map_key(section: Section, card: CheckpointCard, model: PatchModel) -> str:
    """Return a hash of what a section's map is fitted on: its spots, their counts, and the slide around those that are read."""
    known: dict[tuple[object, ...], str] = _map_keys.get(section, dict)
    asked = (card.patch_px, card.patch_mpp, _most_spots(model))
    if asked not in known:
        read = section.spots.yx[map_rows(section, model)]
        boxes = [box.source for box in boxes_around(read, card.patch_px, card.patch_mpp / section.mpp)]
        known[asked] = of_json(section_identity(section, boxes, card.patch_px))
    return known[asked]


def map_rows(section: Section, model: PatchModel) -> NDArray[np.int64]:
    """Return the rows of a section's spots that its map is fitted on."""
    return evenly_spaced(len(section.spots), _most_spots(model))


def _most_spots(model: PatchModel) -> int:
    return MAX_MAP_SPOTS if getattr(model, "morphology_map", None) is None else MAX_FURTHER_SPOTS


_map_keys = PerObject()


def section_map(
    model: PatchModel, expression: NDArray[np.float32], morphology: NDArray[np.float32], yx: NDArray[np.float64]
) -> MorphologyMap:
    """Return the checkpoint's map fitted further on spots of a section, or one fitted on them alone where it has none."""
    stored: MorphologyMap | None = getattr(model, "morphology_map", None)
    if stored is None:
        return fit_morphology_map(expression, morphology, yx=yx)
    return stored.fitted_further(expression, morphology, yx)


def fitted_map(sections: Sequence[Section], card: CheckpointCard, model: Encoders) -> MorphologyMap:
    """Fit the map on spots of some sections, with the conditions of a run: their own crops, and counts as measured.

    It is cross-validated on whole sections where there are three or more, else on blocks of neighbours.
    """
    parts = [finish(encoding_steps(section, card, model)) for section in sections]
    expression, morphology, yx = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    numbers = np.repeat(np.arange(len(parts)), [len(own) for _, _, own in parts])
    return fit_morphology_map(expression, morphology, sections=numbers, yx=yx)


def encoding_steps(
    section: Section, card: CheckpointCard, model: Encoders, most: int = MAX_MAP_SPOTS, kept: Encoded | None = None
) -> Generator[str, None, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]]:
    """Return expression, morphology and positions of at most ``most`` spots of a section.

    Batches in ``kept`` are not read again, and the others are put there. Before each of these, a sentence says how far it is.
    """
    spots, kept = section.spots, {} if kept is None else kept
    rows = evenly_spaced(len(section.spots), most)
    boxes = boxes_around(spots.yx[rows], card.patch_px, card.patch_mpp / section.mpp)
    for start in range(0, len(rows), MAP_BATCH):
        if start in kept:
            continue
        yield f"Reading the tissue of this section: {start} of {len(rows)} spots"
        own = rows[start : start + MAP_BATCH]
        names = tuple(spots.ids[own].tolist())
        crops = read_patches(section.slide, [b.source for b in boxes[start : start + MAP_BATCH]], card.patch_px)
        counts = spots.counts[own].astype(np.float32)
        expression = vectors_of(model.encode_expression(counts, spots.genes, names, spots.relative_depth[own]))
        kept[start] = expression, model.encode_morphology(crops, names)
    expression, morphology = (np.concatenate(parts) for parts in zip(*(kept[k] for k in sorted(kept)), strict=True))
    return expression, morphology, spots.yx[rows]


@lru_cache(maxsize=8)
def taper(side: int) -> NDArray[np.float32]:
    """Return the (side, side) weight of a change: 1 inside, falling smoothly to 0 at the rim."""
    rim = RIM * side
    middle = np.arange(side) + 0.5
    rise = np.clip(np.minimum(middle, side - middle) / rim, 0, 1)
    smooth = rise**2 * (3 - 2 * rise)
    return np.asarray(smooth[:, None] * smooth[None], dtype=np.float32)


def fade_rim(real: NDArray[np.uint8], edited: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fade edited patches (b, p, p, 3) into the real ones at their rim, so that none has a visible frame."""
    change = edited.astype(np.float32) - real
    return np.asarray(np.rint(real + taper(real.shape[1])[..., None] * change), dtype=np.uint8)
