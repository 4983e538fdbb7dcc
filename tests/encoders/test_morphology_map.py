import json

import numpy as np
import pytest

from napari_stmdit.encoders import morphology_map
from napari_stmdit.encoders.morphology_map import (
    MIN_SPOTS,
    MorphologyMap,
    fit_morphology_map,
    fit_morphology_trend,
)
from napari_stmdit.errors import CheckpointError, SectionError


def spots(count=160, own=0.5, tokens=1, seed=0):
    """Expression (n, 6), morphology (n, tokens, 9) that follows four of its numbers, and positions."""
    rng = np.random.default_rng(seed)
    yx = rng.uniform(0, 1000, (count, 2))
    e = rng.normal(size=(count, 6)).astype(np.float32) * [1, 1, 1, 1, 10, 0.1] + 3
    law = np.zeros((6, tokens * 9))
    law[:4] = rng.normal(size=(4, tokens * 9))
    m = (e @ law + own * rng.normal(size=(count, tokens * 9))).reshape(count, tokens, 9)
    return e.astype(np.float32), m.astype(np.float32), yx, law.reshape(6, tokens, 9)


@pytest.fixture(scope="module")
def fitted():
    e, m, yx, _ = spots()
    return fit_morphology_map(e, m, yx=yx)


def test_the_map_finds_a_linear_law_and_says_how_much_it_explains(fitted):
    e, _, _, law = spots()
    moved = fitted.delta(e[:20], e[20:40])
    wanted = np.einsum("nd,dtm->ntm", e[20:40] - e[:20], law)
    assert moved.shape == (20, 1, 9)
    assert np.corrcoef(moved.ravel(), wanted.ravel())[0, 1] > 0.99
    assert 0.85 < fitted.share < 1
    assert fitted.r2.max() > 0.9 and len(fitted.components) <= 9
    assert fitted.follows and "explains 9" in fitted.words


def test_what_is_explained_is_measured_on_tissue_left_out():
    """With as many numbers a spot as spots, the fit is perfect where it was made and worthless elsewhere."""
    rng = np.random.default_rng(1)
    e, m = rng.normal(size=(120, 110)).astype(np.float32), rng.normal(size=(120, 1, 5)).astype(np.float32)
    found = fit_morphology_map(e, m, yx=rng.uniform(0, 1, (120, 2)))
    assert found.share < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_without_any_relation_morphology_stays_and_the_map_says_so(seed):
    rng = np.random.default_rng(seed)
    e, m = rng.normal(size=(150, 8)).astype(np.float32), rng.normal(size=(150, 2, 5)).astype(np.float32)
    found = fit_morphology_map(e, m, yx=rng.uniform(0, 1, (150, 2)))
    assert found.share < 0.01
    if found.share <= 0:
        assert not found.follows and "stays" in found.words
        assert np.array_equal(found.delta(e[:3], e[3:6]), np.zeros((3, 2, 5), np.float32))


def test_a_difference_of_nothing_is_exactly_nothing(fitted):
    e, *_ = spots()
    assert not fitted.delta(e, e.copy()).any()


def test_differences_add_up(fitted):
    e, *_ = spots()
    there, on = fitted.delta(e[:5], e[5:10]), fitted.delta(e[5:10], e[10:15])
    np.testing.assert_allclose(there + on, fitted.delta(e[:5], e[10:15]), atol=1e-4)


def test_the_units_of_expression_do_not_matter():
    e, m, yx, _ = spots()
    scales = np.array([1, 100, 1e-3, 1, 1, 1], np.float32)
    plain, scaled = fit_morphology_map(e, m, yx=yx), fit_morphology_map(e * scales, m, yx=yx)
    np.testing.assert_allclose(
        plain.delta(e[:9], e[9:18]), scaled.delta(e[:9] * scales, e[9:18] * scales), rtol=1e-3, atol=1e-3
    )


def test_what_never_varies_has_no_say():
    e, m, yx, _ = spots()
    flat = np.concatenate([e, np.full((len(e), 1), 7.0, np.float32)], axis=1)
    found = fit_morphology_map(flat, m, yx=yx)
    other = flat[:4].copy()
    other[:, -1] = 1e6
    assert not found.delta(flat[:4], other).any()


def test_sections_of_another_stain_do_not_disturb():
    e, m, yx, law = spots(240)
    sections = np.repeat([0, 1, 2], 80)
    shift = sections[:, None].astype(np.float32) * 20
    found = fit_morphology_map(e + shift * [1, 0, 0, 0, 0, 0], m - shift[:, :, None], sections=sections)
    wanted = np.einsum("nd,dtm->ntm", e[20:40] - e[:20], law)
    assert np.corrcoef(found.delta(e[:20], e[20:40]).ravel(), wanted.ravel())[0, 1] > 0.99


