"""SpatialData stores: transformations are honoured, results are no slides, and what could be meant twice is asked for."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny import TINY_GENES, TINY_MPP, TINY_SIDE_PX, analytic_image, tiny_arrays

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue import geometry
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import open_section, synthesis_fault


def make_store(path, *, images, spots_to, tables=("table",), shapes=("spots",), change=None, spots_yx=None):
    """A store of the tiny section; images: name -> (pixels, {coordinate system: transformation})."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    arrays = tiny_arrays()
    n = len(arrays["ids"])
    yx = arrays["yx"] if spots_yx is None else spots_yx
    made_images = {
        name: Image2DModel.parse(
            pixels, dims=("y", "x", "c"), c_coords=list("rgba")[: pixels.shape[2]], transformations=dict(to)
        )
        for name, (pixels, to) in images.items()
    }
    made_shapes = {
        name: ShapesModel.parse(yx[:, ::-1], geometry=0, radius=arrays["diameter"] / 2, transformations=dict(spots_to))
        for name in shapes
    }
    made_tables = {}
    for i, name in enumerate(tables):
        region = shapes[min(i, len(shapes) - 1)]
        obs = pd.DataFrame(
            {
                "region": pd.Categorical([region] * n),
                "instance": np.arange(n),
                "array_row": arrays["array_rc"][:, 0],
                "array_col": arrays["array_rc"][:, 1],
            },
            index=arrays["ids"],
        )
        table = anndata.AnnData(arrays["counts"].copy(), obs=obs, var=pd.DataFrame(index=list(TINY_GENES)))
        if change is not None:
            change(table)
        made_tables[name] = TableModel.parse(table, region=region, region_key="region", instance_key="instance")
    SpatialData(images=made_images, shapes=made_shapes, tables=made_tables).write(path)
    return path


def transformations():
    from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

    turn = Affine([[0, 1, 0], [-1, 0, 900], [0, 0, 1]], input_axes=("y", "x"), output_axes=("y", "x"))
    return {
        "identity": Identity(),
        "hires": Scale([4.0, 4.0], axes=("y", "x")),
        "stage": Sequence([Scale([1.7, 1.7], axes=("y", "x")), Translation([31.0, -12.5], axes=("y", "x"))]),
        "turn": turn,
    }


@pytest.fixture(scope="module")
def to():
    return transformations()


def sees_its_spots(section) -> None:
    """The slide under every spot is what the analytic image has at the spot's place: position, axes and half pixel."""
    full = analytic_image()
    from napari_stmdit.types import SlideImage

    here = np.array([[y - 8, x - 8, y + 8, x + 8] for y, x in section.spots.yx])
    patches = read_patches(section.image, [tuple(b) for b in here], 16)
    import dask.array as da

    truth = SlideImage((da.from_array(full),), 1.0, "truth")
    there = read_patches(truth, [(y - 8, x - 8, y + 8, x + 8) for y, x in tiny_arrays()["yx"]], 16)
    assert np.abs(patches.astype(int) - there).max() <= 3


def test_a_store_opens_as_the_folder_does(tiny_zarr, tiny_section):
    section = open_section(tiny_zarr)
    assert section.kind == "spatialdata" and section.name == "tiny"
    np.testing.assert_array_equal(section.spots.yx, tiny_section.spots.yx)
    assert section.spots.ids.tolist() == tiny_section.spots.ids.tolist()
    assert (section.spots.counts != tiny_section.spots.counts).nnz == 0
    assert section.calibration.source == "lattice" and section.calibration.mpp == pytest.approx(TINY_MPP)
    assert len(section.image.levels) == 2 and section.image.shape == (TINY_SIDE_PX, TINY_SIDE_PX)
    assert synthesis_fault(section, 0.688) is None
    sees_its_spots(section)


@pytest.mark.parametrize("common", ["identity", "stage", "turn"])
def test_a_common_transformation_changes_nothing_inside(tmp_path, to, common):
    images = {"slide": (analytic_image(), {"stage": to[common]})}
    section = open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"stage": to[common]}))
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"])
    matrix = to[common].to_affine_matrix(("y", "x"), ("y", "x"))
    np.testing.assert_allclose(section.coordinate_systems["stage"], matrix)
    assert section.calibration.mpp == pytest.approx(TINY_MPP)
    sees_its_spots(section)


