"""A cohort from a job file: every fault at once, nothing done twice, one bad section stops no other."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
import zarr
from PIL import Image

from napari_stmdit.errors import RequestError
from napari_stmdit.progress import CancelToken
from napari_stmdit.scale.batch import LocalRunner, exit_code, read_jobs, run_batch, table
from napari_stmdit.synthesis.requests import read_edit_file
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.tissue.store_entries import RESULT_ATTRS, list_results, read_result


@pytest.fixture
def cohort(tmp_path, tiny_folder, tiny_checkpoint):
    """A job file of two sections and two edits, two spots each; a function that writes it, changed."""
    for name in ("first", "second"):
        shutil.copytree(tiny_folder, tmp_path / name)
    content = {
        "output": "results",
        "checkpoint": str(tiny_checkpoint),
        "sections": [{"path": "first"}, {"path": "second", "name": "two", "mpp": 0.7}],
        "edits": {"measured": [], "no_ERBB2": [{"operation": "knock_out", "genes": ["ERBB2"]}]},
        "request": {"region": {"kind": "sample", "count": 2}, "seed": 3, "steps": 2},
    }

    def write(**changes):
        file = tmp_path / "jobs.yaml"
        file.write_text(yaml.safe_dump({**content, **changes}))
        return file

    return write


@pytest.fixture(scope="module")
def runner():
    return LocalRunner("cpu")


def test_every_edit_on_every_section_and_nothing_twice(cohort, runner, tmp_path):
    jobs = read_jobs(cohort())
    outcomes = run_batch(jobs, runner)
    assert [(o.job.place.name, o.job.edit, o.state, o.patches) for o in outcomes] == [
        ("first", "measured", "done", 2),
        ("first", "no_ERBB2", "done", 2),
        ("two", "measured", "done", 2),
        ("two", "no_ERBB2", "done", 2),
    ]
    stores = [tmp_path / "results" / name for name in ("first.zarr", "two.zarr")]
    assert all(set(list_results(store)) == {"stmdit_measured", "stmdit_no_ERBB2"} for store in stores)
    measured, edited = (read_result(stores[0], f"stmdit_{n}")[0].compute() for n in ("measured", "no_ERBB2"))
    assert (measured[..., 3] == edited[..., 3]).all() and (measured != edited).any()
    assert not list(tmp_path.rglob("*.unfinished"))
    again = run_batch(read_jobs(cohort()), runner)
    assert [o.state for o in again] == ["there already"] * 4 and exit_code(again) == 0
    assert [o.patches for o in again] == [2] * 4


def test_a_result_of_another_request_is_not_taken_for_this_one(cohort, runner):
    run_batch(read_jobs(cohort(edits={"measured": []})), runner)
    outcomes = run_batch(
        read_jobs(cohort(edits={"measured": []}, request={"region": {"kind": "sample", "count": 2}, "seed": 4})), runner
    )
    assert {o.state for o in outcomes} == {"failed"} and exit_code(outcomes) == 1
    assert "seed: 3 then, 4 now" in outcomes[0].message and "another name" in outcomes[0].message


MEASURED = {"edits": {"measured": []}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": 0.62}, r"section\.mpp: 0\.7 then, 0\.62 now"),
        ({"path": "moved spots"}, r"section\.spots"),
        ({"path": "black box"}, r"section\.slide\.file"),
        ({"path": "other counts"}, r"section\.counts"),
    ],
)
def test_a_result_of_other_inputs_is_not_taken_for_this_one(cohort, runner, tmp_path, tiny_folder, change, message):
    place = {"path": "first", "name": "one", "mpp": 0.7}
    assert run_batch(read_jobs(cohort(sections=[place], **MEASURED)), runner)[0].state == "done"
    _change(tmp_path, change.get("path"))
    (outcome,) = run_batch(read_jobs(cohort(sections=[{**place, **change}], **MEASURED)), runner)
    assert outcome.state == "failed" and re.search(message, outcome.message), outcome.message
    assert "of other inputs" in outcome.message
    moved = shutil.move(tmp_path / "first", tmp_path / "elsewhere")  # the same section, called otherwise
    (outcome,) = run_batch(read_jobs(cohort(sections=[{**place, "path": str(moved)}], **MEASURED)), runner)
    assert outcome.state == "there already"


def _change(folder, name):
    """Make a section called like what differs from the first one."""
    if name is None:
        return
    place = shutil.copytree(folder / "first", folder / name)
    if name == "moved spots":
        file = place / "spatial" / "tissue_positions.csv"
        lines = file.read_text().splitlines()
        file.write_text(
            "\n".join(
                [lines[0], *(f"{start},{float(x) + 3}" for start, x in (line.rsplit(",", 1) for line in lines[1:]))]
            )
        )
    elif name == "black box":
        with Image.open(place / "slide.png") as picture:
            pixels = np.asarray(picture).copy()
        pixels[400:412, 400:412] = 0
        Image.fromarray(pixels).save(place / "slide.png")
    else:
        with h5py.File(place / "filtered_feature_bc_matrix.h5", "r+") as file:
            file["matrix/data"][0] += 1


def test_another_precision_is_not_taken_for_this_one(cohort):
    run_batch(read_jobs(cohort(sections=[{"path": "first"}], **MEASURED)), LocalRunner("cpu", dtype="float32"))
    (outcome,) = run_batch(
        read_jobs(cohort(sections=[{"path": "first"}], **MEASURED)), LocalRunner("cpu", dtype="bfloat16")
    )
    assert outcome.state == "failed" and "dtype: 'float32' then, 'bfloat16' now" in outcome.message


def test_a_result_without_recorded_inputs_is_compared_as_far_as_its_record_goes(cohort, runner, tmp_path):
    """As an earlier version saved it."""
    place = {"path": "first", "name": "one", "mpp": 0.7}
    run_batch(read_jobs(cohort(sections=[place], **MEASURED)), runner)
    root = zarr.open_group(tmp_path / "results" / "one.zarr", mode="r+", use_consolidated=False)
    records = root.attrs[RESULT_ATTRS]
    del records["stmdit_measured"]["inputs"]
    root.attrs[RESULT_ATTRS] = records
    zarr.consolidate_metadata(root.store)
    assert run_batch(read_jobs(cohort(sections=[place], **MEASURED)), runner)[0].state == "there already"
    (outcome,) = run_batch(read_jobs(cohort(sections=[{**place, "mpp": 0.62}], **MEASURED)), runner)
    assert outcome.state == "failed" and "section.mpp: 0.7 then, 0.62 now" in outcome.message


def test_one_bad_section_stops_no_other(cohort, runner, tmp_path):
    (tmp_path / "first" / "filtered_feature_bc_matrix.h5").write_bytes(b"broken")
    outcomes = run_batch(read_jobs(cohort()), runner)
    assert [o.state for o in outcomes] == ["failed", "failed", "done", "done"] and exit_code(outcomes) == 1
    assert "cannot be read" in outcomes[0].message
    text = table(outcomes)
    assert "two      measured  done    2/2" in text and "first / measured: " in text


class Failing(SectionSource):
    """A section that cannot be opened, for a reason that nobody foresaw."""

    error: Any = None

    def open(self):
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("could not convert string to float: 'unknown'"), "unexpected ValueError: could not convert"),
        (OSError(errno.EIO, "Input/output error", "slide.tif"), "the disk or the network failed"),
        (MemoryError(), "MemoryError"),
        (AssertionError(), "STMDIT_DEBUG=1"),
    ],
)
def test_whatever_goes_wrong_with_one_section_the_others_go_on(cohort, runner, error, says):
    first, *_, last = read_jobs(cohort(edits={"measured": []}))
    broken = replace(first, place=replace(first.place, source=Failing(path=first.place.source.path, error=error)))
    outcomes = run_batch([broken, last], runner)
    assert [o.state for o in outcomes] == ["failed", "done"] and exit_code(outcomes) == 1
    assert says in outcomes[0].message and "first / measured: " in table(outcomes)


def test_a_full_disk_fails_one_job_and_the_others_go_on(cohort, runner, monkeypatch):
    jobs = read_jobs(cohort(edits={"measured": []}))
    synthesize = runner.synthesize

    def full(job, *arguments):
        if job.place.name == "first":
            raise OSError(errno.ENOSPC, "No space left on device", str(job.place.store))
        return synthesize(job, *arguments)

    monkeypatch.setattr(runner, "synthesize", full)
    outcomes = run_batch(jobs, runner)
    assert [o.state for o in outcomes] == ["failed", "done"] and exit_code(outcomes) == 1
    assert "No space left on device" in outcomes[0].message and "run the batch again" in outcomes[0].message


def test_patches_that_are_not_finite_are_said_and_made_good_by_the_next_batch(cohort, runner, monkeypatch, tmp_path):
    file = cohort(edits={"measured": []}, sections=[{"path": "first"}])
    (job,) = read_jobs(file)
    model = runner.checkpoint(job.request.checkpoint)
    encode = model.encode_morphology
    bad = []

    def spoiled(patches, spots=()):
        bad[:] = bad or [spots[0]]
        rows = encode(patches, spots).copy()
        rows[[spot in bad for spot in spots]] = np.nan
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode_morphology", spoiled)
        (outcome,) = run_batch([job], runner)
    assert (outcome.state, outcome.patches, outcome.planned) == ("incomplete", 1, 2)
    assert exit_code([outcome]) == 1 and outcome.element is None and job.folder.is_dir()
    assert (
        str(job.folder) in outcome.message and "finite" in outcome.message and "run the batch again" in outcome.message
    )
    (again,) = run_batch([job], runner)
    assert (again.state, again.patches) == ("done", 2) and exit_code([again]) == 0
    assert list(list_results(job.place.store)) == ["stmdit_measured"] and not list(tmp_path.rglob("*.unfinished"))


def test_a_result_that_an_earlier_version_left_incomplete_is_not_called_done(cohort, runner):
    (job,) = read_jobs(cohort(edits={"measured": []}, sections=[{"path": "first"}]))
    cancel = CancelToken()
    whole = run_batch([job], runner)
    assert exit_code(whole) == 0
    shutil.rmtree(job.place.store)
    section = job.place.source.open()
    one_by_one = LocalRunner("cpu", batch=1)
    stop = lambda progress: cancel.cancel() if progress.patches_done else None  # noqa: E731
    part = one_by_one.synthesize(job, section, cancel, stop)
    part.save(job.place.store, job.edit)
    (outcome,) = run_batch([job], runner)
    assert outcome.state == "incomplete" and exit_code([outcome]) == 1
    assert "1 of 2 patches are missing" in outcome.message and "another name" in outcome.message


def test_a_name_that_differs_in_case_alone_is_refused_before_the_work(cohort, runner):
    (low,) = read_jobs(cohort(edits={"low": []}, sections=[{"path": "first"}]))
    assert run_batch([low], runner)[0].state == "done"
    (outcome,) = run_batch([replace(low, edit="LOW")], runner)
    assert outcome.state == "failed" and "already holds stmdit_low" in outcome.message
    assert not replace(low, edit="LOW").folder.exists()


def test_an_edit_file_means_in_a_batch_what_it_means_elsewhere(cohort, tmp_path):
    """Its own programs, from a GMT file, and profiles count before the bundled ones of the same name."""
    (tmp_path / "sets.gmt").write_text("hypoxia\tx\tERBB2\n")
    (tmp_path / "other.json").write_text(json.dumps({"values": {"ERBB2": 2.0}}))
    text = "{programs: sets.gmt, profiles: {far: other.json}, edits: [{operation: knock_out, programs: [hypoxia]}]}"
    (tmp_path / "e.yaml").write_text(text)
    (job, _) = read_jobs(cohort(edits={"e": "e.yaml"}))
    file = read_edit_file(tmp_path / "e.yaml")
    assert job.request.programs == file.programs == {"hypoxia": {"ERBB2": 1.0}}
    assert job.request.profiles == file.profiles and job.request.edits == file.edits
    (inline, _) = read_jobs(cohort(edits={"e": yaml.safe_load(text)}))
    assert inline.request == job.request


def test_programs_of_all_jobs_may_be_named_by_every_edit(cohort, tmp_path):
    (tmp_path / "sets.gmt").write_text("mine\tx\tERBB2\n")
    shared = {"programs": "sets.gmt", "steps": 2}
    own = {"programs": {"own": ["ESR1"]}, "edits": [{"operation": "knock_out", "programs": ["own", "mine"]}]}
    (job, plain, *_) = read_jobs(cohort(request=shared, edits={"both": own, "measured": []}))
    assert job.request.programs == {"mine": {"ERBB2": 1.0}, "own": {"ESR1": 1.0}}
    assert plain.request.programs == {"mine": {"ERBB2": 1.0}}


def test_faults_of_fields_and_of_files_are_said_together(cohort, tmp_path):
    (tmp_path / "bad.yaml").write_text("- {operation: fly}")
    file = cohort(
        sections=[{"path": "first", "mpp": -1}, {"path": "nowhere"}, {"path": "second", "name": ""}],
        edits={"stmdit_x": [], "Low": [], "low": [], "wild": "bad.yaml", "inline": [{"operation": "scale"}], "no": ""},
        request={"seed": -1, "programs": "none.gmt", "profiles": {"p": "none.json"}},
        colour="red",
    )
    with pytest.raises(RequestError) as error:
        read_jobs(file)
    found = "\n".join(f"{place}: {message}" for place, message in error.value.faults)
    for part in (
        "sections.0.mpp", "sections.1.path", "sections.2.name", "edits.stmdit_x", "edits.low: it differs from 'Low'",
        "edits.wild", "fly", "edits.inline", "edits.no", "request.seed", "none.gmt", "profiles.p", "colour",
    ):  # fmt: skip
        assert part in found, f"{part} is missing in\n{found}"


def test_two_jobs_never_share_a_folder(cohort):
    sections = [{"path": "first", "name": "a"}, {"path": "second", "name": "a.zarr.b"}]
    with pytest.raises(RequestError, match="one folder"):
        read_jobs(cohort(sections=sections, edits={"b.zarr.c": [], "c": []}))


def test_a_stopped_batch_goes_on_where_it_was(cohort, runner, tmp_path):
    whole = run_batch(read_jobs(cohort(output="elsewhere")), runner)
    cancel = CancelToken()

    def stop(job, progress):
        if job.edit == "no_ERBB2" and progress.patches_done == 1:
            cancel.cancel()

    one_by_one = LocalRunner("cpu", batch=1)
    outcomes = run_batch(read_jobs(cohort()), one_by_one, cancel=cancel, on_progress=stop)
    assert [o.state for o in outcomes] == ["done", "stopped", "not begun", "not begun"] and exit_code(outcomes) == 130
    assert (outcomes[1].patches, outcomes[1].planned) == (1, 2)
    after = run_batch(read_jobs(cohort()), runner)
    assert [o.state for o in after] == ["there already", "done", "done", "done"]
    for one, other in zip(whole, after, strict=True):
        a, b = (read_result(o.job.place.store, o.element)[0].compute().astype(int) for o in (one, other))
        assert np.abs(a - b).max() <= 1


def test_every_fault_of_a_job_file_is_said_at_once(cohort, tmp_path):
    (tmp_path / "bad.yaml").write_text("- {operation: fly}")
    (tmp_path / "bad.geojson").write_text("{}")
    file = cohort(
        sections=[{"path": "nowhere"}, {"path": "first", "region": "bad.geojson"}, {"path": "second", "name": "First"}],
        edits={"a/b": [], "wild": "bad.yaml"},
    )
    with pytest.raises(RequestError) as error:
        read_jobs(file)
    places = [place for place, _ in error.value.faults]
    assert places[:2] == ["sections.0.path", "sections.2.name"]
    assert "sections.1.region" in places and "edits.a/b" in places and any(p.startswith("edits.wild") for p in places)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sections": []}, "sections"),
        ({"sections": [{"path": "first", "mpp": -1}]}, "sections.0.mpp"),
        ({"sections": [{"path": "first", "colour": 1}]}, "colour"),
        ({"edits": {}}, "edits"),
        ({"request": {"seed": -1}}, "request.seed"),
        ({"request": {"checkpoint": "x"}}, "belongs under 'checkpoint'"),
        ({"request": {"edits": []}}, "belongs under 'edits'"),
        ({"output": None}, "output"),
        ({"output": ""}, "output"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"sections": [{"path": ""}]}, "sections.0.path"),
        ({"sections": [{"path": "first", "fullres": ""}]}, "sections.0.fullres"),
        ({"sections": [{"path": "first", "region": ""}]}, "sections.0.region"),
        ({"edits": {"measured": None}}, "edits.measured: expected a list of edits"),
        ({"edits": {1: []}}, "edits"),
        ({"request": 7}, "request"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named(cohort, changes, message):
    with pytest.raises(RequestError, match=message):
        read_jobs(cohort(**changes))


def test_a_folder_called_like_a_checkpoint_is_not_taken_for_one(cohort, tiny_checkpoint, tmp_path):
    """`stmdit demo --output demo` leaves such a folder; a checkpoint's own folder beside the job file is found by its name."""
    (tmp_path / "demo").mkdir()
    assert {job.request.checkpoint for job in read_jobs(cohort(checkpoint="demo"))} == {"demo"}
    shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    assert {job.request.checkpoint for job in read_jobs(cohort(checkpoint="mine"))} == {str(tmp_path / "mine")}


