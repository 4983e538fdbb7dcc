import json
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from standins import CropModel, NoiseModel, card_for, make_section

from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken, Progress
from napari_stmdit.regions import Polygons
from napari_stmdit.synthesis.models import Pasted
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import Session, open_canvas, run, synthesize
from napari_stmdit.synthesis.zarr_canvas import PatchStore, from_ranges
from napari_stmdit.tissue.elements import halved_rgba

GENES = tuple(f"GENE{k}" for k in range(40))
WHOLE = Request(seed=3)


@pytest.fixture(scope="module")
def section():
    return make_section()


@pytest.fixture
def model():
    return NoiseModel(card_for(GENES, patch_px=160))  # patches that overlap: 110 um at a pitch of 100 um


def as_in_memory(canvas, expected):
    assert np.abs(np.asarray(canvas.rgba).astype(int) - expected.rgba).max() <= 1


def test_it_holds_what_a_canvas_in_memory_holds(section, model, tmp_path):
    memory = synthesize(section, WHOLE, model)
    disk = synthesize(section, WHOLE, model, folder=tmp_path / "run")
    as_in_memory(disk, memory)
    assert disk.done == memory.done
    np.testing.assert_array_equal(np.asarray(disk.patches), memory.patches)
    levels = [np.moveaxis(np.asarray(level), -1, 0) for level in disk.canvas.levels]
    assert len(levels) >= 2
    for finer, coarser in zip(levels, levels[1:], strict=False):
        np.testing.assert_array_equal(coarser, halved_rgba(finer))


