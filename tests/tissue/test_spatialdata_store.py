"""SpatialData stores: transformations are honoured, results are no slides, and what could be meant twice is asked for."""

from __future__ import annotations

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


def test_coordinate_systems_that_disagree_are_asked_for(tmp_path, to):
    images = {"slide": (analytic_image(), {"a": to["identity"], "b": to["stage"]})}
    path = make_store(tmp_path / "s.zarr", images=images, spots_to={"a": to["identity"], "b": to["identity"]})
    with pytest.raises(SectionError, match="coordinate_system=NAME"):
        open_section(path)
    assert open_section(path, coordinate_system="a").image.pixel_size == 1


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
