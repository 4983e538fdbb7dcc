"""Data sets: what is written reloads with `datasets` and `anndata` as it was computed, and nothing is ever half written."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from PIL import Image

from napari_stmdit import export_dataset
from napari_stmdit.dataset import export
from napari_stmdit.dataset.contents import COLUMNS
from napari_stmdit.errors import CheckpointError, SectionError, StoreError
from napari_stmdit.progress import CancelToken
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.types import SlideImage

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """The data set of all seven runs in every format: 210 synthetic images and 30 crops of the slide, in four shards."""
    out = tmp_path_factory.mktemp("made") / "data"
    found = export_dataset(study.store, out, licence="cc-by-4.0", rows_per_shard=64)
    assert found.complete and (found.rows, found.synthetic, found.done) == (240, 210, 240)
    return found.path


def load(kind, place, **options):
    """Rows by their id; a folder's loader keeps no order over its shards."""
    cache = place.parent / "cache"
    rows = datasets.load_dataset(kind, split="train", cache_dir=str(cache), **options)
    return {row["id"]: row for row in rows}


def dense(row, prefix, genes):
    values = np.zeros(genes, np.float32)
    values[row[f"{prefix}gene_index"]] = row[f"{prefix}gene_count"]
    return values


def truth(study):
    """What each row must be, from the runs themselves: id -> (pixels, counts as measured, counts conditioned on)."""
    section = study.section
    measured = section.spots.counts.toarray().astype(np.float32)
    found = {}
    for name, result in study.results.items():
        for k, index in enumerate(result.done):
            patch = result.plan.patches[index]
            used = np.zeros_like(measured[0]) if study.counts[name] is None else study.counts[name][index]
            found[f"stmdit_{name}/{patch.spot_id}"] = (result.patches[k], measured[patch.row], used)
    for patch in study.results["measured"].plan.patches:
        (pixels,) = read_patches(section.image, [patch.source_box], 64)
        found[f"slide/{patch.spot_id}"] = (pixels, measured[patch.row], measured[patch.row])
    return found


def test_two_hundred_patches_reload_with_equal_pixels_and_expression(study, made):
    expected = truth(study)
    loaders = {
        "imagefolder": load("imagefolder", made, data_dir=str(made / "imagefolder")),
        "parquet": load("parquet", made, data_files=str(made / "parquet" / "*.parquet")),
        "the card": load(str(made), made),
    }
    table = anndata.read_zarr(made / "anndata" / "dataset.zarr")
    images = zarr.open_array(made / "anndata" / "images.zarr", mode="r")
    assert set(table.obs_names) == set(expected) and table.obs_names.is_unique
    assert images.shape == (240, 64, 64, 3)
    for name, rows in loaders.items():
        assert set(rows) == set(expected), name
    for k, key in enumerate(table.obs_names):
        pixels, measured, used = expected[key]
        np.testing.assert_array_equal(images[k], pixels)
        np.testing.assert_array_equal(table.X[k].toarray()[0], measured)
        np.testing.assert_array_equal(table.layers["edited"][k].toarray()[0], used)
        for rows in loaders.values():
            row = rows[key]
            np.testing.assert_array_equal(np.asarray(row["image"]), pixels)
            np.testing.assert_array_equal(dense(row, "", len(measured)), measured)
            np.testing.assert_array_equal(dense(row, "edited_", len(measured)), used)


def test_every_format_says_the_same_of_a_row(study, made):
    table = anndata.read_zarr(made / "anndata" / "dataset.zarr")
    folder = load("imagefolder", made, data_dir=str(made / "imagefolder"))
    for key, row in load("parquet", made, data_files=str(made / "parquet" / "*.parquet")).items():
        facts = {name: value for name, value in row.items() if name != "image"}
        assert facts == {name: value for name, value in folder[key].items() if name != "image"}
        obs = table.obs.loc[key]
        for column in COLUMNS[1:-4]:
            if row[column.name] is None:
                assert pd.isna(obs[column.name]), column.name
            else:
                assert obs[column.name] == row[column.name], column.name
    spots = study.section.spots
    at = spots.rows(table.obs.spot.astype(str).tolist())
    np.testing.assert_allclose(table.obsm["spatial"], spots.yx[at][:, ::-1])
    assert table.var_names.tolist() == spots.genes.symbols.tolist() == pd.read_csv(made / "genes.csv").symbol.tolist()
    record = json.loads(table.uns["runs"]["stmdit_towards"])
    assert record == json.loads((made / "runs" / "stmdit_towards.json").read_text())
    assert record["synthetic"] is True


