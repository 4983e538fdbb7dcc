"""Variants of a request, and contact sheets of them."""

import numpy as np
import pytest
from standins import CropModel, NoiseModel, card_for, make_section

from napari_stmdit.edits import Scale
from napari_stmdit.errors import RequestError
from napari_stmdit.intent import Guidance, Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SampleOfSpots, SpotList
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.variants import (
    Variant,
    baseline_of,
    dose_strip,
    guidance_grid,
    make_sheet,
    noise_key,
    sample_seed,
    samples_of,
)

EDITS = (Scale(genes=("GENE1",), factor=3, name="a"), Scale(genes=("GENE2",), factor=0, strength=0.5, name="b"))


@pytest.fixture(scope="module")
def section():
    return make_section()


@pytest.fixture(scope="module")
def card(section):
    return card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=32, patch_mpp=1.0)


def test_the_baseline_differs_in_its_edits_alone(section, card):
    request = Request(edits=EDITS, seed=9, region=SpotList(ids=("0x0", "0x2")), morphology="mean")
    base = baseline_of(request)
    assert base.edits == ()
    assert base.model_copy(update={"edits": EDITS, "counterfactual": request.counterfactual}) == request
    seeds = [[p.seed for p in plan(section, r, card).patches] for r in (request, base)]
    assert seeds[0] == seeds[1]


def test_samples_have_seeds_of_their_own_and_the_first_is_the_request(section, card):
    request = Request(seed=9, region=SpotList(ids=("0x0", "0x2")))
    several = samples_of(request, 4)
    assert several[0] == request
    assert len({r.seed for r in several}) == 4
    assert samples_of(request, 6)[:4] == several  # more samples do not change those that are there
    assert sample_seed(9, 1) != sample_seed(10, 1)
    patch_seeds = [p.seed for r in several for p in plan(section, r, card).patches]
    assert len(set(patch_seeds)) == 8
    with pytest.raises(RequestError, match="drawn with the seed"):
        samples_of(Request(region=SampleOfSpots(count=2)), 2)


def test_a_dose_strip_goes_from_none_to_all_of_one_edit(section, card):
    request = Request(edits=EDITS, seed=9)
    strip = dose_strip(request, "0x0")
    assert [v.request.edits[1].strength for v in strip] == pytest.approx([k / 6 for k in range(7)], abs=1e-4)
    assert all(v.request.edits[0] == EDITS[0] for v in strip)
    assert len({plan(section, v.request, card).patches[0].seed for v in strip}) == 1
    first = dose_strip(request, "0x0", edit=0, doses=3)
    assert [v.request.edits[0].strength for v in first] == [0, 0.5, 1]
    off = request.model_copy(update={"edits": tuple(e.model_copy(update={"enabled": False}) for e in EDITS)})
    for bad, edit in ((Request(), None), (off, None), (request, 7)):
        with pytest.raises(RequestError, match="edit that is switched on"):
            dose_strip(bad, "0x0", edit)


def test_a_guidance_grid_scales_what_is_in_force():
    grid = guidance_grid(
        Request(guidance=Guidance(expression=3)), "0x0", Guidance(expression=9, morphology=2, rule="additive")
    )
    scales = [(v.request.guidance.expression, v.request.guidance.morphology) for v in grid]
    assert scales == [(e, m) for m in (1, 2, 4) for e in (1.5, 3, 6)]
    assert len({v.label for v in grid}) == 9
    most = guidance_grid(Request(guidance=Guidance(expression=29)), "0x0", Guidance(morphology=1, rule="additive"))
    assert max(v.request.guidance.expression for v in most) == 30  # a request allows no more
    without = guidance_grid(Request(morphology="null"), "0x0", Guidance(expression=2, morphology=2, rule="additive"))
    assert [v.request.guidance.expression for v in without] == [1, 2, 4]  # a scale of nothing changes nothing


class ShowsExpression(NoiseModel):
    """Paints the encoded expression and the guidance: what reached the model can be read off its pixels."""

    def images(self, batch):
        side = self.card.patch_px
        values = [
            [
                batch.expression[0, 0] % 256,
                batch.sampling.guidance.expression * 8,
                batch.sampling.guidance.morphology * 8,
            ]
        ]
        return np.broadcast_to(np.array(values, np.uint8)[:, None, None], (1, side, side, 3)).copy()


