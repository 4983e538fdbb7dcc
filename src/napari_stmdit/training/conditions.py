"""Fitting the two encoders and the tissue profiles on training sections."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.linear_programs import PER, LinearProgramEncoder
from ..encoders.small_conv import FeatureTrunk, SmallConvEncoder
from ..errors import GeneError
from ..expression.depths import mix_depths
from ..expression.genes import gather_counts, match_genes
from ..model.autoencoder import StmditAutoencoder
from ..types import Genes
from .config import ExpressionSettings
from .data import TrainingSection, neighbour_weights

SKIPPED = ("MT-", "RPL", "RPS", "ENSG", "MTRNR")
"""Prefixes of genes that vary with handling and depth rather than with tissue."""

DETECTED = 0.10
"""A gene must be seen in this share of the spots, averaged over the sections."""

REGION_MARKERS: Mapping[str, tuple[str, ...]] = {
    "tumour": ("ERBB2", "GRB7", "KRT8", "KRT18", "KRT19", "EPCAM", "MUC1", "CDH1"),
    "stroma": ("COL1A1", "COL1A2", "COL3A1", "FN1", "DCN", "LUM", "POSTN", "SPARC"),
    "adipose": ("ADIPOQ", "FABP4", "PLIN1", "PLIN4", "LPL", "CD36", "G0S2", "ADH1B"),
    "immune": ("CD3D", "CD3E", "CD2", "MS4A1", "CD79A", "TRAC", "IL7R", "PTPRC", "IGKC", "JCHAIN"),
}
FEWEST_MARKERS = 2
Fitted = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Mean and scale (g,) of a level's profiles, and the projection (g, d)."""
LOWEST_LEVEL = 16.0
"""Counts of the shallowest depth level; the others are each twice as deep."""
THINNINGS = 3
"""Thinned profiles of each spot that a level is fitted to."""
REGION_SHARE = 0.10
"""A region is the tenth of the training spots with the highest margin of its marker score."""
RIVAL_SHARE = 0.5
"""What of the best rival's score counts against a spot: half, as tissues mix within a spot. The bundled profiles were made so."""


def log_normalise(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, g) counts -> log1p(counts per 10,000) over these genes."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1e-6)
    return np.asarray(np.log1p(counts * (PER / total)), dtype=np.float32)


def counts_of(section: TrainingSection, genes: tuple[str, ...]) -> NDArray[np.float32]:
    """Return (n, g) counts of some genes in a section."""
    spots = section.section.spots
    dense = gather_counts(spots.counts, match_genes(genes, spots.genes), genes).toarray()
    return np.asarray(dense, dtype=np.float32)


