"""What follows when only the expression changes: edits, swaps on top of morphology, depth, genes outside the list."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from intervals import bootstrap_correlation, correlate, mean_interval, rounded
from parts_table import test_spots
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from synthesizer import Spots, Synthesizer

from napari_stmdit.edits import Towards
from napari_stmdit.evaluation.measures import PatchStatistics
from napari_stmdit.expression.genes import match_genes
from napari_stmdit.expression.normalise import cp10k_log1p
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.conditions import condition_rows
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.types import Section, SpotTable

STRENGTHS = np.linspace(0, 1, 7)
SPOTS, SEEDS = 30, 4
THINNING = 15


def tumour_spots(section: Section, checkpoint: Any, count: int) -> np.ndarray:
    """Return the rows whose expression, centred within the section, lies furthest towards the tumour profile from the stroma's."""
    tumour, stroma = checkpoint.profiles["tumour"], checkpoint.profiles["stroma"]
    columns = match_genes(tumour.genes, section.spots.genes).columns
    counts = section.spots.counts[:, columns].toarray().astype(float)
    x = cp10k_log1p(counts, np.maximum(counts.sum(axis=1, keepdims=True), 1))
    score = (x - x.mean(axis=0)) @ (tumour.mean - stroma.mean)
    return np.sort(np.argsort(-score)[:count])


def moved(spots: Spots, checkpoint: Any, target: str, strength: float) -> np.ndarray:
    """Encode the spots' expression after moving it towards a profile, as a run does."""
    edits = () if strength == 0 else (Towards(target_profile=target, strength=float(strength)),)
    ids = tuple(spots.section.spots.ids[spots.rows].tolist())
    request = Request(edits=edits, counterfactual="off", region=SpotList(ids=ids))
    made = plan(spots.section, request, checkpoint.card)
    return condition_rows(made, spots.section, checkpoint).expression(made.patches, spots.section, checkpoint)


