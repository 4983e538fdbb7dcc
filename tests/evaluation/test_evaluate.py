"""Whole evaluations with checkpoints at either end: noise gets the floor, copies of the real patches the ceiling."""

import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_study import CARD, Copying, Described, Knowing, telling_section
from PIL import Image

import napari_stmdit as st
from napari_stmdit.edits import Scale, Towards
from napari_stmdit.errors import RequestError, StoreError, SynthesisError
from napari_stmdit.evaluation.evaluate import evaluate, prepare
from napari_stmdit.evaluation.reading import LinearPredictor
from napari_stmdit.intent import hash_genes
from napari_stmdit.progress import CancelToken
from napari_stmdit.types import DenoiseStep

EDIT = Towards(name="towards two spots", target_spots=("0x0", "0x1"))
REQUEST = st.EvaluationRequest(spots=32, seeds=2, genes=24, draws=100, edits=(EDIT,))
ALL = (
    *("both", "both, expression shuffled", "both, expression across", "morphology alone", "expression alone"),
    *("expression alone, shuffled", "neither", "expression alone, edited"),
)


@pytest.fixture(scope="module")
def sections():
    return telling_section(), telling_section(1, "another")


@pytest.fixture(scope="module")
def knowing(sections, tmp_path_factory):
    model = Knowing(CARD, *sections)
    return evaluate(
        model, sections[0], REQUEST, output=tmp_path_factory.mktemp("knowing"), predictor_sections=sections[1]
    )


@pytest.fixture(scope="module")
def noise(sections, tmp_path_factory):
    output = tmp_path_factory.mktemp("noise")
    return evaluate(Described(CARD), sections[0], REQUEST, output=output, predictor_sections=[sections[1]])


def figures(found):
    return found.report.facts["figures"][0]


def verdicts(found, **of):
    claims = [c for c in found.report.claims if all(getattr(c, name) == value for name, value in of.items())]
    assert claims
    return {(c.true, c.control, c.measure): c.holds for c in claims}


# ------------------------------------------------------------------------------------------------- ceiling and floor