def test_many_wide_tokens_go_by_their_principal_components(monkeypatch):
    e, m, yx, _ = spots(130, tokens=64)  # 576 numbers of morphology, more than spots
    found = fit_morphology_map(e, m, yx=yx)
    assert found.shape == (64, 9) and len(found.components) < 20 and found.share > 0.85
    plain = fit_morphology_map(np.repeat(e[:, None], 3, axis=1), m, yx=yx)  # tokens of expression count by their mean
    np.testing.assert_allclose(plain.delta(e[:5], e[5:10]), found.delta(e[:5], e[5:10]), atol=1e-5)
    monkeypatch.setattr(morphology_map, "MAX_COMPONENTS", 1)
    few = fit_morphology_map(e, m, yx=yx)
    assert len(few.components) == 1 and few.share < found.share  # what is not predicted counts as not explained


def test_the_same_spots_give_the_same_map(fitted):
    e, m, yx, _ = spots()
    again = fit_morphology_map(e, m, yx=yx)
    for name in ("weights", "components", "r2", "penalties"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))


def test_too_few_spots_leave_morphology_as_it_is():
    e, m, yx, _ = spots(MIN_SPOTS - 1)
    found = fit_morphology_map(e, m, yx=yx)
    assert not found.follows and "too few" in found.words
    assert not found.delta(e[:2], e[2:4]).any()


def test_a_map_is_stored_and_read_back(fitted, tmp_path):
    fitted.save(tmp_path / "morphology_map")
    back = MorphologyMap.load(tmp_path / "morphology_map")
    e, *_ = spots()
    np.testing.assert_array_equal(back.delta(e[:5], e[5:10]), fitted.delta(e[:5], e[5:10]))
    assert back.words == fitted.words and back.facts() == fitted.facts()
    json.dumps(back.facts())


def test_a_map_that_leaves_morphology_is_stored_and_read_back(tmp_path):
    e, m, yx, _ = spots(50)
    fit_morphology_map(e, m, yx=yx).save(tmp_path)
    assert not MorphologyMap.load(tmp_path).follows


def test_a_damaged_map_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("9", "8"))
    with pytest.raises(CheckpointError, match="do not fit"):
        MorphologyMap.load(tmp_path)
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="not that of a morphology map"):
        MorphologyMap.load(tmp_path)


def test_what_cannot_be_fitted_is_refused_in_one_sentence(fitted):
    e, m, yx, _ = spots()
    with pytest.raises(SectionError, match="same n spots"):
        fit_morphology_map(e[:-1], m, yx=yx)
    with pytest.raises(SectionError, match="not finite"):
        fit_morphology_map(np.where(e > 4, np.nan, e), m, yx=yx)
    with pytest.raises(SectionError, match="positions"):
        fit_morphology_map(e, m)
    with pytest.raises(SectionError, match="folds"):
        fit_morphology_map(e, m, np.repeat([0, 1], 80))
    with pytest.raises(SectionError, match="for 6 numbers"):
        fitted.delta(e[:, :5], e[:, :5])


def test_a_number_that_expression_says_is_found_among_larger_ones_that_it_does_not():
    """Principal components would mix them: the numbers of one short vector are taken one by one."""
    rng = np.random.default_rng(0)
    e = rng.normal(size=(240, 4)).astype(np.float32)
    m = 3 * rng.normal(size=(240, 1, 8)).astype(np.float32)
    m[:, 0, 0] = 0.6 * (e[:, 0] + 0.4 * rng.normal(size=240)) + 0.2 * m[:, 0, 1]
    fitted = fit_morphology_map(e, m, folds=np.arange(240) % 4)
    assert fitted.r2[0] > 0.3 and fitted.follows
    moved = fitted.delta(e[:100], e[100:200])[:, 0]
    assert np.corrcoef(moved[:, 0], e[100:200, 0] - e[:100, 0])[0, 1] > 0.95
    assert moved[:, 0].std() > 4 * moved[:, 1:].std(axis=0).max()


def elsewhere(law_changes, seed=5, count=160):
    """Spots of another section, whose morphology follows expression by a law that differs from that of `spots`."""
    e, m, yx, law = spots(count, seed=seed)
    rng = np.random.default_rng(0)
    known = spots()[3]
    other = known + law_changes * rng.normal(size=known.shape) * (np.arange(6) < 4)[:, None, None]
    m = np.einsum("nd,dtm->ntm", e, other) + 0.5 * rng.normal(size=m.shape)
    return e, m.astype(np.float32), yx, other


