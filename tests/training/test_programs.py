from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_stmdit.encoders.linear_programs import LinearProgramEncoder
from napari_stmdit.errors import GeneError
from napari_stmdit.training.config import ExpressionSettings
from napari_stmdit.training.data import load_training_section
from napari_stmdit.training.programs import (
    REGION_MARKERS,
    choose_genes,
    counts_of,
    crop_looks,
    fit_programs,
    log_normalise,
    rank_by_morphology,
    region_margins,
    region_profiles,
    thin,
)
from napari_stmdit.types import ExpressionSource


@pytest.fixture
def loaded(tiny_section):
    return load_training_section(tiny_section, 0.7)


def test_programs_follow_the_tissue_and_not_the_depth(loaded):
    encoder = fit_programs([loaded], ExpressionSettings(genes=20, programs=3, thinning=3.0), seed=0)
    counts = counts_of(loaded, encoder.genes)
    scores = encoder.encode_counts(counts)[:, 0]
    # the tiny section's expression changes from left to right, and that is its first program
    assert abs(np.corrcoef(scores, loaded.yx[:, 1])[0, 1]) > 0.9
    thinned = encoder.encode_counts(thin(counts, 3.0, np.random.default_rng(1)))[:, 0]
    assert np.corrcoef(scores, thinned)[0, 1] > 0.9
    assert abs(thinned.mean() - scores.mean()) < 0.5


def test_thinned_spots_keep_their_scores(tiny_section):
    section = load_training_section(tiny_section, 0.7)
    encoder = fit_programs([section], ExpressionSettings(genes=20, programs=3, penalty=1.0), seed=0)
    assert encoder.levels is not None and (np.diff(np.log2(encoder.levels)) == 1).all()
    counts = counts_of(section, encoder.genes)
    full = encoder.encode_counts(counts)[:, 0]
    thinned = thin(counts, 5.0, np.random.default_rng(1))
    shallow = encoder.encode_counts(thinned)[:, 0]
    assert np.corrcoef(full, shallow)[0, 1] > 0.9
    assert abs(shallow.mean() - full.mean()) < 0.1
    # read by the deepest level alone the same counts seem to be of more extreme tissue
    deepest = (encoder.mean[-1], encoder.scale[-1], encoder.abundance, encoder.projection[-1], encoder.offset)
    fixed = LinearProgramEncoder(encoder.genes, *deepest).encode_counts(thinned)[:, 0]
    assert 0.5 < shallow.std() / full.std() < 1.1 and fixed.std() / full.std() > 1.5


def test_known_programs_are_read_anew_and_depth_takes_the_last_place(loaded):
    known = fit_programs([loaded], ExpressionSettings(genes=20, programs=3), seed=0)
    like = LinearProgramEncoder(
        known.genes, known.mean[-1], known.scale[-1], known.abundance, known.projection[-1], known.offset
    )
    again = fit_programs([loaded], ExpressionSettings(penalty=0.1), seed=1, like=like)
    counts, depth = counts_of(loaded, known.genes), loaded.section.spots.relative_depth
    assert (again.genes, again.dim) == (like.genes, like.dim)
    before, after = like.encode_counts(counts), again.encode_counts(counts, depth=depth)
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.95
    np.testing.assert_allclose(after[:, -1], depth, atol=1e-5)


def test_sections_of_factors_and_of_counts_are_not_mixed(loaded):
    section = loaded.section
    factors = replace(loaded, section=replace(section, expression=ExpressionSource("factors")))
    encoder = fit_programs([factors, factors], ExpressionSettings(), seed=0)
    assert encoder.genes == tuple(section.spots.genes.symbols) and not encoder.logged and encoder.levels is None
    with pytest.raises(GeneError, match="together with counts alone, or with the same factors alone"):
        fit_programs([factors, loaded], ExpressionSettings(), seed=0)