def test_a_hires_image_alone_is_a_coarse_slide(tmp_path, to):
    images = {"hires": (analytic_image()[::4, ::4].copy(), {"global": to["hires"]})}
    section = open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}))
    assert section.image.pixel_size == pytest.approx(4)
    np.testing.assert_array_equal(section.spots.yx, tiny_arrays()["yx"])
    assert "full-resolution image is missing" in synthesis_fault(section, 0.688)


def test_spots_in_other_units_are_brought_into_the_slides_pixels(tmp_path, to):
    """Spots stored in microns of a stage, the slide registered to it: full-resolution pixels are the slide's."""
    matrix = to["stage"].to_affine_matrix(("y", "x"), ("y", "x"))
    micron_yx = geometry.apply(matrix, tiny_arrays()["yx"])
    images = {"slide": (analytic_image(), {"global": to["stage"]})}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, spots_yx=micron_yx)
    section = open_section(path)
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"])
    np.testing.assert_allclose(section.coordinate_systems["global"], matrix)
    assert section.spots.diameter == pytest.approx(tiny_arrays()["diameter"] / 1.7)
    assert section.calibration.mpp == pytest.approx(TINY_MPP)
    assert any("full-resolution pixels are those of image slide" in note for note in section.notes)
    sees_its_spots(section)


def test_of_pictures_of_one_area_the_finest_is_taken(tmp_path, to):
    images = {
        "a_hires": (analytic_image()[::4, ::4].copy(), {"global": to["hires"]}),
        "b_full": (analytic_image(), {"global": to["identity"]}),
    }
    section = open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}))
    assert section.image.source == "b_full" and section.image.pixel_size == 1
    chosen = open_section(tmp_path / "s.zarr", fullres="a_hires")
    assert chosen.image.source == "a_hires"


def test_a_finer_picture_of_something_else_is_not_taken_for_the_slide(tmp_path, to):
    slide, same = analytic_image(), {"global": to["identity"]}
    hires = (slide[::4, ::4].copy(), {"global": to["hires"]})
    path = make_store(tmp_path / "s.zarr", images={"he": hires, "ihc": (255 - slide, same)}, spots_to=same)
    with pytest.raises(SectionError, match=r"\(ihc, he\): ihc, the finest, does not look like he .*--fullres NAME"):
        open_section(path)
    assert open_section(path, fullres="he").image.source == "he"
    path = make_store(tmp_path / "t.zarr", images={"he": hires, "full": (slide, same)}, spots_to=same)
    section = open_section(path)
    assert section.image.source == "full" and "other images of the store: he" in section.notes


def test_two_images_that_may_be_the_slide_are_asked_for(tmp_path, to):
    images = {name: (analytic_image(), {"global": to["identity"]}) for name in ("before", "after")}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]})
    with pytest.raises(SectionError, match=r"after, before.*--fullres"):
        open_section(path)
    assert open_section(path, fullres="before").image.source == "before"
    with pytest.raises(SectionError, match="is neither"):
        open_section(path, fullres="other")


def test_a_file_may_be_the_slide_of_a_store(tmp_path, to, tiny_folder):
    images = {"hires": (analytic_image()[::4, ::4].copy(), {"global": to["hires"]})}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]})
    section = open_section(path, fullres=tiny_folder / "slide.png")
    assert section.image.pixel_size == 1
    sees_its_spots(section)
    with pytest.raises(SectionError, match="uncropped"):
        open_section(path, fullres=tiny_folder / "spatial" / "tissue_hires_image.png")


@pytest.mark.parametrize("unit", [1.0, TINY_MPP / 1000])
def test_coordinate_systems_that_disagree_are_asked_for(tmp_path, to, unit):
    """In pixels, and in millimetres, of which the whole section has less than one."""
    from spatialdata.transformations import Scale

    images = {"slide": (analytic_image(), {"a": to["identity"], "b": to["stage"]})}
    pixels = Scale([1 / unit, 1 / unit], axes=("y", "x"))
    yx = tiny_arrays()["yx"] * unit
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"a": pixels, "b": pixels}, spots_yx=yx)
    with pytest.raises(SectionError, match="coordinate_system=NAME"):
        open_section(path)
    section = open_section(path, coordinate_system="a")
    assert section.image.pixel_size == 1
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"])


