"""This tissue, changed: real pixels stay where no edit reaches, and what an edit does is the checkpoint's answer."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from evaluation_study import CARD, Described, telling_section
from pydantic import ValidationError
from standins import CropModel, card_for
from tiny import TINY_GENES

import napari_stmdit as st
from napari_stmdit.edits import Add, KnockOut, Scale, Swap, Towards
from napari_stmdit.errors import RequestError
from napari_stmdit.expression.covariation import covariation_of
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.continuous import MAX_BLOCK, blocks_of, changed_windows, reached_windows
from napari_stmdit.synthesis.counterfactual import follows_of
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.variants import dose_strip, make_sheet, noise_key, samples_of
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.types import SlideImage

EDITS = CARD.model_copy(update={"edits_tissue": True})
GENES = ("ERBB2", "KRT8", "MKI67", "EPCAM")
MODES = ("spots", "continuous")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from napari_stmdit.assemble import load_checkpoint

    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)
    return load_checkpoint(folder, "cpu", "float32")


@pytest.fixture
def ids(tiny_section):
    return tuple(tiny_section.spots.ids.tolist())


def request(ids, *, spots=None, strength=1.0, factor=40.0, **changes):
    """Edit two spots in the middle, and look at a few around them."""
    weights = dict.fromkeys(ids[12:14] if spots is None else spots, 1.0)
    edit = Scale(genes=GENES, factor=factor, strength=strength, spots=weights)
    given = {"region": SpotList(ids=ids[10:19]), "steps": 3, "edits": (edit,)} | changes
    return Request(**given)


def real(section, result):
    """The slide at every patch or tile of a result."""
    side = result.plan.patches[0].canvas_box[3] - result.plan.patches[0].canvas_box[1]
    return {p.index: read_patches(section.image, [p.source_box], side)[0] for p in result.plan.patches}


def differences(section, result):
    """Largest difference from the slide of each patch or tile, where the canvas shows it."""
    found = {}
    for index, crop in real(section, result).items():
        y0, x0, y1, x1 = result.plan.patches[index].canvas_box
        shown = result.rgba[y0:y1, x0:x1]
        change = np.abs(shown[..., :3].astype(int) - crop).max(axis=-1)
        found[result.plan.patches[index]] = np.where(shown[..., 3] > 0, change, 0)
    return found


# ------------------------------------------------------------------------------------------------- what is asked


def test_edits_change_this_tissue_by_default_and_new_tissue_can_be_asked_for(tiny_section, model, ids):
    assert plan(tiny_section, request(ids), model.card).counterfactual
    assert not plan(tiny_section, request(ids, counterfactual="off"), model.card).counterfactual
    assert not plan(tiny_section, Request(region=SpotList(ids=ids[:2])), model.card).counterfactual


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"edits": ()}, "nothing to change"),
        ({"morphology": "mean"}, "each spot's own morphology"),
        ({"morphology": "null"}, "each spot's own morphology"),
        ({"expression": "shuffled"}, "measured expression"),
    ],
)
def test_what_cannot_be_an_edit_of_this_tissue_is_refused_in_one_sentence(tiny_section, model, ids, changes, says):
    with pytest.raises(RequestError) as caught:
        plan(tiny_section, request(ids, counterfactual="on", **changes), model.card)
    ((place, message),) = caught.value.faults
    assert place == "counterfactual" and says in message and "--no-counterfactual" in message


def test_a_checkpoint_that_cannot_edit_tissue_makes_new_tissue_and_says_so(tiny_section, ids):
    card = card_for(TINY_GENES)
    made = plan(tiny_section, request(ids), card)
    assert not made.counterfactual and any("this tissue was not edited" in note for note in made.notes)
    with pytest.raises(RequestError, match="has no encoder"):
        plan(tiny_section, request(ids, counterfactual="on"), card)


def test_a_checkpoint_of_morphology_alone_is_refused(tiny_section, ids):
    card = card_for(TINY_GENES, conditions=("morphology",), edits_tissue=True)
    with pytest.raises(RequestError, match="not conditioned on expression"):
        plan(tiny_section, request(ids, counterfactual="on"), card)


# ------------------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 8])
def test_an_edit_of_no_strength_leaves_every_pixel_of_the_slide(tiny_section, model, ids, mode, batch):
    result = synthesize(tiny_section, request(ids, strength=0.0, mode=mode), model, batch=batch)
    assert result.complete and all(not change.any() for change in differences(tiny_section, result).values())


@pytest.mark.parametrize("mode", MODES)
def test_a_scale_of_nothing_leaves_every_pixel_of_the_slide(tiny_section, model, ids, mode):
    result = synthesize(tiny_section, request(ids, edit_scale=0.0, mode=mode), model)
    assert all(not change.any() for change in differences(tiny_section, result).values())


def test_spots_that_are_not_edited_stay_and_edited_ones_fade_at_their_rim(tiny_section, model, ids):
    result = synthesize(tiny_section, request(ids), model)
    for index, patch in enumerate(result.plan.patches):
        crop = real(tiny_section, result)[index]
        change = np.abs(result.patches[result.done.index(index)].astype(int) - crop)
        if patch.spot_id in ids[12:14]:
            assert change.max() > 5
            assert change[[0, -1]].max() <= 1 and change[:, [0, -1]].max() <= 1
        else:
            assert not change.any()


def test_beyond_the_windows_that_an_edit_reaches_the_slide_is_untouched(tiny_section, model, ids):
    result = synthesize(tiny_section, request(ids, mode="continuous", region=st.regions.AllSpots()), model)
    windows = result.plan.windows
    touched = np.isin(np.arange(len(ids)), tiny_section.spots.rows(list(ids[12:14])))
    changed = changed_windows(windows, np.arange(len(ids)), touched)
    covered = np.zeros(windows.size, dtype=bool)
    for y, x in windows.corners[reached_windows(windows, changed)]:
        covered[y : y + windows.side, x : x + windows.side] = True
    top, left = windows.origin
    moved = 0
    for patch, change in differences(tiny_section, result).items():
        y0, x0, y1, x1 = patch.canvas_box
        rows, columns = np.arange(y0, y1) - top, np.arange(x0, x1) - left
        inside = ((rows >= 0) & (rows < windows.size[0]))[:, None] & ((columns >= 0) & (columns < windows.size[1]))[
            None
        ]
        reached = inside & covered[np.clip(rows, 0, windows.size[0] - 1)][:, np.clip(columns, 0, windows.size[1] - 1)]
        assert not change[~reached].any()
        moved += int(change[reached].max(initial=0) > 5)
    assert moved


def test_a_larger_scale_moves_pixels_further(tiny_section, model, ids):
    small, large = (
        sum(
            d.sum()
            for d in differences(tiny_section, synthesize(tiny_section, request(ids, edit_scale=w), model)).values()
        )
        for w in (0.5, 2.0)
    )
    assert large > 1.5 * small > 0


# ------------------------------------------------------------------------------------------------- fresh noise


def test_without_fresh_noise_the_edit_is_what_it_was_whatever_the_seed(tiny_section, model, ids):
    plain = synthesize(tiny_section, request(ids), model)
    none = synthesize(tiny_section, request(ids, fresh_noise=0.0, seed=5), model)
    np.testing.assert_array_equal(none.rgba, plain.rgba)
    assert none.provenance["edit"]["fresh_noise"] == 0.0 and not any("fresh" in note for note in none.notes)


@pytest.mark.parametrize("batch", [1, 8])
def test_all_noise_fresh_makes_other_tissue_under_the_same_conditions(tiny_section, model, ids, monkeypatch, batch):
    seen = []
    monkeypatch.setattr(model, "denoise", lambda batch: seen.append(batch) or type(model).denoise(model, batch))
    plain = synthesize(tiny_section, request(ids), model, batch=batch)
    fresh = synthesize(tiny_section, request(ids, fresh_noise=1.0), model, batch=batch)
    half = len(seen) // 2
    for one, other in zip(seen[:half], seen[half:], strict=True):
        for name in ("morphology", "expression"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            np.testing.assert_array_equal(getattr(one.edited, name), getattr(other.edited, name))
    crops, middle = real(tiny_section, fresh), slice(24, 40)
    for at, index in enumerate(fresh.done):
        patch = fresh.plan.patches[index]
        moved = np.abs(fresh.patches[at].astype(int) - crops[index]).max(axis=-1)
        if patch.spot_id in ids[12:14]:
            assert (moved[middle, middle] > 0).mean() > 0.95
            assert (fresh.patches[at] != plain.patches[at]).mean() > 0.5
        else:  # what no edit reaches stays the slide
            assert not moved.any()
    assert fresh.provenance["edit"]["fresh_noise"] == 1.0 and fresh.provenance["label"] == plain.provenance["label"]
    assert "100 % of the noise is fresh: details differ from the slide" in fresh.notes


def test_fresh_noise_is_that_of_the_seed(tiny_section, model, ids):
    first, again, batched, other = (
        synthesize(tiny_section, request(ids, fresh_noise=0.3, seed=seed), model, batch=batch).patches
        for seed, batch in ((1, 8), (1, 8), (1, 1), (2, 8))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - batched).max() <= 1
    assert (first != other).any()


def test_samples_of_an_edit_are_variants_of_it(tiny_section, model, ids):
    made = [synthesize(tiny_section, one, model) for one in samples_of(request(ids, fresh_noise=0.5), 2)]
    keys = [noise_key(one.plan.request, one.provenance, edited=False) for one in made]
    assert (made[0].patches != made[1].patches).any() and keys[0] != keys[1]
    exact = [noise_key(one, made[0].provenance, edited=False) for one in samples_of(request(ids), 2)]
    assert exact[0] == exact[1]  # no noise is drawn: the seed says nothing


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_fresh_noise_lies_between_0_and_1(ids, share):
    with pytest.raises(ValidationError, match="fresh_noise"):
        request(ids, fresh_noise=share)


def test_seamless_tissue_takes_no_fresh_noise_and_says_what_does(tiny_section, model, ids):
    with pytest.raises(RequestError, match="--mode spots") as caught:
        plan(tiny_section, request(ids, mode="continuous", fresh_noise=0.3), model.card)
    assert [place for place, _ in caught.value.faults] == ["fresh_noise"]
    assert plan(tiny_section, request(ids, mode="continuous", fresh_noise=0.3, counterfactual="off"), model.card)


# ------------------------------------------------------------------------------------------------- how it is computed


@pytest.mark.parametrize("mode", MODES)
def test_the_image_does_not_depend_on_the_batch(tiny_section, model, ids, mode):
    one, many = (synthesize(tiny_section, request(ids, mode=mode), model, batch=n).rgba for n in (1, 8))
    assert np.abs(one.astype(int) - many).max() <= 1


@pytest.mark.parametrize(("mode", "items"), [("spots", "patches"), ("continuous", "windows")])
def test_too_little_memory_halves_the_batch_of_an_edit_and_is_told(tiny_section, model, ids, mode, items, monkeypatch):
    from napari_stmdit.model import counterfactual

    wanted = request(ids, mode=mode, spots=ids[12:17])
    plain = synthesize(tiny_section, wanted, model)
    slopes = counterfactual._Network._slopes

    def small(self, node, states, items, *, keep):
        if len(items) > 1:
            raise MemoryError("out of memory")
        return slopes(self, node, states, items, keep=keep)

    monkeypatch.setattr(counterfactual._Network, "_slopes", small)
    model.editor.cache.clear()
    monkeypatch.setattr(model.editor.cache, "_folder", None)
    result = synthesize(tiny_section, wanted, model, batch=4)
    told = [note for note in result.notes if "too little memory" in note]
    assert [note.split(f" {items}")[0].split()[-1] for note in told] == ["4", "2"]
    assert np.abs(result.rgba.astype(int) - plain.rgba).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_another_strength_does_not_abduct_the_noise_anew(tiny_section, model, ids, mode, tmp_path, monkeypatch):
    model.editor.cache.clear()
    monkeypatch.setattr(model.editor.cache, "_folder", None)
    synthesize(tiny_section, request(ids, mode=mode), model, batch=3)
    once = model.editor.abducted
    synthesize(tiny_section, request(ids, mode=mode, strength=0.5), model, batch=8)
    synthesize(tiny_section, request(ids, mode=mode, edit_scale=2.0), model)
    assert model.editor.abducted == once
    synthesize(tiny_section, request(ids, mode=mode, steps=4), model)
    assert model.editor.abducted > once


@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_disk_that_is_stopped_goes_on_to_the_same_image(tiny_section, model, ids, mode, tmp_path):
    asked = request(ids, spots=ids[10:19], mode=mode)
    whole = synthesize(tiny_section, asked, model, batch=2)
    cancel, told = CancelToken(), []

    def stop(progress):
        told.append(progress)
        if len(told) == 6:
            cancel.cancel()

    first = synthesize(tiny_section, asked, model, batch=2, cancel=cancel, on_progress=stop, folder=tmp_path / "run")
    assert not first.complete
    second = synthesize(tiny_section, asked, model, batch=2, folder=tmp_path / "run", resume=True)
    assert second.complete and np.abs(np.asarray(second.rgba).astype(int) - whole.rgba).max() <= 1


def comparable(record):
    """What two sessions of one run must record alike."""
    notes = [note for note in record["notes"] if not note.startswith("continued:")]
    return {**record, "notes": notes} | dict.fromkeys(("seconds", "created", "run_id"))


@pytest.mark.parametrize("mode", MODES)
def test_a_run_resumed_when_it_was_whole_records_what_it_did(tiny_section, model, ids, mode, tmp_path):
    asked = request(ids, mode=mode)
    whole = synthesize(tiny_section, asked, model, folder=tmp_path / "run")
    again = synthesize(tiny_section, asked, model, folder=tmp_path / "run", resume=True)
    assert again.complete and comparable(again.provenance) == comparable(whole.provenance)
    assert again.provenance["edit"]["map"]["share"] == 0.5 and any("explains 50 %" in note for note in again.notes)


def test_an_image_of_a_dose_strip_records_how_morphology_follows(tiny_section, model, ids):
    *_, (sheet, _) = make_sheet("doses", dose_strip(request(ids), ids[12], doses=2), 2, tiny_section, model)
    assert [cell.provenance["edit"]["map"]["share"] for cell in sheet.cells] == [0.5, 0.5]


def test_a_cancelled_edit_ends_at_the_next_network_call(tiny_section, model, ids):
    cancel, steps = CancelToken(), []

    def stop(progress):
        steps.append(progress)
        cancel.cancel()

    result = synthesize(tiny_section, request(ids, spots=ids[10:19]), model, cancel=cancel, on_progress=stop)
    assert len(steps) == 1 and not result.done


@pytest.mark.parametrize("mode", MODES)
def test_reading_the_tissue_is_told_stopped_between_two_batches_and_gone_on_with(
    tiny_section, model, ids, mode, monkeypatch
):
    """A large encoder takes minutes for a section's spots: whoever stops then neither waits for them nor loses them."""
    read, encode = [], type(model).encode_morphology

    def encoded(self, crops, spots=()):
        read.append(spots)
        return encode(self, crops, spots)

    monkeypatch.setattr(type(model), "encode_morphology", encoded)
    anew, straight = copy(model), copy(model)
    for one in (anew, straight):
        one.morphology_map, one.fitted, one.encoded_spots = None, {}, {}
    cancel, told = CancelToken(), []

    def stop(progress):
        told.append(progress.doing)
        if read:
            cancel.cancel()

    stopped = synthesize(tiny_section, request(ids, mode=mode), anew, on_progress=stop, cancel=cancel)
    assert read == [ids[:16]] and not stopped.done
    assert told[-2:] == [f"Reading the tissue of this section: {n} of 30 spots" for n in (0, 16)]
    whole = synthesize(tiny_section, request(ids, mode=mode), anew)
    assert whole.complete and read[1] == ids[16:] and read.count(ids[:16]) == 1
    assert np.array_equal(whole.rgba, synthesize(tiny_section, request(ids, mode=mode), straight).rgba)


