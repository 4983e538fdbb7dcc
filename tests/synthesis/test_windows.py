import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree
from standins import card_for, make_section

from napari_stmdit.errors import RequestError
from napari_stmdit.intent import Request
from napari_stmdit.regions import AllSpots, Polygons, SpotList
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.windows import field_noise, nearest_spots
from napari_stmdit.tissue.excluded import exclude

GENES = tuple(f"GENE{k}" for k in range(40))


@pytest.fixture(scope="module")
def section():
    return make_section()


@pytest.fixture(scope="module")
def card():
    return card_for(GENES)


def ring(y0, x0, y1, x1):
    return Polygons(rings=(((y0, x0), (y0, x1), (y1, x1), (y1, x0)),))


def continuous(section, card, region=None, **wishes):
    return plan(section, Request(region=region or AllSpots(), mode="continuous", **wishes), card)


def middles(made):
    """Places of the cells of a region, in full-resolution pixels."""
    return ((np.argwhere(made.windows.cells) + 0.5) * 8 * made.frame.pixel_size + made.frame.origin).round(3)


def test_every_cell_of_the_region_lies_in_four_windows_but_at_no_other_place(section, card):
    made = continuous(section, card, ring(300, 300, 700, 600))
    windows = made.windows
    count = np.zeros(np.array(made.frame.shape) + 2 * card.patch_px, dtype=int)
    for y, x in windows.corners + windows.origin + card.patch_px:
        count[y : y + windows.side, x : x + windows.side] += 1
    count = count[card.patch_px : -card.patch_px, card.patch_px : -card.patch_px]
    region = windows.cells.repeat(8, axis=0).repeat(8, axis=1)
    assert (count[region] == 4).all()
    assert count[~region].min() == 0
    touched = [
        region[max(y, 0) : y + windows.side, max(x, 0) : x + windows.side].any()
        for y, x in windows.corners + windows.origin
    ]
    assert all(touched)


def test_a_polygons_area_is_covered_and_nothing_else(section, card):
    made = continuous(section, card, ring(300, 300, 700, 600))
    area = made.windows.cells.sum() * 8**2 * made.frame.pixel_size**2
    assert area == pytest.approx(400 * 300, rel=0.05)
    ys, xs = np.nonzero(made.windows.cells)
    low = np.array([ys.min(), xs.min()]) * 8 * made.frame.pixel_size + made.frame.origin
    np.testing.assert_allclose(low, [300, 300], atol=8 * made.frame.pixel_size)


def test_tiles_cover_the_region_and_lie_on_the_slides_grid(section, card):
    made = continuous(section, card)
    assert all(
        abs(v / made.frame.pixel_size / 512 - round(v / made.frame.pixel_size / 512)) < 1e-9 for v in made.frame.origin
    )
    covered = np.zeros(made.frame.shape, dtype=bool)
    for patch in made.patches:
        y0, x0, y1, x1 = patch.canvas_box
        assert not covered[y0:y1, x0:x1].any()
        covered[y0:y1, x0:x1] = True
        corner = made.frame.affine @ [y0, x0, 1]
        np.testing.assert_allclose(corner[:2], patch.source_box[:2], atol=1e-9)
    assert covered[made.windows.cells.repeat(8, axis=0).repeat(8, axis=1)].all()


def test_all_spots_are_one_piece_of_tissue_and_one_spot_is_its_neighbourhood(section, card):
    from scipy.ndimage import label

    whole = continuous(section, card).windows.cells
    assert label(whole)[1] == 1
    assert label(~np.pad(whole, 1, constant_values=False))[1] == 1  # and without holes
    one = continuous(section, card, SpotList(ids=("2x4",))).windows.cells
    pitch_um = 100
    hexagon = np.sqrt(3) / 2 * pitch_um**2
    assert one.sum() * (8 * card.patch_mpp) ** 2 == pytest.approx(hexagon, rel=0.05)


@pytest.mark.parametrize("region", [AllSpots(), ring(-1e4, -1e4, 1e5, 1e5)])
def test_no_tissue_is_made_where_the_nearest_spot_is_excluded(section, card, region):
    gone = ["2x4", "2x6", "0x0"]
    whole, made = (continuous(one, card, region) for one in (section, exclude(section, {"fold": gone})))
    spots = cKDTree(section.spots.yx)
    kept = {tuple(at) for at in middles(whole) if section.spots.ids[spots.query(at)[1]] not in gone}
    assert {tuple(at) for at in middles(made)} == kept and len(kept) < len(middles(whole))


def test_a_region_of_excluded_spots_alone_is_refused(section, card):
    y, x = section.spots.yx[section.spots.rows(["2x4"])][0]
    left = exclude(section, {"fold": ["2x4"]})
    with pytest.raises(RequestError, match=r"region.rings: nothing of it .* nearest to one that is not excluded"):
        continuous(left, card, ring(y - 20, x - 20, y + 20, x + 20))


def test_what_is_far_from_every_spot_is_left_out_and_said(section, card):
    height, width = section.image.shape
    few = section.spots.rows(["0x0"])
    alone = dataclasses.replace(
        section,
        spots=dataclasses.replace(
            section.spots, ids=section.spots.ids[few], yx=section.spots.yx[few], counts=section.spots.counts[few]
        ),
    )
    made = continuous(alone, card, ring(0, 0, height, width))
    assert any("farther than 200 um" in note for note in made.notes)
    with pytest.raises(RequestError, match="within 200 um"):
        continuous(alone, card, ring(height - 60, width - 60, height - 1, width - 1))


def test_the_nearest_spots_weigh_most_and_weights_sum_to_one(section):
    spots = section.spots
    rows, weights = nearest_spots(spots.yx[:4], section)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    ratio = weights[0, 1] / weights[0, 0]  # a neighbour at 100 um against the spot itself
    assert ratio == pytest.approx(np.exp(-(100**2) / (2 * 40**2)), rel=0.02)
    middle = (spots.yx[0] + spots.yx[1]) / 2
    _, halves = nearest_spots(middle[None], section)
    assert halves[0, 0] == pytest.approx(halves[0, 1], rel=1e-5)


def test_noise_belongs_to_the_place():
    whole = field_noise(7, 4, (-20, 15), (90, 70))
    part = field_noise(7, 4, (5, 40), (33, 9))
    np.testing.assert_array_equal(whole[:, 25 : 25 + 33, 25 : 25 + 9], part)
    assert not np.array_equal(field_noise(8, 4, (5, 40), (33, 9)), part)
    assert abs(whole.mean()) < 0.03 and abs(whole.std() - 1) < 0.03
    tiles = field_noise(7, 1, (0, 0), (64, 64))[0]
    assert abs(np.corrcoef(tiles[:32].ravel(), tiles[32:].ravel())[0, 1]) < 0.1