def test_several_sets_of_spots_are_asked_for_and_chosen_by_path(tmp_path, to):
    images = {"slide": (analytic_image(), {"global": to["identity"]})}
    path = make_store(
        tmp_path / "s.zarr",
        images=images,
        spots_to={"global": to["identity"]},
        shapes=("left", "right"),
        tables=("t1", "t2"),
    )
    with pytest.raises(
        SectionError, match=r"shapes/left \(tables/t1\), shapes/right \(tables/t2\).*s.zarr/shapes/left"
    ):
        open_section(path)
    assert len(open_section(path / "shapes" / "right").spots) == 30
    assert len(open_section(path / "tables" / "t1").spots) == 30


def test_normalised_expression_is_refused_unless_there_are_counts(tmp_path, to):
    images = {"slide": (analytic_image(), {"global": to["identity"]})}

    def normalise(table):
        table.X = table.X.astype(np.float32) / 3

    def keep(table):
        table.layers["counts"] = table.X.copy()
        normalise(table)

    spots_to = {"global": to["identity"]}
    with pytest.raises(SectionError, match="does not hold counts"):
        open_section(make_store(tmp_path / "a.zarr", images=images, spots_to=spots_to, change=normalise))
    section = open_section(make_store(tmp_path / "b.zarr", images=images, spots_to=spots_to, change=keep))
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    assert any("layer 'counts'" in note for note in section.notes)


def test_spots_off_tissue_are_left_out_and_ensembl_ids_are_known(tmp_path, to):
    images = {"slide": (analytic_image(), {"global": to["identity"]})}

    def change(table):
        table.obs["in_tissue"] = (np.arange(30) > 4).astype(int)
        table.var["gene_name"] = list(TINY_GENES)
        table.var_names = [f"ENSG{i:011d}" for i in range(len(TINY_GENES))]

    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, change=change)
    section = open_section(path)
    assert len(section.spots) == 25 and any("5 rows of the table are not on tissue" in n for n in section.notes)
    assert section.spots.genes.symbols[0] == "EPCAM" and section.spots.genes.ids[0] == "ENSG00000000000"


def test_images_that_are_no_slide_are_passed_over_and_told(tmp_path, to):
    images = {
        "slide": (analytic_image(), {"global": to["identity"]}),
        "deep": (analytic_image().astype(np.uint16), {"global": to["identity"]}),
        "stmdit_1": (np.dstack([analytic_image()] * 2)[..., :4].copy(), {"global": to["identity"]}),
    }
    section = open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}))
    assert section.image.source == "slide"
    assert any("deep" in note and "8-bit" in note for note in section.notes)
    assert any("results in this store: stmdit_1" in note for note in section.notes)


def test_other_zarr_stores_are_refused(tmp_path, tiny_zarr):
    import zarr

    zarr.open_group(tmp_path / "plain.zarr", mode="w")
    with pytest.raises(SectionError, match="no SpatialData"):
        open_section(tmp_path / "plain.zarr")
    broken = shutil.copytree(tiny_zarr, tmp_path / "broken.zarr")
    shutil.rmtree(broken / "tables")
    with pytest.raises(SectionError):
        open_section(broken)


def test_what_spatialdata_io_writes_opens(shared_data, tmp_path):
    from spatialdata_io import visium

    folder = shared_data / "visium_mouse_brain_crop" / "outs_spaceranger2"
    visium(folder, dataset_id="mouse", fullres_image_file="../test_img.jpg").write(tmp_path / "mouse.zarr")
    section = open_section(tmp_path / "mouse.zarr")
    direct = open_section(folder)
    assert section.image.source == "mouse_full_image" and section.image.pixel_size == 1
    assert section.calibration.mpp == pytest.approx(0.724, rel=0.01)
    order = section.spots.rows(direct.spots.ids.tolist())
    np.testing.assert_array_equal(section.spots.yx[order], direct.spots.yx)
    assert section.spots.genes.ids[0].startswith("ENSMUSG")
    np.testing.assert_allclose(section.coordinate_systems["mouse"], np.eye(3))


