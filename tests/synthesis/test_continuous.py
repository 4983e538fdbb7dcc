import numpy as np
import pytest

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.edits import KnockOut
from napari_stmdit.errors import SynthesisError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import Polygons, SpotList
from napari_stmdit.synthesis.conditions import EncodedRows
from napari_stmdit.synthesis.continuous import TileDecoder
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import Session, run, synthesize
from napari_stmdit.tissue.open import open_section


def ring(y0, x0, y1, x1):
    return Polygons(rings=(((y0, x0), (y0, x1), (y1, x1), (y1, x0)),))


def wish(region=None, **others):
    return Request(region=region or ring(100, 100, 420, 640), mode="continuous", steps=3, **others)


@pytest.fixture(scope="module")
def plain(tiny_folder, tiny_checkpoint):
    """What `wish` gives as it stands."""
    return synthesize(open_section(tiny_folder), wish(), load_checkpoint(tiny_checkpoint, device="cpu"), batch=32)


def test_the_region_is_filled_and_nothing_else(plain):
    result = plain
    assert result.complete
    region = result.plan.windows.cells.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(result.rgba[..., 3] == 255, region)
    assert (result.rgba[~region] == 0).all()
    assert result.rgba[region][:, :3].std() > 1
    record = result.provenance["continuous"]
    assert "40 um" in record["rule"]
    assert record["windows"] == len(result.plan.windows)


def test_the_batch_does_not_matter_and_the_seed_does(tiny_section, tiny_model, plain):
    one = synthesize(tiny_section, wish(), tiny_model, batch=3).rgba.astype(int)
    many = plain.rgba.astype(int)
    assert np.abs(one - many).max() <= 1
    other = synthesize(tiny_section, wish(seed=1), tiny_model, batch=64).rgba.astype(int)
    assert np.abs(one - other).mean() > 1


def test_a_place_far_from_the_cut_does_not_depend_on_the_region(tiny_section, tiny_model):
    wide = synthesize(tiny_section, wish(ring(20, 20, 840, 840)).model_copy(update={"steps": 1}), tiny_model)
    narrow = synthesize(tiny_section, wish(ring(20, 20, 840, 620)).model_copy(update={"steps": 1}), tiny_model)
    size = wide.plan.frame.pixel_size
    shift = np.rint((np.array(narrow.plan.frame.origin) - wide.plan.frame.origin) / size).astype(int)
    y, x = (np.array([200, 60]) / size - np.array(wide.plan.frame.origin) / size).astype(int)
    there = wide.rgba[y : y + 300, x : x + 240].astype(int)
    here = narrow.rgba[y - shift[0] : y - shift[0] + 300, x - shift[1] : x - shift[1] + 240].astype(int)
    assert (there[..., 3] == 255).all()
    assert np.abs(there - here).max() <= 1


def test_an_edit_changes_the_tissue_where_it_was_painted(tiny_section, tiny_model):
    spots = tiny_section.spots
    left = [str(i) for i, (_, x) in zip(spots.ids, spots.yx, strict=True) if x < 300]
    edit = KnockOut(genes=("EPCAM", "KRT8", "KRT18"), spots=dict.fromkeys(left, 1.0))
    asked = wish(ring(300, 20, 560, 840)).model_copy(update={"steps": 2})
    before = synthesize(tiny_section, asked, tiny_model)
    asked = asked.model_copy(update={"edits": (edit,), "counterfactual": "off"})
    after = synthesize(tiny_section, asked, tiny_model)
    change = np.abs(before.rgba.astype(int) - after.rgba).mean(axis=(0, 2))
    x = (np.arange(len(change)) + 0.5) * before.plan.frame.pixel_size + before.plan.frame.origin[1]
    near, far = change[(x > 60) & (x < 250)].mean(), change[(x > 600) & (x < 830)].mean()
    assert near > 0.05
    assert far < 0.1 * near


@pytest.mark.parametrize(
    "wishes", [{"morphology": "null"}, {"morphology": "mean"}, {"expression": "null"}, {"expression": "shuffled"}]
)
def test_conditions_can_be_left_out_or_shared(tiny_section, tiny_model, plain, wishes):
    other = synthesize(tiny_section, wish(**wishes), tiny_model, batch=32).rgba.astype(int)
    assert np.abs(plain.rgba.astype(int) - other).max() > 1


def test_progress_rises_and_stopping_ends_within_a_batch_of_windows(tiny_section, tiny_model):
    made = plan(tiny_section, wish(), tiny_model.card)
    fractions = [p.fraction for _, p in run(made, tiny_section, tiny_model, batch=20)]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0 and fractions[-1] == 1
    assert len(fractions) > 3 * len(made.windows) / 20
    cancel = CancelToken()
    count = 0
    for _, progress in run(made, tiny_section, tiny_model, batch=20, cancel=cancel):
        count += 1
        if progress.step == 1 and progress.part > 0:
            cancel.cancel()
    assert count < len(fractions) / 2


def test_a_share_of_a_region_is_refused(tiny_model, tiny_section):
    made = plan(tiny_section, wish(), tiny_model.card)
    with pytest.raises(SynthesisError, match="stays together"):
        Session(made, tiny_section, tiny_model, only=[0])


def test_a_single_spot_works(tiny_section, tiny_model):
    result = synthesize(tiny_section, wish(SpotList(ids=(str(tiny_section.spots.ids[7]),))), tiny_model)
    assert result.complete and (result.rgba[..., 3] == 255).any()


def test_tiles_are_blended_without_a_seam(tiny_section, tiny_model):
    """Tiles that are off by a constant, as a decoder that looks at the whole picture makes them, meet in a ramp."""
    made = plan(tiny_section, wish(ring(20, 20, 840, 840)), tiny_model.card)
    shades = iter(range(40, 250, 40))

    def decode(latents, corner):
        return np.full((latents.shape[1] * 8, latents.shape[2] * 8, 3), next(shades), np.uint8)

    window = made.windows
    latents = np.zeros((12, window.size[0] // 8, window.size[1] // 8), np.float32)
    decoder = TileDecoder(latents, made, window, 8, decode)
    canvas = np.zeros((*made.frame.shape, 3), int)
    for patch in made.patches:
        y0, x0, y1, x1 = patch.canvas_box
        canvas[y0:y1, x0:x1] = decoder.tile(patch).pixels
    y, x = made.patches[0].canvas_box[2:]
    row = canvas[y - 100, x - 60 : x + 60, 0]
    assert row[0] != row[-1]
    assert np.abs(np.diff(row)).max() <= 2
    assert len(np.unique(row)) > 20


@pytest.mark.parametrize("most", [0, 2**20])
def test_encoded_rows_come_back_from_memory_and_from_a_file(most):
    rows = np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float32)
    table = EncodedRows(10, most)
    table.put(4, rows[4:9])
    assert table.has(4, 9) and not table.has(3, 9)
    table.put(0, rows[:4])
    table.put(9, rows[9:])
    np.testing.assert_array_equal(table.get(2, 10), rows[2:])
    table.close()