def test_a_copy_of_the_real_patch_gets_the_ceiling(knowing):
    assert knowing.complete and knowing.done == knowing.total == 32 * 2 * 8
    one = figures(knowing)
    assert tuple(one["cases"])[:8] == ALL
    for case in ("both", "expression alone"):
        paired = one["paired"][case]
        assert paired["ssim"]["mean_of_k"]["value"] == pytest.approx(1)
        assert paired["psnr"]["best_of_k"]["value"] == 100 and paired["cosine"]["mean_of_k"]["value"] == pytest.approx(
            1
        )
        read = one["fidelity"]["cases"][case]
        assert read["gene_pearson"] == one["fidelity"]["cases"]["real"]["gene_pearson"]
        assert read["share_of_ceiling"]["value"] == 1 and read["share_of_ceiling"]["low"] == 1
        for statistic in ("haematoxylin", "eosin", "nuclei"):
            assert one["statistics"][case][statistic]["r"]["value"] == pytest.approx(1)
            assert one["statistics"][case][statistic]["mean_minus_real"]["value"] == 0
        for space in one["distribution"].values():
            assert space["cases"][case]["kid"]["value"] == 0
            assert space["cases"][case]["frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert one["fidelity"]["cases"]["real"]["gene_pearson"]["low"] > 0.2  # the predictor itself can read


def test_a_model_that_answers_to_expression_beats_its_controls(knowing):
    fidelity = verdicts(knowing, fidelity=True)
    for true, control in (
        ("expression alone", "expression alone, shuffled"),
        ("expression alone", "neither"),
        ("both", "both, expression shuffled"),
        ("both", "both, expression across"),
        ("morphology alone", "neither"),
    ):
        held = {holds for (a, b, _), holds in fidelity.items() if (a, b) == (true, control)}
        assert held == {True}, (true, control)
    # with its own morphology it copies the real crop, whether or not it is told the expression: a true tie
    assert {holds for (a, b, _), holds in fidelity.items() if (a, b) == ("both", "morphology alone")} == {False}
    density = verdicts(knowing, fidelity=False, measure="correlation of haematoxylin density")
    assert density[("expression alone", "expression alone, shuffled", "correlation of haematoxylin density")]


def test_noise_gets_the_floor_and_no_claim(noise, knowing):
    assert not any(claim.holds for claim in noise.report.claims)
    one, ceiling = figures(noise), figures(knowing)
    for case in ("both", "expression alone"):
        read = one["fidelity"]["cases"][case]
        assert read["gene_pearson"]["low"] < 0 < read["gene_pearson"]["high"]
        assert read["share_of_ceiling"]["low"] < 0 < read["share_of_ceiling"]["high"]
        assert one["paired"][case]["ssim"]["best_of_k"]["value"] < 0.05
        for space in one["distribution"].values():
            for distance in ("frechet", "kid"):
                floor = max(entry[distance]["value"] for entry in space["floors"].values())
                assert space["cases"][case][distance]["low"] > 10 * floor
    assert one["fidelity"]["cases"]["real"] == ceiling["fidelity"]["cases"]["real"]  # the judge is the same
    assert "does not beat" in noise.report.summary and " beats " not in noise.report.summary


def test_real_patches_give_floors_and_the_number_of_patches_is_stated(noise):
    for name, space in figures(noise)["distribution"].items():
        assert name in ("encoder of study (00000000)", "random convolutions, seed 123")
        assert space["n"] == 32 and space["floors"]["real, random halves"]["kid"]["n"] == 16
        assert space["floors"]["real, shifted"]["frechet"]["n"] == 32


def test_an_edit_is_measured_against_its_baseline_with_common_noise(knowing, noise):
    change = figures(knowing)["edits"]["expression alone, edited - expression alone"]
    assert change["pixel_change_grey_levels"]["low"] > 5 and change["read_change_along_edit"]["low"] > 0.3
    nothing = figures(noise)["edits"]["expression alone, edited - expression alone"]
    assert nothing["pixel_change_grey_levels"]["value"] == 0 and nothing["haematoxylin"]["high"] == 0


def test_a_checkpoint_without_expression_has_no_expression_to_claim(sections, tmp_path):
    card = CARD.model_copy(update={"conditions": ("morphology",)})
    found = evaluate(Copying(card), sections[0], REQUEST.model_copy(update={"seeds": 1}), output=tmp_path)
    assert tuple(figures(found)["cases"])[:2] == ("morphology alone", "neither")
    assert all(claim.control == "neither" for claim in found.report.claims)


# ------------------------------------------------------------------------------------------------- the report


def test_the_report_is_whole_well_formed_and_fetches_nothing(knowing):
    text = knowing.report.html.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert not list(root.iter("script")) and not list(root.iter("link"))
    for element in root.iter():
        for name, value in element.attrib.items():
            assert name not in ("href", "srcset") and not (name.endswith("}href") and not value.startswith("#"))
            assert not (name == "src" and not value.startswith("data:image/png;base64,"))
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", text)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) > 10


def test_every_synthetic_image_says_so(knowing):
    root = ElementTree.fromstring(knowing.report.html.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>"))
    images = [(i.attrib["alt"], i.attrib["src"]) for i in root.iter("img")]
    synthetic = [source for alt, source in images if alt.startswith("synthetic patch")]
    real = [source for alt, source in images if alt.startswith("real patch")]
    assert len(synthetic) == 8 * 10 and len(real) == 10 and len(images) == 90
    band = (20, 20, 20)
    for sources, labelled in ((synthetic, True), (real, False)):
        for source in sources:
            pixels = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
            assert (pixels.getpixel((108, 110)) == band) is labelled
    assert "not for diagnosis" in "".join(root.itertext())


def test_the_report_says_what_holds_and_what_does_not(knowing, noise):
    for found in (knowing, noise):
        text = found.report.html.read_text(encoding="utf-8")
        held = sum(claim.holds for claim in found.report.claims)
        assert text.count('<td class="yes">beats</td>') == held
        assert text.count('<td class="no">does not') == len(found.report.claims) - held > 0
    facts = json.loads(noise.report.json.read_text())
    assert {claim["verdict"] for claim in facts["figures"][0]["claims"]} == {"does not"}
    assert facts["synthetic"] and facts["command"].startswith(
        "stmdit evaluate study telling --seed 0 --draws 100 --spots 32 --seeds 2"
    )
    assert facts["request"]["draws"] == 100 and "cross-validated" not in facts["figures"][0]["fidelity"]["predictor"]


# ------------------------------------------------------------------------------------------------- going on, and refusing


class Counting(Described):
    """Counts what it makes."""

    made = 0

    def denoise(self, batch):
        for step in super().denoise(batch):
            self.made += 0 if step.images is None else len(step.images)
            yield step


def test_what_was_stopped_goes_on_to_the_same_figures(sections, tmp_path):
    request = REQUEST.model_copy(update={"seeds": 1})
    whole = evaluate(Described(CARD), sections, request, output=tmp_path / "whole")
    first, cancel = Counting(CARD), CancelToken()

    def stop(progress):
        if progress.patches_done >= 42:
            cancel.cancel()

    how = {"batch": 5, "cancel": cancel, "on_progress": stop}
    stopped = evaluate(first, sections, request, output=tmp_path / "parts", **how)
    assert not stopped.complete and 42 <= stopped.done < stopped.total == 32 * 8
    with pytest.raises(StoreError, match="add --resume"):
        evaluate(Described(CARD), sections, request, output=tmp_path / "parts")
    second, done = Counting(CARD), []
    found = evaluate(
        second,
        sections,
        request,
        output=tmp_path / "parts",
        resume=True,
        on_progress=lambda p: done.append(p.patches_done),
    )
    assert first.made + second.made == 32 * 8 and first.made >= 42 and done == sorted(done)
    assert figures(found) == figures(whole)
    third = Counting(CARD)
    evaluate(third, sections, request, output=tmp_path / "parts", resume=True)
    assert third.made == 0


def test_another_request_takes_nothing_of_this_one(sections, tmp_path):
    request = REQUEST.model_copy(update={"seeds": 1, "spots": 8})
    names = set()
    for changed in ({}, {"seed": 5}, {"steps": 3}, {"guidance": st.Guidance(expression=1)}):
        wanted = request.model_copy(update=changed)
        work = prepare(sections, Described(CARD), wanted, tmp_path, resume=True)
        names |= {job.key for job in work.jobs}
    work = prepare(sections, Described(CARD), request, tmp_path, resume=True)
    assert len(names) == 4 * 8 * 2 and {job.key for job in work.jobs} <= names


class Breaking(Described):
    """Fails amid an evaluation."""

    def denoise(self, batch):
        if len(self.batches) >= 6:
            raise ValueError("a broken device")
        yield from super().denoise(batch)


def test_a_failure_keeps_what_is_finished(sections, tmp_path):
    request = REQUEST.model_copy(update={"seeds": 1})
    with pytest.raises(SynthesisError, match=r"a broken device.*--resume goes on"):
        evaluate(Breaking(CARD), sections[0], request, output=tmp_path, batch=8)
    model = Counting(CARD)
    evaluate(model, sections[0], request, output=tmp_path, resume=True)
    assert model.made == 32 * 7 - 6 * 8


class Losing(Described):
    """Cannot make the patch of one spot."""

    def denoise(self, batch):
        from napari_stmdit.errors import NotFiniteError

        bad = [k for k, patch in enumerate(batch.patches) if patch.spot_id == self.lost]
        if bad:
            yield DenoiseStep(1, batch.steps)
            raise NotFiniteError("not finite", bad)
        yield from super().denoise(batch)


def test_a_spot_that_cannot_be_made_is_left_out_of_all_figures_and_named(sections, tmp_path):
    request = REQUEST.model_copy(update={"seeds": 1, "spots": 48})
    model = Losing(CARD)
    model.lost = "3x3"
    found = evaluate(model, sections[0], request, output=tmp_path)
    assert figures(found)["spots"] == 47
    assert any("1 spots were left out" in note and "3x3" in note for note in found.report.facts["notes"])


def test_several_sections_share_the_spots_and_are_centred(sections, tmp_path):
    found = evaluate(Knowing(CARD, *sections), sections, REQUEST.model_copy(update={"seeds": 1}), output=tmp_path)
    facts = found.report.facts
    assert [section["name"] for section in facts["sections"]] == ["telling", "another"]
    assert figures(found)["spots"] == 32 and "cross-validated" in figures(found)["fidelity"]["predictor"]


def test_a_predictor_of_ones_own_is_used_as_it_is(sections, tmp_path):
    path = tmp_path / "mine.npz"
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 2))
    LinearPredictor(
        "encoder of study (00000000)", ("GENE0", "GENE1"), weights, np.zeros(2), np.zeros(6), np.ones(6)
    ).save(path)
    request = REQUEST.model_copy(update={"seeds": 1, "predictor": str(path)})
    found = evaluate(Described(CARD), sections[0], request, output=tmp_path / "out")
    read = figures(found)["fidelity"]
    assert read["predictor"] == "the predictor in mine.npz, as given" and read["genes"] == 2


