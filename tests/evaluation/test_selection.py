"""What an edit changes over all spots of a result, with intervals and beside chance."""

import csv
import dataclasses

import numpy as np
import pytest
from models_for_ui import Tinted
from standins import card_for
from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401

from napari_stmdit.edits import Scale
from napari_stmdit.errors import RequestError, StmditError, StoreError
from napari_stmdit.evaluation import selection
from napari_stmdit.evaluation.measures import haematoxylin_density
from napari_stmdit.evaluation.selection import Chance, EditEffect, measure_edit, with_chance
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.result import finished
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.synthesis.variants import baseline_of
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import open_section


@pytest.fixture
def model(tiny_section):
    return Tinted(card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7))


def request(section, count=8, factor=3, **more):
    edit = Scale(genes=("ERBB2", "KRT8"), factor=factor)
    region = SpotList(ids=tuple(section.spots.ids[:count].tolist()))
    return Request(region=region, edits=(edit,), counterfactual="off", **more)


@pytest.fixture
def pair(tiny_section, model):
    """A result of new tissue, and its baseline."""
    asked = request(tiny_section)
    return synthesize(tiny_section, asked, model), synthesize(tiny_section, baseline_of(asked), model)


def test_numbers_are_means_of_paired_differences_with_intervals(pair):
    result, base = pair
    effect = measure_edit(result, base)
    assert [row.key for row in effect.rows] == ["pixels", "haematoxylin", "nuclei", "blank"]
    before, after = base.patches, result.patches
    pixels = np.abs(after.astype(int) - before).mean(axis=(1, 2, 3))
    assert effect.rows[0].change.value == pytest.approx(pixels.mean(), abs=1e-5)
    stain = np.array([haematoxylin_density(b) - haematoxylin_density(a) for a, b in zip(before, after, strict=True)])
    row = effect.rows[1]
    assert row.change.value == pytest.approx(stain.mean(), abs=1e-5)
    assert row.change.value == pytest.approx(row.after - row.before, abs=3e-5)
    spread = stain.std() / np.sqrt(len(stain))
    assert row.change.low < row.change.value < row.change.high
    assert row.change.high - row.change.low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert effect.spots == effect.of == 8 and row.chance is None and row.beyond_chance is None
    assert f"Against {effect.before}, pixels change by" in effect.words and "8 spots" in effect.words
    assert "Haematoxylin density" in effect.words and "95\u00a0%" in effect.words


def test_chance_is_what_two_seeds_alone_change(pair, model):
    effect = measure_edit(*pair, model=model)
    assert effect.chance_spots == 8
    assert effect.rows[0].chance > 20  # noise: another seed is another picture
    assert all(row.chance is not None for row in effect.rows)
    assert "Another seed alone changes pixels by" in effect.words
    stain = effect.rows[1]
    assert ("more than chance" if stain.beyond_chance else "within chance") in stain.words


def test_the_range_of_chance_is_that_of_means_of_as_many_spots():
    from napari_stmdit.evaluation.selection import Row
    from napari_stmdit.evaluation.statistics import Interval

    rng = np.random.default_rng(1)
    differences = rng.normal(0, 1, (400, 5))
    rows = (
        Row("pixels", "Change", 1, None, None, Interval(1, 1, 1, 100)),
        Row("haematoxylin", "H", 3, 0.0, 0.5, Interval(0.5, 0.4, 0.6, 100)),
    )
    effect = EditEffect(rows, 100, 100, "the slide")
    found = with_chance(effect, Chance(differences, np.ones(400)), draws=4000)
    assert found.rows[1].chance == pytest.approx(1.96 / np.sqrt(100), rel=0.08)  # though 400 were synthesized
    assert found.rows[1].beyond_chance
    assert "more than chance (±" in found.rows[1].words
    mixed = Row("haematoxylin", "H", 3, 0.0, 0.5, Interval(0.5, -0.4, 1.4, 100), 0.1)
    assert "more than chance, but not the same way at all spots" in mixed.words


def test_one_spot_has_no_interval(tiny_section, model):
    asked = request(tiny_section, 1)
    effect = measure_edit(synthesize(tiny_section, asked, model), synthesize(tiny_section, baseline_of(asked), model))
    assert all(np.isnan([row.change.low, row.change.high]).all() for row in effect.rows)
    assert "95\u00a0%" not in effect.words and "One spot has no interval." in effect.words
    assert list(csv.DictReader(effect.table.splitlines()))[1]["low_95"] == ""
    assert EditEffect.read({"effect": effect.facts}).words == effect.words


