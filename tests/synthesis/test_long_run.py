import gc
import tempfile
import tracemalloc
from pathlib import Path

from standins import NoiseModel, card_for, make_section

from napari_stmdit.intent import Request
from napari_stmdit.synthesis.session import synthesize

GENES = tuple(f"GENE{k}" for k in range(40))


class ForgetfulModel(NoiseModel):
    """Does not keep its batches, as the stand-in does for tests to look at."""

    def denoise(self, batch):
        yield from super().denoise(batch)
        self.batches.clear()


def growth_bytes(folder):
    section = make_section(mpp=1.0, rows=20, columns=20)
    model = ForgetfulModel(card_for(GENES, patch_px=64, patch_mpp=1.0))
    seen = {}

    def look(progress):
        if progress.step == 0 and progress.patches_done in (160, 400):
            gc.collect()
            seen[progress.patches_done] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        synthesize(section, Request(), model, on_progress=look, folder=folder)
    finally:
        tracemalloc.stop()
    return seen[400] - seen[160]


def test_a_run_on_disk_keeps_no_patch_in_memory(tmp_path):
    patches = 240 * 64 * 64 * 3
    assert growth_bytes(tmp_path / "run") < patches / 5
    assert growth_bytes(None) > patches  # a run in memory does, so this would be seen


def test_nothing_temporary_is_left_behind(tmp_path, tiny_section, tiny_model, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    from napari_stmdit.synthesis import conditions

    monkeypatch.setattr(conditions, "MAX_BYTES", 0)
    monkeypatch.setattr(conditions.EncodedRows.__init__, "__defaults__", (0,))
    result = synthesize(tiny_section, Request(mode="continuous", steps=1), tiny_model, folder=tmp_path / "run")
    assert result.complete
    result.save(tmp_path / "o.zarr")
    result.canvas.discard()
    assert list(scratch.iterdir()) == []
    assert [path.name for path in Path(tmp_path).iterdir() if path != scratch] == ["o.zarr"]
