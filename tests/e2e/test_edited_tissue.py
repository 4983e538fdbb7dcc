"""Edits of a real section with the bundled checkpoint: however a run is computed, the slide stays where no edit reaches."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from killing import finished_patches, forked_workers, start

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.edits import Scale
from napari_stmdit.encoders.cache import EmbeddingCache
from napari_stmdit.intent import Request
from napari_stmdit.regions import Polygons, SpotList
from napari_stmdit.scale.batch import LocalRunner, read_jobs, run_batch
from napari_stmdit.synthesis.result import Result
from napari_stmdit.synthesis.session import synthesize, unfinished_folder
from napari_stmdit.synthesis.variants import samples_of
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.tissue.store_entries import list_results, read_result
from napari_stmdit.types import Section

ROW = tuple(f"{column}x12" for column in range(9, 16))
"""Neighbouring spots of section C3, left to right."""
EDITED = {"spots": (*ROW[:2], *ROW[-2:]), "continuous": (ROW[0], ROW[-1])}
SEEN = 0.1
"""Least share of the tissue that an edit reaches whose grey levels change."""


@dataclass
class Case:
    """A section with what is asked of it, and the result of one uninterrupted run, eight patches at once."""

    source: SectionSource
    section: Section
    request: Request
    whole: Result


@pytest.fixture(scope="module")
def model():
    return load_checkpoint("demo", "cpu", "float32")


@pytest.fixture(autouse=True)
def nothing_kept(model):
    """No run may find the noise that another one has kept."""
    model.editor.cache = EmbeddingCache(2**28)


@pytest.fixture(scope="module", params=["spots", "continuous"])
def case(request, shared_data, model):
    source = SectionSource(path=shared_data / "her2st_C3_spaceranger2")
    section = source.open()
    if request.param == "spots":
        region = SpotList(ids=ROW)
    else:  # a strip that is narrow enough for a few windows, and long enough to hold some that no edit reaches
        (y0, x0), (y1, x1) = section.spots.yx[section.spots.rows([ROW[0], ROW[-1]])] + [[20, -20], [70, 20]]
        region = Polygons(rings=(((y0, x0), (y0, x1), (y1, x1), (y1, x0)),))
    edit = Scale(genes=model.card.genes[:50], factor=30.0, spots=dict.fromkeys(EDITED[request.param], 1.0))
    steps = {"spots": 2, "continuous": 1}[request.param]
    asked = Request(region=region, mode=request.param, steps=steps, edits=(edit,))
    model.editor.cache = EmbeddingCache(2**28)
    return Case(source, section, asked, synthesize(section, asked, model, batch=8))


def changes(case, result):
    """Return how far each pixel (h, w) is from the slide, which of those shown an edit reaches by the plan, and which it does not."""
    plan, rgba = result.plan, np.asarray(result.rgba)
    change, reached = np.zeros(rgba.shape[:2], dtype=int), np.zeros(rgba.shape[:2], dtype=bool)
    side = plan.patches[0].canvas_box[2] - plan.patches[0].canvas_box[0]
    for patch in plan.patches:
        y0, x0, y1, x1 = patch.canvas_box
        real = read_patches(case.section.image, [patch.source_box], side)[0].astype(int)
        change[y0:y1, x0:x1] = np.abs(rgba[y0:y1, x0:x1, :3] - real).max(axis=-1)
        if plan.windows is None:
            reached[y0:y1, x0:x1] = patch.spot_id in EDITED["spots"]
    if plan.windows is not None:
        edited = case.section.spots.rows(list(EDITED["continuous"]))
        drawn = (np.isin(plan.windows.rows, edited) & (plan.windows.weights > 0)).any(axis=1)
        for corner in plan.windows.corners[_overlapping(plan.windows.corners, drawn, plan.windows.side)]:
            (y0, x0), n = corner + plan.windows.origin, plan.windows.side
            reached[max(y0, 0) : max(y0 + n, 0), max(x0, 0) : max(x0 + n, 0)] = True
    shown = rgba[..., 3] > 0
    return np.where(shown, change, 0), reached & shown, shown & ~reached


def _overlapping(corners, chosen, side):
    return [k for k, own in enumerate(corners) if (np.abs(corners[chosen] - own).max(axis=1) < side).any()]


def check(case, result):
    """The slide beyond the reach of the edit, a change within, and what the uninterrupted run made."""
    change, reached, beyond = changes(case, result)
    assert result.complete and beyond.sum() > 10_000
    assert not change[beyond].any()
    assert (change[reached] > 0).mean() > SEEN and change.max() >= 4
    assert np.abs(np.asarray(result.rgba).astype(int) - case.whole.rgba).max() <= 1
    assert result.provenance["counterfactual"] and result.provenance["edit"] == case.whole.provenance["edit"]


def test_beyond_its_reach_an_edit_leaves_a_real_slide_as_it_is(case):
    check(case, case.whole)


@pytest.mark.nightly  # each time on the tiny section: synthesis/test_counterfactual
def test_one_patch_at_once_makes_the_same_of_a_real_slide(case, model):
    check(case, synthesize(case.section, case.request, model, batch=1))


@pytest.mark.slow
def test_a_run_on_a_real_slide_that_is_killed_goes_on_to_the_same_image(case, model, tmp_path):
    wanted, output = tmp_path / "request.json", tmp_path / "o.zarr"
    wanted.write_text(case.request.model_dump_json())
    folder, log = unfinished_folder(output), tmp_path / "log"
    command = [
        *("synthesize", str(case.source.path), "--output", str(output)),
        *("--request", str(wanted), "--batch", "1", "--device", "cpu", "--dtype", "float32"),
    ]
    process = start(command, log, XDG_CACHE_HOME=str(tmp_path / "cache"))
    try:
        while process.is_alive() and not _amid_edits(case, folder):
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
    assert folder.exists(), (tmp_path / "log.err").read_text()
    assert _amid_edits(case, folder) and len(finished_patches(folder)) < len(case.whole.plan)
    resumed = synthesize(case.section, case.request, model, batch=8, folder=folder, resume=True)
    check(case, resumed)


def _amid_edits(case, folder):
    """Whether some of what is edited is safe on the disk: a patch, or a block of windows."""
    if case.request.mode == "continuous":
        return (folder / "solver.npz").exists()
    return (folder / "manifest.json").exists() and len(finished_patches(folder)) > len(ROW) - len(EDITED["spots"])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    yield from _workers(2, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def one_worker(tmp_path):
    yield from _workers(1, tmp_path / "cache")


def _workers(count, cache):
    pytest.importorskip("distributed")
    from napari_stmdit.scale.cluster import connect

    with forked_workers(XDG_CACHE_HOME=str(cache)), connect(None, count, "cpu") as client:
        yield client


def _shared(client, case, folder):
    from napari_stmdit.scale.cluster import synthesize_shared

    how = {"folder": folder, "batch": 1, "device": "cpu", "dtype": "float32"}
    return synthesize_shared(client, case.source, case.section, case.request, **how)


@pytest.mark.slow
@pytest.mark.nightly  # each time on the tiny section: scale/test_edited_tissue
def test_two_workers_edit_a_real_slide_as_one_process_does(two_workers, case, tmp_path):
    check(case, _shared(two_workers, case, tmp_path / "o"))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("case", ["spots"], indirect=True)
def test_one_worker_edits_a_real_slide_as_one_process_does(one_worker, case, tmp_path):
    """A seamless region is on one worker in any case."""
    check(case, _shared(one_worker, case, tmp_path / "o"))


@pytest.mark.parametrize("case", ["spots"], indirect=True)
def test_samples_with_fresh_noise_differ_in_the_edited_spots_of_a_real_slide_alone(case, model):
    asked = case.request.model_copy(update={"fresh_noise": 1.0})
    one, other = (synthesize(case.section, sample, model, batch=8) for sample in samples_of(asked, 2))
    for result in (one, other):
        change, reached, beyond = changes(case, result)
        assert not change[beyond].any() and (change[reached] > 0).mean() > 0.9
        assert result.provenance["label"] == case.whole.provenance["label"]
        assert "100 % of the noise is fresh: details differ from the slide" in result.notes
    assert (one.rgba != other.rgba)[reached].any(axis=-1).mean() > 0.9


JOBS = """
output: results
sections: [{path: SECTION, name: C3}]
edits: {NAME: edits.yaml}
request: {region: {kind: spots, ids: [9x12, 10x12]}, counterfactual: on, steps: 1}
"""


def test_a_batch_edits_a_real_slide_once_and_anew_where_the_edit_changes(shared_data, tmp_path):
    runner = LocalRunner("cpu", "float32")
    store, file = tmp_path / "results" / "C3.zarr", tmp_path / "jobs.yaml"

    def outcome(name, factor):
        (tmp_path / "edits.yaml").write_text(f"- {{operation: scale, genes: [ERBB2, KRT8, COL1A1], factor: {factor}}}")
        file.write_text(JOBS.replace("SECTION", str(shared_data / "her2st_C3_spaceranger2")).replace("NAME", name))
        (found,) = run_batch(read_jobs(file), runner)
        return found

    assert outcome("more", 20).state == "done"
    _, _, record = read_result(store, "stmdit_more")
    assert record["counterfactual"] is True and record["edit"]["map"]["share"] > 0
    assert "real tissue" in record["statement"] and record["request"]["edits"][0]["factor"] == 20
    assert outcome("more", 20).state == "there already"
    refused = outcome("more", 30)  # results are never overwritten
    assert refused.state == "failed" and "edits[0].factor: 20.0 then, 30.0 now" in refused.message
    assert outcome("even_more", 30).state == "done"
    assert set(list_results(store)) == {"stmdit_more", "stmdit_even_more"}
    images = [np.asarray(read_result(store, name)[0]) for name in ("stmdit_more", "stmdit_even_more")]
    assert (images[0] != images[1]).any()