def test_bad_wishes_are_refused_before_anything_is_made(sections, tmp_path):
    section, model = sections[0], Counting(CARD)
    small = telling_section(rows=2, columns=3)
    blind = CARD.model_copy(update={"genes": ("X", "Y"), "gene_hash": hash_genes(("X", "Y"))})
    edit = Scale(genes=("NOPE",), factor=2)
    for words, arguments in (
        ("at least 8 are needed", (model, small, REQUEST)),
        ("NOPE", (model, section, REQUEST.model_copy(update={"edits": (edit,)}))),
        ("shares 0 of the 2 genes", (Counting(blind), section, REQUEST)),
        ("'inception': it is unknown", (model, section, REQUEST.model_copy(update={"feature_spaces": ("inception",)}))),
        ("cannot be read", (model, section, REQUEST.model_copy(update={"predictor": "nothing.npz"}))),
        ("there is no file or folder", (model, tmp_path / "nothing", REQUEST)),
        ("none was given", (model, [], REQUEST)),
    ):
        with pytest.raises(RequestError, match=re.escape(words)):
            evaluate(*arguments, output=tmp_path / "out")
    with pytest.raises(RequestError, match="is evaluated itself"):
        evaluate(model, section, REQUEST, output=tmp_path / "out", predictor_sections=section)
    with pytest.raises(StoreError, match="cannot be written"):
        (tmp_path / "file").write_text("mine")
        evaluate(model, section, REQUEST, output=tmp_path / "file")
    assert model.made == 0
    for values in ({"spots": 3}, {"seeds": 0}, {"draws": 5}, {"unknown": 1}):
        with pytest.raises(ValueError, match=next(iter(values))):
            st.EvaluationRequest(**values)


def test_a_folder_stands_for_the_sections_in_it(tiny_folder, tmp_path):
    import shutil

    from napari_stmdit.evaluation.evaluate import open_sections

    for name in ("one", "two"):
        shutil.copytree(tiny_folder, tmp_path / "cohort" / name)
    (tmp_path / "cohort" / "notes").mkdir()
    assert [len(section.spots) for section in open_sections(tmp_path / "cohort")] == [30, 30]
    with pytest.raises(RequestError, match="are for a single section"):
        open_sections(tmp_path / "cohort", mpp=0.5)
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    with pytest.raises(RequestError, match="nor is any folder in it"):
        open_sections(tmp_path / "empty")