def test_further_columns_of_the_table_are_kept(tiny_zarr, tmp_path):
    """Numbers as numbers, categories as text, missing ones told apart; and they are written again with the section."""
    import pandas as pd
    import spatialdata

    sdata = spatialdata.read_zarr(tiny_zarr)
    obs = sdata.tables["table"].obs
    obs["cluster"] = pd.Categorical([None, *(["b", "a"] * len(obs))[: len(obs) - 1]])
    obs["purity"] = np.linspace(0, 1, len(obs))
    obs["kept"] = True
    path = tmp_path / "more.zarr"
    sdata.write(path)
    columns = open_section(path).spots.obs
    assert set(columns) == {"cluster", "purity", "kept"}
    assert columns["cluster"].tolist()[:3] == ["", "b", "a"]
    assert columns["purity"].dtype == np.float64
    assert columns["kept"][0] == "True"


# ------------------------------------------------------------------------------------------------- transformations


def turned(degrees: float, by: float = 1.0, mirrored: bool = False, to=(900.0, 300.0)):
    """A similarity from an image's pixels to the spots."""
    from spatialdata.transformations import Affine

    c, s = by * np.cos(np.radians(degrees)), by * np.sin(np.radians(degrees))
    flip = -1 if mirrored else 1
    matrix = [[c, -s * flip, to[0]], [s, c * flip, to[1]], [0, 0, 1]]
    return Affine(matrix, input_axes=("y", "x"), output_axes=("y", "x"))


@pytest.mark.parametrize(
    ("degrees", "by", "mirrored"), [(90, 1, False), (31, 1, False), (180, 0.7, True), (12, 2.5, True)]
)
def test_a_slide_that_is_turned_mirrored_and_scaled_against_the_spots_keeps_its_spots(
    tmp_path, to, degrees, by, mirrored
):
    there = turned(degrees, by, mirrored)
    matrix = there.to_affine_matrix(("y", "x"), ("y", "x"))
    images = {"slide": (analytic_image(), {"global": there})}
    yx = geometry.apply(matrix, tiny_arrays()["yx"])
    section = open_section(
        make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, spots_yx=yx)
    )
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"], atol=1e-6)
    assert section.calibration.mpp == pytest.approx(TINY_MPP)
    assert section.spots.diameter == pytest.approx(tiny_arrays()["diameter"] / by)
    sees_its_spots(section)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        ([[1.3, 0, 0], [0, 1.0, 0], [0, 0, 1]], r"1\.3 x 1 of their units"),
        ([[1.0, 0, 0], [0, 1.02, 0], [0, 0, 1]], r"1\.02 x 1 of"),
        ([[1.0, 0.2, 0], [0, 1.0, 0], [0, 0, 1]], "sheared"),
    ],
)
def test_a_slide_that_is_stretched_or_sheared_against_the_spots_is_refused(tmp_path, to, matrix, says):
    from spatialdata.transformations import Affine

    def state(table):
        table.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": 0.5}}}

    images = {"slide": (analytic_image(), {"global": Affine(matrix, ("y", "x"), ("y", "x"))})}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, change=state)
    with pytest.raises(SectionError, match=says):
        open_section(path)


def test_pixels_a_hundredth_from_square_are_taken(tmp_path, to):
    from spatialdata.transformations import Scale

    images = {"slide": (analytic_image(), {"global": Scale([1.005, 1.0], axes=("y", "x"))})}
    assert (
        len(open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]})).spots)
        == 30
    )


def test_an_image_in_another_coordinate_system_is_named_with_both_and_what_to_do(tmp_path, to):
    images = {"s1_full_image": (analytic_image(), {"global": to["identity"]})}
    section = open_section(make_store(tmp_path / "s.zarr", images=images, spots_to={"s1": to["identity"]}))
    fault = synthesis_fault(section, 0.688)
    for words in ("s1_full_image", "it is in global, they are in s1", "set_transformation", "--fullres"):
        assert words in fault, fault
    assert section.image is None and fault.removeprefix("it has no slide image; ") in section.notes


# ------------------------------------------------------------------------------------------------- units of the positions


def ome(path, mpp=TINY_MPP):
    import tifffile

    stated = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, analytic_image(), photometric="rgb", tile=(256, 256), metadata={"axes": "YXS", **stated})
    return path


def bare(path, to, **options):
    return make_store(path, images={}, spots_to={"global": to["identity"]}, **options)