@pytest.mark.parametrize("what", ["slide", "counts"])
def test_how_morphology_follows_is_not_taken_from_another_slide_or_table_of_the_same_spots(tiny_section, model, what):
    one = copy(model)
    one.morphology_map, one.fitted, one.encoded_spots = None, {}, {}
    image, spots = tiny_section.image, tiny_section.spots
    if what == "slide":
        levels = tuple(255 - level for level in image.levels)
        other = replace(tiny_section, image=SlideImage(levels, image.pixel_size, "its negative"))
    else:
        other = replace(tiny_section, spots=replace(spots, counts=spots.counts[::-1]))
    first, second = (follows_of(section, one.card, one) for section in (tiny_section, other))
    assert follows_of(tiny_section, one.card, one) is first
    assert second is not first and len(one.fitted) == 2


def test_a_large_region_is_cut_into_blocks_that_cover_it(tiny_section, model):
    windows = plan(tiny_section, Request(mode="continuous"), model.card).windows
    blocks = blocks_of(windows, np.ones(len(windows), dtype=bool))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(windows)))
    for block in blocks:
        span = (windows.corners[block].max(axis=0) - windows.corners[block].min(axis=0)) // windows.stride + 1
        assert span.max() <= MAX_BLOCK


# ------------------------------------------------------------------------------------------------- what is said


