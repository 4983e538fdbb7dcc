"""A run is continued with the very inputs it was begun with, and with no others, whatever they are called."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from PIL import Image
from standins import CropModel, NoiseModel, card_for, make_section
from tiny import TINY_GENES

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.identity import differences, identity_of, recorded_differences
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import open_canvas, synthesize
from napari_stmdit.synthesis.variants import noise_key
from napari_stmdit.tissue.open import open_section
from napari_stmdit.types import ExpressionSource, SlideImage

GENES = tuple(f"GENE{k}" for k in range(40))
WHOLE = Request(seed=3)


@pytest.fixture
def section():
    return make_section()


@pytest.fixture
def model():
    return CropModel(card_for(GENES))


def with_slide(section, *levels):
    image = SlideImage(tuple(da.from_array(level, chunks=(512, 512, 3)) for level in levels), 1.0, "made")
    return replace(section, image=image)


def pixels_of(section):
    return np.asarray(section.image.levels[0]).copy()


def whole(plan, section, model):
    """The identity as it is kept: in JSON."""
    return json.loads(json.dumps(identity_of(plan, section, model)))


def told(section, other, request, model, other_model=None):
    """What differs between a run on one section and the same on another."""
    one = whole(plan(section, request, model.card), section, model)
    return differences(one, whole(plan(other, request, model.card), other, other_model or model))


# ---------------------------------------------------------------- the slide


def test_a_black_box_of_twelve_pixels_on_the_slide_is_noticed(section, model, tmp_path):
    y, x = (int(v) for v in section.spots.yx[7])
    pixels = pixels_of(section)
    pixels[y + 1 : y + 13, x + 1 : x + 13] = 0
    open_canvas(tmp_path / "run", plan(section, WHOLE, model.card), section, model).close()
    changed = with_slide(section, pixels)
    with pytest.raises(StoreError, match=r"section\.slide\.pixels"):
        open_canvas(tmp_path / "run", plan(changed, WHOLE, model.card), changed, model, resume=True)


def test_a_finest_level_that_was_replaced_around_one_spot_is_noticed(section, model):
    y, x = (int(v) for v in section.spots.yx[7])
    pixels = pixels_of(section)
    coarse = pixels[::2, ::2].copy()
    changed = pixels.copy()
    changed[y - 20 : y + 20, x - 20 : x + 20] += 1
    model.card = card_for(GENES, patch_mpp=0.5)
    assert told(with_slide(section, pixels, coarse), with_slide(section, changed, coarse), WHOLE, model)


@pytest.mark.parametrize("morphology", ["mean", "0x0"])
def test_the_crops_behind_a_shared_morphology_count(section, model, morphology):
    y, x = (int(v) for v in section.spots.yx[0])
    pixels = pixels_of(section)
    pixels[y : y + 12, x : x + 12] = 0
    request = WHOLE.model_copy(update={"morphology": morphology})
    assert told(section, with_slide(section, pixels), request, model)


def test_a_slide_that_a_run_does_not_read_does_not_matter(section, model):
    request = WHOLE.model_copy(update={"morphology": "null"})
    assert not told(section, with_slide(section, 255 - pixels_of(section)), request, model)


def test_the_glass_beyond_the_edge_counts_where_a_patch_reaches_there(section, model):
    """Its colour is looked up on the coarsest level, of which a patch reads nothing."""
    pixels = pixels_of(section)
    edge = replace(section, spots=replace(section.spots, yx=section.spots.yx - section.spots.yx.min(axis=0)))
    glass = np.full((300, 300, 3), 250, dtype=np.uint8)
    assert told(with_slide(edge, pixels, glass), with_slide(edge, pixels, glass - 20), WHOLE, model)


@pytest.mark.parametrize("kind", ["file", "pixels"])
def test_a_slide_file_is_known_by_its_content_and_not_by_its_place(tiny_folder, tmp_path, monkeypatch, kind):
    """Small files as a whole; of large ones the pixels that are read."""
    if kind == "pixels":  # as if the file were larger than what is read of it
        monkeypatch.setattr("napari_stmdit.tissue.identity.SMALL_FILE", 0)
        monkeypatch.setattr("napari_stmdit.tissue.identity._nbytes", lambda *_: 0)
    first, second = (shutil.copytree(tiny_folder, tmp_path / name / "tiny_section") for name in ("a", "b"))
    model = CropModel(card_for(TINY_GENES))
    request = Request(region=SpotList(ids=("SPOT07-1",)))
    opened = open_section(first)
    assert not told(opened, open_section(second), request, model)
    y, x = (int(v) for v in opened.spots.yx[opened.spots.rows(["SPOT07-1"])[0]])
    with Image.open(second / "slide.png") as picture:
        pixels = np.asarray(picture).copy()
    pixels[y : y + 12, x : x + 12] = 0
    Image.fromarray(pixels).save(second / "slide.png")
    found = told(opened, open_section(second), request, model)
    assert len(found) == 1 and found[0].startswith(f"section.slide.{kind}: ")


# ---------------------------------------------------------------- the checkpoint, and what stands in its place


def test_other_embeddings_are_another_run(tiny_section, tiny_checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    models = {}
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(len(tiny_section.spots), 10)).astype(np.float32))
        (tmp_path / f"{name}.ids.txt").write_text("\n".join(tiny_section.spots.ids))
        models[name] = load_checkpoint(tiny_checkpoint, device="cpu", morphology_embeddings=tmp_path / f"{name}.npy")
    request = Request(region=SpotList(ids=("SPOT07-1", "SPOT08-1")), steps=2)
    made = plan(tiny_section, request, models["a"].card)
    open_canvas(tmp_path / "run", made, tiny_section, models["a"]).close()
    with pytest.raises(StoreError, match=r"checkpoint\.morphology_embeddings"):
        open_canvas(tmp_path / "run", made, tiny_section, models["b"], resume=True)
    (tmp_path / "a.npy").rename(tmp_path / "c.npy")
    (tmp_path / "a.ids.txt").rename(tmp_path / "c.ids.txt")
    moved = load_checkpoint(tiny_checkpoint, device="cpu", morphology_embeddings=tmp_path / "c.npy")
    open_canvas(tmp_path / "run", made, tiny_section, moved, resume=True).close()
    unused = made.request.model_copy(update={"morphology": "null"})
    assert not told(tiny_section, tiny_section, unused, models["a"], models["b"])


def test_weights_that_are_kept_elsewhere_count_where_they_are_used(section, model):
    other = CropModel(model.card)
    model.provenance = {**model.provenance, "elsewhere": {"vae": "1", "morphology_encoder": "2"}}
    other.provenance = {**model.provenance, "elsewhere": {"vae": "1", "morphology_encoder": "3"}}
    assert told(section, section, WHOLE, model, other) == ["checkpoint.elsewhere.morphology_encoder: '2' then, '3' now"]
    assert not told(section, section, WHOLE.model_copy(update={"morphology": "null"}), model, other)


def test_another_precision_does_not_go_on(section, tmp_path):
    model, other = (NoiseModel(card_for(GENES)) for _ in range(2))
    other.provenance = {**other.provenance, "dtype": "bfloat16"}
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    with pytest.raises(StoreError, match="dtype: 'none' then, 'bfloat16' now"):
        open_canvas(tmp_path / "run", made, section, other, resume=True)


def test_patches_of_another_precision_or_other_embeddings_are_no_baseline():
    checkpoint = {"sha256": "1", "dtype": "float32", "morphology_embeddings": {"source": "a.npy", "sha256": "2"}}

    def key(**changes):
        return noise_key(WHOLE, {"checkpoint": {**checkpoint, **changes}, "steps": 4})

    assert key() == key(morphology_embeddings={"source": "moved.npy", "sha256": "2"})
    assert key() != key(dtype="bfloat16")
    assert key() != key(morphology_embeddings={"source": "a.npy", "sha256": "3"})
    assert key() != key(elsewhere={"vae": "4"})


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    record["identity"]["code"] = {"version": "0.1", "sha256": "f" * 64}
    file.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="begun by an earlier version") as refused:
        open_canvas(tmp_path / "run", made, section, model, resume=True)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- the record


@pytest.mark.parametrize("folder", [None, "run"])
def test_a_result_records_what_it_was_made_from(section, model, tmp_path, folder):
    made = synthesize(section, WHOLE, model, folder=None if folder is None else tmp_path / folder)
    inputs = made.provenance["inputs"]
    expected = whole(plan(section, WHOLE, model.card), section, model)
    assert {"request": expected["request"], **inputs} == expected
    assert set(inputs) == {"plan", "checkpoint", "dtype", "section", "code"}


def test_what_an_earlier_version_made_counts_as_new_tissue():
    now = {"request": {"seed": 1, "edits": [], "counterfactual": "auto", "edit_scale": 1.0}}
    assert differences({"request": {"seed": 1, "edits": []}}, now) == []
    edits = [{"operation": "scale", "enabled": True}]
    (line,) = differences({"request": {"seed": 1, "edits": edits}}, {"request": {**now["request"], "edits": edits}})
    assert "counterfactual: 'off' then, 'auto' now" in line


def test_what_a_version_without_fresh_noise_edited_was_edited_with_the_noise_of_the_slide():
    from napari_stmdit.synthesis.identity import differences

    then = {"request": {"seed": 1, "edits": [], "counterfactual": "on", "edit_scale": 1.0}}
    assert differences(then, {"request": {**then["request"], "fresh_noise": 0.0}}) == []
    (line,) = differences(then, {"request": {**then["request"], "fresh_noise": 0.5}})
    assert "fresh_noise: 0.0 then, 0.5 now" in line


def test_asking_for_edited_tissue_or_another_scale_of_edits_is_another_request():
    asked = {"seed": 1, "edits": [], "counterfactual": "off", "edit_scale": 1.0}
    for change in ({"counterfactual": "auto"}, {"edit_scale": 2.0}):
        (line,) = differences({"request": asked}, {"request": {**asked, **change}})
        assert line.startswith(f"request.{next(iter(change))}: ")


def test_an_edit_of_an_earlier_version_that_was_switched_off_is_none():
    for enabled, places in (({"enabled": False}, []), ({"enabled": True}, [True]), ({}, [True])):
        edits = [{"operation": "scale", **enabled}]
        now = {"request": {"edits": edits, "counterfactual": "auto", "edit_scale": 1.0}}
        found = differences({"request": {"edits": edits}}, now)
        assert [line.startswith("request.counterfactual: 'off' then") for line in found] == places


def test_an_edit_is_named_by_its_place_and_a_long_value_is_cut():
    then = {"request": {"counterfactual": "off", "edits": [{"factor": 2}, {"factor": 3}]}, "name": "x" * 100}
    now = {"request": {"counterfactual": "off", "edits": [{"factor": 2}, {"factor": 4}]}, "name": "y" * 58}
    assert differences(then, now) == [
        "request.edits[1].factor: 3 then, 4 now",
        f"name: '{'x' * 27}...{'x' * 28}' then, '{'y' * 58}' now",
    ]


def test_a_record_with_its_inputs_is_compared_by_them(section, model):
    now = whole(plan(section, WHOLE, model.card), section, model)
    record = {
        "request": {**now["request"], "section": "/elsewhere", "checkpoint": "/there"},
        "inputs": {name: part for name, part in now.items() if name != "request"},
        "checkpoint": {"sha256": "of another time"},
    }
    assert recorded_differences(record, now) == []
    (line,) = recorded_differences({**record, "request": {**record["request"], "seed": 4}}, now)
    assert line == "request.seed: 4 then, 3 now"
    record["inputs"] = {**record["inputs"], "dtype": "float16"}
    assert recorded_differences(record, now) == ["dtype: 'float16' then, 'none' now"]


def test_a_record_without_inputs_is_compared_as_far_as_it_goes(section, model):
    predicted = replace(section, expression=ExpressionSource("predicted", "a.csv", "1" * 64))
    now = whole(plan(predicted, WHOLE, model.card), predicted, model)
    record = {
        "request": {**now["request"], "section": "/elsewhere", "checkpoint": "/there"},
        "checkpoint": {**now["checkpoint"], "dtype": now["dtype"], "device": "cpu"},
        "section": {"mpp": now["section"]["mpp"], "expression": {"kind": "predicted", "sha256": "1" * 64}},
    }
    assert recorded_differences(record, now) == []
    changes = {
        "checkpoint.sha256": {"checkpoint": {**record["checkpoint"], "sha256": "2"}},
        "dtype": {"checkpoint": {**record["checkpoint"], "dtype": "float16"}},
        "section.mpp": {"section": {**record["section"], "mpp": 0.1}},
        "section.expression.sha256": {
            "section": {**record["section"], "expression": {"kind": "predicted", "sha256": "2"}}
        },
        "request.seed": {"request": {**record["request"], "seed": 9}},
    }
    for place, change in changes.items():
        (line,) = recorded_differences({**record, **change}, now)
        assert line.startswith(f"{place}: ")
    measured = whole(plan(section, WHOLE, model.card), section, model)
    mpp = measured["section"]["mpp"]
    plain = {**record, "section": {"mpp": mpp, "expression": {"kind": "measured"}}}
    assert recorded_differences(plain, measured) == []
    assert recorded_differences({**plain, "section": {"mpp": mpp}}, measured) == []