def test_the_order_of_pasting_and_other_processes_do_not_matter(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    memory = synthesize(section, WHOLE, model)
    canvas = open_canvas(tmp_path / "run", made, section, model)
    worker = PatchStore(tmp_path / "run", canvas.run_id)
    results = [patch for done, _ in run(made, section, model) for patch in done]
    for result in reversed(results[10:]):
        canvas.paste(result)
        canvas.commit()
    for result in results[:10]:
        worker.write(result.patch.index, result.pixels)
    canvas.adopt(range(10))
    canvas.close()
    as_in_memory(canvas, memory)


def test_a_shard_is_computed_alone_and_with_its_own_progress(section, model):
    made = plan(section, WHOLE, model.card)
    events = list(Session(made, section, model, batch=4, only=[3, 5, 20, 21, 22]).steps())
    pasted = [image.patch.index for event in events if isinstance(event, Pasted) for image in event.images]
    assert pasted == [3, 5, 20, 21, 22]
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions[0] == 0 and fractions[-1] == 1


def test_a_stopped_run_goes_on_where_it_was(section, model, tmp_path):
    cancel = CancelToken()
    first = synthesize(
        section, WHOLE, model, batch=4, folder=tmp_path / "run", cancel=cancel,
        on_progress=lambda p: cancel.cancel() if p.patches_done >= 12 else None,
    )  # fmt: skip
    assert 0 < len(first.done) < 30
    expected = np.zeros(first.plan.frame.shape, dtype=bool)
    for index in first.done:
        y0, x0, y1, x1 = first.plan.patches[index].canvas_box
        expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(np.asarray(first.rgba)[..., 3] == 255, expected)
    before = len(model.batches)
    second = synthesize(section, WHOLE, model, batch=4, folder=tmp_path / "run", resume=True)
    assert second.complete
    assert sum(len(b.patches) for b in model.batches[before:]) == 30 - len(first.done)
    as_in_memory(second, synthesize(section, WHOLE, model))
    assert any("continued" in note for note in second.notes)


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_with_another(section, model, tmp_path):
    folder = tmp_path / "run"
    cancel = CancelToken()
    cancel.cancel()
    synthesize(section, WHOLE, model, folder=folder, cancel=cancel)
    with pytest.raises(StoreError, match=r"0 of 30 patches.*--resume"):
        synthesize(section, WHOLE, model, folder=folder)
    with pytest.raises(StoreError, match=r"request\.seed: 3 then, 4 now"):
        synthesize(section, WHOLE.model_copy(update={"seed": 4}), model, folder=folder, resume=True)
    other = NoiseModel(model.card)
    other.provenance = {**other.provenance, "sha256": "1" * 64}
    with pytest.raises(StoreError, match=r"checkpoint\.sha256"):
        synthesize(section, WHOLE, other, folder=folder, resume=True)
    elsewhere = make_section(seed=1)
    with pytest.raises(StoreError, match=r"section\.counts"):
        synthesize(elsewhere, WHOLE, model, folder=folder, resume=True)
    assert synthesize(section, WHOLE, model, folder=folder, resume=True).complete


def test_a_run_goes_on_with_the_same_slide_alone(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    (level,) = section.image.levels
    negative = replace(section, image=replace(section.image, levels=(255 - level,)))
    assert negative.image.shape == section.image.shape
    with pytest.raises(StoreError, match="is not this one"):
        open_canvas(tmp_path / "run", made, negative, model, resume=True)
    open_canvas(tmp_path / "run", made, section, model, resume=True).close()


def test_a_run_goes_on_in_the_same_precision_alone(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    other = NoiseModel(model.card)
    other.provenance = {**model.provenance, "dtype": "float16"}
    with pytest.raises(StoreError, match=r"none.*float16"):
        open_canvas(tmp_path / "run", made, section, other, resume=True)
    open_canvas(tmp_path / "run", made, section, model, resume=True).close()


def test_another_version_of_the_code_does_not_go_on(section, model, tmp_path, monkeypatch):
    from napari_stmdit.synthesis import identity

    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    monkeypatch.setattr(identity, "PIXELS", identity.PIXELS + 1)
    with pytest.raises(StoreError, match=r"code\.pixels"):
        open_canvas(tmp_path / "run", made, section, model, resume=True)


def test_only_one_process_holds_a_run(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    canvas = open_canvas(tmp_path / "run", made, section, model)
    with pytest.raises(StoreError, match="another process"):
        open_canvas(tmp_path / "run", made, section, model, resume=True)
    canvas.close()
    open_canvas(tmp_path / "run", made, section, model, resume=True).close()


def test_patches_that_are_not_on_this_disk_are_not_taken_for_finished(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    canvas = open_canvas(tmp_path / "run", made, section, model)
    black = np.zeros((160, 160, 3), np.uint8)
    PatchStore(tmp_path / "run", canvas.run_id).write(1, black)
    with pytest.raises(
        StoreError, match=r"patches 0,2 were reported as written, and are not in .*run; all workers need"
    ):
        canvas.adopt([0, 1, 2])
    assert canvas.finished == {1}
    canvas.close()


def test_what_is_left_of_a_dead_run_writes_nothing_into_the_next_one(section, model, tmp_path):
    """A worker goes on for a while after its run was killed; by then another one may be in the same folder."""
    folder, made = tmp_path / "run", plan(section, WHOLE, model.card)
    dead = open_canvas(folder, made, section, model)
    worker = PatchStore(folder, dead.run_id)
    images = [patch for done, _ in run(made, section, model) for patch in done]
    shutil.rmtree(folder)
    other = WHOLE.model_copy(update={"seed": 4})
    canvas = open_canvas(folder, plan(section, other, model.card), section, model)
    canvas.paste(images[1])
    canvas.commit()
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for late in (
        lambda: worker.write(0, images[0].pixels),
        lambda: PatchStore(folder, dead.run_id),
        lambda: dead.paste(images[0]),
        dead.commit,
        lambda: dead.save_state({"latents": np.zeros(2)}),
    ):
        with pytest.raises(StoreError, match="holds another run by now.*a folder of its own"):
            late()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    canvas.close()


def test_what_the_manifest_lists_is_there_and_only_that(section, model, tmp_path):
    """As after a kill: patches that were written but not committed do not count."""
    made = plan(section, WHOLE, model.card)
    canvas = open_canvas(tmp_path / "run", made, section, model)
    results = [patch for done, _ in run(made, section, model) for patch in done]
    for result in results[:6]:
        canvas.paste(result)
    canvas.commit()
    for result in results[6:9]:
        canvas.paste(result)
    (tmp_path / "run" / "image" / "0" / "x.partial").write_bytes(b"half")
    canvas.release()  # no close: the process is gone
    again = open_canvas(tmp_path / "run", made, section, model, resume=True)
    assert again.finished == set(range(6))
    assert not list((tmp_path / "run").rglob("*.partial"))
    again.close()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["finished"] == "0-5"


@pytest.mark.parametrize("damage", ["{", "[]", '{"finished": "a-b"}', '{"finished": 3}'])
def test_a_damaged_manifest_is_said(section, model, tmp_path, damage):
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).close()
    (tmp_path / "run" / "manifest.json").write_text(damage)
    with pytest.raises(StoreError, match="to start anew"):
        open_canvas(tmp_path / "run", made, section, model, resume=True)


# --- faults of the disk


def test_a_folder_that_vanishes_is_noticed_and_not_made_anew(section, tmp_path):
    model = CropModel(card_for(GENES))
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def vanish(progress):
        if progress.patches_done == 8 and folder.exists():
            os.rename(folder, elsewhere)

    with pytest.raises(StoreError, match="removed or moved") as error:
        synthesize(section, WHOLE, model, batch=4, folder=folder, on_progress=vanish)
    assert "--resume" in str(error.value)
    assert not folder.exists()
    os.rename(elsewhere, folder)
    assert synthesize(section, WHOLE, model, folder=folder, resume=True).complete


def test_a_full_disk_keeps_what_is_finished(section, tmp_path, monkeypatch):
    """The writer of chunks is the edge: it says ENOSPC after a while, as a full disk does."""
    import errno

    import zarr.storage._local as local

    model = CropModel(card_for(GENES))
    put = local._put
    room = [25]

    def full(*what, **how):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(*what, **how)

    monkeypatch.setattr(local, "_put", full)
    with pytest.raises(StoreError, match="is full: make room") as error:
        synthesize(section, WHOLE, model, batch=2, folder=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())
    monkeypatch.setattr(local, "_put", put)
    assert "patches are finished and kept" in str(error.value)
    before = len(model.batches)
    again = synthesize(section, WHOLE, model, folder=tmp_path / "run", resume=True)
    assert again.complete
    safe = len(from_ranges(kept["finished"]))
    assert 4 <= safe < 30
    assert sum(len(b.patches) for b in model.batches[before:]) == 30 - safe
    as_in_memory(again, synthesize(section, WHOLE, model))


def test_a_disk_that_is_really_full(section, model, tmp_path):
    """A small file system of its own, where this computer lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a file system")
    try:
        with pytest.raises(StoreError, match="is full: make room"):
            synthesize(section, WHOLE, model, batch=2, folder=disk / "run")
        safe = from_ranges(json.loads((disk / "run" / "manifest.json").read_text())["finished"])
        assert 0 < len(safe) < 30
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        again = synthesize(section, WHOLE, model, folder=disk / "run", resume=True)
        as_in_memory(again, synthesize(section, WHOLE, model))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_place_that_may_not_be_written_is_refused_before_anything_is_computed(section, tmp_path, monkeypatch):
    import errno

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    model = CropModel(card_for(GENES))
    with pytest.raises(StoreError, match="may no longer be written"):
        synthesize(section, WHOLE, model, folder=tmp_path / "run")
    assert model.batches == []
    assert os.listdir(tmp_path) == []


# --- continuous mode


def area():
    return Polygons(rings=(((100, 100), (100, 640), (420, 640), (420, 100)),))


def test_continuous_mode_goes_on_from_its_latents(tiny_section, tiny_model, tmp_path):
    request = Request(region=area(), mode="continuous", steps=8)
    whole = synthesize(tiny_section, request, tiny_model, batch=32)
    cancel = CancelToken()
    stopped = synthesize(
        tiny_section, request, tiny_model, batch=32, folder=tmp_path / "run", cancel=cancel,
        on_progress=lambda p: cancel.cancel() if p.step == 6 else None,
    )  # fmt: skip
    assert stopped.done == () and not stopped.canvas.is_blank
    steps = []
    result = synthesize(
        tiny_section, request, tiny_model, batch=32, folder=tmp_path / "run", resume=True,
        on_progress=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert result.complete
    assert min(step for step in steps if step) == 6
    assert np.abs(np.asarray(result.rgba).astype(int) - whole.rgba).max() <= 1


def test_continuous_mode_decodes_only_the_tiles_that_are_missing(tiny_section, tiny_model, tmp_path):
    ring = (((20, 20), (20, 840), (840, 840), (840, 20)),)
    request = Request(region=Polygons(rings=ring), mode="continuous", steps=2)
    cancel = CancelToken()
    stopped = synthesize(
        tiny_section, request, tiny_model, batch=64, folder=tmp_path / "run", cancel=cancel,
        on_progress=lambda p: cancel.cancel() if p.patches_done == 1 else None,
    )  # fmt: skip
    assert len(stopped.done) == 1 < len(stopped.plan)
    seen = []
    result = synthesize(
        tiny_section, request, tiny_model, batch=64, folder=tmp_path / "run", resume=True,
        on_progress=lambda p: seen.append((p.patches_done, p.part)),
    )  # fmt: skip
    assert result.complete
    assert all(part == 0 for _, part in seen)  # no window was predicted again
    whole = synthesize(tiny_section, request, tiny_model, batch=64)
    assert np.abs(np.asarray(result.rgba).astype(int) - whole.rgba).max() <= 1


def test_a_solver_state_that_cannot_be_read_is_no_obstacle(tiny_section, tiny_model, tmp_path):
    request = Request(region=area(), mode="continuous", steps=2)
    made = plan(tiny_section, request, tiny_model.card)
    canvas = open_canvas(tmp_path / "run", made, tiny_section, tiny_model)
    (canvas.folder / "solver.npz").write_bytes(b"PK\x03\x04 torn")
    canvas.close()
    assert synthesize(tiny_section, request, tiny_model, folder=tmp_path / "run", resume=True).complete


def test_latents_are_kept_every_four_steps(tiny_section, tiny_model, tmp_path, monkeypatch):
    """Also where nobody asks for it: a process that is killed has no time to."""
    kept = []
    request = Request(region=area(), mode="continuous", steps=10)
    made = plan(tiny_section, request, tiny_model.card)
    canvas = open_canvas(tmp_path / "run", made, tiny_section, tiny_model)
    monkeypatch.setattr(canvas, "save_state", lambda state: kept.append({k: v.copy() for k, v in state.items()}))
    for event in Session(made, tiny_section, tiny_model, canvas, batch=64).steps():
        if isinstance(event, Progress) and event.step == 9:
            break
    assert [json.loads(state["solver"].tobytes())["step"] for state in kept] == [4, 8]


def test_a_saved_run_is_removed_but_for_what_somebody_put_beside_it(section, model, tmp_path):
    made = plan(section, WHOLE, model.card)
    open_canvas(tmp_path / "run", made, section, model).discard()
    assert not (tmp_path / "run").exists()
    canvas = open_canvas(tmp_path / "run", made, section, model)
    (tmp_path / "run" / "notes.md").write_text("mine")
    canvas.discard()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.md"]


# --- two processes on one run


def test_what_another_process_has_taken_up_is_neither_saved_nor_removed_under_its_hands(section, model, tmp_path):
    folder, store = tmp_path / "run", tmp_path / "o.zarr"
    result = synthesize(section, WHOLE, model, folder=folder)
    other = open_canvas(folder, result.plan, section, model, resume=True)
    with pytest.raises(StoreError, match="another process is at work.*\n.*kept"):
        result.save(store)
    result.canvas.discard()
    assert len(other.finished) == 30 and len(list((folder / "patches" / "c").iterdir())) == 30
    other.close()
    name = result.save(store)
    assert synthesize(section, WHOLE, model, folder=folder, resume=True).save(store) == name, "it was saved twice"
    result.canvas.discard()
    assert not folder.exists()


def test_a_result_is_saved_and_removed_while_its_folder_is_held(section, model, tmp_path, monkeypatch):
    from napari_stmdit.synthesis import result as saving

    folder = tmp_path / "run"
    result = synthesize(section, WHOLE, model, folder=folder)
    link, remove, refused = saving.link_result, shutil.rmtree, []

    def meanwhile(call):
        def between(*arguments, **options):
            with pytest.raises(StoreError, match="another process is at work"):
                open_canvas(folder, result.plan, section, model, resume=True)
            refused.append(call)
            return call(*arguments, **options)

        return between

    monkeypatch.setattr(saving, "link_result", meanwhile(link))
    result.save(tmp_path / "o.zarr")
    monkeypatch.setattr(shutil, "rmtree", meanwhile(remove))
    result.canvas.discard()
    assert refused == [link, remove, remove] and not folder.exists()


def test_a_run_that_is_saved_and_removed_just_before_it_is_taken_up_is_not_begun_in_its_ruins(
    section, model, tmp_path, monkeypatch
):
    from napari_stmdit.synthesis import zarr_canvas

    folder = tmp_path / "run"
    result = synthesize(section, WHOLE, model, folder=folder)
    take = zarr_canvas.take_lock

    def late(place):
        monkeypatch.setattr(zarr_canvas, "take_lock", take)
        result.canvas.discard()
        return take(place)

    monkeypatch.setattr(zarr_canvas, "take_lock", late)
    with pytest.raises(StoreError, match="another process has saved it.*run the same again"):
        open_canvas(folder, result.plan, section, model, resume=True)
    assert not folder.exists()
    foreign = open_canvas(folder, result.plan, section, model)
    foreign.close()
    result.canvas.discard()
    assert (folder / "run.json").exists(), "a later run in the folder is not this one's to remove"
