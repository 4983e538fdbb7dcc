"""Linear programs of gene expression: choice of genes, fit and ranking; and profiles of tissue regions."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.linear_programs import LinearProgramEncoder
from ..errors import GeneError
from ..evaluation.measures import blank_fraction, count_nuclei, eosin_density, haematoxylin_density
from ..expression.edits import mix_depths
from ..expression.genes import gather_counts, match_genes
from ..expression.normalise import PER, cp10k_log1p
from ..text import some_of
from .config import ExpressionSettings, Look
from .data import TrainingSection, cut, neighbour_weights

HANDLING_PREFIXES = ("MT-", "RPL", "RPS", "ENSG", "ENSMUSG", "MTRNR")
"""Prefixes, in capitals, of genes that vary with handling and depth rather than with tissue."""
MIN_DETECTED = 0.10
"""Minimum share of spots, averaged over the sections, with counts of a gene."""
REGION_MARKERS: Mapping[str, tuple[str, ...]] = {
    "tumour": ("ERBB2", "GRB7", "KRT8", "KRT18", "KRT19", "EPCAM", "MUC1", "CDH1"),
    "stroma": ("COL1A1", "COL1A2", "COL3A1", "FN1", "DCN", "LUM", "POSTN", "SPARC"),
    "adipose": ("ADIPOQ", "FABP4", "PLIN1", "PLIN4", "LPL", "CD36", "G0S2", "ADH1B"),
    "immune": ("CD3D", "CD3E", "CD2", "MS4A1", "CD79A", "TRAC", "IL7R", "PTPRC", "IGKC", "JCHAIN"),
}
REGION_LOOKS: Mapping[str, Mapping[Look, tuple[float, float]]] = {
    "tumour": {"nuclei": (0.5, 1.0)},
    "stroma": {"haematoxylin": (0.2, 0.6)},
    "adipose": {"haematoxylin": (0.0, 0.1)},
    "immune": {"nuclei": (0.5, 1.0)},
}
"""Region -> measure of a spot's crop -> lowest and highest share of all training spots that have less of it: fat is pale, tumour is crowded."""
LOOKS: tuple[Look, ...] = get_args(Look)
FACTORS = "factors"
"""What `ExpressionSource` calls factors in the place of counts."""
MIN_LEVEL = 16.0
"""Total counts of the shallowest depth level; each further level is twice as deep."""
THINNINGS = 3
"""Number of thinned profiles per spot that a level is fitted to."""
MIN_MARKERS = 2
"""Minimum of markers that every section must have for a region to get a profile."""
REGION_SHARE = 0.10
"""Share of the training spots, those with the highest margin, that a profile averages."""
RIVAL_SHARE = 0.5
"""Share of the best other region's score to subtract: half, as tissues mix within a spot."""
Fitted = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Mean and scale (g,) of a level's profiles, and the projection (g, d)."""


def fit_programs(
    sections: Sequence[TrainingSection],
    settings: ExpressionSettings,
    seed: int,
    like: LinearProgramEncoder | None = None,
) -> LinearProgramEncoder:
    """Fit the expression encoder, a linear map from log expression to program scores for each level of depth.

    With x the log1p(CP10k) profile of a spot and x' that of the counts smoothed over its neighbours:

    1. programs: t = V'((x' - mean of the section) / s), with V the leading principal components over all sections. Centring by section
       keeps patient and batch out of the programs;
    2. projection: for each depth level, W = argmin sum |t - W'z|^2 + penalty n |W|^2 over standardised profiles z of single spots thinned to
       that depth (a Wiener filter learned from the data);
    3. scale: program k gets the standard deviation sqrt(sd(t_k) / sd(t_1)) over the training spots as measured;
    4. one more program is the spot's depth relative to its section, which no profile holds.

    Parameters
    ----------
    sections
        Training sections.
    settings
        Genes, programs, penalty.
    seed
        Seed of the thinning.
    like
        Encoder whose genes and programs are kept, as targets t of step 2; relative depth replaces its last program.

    Of sections with factors in place of counts, the factors are the programs; see `factor_programs`.
    """
    if any(section.section.expression.kind == FACTORS for section in sections):
        return factor_programs(sections)
    regions = settings.regions or REGION_MARKERS
    genes = like.genes if like is not None else choose_genes(sections, settings.genes, settings.always, regions)
    counts = [counts_of(section, genes) for section in sections]
    smooth = [smooth_counts(s, c, settings.neighbour_um) for s, c in zip(sections, counts, strict=True)]
    targets = _scores_of(smooth, like) if like is not None else _components(smooth, settings.programs)
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
    return encoder.rotated(np.diag(np.append(np.sqrt(spread / spread[0]) / own, 1.0)))


