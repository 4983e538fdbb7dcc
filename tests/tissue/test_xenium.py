"""Xenium: cells summed to pseudo-spots of an H&E image that was aligned in Xenium Explorer, from a folder and from a store."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.spaceranger import section_label
from napari_stmdit.tissue.st_array import write_counts
from napari_stmdit.types import Genes

PIXEL_UM, MPP, SIDE_UM, CELLS = 0.2125, 0.5, 600.0, 1500
NAMES = ["ERBB2", "ACTA2", "NegControlProbe_00001", "BLANK_0006", "CD3E", "UnassignedCodeword_0001"]
KINDS = ["Gene Expression"] * 2 + [
    "Negative Control Probe",
    "Gene Expression",
    "Gene Expression",
    "Unassigned Codeword",
]
GENES = ["ERBB2", "ACTA2", "CD3E"]
"""A blank codeword that is called a gene is none, either."""
MATRIX = np.array([[0, MPP / PIXEL_UM, -50.0], [-MPP / PIXEL_UM, 0, 2900.0], [0, 0, 1]])
"""From (x, y) pixels of the H&E image, which lies turned by a quarter and aside, to pixels of the morphology image."""


def in_he(microns_xy):
    """Pixels (y, x) of the H&E image at microns (x, y) of the cells."""
    homogeneous = np.c_[microns_xy / PIXEL_UM, np.ones(len(microns_xy))]
    return (homogeneous @ np.linalg.inv(MATRIX).T)[:, 1::-1]


def made_cells():
    rng = np.random.default_rng(0)
    xy = rng.uniform(5, SIDE_UM, (CELLS, 2))
    ids = np.array([f"aaaa{i:04d}-1" for i in range(CELLS)])
    return ids, xy, csr_matrix(rng.integers(0, 3, (CELLS, len(NAMES))).astype(np.int32))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """1,500 square cells of 100 um2, an H&E image, and the clusters of the pipeline, left and right."""
    folder = tmp_path_factory.mktemp("xenium") / "output-XETG01"
    folder.mkdir()
    ids, xy, counts = made_cells()
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM, "panel_name": "made"}))
    write_counts(folder / "cell_feature_matrix.h5", ids, counts, Genes(np.array(NAMES)))
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.char.encode(KINDS)
    table = pd.DataFrame({"cell_id": ids, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1], "cell_area": 100.0})
    table.to_parquet(folder / "cells.parquet")
    corners = np.array([(-5, -5), (-5, 5), (5, 5), (5, -5), (-5, -5)])
    around = (xy[:, None] + corners).reshape(-1, 2)
    boundaries = pd.DataFrame({"cell_id": np.repeat(ids, 5), "vertex_x": around[:, 0], "vertex_y": around[:, 1]})
    boundaries.to_parquet(folder / "cell_boundaries.parquet")
    clusters = folder / "analysis" / "clustering" / "gene_expression_graphclust" / "clusters.csv"
    clusters.parent.mkdir(parents=True)
    side = np.where(xy[:, 0] < SIDE_UM / 2, 1, 2)
    pd.DataFrame({"Barcode": ids, "Cluster": side}).to_csv(clusters, index=False)
    Image.new("RGB", (1300, 1300), (200, 150, 180)).save(folder / "made_he_image.ome.tif")
    np.savetxt(folder / "made_he_imagealignment.csv", MATRIX, delimiter=",")
    return folder, in_he(xy), counts.toarray()[:, [NAMES.index(gene) for gene in GENES]], side


@pytest.fixture
def folder(made, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(made[0], tmp_path / made[0].name)


def check_sums(section, yx, counts):
    spots = section.spots
    assert spots.genes.symbols.tolist() == GENES and 15 <= len(spots) <= 42
    assert section.calibration.mpp == pytest.approx(MPP) and spots.diameter == pytest.approx(55 / MPP)
    for spot, at in enumerate(spots.yx):
        inside = np.flatnonzero(np.hypot(*(yx - at).T) * MPP <= 27.5)
        assert spots.obs["cells"][spot] == len(inside) >= 3
        np.testing.assert_array_equal(spots.counts[spot].toarray()[0], counts[inside].sum(axis=0))
    assert section.kind == "xenium" and section.image.pixel_size == 1 and synthesis_fault(section, MPP) is None


def test_cells_are_summed_in_pixels_of_the_image_that_its_matrix_aligns(made):
    folder, yx, counts, side = made
    section = open_section(folder)
    check_sums(section, yx, counts)
    assert section.name == "output-XETG01" and section.image.shape == (1300, 1300)
    for at, cluster in zip(section.spots.yx, section.spots.obs["graphclust"], strict=True):
        inside = np.hypot(*(yx - at).T) * MPP <= 27.5
        assert (side[inside] == int(cluster)).mean() >= 0.5
    notes = " ".join(section.notes)
    assert "panel of 3 genes" in notes and "1500 cells of 100 um2 (median) were summed" in notes
    assert "aligned by made_he_imagealignment.csv" in notes
    # the outlines lie around their cells, ten microns wide
    assert section.outlines.pieces.shape == (4 * CELLS, 2, 2)
    np.testing.assert_allclose(section.outlines.pieces[:4, 0].mean(axis=0), yx[0], atol=0.1)
    np.testing.assert_allclose(
        np.hypot(*(section.outlines.pieces[:, 1] - section.outlines.pieces[:, 0]).T), 10 / MPP, rtol=1e-3
    )
    to_morphology = section.coordinate_systems["global"]
    np.testing.assert_allclose(to_morphology @ [*yx[0], 1], [*(made_cells()[1][0, ::-1] / PIXEL_UM), 1])


def test_image_and_matrix_above_outs_are_found_as_10x_publishes_them(folder):
    outs = folder.rename(folder.parent / "outs")
    for name in ("made_he_image.ome.tif", "made_he_imagealignment.csv"):
        (outs / name).rename(outs.parent / name)
    for path in (outs, outs.parent):
        section = open_section(path)
        assert section.image is not None and section.name == section_label(outs.parent.name)


def test_orientation_turns_spots_and_outlines_alike(made):
    turned, given = open_section(made[0], orientation="mirror-x"), open_section(made[0])
    np.testing.assert_allclose(turned.spots.yx[:, 1], 1300 - given.spots.yx[:, 1])
    np.testing.assert_allclose(turned.outlines.pieces[..., 1], 1300 - given.outlines.pieces[..., 1], atol=1e-3)


def test_an_image_without_a_matrix_is_not_guessed_to_lie_right(folder):
    (folder / "made_he_imagealignment.csv").unlink()
    section = open_section(folder)
    assert section.image is None and section.calibration.mpp == PIXEL_UM
    assert "give it with --fullres" in synthesis_fault(section, MPP)
    with pytest.raises(SectionError, match=r"not known how made_he_image.ome.tif lies .* made_he_imagealignment\.csv"):
        open_section(folder, fullres="made_he_image.ome.tif")
    # as large as the morphology image: registered to it
    Image.new("RGB", (2900, 2900), (200, 150, 180)).save(folder / "made_he_image.ome.tif")
    Image.new("L", (2900, 2900)).save(folder / "morphology_focus.ome.tif")
    section = open_section(folder, fullres="made_he_image.ome.tif")
    assert section.calibration.mpp == PIXEL_UM and any("exactly as large as the morph" in n for n in section.notes)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.linalg.inv(MATRIX), "cells lie off made_he_image.ome.tif: its matrix must take"),
        (MATRIX * [[1], [1.1], [1]], "stretched or sheared"),
        (MATRIX + [[0, 0, 0], [0, 0, 0], [1e-3, 0, 0]], "no affine transformation"),
        (MATRIX[:2], "holds 2 x 3 numbers; expected 3 x 3"),
        (np.zeros((3, 3)), "no affine transformation"),
    ],
)
def test_a_matrix_that_cannot_be_right_is_one_sentence(folder, matrix, said):
    np.savetxt(folder / "made_he_imagealignment.csv", matrix, delimiter=",")
    with pytest.raises(SectionError, match=said):
        open_section(folder)


def test_a_slide_that_states_another_scale_contradicts_its_matrix(folder):
    import tifffile

    tifffile.imwrite(
        folder / "made_he_image.ome.tif",
        np.full((1300, 1300, 3), 200, np.uint8),
        photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
    )
    with pytest.raises(SectionError, match=r"states 0.25 um/px .* by its matrix it has 0.5"):
        open_section(folder)
    assert open_section(folder, mpp=MPP).calibration.source == "override"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("experiment.xenium", "{}", "pixel_size is None; expected microns"),
        ("cells.parquet", "no table", "cannot be read as cells of Xenium"),
        ("made_he_imagealignment.csv", "a,b,c", "cannot be read as the matrix of an image"),
    ],
)
def test_damaged_files_are_one_sentence(folder, name, content, said):
    (folder / name).write_text(content)
    with pytest.raises(SectionError, match=said):
        open_section(folder)


def test_names_as_bytes_and_cells_as_csv_are_read(folder):
    """As versions before 1.3 write them."""
    table = pd.read_parquet(folder / "cells.parquet")
    table.to_csv(folder / "cells.csv.gz", index=False)
    table.assign(cell_id=[name.encode() for name in table["cell_id"]]).to_parquet(folder / "cells.parquet")
    of_bytes = open_section(folder).spots
    (folder / "cells.parquet").unlink()
    of_csv = open_section(folder).spots
    assert len(of_bytes) == len(of_csv) > 15 and (of_bytes.counts != of_csv.counts).nnz == 0


# ------------------------------------------------------------------------------------------------- stores


def store(path, as_circles, unit=1.0):
    """As spatialdata_io writes it: shapes in microns, everything together in pixels of the morphology image."""
    import anndata
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    ids, xy, counts = made_cells()
    xy = xy / unit
    to = {"global": Scale([unit / PIXEL_UM] * 2, axes=("x", "y"))}
    half = 5 / unit
    boxes = [shapely.box(x - half, y - half, x + half, y + half) for x, y in xy]
    shapes = {"cell_boundaries": ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes, index=ids), transformations=to)}
    region, key = "cell_labels", "cell_labels"
    if as_circles:
        region, key = "cell_circles", "cell_id"
        radius = np.full(CELLS, np.sqrt(100 / np.pi) / unit)
        shapes[region] = ShapesModel.parse(xy, geometry=0, radius=radius, index=ids, transformations=to)
    obs = pd.DataFrame(
        {"cell_id": ids, "cell_area": 100.0, "transcript_counts": 9, "cell_labels": np.arange(CELLS) + 1}
    )
    obs.index = ids
    obs["region"] = pd.Categorical([region] * CELLS)
    var = pd.DataFrame({"feature_types": KINDS}, index=NAMES)
    table = TableModel.parse(
        anndata.AnnData(counts.astype(np.float32), obs=obs, var=var, obsm={"spatial": xy}),
        region=region,
        region_key="region",
        instance_key=key,
    )
    he = Image2DModel.parse(
        np.full((3, 1300, 1300), 200, np.uint8),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": Affine(MATRIX, input_axes=("x", "y"), output_axes=("x", "y"))},
    )
    focus = Image2DModel.parse(
        np.zeros((1, 64, 64), np.uint16), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    labels = Labels2DModel.parse(np.zeros((8, 8), np.int32), dims=("y", "x"), transformations={"global": Identity()})
    images = {"he_image": he, "morphology_focus": focus}
    SpatialData(images=images, labels={"cell_labels": labels}, shapes=shapes, tables={"table": table}).write(path)
    return path


@pytest.mark.parametrize("as_circles", [False, True])
def test_a_store_gives_what_its_folder_gives(made, tmp_path, as_circles):
    section = open_section(store(tmp_path / "x.zarr", as_circles))
    check_sums(section, *made[1:3])
    assert "areas of cells" in section.calibration.detail and section.store is None
    assert any("1500 cells of 100 um2 (median) were summed" in note for note in section.notes)
    if not as_circles:
        np.testing.assert_allclose(section.outlines.pieces[:4, 0].mean(axis=0), made[1][0], atol=0.1)


def test_a_store_in_other_units_asks_for_its_scale(tmp_path):
    path = store(tmp_path / "x.zarr", False, unit=PIXEL_UM)
    with pytest.raises(SectionError, match="--mpp"):
        open_section(path)
    assert open_section(path, mpp=MPP).calibration.source == "override"