def test_pairs_are_linked(study, made):
    obs = anndata.read_zarr(made / "anndata" / "dataset.zarr").obs
    images = zarr.open_array(made / "anndata" / "images.zarr", mode="r")
    place = {key: k for k, key in enumerate(obs.index)}
    model = obs[obs.origin == "model"]
    assert (model.slide_id == "slide/" + model.spot.astype(str)).all()
    edited = model[model.run.isin(["stmdit_towards", "stmdit_more", "stmdit_swapped"])]
    tissue = edited[edited.run != "stmdit_towards"]
    assert (
        tissue.counterfactual.all() and (tissue.baseline_id.astype(str) == tissue.slide_id.astype(str)).all()
    )  # its crop, no new tissue
    new = edited.drop(tissue.index)
    assert not model.drop(tissue.index).counterfactual.any()
    assert (new.baseline_id == "stmdit_measured/" + new.spot.astype(str)).all()
    assert model.drop(edited.index).baseline_id.isna().all()  # no edit; other noise or conditions
    for key, row in edited.iterrows():
        assert row.counterfactual or obs.loc[row.baseline_id].seed == row.seed
        same = np.array_equal(images[place[key]], images[place[row.baseline_id]])
        assert same != row.edited, key  # common noise: what no edit touches does not change
    assert set(model[model.edited].run) == {"stmdit_towards", "stmdit_more", "stmdit_swapped"}
    assert obs[obs.run == "stmdit_swapped"].edited.sum() == 7
    assert obs[obs.run == "stmdit_towards"].edited.sum() == 18  # twenty painted, two of them with weight 0


def test_a_row_says_how_it_was_conditioned(study, made):
    obs = anndata.read_zarr(made / "anndata" / "dataset.zarr").obs
    ids = study.section.spots.ids
    first = str(ids[1])
    (edit,) = json.loads(obs.loc[f"stmdit_towards/{first}"].edits)
    assert edit == {"edit": 0, "operation": "towards", "target_profile": "tumour", "weight": 0.1}
    (edit,) = json.loads(obs.loc[f"stmdit_more/{first}"].edits)
    assert edit == {
        "edit": 0,
        "operation": "scale",
        "name": "more ERBB2",
        "genes": ["ERBB2"],
        "factor": 5.0,
        "weight": 0.5,
    }
    shuffled = obs[obs.run == "stmdit_shuffled"]
    assert (shuffled.expression == "shuffled").all() and (
        shuffled.spot.astype(str) != shuffled.expression_spot.astype(str)
    ).all()
    measured = study.section.spots.counts.toarray()
    for row in shuffled.itertuples():
        used = study.counts["shuffled"][study.section.spots.rows([row.spot])[0]]
        np.testing.assert_array_equal(used, measured[study.section.spots.rows([row.expression_spot])[0]])
    null = obs[obs.run == "stmdit_null"]
    assert (null.expression == "null").all() and null.expression_spot.isna().all()
    for name, result in study.results.items():
        mine = obs[obs.run == f"stmdit_{name}"]
        assert mine.seed.tolist() == [str(patch.seed) for patch in result.plan.patches]
        assert set(mine.run_seed) == {result.plan.request.seed} and set(mine.steps) == {2}
        assert set(mine.checkpoint_sha256) == {result.provenance["checkpoint"]["sha256"]}
        assert (set(mine.guidance_expression), set(mine.guidance_morphology)) == ({2.0}, {1.5})
        boxes = np.array([patch.source_box for patch in result.plan.patches])
        np.testing.assert_allclose(mine[["source_y0", "source_x0", "source_y1", "source_x1"]], boxes)
    assert obs.synthetic[obs.origin == "model"].all() and not obs.synthetic[obs.origin == "slide"].any()


