import numpy as np
import pytest
import torch
from standins import CropModel, card_for, make_section

from napari_stmdit.errors import SynthesisError, is_out_of_memory
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import Polygons, SampleOfSpots
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import run, synthesize

GENES = tuple(f"GENE{k}" for k in range(40))
AREA = Polygons(rings=(((100, 100), (100, 640), (420, 640), (420, 100)),))


@pytest.fixture(scope="module")
def section():
    return make_section()


class SmallModel(CropModel):
    """Has room for so many patches at once."""

    room = 3

    def denoise(self, batch):
        if len(batch.patches) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        yield from super().denoise(batch)


def test_too_little_memory_halves_the_batch_and_is_told(section):
    model = SmallModel(card_for(GENES))
    result = synthesize(section, Request(), model, batch=16)
    assert result.complete
    assert result.done == tuple(range(30))
    assert max(len(b.patches) for b in model.batches) == 2
    notes = [note for note in result.notes if "too little memory" in note]
    assert [note.split(" patches")[0].split()[-1] for note in notes] == ["16", "8", "4"]
    assert "Tried to allocate 2.00 GiB." in notes[0] and "more lines" not in notes[0]
    assert result.provenance["notes"] == list(result.notes)


def test_too_little_memory_for_a_single_patch_ends_with_advice_and_keeps_the_rest(section, tmp_path):
    model = SmallModel(card_for(GENES))

    def shrink(progress):
        model.room = 3 if progress.patches_done < 4 else 0

    with pytest.raises(SynthesisError, match="even for one patch") as error:
        synthesize(section, Request(), model, batch=2, folder=tmp_path / "run", on_progress=shrink)
    assert "4 of 30 patches are finished and kept" in str(error.value)
    model.room = 3
    assert synthesize(section, Request(), model, batch=2, folder=tmp_path / "run", resume=True).complete


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_memory_faults_of_all_devices_are_known(error, expected):
    assert is_out_of_memory(error) is expected


def test_continuous_mode_halves_its_batch_of_windows(tiny_section, tiny_model, monkeypatch):
    from napari_stmdit.model.sampling import CanvasSolver

    request = Request(region=AREA, mode="continuous", steps=2)
    plain = synthesize(tiny_section, request, tiny_model, batch=8)
    predict = CanvasSolver.predict

    def small(self, windows, *conditions):
        if len(windows) > 10:
            raise RuntimeError("CUDA out of memory")
        return predict(self, windows, *conditions)

    monkeypatch.setattr(CanvasSolver, "predict", small)
    result = synthesize(tiny_section, request, tiny_model, batch=32)
    assert sum("too little memory" in note for note in result.notes) == 2
    assert np.abs(result.rgba.astype(int) - plain.rgba).max() <= 1


# --- what is not finite


def spoiled(model, names, monkeypatch):
    """A real network that gets conditions which are not finite for some spots: it overflows there and only there."""
    encode = model.encode_morphology

    def with_nan(patches, spots=()):
        rows = encode(patches, spots).copy()
        rows[[spot in names for spot in spots]] = np.nan
        return rows

    monkeypatch.setattr(model, "encode_morphology", with_nan)


def test_a_patch_that_is_not_finite_is_named_and_the_others_are_made(tiny_section, tiny_model, monkeypatch):
    ids = [str(i) for i in tiny_section.spots.ids]
    plain = synthesize(tiny_section, Request(), tiny_model)
    spoiled(tiny_model, {ids[3], ids[10], ids[11]}, monkeypatch)
    result = synthesize(tiny_section, Request(), tiny_model, batch=8)
    assert set(result.failed) == {3, 10, 11}
    assert result.done == tuple(i for i in range(30) if i not in (3, 10, 11))
    assert not result.complete
    assert any(ids[3] in note and "--dtype" in note for note in result.notes)
    assert set(result.provenance["patches"]["failed"]) == {ids[3], ids[10], ids[11]}
    assert np.abs(result.patches.astype(int) - plain.patches[list(result.done)]).max() <= 1


def test_a_checkpoint_that_overflows_everywhere_ends_at_once(tiny_section, tiny_model, monkeypatch):
    spoiled(tiny_model, set(tiny_section.spots.ids.tolist()), monkeypatch)
    seen = []
    with pytest.raises(SynthesisError, match="not finite"):
        synthesize(tiny_section, Request(), tiny_model, on_progress=lambda p: seen.append(p.patches_done))
    assert max(seen) == 0


