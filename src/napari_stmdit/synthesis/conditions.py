"""Conditions of the network: expression after edits, shared morphology, and encodings kept for further steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..edits import Towards
from ..expression.changes import Profile, active_edits, spot_weights
from ..expression.edits import apply_edits, edited_depths, mix_depths, whole_profile_edit
from ..expression.following import following, follows
from ..expression.genes import match_genes
from ..expression.normalise import counts_from, totals_of
from ..expression.profiles import as_profiles
from ..expression.programs import known_programs
from ..expression.regression import evenly_spaced
from ..intent import Request
from ..tissue.crops import read_patches
from ..types import Patch, Plan, Section, SpotTable
from .canvas import boxes_around
from .counterfactual import Before, follows_of, touched_rows

if TYPE_CHECKING:
    from .models import PatchModel


# How a checkpoint reads spots that are moved towards a profile or a group.
#
# The mean of the logarithms of many spots is no spot: most genes of a spot have no count, so means add up to another total than spots do,
# and an encoder, which makes profiles of one total, reads something else than the mean of what it reads of the spots. On the way there it
# reads yet others. So what it reads moves straight: from the spot's own to the mean of the target's, in proportion with the strength.


MAX_GROUP_SPOTS = 256
"""Maximum number of spots of a group to encode for their mean, evenly spaced over it."""
DRAWN = 128
"""Number of spots drawn from a profile with known spread."""
BATCH = 16


def arrivals(
    rows: NDArray[np.int64],
    sources: NDArray[np.int64],
    section: Section,
    request: Request,
    model: PatchModel,
    profiles: Mapping[str, Profile],
) -> NDArray[np.float32] | None:
    """Return the correction that is added to the encoded expression of edited spots.

    Counts can be moved to a profile's mean, but the encoding of the mean is not the mean of the encodings; this adds the difference, so that
    a spot of weight w is read as (1 - w) times its own encoding and w times that mean.

    Parameters
    ----------
    rows, sources
        (n,) rows of the section's table, and the rows at which their counts were measured.
    section, request, model
        The section, a request with edits, and the checkpoint.
    profiles
        The checkpoint's and the request's.

    Returns
    -------
    NDArray[np.float32] | None
        (n, d); None where no whole profile moves, nothing is known of its spots, or expression is encoded as tokens of genes, which have
        no mean.
    """
    spots = section.spots
    ids = spots.ids[rows].tolist()
    towards = [edit for edit in active_edits(request.edits) if isinstance(edit, Towards) and whole_profile_edit(edit)]
    targets = []
    for edit in towards:
        weights = spot_weights(edit, ids)
        if weights.any():
            mean = _mean_encoding(ids[int(weights.argmax())], edit, spots, model, profiles)
            if mean is not None:
                targets.append((edit, weights, mean))
    if not targets:
        return None
    edits = [edit for edit, _, _ in targets]
    moved = np.flatnonzero(np.any([weights > 0 for _, weights, _ in targets], axis=0))
    at, own = rows[moved], sources[moved]
    counts = apply_edits(at, spots, edits, {}, profiles, own)
    depth = edited_depths(at, spots, edits, {}, profiles, own)
    found = np.zeros((len(rows), len(targets[0][2])), dtype=np.float32)
    for start in range(0, len(moved), BATCH):
        part = slice(start, start + BATCH)
        measured = spots.counts[own[part]].astype(np.float32), spots.relative_depth[own[part]]
        names = tuple(spots.ids[own[part]].tolist())
        reading = model.encode_expression(measured[0], spots.genes, names, measured[1])
        for _, weights, mean in targets:
            share = weights[moved[part], None]
            reading = (1 - share) * reading + share * mean
        arrived = model.encode_expression(counts[part], spots.genes, names, depth[part])
        found[moved[part]] = reading - arrived
    return found


def _mean_encoding(
    name: str, edit: Towards, spots: SpotTable, model: PatchModel, profiles: Mapping[str, Profile]
) -> NDArray[np.floating] | None:
    """Return the mean encoding (d,) of a target's spots: of the group's own, as stored with a profile, or of spots drawn from it."""
    if edit.target_profile is None:
        group = spots.rows(edit.target_spots)
        group = group[evenly_spaced(len(group), MAX_GROUP_SPOTS)]
        counts, depth = spots.counts[group].astype(np.float32), spots.relative_depth[group]
        names = spots.ids[group].tolist()
    else:
        profile = profiles[edit.target_profile]
        if profile.encoding is not None:
            return profile.encoding
        if profile.spread is None or profile.depth is None:
            return None
        counts = drawn_spots(profile, spots)
        depth, names = np.full(counts.shape[0], profile.depth, np.float32), [name] * counts.shape[0]
    sums = []
    for start in range(0, len(names), BATCH):
        part = slice(start, start + BATCH)
        encoded = model.encode_expression(counts[part], spots.genes, tuple(names[part]), depth[part])
        if encoded.ndim != 2:
            return None
        sums.append(encoded.sum(axis=0, dtype=np.float64))
    return np.asarray(np.sum(sums, axis=0) / len(names))


def drawn_spots(profile: Profile, spots: SpotTable) -> csr_matrix:
    """Draw spots (n, g) with a profile's mean and spread of each gene, and its total.

    A gene is at one level in a share of the spots and absent in the others, the same at every call.
    """
    assert profile.spread is not None and profile.depth is not None
    match = match_genes(profile.genes, spots.genes)
    there = match.columns >= 0
    mean, spread = (part[there].astype(np.float64) for part in (profile.mean, profile.spread))
    # the two-point distribution with this mean and spread: level l in a share p has mean p l and variance p (1 - p) l^2
    level = mean + spread**2 / np.maximum(mean, 1e-9)
    share = np.where(mean > 0, mean / np.maximum(level, 1e-9), 0)
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(DRAWN) for _ in range(len(mean))], axis=1)
    levels = np.where((ranks + 0.5) / DRAWN < share, level, 0)
    totals = totals_of(spots.counts.astype(np.float32))
    usual = float(np.median(totals[totals > 1])) if (totals > 1).any() else 1.0
    columns = np.broadcast_to(match.columns[there], levels.shape)
    counts = counts_from(levels, usual * np.exp(profile.depth))
    index = np.broadcast_to(np.arange(DRAWN)[:, None], levels.shape)
    shape = (DRAWN, len(spots.genes))
    return csr_matrix((counts.ravel(), (index.ravel(), columns.ravel())), shape=shape).astype(np.float32)


# Encoded conditions of many windows, kept for the next step without filling the memory.


MAX_BYTES = 256 * 2**20
"""Maximum size in memory; larger tables go to a temporary file."""


class EncodedRows:
    """Table of float32 rows, filled once in any order and read many times.

    A table of more than `MAX_BYTES` is an unnamed temporary file, which vanishes with the process.

    Parameters
    ----------
    count
        Number of rows.
    most_bytes
        Maximum size in memory.
    """

    def __init__(self, count: int, most_bytes: int = MAX_BYTES) -> None:
        self._count, self._most = count, most_bytes
        self._filled = np.zeros(count, dtype=bool)
        self._shape: tuple[int, ...] | None = None
        self._memory: NDArray[np.float32] | None = None
        self._file: Any = None

    def has(self, first: int, stop: int) -> bool:
        """Return whether the rows from ``first`` to before ``stop`` are filled."""
        return bool(self._filled[first:stop].all())

    def put(self, first: int, rows: NDArray[np.float32]) -> None:
        """Store rows from ``first`` on."""
        if self._shape is None:
            self._shape = rows.shape[1:]
            size = self._count * self._row_bytes
            if size <= self._most:
                self._memory = np.zeros((self._count, *self._shape), dtype=np.float32)
            else:
                self._file = tempfile.TemporaryFile(prefix="stmdit-")  # closed with the table
        stop = first + len(rows)
        if self._memory is not None:
            self._memory[first:stop] = rows
        else:
            self._file.seek(first * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._filled[first:stop] = True

    def get(self, first: int, stop: int) -> NDArray[np.float32]:
        """Return the rows from ``first`` to before ``stop``."""
        assert self._shape is not None  # they were put
        if self._memory is not None:
            return self._memory[first:stop]
        self._file.seek(first * self._row_bytes)
        data = bytearray(self._file.read((stop - first) * self._row_bytes))
        return np.frombuffer(data, dtype=np.float32).reshape(stop - first, *self._shape)

    def close(self) -> None:
        """Release the rows."""
        self._memory = None
        if self._file is not None:
            self._file.close()

    @property
    def _row_bytes(self) -> int:
        assert self._shape is not None
        return 4 * int(np.prod(self._shape, dtype=np.int64))


# From a plan to what the network is conditioned on: expression rows after edits, and shared morphology.


MEAN_OF = 64
"""Number of spots, evenly spaced over the table, whose crops give the section's mean morphology."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of all patches of a run.

    Attributes
    ----------
    counts
        (n, g) sparse, after edits, one row per patch of the plan or per spot that its windows read; None for null expression.
        Encoded by batch, as gene tokens take a megabyte a spot.
    sources
        (n,) id of the spot at which each row of ``counts`` was measured.
    morphology
        (tokens, d) where all patches share it; None for null and where each patch has its own.
    depth
        (n,) relative depth of the rows of ``counts``, after edits; None without counts.
    before
        For an edit of real tissue: the measured rows, and the map from expression to morphology.
    arrival
        (n, d) correction of the encoding of each row, see `arrivals`; None: none.
    """

    counts: csr_matrix | None
    sources: tuple[str, ...]
    morphology: NDArray[np.float32] | None
    depth: NDArray[np.float32] | None
    before: Before | None = None
    arrival: NDArray[np.float32] | None = None

    def measured(self) -> Conditions:
        """Return the conditions before the edits."""
        if self.before is None:
            return self
        return replace(self, counts=self.before.counts, depth=self.before.depth, before=None, arrival=None)

    def expression(self, patches: Sequence[Patch], section: Section, model: PatchModel) -> NDArray[np.float32] | None:
        """Encode the expression of patches as (b, d) or (b, tokens, d); None for null."""
        if self.counts is None or self.depth is None:
            return None
        rows = [patch.index for patch in patches]
        sources = tuple(self.sources[row] for row in rows)
        encoded = model.encode_expression(self.counts[rows], section.spots.genes, sources, self.depth[rows])
        return encoded if self.arrival is None else encoded + self.arrival[rows]

    def mixed(
        self, mix: csr_matrix, nearest: Sequence[int], section: Section, model: PatchModel
    ) -> NDArray[np.float32] | None:
        """Encode the expression of places between spots.

        Parameters
        ----------
        mix
            (b, n) weights of the rows of ``counts``; a place's weights sum to one.
        nearest
            (b,) row with the largest weight, whose id embeddings are looked up by.
        section, model
            The section, and the checkpoint that encodes.
        """
        if self.counts is None or self.depth is None:
            return None
        sources = tuple(self.sources[row] for row in nearest)
        counts, depth = mixed_counts(mix, self.counts), mix_depths(mix, self.depth)
        encoded = model.encode_expression(counts, section.spots.genes, sources, depth)
        return encoded if self.arrival is None else encoded + np.asarray(mix @ self.arrival, dtype=np.float32)


def mixed_counts(mix: csr_matrix, counts: csr_matrix) -> csr_matrix:
    """Return the (b, g) counts of places between spots, by (b, n) weights, which sum to one, of the spots' (n, g) counts.

    Shares of the total and totals are averaged separately, so that deep spots do not dominate the profile of a place.
    """
    totals = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1.0)
    shares = mix.multiply(1 / totals[None]).tocsr() @ counts
    return shares.multiply((mix @ totals)[:, None]).tocsr().astype(np.float32)


def condition_rows(plan: Plan, section: Section, model: PatchModel) -> Conditions:
    """Apply the edits to the expression of every patch of a plan, and encode the morphology they share."""
    request, spots, rows = plan.request, section.spots, spot_rows(plan)
    morphology = _shared_morphology(plan, section, model)
    if not plan.has_expression:
        return Conditions(None, (), morphology, None)
    known = {**model.profiles, **as_profiles(request.profiles)}
    counts, sources = conditioned_counts(rows, section, request, model.profiles, plan.card.genes or None)
    depth = edited_depths(rows, spots, request.edits, known_programs(request.programs), known, sources)
    arrival = arrivals(rows, sources, section, request, model, known)
    conditions = Conditions(counts, tuple(spots.ids[sources].tolist()), morphology, depth, arrival=arrival)
    if not plan.counterfactual:
        return conditions
    own, measured = spots.counts[rows].astype(np.float32), spots.relative_depth[rows]
    touched = touched_rows(own, counts, measured, depth)
    before = Before(own, measured, touched, follows_of(section, plan.card, model))
    return replace(conditions, before=_with_trend(before, plan, section, model))


def _with_trend(before: Before, plan: Plan, section: Section, model: PatchModel) -> Before:
    """Add how far edits that others follow move the factors of the section's expression, and the conditions after all other edits."""
    request, spots, rows = plan.request, section.spots, spot_rows(plan)
    if before.follows.trend is None:
        return before
    edits = active_edits(request.edits)
    along = following(rows, spots.ids[rows].tolist(), spots, edits, known_programs(request.programs))
    if along is None:
        return before
    others = tuple(edit for edit in edits if not follows(edit))
    alone = replace(plan, request=request.model_copy(update={"edits": others}), counterfactual=False)
    return replace(before, along=along.moves(), others=condition_rows(alone, section, model) if others else None)