def test_every_picture_says_what_it_is(made):
    for path in sorted((made / "imagefolder").rglob("*.png")):
        with Image.open(path) as picture:
            words = picture.text["Description"]
            assert picture.info["dpi"][0] == pytest.approx(25400 / 0.688, rel=1e-3)
        if "slide_" in path.name:
            assert "not synthesized" in words
        else:
            assert ("Synthetic" in words or "Edited image of real tissue" in words) and "Not for diagnosis" in words


def test_the_card_says_what_must_be_known(study, made):
    text = (made / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["license"] == "cc-by-4.0" and "synthetic" in front["tags"] and front["size_categories"] == ["n<1K"]
    sha256 = study.results["more"].provenance["checkpoint"]["sha256"]
    for words in (
        "Synthetic images, made by a generative model. Not for diagnosis.",
        "240 images of 64 x 64 px at 0.688 um/px: 210 synthetic, 30 crops of the slide",
        sha256,
        "none: random weights",
        "BSD-3-Clause",
        "Random weights: its images mean nothing.",
        "`stmdit_more`: 30 images, pixels as made; expression own, morphology own, virtual edits: more ERBB2; seed 3, 2 steps",
        "expression shuffled",
    ):
        assert words in body, words
    assert all(f"| `{column.name}` |" in body for column in COLUMNS)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, {"license": "unknown"}),
        ("For our group alone", {"license": "other", "license_name": "For our group alone"}),
    ],
)
def test_a_licence_is_the_users_or_unknown(study, tmp_path, licence, expected):
    found = export_dataset(study.store, tmp_path / "d", formats=("parquet",), runs=("null",), licence=licence)
    front = yaml.safe_load((found.path / "README.md").read_text().split("---\n")[1])
    assert {name: front[name] for name in front if name.startswith("license")} == expected


def test_the_manifest_lists_every_part_with_its_hash(made):
    import hashlib

    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["complete"] is True and len(manifest["shards"]) == 4
    assert [shard["rows"] for shard in manifest["shards"]] == [[0, 64], [64, 128], [128, 192], [192, 240]]
    listed = [file for part in (manifest, *manifest["shards"]) for file in part["files"]]
    files = {file["path"]: file for file in listed}
    whole = hashlib.sha256((made / "parquet" / "train-00002-of-00004.parquet").read_bytes()).hexdigest()
    assert files["parquet/train-00002-of-00004.parquet"]["sha256"] == whole
    there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} - {
        "README.md",
        "manifest.json",
    }
    missing = [path for path in there if not any(path == one or path.startswith(f"{one}/") for one in files)]
    assert not missing


# --- stopping, going on, and what is in the way


def stop_after(images):
    cancel = CancelToken()

    def follow(progress):
        if progress.patches_done >= images:
            cancel.cancel()

    return {"cancel": cancel, "on_progress": follow}