def edits(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Move the most tumour-like spots towards fat, stroma and, as a control, tumour itself; expression alone, common noise."""
    out: dict[str, Any] = {}
    count = min(SPOTS, options.limit or SPOTS)
    for name in (options.trained_on[0], options.section):
        section = options.open(name)
        spots = Spots(section, tumour_spots(section, maker.checkpoint, count), maker.checkpoint)
        for target in ("adipose", "stroma", "tumour"):
            seeds = SEEDS if target != "tumour" else 1
            density = np.stack([strip_density(maker, spots, target, strength, seeds) for strength in STRENGTHS])
            out[f"{name}: tumour to {target}"] = trend(density) | {"spots": count, "seeds": seeds}
    return out


def strip_density(maker: Synthesizer, spots: Spots, target: str, strength: float, seeds: int) -> np.ndarray:
    """Return (spots,) haematoxylin density at one strength, mean of the seeds."""
    expression = moved(spots, maker.checkpoint, target, strength)
    stacks = [maker.images(spots.seeds(seed), None, expression) for seed in range(seeds)]
    return np.mean([spots.measured(stack).haematoxylin for stack in stacks], axis=0)


def trend(density: np.ndarray) -> dict[str, Any]:
    """Return how density (strengths, spots) follows the strength: mean strip, and per-spot rank correlation (falling: negative)."""
    rho = np.array([spearmanr(STRENGTHS, column).statistic for column in density.T])
    return {
        "haematoxylin_by_strength": density.mean(axis=1).round(3),
        "spearman_median": round(float(np.median(rho)), 3),
        "share_falling_at_least_0.9": round(float((rho <= -0.9).mean()), 3),
        "share_falling": round(float((rho < 0).mean()), 3),
        "change_in_spots_sd": round(float((density[-1] - density[0]).mean() / density[0].std()), 2),
    }


def swap(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Keep each spot's morphology and noise, put another tissue's expression in place of its own, and measure the change.

    Profiles take the total of the spot they replace (the section's median total, over the profile's genes).
    """
    spots = test_spots(maker, options)
    rows = np.sort(np.random.default_rng(1).permutation(len(spots.rows))[:60])
    part = Spots(spots.section, spots.rows[rows], maker.checkpoint)
    own_scale = maker.checkpoint.card.guidance.expression
    out: dict[str, Any] = {}
    for scale in (own_scale, 2 * own_scale):
        guidance = maker.guidance(expression=scale)
        entry, made = {}, {}
        base = part.measured(maker.images(part.seeds(0), part.morphology, part.expression, guidance))
        for target in ("tumour", "stroma", "adipose"):
            images = maker.images(part.seeds(0), part.morphology, moved(part, maker.checkpoint, target, 1.0), guidance)
            made[target] = part.measured(images)
            entry[target] = differences(made[target], base)
        for other in ("stroma", "adipose"):
            entry[f"tumour, against {other}"] = differences(made["tumour"], made[other])
        out[f"expression scale {scale:g}"] = entry
    return out


def differences(one: PatchStatistics, other: PatchStatistics) -> dict[str, list[float]]:
    """Return the mean difference per patch of each quantity, with its interval."""
    quantities = ("haematoxylin", "eosin", "nuclei", "blank")
    return {name: interval(getattr(one, name) - getattr(other, name)) for name in quantities}


def interval(values: np.ndarray) -> list[float]:
    """Return the mean and its 95 % bootstrap interval."""
    return rounded(mean_interval(values, np.random.default_rng(0)), 4)


def depth(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Thin the counts, leave relative depth out, and knock out every gene outside the list."""
    spots = test_spots(maker, options)
    table = spots.section.spots
    thinned = thin_section(table)
    encoded = {
        "as measured": spots.expression,
        "thinned": encode_rows(maker.checkpoint, thinned, spots.rows),
        "as measured, without relative depth": encode_rows(maker.checkpoint, table, spots.rows, deep=False),
        "thinned, without relative depth": encode_rows(maker.checkpoint, thinned, spots.rows, deep=False),
    }
    cases = {}
    for name, expression in encoded.items():
        stacks = [maker.images(spots.seeds(seed), None, expression) for seed in range(options.seeds)]
        density = np.stack([spots.measured(stack).haematoxylin for stack in stacks])
        averaged = bootstrap_correlation(density.mean(axis=0), spots.real.haematoxylin)
        cases[name] = {
            "r_per_seed": [round(correlate(values, spots.real.haematoxylin), 3) for values in density],
            "r_mean_of_seeds": rounded(averaged),
            "mean_haematoxylin": round(float(density.mean()), 3),
        }
    match = match_genes(maker.checkpoint.card.genes, table.genes)
    inside = np.zeros(len(table.genes), dtype=np.float32)
    inside[match.columns[match.columns >= 0]] = 1
    knocked = replace(table, counts=table.counts.multiply(inside[None]).tocsr().astype(np.float32))
    knocked_edit = maker.checkpoint.encode_expression(
        knocked.counts[spots.rows], table.genes, depth=table.relative_depth[spots.rows]
    )
    return {
        "thinned": THINNING,
        "median_counts": [float(np.median(np.asarray(c.counts.sum(axis=1)))) for c in (table, thinned)],
        "cases": cases,
        "r_of_relative_depth": round(correlate(table.relative_depth[spots.rows], spots.real.haematoxylin), 3),
        "genes_knocked_out_outside_the_list": int((inside == 0).sum()),
        "encoding_unchanged_by_them": bool(np.array_equal(knocked_edit, spots.expression)),
    }


def thin_section(table: SpotTable) -> SpotTable:
    """Return a section's spots as a shallower experiment would have counted them."""
    counts = table.counts.tocsr()
    data = np.random.default_rng(0).binomial(counts.data.astype(int), 1 / THINNING).astype(np.float32)
    return replace(table, counts=csr_matrix((data, counts.indices, counts.indptr), counts.shape))


def encode_rows(checkpoint: Any, table: SpotTable, rows: np.ndarray, *, deep: bool = True) -> np.ndarray:
    """Encode some spots; with ``deep`` false as if all were like the section's median spot."""
    return checkpoint.encode_expression(
        table.counts[rows], table.genes, depth=table.relative_depth[rows] if deep else None
    )