def test_spots_in_microns_are_not_laid_on_the_pixels_of_a_file(tmp_path, to):
    path = bare(tmp_path / "s.zarr", to, spots_yx=tiny_arrays()["yx"] * TINY_MPP)
    with pytest.raises(SectionError, match=r"their unit is 1 um, a pixel of the file has 0\.7 um \(PhysicalSizeX"):
        open_section(path, fullres=ome(tmp_path / "slide.ome.tif"))
    with pytest.raises(SectionError, match=r"their unit is 1 um, a pixel of the file has 0\.7 um \(as given"):
        open_section(path, fullres=ome(tmp_path / "slide.ome.tif"), mpp=TINY_MPP)


def test_spots_in_pixels_are_laid_on_a_file_whose_scale_says_so(tmp_path, to, tiny_folder):
    path = bare(tmp_path / "s.zarr", to)
    sees_its_spots(open_section(path, fullres=ome(tmp_path / "slide.ome.tif")))
    with pytest.raises(
        SectionError, match="0.7 um, and the file states no scale; give its microns per pixel with --mpp"
    ):
        open_section(path, fullres=tiny_folder / "slide.png")
    section = open_section(path, fullres=tiny_folder / "slide.png", mpp=TINY_MPP)
    sees_its_spots(section)
    assert section.calibration.source == "override"


def test_the_spots_diameter_in_pixels_tells_that_positions_are_in_pixels(tmp_path, to, tiny_folder):
    def state(diameter):
        def change(table):
            table.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": diameter}}}
            table.obs["array_row"] = 0

        return change

    path = bare(tmp_path / "s.zarr", to, change=state(tiny_arrays()["diameter"]))
    sees_its_spots(open_section(path, fullres=tiny_folder / "slide.png"))
    path = bare(tmp_path / "other.zarr", to, change=state(tiny_arrays()["diameter"] / TINY_MPP))
    with pytest.raises(SectionError, match="their unit is unknown; add the slide to the store"):
        open_section(path, fullres=tiny_folder / "slide.png")


def test_a_file_takes_the_place_of_the_stores_image_of_its_size(tmp_path, to, tiny_folder):
    """Spots in microns, the slide registered to them: the file of that slide is in the slide's pixels, not in microns."""
    micron_yx = geometry.apply(to["stage"].to_affine_matrix(("y", "x"), ("y", "x")), tiny_arrays()["yx"])
    images = {"slide": (analytic_image(), {"global": to["stage"]})}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, spots_yx=micron_yx)
    section = open_section(path, fullres=tiny_folder / "slide.png")
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"])
    assert section.image.source.endswith("slide.png") and section.calibration.mpp == pytest.approx(TINY_MPP)
    sees_its_spots(section)


def test_a_stated_scale_that_the_lattice_contradicts_is_asked_for(tmp_path, to):
    """Spots in microns and Space Ranger's microns_per_pixel of another image: neither is taken."""

    def state(table):
        table.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": TINY_MPP / 2}}}

    images = {"slide": (analytic_image(), {"global": to["identity"]})}
    section = open_section(
        make_store(tmp_path / "s.zarr", images=images, spots_to={"global": to["identity"]}, change=state)
    )
    assert section.calibration.mpp is None
    assert "states 0.35 microns_per_pixel, but the spots' lattice gives 0.7" in synthesis_fault(section, 0.688)
    assert open_section(tmp_path / "s.zarr", mpp=0.7).calibration.mpp == 0.7


def test_a_stated_scale_is_that_of_the_slides_pixels_where_spots_are_in_microns(tmp_path, to):
    from spatialdata.transformations import Scale

    def state(table):
        table.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": TINY_MPP}}}

    images = {"slide": (analytic_image(), {"global": Scale([TINY_MPP] * 2, axes=("y", "x"))})}
    spots_to = {"global": to["identity"]}
    path = make_store(
        tmp_path / "s.zarr", images=images, spots_to=spots_to, spots_yx=tiny_arrays()["yx"] * TINY_MPP, change=state
    )
    section = open_section(path)
    assert section.calibration.source == "scalefactors" and section.calibration.mpp == pytest.approx(TINY_MPP)

    def unfitted(table):
        state(table)
        table.obs["array_row"] = 0

    path = make_store(
        tmp_path / "u.zarr", images=images, spots_to=spots_to, spots_yx=tiny_arrays()["yx"] * TINY_MPP, change=unfitted
    )
    assert "others than the spots' units" in synthesis_fault(open_section(path), 0.688)


# ------------------------------------------------------------------------------------------------- scale factors as kept


