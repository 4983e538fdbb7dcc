"""What can be asked of a plain slide, and what its results say of their expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from slides import tissue_picture, write_pyramid, write_table
from standins import CropModel, card_for
from tiny import TINY_GENES

from napari_stmdit.edits import KnockOut, Scale
from napari_stmdit.errors import RequestError, StoreError
from napari_stmdit.intent import Request
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.synthesis.identity import identity_of
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.tissue.open import open_section

CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
CARD = card_for(TINY_GENES)
FEW = SampleOfSpots(count=3)
NONE = "no measured expression was used"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", tissue_picture(), **CM)


@pytest.fixture(scope="module")
def section(slide):
    return open_section(slide)


@pytest.fixture(scope="module")
def predicted(slide, section, tmp_path_factory):
    table = write_table(tmp_path_factory.mktemp("table") / "mine.h5ad", section.spots.yx)
    return open_section(slide, predicted_expression=table)


def test_a_request_that_leaves_expression_open_runs_with_null_and_says_so(section):
    made = plan(section, Request(region=FEW), CARD)
    assert made.request.expression == "null"
    assert any(NONE in note for note in made.notes)
    assert plan(section, Request(region=FEW, expression="null"), CARD).notes == made.notes


def test_what_needs_expression_is_refused_all_at_once(section):
    edit = KnockOut(genes=("ERBB2",))
    with pytest.raises(RequestError) as raised:
        plan(section, Request(region=FEW, expression="shuffled", edits=(edit,)), CARD)
    faults = dict(raised.value.faults)
    assert set(faults) == {"expression", "edits"}
    assert all("--predicted-expression" in text for text in faults.values())
    with pytest.raises(RequestError, match="'own' was asked for.*use null"):
        plan(section, Request(region=FEW, expression="own"), CARD)
    off = edit.model_copy(update={"enabled": False})
    assert len(plan(section, Request(region=FEW, edits=(off,)), CARD)) == 3


def test_the_model_is_given_no_expression_and_the_slides_own_crops(section):
    model = CropModel(CARD)
    result = synthesize(section, Request(region=FEW), model)
    assert all(batch.expression is None and batch.crops is not None for batch in model.batches)
    record = result.provenance
    assert record["section"]["expression"] == {"kind": "none", "statement": section.expression.statement}
    assert record["request"]["expression"] == "null" and any(NONE in note for note in record["notes"])


def test_predicted_expression_reaches_the_model_and_is_named_with_its_hash(predicted):
    class Watching(CropModel):
        seen = None

        def encode_expression(self, counts, genes, spots=(), depth=None):
            self.seen = counts.toarray(), genes.symbols.tolist()
            return super().encode_expression(counts, genes, spots, depth)

    model = Watching(CARD)
    edit = Scale(genes=("ERBB2",), factor=0.5)
    result = synthesize(predicted, Request(region=FEW, edits=(edit,)), model)
    assert model.seen[1] == list(TINY_GENES) and (model.seen[0] > 0).all()
    kept = result.provenance["section"]["expression"]
    assert (kept["kind"], kept["file"], kept["units"]) == ("predicted", "mine.h5ad", "log1p")
    assert kept["sha256"] == predicted.expression.sha256 and len(kept["sha256"]) == 64
    assert any("predicted, in mine.h5ad" in note for note in result.notes)


def test_a_stored_result_still_says_it_and_more_can_be_added(section, tmp_path):
    model = CropModel(CARD)
    synthesize(section, Request(region=FEW), model).save(tmp_path / "out.zarr")
    again = open_section(tmp_path / "out.zarr")
    assert again.expression == section.expression and again.calibration.mpp == section.calibration.mpp
    np.testing.assert_allclose(again.spots.yx, section.spots.yx, atol=1e-6)
    (stored,) = stored_results(again)
    assert stored.request.expression == "null" and stored.provenance["section"]["expression"]["kind"] == "none"
    more = synthesize(again, stored.request, model)
    assert more.save(tmp_path / "out.zarr") == "stmdit_2"
    np.testing.assert_array_equal(more.rgba[..., 3], np.asarray(stored.rgba)[..., 3])


def test_another_table_is_another_section(section, predicted, slide, tmp_path):
    from napari_stmdit.errors import StoreError

    other = open_section(
        slide, predicted_expression=write_table(tmp_path / "o.h5ad", section.spots.yx, uns={"x": 1, "log1p": {}})
    )
    model = CropModel(CARD)
    synthesize(predicted, Request(region=FEW), model).save(tmp_path / "out.zarr")
    with pytest.raises(StoreError, match="another section"):
        synthesize(other, Request(region=FEW), model).save(tmp_path / "out.zarr")
    one, two = (identity_of(plan(s, Request(region=FEW), CARD), s, model) for s in (predicted, other))
    assert one["section"] != two["section"]


def test_a_run_is_resumed_and_a_seamless_one_works(section, tiny_model, tmp_path):
    from napari_stmdit.progress import CancelToken

    request = Request(region=FEW, steps=2)
    cancel = CancelToken()

    def stop(progress):
        if progress.patches_done == 1:
            cancel.cancel()

    how = {"batch": 1, "folder": tmp_path / "run"}
    stopped = synthesize(section, request, tiny_model, cancel=cancel, on_progress=stop, **how)
    assert len(stopped.done) == 1
    result = synthesize(section, request, tiny_model, resume=True, **how)
    assert result.complete and any("continued" in note for note in result.notes)
    whole = synthesize(section, request, tiny_model)
    assert np.abs(np.asarray(result.rgba).astype(int) - whole.rgba).max() <= 1
    seamless = synthesize(section, request.model_copy(update={"mode": "continuous"}), tiny_model)
    assert seamless.complete and any(NONE in note for note in seamless.notes)


def test_factors_of_each_spot_stand_in_for_the_counts_that_are_missing(section, tiny_checkpoint, tmp_path):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.ui.layers import result_words

    factors = np.random.default_rng(0).uniform(size=(len(section.spots), 8)).astype(np.float32)
    pd.DataFrame(factors, index=section.spots.ids).to_csv(tmp_path / "factors.csv")
    model = load_checkpoint(tiny_checkpoint, device="cpu", expression_embeddings=tmp_path / "factors.csv")
    request = Request(region=FEW, steps=1)
    result = synthesize(section, request, model)
    notes = result.plan.notes
    assert result.plan.request.expression == "own" and not any(NONE in note for note in notes)
    assert "expression is what the given embeddings say of each spot; no count of the section was used" in notes
    assert result.provenance["checkpoint"]["expression_embeddings"]["source"] == "factors.csv"
    assert "expression by embeddings" in result_words(result.plan.request, ("a", "b"), section, False, 1)
    null = synthesize(section, request.model_copy(update={"expression": "null"}), model)
    assert any(NONE in note for note in null.plan.notes) and not np.array_equal(result.rgba, null.rgba)
    edited = request.model_copy(update={"edits": (Scale(genes=("ERBB2",), factor=2.0),)})
    with pytest.raises(RequestError, match="embeddings computed elsewhere"):
        plan(section, edited, model.card)
    assert "expression_given" not in model.card.model_dump()


def test_a_data_set_of_a_slide_does_not_call_anything_measured(section, predicted, tmp_path):
    from napari_stmdit.dataset.export import export_dataset

    for one, word in ((section, "null"), (predicted, "predicted")):
        result = synthesize(one, Request(region=FEW), CropModel(CARD))
        out = tmp_path / word
        export_dataset(result, out)
        assert one.expression.statement[1:] in (out / "README.md").read_text()
        rows = next(out.rglob("*.parquet"))
        import pyarrow.parquet as pq

        table = pq.read_table(rows).to_pydict()
        kinds = dict(zip(table["origin"], table["expression"], strict=True))
        assert kinds == {"slide": word, "model": "null" if word == "null" else "own"}


def test_another_slide_with_the_same_grid_is_another_section(slide, tmp_path):
    """The places of its spots are those of a grid, which slides of one size share."""
    from napari_stmdit import export_dataset
    from napari_stmdit.synthesis.unsaved import ViewerSession, find_sessions
    from napari_stmdit.tissue.open import SectionSource

    twin = write_pyramid(tmp_path / "twin.tif", tissue_picture()[::-1].copy(), **CM)
    section, other = (open_section(place, tissue_fraction=0) for place in (slide, twin))
    assert np.array_equal(other.spots.yx, section.spots.yx) and (other.spots.ids == section.spots.ids).all()
    request = Request(region=FEW)
    made = [synthesize(one, request, CropModel(CARD)) for one in (section, other)]
    made[0].save(tmp_path / "out.zarr")
    with pytest.raises(StoreError, match="holds another slide than twin; give a new path"):
        made[1].save(tmp_path / "out.zarr")
    made[0].save(tmp_path / "out.zarr", "again")
    with pytest.raises(StoreError, match="of different sections"):
        export_dataset(made, tmp_path / "d")
    session = ViewerSession(tmp_path)
    for result, place in zip(made, (section.path, twin), strict=True):
        session.keep(result, place.stem, SectionSource(path=str(place)))
    session.close()
    (kept,) = find_sessions(tmp_path)
    for one in kept.results:
        assert kept.sections[one.section].source.path.endswith(f"{one.name}.tif")
        assert one.read(section if one.name == "slide" else other).rgba.shape
        with pytest.raises(StoreError):
            one.read(other if one.name == "slide" else section)
