"""The geometry rules of the design, each with a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.regions import Polygons
from napari_stmdit.tissue import geometry
from napari_stmdit.tissue.spaceranger import read_positions

SQRT3 = np.sqrt(3)


def visium_lattice(mpp: float, rows: int = 12, columns: int = 10, angle: float = 0.0, mirrored: bool = False):
    """Array indices and pixel positions of a Visium lattice."""
    rc = np.array([(r, 2 * c + r % 2) for r in range(rows) for c in range(columns)])
    yx = rc * (50 * SQRT3, 50.0) / mpp
    if mirrored:
        yx = yx * (1, -1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rc, yx @ turn.T + (300.0, 500.0)


# ---------------------------------------------------------------------------------------------- axes and affines


def test_swapping_axes_twice_changes_nothing():
    np.testing.assert_array_equal(geometry.swap_axes([[1, 2]]), [[2, 1]])
    np.testing.assert_array_equal(geometry.swap_axes(geometry.swap_axes([[1, 2]])), [[1, 2]])


def test_compose_applies_the_last_one_first():
    both = geometry.compose(geometry.scaling(2, 3), geometry.translation(1, 1))
    np.testing.assert_array_equal(geometry.apply(both, [[0, 0]]), [[2, 3]])


def test_a_shift_and_the_scale_of_an_area():
    np.testing.assert_array_equal(geometry.translation(3, 4), [[1, 0, 3], [0, 1, 4], [0, 0, 1]])
    assert geometry.mean_scale([[0, -2, 7], [8, 0, 7], [0, 0, 1]]) == pytest.approx(4)


def test_uniform_scale_knows_a_scale_from_a_shift_a_stretch_and_a_turn():
    assert geometry.uniform_scale(geometry.scaling(5.88)) == pytest.approx(5.88)
    assert geometry.uniform_scale(geometry.compose(geometry.translation(1, 0), geometry.scaling(2))) is None
    assert geometry.uniform_scale(geometry.compose(geometry.translation(0, 1), geometry.scaling(2))) is None
    assert geometry.uniform_scale([[2, 0, 0], [0.1, 2, 0], [0, 0, 1]]) is None
    assert geometry.uniform_scale([[2, 0.1, 0], [0, 2, 0], [0, 0, 1]]) is None
    assert geometry.uniform_scale(geometry.scaling(2, 2.1)) is None
    assert geometry.uniform_scale([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) is None


@pytest.mark.parametrize(("scale", "mpp"), [(1.0, None), (5.88, 0.5), (2.752, 0.25)])
def test_half_pixel_rule_a_rasters_first_centre_lies_half_a_pixel_inside(scale, mpp):
    layer = geometry.napari_affine(geometry.compose(geometry.translation(10, 20), geometry.scaling(scale)), mpp)
    centre = geometry.apply(layer, [[0, 0]])[0]
    np.testing.assert_allclose(centre, (mpp or 1) * np.array([10 + scale / 2, 20 + scale / 2]))


def test_world_is_microns_only_where_calibrated(tiny_section):
    import dataclasses

    from napari_stmdit.types import Calibration

    np.testing.assert_array_equal(geometry.world_affine(tiny_section), np.diag([0.7, 0.7, 1]))
    unknown = dataclasses.replace(tiny_section, calibration=Calibration(None, "unknown", ""))
    np.testing.assert_array_equal(geometry.world_affine(unknown), np.eye(3))


# ---------------------------------------------------------------------------------------------- calibration


def test_the_override_comes_first_then_the_stated_scale_then_the_lattice():
    rc, yx = visium_lattice(0.5)
    stated = {"microns_per_pixel": 0.51}
    assert geometry.calibrate(stated, yx, rc, 0.6).source == "override"
    assert geometry.calibrate(stated, yx, rc, 0.6).mpp == 0.6
    assert geometry.calibrate(stated, yx, rc).source == "scalefactors"
    assert geometry.calibrate(stated, yx, rc).mpp == 0.51
    fitted = geometry.calibrate({}, yx, rc)
    assert fitted.source == "lattice"
    assert fitted.mpp == pytest.approx(0.5, rel=1e-9)


def test_a_scale_that_disagrees_with_the_lattice_is_told():
    rc, yx = visium_lattice(0.5)
    assert "0.5 um/px" in geometry.calibrate({}, yx, rc, 0.25).detail
    assert "lattice" not in geometry.calibrate({"microns_per_pixel": 0.5001}, yx, rc).detail


@pytest.mark.parametrize("angle", [0.0, 0.01, np.pi / 2, 2.5])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_lattice_may_be_turned_and_mirrored(angle, mirrored):
    rc, yx = visium_lattice(0.724, angle=angle, mirrored=mirrored)
    assert geometry.fit_lattice(rc, np.rint(yx)) == pytest.approx(0.724, rel=2e-3)


def test_never_from_the_spot_diameter():
    rc, yx = visium_lattice(0.5)
    square = np.argwhere(np.ones((6, 6)))
    for factors in (
        {"spot_diameter_fullres": 89.4},
        {"spot_diameter_fullres": 89.4, "fiducial_diameter_fullres": 144.5},
    ):
        assert geometry.calibrate(factors, square * 200.0, square).mpp is None
        assert geometry.calibrate(factors, yx, rc).mpp == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "rc", "yx"),
    [
        ("square grid", np.argwhere(np.ones((6, 6))), np.argwhere(np.ones((6, 6))) * 290.0),
        ("checkerboard of a square grid", *(lambda c: (c, c * 145.0))(np.argwhere(np.indices((8, 8)).sum(0) % 2 == 0))),
        ("one row", np.array([(0, 2 * i) for i in range(9)]), np.array([(0.0, 100.0 * i) for i in range(9)])),
        ("too few", *(lambda rc, yx: (rc[:6], yx[:6]))(*visium_lattice(0.5, 2, 3))),
        (
            "scattered",
            visium_lattice(0.5)[0],
            visium_lattice(0.5)[1] + np.random.default_rng(0).normal(0, 40, (120, 2)),
        ),
    ],
)
def test_what_is_no_visium_lattice_gives_no_scale_and_asks_for_it(name, rc, yx):
    calibration = geometry.calibrate({}, yx, rc)
    assert calibration.mpp is None and calibration.source == "unknown"
    assert "--mpp" in calibration.detail


def test_seven_spots_that_span_three_rows_and_columns_are_enough_and_needed():
    rc, yx = visium_lattice(0.5)
    steps = np.abs(rc - rc[rc[:, 0] == 4][4])
    seven = ((steps == (0, 0)) | (steps == (0, 2)) | (steps == (1, 1))).all(axis=1)
    assert seven.sum() == 7 and geometry.fit_lattice(rc[seven], yx[seven]) == pytest.approx(0.5)
    for few in (rc[:, 0] < 2, rc[:, 1] < 2, rc[:, 0] == rc[:, 1]):  # two rows, two columns, one line across
        assert few.sum() >= 7 and geometry.fit_lattice(rc[few], yx[few]) is None


def test_spots_may_lie_a_twentieth_of_the_pitch_off_their_lattice():
    rc, yx = visium_lattice(0.5)  # a pitch of 200 px
    off = np.random.default_rng(0).normal(size=yx.shape)
    off /= np.sqrt((off**2).sum(axis=1).mean())
    assert geometry.fit_lattice(rc, yx + 8 * off) == pytest.approx(0.5, rel=0.01)
    assert geometry.fit_lattice(rc, yx + 12 * off) is None


@pytest.mark.parametrize("mpp", [0.01, 100.0])
def test_a_lattice_of_an_implausible_scale_gives_none(mpp):
    rc, yx = visium_lattice(mpp)
    assert geometry.calibrate({}, yx, rc).mpp is None


def test_no_array_indices_give_no_scale():
    assert geometry.calibrate({}, visium_lattice(0.5)[1], None).source == "unknown"


def test_hd_bins_are_calibrated_by_their_size():
    rc = np.argwhere(np.ones((9, 9)))
    calibration = geometry.calibrate({}, rc * (-29.2, 29.2) + 400, rc, bin_um=8.0)
    assert calibration.mpp == pytest.approx(8 / 29.2)
    assert "8 um bins" in calibration.detail


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), float("inf"), 1000.0])
def test_an_implausible_override_is_refused(mpp):
    with pytest.raises(SectionError, match="microns per full-resolution pixel"):
        geometry.calibrate({}, *visium_lattice(0.5)[::-1], override=mpp)


@pytest.mark.parametrize("stated", [0, "0.5", None, float("nan")])
def test_an_unusable_stated_scale_is_passed_over(stated):
    rc, yx = visium_lattice(0.5)
    assert geometry.calibrate({"microns_per_pixel": stated}, yx, rc).source == "lattice"


@pytest.mark.parametrize("layout", ["outs_spaceranger1", "outs_spaceranger2"])
def test_the_mouse_crop_is_fitted_better_than_its_nearest_neighbours_would_give(shared_data, layout):
    positions = read_positions(shared_data / "visium_mouse_brain_crop" / layout)
    assert 0.723 <= geometry.fit_lattice(positions.array_rc, positions.yx) <= 0.727


def test_a_stretched_slide_is_still_a_lattice(shared_data):
    positions = read_positions(shared_data / "visium_v4_no_fullres" / "outs")
    assert geometry.fit_lattice(positions.array_rc, positions.yx) == pytest.approx(4.67, rel=0.005)


# ---------------------------------------------------------------------------------------------- polygons


def test_spots_in_a_square_and_in_the_union_of_rings():
    yx = np.array([(5.0, 5.0), (15.0, 5.0), (5.0, 15.0)])
    first = ((0, 0), (0, 10), (10, 10), (10, 0))
    second = ((0, 12), (0, 20), (10, 20), (10, 12))
    assert geometry.spots_in_polygons(yx, Polygons(rings=(first,))).tolist() == [True, False, False]
    assert geometry.spots_in_polygons(yx, Polygons(rings=(first, second))).tolist() == [True, False, True]


def test_a_lasso_that_crosses_itself_keeps_both_lobes():
    bow = ((0, 0), (10, 10), (10, 0), (0, 10))
    yx = np.array([(2.0, 5.0), (8.0, 5.0), (5.0, 1.0), (5.0, 9.0)])
    assert geometry.spots_in_polygons(yx, Polygons(rings=(bow,))).tolist() == [True, True, False, False]


@pytest.mark.parametrize("ring", [((1, 1),), ((1, 1), (2, 2)), ((1, 1), (2, 2), (3, 3)), ((1, 1), (1, 1), (1, 1))])
def test_a_ring_without_an_area_holds_nothing(ring):
    assert not geometry.spots_in_polygons(np.array([(1.0, 1.0), (2.0, 2.0)]), Polygons(rings=(ring,))).any()


def test_geojson_is_xy_and_becomes_yx(tmp_path):
    feature = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [100, 0], [100, 10], [0, 10]]]},
            },
            {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[[[5, 50], [6, 50], [6, 51]]]]}},
        ],
    }
    file = tmp_path / "region.geojson"
    file.write_text(json.dumps(feature))
    polygons = geometry.polygons_from_geojson(file)
    assert polygons.rings[0] == ((0, 0), (0, 100), (10, 100), (10, 0))
    assert len(polygons.rings) == 2
    assert geometry.spots_in_polygons(np.array([(5.0, 90.0), (90.0, 5.0)]), polygons).tolist() == [True, False]
    assert geometry.polygons_from_geojson(feature) == polygons


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "cannot be read"),
        ('{"type": "Point", "coordinates": [1, 2]}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0,0],[9,0],[9,9]],[[1,1],[2,1],[2,2]]]}', "no hole"),
        ('{"type": "Polygon", "coordinates": [[[0,0],[9,0]]]}', "three or more"),
        ('{"type": "Polygon", "coordinates": [[["a","b"],[9,0],[1,1]]]}', "no list of"),
    ],
)
def test_bad_geojson_is_refused(tmp_path, content, message):
    file = Path(tmp_path / "bad.geojson")
    file.write_text(content)
    with pytest.raises(SectionError, match=message):
        geometry.polygons_from_geojson(file)


def test_sides_of_a_unit_are_alike_only_without_stretch_and_shear():
    from napari_stmdit.tissue.geometry import sides_of_unit

    turn = np.array([[0.6, -0.8, 5.0], [0.8, 0.6, -3.0], [0, 0, 1]])
    mirror = np.diag([1.0, -1.0, 1.0])
    assert sides_of_unit(2.5 * turn @ mirror) == pytest.approx((2.5, 2.5))
    assert sides_of_unit(turn @ np.diag([3.0, 2.0, 1.0]) @ turn) == pytest.approx((3.0, 2.0))
    longer, shorter = sides_of_unit([[1.0, 0.3, 0], [0, 1.0, 0], [0, 0, 1]])
    assert longer / shorter > 1.3 and longer * shorter == pytest.approx(1.0)