def tree(folder):
    """Every file's content, but for the manifest's time stamp and what the table's format dates."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "README.md")
    }


def test_a_stopped_export_goes_on_without_doing_anything_twice(study, made, tmp_path):
    out = tmp_path / "data"
    found = export_dataset(study.store, out, licence="cc-by-4.0", rows_per_shard=64, **stop_after(150))
    assert not found.complete and found.done == 128 and not out.exists()
    part = found.unfinished / "parquet" / "train-00001-of-00004.parquet"
    before = part.stat().st_mtime_ns
    (found.unfinished / ".work").mkdir(exist_ok=True)
    (found.unfinished / ".work" / "half").write_text("half")
    (found.unfinished / "parquet" / "train-00002-of-00004.parquet").write_text("half")  # written, but not listed
    again = export_dataset(study.store, out, licence="cc-by-4.0", rows_per_shard=64)
    assert again.complete and not found.unfinished.exists()
    assert (out / part.relative_to(found.unfinished)).stat().st_mtime_ns == before
    assert tree(out) == tree(made)


def test_a_stop_amid_the_table_goes_on(study, made, tmp_path, monkeypatch):
    out, cancel = tmp_path / "data", CancelToken()
    from napari_stmdit.dataset import export

    write = export.write_table

    def stopped(place, contents, records, check):
        cancel.cancel()
        write(place, contents, records, check)

    monkeypatch.setattr(export, "write_table", stopped)
    found = export_dataset(study.store, out, rows_per_shard=64, cancel=cancel)
    assert not found.complete and found.done == 240
    monkeypatch.undo()
    assert export_dataset(study.store, out, rows_per_shard=64).complete
    assert tree(out) == tree(made)


def test_a_shard_that_was_damaged_meanwhile_is_written_again(study, made, tmp_path):
    out = tmp_path / "data"
    found = export_dataset(study.store, out, rows_per_shard=64, **stop_after(150))
    file = next((found.unfinished / "imagefolder" / "train" / "00000").glob("*.png"))
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    again = export_dataset(study.store, out, rows_per_shard=64)
    assert again.complete and any("damaged" in note for note in again.notes)
    assert tree(out) == tree(made)


def test_a_whole_data_set_is_left_alone(study, made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = export_dataset(study.store, made, rows_per_shard=64)
    assert again.existed and again.complete
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_licence_that_a_data_set_does_not_have_is_said(study, made):
    again = export_dataset(study.store, made, rows_per_shard=64, licence="mit")
    assert any("exported with the licence 'cc-by-4.0'; 'mit' was not written" in note for note in again.notes)
    same = export_dataset(study.store, made, rows_per_shard=64, licence="cc-by-4.0")
    assert not any("licence" in note for note in same.notes)


def test_an_export_is_not_continued_with_another_slide_of_the_same_size(study, tmp_path, monkeypatch):
    out = tmp_path / "data"
    options = {"runs": ("null",), "rows_per_shard": 16, "formats": ("parquet",)}
    assert not export_dataset(study.store, out, **options, **stop_after(20)).complete
    find = export.find_slide

    def blackened(*arguments):
        slide = find(*arguments)
        levels = tuple(level * np.uint8(0) for level in slide.image.levels)
        return replace(slide, image=SlideImage(levels, slide.image.pixel_size, slide.image.source))

    with monkeypatch.context() as patched:
        patched.setattr(export, "find_slide", blackened)
        with pytest.raises(StoreError, match=r"content\.slide"):
            export_dataset(study.store, out, **options)
    assert export_dataset(study.store, out, **options).complete


def test_data_sets_of_an_earlier_version_are_whole_or_refused_in_one_sentence(study, tmp_path):
    """Their manifests do not say what the slide was."""
    out = tmp_path / "data"
    options = {"runs": ("null",), "rows_per_shard": 16, "formats": ("parquet",)}
    found = export_dataset(study.store, out, **options, **stop_after(20))

    def forget(folder):
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        kept = manifest["identity"].pop("content")
        file.write_text(json.dumps(manifest))
        return lambda: file.write_text(json.dumps({**manifest, "identity": {**manifest["identity"], "content": kept}}))

    restore = forget(found.unfinished)
    with pytest.raises(StoreError, match="begun by an earlier version") as refused:
        export_dataset(study.store, out, **options)
    assert "\n" not in str(refused.value)
    restore()
    assert export_dataset(study.store, out, **options).complete
    forget(out)
    assert export_dataset(study.store, out, **options).existed


def test_one_process_at_a_time(study, tmp_path):
    from napari_stmdit.dataset.export import export_steps

    first = export_steps(study.store, tmp_path / "d", formats=("parquet",), rows_per_shard=8)
    next(first)
    with pytest.raises(StoreError, match="another process"):
        export_dataset(study.store, tmp_path / "d", formats=("parquet",), rows_per_shard=8)
    first.close()
    assert export_dataset(study.store, tmp_path / "d", formats=("parquet",), rows_per_shard=8).complete


def test_what_is_in_the_way_is_refused_and_left_alone(study, made, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "part.unfinished").mkdir()
    for out, words in (
        (taken, "nothing is overwritten"),
        (tmp_path / "file", "nothing is overwritten"),
        (tmp_path / "link", "leads nowhere"),
        (tmp_path / "part", "in the way"),
    ):
        with pytest.raises(StoreError, match=words):
            export_dataset(study.store, out)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"] and (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StoreError, match="rows: 240 then, 60 now"):
        export_dataset(study.store, made, runs=("more",), rows_per_shard=64)
    found = export_dataset(study.store, tmp_path / "half", formats=("parquet",), rows_per_shard=8, **stop_after(20))
    with pytest.raises(StoreError, match="holds another data set"):
        export_dataset(study.store, tmp_path / "half", formats=("anndata",), rows_per_shard=8)
    assert found.unfinished.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export_dataset(study.store, empty, formats=("parquet",), runs=("more",)).complete


def test_a_data_set_that_lost_a_part_is_told(study, tmp_path):
    found = export_dataset(study.store, tmp_path / "d", formats=("imagefolder",), runs=("more",))
    next((found.path / "imagefolder").rglob("*.png")).unlink()
    with pytest.raises(StoreError, match="imagefolder/train/00000"):
        export_dataset(study.store, tmp_path / "d", formats=("imagefolder",), runs=("more",))


def test_a_full_disk_is_told_and_the_rest_goes_on(study, tmp_path, monkeypatch):
    import errno
    import os

    from napari_stmdit.dataset import folder

    replace, times = os.replace, []

    def full(source, target):
        times.append(target)
        if len(times) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(folder.os, "replace", full)
    with pytest.raises(StoreError, match="is full: make room; then export again, what is finished is kept"):
        export_dataset(study.store, tmp_path / "d", formats=("parquet",), rows_per_shard=64)
    monkeypatch.undo()
    assert export_dataset(study.store, tmp_path / "d", formats=("parquet",), rows_per_shard=64).complete


# --- what cannot be made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ("tfrecord",)}, "'tfrecord'; there are imagefolder, parquet, anndata"),
        ({"formats": ()}, "none"),
        ({"runs": ("nobody", "more", "no one")}, "no run nobody, no one; its runs: stmdit_measured"),
        ({"rows_per_shard": 0}, "at least one row"),
    ],
)
def test_bad_wishes_are_refused(study, tmp_path, options, words):
    with pytest.raises(StoreError, match=words):
        export_dataset(study.store, tmp_path / "d", **options)
    assert not list(tmp_path.iterdir())


def test_a_store_without_results_is_refused(tiny_zarr, tmp_path):
    with pytest.raises(StoreError, match="holds no results"):
        export_dataset(tiny_zarr, tmp_path / "d")


def test_runs_of_two_sizes_do_not_share_a_table(study, tmp_path):
    from standins import CropModel, card_for

    from napari_stmdit.regions import SampleOfSpots
    from napari_stmdit.synthesis.session import synthesize

    card = card_for(tuple(study.section.spots.genes.symbols.tolist()), patch_px=32, patch_mpp=0.7)
    other = synthesize(
        study.section,
        study.results["null"].plan.request.model_copy(update={"region": SampleOfSpots(count=2)}),
        CropModel(card),
    )
    with pytest.raises(StoreError, match="one size and scale; choose runs"):
        export_dataset([study.results["null"], other], tmp_path / "d")


def test_edits_towards_a_profile_need_the_very_checkpoint(study, tmp_path):
    import shutil
    from dataclasses import replace

    from napari_stmdit.synthesis.stored import stored_results
    from napari_stmdit.tissue.open import open_section

    stored = {one.element: one for one in stored_results(open_section(study.store))}["stmdit_towards"]
    record = dict(stored.provenance)
    record["request"] = {**record["request"], "checkpoint": "nowhere"}
    lost = replace(stored, provenance=record)
    with pytest.raises(CheckpointError, match=r"needs the profile tumour of checkpoint 'tiny'.*--checkpoint"):
        export_dataset(lost, tmp_path / "d")
    other = tmp_path / "other"
    shutil.copytree(study.checkpoint, other)
    (other / "note.txt").write_text("changed")
    with pytest.raises(CheckpointError, match="another state"):
        export_dataset(lost, tmp_path / "d", checkpoint=other)
    assert export_dataset(lost, tmp_path / "d", checkpoint=study.checkpoint, formats=("parquet",)).complete
    assert not (tmp_path / "d.unfinished").exists()


# --- where real patches come from


def test_real_patches_can_be_left_out(study, tmp_path):
    found = export_dataset(study.store, tmp_path / "d", runs=("more",), real=False)
    assert (found.rows, found.synthetic) == (30, 30)
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    assert obs.slide_id.isna().all() and obs.baseline_id.isna().all()  # neither is in this data set
    assert "no crops of the slide" in (found.path / "README.md").read_text()


def test_the_section_that_a_result_was_made_from_is_taken_before_a_reduced_copy(study, tmp_path, monkeypatch):
    """A store's own slide is at most 4000 px; here 500, so that its pixels span two of the slide's."""
    from napari_stmdit.tissue import elements

    monkeypatch.setattr(elements, "MAX_SLIDE_PX", 500)
    study.results["more"].save(tmp_path / "small.zarr")
    monkeypatch.undo()
    found = export_dataset(tmp_path / "small.zarr", tmp_path / "d", formats=("anndata",))
    assert any("the slide image of" in note for note in found.notes)  # which the store leads to
    images = zarr.open_array(found.path / "anndata" / "images.zarr", mode="r")
    expected = truth(study)
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    for k, key in enumerate(obs.index):
        if key.startswith("slide/"):
            np.testing.assert_array_equal(images[k], expected[key][0])
    lost = study.section.path.with_name("moved")
    study.section.path.rename(lost)
    try:
        with pytest.raises(
            SectionError, match=r"Give that section with --section .* or leave real patches out with --no-real"
        ):
            export_dataset(tmp_path / "small.zarr", tmp_path / "e")
        given = export_dataset(tmp_path / "small.zarr", tmp_path / "e", section=lost, formats=("anndata",))
        assert any("as given" in note for note in given.notes)
        again = zarr.open_array(given.path / "anndata" / "images.zarr", mode="r")
        np.testing.assert_array_equal(again[:], images[:])
    finally:
        lost.rename(study.section.path)


def test_another_section_is_no_source_of_real_patches(study, tmp_path):
    from napari_stmdit.tissue.open import open_sample_section

    with pytest.raises(SectionError, match="another section"):
        export_dataset(study.store, tmp_path / "d", section=open_sample_section().path)


def test_a_result_with_excluded_spots_is_of_the_section_that_has_them(study, tmp_path):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.regions import SpotList
    from napari_stmdit.synthesis.session import synthesize
    from napari_stmdit.tissue.excluded import exclude

    ids = study.section.spots.ids.tolist()
    section = exclude(study.section, {"fold": ids[:2]})
    request = study.results["measured"].plan.request.model_copy(update={"region": SpotList(ids=tuple(ids[5:8]))})
    synthesize(section, request, load_checkpoint(study.checkpoint, device="cpu")).save(tmp_path / "out.zarr")
    found = export_dataset(tmp_path / "out.zarr", tmp_path / "d", section=study.section.path, formats=("anndata",))
    assert any("as given" in note for note in found.notes)


def test_patches_that_were_not_kept_are_cut_and_said(study, tmp_path):
    """SpatialData writes a store anew without them."""
    from spatialdata import read_zarr

    read_zarr(study.store).write(tmp_path / "anew.zarr")
    found = export_dataset(tmp_path / "anew.zarr", tmp_path / "d", runs=("more",), formats=("anndata",))
    assert any("saved without its patches" in note for note in found.notes)
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    assert set(obs.pixels) == {"slide", "cut from the blended canvas"}
    images = zarr.open_array(found.path / "anndata" / "images.zarr", mode="r")
    expected = truth(study)  # patches of 44 um do not overlap, so they can be had back from the canvas
    for k, key in enumerate(obs.index):
        np.testing.assert_array_equal(images[k], expected[key][0])


def test_results_at_hand_need_no_store(study, tmp_path):
    found = export_dataset([study.results["measured"], study.results["more"]], tmp_path / "d", formats=("anndata",))
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    assert found.runs == ("run_1", "run_2")
    assert obs.loc["run_2/SPOT03-1"].baseline_id == "slide/SPOT03-1"  # an edit of this tissue starts from the slide
    with pytest.raises(StoreError, match="chosen by name from a store"):
        export_dataset(study.results["more"], tmp_path / "e", runs=("more",))


def test_a_synthetic_section_is_synthetic_all_through(study, tmp_path):
    from dataclasses import replace

    result = study.results["more"]
    found = export_dataset(replace(result, section=replace(result.section, synthetic=True)), tmp_path / "d")
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    assert obs.synthetic.all()
    assert "The section itself is synthetic" in (found.path / "README.md").read_text()
    for path in (found.path / "imagefolder").rglob("*slide_*.png"):
        with Image.open(path) as picture:
            assert "synthetic section" in picture.text["Description"]


def _check_mixed(table, section):
    """What seamless tissue is conditioned on is no spot's own: shares and totals of the nearest six, by distance."""
    model = np.flatnonzero(table.obs.origin == "model")
    assert table.obs.expression_spot.iloc[model].isna().all()
    counts = section.spots.counts.toarray().astype(float)
    totals = counts.sum(axis=1, keepdims=True)
    for k in model[::5]:
        um = np.linalg.norm(section.spots.yx - section.spots.yx[section.spots.rows([table.obs.spot.iloc[k]])], axis=1)
        near = np.argsort(um)[:6]
        weights = np.exp(-((um[near] * section.calibration.mpp) ** 2) / (2 * 40.0**2))[:, None]
        weights /= weights.sum()
        expected = (weights * counts[near] / totals[near]).sum(axis=0) * (weights * totals[near]).sum()
        np.testing.assert_allclose(table.layers["edited"][k].toarray()[0], expected, rtol=1e-3, atol=1e-2)


