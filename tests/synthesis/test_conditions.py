"""What patches and windows are conditioned on, and that the record says so."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import tiny_transformer
from scipy.sparse import csr_matrix
from standins import CropModel, card_for, make_section

from napari_stmdit.assemble import Checkpoint, load_checkpoint
from napari_stmdit.embeddings import PrecomputedEmbeddings
from napari_stmdit.encoder_sources import MissingEncoder
from napari_stmdit.errors import CheckpointError, RequestError
from napari_stmdit.intent import Request
from napari_stmdit.regions import Polygons
from napari_stmdit.synthesis.conditions import condition_rows, mixed_counts, shuffled_rows
from napari_stmdit.synthesis.continuous import WindowConditions
from napari_stmdit.synthesis.plan import evaluations, plan
from napari_stmdit.synthesis.session import synthesize

MODES = ("spots", "continuous")
AREA = Polygons(rings=(((100, 100), (100, 420), (420, 420), (420, 100)),))


@pytest.fixture
def pixcell(tiny_checkpoint):
    """A checkpoint as PixCell's: its transformer takes no expression, and there is no encoder of it."""
    tiny_model = load_checkpoint(tiny_checkpoint, device="cpu")
    blind = {"expression_dim": None, "expression_adaln": False, "expression_cross_attention": False}
    tiny_model.pipeline.transformer = tiny_transformer(**blind, expression_expand=1)
    card = tiny_model.card.model_copy(
        update={"conditions": ("morphology",), "genes": (), "gene_hash": "", "profiles": ()}
    )
    missing = MissingEncoder(CheckpointError("not conditioned on expression"))
    return Checkpoint(card, tiny_model.pipeline, missing, tiny_model.morphology, {}, tiny_model.provenance)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_without_expression_is_used_as_with_null_expression(tiny_section, pixcell, mode):
    images = {}
    for expression in ("own", "shuffled", "null"):
        request = Request(region=AREA, mode=mode, expression=expression, steps=2)
        result = synthesize(tiny_section, request, pixcell, batch=32)
        assert result.complete and not result.plan.has_expression
        images[expression] = result.rgba
        assert evaluations(result.plan) == evaluations(plan(tiny_section, request, pixcell.card))
        if mode == "continuous":
            assert "expression of a window: null" in result.provenance["continuous"]["rule"]
    np.testing.assert_array_equal(images["own"], images["null"])
    np.testing.assert_array_equal(images["shuffled"], images["null"])


def test_what_a_checkpoint_does_not_take_costs_no_prediction(tiny_section, pixcell):
    own, null = (Request(region=AREA, expression=source) for source in ("own", "null"))
    assert evaluations(plan(tiny_section, own, pixcell.card)) == evaluations(plan(tiny_section, null, pixcell.card))


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_without_morphology_is_refused_its_own_and_runs_without(tiny_section, tiny_model, mode):
    card = tiny_model.card.model_copy(update={"conditions": ("expression",)})
    model = Checkpoint(card, tiny_model.pipeline, tiny_model.expression, None, {}, tiny_model.provenance)
    with pytest.raises(RequestError, match="not conditioned on morphology"):
        synthesize(tiny_section, Request(region=AREA, mode=mode, steps=1), model)
    result = synthesize(tiny_section, Request(region=AREA, mode=mode, steps=1, morphology="null"), model)
    assert result.complete and not result.plan.has_morphology and result.plan.has_expression


# --- between spots


def test_a_window_averages_shares_and_totals_each_on_its_own():
    """A deep spot of pure A and a shallow one of pure B, half each: half A, half B, and the mean total."""
    counts = csr_matrix(np.array([[900.0, 0.0], [0.0, 100.0]], dtype=np.float32))
    mix = csr_matrix(np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], dtype=np.float32))
    expected = [[250, 250], [0.25 * 300, 0.75 * 300], [900, 0]]
    np.testing.assert_allclose(mixed_counts(mix, counts).toarray(), expected, rtol=1e-6)


def test_a_spot_without_counts_adds_nothing_to_a_mix():
    counts = csr_matrix(np.array([[300.0, 100.0], [0.0, 0.0]], dtype=np.float32))
    mixed = mixed_counts(csr_matrix(np.array([[0.5, 0.5]], dtype=np.float32)), counts).toarray()
    np.testing.assert_allclose(mixed, 0.5 * np.array([[300, 100]]) / 400 * (0.5 * 400 + 0.5), rtol=1e-6)


def given(section, width, seed):
    """Embeddings computed elsewhere for all spots of a section."""
    ids = section.spots.ids
    return PrecomputedEmbeddings(ids, np.random.default_rng(seed).normal(size=(len(ids), 1, width)))


def test_a_window_gets_the_embeddings_of_its_nearest_spot_and_the_record_says_so(tiny_section, tiny_model):
    morphology, expression = given(tiny_section, 10, 0), given(tiny_section, 8, 1)
    record = {
        **tiny_model.provenance,
        "morphology_embeddings": {"sha256": "a"},
        "expression_embeddings": {"sha256": "b"},
    }
    card = tiny_model.card.model_copy(update={"genes": (), "gene_hash": "", "profiles": ()})
    model = Checkpoint(card, tiny_model.pipeline, expression, morphology, {}, record)
    result = synthesize(tiny_section, Request(region=AREA, mode="continuous", steps=1), model)
    windows = result.plan.windows
    seen = WindowConditions(result.plan, windows, tiny_section, model).get(3, 9)
    for rows, source in zip(seen, (morphology, expression), strict=True):
        for row, box in zip(rows, windows.source_boxes[3:9], strict=True):
            away = np.linalg.norm(tiny_section.spots.yx - (box[:2] + box[2:]) / 2, axis=1)
            np.testing.assert_array_equal(row, source.rows([tiny_section.spots.ids[away.argmin()]])[0])
    rule = result.provenance["continuous"]["rule"]
    assert "morphology of a window: the embedding of its nearest spot" in rule
    assert "expression of a window: the embedding of its nearest spot" in rule
    assert "averaged" not in rule
    plain = synthesize(tiny_section, Request(region=AREA, mode="continuous", steps=1), tiny_model)
    rule = plain.provenance["continuous"]["rule"]
    assert rule.startswith(
        "expression of a window: shares of counts and totals, each averaged over the 6 nearest spots"
    )
    assert rule.endswith("after the edits; windows of 64 px every 32 px")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_shuffled_control_gives_every_spot_another_ones_expression(count):
    for seed in range(5):
        other = shuffled_rows(count, seed)
        assert sorted(other) == list(range(count)) and (other != np.arange(count)).all()


# --- shared morphology


def test_the_mean_morphology_is_that_of_crops_all_over_the_section():
    section = make_section()
    model = CropModel(card_for(tuple(section.spots.genes.symbols.tolist())))
    every = synthesize(section, Request(), model)
    shared = condition_rows(replace(every.plan, request=Request(morphology="mean")), section, model).morphology
    crops = np.concatenate([batch.morphology for batch in model.batches])
    assert len(crops) == len(section.spots) <= 64
    np.testing.assert_allclose(shared, crops.mean(axis=0), rtol=1e-5)
    assert np.abs(shared - crops).reshape(len(crops), -1).max(axis=1).min() > 0.1  # and that of no spot