def thin(counts: NDArray[np.float32], factor: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Keep each count with probability 1 / factor: what a shallower experiment would have seen."""
    if factor <= 1:
        return counts
    return rng.binomial(counts.round().astype(np.int64), 1 / factor).astype(np.float32)


def smooth_counts(section: TrainingSection, counts: NDArray[np.float32], spread_um: float) -> NDArray[np.float32]:
    """Average (n, g) counts over neighbouring spots with Gaussian weights of their distance in microns."""
    weights = np.stack([neighbour_weights(section.yx, centre, section.mpp, spread_um) for centre in section.yx])
    return np.asarray(weights @ counts, dtype=np.float32)


def choose_genes(
    sections: Sequence[TrainingSection],
    count: int,
    always: Collection[str] = (),
    regions: Mapping[str, Sequence[str]] = REGION_MARKERS,
) -> tuple[str, ...]:
    """Choose the genes that vary most over tissue for their mean, within sections.

    Candidates stand in every section, are detected in a tenth of the spots and carry none of the prefixes of handling. Their
    variance within sections, after smoothing over neighbours, is compared with a cubic trend over the mean; the largest excess
    wins. Marker genes of the regions and those of ``always`` are taken where they are candidates by name.
    """
    shared = set.intersection(*[set(s.section.spots.genes.symbols.tolist()) for s in sections])
    names = tuple(sorted(g for g in shared if not g.startswith(SKIPPED) or g in always))
    if len(names) < count:
        raise GeneError(f"the training sections share {len(names)} usable genes; {count} were asked for")
    tables = [counts_of(s, names) for s in sections]
    detected = np.mean([(t > 0).mean(axis=0) for t in tables], axis=0)
    smooth = [log_normalise(smooth_counts(s, t, 150.0)) for s, t in zip(sections, tables, strict=True)]
    mean = np.mean([z.mean(axis=0) for z in smooth], axis=0)
    spread = np.log(np.mean([z.var(axis=0) for z in smooth], axis=0) + 1e-4)
    usable = detected >= min(DETECTED, float(np.sort(detected)[-count]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.RankWarning)  # few genes leave it open, and any trend will do
        trend = np.poly1d(np.polyfit(mean[usable], spread[usable], 3))
    excess = np.where(usable, spread - trend(mean), -np.inf)
    forced = [name in always for name in names]
    if sum(forced) > count:
        raise GeneError(f"{sum(forced)} genes are always to be taken, but only {count} in all; raise expression.genes")
    markers = {m for ms in regions.values() for m in ms}
    excess[[name in markers for name in names]] = np.finfo(excess.dtype).max
    excess[forced] = np.inf
    chosen = np.sort(np.argsort(-excess, kind="stable")[:count])
    return tuple(names[i] for i in chosen)


def fit_programs(
    sections: Sequence[TrainingSection],
    settings: ExpressionSettings,
    seed: int,
    like: LinearProgramEncoder | None = None,
) -> LinearProgramEncoder:
    """Fit the expression encoder; `rank_by_morphology` then turns its programs so that the first say most about the image.

    The programs are principal components of profiles smoothed over neighbouring spots, centred within each section so that patient
    and batch are no program. The projections are not those components themselves but ridge regressions of a smoothed profile's scores
    on profiles of single spots thinned to a level of depth, one for each level: they leave out what a spot of that depth cannot tell (a
    Wiener filter learned from the data). One more program is a spot's depth relative to its section, which no profile holds.
    The first program has a spread of one over the training spots as measured; the others the square root of their share of it.

    Parameters
    ----------
    sections
        Training sections.
    settings
        Genes, programs, penalty.
    seed
        Source of chance for the thinning.
    like
        An encoder whose programs are to be kept, with their genes, and read better: its scores of smoothed profiles are what is
        learned. Its last program, which says least, gives way to relative depth where it has no such program yet.
    """
    regions = settings.regions or REGION_MARKERS
    genes = like.genes if like is not None else choose_genes(sections, settings.genes, settings.always, regions)
    counts = [counts_of(section, genes) for section in sections]
    smooth = [smooth_counts(s, c, settings.neighbour_um) for s, c in zip(sections, counts, strict=True)]
    targets = _known_targets(smooth, like) if like is not None else _component_targets(smooth, settings.programs)
    levels, fitted = _fit_levels(sections, counts, targets, settings, np.random.default_rng([seed, 7]))
    mean, scale, projection = (np.stack(parts) for parts in zip(*fitted, strict=True))
    programs = projection.shape[-1]
    shares = [(c / np.maximum(c.sum(axis=1, keepdims=True), 1e-6)).mean(axis=0) * PER for c in smooth]
    depth = np.zeros(programs + 1, dtype=np.float32)
    depth[-1] = 1.0
    encoder = LinearProgramEncoder(
        genes,
        mean.astype(np.float32),
        scale.astype(np.float32),
        np.mean(shares, axis=0).astype(np.float32),
        np.pad(projection, ((0, 0), (0, 0), (0, 1))).astype(np.float32),
        np.zeros(programs + 1, dtype=np.float32),
        half_depth=0.0,
        levels=levels.astype(np.float32),
        depth_projection=depth,
    )
    if like is not None:
        return encoder
    spread = np.concatenate(targets).std(axis=0)
    own = np.concatenate([encoder.encode_counts(c)[:, :-1] for c in counts]).std(axis=0) + 1e-8
    return encoder.turned(np.diag(np.append(np.sqrt(spread / spread[0]) / own, 1.0)))


def _component_targets(smooth: Sequence[NDArray[np.float32]], programs: int) -> list[NDArray[np.float64]]:
    """Return for each section (n, d) scores of its smoothed profiles on their common principal components, centred in the section."""
    levels = [log_normalise(counts) for counts in smooth]
    scale = np.concatenate(levels).std(axis=0) + 0.05
    centred = [(values - values.mean(axis=0)) / scale for values in levels]
    pooled = np.concatenate(centred).astype(np.float64)
    _, vectors = np.linalg.eigh(pooled.T @ pooled / len(pooled))
    components = vectors[:, ::-1][:, : min(programs, len(scale))]
    return [values @ components for values in centred]


def _known_targets(smooth: Sequence[NDArray[np.float32]], like: LinearProgramEncoder) -> list[NDArray[np.float64]]:
    """Return for each section (n, d) scores by the programs of an encoder but its last, whose place relative depth takes; centred likewise."""
    scores = [like.encode_counts(counts)[:, :-1].astype(np.float64) for counts in smooth]
    return [values - values.mean(axis=0) for values in scores]


def _fit_levels(
    sections: Sequence[TrainingSection],
    counts: Sequence[NDArray[np.float32]],
    targets: Sequence[NDArray[np.float64]],
    settings: ExpressionSettings,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], list[Fitted]]:
    """Return the depth levels, and for each the mean, scale (g,) and projection (g, d) fitted to profiles of that depth.

    A spot that is shallower than a level takes part by the sum over its neighbours. A section takes part at a level which half of its
    spots reach at least half-way; so its deep spots never stand for all of it.
    """
    pools = []
    for section, own in zip(sections, counts, strict=True):
        weights = [neighbour_weights(section.yx, centre, section.mpp, settings.neighbour_um) for centre in section.yx]
        summed = np.stack([w / w.max() for w in weights]) @ own
        pools.append((own, np.round(summed).astype(np.float32)))
    levels: list[float] = []
    fitted: list[Fitted] = []
    for level in LOWEST_LEVEL * 2.0 ** np.arange(24):
        inputs, wanted = [], []
        for (own, summed), target in zip(pools, targets, strict=True):
            nearest = np.where((own.sum(axis=1) >= level)[:, None], own, summed)
            reached = nearest.sum(axis=1) >= level / 2
            if reached.mean() < 0.5:
                continue
            for table in (nearest, summed):
                for _ in range(THINNINGS):
                    inputs.append(
                        log_normalise(_thin_to(table[reached], level * np.exp(rng.uniform(-0.35, 0.35)), rng))
                    )
                    wanted.append(target[reached] - target[reached].mean(axis=0))
        if not inputs:
            break
        levels.append(float(level))
        fitted.append(_ridge(np.concatenate(inputs), np.concatenate(wanted), settings.penalty))
    if not fitted:
        raise GeneError(f"the training sections have fewer than {LOWEST_LEVEL:.0f} counts a spot over the chosen genes")
    return np.array(levels), fitted


def _thin_to(counts: NDArray[np.float32], total: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Thin (n, g) counts to an expected total each; shallower spots stay as they are."""
    share = np.minimum(1, total / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return rng.binomial(counts.round().astype(np.int64), share).astype(np.float32)


def _ridge(x: NDArray[np.float32], y: NDArray[np.float64], penalty: float) -> Fitted:
    """Regress y (n, d) on the standardised x (n, g); return mean and scale (g,), and the slopes (g, d)."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 0.05
    standard = (x - mean) / scale
    gram = standard.T @ standard + penalty * len(x) * np.eye(x.shape[1])
    return mean, scale, np.linalg.solve(gram, standard.T @ y)


def rank_by_morphology(
    encoder: LinearProgramEncoder, vectors: Tensor, morphology: Tensor, penalty: float = 50.0
) -> tuple[LinearProgramEncoder, Tensor]:
    """Turn programs so that they come in the order in which they explain morphology (reduced-rank regression).

    Most directions of expression are noise of shallow spots or say nothing about an image. Ridge regression of the morphology
    components on the program scores, and the principal directions of what it fits, give new programs; each keeps a spread of
    (its fitted spread relative to the first) ** 0.75. Izenman 1975, J. Multivar. Anal. 5:248-264.

    Parameters
    ----------
    encoder
        With programs as fitted.
    vectors
        (N, V, d) its scores of N training crops, in V variants.
    morphology
        (N, m) morphology components of the same crops.
    penalty
        Ridge penalty.

    Returns
    -------
    tuple
        The encoder with min(d, m) programs, and its scores (N, V, min(d, m)).
    """
    x = vectors.flatten(0, 1).double()
    y = morphology.double().repeat_interleave(vectors.shape[1], dim=0)
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    slope = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    fitted = x @ slope
    values, directions = torch.linalg.eigh(fitted.T @ fitted / len(fitted))
    count = min(slope.shape)
    spread = values.flip(0)[:count].clamp_min(1e-12).sqrt()
    turn = slope @ directions.flip(1)[:, :count]
    turn = turn / (x @ turn).std(0).clamp_min(1e-9) * (spread / spread[0]) ** 0.75
    return encoder.turned(turn.numpy()), (vectors.double() @ turn).float()


def make_trunk(autoencoder: StmditAutoencoder) -> FeatureTrunk:
    """Copy the convolutional half of an autoencoder's encoder."""
    fine, coarse = autoencoder.config["encoder_widths"]
    trunk = FeatureTrunk((fine, coarse))
    trunk.trunk.load_state_dict(autoencoder.encoder.trunk.state_dict())
    return trunk


def fit_morphology(trunk: FeatureTrunk, statistics: Tensor, components: int) -> SmallConvEncoder:
    """Whiten the (n, s) statistics of training crops: standardise, keep the leading components, scale each to variance one."""
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-4
    _, values, vectors = torch.linalg.svd((statistics - mean) / scale, full_matrices=False)
    spread = values[:components] / len(statistics) ** 0.5
    projection = vectors[:components].T / spread / scale[:, None]
    return SmallConvEncoder(trunk, mean, projection)


def region_profiles(
    sections: Sequence[TrainingSection],
    genes: tuple[str, ...],
    markers: Mapping[str, Sequence[str]] = REGION_MARKERS,
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32], float]]:
    """Return mean and spread (g,) of log1p(CP10k) over ``genes``, and mean relative depth, for each tissue region.

    A spot's marker score is the mean, over the region's marker genes, of the marker's smoothed log1p(CP10k) standardised within
    the section, so that depth and batch do not decide; a region is the tenth of all training spots with the highest margin over
    the other regions, see `region_margins`. A region with fewer than `FEWEST_MARKERS` markers in some section is left out.
    """
    there = set.intersection(*[set(s.section.spots.genes.symbols.tolist()) for s in sections])
    regions = {name: ms for name, ms in markers.items() if len(there & set(ms)) >= FEWEST_MARKERS}
    if len(regions) < 2:
        return {}
    names = tuple(dict.fromkeys(g for ms in regions.values() for g in ms))
    pooled, scores = [], []
    for section in sections:
        smooth = log_normalise(smooth_counts(section, counts_of(section, genes), 100.0))
        pooled.append(smooth)
        total = np.asarray(section.section.spots.counts.sum(axis=1)).reshape(-1, 1)
        levels = np.log1p(smooth_counts(section, counts_of(section, names) * (PER / np.maximum(total, 1)), 100.0))
        standard = (levels - levels.mean(axis=0)) / (levels.std(axis=0) + 0.05)
        place = {name: column for column, name in enumerate(names)}
        scores.append(np.column_stack([standard[:, [place[m] for m in ms]].mean(axis=1) for ms in regions.values()]))
    values, score = np.concatenate(pooled), np.concatenate(scores)
    depth = np.concatenate([section.section.spots.relative_depth for section in sections])
    profiles = {}
    for region, margin in zip(regions, region_margins(score).T, strict=True):
        chosen = np.argsort(-margin)[: max(2, round(REGION_SHARE * len(margin)))]
        profiles[region] = (values[chosen].mean(axis=0), values[chosen].std(axis=0), float(depth[chosen].mean()))
    return profiles