def test_an_edit_beside_a_spot_of_seamless_tissue_is_named_with_its_share():
    from napari_stmdit.dataset.contents import edits_at
    from napari_stmdit.edits import KnockOut, Swap
    from napari_stmdit.intent import Request

    knock = KnockOut(genes=("EPCAM",), spots={"b": 0.5}, strength=0.5)
    swap = Swap(group_a=("a",), group_b=("c",))
    request = Request(edits=(knock, swap))
    assert [(e["edit"], e["weight"]) for e in edits_at(request, {"a": 0.8, "b": 0.2})] == [(0, 0.05), (1, 0.8)]
    assert [(e["edit"], e["weight"]) for e in edits_at(request, {"b": 1.0})] == [(0, 0.25)]
    assert edits_at(request, {"d": 1.0}) == []


def test_seamless_tissue_gives_patches_at_spots(study, tmp_path):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.intent import Request
    from napari_stmdit.synthesis.session import synthesize

    request = Request(
        mode="continuous", seed=1, steps=2, section=str(study.section.path), checkpoint=str(study.checkpoint)
    )
    result = synthesize(study.section, request, load_checkpoint(study.checkpoint, device="cpu"), batch=64)
    result.save(tmp_path / "out.zarr")
    found = export_dataset(tmp_path / "out.zarr", tmp_path / "d", formats=("anndata",))
    obs = anndata.read_zarr(found.path / "anndata" / "dataset.zarr").obs
    images = zarr.open_array(found.path / "anndata" / "images.zarr", mode="r")
    table = anndata.read_zarr(found.path / "anndata" / "dataset.zarr")
    _check_mixed(table, study.section)
    assert set(obs["mode"].dropna()) == {"continuous"} and set(obs.pixels) == {"slide", "cut from the seamless canvas"}
    model = np.flatnonzero(obs.origin == "model")
    assert len(model) > 20
    frame = result.plan.frame
    for k in model:
        y, x = (
            round((obs[name].iloc[k] - o) / frame.pixel_size)
            for name, o in zip(("source_y0", "source_x0"), frame.origin, strict=True)
        )
        block = result.rgba[y : y + 64, x : x + 64]
        assert (block[..., 3] == 255).all()
        np.testing.assert_array_equal(images[k], block[..., :3])
        centre = [obs.y_fullres.iloc[k], obs.x_fullres.iloc[k]]
        middle = [
            (obs.source_y0.iloc[k] + obs.source_y1.iloc[k]) / 2,
            (obs.source_x0.iloc[k] + obs.source_x1.iloc[k]) / 2,
        ]
        assert np.abs(np.subtract(centre, middle)).max() <= frame.pixel_size / 2 + 1e-6


def test_black_images_are_written_as_others_are(tmp_path):
    """A shard of nothing but zeros would be left out as empty, and be missed when the folder is checked."""
    import zarr

    from napari_stmdit.dataset.folder import write_images

    zarr.create_array(tmp_path / "i", shape=(2, 8, 8, 3), chunks=(1, 8, 8, 3), shards=(2, 8, 8, 3), dtype="uint8")
    write_images(tmp_path / "i", 0, np.zeros((2, 8, 8, 3), np.uint8))
    assert (tmp_path / "i" / "c" / "0" / "0" / "0" / "0").is_file()
