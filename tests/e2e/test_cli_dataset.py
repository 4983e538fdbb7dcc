"""`stmdit export-dataset`: the bundled section and checkpoint, killed and interrupted as a process, and refused."""

import json
import os
import signal
import time

import anndata
import numpy as np
import pytest
import zarr
from command_line import refused, stmdit
from dataset_study import study  # noqa: F401
from killing import start
from tiny_fixtures import tiny_checkpoint  # noqa: F401

from napari_stmdit import export_dataset
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.tissue.open import open_sample_section, open_section

EDITS = "- operation: towards\n  target_profile: adipose\n  strength: 0.7\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four spots of the bundled section, as measured and edited, by the bundled checkpoint at two steps."""
    place = tmp_path_factory.mktemp("results")
    (place / "edits.yaml").write_text(EDITS)
    wishes = (
        open_sample_section().path,
        "--output",
        place / "out.zarr",
        "--sample",
        4,
        "--steps",
        2,
        "--device",
        "cpu",
    )
    for more in ((), ("--edits", place / "edits.yaml")):
        done = stmdit("synthesize", *wishes, *more)
        assert done.returncode == 0, done.stderr
    return place / "out.zarr"


@pytest.mark.slow
def test_the_bundled_section_and_checkpoint_give_a_data_set(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    facts = json.loads(stmdit("export-dataset", store, "--output", tmp_path / "data", "--json").stdout)
    assert (facts["images"], facts["synthetic"], facts["complete"], facts["unfinished"]) == (12, 8, True, None)
    assert facts["runs"] == ["stmdit_1", "stmdit_2"]
    table = anndata.read_zarr(tmp_path / "data" / "anndata" / "dataset.zarr")
    images = zarr.open_array(tmp_path / "data" / "anndata" / "images.zarr", mode="r")
    rows = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    place = {key: k for k, key in enumerate(table.obs_names)}
    for stored in stored_results(open_section(store)):
        for spot, pixels in zip(stored.spots, stored.patches, strict=True):
            np.testing.assert_array_equal(images[place[f"{stored.element}/{spot}"]], pixels)
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(np.asarray(row["image"]), images[place[row["id"]]])
        edited = table.layers["edited"][k].toarray()[0]
        assert row["edited"] == (row["run"] == "stmdit_2") == bool((edited != table.X[k].toarray()[0]).any())
        assert row["baseline_id"] == (f"slide/{row['spot']}" if row["edited"] else None)
    assert table.obs.synthetic.all()  # the bundled section is synthetic itself
    again = stmdit("export-dataset", store, "--output", tmp_path / "data")
    assert "nothing was done" in again.stdout


@pytest.mark.slow
def test_bad_wishes_end_in_one_message_and_exit_code_2(store, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for arguments, words in (
        ((store, tmp_path / "taken"), "nothing is overwritten"),
        ((tmp_path / "nothing.zarr", tmp_path / "d"), "nothing.zarr"),
        ((store, "--output", tmp_path / "d", "--format", "csv"), "there are imagefolder, parquet, anndata"),
        ((store,), "--output is missing"),
        ((store, tmp_path / "d", "--output", tmp_path / "e"), "leave the second one out"),
        ((store, tmp_path / "d", "--run", "seven"), "its runs: stmdit_1, stmdit_2"),
        ((store, tmp_path / "d", "--checkpoint", tmp_path), "no checkpoint folder"),
    ):
        assert words in refused("export-dataset", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def tree(folder):
    """What a data set holds, without what names a time."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.slow
def test_a_killed_export_goes_on_to_the_same_data_set(study, tmp_path):  # noqa: F811
    """Killed twice amid the shards, and once as the table is written."""
    wishes = ["--shard-rows", "16", "--json"]
    whole = export_dataset(study.store, tmp_path / "whole", rows_per_shard=16)
    assert whole.rows == 240
    out = tmp_path / "killed"
    unfinished = out.with_name("killed.unfinished")
    listed, kills = 0, 0
    for wanted in (2, 6, 15):
        process = start(["export-dataset", str(study.store), "--output", str(out), *wishes], tmp_path / "log")
        while process.is_alive() and shards(unfinished) < wanted:
            time.sleep(0.002)
        process.kill()
        process.join()
        if not unfinished.exists():
            break  # it was through before the last kill
        kills += process.exitcode == -signal.SIGKILL
        assert shards(unfinished) >= listed  # what was safe stays safe
        listed = shards(unfinished)
        assert not out.exists()
    assert kills >= 2
    if unfinished.exists():
        before = written(unfinished, listed)
        assert export_dataset(study.store, out, rows_per_shard=16).complete
        assert written(out, listed) == before
    assert tree(out) == tree(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "log.err", "log.out", "whole"]


def shards(folder):
    try:
        return len(json.loads((folder / "manifest.json").read_text())["shards"])
    except (OSError, ValueError):
        return 0


def written(folder, count):
    return {k: (folder / "parquet" / f"train-{k:05d}-of-00015.parquet").stat().st_mtime_ns for k in range(count)}


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done(study, tmp_path):  # noqa: F811
    out, log = tmp_path / "data", tmp_path / "log"
    process = start(
        ["export-dataset", str(study.store), "--output", str(out), "--shard-rows", "2", "--format", "parquet"], log
    )
    while process.is_alive() and shards(tmp_path / "data.unfinished") < 2:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=120)
    said, complained = (log.with_name(f"log{suffix}").read_text() for suffix in (".out", ".err"))
    assert process.exitcode == 130, complained
    assert "of 240 images (stopped); run the same again, it goes on" in said
    assert "Traceback" not in complained and not out.exists()
    assert export_dataset(study.store, out, formats=("parquet",), rows_per_shard=2).complete
