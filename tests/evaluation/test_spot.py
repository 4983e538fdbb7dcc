"""One spot in numbers with units, and the contact sheet's picture."""

import json

import numpy as np
import pytest
from PIL import Image
from standins import NoiseModel, card_for, make_section

from napari_stmdit.errors import StoreError
from napari_stmdit.evaluation.measures import STAINS, compare_spot, measure_spot
from napari_stmdit.evaluation.pictures import save_sheet, sheet_picture
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.variants import ContactSheet, guidance_grid, make_sheet


def stained(haematoxylin, eosin, side=64):
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = haematoxylin * unit[0] + eosin * unit[1]
    colour = np.exp(-density) * 256 - 1
    return np.broadcast_to(np.clip(np.rint(colour), 0, 255).astype(np.uint8), (side, side, 3)).copy()


def with_nuclei(count_per_side, side_px, mpp, radius_um=3.0):
    """A grid of round nuclei on pale eosin."""
    y, x = np.mgrid[:side_px, :side_px] + 0.5
    step = side_px / count_per_side
    distance = np.hypot(y % step - step / 2, x % step - step / 2) * mpp
    pixels = stained(0.02, 0.1, side_px)
    pixels[distance < radius_um] = stained(1.6, 0.1, 1)[0, 0]
    return pixels


def test_densities_come_back_as_they_were_put_in():
    found = measure_spot(stained(0.4, 0.25), 64.0)
    assert found.haematoxylin == pytest.approx(0.4, abs=0.01)
    assert found.eosin == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("side", "mpp"), [(256, 0.7), (512, 0.35), (360, 0.5)])
def test_nuclei_are_counted_per_square_millimetre_whatever_the_scale(side, mpp):
    patch_um = side * mpp
    found = measure_spot(with_nuclei(8, side, mpp), patch_um)
    assert found.nuclei_per_mm2 == pytest.approx(64 / (patch_um / 1000) ** 2, rel=0.02)


def test_the_effect_of_an_edit_is_edited_minus_baseline():
    rows = compare_spot(
        {"real": stained(0.1, 0.1), "baseline": stained(0.2, 0.3), "edited": stained(0.5, 0.2)}, patch_um=45.0
    )
    by_name = {row.name: row for row in rows}
    assert by_name["Haematoxylin"].difference("edited", "baseline") == pytest.approx(0.3, abs=0.02)
    assert by_name["Eosin"].difference("edited", "baseline") == pytest.approx(-0.1, abs=0.02)
    assert by_name["Nuclei"].unit == "per mm²"
    assert by_name["Eosin"].unit == "OD (ln)"
    (row,) = (r for r in compare_spot({"real": stained(0, 0)}, 45.0) if r.name == "Nuclei")
    assert row.difference("edited", "baseline") is None


def test_the_picture_of_a_sheet(tmp_path):
    section = make_section()
    card = card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=1.0)
    grid = guidance_grid(Request(seed=4), "2x4", card.guidance)
    *_, (sheet, _) = make_sheet("Guidance", grid, 3, section, NoiseModel(card))
    picture = np.asarray(sheet_picture(sheet))
    for image in (sheet.real, *(cell.pixels for cell in sheet.cells)):
        # every image is in the picture as it is
        first = image[:2, :6].tobytes()
        rows = [r for r in range(picture.shape[0] - 1) if first[: 6 * 3] in picture[r].tobytes()]
        assert rows
    path = save_sheet(sheet, tmp_path / "sheet")
    with Image.open(path) as image:
        kept = json.loads(image.text["stmdit"])
        assert "Not for diagnosis" in image.text["Description"]
    assert [label for label, _ in kept["cells"]] == [v.label for v in grid]
    assert kept["cells"][8][1]["request"]["guidance"]["expression"] == 4.0
    with pytest.raises(StoreError, match="already there"):
        save_sheet(sheet, path)
    with pytest.raises(StoreError, match="empty"):
        sheet_picture(ContactSheet("x", "s", (), 3, 50.0))