def test_a_result_says_that_it_is_edited_real_tissue_and_how(tiny_section, model, ids, tmp_path):
    result = synthesize(tiny_section, request(ids), model)
    record = result.provenance
    assert record["counterfactual"] is True and record["synthetic"] is True
    assert "real tissue" in record["statement"]
    assert record["edit"]["scale"] == 1.0 and record["edit"]["steps_each_way"] == 3
    assert record["edit"]["map"]["share"] == 0.5
    assert any("explains 50 %" in note for note in result.notes)
    new = synthesize(tiny_section, request(ids, counterfactual="off"), model)
    assert new.provenance["counterfactual"] is False and "edit" not in new.provenance
    element = result.save(tmp_path / "out.zarr")
    from napari_stmdit.tissue.store_entries import read_result

    assert read_result(tmp_path / "out.zarr", element)[2]["counterfactual"] is True


def test_without_a_stored_map_too_few_spots_leave_morphology_as_it_is(tiny_section, model, ids, monkeypatch):
    monkeypatch.setattr(model, "morphology_map", None)
    result = synthesize(tiny_section, request(ids), model)
    assert any("30 spots are too few" in note for note in result.notes)


def test_stand_ins_without_an_editor_are_never_asked_to_edit(tiny_section, ids):
    result = synthesize(tiny_section, request(ids), CropModel(card_for(TINY_GENES)))
    assert result.complete and result.provenance["counterfactual"] is False