def test_programs_are_ranked_by_what_they_say_about_morphology(loaded):
    programs = fit_programs([loaded], ExpressionSettings(genes=20, programs=6), seed=0)
    vectors = torch.from_numpy(programs.encode_counts(counts_of(loaded, programs.genes)))[:, None]
    noise = torch.randn(len(vectors), 3, generator=torch.Generator().manual_seed(0))
    morphology = torch.cat([vectors[:, 0, 3:4] * 2 + 0.1 * noise[:, :1], 0.1 * noise[:, 1:]], dim=1)
    ranked, scores = rank_by_morphology(programs, vectors, morphology, penalty=0.01)
    assert scores.shape == (30, 1, 3)
    # what was the fourth program alone decides the morphology, so it is now the first
    assert abs(np.corrcoef(scores[:, 0, 0], vectors[:, 0, 3])[0, 1]) > 0.98
    assert scores[:, 0].std(0)[0] == pytest.approx(1, abs=1e-3) and scores[:, 0].std(0)[1] < 0.3
    np.testing.assert_allclose(ranked.encode_counts(counts_of(loaded, programs.genes)), scores[:, 0], atol=1e-3)


def test_more_genes_than_there_are_is_refused(loaded):
    with pytest.raises(GeneError, match="share 20 usable genes; 50 were asked for"):
        choose_genes([loaded], 50)


def test_genes_that_are_always_to_be_taken_are_however_little_they_vary(loaded):
    plain = choose_genes([loaded], 5)
    dull = tuple(gene for gene in loaded.section.spots.genes.symbols.tolist() if gene not in plain)[-3:]
    chosen = choose_genes([loaded], 5, (*dull, "NOWHERE"))
    assert set(dull) < set(chosen) and len(chosen) == 5
    with pytest.raises(GeneError, match="3 genes are always to be taken, but only 2 in all"):
        choose_genes([loaded], 2, dull)


def test_profiles_are_made_of_the_regions_that_are_asked_for(loaded):
    regions = {"a": ("EPCAM", "KRT8"), "b": ("CD3D", "CD3E"), "c": ("NOT", "THERE")}
    genes = choose_genes([loaded], 12, (), regions)
    assert {"EPCAM", "KRT8", "CD3D", "CD3E"} <= set(genes)
    assert list(region_profiles([loaded], encoder_of(loaded), regions, patch_px=64)) == ["a", "b"]


def test_thinning_keeps_the_expected_share():
    counts = np.full((50, 40), 30.0, dtype=np.float32)
    thinned = thin(counts, 3.0, np.random.default_rng(0))
    assert thinned.mean() == pytest.approx(10, rel=0.05)
    np.testing.assert_array_equal(thin(counts, 1.0, np.random.default_rng(0)), counts)


def test_half_of_the_best_rivals_score_counts_against_a_spot():
    score = np.array([[2.0, 1.0, -3.0], [0.0, 4.0, 1.0]])
    np.testing.assert_allclose(region_margins(score), [[1.5, 0.0, -4.0], [-2.0, 3.5, -1.0]])


def encoder_of(loaded):
    """An encoder of all genes of the section."""
    return fit_programs([loaded], ExpressionSettings(genes=20, programs=4, thinning=3.0), 0)


def test_profiles_are_made_of_spots_with_the_markers(loaded):
    encoder = encoder_of(loaded)
    profiles = region_profiles([loaded], encoder, region_looks={}, patch_px=64)
    assert set(profiles) == set(REGION_MARKERS)
    overall = log_normalise(counts_of(loaded, encoder.genes)).mean(axis=0)
    for region, marker in (("tumour", "KRT8"), ("immune", "CD3D"), ("adipose", "ADIPOQ")):
        found = profiles[region]
        assert found.mean.shape == found.spread.shape == (20,) and -1 < found.depth < 1
        assert found.encoding.shape == (5,)
        assert found.mean[encoder.genes.index(marker)] > overall[encoder.genes.index(marker)]


def test_a_profile_is_made_of_spots_that_look_like_its_tissue(loaded):
    """What has the genes of fat but is as dark as a tumour is none."""
    encoder, middle = encoder_of(loaded), np.median(loaded.yx[:, 1])
    pixels = loaded.pixels.copy()
    pixels[:, : int(middle)] = 235
    halved = replace(loaded, pixels=pixels)
    looks = crop_looks(halved, 64)
    assert looks[loaded.yx[:, 1] < middle - 40, 0].max() < looks[loaded.yx[:, 1] > middle + 40, 0].min()
    for low, high in ((0.0, 0.4), (0.6, 1.0)):
        asked = {"adipose": {"haematoxylin": (low, high)}}
        (of_crops,) = region_profiles([halved], encoder, REGION_MARKERS, asked, 64)["adipose"].found.values()
        assert of_crops["spots"] >= 2 and (of_crops["haematoxylin"] < looks[:, 0].mean()) == (low == 0.0)