@pytest.mark.parametrize("kept", [np.array([0.7]), np.array(0.7), np.float32(0.7), 0.7, np.array([[0.7]])])
def test_a_scale_kept_as_an_array_of_one_number_is_that_number(tmp_path, to, kept):
    def state(table):
        table.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": kept}}}

    path = make_store(tmp_path / "s.zarr", images={}, spots_to={"global": to["identity"]}, change=state)
    calibration = open_section(path).calibration
    assert calibration.source == "scalefactors" and calibration.mpp == pytest.approx(0.7)


@pytest.mark.parametrize("kept", ["0.7", "unknown", np.array([0.7, 0.7]), {"y": 0.7}, True, -1.0, np.nan])
def test_a_scale_that_is_no_number_is_none_and_is_told(tmp_path, to, kept):
    def state(table):
        table.uns["spatial"] = {"lib": {"scalefactors": {"microns_per_pixel": kept}}}

    path = make_store(tmp_path / "s.zarr", images={}, spots_to={"global": to["identity"]}, change=state)
    calibration = open_section(path).calibration
    assert calibration.source == "lattice" and calibration.mpp == pytest.approx(TINY_MPP)
    assert "which is no pixel size" in calibration.detail


# ------------------------------------------------------------------------------------------------- bins, cells, libraries


def hd_circles(path, ids, pitch_um=8.0, array=True):
    """Bins as circles, as spatialdata-io writes them with bins_as_squares=False."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    rc = np.argwhere(np.ones((20, 20)))
    yx = (rc + 0.5) * pitch_um / 0.5
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * len(rc)), "instance": np.arange(len(rc))})
    if array:
        obs["array_row"], obs["array_col"] = rc[:, 0], rc[:, 1]
    obs.index = [ids.format(r=r, c=c) for r, c in rc]
    table = anndata.AnnData(np.ones((len(rc), 3), np.float32), obs=obs, var=pd.DataFrame(index=list("ABC")))
    table = TableModel.parse(table, region="bins", region_key="region", instance_key="instance")
    circles = ShapesModel.parse(
        yx[:, ::-1], geometry=0, radius=pitch_um, index=pd.Index(np.arange(len(rc))), transformations={"g": Identity()}
    )
    SpatialData(shapes={"bins": circles}, tables={"table": table}).write(path)
    return path


def test_bins_of_visium_hd_are_no_spots(tmp_path):
    path = hd_circles(tmp_path / "named.zarr", "s_008um_{r:05d}_{c:05d}-1")
    assert open_section(path).spots.diameter == pytest.approx(55 / 0.5)  # they are summed
    path = hd_circles(tmp_path / "plain.zarr", "b{r}x{c}")
    with pytest.raises(SectionError, match="lie 8 um from each other.*bins or cells"):
        open_section(path, mpp=0.5)
    path = hd_circles(tmp_path / "cells.zarr", "cell{r}x{c}", 12.0, array=False)
    with pytest.raises(SectionError, match="lie 12 um from each other"):
        open_section(path, mpp=0.5)


def test_spots_fifty_microns_apart_are_spots(tmp_path):
    assert len(open_section(hd_circles(tmp_path / "s.zarr", "b{r}x{c}", 50.0), mpp=0.5).spots) == 400


def two_samples(path, ids, **columns):
    """The tiny section twice in one set of circles, the second a little aside."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    arrays = tiny_arrays()
    yx = np.concatenate([arrays["yx"], arrays["yx"] + 40.0])
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 60), "instance": np.arange(60)}, index=ids)
    for name, values in columns.items():
        obs[name] = values
    counts = np.concatenate([arrays["counts"].toarray()] * 2).astype(np.float32)
    table = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(TINY_GENES)))
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    circles = ShapesModel.parse(
        yx[:, ::-1], geometry=0, radius=39.0, index=pd.Index(np.arange(60)), transformations={"g": Identity()}
    )
    SpatialData(shapes={"spots": circles}, tables={"table": table}).write(path)
    return path