def shuffled_rows(count: int, seed: int) -> NDArray[np.int64]:
    """Return a derangement of ``count`` rows: the within-section shuffled control."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def conditioned_counts(
    rows: NDArray[np.int64],
    section: Section,
    request: Request,
    profiles: Mapping[str, Profile],
    checkpoint_genes: Sequence[str] | None = None,
) -> tuple[csr_matrix, NDArray[np.int64]]:
    """Return the counts of some spots after a request's edits.

    Parameters
    ----------
    rows
        (n,) rows of the section's table.
    section, request
        The section, and a request whose expression is not null.
    profiles
        The checkpoint's, which edits may move towards; the request's own are added.
    checkpoint_genes
        Genes that may follow an edit, see `apply_edits`; None: all.

    Returns
    -------
    tuple
        (n, g) sparse float32 counts, and the (n,) rows they were measured at: ``rows``, but for the shuffled control.
    """
    sources = rows
    if request.expression == "shuffled":
        sources = shuffled_rows(len(section.spots), request.seed)[rows]
    programs, known = known_programs(request.programs), {**profiles, **as_profiles(request.profiles)}
    return apply_edits(rows, section.spots, request.edits, programs, known, sources, checkpoint_genes), sources


def spot_rows(plan: Plan) -> NDArray[np.int64]:
    """Return the rows of the section's table in `Conditions.counts`, in order."""
    if plan.windows is not None:
        return np.unique(plan.windows.rows)
    return np.array([patch.row for patch in plan.patches], dtype=np.int64)


def _shared_morphology(plan: Plan, section: Section, model: PatchModel) -> NDArray[np.float32] | None:
    if plan.request.morphology == "own" or not plan.has_morphology:
        return None
    rows, boxes = shared_morphology_boxes(plan, section)
    crops = read_patches(section.slide, boxes, plan.card.patch_px)
    names = tuple(section.spots.ids[rows].tolist())
    shared: NDArray[np.float32] = model.encode_morphology(crops, names).mean(axis=0)
    return shared


def shared_morphology_boxes(
    plan: Plan, section: Section
) -> tuple[NDArray[np.int64], list[tuple[float, float, float, float]]]:
    """Return rows of the spots whose crops give the shared morphology (``mean`` or a spot's), and the boxes to read."""
    spots, card = section.spots, plan.card
    if plan.request.morphology == "mean":
        rows = evenly_spaced(len(spots), MEAN_OF)
    else:
        rows = spots.rows([plan.request.morphology])
    boxes = boxes_around(spots.yx[rows], card.patch_px, card.patch_mpp / section.mpp)
    return rows, [box.source for box in boxes]