# ------------------------------------------------------------------------------------------------- how morphology follows


class Moving(Described):
    """Keeps what it is given to edit, and returns the real crop."""

    latent_grid = (1, 8)
    editor = property(lambda self: self)

    def __init__(self, card):
        super().__init__(card)
        self.moved = {}

    def images(self, batch):
        self.moved |= dict(
            zip((p.spot_id for p in batch.patches), batch.edited.morphology - batch.morphology, strict=True)
        )
        return batch.crops

    def encode(self, image):
        return np.zeros((1, image.shape[0] // 8, image.shape[1] // 8), np.float32)

    def edit_canvas(self, latents, morphology, expression, edited, corners, weight, steps, batches):
        self.moved |= dict(enumerate(edited.morphology - morphology))
        yield 0.5
        return np.zeros_like(latents)

    def decode_change(self, latents, change):
        return np.repeat(change.repeat(8, axis=1).repeat(8, axis=2)[0][..., None], 3, axis=2)


@pytest.fixture(scope="module")
def hidden():
    """A section in which a hidden field darkens the tissue and raises the genes with even numbers, and spots in its middle."""
    section = telling_section(rows=15, columns=12)
    ids = section.spots.ids.tolist()
    return section, [ids[row] for row in range(60, 120, 5)]


UP = ("GENE0", "GENE2")


def change_of(hidden, *edits, mode="spots"):
    """Return the mean change of morphology by edits of these spots: of the colours' means (3,) and spreads (3,)."""
    section, spots = hidden
    model = Moving(EDITS)
    painted = tuple(edit.model_copy(update={"spots": dict.fromkeys(spots, 1.0)}) for edit in edits)
    result = synthesize(section, Request(edits=painted, region=SpotList(ids=tuple(spots)), mode=mode, steps=2), model)
    return np.mean([model.moved[key] for key in (spots if mode == "spots" else model.moved)], axis=0)[0], result


def test_morphology_moves_as_it_varies_with_the_edited_genes_in_this_section(hidden):
    section, spots = hidden
    edit = Add(genes=UP, log_units=0.3)
    change, result = change_of(hidden, edit)
    smooth = covariation_of(section.spots).smoothed(np.arange(180), np.array([0, 2])).mean(axis=1)
    crops = read_patches(section.slide, [p.source_box for p in plan(section, Request(), CARD).patches], CARD.patch_px)
    slope = np.polyfit(smooth, crops.mean(axis=(1, 2)), 1)[0]
    np.testing.assert_allclose(change[:3], 0.3 * slope, rtol=0.25)  # the estimate is shrunk a little
    assert any("as it varies with the edited genes over 180 spots" in note for note in result.notes)
    half, _ = change_of(hidden, edit.model_copy(update={"strength": 0.5}))
    np.testing.assert_allclose(half, change / 2, rtol=0.05)


def test_seamless_tissue_moves_alike(hidden):
    inside, _ = change_of(hidden, Add(genes=UP, log_units=0.3, spots=None))
    everywhere = Add(genes=UP, log_units=0.3)
    section, spots = hidden
    model = Moving(EDITS)
    given = Request(edits=(everywhere,), region=SpotList(ids=tuple(spots)), mode="continuous", steps=2)
    synthesize(section, given, model)
    np.testing.assert_allclose(np.mean(list(model.moved.values()), axis=0)[0][:3], inside[:3], rtol=0.1)


def test_edits_that_nothing_follows_go_by_the_map_and_both_kinds_add_up(hidden):
    follow, alone = Add(genes=UP, log_units=0.3), KnockOut(genes=("GENE1",), follow="none")
    (first, _), (second, result), (both, noted) = (
        change_of(hidden, follow),
        change_of(hidden, alone),
        change_of(hidden, follow, alone),
    )
    assert np.abs(second).max() > 0
    np.testing.assert_allclose(both, first + second, rtol=1e-3, atol=1e-4)
    assert not any("as it varies" in note for note in result.notes)
    assert any("as it varies" in note for note in noted.notes) and any(
        "Morphology follows expression" in note for note in noted.notes
    )


def test_a_change_of_the_whole_profile_adds_up_with_what_follows_as_counts_and_depth_do(hidden):
    section, spots = hidden
    others = tuple(section.spots.ids[:10].tolist())
    follow = Add(genes=UP, log_units=0.3)
    trend, _ = change_of(hidden, follow)
    for edit in (Towards(target_spots=others), Swap(group_a=tuple(spots), group_b=others)):
        (alone, _), (both, _) = change_of(hidden, edit), change_of(hidden, follow, edit)
        np.testing.assert_allclose(both, alone + trend, rtol=1e-3, atol=1e-4)