def test_two_samples_in_one_set_of_circles_are_refused(tmp_path):
    rc = np.concatenate([tiny_arrays()["array_rc"]] * 2)
    names = [f"spot{i}" for i in range(60)]
    path = two_samples(tmp_path / "a.zarr", names, library_id=["lib1"] * 30 + ["lib2"] * 30)
    with pytest.raises(SectionError, match=r"several libraries \(library_id: lib1, lib2\).*keep the rows of one"):
        open_section(path)
    path = two_samples(tmp_path / "b.zarr", names, array_row=rc[:, 0], array_col=rc[:, 1])
    with pytest.raises(SectionError, match="30 of 30 places of the array.*there twice"):
        open_section(path)
    barcode = ["".join("ACGT"[(i >> (2 * k)) & 3] for k in range(16)) for i in range(30)]
    path = two_samples(tmp_path / "c.zarr", [f"{k}_{b}-1" for k in ("P1", "P2") for b in barcode])
    with pytest.raises(SectionError, match="P1_A+-1 and P2_A+-1 have one barcode"):
        open_section(path)


def test_one_library_that_is_named_opens(tmp_path, to):
    def change(table):
        table.obs["library_id"] = "lib1"

    path = make_store(tmp_path / "s.zarr", images={}, spots_to={"global": to["identity"]}, change=change)
    assert len(open_section(path).spots) == 30


# ------------------------------------------------------------------------------------------------- which matrix are the counts


def kept_in(tmp_path, to, change):
    return open_section(make_store(tmp_path / "s.zarr", images={}, spots_to={"global": to["identity"]}, change=change))


def brought_to_a_million(table):
    from scipy.sparse import csr_matrix

    x = table.X.toarray()
    return csr_matrix(np.rint(x / x.sum(axis=1, keepdims=True) * 1e6).astype(np.float32))


def test_the_layer_counts_is_taken_where_x_is_whole_too(tmp_path, to):
    def change(table):
        table.layers["counts"] = table.X.copy()
        table.X = brought_to_a_million(table)

    section = kept_in(tmp_path, to, change)
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    assert "counts are those of the table's layer 'counts'; its X is something else" in section.notes


def test_a_layer_counts_that_says_what_x_says_needs_no_word(tmp_path, to):
    section = kept_in(tmp_path, to, lambda table: table.layers.__setitem__("counts", table.X.copy()))
    assert section.notes == kept_in(tmp_path / "plain", to, None).notes


def test_a_layer_counts_that_holds_fractions_leaves_x_and_is_told(tmp_path, to):
    section = kept_in(tmp_path, to, lambda table: table.layers.__setitem__("counts", table.X * 0.3))
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    assert "the table's layer 'counts' holds fractional values; X is taken" in section.notes


def test_counts_that_raw_keeps_are_found_with_their_own_genes(tmp_path, to):
    def change(table):
        table.raw = table.copy()
        table.X = table.X.astype(np.float32) * 0.37
        table._inplace_subset_var(list(TINY_GENES[:7]))

    section = kept_in(tmp_path, to, change)
    assert section.spots.genes.symbols.tolist() == list(TINY_GENES)
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    assert any("those of the table's raw" in note for note in section.notes)


def test_x_and_raw_of_whole_numbers_that_contradict_each_other_are_refused(tmp_path, to):
    def differ(table):
        table.raw = table.copy()
        table.X = brought_to_a_million(table)

    with pytest.raises(SectionError, match="contradict each other, X and raw; put the counts into the layer 'counts'"):
        kept_in(tmp_path, to, differ)

    def subset(table):
        table.raw = table.copy()
        table._inplace_subset_var(list(TINY_GENES[:7]))

    assert kept_in(tmp_path / "subset", to, subset).spots.counts.shape == (30, 7)


def test_a_refusal_names_the_layers_that_hold_whole_numbers(tmp_path, to):
    def change(table):
        table.layers["umi"] = table.X.copy()
        table.X = table.X * 0.3

    with pytest.raises(
        SectionError, match="does not hold counts: its X has fractional values.*whole numbers are in umi"
    ):
        kept_in(tmp_path, to, change)


# ------------------------------------------------------------------------------------------------- stores of other versions


@pytest.fixture
def old_store(tiny_zarr, tmp_path):
    """The tiny section as SpatialData up to 0.2.6 wrote it: zarr 2, and a root without attributes."""
    import spatialdata
    from spatialdata._io.format import SpatialDataContainerFormatV01

    path = tmp_path / "old.zarr"
    spatialdata.read_zarr(tiny_zarr).write(path, sdata_formats=SpatialDataContainerFormatV01())
    for name in (".zattrs", ".zmetadata", "zmetadata"):
        (path / name).unlink(missing_ok=True)
    return path


