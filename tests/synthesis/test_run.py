import numpy as np
import pytest
from standins import CropModel, NoiseModel, card_for, make_section

from napari_stmdit.edits import KnockOut
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.synthesis.conditions import shuffled_rows
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import run, synthesize

GENES = tuple(f"GENE{k}" for k in range(40))


@pytest.fixture(scope="module")
def section():
    return make_section()


def test_progress_rises_from_nothing_to_everything(section):
    model = CropModel(card_for(GENES))
    made = plan(section, Request(region=SampleOfSpots(count=5)), model.card)
    updates = list(run(made, section, model, batch=2))
    fractions = [progress.fraction for _, progress in updates]
    assert fractions[0] == 0 and fractions[-1] == 1
    assert fractions == sorted(fractions)
    assert [len(done) for done, _ in updates if done] == [2, 2, 1]
    assert len(updates) == 1 + 3 * 4  # the start, then every step of every batch


def test_the_result_does_not_depend_on_the_batch(section):
    model = NoiseModel(card_for(GENES))
    request = Request(region=SampleOfSpots(count=7), seed=4)
    one = synthesize(section, request, model, batch=1)
    many = synthesize(section, request, model, batch=5)
    assert np.abs(one.rgba.astype(int) - many.rgba).max() <= 1
    other = synthesize(section, request.model_copy(update={"seed": 5}), model)
    assert [p.spot_id for p in other.plan.patches] != [p.spot_id for p in one.plan.patches]


def test_stopping_keeps_what_is_finished_and_ends_within_a_step(section):
    model = CropModel(card_for(GENES))
    cancel = CancelToken()
    steps_after = []

    def watch(progress):
        if cancel.cancelled:
            steps_after.append(progress)
        if progress.patches_done == 2 and progress.step == 1:
            cancel.cancel()

    result = synthesize(section, Request(), model, batch=2, cancel=cancel, on_progress=watch)
    assert steps_after == []
    assert result.done == (0, 1)
    assert not result.complete
    assert (result.rgba[..., 3] == 255).sum() >= 64 * 64
    assert result.provenance["patches"]["spots"] == [p.spot_id for p in result.plan.patches[:2]]


@pytest.mark.parametrize(
    ("source", "crops", "morphology"), [("own", True, True), ("mean", False, True), ("null", False, False)]
)
def test_where_morphology_comes_from(section, source, crops, morphology):
    model = NoiseModel(card_for(GENES))
    synthesize(section, Request(region=SampleOfSpots(count=2), morphology=source), model)
    batch = model.batches[-1]
    assert (batch.crops is not None) == crops
    assert (batch.morphology is not None) == morphology
    if source == "mean":
        np.testing.assert_array_equal(batch.morphology[0], batch.morphology[1])


def test_morphology_of_another_spot_is_that_spots(section):
    model = NoiseModel(card_for(GENES))
    synthesize(section, Request(region=SampleOfSpots(count=2), morphology="2x4"), model)
    shared = model.batches[-1].morphology
    synthesize(section, Request(region={"kind": "spots", "ids": ["2x4"]}), model)
    np.testing.assert_allclose(shared[0], model.batches[-1].morphology[0], atol=1e-4)


def test_expression_is_own_edited_shuffled_or_null(section):
    model = NoiseModel(card_for(GENES))
    sums = np.asarray(section.spots.counts.sum(axis=1)).ravel()

    def encoded(**wishes) -> np.ndarray | None:
        synthesize(section, Request(**wishes), model, batch=100)
        expression = model.batches[-1].expression
        return None if expression is None else expression[:, 0]

    np.testing.assert_allclose(encoded(), sums)
    assert encoded(expression="null") is None
    gene0 = section.spots.counts[:, 0].toarray().ravel()
    np.testing.assert_allclose(encoded(edits=(KnockOut(genes=("GENE0",)),)), sums - gene0, rtol=1e-5)
    shuffled = encoded(expression="shuffled")
    np.testing.assert_allclose(np.sort(shuffled), np.sort(sums))
    np.testing.assert_allclose(shuffled, sums[shuffled_rows(30, 0)])


def test_no_spot_keeps_its_own_expression_when_shuffled():
    for seed in range(20):
        other = shuffled_rows(13, seed)
        assert sorted(other) == list(range(13))
        assert (other != np.arange(13)).all()