def region_margins(score: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return, of (n, r) marker scores of n spots in r >= 2 regions, each score minus `RIVAL_SHARE` of the highest other one, (n, r)."""
    rivals = [np.delete(score, column, axis=1).max(axis=1) for column in range(score.shape[1])]
    return score - RIVAL_SHARE * np.column_stack(rivals)


def encode_places(
    encoder: LinearProgramEncoder,
    counts: NDArray[np.float32],
    weights: NDArray[np.float64],
    thinning: float,
    rng: np.random.Generator,
    present: NDArray[np.bool_] | None = None,
    depth: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Encode the expression at places, given as (m, n) weights of the (n, g) spots; half of them thinned by a random factor.

    ``present`` (g,) says which genes the section has; None: all. ``depth`` (n,) is the spots' depth relative to the section, which
    thinning leaves as it is: a shallower experiment is shallower everywhere.
    """
    mixed = np.asarray(weights @ counts, dtype=np.float32)
    factors = np.where(rng.random(len(mixed)) < 0.5, 1.0, np.exp(rng.uniform(0, np.log(thinning), len(mixed))))
    thinned = np.stack([thin(row, f, rng) for row, f in zip(mixed, factors, strict=True)])
    return encoder.encode_counts(thinned, present, None if depth is None else mix_depths(weights, depth))


def genes_of(encoder: LinearProgramEncoder) -> Genes:
    """Return the encoder's genes as names of columns."""
    return Genes(np.array(encoder.genes, dtype=np.str_))