def test_a_store_of_the_first_format_opens(old_store):
    section = open_section(old_store)
    np.testing.assert_array_equal(section.spots.yx, tiny_arrays()["yx"])
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    sees_its_spots(section)


def test_zarr_of_version_2_that_is_no_spatialdata_is_still_refused(old_store):
    for file in (*old_store.glob("shapes/*/.zattrs"), *old_store.glob("tables/*/.zattrs")):
        file.write_text(json.dumps({}))
    with pytest.raises(SectionError, match="no SpatialData"):
        open_section(old_store)


def newer(tiny_zarr, path, **attrs):
    """What SpatialData 0.8 writes that 0.7 does not by default: geometries of geoarrow, texts that may be missing, and its version."""
    import anndata
    import pandas as pd
    import spatialdata

    sdata = spatialdata.read_zarr(tiny_zarr)
    table = sdata.tables["table"]
    table.obs["area"] = pd.array(["a", None] * (len(table) // 2), dtype="string")
    encoding, spatialdata.settings.shapes_geometry_encoding = spatialdata.settings.shapes_geometry_encoding, "geoarrow"
    try:
        with anndata.settings.override(allow_write_nullable_strings=True):
            sdata.write(path)
    finally:
        spatialdata.settings.shapes_geometry_encoding = encoding
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["spatialdata_attrs"] |= {"spatialdata_software_version": "0.8.0", **attrs}
    file.write_text(json.dumps(content))
    return path


def test_a_store_of_a_newer_spatialdata_opens(tiny_zarr, tmp_path):
    section = open_section(newer(tiny_zarr, tmp_path / "new.zarr"))
    np.testing.assert_array_equal(section.spots.yx, tiny_arrays()["yx"])
    assert (section.spots.counts != tiny_arrays()["counts"]).nnz == 0
    assert section.spots.obs["area"][:2].tolist() == ["a", ""]
    sees_its_spots(section)


def test_a_format_that_is_not_known_yet_is_one_calm_sentence(tiny_zarr, tmp_path, monkeypatch):
    path = newer(tiny_zarr, tmp_path / "new.zarr", version="0.9", spatialdata_software_version="1.2.0")
    with pytest.raises(SectionError, match=r"was written by SpatialData 1\.2\.0, newer than .* update SpatialData"):
        open_section(path)
    path = newer(tiny_zarr, tmp_path / "old.zarr", version="0.9", spatialdata_software_version="0.1.0")
    with pytest.raises(SectionError) as raised:
        open_section(path)
    assert "newer" not in str(raised.value)


# ------------------------------------------------------------------------------------------------- colours


def named_channels(path, names, planes):
    """A store of the tiny section whose only image has channels of these names."""
    from spatialdata import read_zarr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    make_store(path, images={}, spots_to={"global": Identity()})
    image = Image2DModel.parse(planes, dims=("c", "y", "x"), c_coords=names, transformations={"global": Identity()})
    sdata = read_zarr(path)
    sdata.images["scan"] = image
    sdata.write_element("scan")
    return path


@pytest.mark.parametrize("names", [["DAPI", "CD3", "PanCK"], ["DAPI", "CD3", "PanCK", "CD20"], ["0", "1", "2", "3"]])
def test_channels_of_stains_are_no_slide_and_the_note_names_them(tmp_path, names):
    planes = np.moveaxis(analytic_image(), 2, 0)
    planes = np.concatenate([planes, planes[:1]])[: len(names)]
    section = open_section(named_channels(tmp_path / "s.zarr", names, planes))
    assert section.image is None
    said = "DAPI, CD3, PanCK" if "DAPI" in names else "4 channels without names"
    assert any("image scan is not shown" in note and said in note for note in section.notes)


@pytest.mark.parametrize("names", [["b", "g", "r"], ["Blue", "Green", "Red"], ["0", "1", "2"], ["c0", "c1", "c2"]])
def test_colours_are_known_by_name_and_three_without_names_are_red_green_and_blue(tmp_path, names):
    planes = np.moveaxis(analytic_image(), 2, 0)
    named = names[0].lower().startswith("b")
    section = open_section(named_channels(tmp_path / "s.zarr", names, planes[::-1] if named else planes))
    np.testing.assert_array_equal(section.image.levels[0].compute(), analytic_image())