def test_a_job_file_that_is_none_is_refused(tmp_path):
    for text in ("", "[]", "a: [", "a: &a [*a]"):
        (tmp_path / "j.yaml").write_text(text)
        with pytest.raises(RequestError, match="j.yaml"):
            read_jobs(tmp_path / "j.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        read_jobs(tmp_path / "none.yaml")


def test_regions_and_edits_come_from_files_beside_the_job_file(cohort, tmp_path):
    (tmp_path / "e.yaml").write_text("- {operation: knock_out, genes: [ERBB2]}")
    (tmp_path / "r.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[0, 0], [300, 0], [300, 300], [0, 300]]]}'
    )
    jobs = read_jobs(
        cohort(sections=[{"path": "first", "region": "r.geojson", "fullres": "slide.png"}], edits={"e": "e.yaml"})
    )
    assert jobs[0].request.region.kind == "polygons" and jobs[0].request.edits[0].genes == ("ERBB2",)
    assert jobs[0].place.source.fullres == "slide.png" and jobs[0].request.seed == 3


def test_a_slide_in_the_home_folder_is_found(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own.png").touch()
    (job, *_) = read_jobs(cohort(sections=[{"path": "first", "fullres": "~/own.png"}]))
    assert job.place.source.fullres == tmp_path / "home" / "own.png"


def test_plain_slides_go_through_a_batch_and_are_not_done_twice(cohort, runner, tmp_path):
    from slides import tissue_picture, write_pyramid, write_table

    from napari_stmdit.tissue.open import open_section

    slide = write_pyramid(tmp_path / "slide.tif", tissue_picture())
    write_table(tmp_path / "mine.h5ad", open_section(slide, mpp=0.5).spots.yx)
    sections = [
        {"path": "slide.tif", "mpp": 0.5, "grid_pitch": 150},
        {"path": "slide.tif", "name": "predicted", "mpp": 0.5, "predicted_expression": "mine.h5ad"},
    ]
    file = cohort(sections=sections, edits={"measured": []})
    outcomes = run_batch(read_jobs(file), runner)
    assert [(o.job.place.name, o.state) for o in outcomes] == [("slide", "done"), ("predicted", "done")]
    records = [
        read_result(tmp_path / "results" / f"{name}.zarr", "stmdit_measured")[2] for name in ("slide", "predicted")
    ]
    assert [record["section"]["expression"]["kind"] for record in records] == ["none", "predicted"]
    assert any("150 um apart" in note for note in records[0]["section"]["notes"])
    assert [o.state for o in run_batch(read_jobs(file), runner)] == ["there already", "there already"]
    asked = cohort(sections=[{"path": "slide.tif"}], edits={"measured": []}, output="other")
    (failed,) = run_batch(read_jobs(asked), runner)
    assert failed.state == "failed" and "--mpp" in failed.message
    with pytest.raises(RequestError, match=r"tissue_fraction"):
        read_jobs(cohort(sections=[{"path": "slide.tif", "tissue_fraction": 2}]))


def test_the_command_prints_one_object_and_resumes(cohort, monkeypatch, capsys):
    from napari_stmdit import cli

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["stmdit", "batch", str(cohort()), "--device", "cpu", *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr()

    code, streams = call("--json")
    facts = json.loads(streams.out)
    assert code == 0 and facts["complete"] and [job["state"] for job in facts["jobs"]] == ["done"] * 4
    code, streams = call()
    assert code == 0 and streams.out.count("there already") == 4 and "section" in streams.out.splitlines()[0]
    code, streams = call("--workers", "2", "--scheduler", "tcp://x:1")
    assert code == 2 and "not both" in streams.err and streams.out == ""


def test_files_that_sections_name_are_looked_for_before_anything_runs(cohort):
    file = cohort(
        sections=[
            {"path": "first", "fullres": "no.tif", "exclude": "no.geojson", "factors": "no.h5ad::nmf"},
            {"path": "https://example.org/a.zarr"},
        ]
    )
    with pytest.raises(RequestError) as error:
        read_jobs(file)
    said = dict(error.value.faults)
    assert set(said) == {"sections.0.fullres", "sections.0.exclude", "sections.0.factors"}
    assert all("there is no file" in message for message in said.values())
    jobs = read_jobs(cohort(sections=[{"path": "https://example.org/a.zarr", "name": "far"}]))
    assert {job.request.section for job in jobs} == {"https://example.org/a.zarr"}
