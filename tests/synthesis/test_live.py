"""Live: what edits make of this tissue while they are made is what a run gives, and only what changed is computed."""

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from tiny import TINY_GENES

from napari_stmdit.edits import Scale
from napari_stmdit.encoders.cache import EmbeddingCache
from napari_stmdit.errors import RequestError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis import live
from napari_stmdit.synthesis.canvas import MemoryCanvas
from napari_stmdit.synthesis.live import LiveTissue
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.types import CanvasFrame, Patch, PatchResult

GENES = ("ERBB2", "KRT8", "MKI67", "EPCAM")
TOLERANCE = 1
"""Grey levels by which a live picture may differ from a run's: other spots are in its batches."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from napari_stmdit.assemble import load_checkpoint

    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)
    return load_checkpoint(folder, "cpu", "float32")


@pytest.fixture
def model(loaded):
    return loaded.with_noise_cache(EmbeddingCache(2**28))


@pytest.fixture
def ids(tiny_section):
    return tuple(tiny_section.spots.ids.tolist())


@pytest.fixture
def tissue(tiny_section, model):
    return LiveTissue(tiny_section, model)


def request(weights, strength=1.0, **changes):
    spots = weights if isinstance(weights, dict) else dict.fromkeys(weights, 1.0)
    return Request(edits=(Scale(genes=GENES, factor=40.0, strength=strength, spots=spots),), **{"steps": 6} | changes)


def batches(model, monkeypatch):
    """Record the spots and steps that the checkpoint is asked for."""
    asked = []
    denoise = type(model).denoise

    def recorded(self, batch):
        asked.append((len(batch.sampling.nodes) or batch.steps, tuple(patch.spot_id for patch in batch.patches)))
        yield from denoise(self, batch)

    monkeypatch.setattr(type(model), "denoise", recorded)
    return asked


def as_run(section, model, wanted, spots, steps):
    return synthesize(section, wanted.model_copy(update={"region": SpotList(ids=spots), "steps": steps}), model)


def test_a_picture_is_what_a_run_gives_at_the_same_steps(tiny_section, model, tissue, ids):
    wanted, spots = request({ids[12]: 1.0, ids[13]: 0.4, ids[18]: 0.7}), (ids[12], ids[13], ids[18])
    pictures = list(tissue.update(wanted))
    assert len(pictures[0].steps) < 3  # the first comes before all spots are there
    coarse = next(picture for picture in pictures if len(picture.steps) == 3)
    fine = pictures[-1]
    assert set(coarse.steps.values()) == {len(live.COARSE_NODES)} and coarse.waiting == 3
    assert set(fine.steps.values()) == {6} and fine.waiting == 0
    result = as_run(tiny_section, model, wanted, spots, 6)
    for picture in (coarse, fine):
        assert picture.frame == result.plan.frame
        assert np.array_equal(picture.rgba[..., 3], result.rgba[..., 3])
    assert np.abs(fine.rgba.astype(int) - result.rgba).max() <= TOLERANCE
    assert np.abs(coarse.rgba.astype(int) - fine.rgba).max() > TOLERANCE


def test_patches_that_overlap_are_blended_as_a_run_blends_them():
    rng = np.random.default_rng(0)
    corners = [(0, 0), (20, 9), (31, 40), (64, 30)]
    results = [
        PatchResult(
            Patch(k, f"s{k}", k, (0.0, 0.0, 0.0, 0.0), (y, x, y + 48, x + 48), 0),
            rng.integers(0, 256, (48, 48, 3), np.uint8),
        )
        for k, (y, x) in enumerate(corners)
    ]
    canvas = MemoryCanvas(CanvasFrame((112, 88), (0.0, 0.0), 1.0), even=True)
    for result in results:
        canvas.paste(result)
    made = [live._Made(result, "", 4) for result in reversed(results)]
    assert np.array_equal(live._blended(made, (0, 0, 112, 88)), canvas.rgba)
    assert np.array_equal(live._blended(made, (20, 9, 68, 57)), canvas.rgba[20:68, 9:57])


def test_a_run_finds_the_noise_that_live_kept(tiny_section, model, tissue, ids):
    list(tissue.update(request(ids[12:14])))
    once = model.editor.abducted
    as_run(tiny_section, model, request(ids[12:14], 0.5), ids[12:14], 6)
    assert model.editor.abducted == once


def test_nothing_is_computed_where_nothing_changed(model, tissue, ids, monkeypatch):
    list(tissue.update(request(ids[12:14])))
    asked = batches(model, monkeypatch)
    assert list(tissue.update(request(ids[12:14]))) == []
    assert list(tissue.update(request(ids[12:14], seed=7))) == []  # no noise is fresh
    assert asked == []


def test_only_spots_that_changed_are_computed_and_drawn(tiny_section, model, tissue, ids, monkeypatch):
    *_, before = tissue.update(request({ids[12]: 1.0, ids[27]: 1.0}))
    asked = batches(model, monkeypatch)
    *_, after = tissue.update(request({ids[12]: 1.0, ids[27]: 0.5}))
    assert asked == [(2, (ids[27],)), (6, (ids[27],))]
    assert before.frame == after.frame
    changed = np.argwhere((before.rgba != after.rgba).any(axis=-1))
    patch = as_run(tiny_section, model, request(ids[27:28]), ids[27:28], 6).plan
    corner = np.array(patch.frame.origin) - np.array(after.frame.origin)
    low = np.rint(corner / after.frame.pixel_size)
    assert len(changed)
    assert (changed >= low).all() and (changed < low + patch.card.patch_px).all()


def test_a_spot_that_is_erased_shows_the_slide_again_at_once(tiny_section, model, tissue, ids, monkeypatch):
    list(tissue.update(request(ids[12:15])))
    asked = batches(model, monkeypatch)
    *_, less = tissue.update(request(ids[12:14]))
    assert asked == [] and set(less.steps) == set(ids[12:14])
    result = as_run(tiny_section, model, request(ids[12:14]), ids[12:14], 6)
    assert np.abs(less.rgba.astype(int) - result.rgba).max() <= TOLERANCE
    *_, none = tissue.update(request({}))
    assert not none.steps and not none.rgba.size
    *_, back = tissue.update(request(ids[12:13]))
    assert set(back.steps) == {ids[12]}


def test_a_cancelled_update_ends_within_a_step(model, tissue, ids):
    cancel = CancelToken()
    steps = during(model, 2, cancel.cancel)
    assert list(tissue.update(request(ids[12:14]), cancel=cancel)) == []
    assert steps == [0, 1, 2]


def test_a_newer_edit_of_the_same_spot_ends_an_older_one_within_a_step(model, tissue, ids):
    newer = request(ids[12:14], 0.5)
    steps = during(model, 2, lambda: setattr(tissue, "newest", newer))
    assert list(tissue.update(request(ids[12:14]))) == []
    assert steps == [0, 1, 2]


def test_a_newer_edit_or_closing_ends_the_reading_of_the_tissue_and_nothing_is_read_twice(
    tiny_section, model, tissue, ids, monkeypatch
):
    model.morphology_map, model.fitted, model.encoded_spots = None, {}, {}
    monkeypatch.setattr("napari_stmdit.synthesis.counterfactual.MAP_BATCH", 8)
    older, newer, cancel, told = request(ids[12:14]), request(ids[12:14], 0.5), CancelToken(), []
    tissue.newest = older

    def tell(words):
        told.append(words)
        if len(told) == 2:
            tissue.newest = newer

    assert list(tissue.update(older, tell=tell)) == []
    started = [f"Reading the tissue of this section: {n} of 30 spots" for n in (0, 8, 16, 24)]
    assert told == [*started[:2], ""]
    encode = type(model).encode_morphology
    closing = monkeypatch.context()
    with closing as patched:
        patched.setattr(type(model), "encode_morphology", lambda *given: (cancel.cancel(), encode(*given))[1])
        assert list(tissue.prepare(newer, cancel=cancel)) == []
    told.clear()
    assert list(tissue.update(newer, tell=told.append))[-1].waiting == 0
    assert told == [*started[2:], ""]


def test_a_stroke_that_goes_on_finishes_the_spots_it_has_left_behind(model, tissue, ids):
    """Else a long stroke would show nothing before its end."""
    newer = request({ids[12]: 1.0, ids[13]: 1.0, ids[14]: 0.6, ids[15]: 1.0})
    during(model, 2, lambda: setattr(tissue, "newest", newer))
    pictures = list(tissue.update(request({ids[12]: 1.0, ids[13]: 1.0, ids[14]: 0.3})))
    assert [set(picture.steps) for picture in pictures] == [set(ids[12:14])]


def during(model, number, do):
    """Call something at a step of the first batch; return the list of its steps."""
    seen, edit = [], model.editor.edit

    def watched(batch):
        model.editor.edit = edit
        for step in edit(batch):
            if len(seen) == number:
                do()
            seen.append(len(seen))
            yield step

    model.editor.edit = watched
    return seen


def test_the_noise_of_spots_in_view_is_found_ahead(tiny_section, model, tissue, ids):
    seen = np.zeros(len(ids), dtype=bool)
    seen[12:15] = True
    assert list(tissue.prepare(request({}), seen)) == [0]
    assert model.editor.abducted == 3
    list(tissue.update(request(ids[12:15])))
    assert model.editor.abducted == 3  # the coarse pictures follow the same path
    list(tissue.prepare(request({}), seen))
    assert model.editor.abducted == 3


def test_a_first_picture_takes_three_calls_more_than_the_path_to_the_noise(model, tissue, ids, monkeypatch):
    calls, predict = [], type(model.pipeline.transformer).predict

    def counted(self, *args):
        calls.append(len(args[0]))
        return predict(self, *args)

    monkeypatch.setattr(type(model.pipeline.transformer), "predict", counted)
    pictures = tissue.update(request(ids[12:13]))
    first = next(pictures)
    assert len(calls) == 7 + 3 and set(first.steps.values()) == {len(live.COARSE_NODES)}
    *_, fine = pictures
    assert len(calls) == 7 + 3 + 7 and not fine.waiting  # the path is found once
    calls.clear()
    pictures = tissue.update(request(ids[12:13], 0.9))
    coarse = next(pictures)
    assert len(calls) == 3 and coarse.waiting == 1
    *_, fine = pictures
    assert len(calls) == 3 + 7 and not fine.waiting


def test_only_so_many_spots_in_view_are_shown_and_the_others_counted(tissue, ids, monkeypatch):
    monkeypatch.setattr(live, "MAX_SPOTS", 2)
    seen = np.ones(len(ids), dtype=bool)
    seen[12] = False
    *_, picture = tissue.update(request(ids[12:16]), seen)
    assert len(picture.steps) == 2 and ids[12] not in picture.steps
    assert picture.hidden == 2


def test_an_edit_that_cannot_be_made_is_refused_as_a_run_refuses_it(tissue, ids):
    with pytest.raises(RequestError, match="NO_SUCH_GENE"):
        list(tissue.update(Request(edits=(Scale(genes=("NO_SUCH_GENE",), factor=2, spots={ids[3]: 1.0}),))))
