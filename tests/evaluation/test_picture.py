"""The picture of an edit shows where tissue changed, and its file says what it is."""

import numpy as np
import pytest
from PIL import Image

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.evaluation.demo import END_UM, demo_request
from napari_stmdit.evaluation.pictures import EditShown, edit_picture, haematoxylin_change, save_picture
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.tissue.export import EDITED
from napari_stmdit.tissue.sample import open_sample_section


@pytest.fixture
def look():
    before = np.full((200, 200, 3), (120, 80, 150), np.uint8)
    away = (np.arange(200) + 0.5 - 100) * 2.0
    radius = np.hypot(away[:, None], away[None])
    after = before.copy()
    after[radius < 60] = (230, 200, 230)
    return EditShown(before, after, np.ones((200, 200), bool), radius, 2.0, (60.0, 100.0), 50.0, EDITED)


def test_less_haematoxylin_is_blue_and_no_change_is_pale(look):
    assert haematoxylin_change(look)[100, 100] < -0.1 and haematoxylin_change(look)[5, 5] == 0
    sheet = np.asarray(edit_picture(look, "painted paler")).astype(int)
    third = 16 + 2 * (560 + 16)
    red, _, blue = sheet[16 + 280, third + 280]
    assert blue - red > 60
    assert np.ptp(sheet[16 + 20, third + 20]) <= 2


def test_the_file_of_a_picture_says_that_tissue_was_edited(look, tmp_path):
    save_picture(edit_picture(look, "painted"), tmp_path / "comparison.png", look.label)
    with Image.open(tmp_path / "comparison.png") as picture:
        picture.load()
        assert EDITED.source.encode() in picture.info["xmp"]
    with pytest.raises(FileExistsError):
        save_picture(edit_picture(look, "painted"), tmp_path / "comparison.png", look.label)


def test_the_demo_asks_for_an_edit_of_this_tissue_with_its_brush_in_the_region():
    section, model = open_sample_section(), load_checkpoint("demo", device="cpu")
    request, centre = demo_request(section, model.profiles, model.card)
    assert plan(section, request, model.card).counterfactual
    weights = request.edits[0].spots
    away = np.linalg.norm(section.spots.yx[section.spots.rows(list(weights))] - centre, axis=1)
    assert away.max() * section.calibration.mpp < END_UM < 260 and max(weights.values()) == 1
