import numpy as np
import pytest
from evaluation_study import CARD, GENES, Described, telling_section

from napari_stmdit.errors import RequestError
from napari_stmdit.evaluation.measures import SpotSet
from napari_stmdit.evaluation.reading import (
    FIRST_TOP,
    LinearPredictor,
    area_under_top_n,
    choose_genes,
    fidelity,
    fit_ridge,
    log_levels,
    read_predictor,
    reader_across_blocks,
    reader_from_sections,
    reader_of_user,
    relative,
    top_n_curve,
)
from napari_stmdit.evaluation.spaces import RandomConvolutions
from napari_stmdit.evaluation.statistics import spot_weights
from napari_stmdit.expression.regression import blocks_of, ridge_weights


def linear(genes=("A", "B"), space="random", d=3):
    rng = np.random.default_rng(0)
    g = len(genes)
    return LinearPredictor(
        space, genes, rng.normal(size=(d, g)), rng.normal(size=g), rng.normal(size=d), np.full(d, 2.0)
    )


def test_a_predictor_is_read_back_from_both_formats(tmp_path):
    from safetensors.numpy import save_file

    one = linear()
    features = np.random.default_rng(1).normal(size=(5, 3))
    expected = (features - one.mean) / 2 @ one.weights + one.intercept
    one.save(tmp_path / "one.npz")
    arrays = {name: np.ascontiguousarray(getattr(one, name)) for name in ("weights", "intercept", "mean", "scale")}
    save_file(arrays, tmp_path / "one.safetensors", metadata={"space": "random", "genes": "A\nB"})
    for name in ("one.npz", "one.safetensors"):
        back = read_predictor(tmp_path / name)
        assert (back.space, back.genes) == ("random", ("A", "B"))
        np.testing.assert_allclose(back.predict(features), expected)


def test_every_fault_of_a_predictor_is_named_at_once(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(
        path, weights=np.full((3, 2), np.nan), genes=np.array(["A", "A", "B"]), scale=np.zeros(3), mean=np.zeros(2)
    )
    with pytest.raises(RequestError) as caught:
        read_predictor(path)
    text = str(caught.value)
    for words in ("feature space", "names 3 genes", "twice", "'mean' has shape (2,)", "not finite", "zeros"):
        assert words in text


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, weights=np.array([{"a": 1}], dtype=object), genes=np.array(["A"]))
    with pytest.raises(RequestError, match="cannot be read"):
        read_predictor(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_predictor(tmp_path / "nothing.npz")


def test_ridge_finds_a_linear_law_in_spite_of_sections_of_another_stain():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 6))
    law = rng.normal(size=(6, 3))
    sections = np.repeat([0, 1], 80)
    levels = features @ law + 0.1 * rng.normal(size=(160, 3)) + sections[:, None] * 5.0
    shifted = features + sections[:, None] * [7.0, 0, 0, 0, 0, 0]
    found = fit_ridge(shifted, levels, sections, sections, ("A", "B", "C"), "made", "ridge")
    fresh = rng.normal(size=(50, 6))
    for gene in range(3):
        assert np.corrcoef(found.predict(fresh)[:, gene], (fresh @ law)[:, gene])[0, 1] > 0.99
    assert "penalty" in found.description


def test_ridge_weights_are_those_of_the_usual_solution():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 30)), rng.normal(size=(20, 2))  # fewer spots than features
    for penalty, found in zip((1.0, 50.0), ridge_weights(x, y, (1.0, 50.0)), strict=True):
        np.testing.assert_allclose(found, np.linalg.solve(x.T @ x + penalty * np.eye(30), x.T @ y), atol=1e-10)


def test_genes_are_the_most_variable_that_all_sections_have():
    section = telling_section()
    genes = choose_genes([section], (*GENES, "ABSENT"), 6)
    variance = log_levels(section, np.arange(len(section.spots)), GENES).var(axis=0)
    assert genes == tuple(GENES[k] for k in np.argsort(-variance)[:6])