def test_a_sheet_runs_its_variants_with_common_noise(section, card):
    model = ShowsExpression(card)
    request = Request(edits=(Scale(genes=("GENE1",), factor=30),), seed=3)
    *_, (sheet, progress) = make_sheet("dose", dose_strip(request, "2x4", doses=4), 4, section, model)
    assert (progress.patches_done, progress.patches_total, progress.fraction) == (4, 4, 1)
    assert [c.label for c in sheet.cells] == ["strength 0.00", "strength 0.33", "strength 0.67", "strength 1.00"]
    assert sheet.spot == "2x4"
    assert len({seed for batch in model.batches for seed in batch.seeds}) == 1
    red = [int(c.pixels[0, 0, 0]) for c in sheet.cells]
    assert len(set(red)) == 4
    alone = synthesize(section, dose_strip(request, "2x4", doses=4)[2].request, model)
    np.testing.assert_array_equal(alone.patches[0], sheet.cells[2].pixels)
    assert sheet.cells[2].provenance["request"]["edits"][0]["strength"] == pytest.approx(0.6667, abs=1e-4)
    real = CropModel(card)
    np.testing.assert_array_equal(
        synthesize(section, Request(region=SpotList(ids=("2x4",))), real).patches[0], sheet.real
    )


def test_a_sheet_shows_patches_also_where_the_form_asks_for_seamless_tissue(section, card):
    seamless = Request(edits=EDITS, seed=9, mode="continuous")
    for variants in (dose_strip(seamless, "0x0", doses=2), guidance_grid(seamless, "0x0", card.guidance, (1.0,))):
        assert {variant.request.mode for variant in variants} == {"spots"}
        *_, (sheet, _) = make_sheet("t", variants, 2, section, NoiseModel(card))
        assert sheet.spot == "0x0"
        assert {cell.pixels.shape for cell in sheet.cells} == {(32, 32, 3)}


@pytest.mark.parametrize("region", [SpotList(ids=("0x0", "0x2")), SpotList(ids=("0x0",))])
def test_a_sheet_of_anything_but_one_patch_is_refused(section, card, region):
    wish = Request(region=region, mode="spots" if len(region.ids) > 1 else "continuous")
    with pytest.raises(RequestError, match="patch of one spot"):
        list(make_sheet("t", (Variant("v", wish),), 1, section, NoiseModel(card)))


def test_a_sheet_can_be_stopped_and_keeps_what_is_done(section, card):
    cancel = CancelToken()
    grid = guidance_grid(Request(), "2x4", card.guidance)
    sheets = []
    for sheet, progress in make_sheet("guidance", grid, 3, section, NoiseModel(card), cancel):
        sheets.append(sheet)
        if progress.patches_done == 2:
            cancel.cancel()
    assert len(sheets[-1].cells) == 2


def test_a_faulty_variant_is_refused_before_anything_is_computed(section, card):
    model = NoiseModel(card)
    edits = (Scale(genes=("NOWHERE",), factor=2),)
    with pytest.raises(RequestError, match="NOWHERE"):
        next(make_sheet("dose", dose_strip(Request(edits=edits), "2x4"), 7, section, model))
    assert not model.batches


def test_edited_tissue_is_never_paired_with_new_tissue_and_new_tissue_is_by_whatever_words_it_was_asked_for():
    request = Request(edits=EDITS, seed=9)
    edited = noise_key(request, {"counterfactual": True}, edited=False)
    assert edited != noise_key(baseline_of(request), {"counterfactual": False})
    new = request.model_copy(update={"counterfactual": "off", "edit_scale": 2.0})
    assert noise_key(new, {"counterfactual": False}, edited=False) == noise_key(baseline_of(request), {})


def test_the_baseline_of_an_edit_that_was_asked_for_can_be_run(section, card):
    base = baseline_of(Request(edits=EDITS, counterfactual="on", region=SpotList(ids=("0x0",))))
    assert not plan(section, base, card).counterfactual