def test_an_edit_that_nobody_sees_is_called_so(tiny_section, model):
    asked = request(tiny_section, factor=1.0)
    effect = measure_edit(synthesize(tiny_section, asked, model), synthesize(tiny_section, baseline_of(asked), model))
    assert effect.rows[0].change.value == 0 and not effect.visible and "not visible" in effect.words


def test_the_table_and_the_record_hold_the_same_numbers(pair, model, tmp_path):
    effect = measure_edit(*pair, model=model)
    file = effect.write_csv(tmp_path / "effect.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["measure"] for row in rows][1:] == ["Haematoxylin density", "Nuclei", "Blank area"]
    assert float(rows[1]["difference"]) == pytest.approx(effect.rows[1].change.value, abs=1e-5)
    assert float(rows[1]["chance_95"]) == pytest.approx(effect.rows[1].chance, abs=1e-5)
    with pytest.raises(StoreError, match="nothing is overwritten"):
        effect.write_csv(file)
    effect.recorded_in(pair[0]).save(tmp_path / "out.zarr")
    (stored,) = stored_results(open_section(tmp_path / "out.zarr"))
    again = EditEffect.read(stored.provenance)
    assert again.words == effect.words and again.table == effect.table
    for record in ({}, {"effect": 3}, {"effect": {"rows": [{}]}}, {"effect": {**effect.facts, "rows": []}}):
        assert EditEffect.read(record) is None


def test_edited_tissue_is_compared_with_its_slide(tiny_section, tiny_model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = request(tiny_section, 4, 40.0).model_copy(update={"counterfactual": "on", "steps": 2})
    result = synthesize(tiny_section, asked, tiny_model)
    effect = measure_edit(result, model=tiny_model)
    made = finished(result)
    slide = read_patches(tiny_section.image, [one.source_box for one in made.patches], made.patch_px)
    expected = np.abs(np.stack([made.pixels(k) for k in range(4)]).astype(int) - slide).mean()
    assert effect.rows[0].change.value == pytest.approx(expected, abs=1e-5)
    assert effect.before == "the slide" and effect.edited_tissue
    assert "from the tissue's own noise" in effect.words and "So few spots" in effect.words


def test_only_some_spots_of_a_large_result_are_measured_and_that_is_said(pair, model, monkeypatch):
    monkeypatch.setattr(selection, "MAX_SPOTS", 5)
    monkeypatch.setattr(selection, "MAX_CHANCE_SPOTS", 3)
    effect = measure_edit(*pair, model=model)
    assert (effect.spots, effect.of, effect.chance_spots) == (5, 8, 3)
    assert "5 of 8 spots, evenly taken" in effect.words


def test_what_cannot_be_measured_is_refused_in_a_sentence(pair, model, tiny_section):
    result, base = pair
    with pytest.raises(RequestError, match="no edits"):
        measure_edit(base)
    with pytest.raises(RequestError, match="give its baseline"):
        measure_edit(result)
    other = synthesize(tiny_section, baseline_of(request(tiny_section, seed=5)), model)
    with pytest.raises(RequestError, match="not the same request"):
        measure_edit(result, other)
    fewer = synthesize(tiny_section, baseline_of(request(tiny_section, 3)), model)
    with pytest.raises(RequestError, match="lacks 5 spots"):
        measure_edit(result, fewer)
    model.provenance = {**model.provenance, "sha256": "1" * 64}
    with pytest.raises(StmditError, match="another checkpoint"):
        measure_edit(result, base, model=model)
    blank = dataclasses.replace(result, done=(), patches=result.patches[:0])
    with pytest.raises(StoreError, match="no patch was finished"):
        measure_edit(blank, base)


def test_fresh_noise_is_not_credited_to_the_edit(tiny_section, tiny_model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = request(tiny_section, count=5).model_copy(update={"counterfactual": "on", "steps": 2})
    own, fresh = (
        measure_edit(
            synthesize(tiny_section, asked.model_copy(update={"fresh_noise": share}), tiny_model), model=tiny_model
        )
        for share in (0.0, 0.5)
    )
    assert selection.NO_SEED in own.words and selection.FRESH not in own.words
    assert selection.FRESH in fresh.words and selection.NO_SEED not in fresh.words
    assert all(row.beyond_chance is None for row in fresh.rows)
    assert EditEffect.read({"effect": fresh.facts}) == fresh