def missed(one, e, law):
    wanted = np.einsum("nd,dtm->ntm", e[40:80] - e[:40], law)
    return float(((one.delta(e[:40], e[40:80]) - wanted) ** 2).mean())


def test_a_map_is_fitted_further_where_a_section_follows_another_law(fitted):
    e, m, yx, law = elsewhere(0.5)
    further = fitted.fitted_further(e, m, yx)
    assert missed(further, e, law) < 0.2 * missed(fitted, e, law)
    assert 0.8 < further.share <= 1 and further.spots == 160 and len(further.r2) == 9
    assert not further.delta(e, e.copy()).any()


def test_a_few_noisy_spots_take_a_map_less_far_than_their_own_would(fitted):
    """It is shrunk towards the map: where the law is the map's, noise does not lead away from it."""
    e, m, yx, law = elsewhere(0.0, count=MIN_SPOTS)
    noisy = m + 8 * np.random.default_rng(2).normal(size=m.shape).astype(np.float32)
    further, alone = fitted.fitted_further(e, noisy, yx), fit_morphology_map(e, noisy, yx=yx)
    assert missed(further, e, law) < 0.5 * missed(alone, e, law)


def test_a_map_stays_where_a_section_has_too_few_spots(fitted):
    e, m, yx, _ = elsewhere(0.5, count=MIN_SPOTS - 1)
    assert fitted.fitted_further(e, m, yx) is fitted


def test_a_map_hardly_moves_where_there_is_nothing_to_add(fitted):
    e, m, yx, _ = elsewhere(0.5)
    noise = np.random.default_rng(3).normal(size=m.shape).astype(np.float32)
    known = fitted.delta(np.zeros_like(e), e)
    further = fitted.fitted_further(e, known + noise, yx).delta(np.zeros_like(e), e)
    assert (further - known).std() < 0.1 * known.std()


def test_tokens_are_fitted_further_by_their_principal_components():
    e, m, yx, _ = spots(tokens=3)
    known = fit_morphology_map(e, m, yx=yx)
    other = m + np.einsum("n,tm->ntm", e[:, 0], np.ones((3, 9), np.float32))
    further = known.fitted_further(e, other, yx)
    moved = further.delta(e[:20], e[20:40]) - known.delta(e[:20], e[20:40])
    assert moved.shape == (20, 3, 9)
    np.testing.assert_allclose(moved.mean(axis=(1, 2)), e[20:40, 0] - e[:20, 0], atol=0.25)


# ------------------------------------------------------------------------------------------------- the trend along factors


def by_factors(spots=300, seed=5):
    """Uncorrelated factors, morphology of two tokens that goes with them, and that law."""
    rng = np.random.default_rng(seed)
    scores = np.linalg.qr(rng.normal(size=(spots, 3)))[0] * np.sqrt(spots)
    scores -= scores.mean(axis=0)
    law = rng.normal(size=(3, 8))
    noise = rng.normal(size=(spots, 8))
    return scores, (scores @ law + noise).reshape(spots, 2, 4).astype(np.float32), law


def test_a_trend_is_the_slope_of_morphology_and_noise_does_not_shrink_it():
    scores, morphology, law = by_factors()
    trend = fit_morphology_trend(scores, morphology)
    np.testing.assert_allclose(trend.loadings, law, atol=0.25)
    assert abs(np.polyfit(law.ravel(), trend.loadings.ravel(), 1)[0] - 1) < 0.05
    twice = fit_morphology_trend(2 * scores, morphology)
    np.testing.assert_allclose(2 * twice.loadings, trend.loadings, rtol=1e-5)
    assert "300 spots" in trend.words


def test_along_a_trend_nothing_moves_by_nothing_and_the_rest_inside_what_was_seen():
    scores, morphology, law = by_factors()
    trend = fit_morphology_trend(scores, morphology)
    np.testing.assert_array_equal(trend.moved(morphology, np.zeros((300, 3))), morphology)
    some = trend.moved(morphology[:5] * 0, np.full((5, 3), 0.1))
    np.testing.assert_allclose(some.reshape(5, 8), np.broadcast_to(0.1 * trend.loadings.sum(axis=0), (5, 8)), rtol=1e-5)
    far = trend.moved(morphology, np.full((300, 3), 100.0)).reshape(300, 8)
    assert (far <= morphology.reshape(300, 8).max(axis=0)).all() and (
        far >= morphology.reshape(300, 8).min(axis=0)
    ).all()


def test_too_few_spots_have_no_trend():
    scores, morphology, _ = by_factors(spots=MIN_SPOTS - 1)
    assert fit_morphology_trend(scores, morphology) is None