def factor_programs(sections: Sequence[TrainingSection]) -> LinearProgramEncoder:
    """Return an encoder whose programs are the factors of the sections, standardised; raises GeneError where these are not the same everywhere."""
    names = {s.name: tuple(s.section.spots.genes.symbols.tolist()) for s in sections}
    genes = next(iter(names.values()))
    if any(s.section.expression.kind != FACTORS or set(names[s.name]) != set(genes) for s in sections):
        listed = "; ".join(f"{s.name}: {s.section.expression.kind}, {some_of(names[s.name])}" for s in sections)
        raise GeneError(
            f"sections are trained on together with counts alone, or with the same factors alone ({listed})"
        )
    values = np.concatenate([counts_of(section, genes) for section in sections])
    mean, scale = values.mean(axis=0), values.std(axis=0)
    nothing = np.zeros(len(genes), dtype=np.float32)
    # a factor that hardly varies is no program
    eye = np.diag(scale > 1e-3 * scale.max()).astype(np.float32)
    return LinearProgramEncoder(genes, mean, np.maximum(scale, 1e-6), mean, eye, nothing, logged=False)


def choose_genes(
    sections: Sequence[TrainingSection],
    count: int,
    always: Collection[str] = (),
    regions: Mapping[str, Sequence[str]] = REGION_MARKERS,
) -> tuple[str, ...]:
    """Choose the genes that vary most over tissue for their mean, within sections.

    Candidates are in every section, are detected in a tenth of the spots and carry no handling prefix. Their log variance within
    sections, after smoothing over neighbours, is compared with a cubic trend over the mean; the largest excess wins. Genes of ``always`` come
    first, whatever their prefix, then the regions' markers, where they are candidates by name.
    """
    shared = set.intersection(*[set(s.section.spots.genes.symbols.tolist()) for s in sections])
    names = tuple(sorted(g for g in shared if not g.upper().startswith(HANDLING_PREFIXES) or g in always))
    if len(names) < count:
        raise GeneError(f"the training sections share {len(names)} usable genes; {count} were asked for")
    tables = [counts_of(s, names) for s in sections]
    detected = np.mean([(t > 0).mean(axis=0) for t in tables], axis=0)
    smooth = [log_normalise(smooth_counts(s, t, 150.0)) for s, t in zip(sections, tables, strict=True)]
    mean = np.mean([z.mean(axis=0) for z in smooth], axis=0)
    spread = np.log(np.mean([z.var(axis=0) for z in smooth], axis=0) + 1e-4)
    usable = detected >= min(MIN_DETECTED, float(np.sort(detected)[-count]))
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


def _components(smooth: Sequence[NDArray[np.float32]], programs: int) -> list[NDArray[np.float64]]:
    """Return (n, d) principal component scores of each section's smoothed profiles, centred by section."""
    logs = [log_normalise(counts) for counts in smooth]
    scale = np.concatenate(logs).std(axis=0) + 0.05
    centred = [(values - values.mean(axis=0)) / scale for values in logs]
    pooled = np.concatenate(centred).astype(np.float64)
    _, vectors = np.linalg.eigh(pooled.T @ pooled / len(pooled))
    components = vectors[:, ::-1][:, : min(programs, len(scale))]
    return [values @ components for values in centred]


def _scores_of(smooth: Sequence[NDArray[np.float32]], like: LinearProgramEncoder) -> list[NDArray[np.float64]]:
    """Return (n, d - 1) scores of each section's smoothed profiles by an encoder without its last program, centred by section."""
    scores = [like.encode_counts(counts)[:, :-1].astype(np.float64) for counts in smooth]
    return [values - values.mean(axis=0) for values in scores]


def _fit_levels(
    sections: Sequence[TrainingSection],
    counts: Sequence[NDArray[np.float32]],
    targets: Sequence[NDArray[np.float64]],
    settings: ExpressionSettings,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], list[Fitted]]:
    """Return the depth levels, and the ridge regression of the targets on profiles of each level's depth.

    A spot shallower than a level is replaced by the sum over its neighbours.
    """
    pools = []
    for section, own in zip(sections, counts, strict=True):
        weights = [neighbour_weights(section.yx, centre, section.mpp, settings.neighbour_um) for centre in section.yx]
        # divided by the largest weight, so that the own counts enter whole
        summed = np.stack([w / w.max() for w in weights]) @ own
        pools.append((own, np.round(summed).astype(np.float32)))
    levels: list[float] = []
    fitted: list[Fitted] = []
    for level in MIN_LEVEL * 2.0 ** np.arange(24):
        inputs, wanted = [], []
        for (own, summed), target in zip(pools, targets, strict=True):
            nearest = np.where((own.sum(axis=1) >= level)[:, None], own, summed)
            reached = nearest.sum(axis=1) >= level / 2
            if reached.mean() < 0.5:  # a few deep spots must not stand for all of a section
                continue
            for table in (nearest, summed):
                for _ in range(THINNINGS):
                    total = level * np.exp(rng.uniform(-0.35, 0.35))
                    inputs.append(log_normalise(_thin_to(table[reached], total, rng)))
                    wanted.append(target[reached] - target[reached].mean(axis=0))
        if not inputs:
            break
        levels.append(float(level))
        fitted.append(_ridge(np.concatenate(inputs), np.concatenate(wanted), settings.penalty))
    if not fitted:
        raise GeneError(f"the training sections have fewer than {MIN_LEVEL:.0f} counts a spot over the chosen genes")
    return np.array(levels), fitted


