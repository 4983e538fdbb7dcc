"""Saved results measured beside the slide they were made from; nothing is synthesized."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from standins import CropModel, NoiseModel, card_for, make_section

import napari_stmdit as st
from napari_stmdit.errors import CheckpointError, RequestError, StoreError
from napari_stmdit.evaluation.results import evaluate_result
from napari_stmdit.progress import CancelToken


def test_the_results_of_a_store_are_compared_spot_by_spot(study, tmp_path):
    found = evaluate_result(study.store, output=tmp_path, draws=100, feature_spaces=("encoder", "random"))
    assert found.complete and found.done == found.total == 7
    (one,) = found.report.facts["figures"]
    assert set(one["cases"]) == {f"stmdit_{name}" for name in study.results} and one["spots"] == 30
    assert one["fidelity"] is None
    assert {(c.true, c.control) for c in found.report.claims} == {
        ("stmdit_measured", "stmdit_shuffled"),
        ("stmdit_measured", "stmdit_null"),
    }
    assert not any(claim.holds for claim in found.report.claims if "haematoxylin" in claim.measure)  # random weights
    assert not one["edits"]  # edits of this tissue: their baseline is the slide, and no result
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["kind"] == "result" and any("real patches of stmdit_measured" in note for note in facts["notes"])
    root = ElementTree.fromstring((tmp_path / "report.html").read_text().removeprefix("<!DOCTYPE html>"))
    assert sum(image.attrib["alt"].startswith("synthetic patch") for image in root.iter("img")) == 7 * 10


def test_a_result_that_copies_the_slide_gets_the_ceiling_and_noise_the_floor(tmp_path):
    section = make_section()
    card = card_for(tuple(section.spots.genes.symbols.tolist()))
    copy, noise = (st.synthesize(section, st.Request(steps=1), kind(card)) for kind in (CropModel, NoiseModel))
    found = evaluate_result([copy, noise], output=tmp_path, draws=100)
    (one,) = found.report.facts["figures"]
    best, worst = one["paired"]["run_1"], one["paired"]["run_2"]
    assert best["ssim"]["mean_of_k"]["value"] == pytest.approx(1) and best["psnr"]["mean_of_k"]["value"] == 100
    assert worst["ssim"]["mean_of_k"]["value"] < 0.1
    (space,) = one["distribution"].values()
    assert space["cases"]["run_1"]["kid"]["value"] == 0 < space["cases"]["run_2"]["kid"]["low"]
    assert not found.report.claims
    assert "Nothing here can say so" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_evaluated_is_refused(study, tmp_path, tiny_zarr, tiny_folder):
    with pytest.raises(StoreError, match="holds no results"):
        evaluate_result(tiny_zarr, output=tmp_path)
    with pytest.raises(StoreError, match="its runs"):
        evaluate_result(study.store, output=tmp_path, runs=("seven",))
    with pytest.raises(CheckpointError, match="is not the one that made all of these results"):
        evaluate_result(study.store, output=tmp_path, feature_spaces=("encoder",), checkpoint="demo")
    section = make_section()
    card = card_for(tuple(section.spots.genes.symbols.tolist()))
    few = st.synthesize(section, st.Request(region=st.regions.SampleOfSpots(count=3), steps=1), CropModel(card))
    with pytest.raises(RequestError, match="run_1: 3 patches"):
        evaluate_result(few, output=tmp_path)
    cancel = CancelToken()
    cancel.cancel()
    assert not evaluate_result(study.store, output=tmp_path, cancel=cancel).complete
    assert not (tmp_path / "report.html").exists()


def test_results_of_other_tissue_are_measured_beside_their_own(tmp_path):
    """Spots of two slides of one array have the same ids and places."""
    sections = [make_section(seed=0), dataclasses.replace(make_section(seed=1), name="other")]
    card = card_for(tuple(sections[0].spots.genes.symbols.tolist()))
    made = [
        st.synthesize(section, st.Request(steps=1, expression=expression), CropModel(card))
        for section, expression in zip(sections, ("own", "shuffled"), strict=True)
    ]
    report = evaluate_result(made, output=tmp_path, draws=100).report
    assert [one["title"] for one in report.facts["figures"]] == ["run_1 in made", "run_2 in other"]
    for number, one in enumerate(report.facts["figures"], start=1):
        assert one["paired"][f"run_{number}"]["psnr"]["mean_of_k"]["value"] == 100
    assert not report.claims and [one["name"] for one in report.facts["sections"]] == ["made", "other"]
