import dataclasses

import numpy as np
import pytest
from standins import card_for, make_section

from napari_stmdit.edits import KnockOut, Towards
from napari_stmdit.errors import RequestError
from napari_stmdit.intent import Guidance, Request, SpotProfile
from napari_stmdit.regions import Polygons, SampleOfSpots, SpotList
from napari_stmdit.synthesis.plan import estimate, patch_seed, plan
from napari_stmdit.types import Calibration, GuidanceScales

GENES = tuple(f"GENE{k}" for k in range(40))


@pytest.fixture(scope="module")
def section():
    return make_section()


@pytest.fixture(scope="module")
def card():
    return card_for(GENES)


def places(error: pytest.ExceptionInfo[RequestError]) -> list[str]:
    return [place for place, _ in error.value.faults]


def test_every_patch_lies_within_half_a_canvas_pixel_of_its_spot(section, card):
    made = plan(section, Request(), card)
    assert len(made) == len(section.spots)
    size = made.frame.pixel_size
    assert size == pytest.approx(0.688 / 0.5)
    for patch in made.patches:
        y0, x0, y1, x1 = patch.source_box
        middle = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
        assert np.abs(middle - section.spots.yx[patch.row]).max() <= size / 2 + 1e-9
        assert y1 - y0 == pytest.approx(64 * size)
        # where it is read is where it is pasted
        corner = made.frame.affine @ [*patch.canvas_box[:2], 1]
        np.testing.assert_allclose(corner[:2], [y0, x0], atol=1e-9)


def test_the_canvas_holds_all_patches_and_no_more(section, card):
    made = plan(section, Request(region=SampleOfSpots(count=7), seed=3), card)
    boxes = np.array([p.canvas_box for p in made.patches])
    assert boxes.min(axis=0)[:2].tolist() == [0, 0]
    assert boxes.max(axis=0)[2:].tolist() == list(made.frame.shape)


def test_a_patchs_seed_depends_on_the_runs_seed_and_the_spot_alone(section, card):
    everything = {p.spot_id: p.seed for p in plan(section, Request(seed=5), card).patches}
    for patch in plan(section, Request(seed=5, region=SampleOfSpots(count=6)), card).patches:
        assert patch.seed == everything[patch.spot_id] == patch_seed(5, patch.spot_id)
    assert len(set(everything.values())) == len(everything)
    assert patch_seed(6, "0x0") != patch_seed(5, "0x0")
    assert 0 <= patch_seed(6, "0x0") < 2**63


def test_regions_choose_spots(section, card):
    spots = section.spots
    assert [p.spot_id for p in plan(section, Request(region=SpotList(ids=("2x4", "0x0"))), card).patches] == [
        "0x0",
        "2x4",
    ]
    y, x = spots.yx[spots.rows(["2x4"])][0]
    ring = ((y - 9, x - 9), (y - 9, x + 9), (y + 9, x + 9), (y + 9, x - 9))
    assert [p.spot_id for p in plan(section, Request(region=Polygons(rings=(ring,))), card).patches] == ["2x4"]


def test_defaults_come_from_the_card(section, card):
    made = plan(section, Request(guidance=Guidance(expression=0.0)), card)
    assert made.guidance == GuidanceScales(expression=0.0, morphology=1.5, rule="nested_morphology_first", above=0)
    assert made.steps == 4


def test_all_faults_are_reported_at_once(section):
    card = card_for(tuple(f"OTHER{k}" for k in range(10)), patch_px=40)  # no multiple of 16, as windows need
    request = Request(
        mode="continuous",
        region=SpotList(ids=("nowhere",)),
        morphology="elsewhere",
        edits=(KnockOut(genes=("NOPE",)),),
    )
    blind = dataclasses.replace(section, calibration=Calibration(None, "unknown", "no scale"))
    with pytest.raises(RequestError) as error:
        plan(blind, request, card)
    assert places(error) == ["section", "mode", "region.ids", "morphology", "genes", "edits[0].genes"]
    assert "no scale" in str(error.value)


def test_too_few_shared_genes_are_refused_with_the_count_unless_allowed(section):
    card = card_for((*GENES[:4], *(f"OTHER{k}" for k in range(6))))
    with pytest.raises(RequestError, match="shares 4 of the 10 genes"):
        plan(section, Request(), card)
    allowed = plan(section, Request(allow_gene_mismatch=True), card)
    assert allowed.genes_shared == 4
    assert any("4 of the checkpoint's 10 genes" in note for note in allowed.notes)
    assert plan(section, Request(expression="null"), card).genes_shared == 4


def test_a_sample_larger_than_the_section_is_refused(section, card):
    with pytest.raises(RequestError, match="500 spots were asked for, the section has 30"):
        plan(section, Request(region=SampleOfSpots(count=500)), card)


def test_genes_of_an_edit_that_the_checkpoint_cannot_see_are_said(section):
    card = card_for(GENES[:30])
    made = plan(section, Request(edits=(KnockOut(genes=("GENE1", "GENE39")),)), card)
    assert any("1 of its 2 genes are not read" in note and "GENE39" in note for note in made.notes)


def test_genes_of_an_edit_that_its_profile_lacks_are_said(section, card):
    a, b, c = section.spots.genes.symbols[:3].tolist()
    towards = Towards(target_profile="lab", genes=(a, b, c))
    lab = {"lab": SpotProfile(values={a: 3.0, c: 1.0})}
    notes = plan(section, Request(edits=(towards,), profiles=lab), card).notes
    assert f"edits[0]: lab lacks 1 of its 3 genes, which stay as measured: {b}" in notes
    whole = plan(section, Request(edits=(Towards(target_profile="lab"),), profiles=lab), card).notes
    assert not any("lab lacks" in note for note in whole)


def test_an_edit_that_reaches_none_of_the_spots_is_said(section, card):
    first, second = section.spots.ids[:2].tolist()
    edits = tuple(KnockOut(genes=("GENE1",), spots=spots) for spots in ({first: 1.0}, {second: 0.0}, {second: 1.0}))
    notes = plan(section, Request(region=SpotList(ids=(second,)), edits=edits), card).notes
    missed = [note for note in notes if "changes nothing" in note]
    assert missed == [
        "edits[0]: none of its spots is made here, so it changes nothing",
        "edits[1]: none of its spots is made here, so it changes nothing",
    ]


def test_the_estimate_counts_patches_bytes_and_time(section, card):
    made = plan(section, Request(region=SampleOfSpots(count=3)), card)
    cost = estimate(made, seconds_per_prediction=0.01)
    assert cost.patches == 3
    assert cost.canvas_bytes == made.frame.shape[0] * made.frame.shape[1] * 20
    assert cost.seconds == pytest.approx(3 * 4 * 3 * 0.01)  # patches, steps, branches
    assert estimate(made).seconds is None