def _ridge(x: NDArray[np.float32], y: NDArray[np.float64], penalty: float) -> Fitted:
    """Regress y (n, d) on the standardised x (n, g); return mean and scale (g,), and the slopes (g, d)."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 0.05
    standard = (x - mean) / scale
    gram = standard.T @ standard + penalty * len(x) * np.eye(x.shape[1])
    return mean, scale, np.linalg.solve(gram, standard.T @ y)


def rank_by_morphology(
    encoder: LinearProgramEncoder, vectors: Tensor, morphology: Tensor, penalty: float = 50.0
) -> tuple[LinearProgramEncoder, Tensor]:
    """Rotate the programs into the order in which they explain morphology (reduced-rank regression).

    With scores X and morphology components Y: B = (X'X + penalty I)^-1 X'(Y - mean), and D the eigenvectors of (XB)'XB, by falling
    eigenvalue. The new scores are XBD, column k scaled to the standard deviation (s_k / s_1)^0.75, where s_k^2 are the eigenvalues over N.
    Izenman 1975, J. Multivar. Anal. 5:248-264.

    Parameters
    ----------
    encoder
        Encoder with programs as fitted.
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
    return encoder.rotated(turn.numpy()), (vectors.double() @ turn).float()


def encode_places(
    encoder: LinearProgramEncoder,
    counts: NDArray[np.float32],
    weights: NDArray[np.float64],
    thinning: float,
    rng: np.random.Generator,
    present: NDArray[np.bool_],
    depth: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Encode the expression at m places, given as weights (m, n) of the spots' counts (n, g), thinned as by `thinning_factors`.

    ``present`` (g,) masks the genes that the section has. ``depth`` (n,) is the spots' depth relative to the section; thinning leaves it
    alone, as a shallower experiment is shallower everywhere.
    """
    mixed = np.asarray(weights @ counts, dtype=np.float32)
    factors = thinning_factors(len(mixed), thinning, rng)
    thinned = np.stack([thin(row, f, rng) for row, f in zip(mixed, factors, strict=True)])
    return encoder.encode_counts(thinned, present, mix_depths(weights, depth))


def log_normalise(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log1p(counts per 10,000) of (n, g) counts over these genes."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1e-6)
    return np.asarray(cp10k_log1p(counts, total), dtype=np.float32)


def counts_of(section: TrainingSection, genes: tuple[str, ...]) -> NDArray[np.float32]:
    """Return (n, g) counts of some genes in a section."""
    spots = section.section.spots
    dense = gather_counts(spots.counts, match_genes(genes, spots.genes), genes).toarray()
    return np.asarray(dense, dtype=np.float32)


def smooth_counts(section: TrainingSection, counts: NDArray[np.float32], spread_um: float) -> NDArray[np.float32]:
    """Average (n, g) counts over neighbouring spots with Gaussian weights of their distance in microns."""
    weights = np.stack([neighbour_weights(section.yx, centre, section.mpp, spread_um) for centre in section.yx])
    return np.asarray(weights @ counts, dtype=np.float32)


def thin(counts: NDArray[np.float32], factor: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Keep each count with probability 1 / factor, as a shallower experiment would have."""
    if factor <= 1:
        return counts
    return rng.binomial(counts.round().astype(np.int64), 1 / factor).astype(np.float32)


def thinning_factors(count: int, most: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw (count,) factors: 1 for half of them, log-uniform up to ``most`` for the others."""
    return np.where(rng.random(count) < 0.5, 1.0, np.exp(rng.uniform(0, np.log(most), count)))


def _thin_to(counts: NDArray[np.float32], total: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Thin (n, g) counts to an expected total each; shallower spots stay as they are."""
    share = np.minimum(1, total / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return rng.binomial(counts.round().astype(np.int64), share).astype(np.float32)


# ------------------------------------------------------------------------------------------------- tissue profiles


@dataclass(frozen=True)
class RegionProfile:
    """Expression of a tissue region, and where it was found.

    Attributes
    ----------
    mean, spread
        Mean and standard deviation (g,) of log1p(CP10k) over its spots.
    depth
        Their mean depth relative to their section.
    encoding
        Mean (d,) of what the encoder reads of them.
    found
        Section -> ``spots``, their number, and the means of `LOOKS` over their crops.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    depth: float
    encoding: NDArray[np.float32]
    found: dict[str, dict[str, float]]


def region_profiles(
    sections: Sequence[TrainingSection],
    encoder: LinearProgramEncoder,
    region_markers: Mapping[str, Sequence[str]] = REGION_MARKERS,
    region_looks: Mapping[str, Mapping[Look, tuple[float, float]]] = REGION_LOOKS,
    patch_px: int = 256,
) -> dict[str, RegionProfile]:
    """Return the profile of each tissue region over an encoder's genes: of spots that have its markers and look like it.

    A spot's score for a region is the mean over the region's markers of the smoothed log1p(CP10k), z-scored within the section, so that
    depth and batch do not decide. Of the spots whose crops look as ``region_looks`` demands, ranked among those of all sections, a region
    takes those with the highest `region_margins`, at most a tenth of all spots; below zero only where fewer than two are above. One with
    fewer than `MIN_MARKERS` markers in some section, or fewer than two spots that look like it, is left out.
    """
    there = set.intersection(*[set(s.section.spots.genes.symbols.tolist()) for s in sections])
    regions = {name: ms for name, ms in region_markers.items() if len(there & set(ms)) >= MIN_MARKERS}
    if len(regions) < 2:
        return {}
    names = tuple(dict.fromkeys(g for ms in regions.values() for g in ms))
    column = {name: k for k, name in enumerate(names)}
    pooled, encoded, scores = [], [], []
    for section in sections:
        spots = section.section.spots
        pooled.append(log_normalise(counts_of(section, encoder.genes)))
        encoded.append(encoder.encode(spots.counts, spots.genes, spots.relative_depth))
        total = np.asarray(section.section.spots.counts.sum(axis=1)).reshape(-1, 1)
        markers = np.log1p(smooth_counts(section, counts_of(section, names) * (PER / np.maximum(total, 1)), 100.0))
        standard = (markers - markers.mean(axis=0)) / (markers.std(axis=0) + 0.05)
        scores.append(np.column_stack([standard[:, [column[m] for m in ms]].mean(axis=1) for ms in regions.values()]))
    values, encodings, score = np.concatenate(pooled), np.concatenate(encoded), np.concatenate(scores)
    depth = np.concatenate([section.section.spots.relative_depth for section in sections])
    looks = np.concatenate([crop_looks(section, patch_px) for section in sections])
    rank = np.argsort(np.argsort(looks, axis=0), axis=0) / max(1, len(looks) - 1)
    origin = np.repeat([section.name for section in sections], [len(section.yx) for section in sections])
    profiles = {}
    for region, margin in zip(regions, region_margins(score).T, strict=True):
        fits = np.ones(len(margin), dtype=bool)
        for measure, (low, high) in region_looks.get(region, {}).items():
            of_spots = rank[:, LOOKS.index(measure)]
            fits &= (low <= of_spots) & (of_spots <= high)
        if fits.sum() < 2:
            continue  # nothing looks like it
        best = np.argsort(np.where(fits, -margin, np.inf))[: max(2, round(REGION_SHARE * len(margin)))]
        chosen = best[: max(2, int((fits & (margin > 0))[best].sum()))]
        found = {
            str(name): {
                "spots": int(own.sum()),
                **dict(zip(LOOKS, looks[chosen][own].mean(axis=0).tolist(), strict=True)),
            }
            for name in dict.fromkeys(origin)
            if (own := origin[chosen] == name).any()
        }
        mean, spread = values[chosen].mean(axis=0), values[chosen].std(axis=0)
        encoding = encodings[chosen].mean(axis=0)
        profiles[region] = RegionProfile(mean, spread, float(depth[chosen].mean()), encoding, found)
    return profiles


def crop_looks(section: TrainingSection, patch_px: int) -> NDArray[np.float64]:
    """Measure the crop around each spot of a section: (n, 4), in the order of `LOOKS`."""
    crops = (cut(section.pixels, centre, patch_px)[0] for centre in section.yx)
    of_each = (haematoxylin_density, eosin_density, partial(count_nuclei, mpp=section.mpp), blank_fraction)
    return np.array([[of(crop) for of in of_each] for crop in crops], dtype=np.float64)


def region_margins(score: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (n, r) margins of marker scores (n, r), r >= 2 regions: score_k - `RIVAL_SHARE` * max over the other regions."""
    rivals = [np.delete(score, column, axis=1).max(axis=1) for column in range(score.shape[1])]
    return score - RIVAL_SHARE * np.column_stack(rivals)