def test_blocks_are_stripes_of_equally_many_spots():
    yx = np.array([(r, c) for r in range(3) for c in range(10)], dtype=float)
    blocks = blocks_of(yx, 5)
    assert np.bincount(blocks).tolist() == [6] * 5
    for block in range(5):
        assert np.ptp(yx[blocks == block, 1]) <= 1  # across the longer axis


def test_the_curve_and_its_area_are_means_of_the_most_variable_genes():
    r = np.linspace(1, 0, 21)
    curve = top_n_curve(r)
    assert len(curve) == 21 - FIRST_TOP + 1
    assert curve[0] == pytest.approx(r[:FIRST_TOP].mean()) and curve[-1] == pytest.approx(r.mean())
    assert area_under_top_n(r) == pytest.approx(curve.mean())
    assert area_under_top_n(r[:3]) == pytest.approx(r[:3].mean())  # fewer genes than the first point


def test_fidelity_of_perfect_and_of_unrelated_predictions():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 12))
    groups = np.repeat([0, 1], 30)
    weights = spot_weights(groups, 200)
    perfect = fidelity(truth * 3 + groups[:, None] * 50, truth, groups, weights)  # a section's own mean does not matter
    assert perfect.pearson == pytest.approx(1) and perfect.area == pytest.approx(1)
    nothing = fidelity(rng.normal(size=truth.shape), truth, groups, weights)
    assert abs(nothing.pearson) < 0.1 and np.quantile(nothing.pearson_draws, 0.025) < 0
    assert relative(perfect, perfect).value == 1 and relative(perfect, nothing) is None


@pytest.fixture(scope="module")
def spots():
    section = telling_section()
    return SpotSet(section, np.arange(0, len(section.spots), 2), Described(CARD))


def test_every_spot_is_read_by_a_fit_that_saw_nothing_of_its_block(spots):
    reader = reader_across_blocks(RandomConvolutions(), [spots], spots.checkpoint, 24)
    assert "cross-validated" in reader.description and "No predictor sections were given" in reader.description
    blocks = blocks_of(spots.section.spots.yx)[spots.rows]
    assert np.array_equal(reader.which, blocks) and len(reader.predictors) == 5
    found = fidelity(
        reader.predict(RandomConvolutions().features(spots.crops)),
        reader.truth,
        np.zeros(len(spots), dtype=np.int64),
        spot_weights(np.zeros(len(spots), dtype=np.int64), 200),
    )
    assert np.quantile(found.pearson_draws, 0.025) > 0.3


def test_a_reader_from_other_sections_reads_this_one(spots):
    others = [telling_section(1, "other"), telling_section(2, "third")]
    reader = reader_from_sections(others, RandomConvolutions(), [spots], spots.checkpoint, 10)
    assert "other, third" in reader.description and len(reader.genes) == 10
    predicted = reader.predict(RandomConvolutions().features(spots.crops))
    assert np.mean([np.corrcoef(predicted[:, k], reader.truth[:, k])[0, 1] for k in range(10)]) > 0.4


def test_a_reader_must_not_have_seen_what_it_reads(spots):
    with pytest.raises(RequestError, match="same again is evaluated itself"):
        reader_from_sections([telling_section(0, "same again")], RandomConvolutions(), [spots], spots.checkpoint, 10)


def test_a_predictor_of_another_space_or_of_other_genes_is_refused(spots):
    spaces = (RandomConvolutions(),)
    with pytest.raises(RequestError, match="works in the space 'elsewhere'"):
        reader_of_user(linear(space="elsewhere"), spaces, [spots])
    with pytest.raises(RequestError, match="0 of its 2 genes"):
        reader_of_user(linear(space=spaces[0].name, d=96), spaces, [spots])
    reader = reader_of_user(linear(("GENE1", "GENE2", "X"), spaces[0].name, 96), spaces, [spots])
    assert reader.genes == ("GENE1", "GENE2")


def test_too_few_spots_to_learn_from_are_refused():
    small = telling_section(rows=3, columns=4)
    spots = SpotSet(small, np.arange(12), Described(CARD))
    with pytest.raises(RequestError, match="at least 20 are needed"):
        reader_across_blocks(RandomConvolutions(), [spots], spots.checkpoint, 10)