def test_failed_patches_are_tried_again_on_resume(tiny_section, tiny_model, tmp_path):
    request = Request(region=SampleOfSpots(count=6))
    ids = [p.spot_id for p in plan(tiny_section, request, tiny_model.card).patches]
    with pytest.MonkeyPatch.context() as monkeypatch:
        spoiled(tiny_model, {ids[4]}, monkeypatch)
        first = synthesize(tiny_section, request, tiny_model, batch=2, folder=tmp_path / "run")
    assert set(first.failed) == {4} and len(first.done) == 5
    assert synthesize(tiny_section, request, tiny_model, folder=tmp_path / "run", resume=True).complete


def test_a_window_that_is_not_finite_does_not_spread(tiny_section, tiny_model, monkeypatch):
    request = Request(region=AREA, mode="continuous", steps=3)
    plain = synthesize(tiny_section, request, tiny_model)
    from napari_stmdit.model.sampling import CanvasSolver

    predict, place = CanvasSolver.predict, len(plain.plan.windows) // 2
    count = [0]

    def spoil(self, windows, *conditions):
        out = predict(self, windows, *conditions)
        first = count[0] % len(plain.plan.windows)
        count[0] += len(windows)
        if first <= place < first + len(windows):
            out[place - first] = np.nan
        return out

    monkeypatch.setattr(CanvasSolver, "predict", spoil)
    result = synthesize(tiny_section, request, tiny_model, batch=16)
    assert result.complete
    assert sum("window around" in note for note in result.notes) == 1
    change = np.abs(result.rgba.astype(int) - plain.rgba).max(axis=2)
    y, x = plain.plan.windows.corners[place] + plain.plan.windows.origin
    assert change[max(y, 0) : y + 64, max(x, 0) : x + 64].max() > 1
    assert (change > 1).mean() < 0.15


def test_tiles_that_only_broken_windows_cover_are_left_out_and_named(tiny_section, tiny_model, monkeypatch):
    from napari_stmdit.model.sampling import CanvasSolver

    ring = (((20, 20), (20, 840), (840, 840), (840, 20)),)
    request = Request(region=Polygons(rings=ring), mode="continuous", steps=2)
    made = plan(tiny_section, request, tiny_model.card)
    y0, x0, y1, x1 = made.patches[0].canvas_box
    corners = made.windows.corners + made.windows.origin
    broken = np.flatnonzero((corners[:, 0] < y1 - 40) & (corners[:, 1] < x1 - 40))
    predict = CanvasSolver.predict
    count = [0]

    def spoil(self, windows, *conditions):
        out = predict(self, windows, *conditions)
        first = count[0] % len(made.windows)
        count[0] += len(windows)
        out[np.isin(np.arange(first, first + len(windows)), broken)] = np.nan
        return out

    monkeypatch.setattr(CanvasSolver, "predict", spoil)
    *_, (_, last) = run(made, tiny_section, tiny_model, batch=50)
    assert 0 in last.failed
    assert last.patches_done == len(made) - len(last.failed) > 0


def test_a_seamless_run_that_is_continued_knows_what_an_earlier_session_could_not_make(
    tiny_section, tiny_model, tmp_path, monkeypatch
):
    from napari_stmdit.model.sampling import CanvasSolver

    ring = (((20, 20), (20, 840), (840, 840), (840, 20)),)
    request = Request(region=Polygons(rings=ring), mode="continuous", steps=2)
    made = plan(tiny_section, request, tiny_model.card)
    y0, x0, y1, x1 = made.patches[0].canvas_box
    corners = made.windows.corners + made.windows.origin
    broken = np.flatnonzero((corners[:, 0] < y1 - 40) & (corners[:, 1] < x1 - 40))
    predict = CanvasSolver.predict
    count = [0]

    def spoil(self, windows, *conditions):
        """Only at the first step, so that a session that begins later sees nothing of it."""
        out = predict(self, windows, *conditions)
        places = np.arange(count[0], count[0] + len(windows))
        count[0] += len(windows)
        out[np.isin(places, broken)] = np.nan
        return out

    monkeypatch.setattr(CanvasSolver, "predict", spoil)
    whole = synthesize(tiny_section, request, tiny_model, batch=50)
    count[0] = 0
    cancel = CancelToken()
    folder = tmp_path / "run"
    stopped = synthesize(
        tiny_section, request, tiny_model, batch=50, folder=folder, cancel=cancel,
        on_progress=lambda p: cancel.cancel() if p.step == 1 else None,
    )  # fmt: skip
    assert stopped.done == () and 0 in stopped.failed
    for _ in range(2):  # the second time there is nothing left to do
        result = synthesize(tiny_section, request, tiny_model, batch=50, folder=folder, resume=True)
        assert result.failed == whole.failed and 0 in result.failed and not result.complete
        assert result.done == whole.done
        assert sum("window around" in note for note in result.notes) == len(broken)
        assert result.provenance["continuous"]["failed"] == whole.provenance["continuous"]["failed"]
