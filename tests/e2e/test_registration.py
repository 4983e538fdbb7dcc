"""What is synthesized lies where the tissue is: proven with a stand-in that returns the real crop of every patch."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.registration import phase_cross_correlation
from standins import CropModel, card_for, make_section

from napari_stmdit.intent import Request
from napari_stmdit.synthesis.session import synthesize

MPPS = (0.25, 0.5, 0.69, 0.724)
SCALE, SHIFT = 1.7, (31.0, -12.5)
"""Of the zarr section's coordinate system: microns of some stage, (y, x)."""


def write_folder(made, path):
    from napari_stmdit.tissue.st_array import write_spaceranger_folder

    write_spaceranger_folder(
        path,
        image=made.image.levels[0].compute(),
        ids=made.spots.ids,
        yx=made.spots.yx,
        counts=made.spots.counts,
        genes=made.spots.genes,
        mpp=made.calibration.mpp,
        array_rc=made.spots.array_rc,
        diameter=made.spots.diameter,
        synthetic_note="a test pattern",
    )
    return path


def write_zarr(made, path):
    """A store whose image and spots lie in a coordinate system of their own."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale, Sequence, Translation

    stage = Sequence([Scale([SCALE, SCALE], axes=("y", "x")), Translation(list(SHIFT), axes=("y", "x"))])
    image = Image2DModel.parse(
        np.moveaxis(made.image.levels[0].compute(), 2, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2],
        transformations={"stage": stage},
    )
    circles = ShapesModel.parse(
        made.spots.yx[:, ::-1],
        geometry=0,
        radius=made.spots.diameter / 2,
        index=made.spots.ids,
        transformations={"stage": stage},
    )
    table = anndata.AnnData(made.spots.counts, obs=pd.DataFrame(index=made.spots.ids))
    table.var_names = made.spots.genes.symbols
    table.obs["region"] = pd.Categorical(["spots"] * len(made.spots))
    table.obs["spot"] = made.spots.ids
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    SpatialData(images={"slide": image}, shapes={"spots": circles}, tables={"table": table}).write(path)
    return path


@pytest.mark.parametrize("mpp", MPPS)
@pytest.mark.parametrize("kind", ["spaceranger", "zarr"])
def test_a_returned_crop_lies_on_the_slide(kind, mpp, tmp_path):
    from spatialdata import read_zarr
    from spatialdata.transformations import get_transformation

    from napari_stmdit.tissue.geometry import napari_affine
    from napari_stmdit.tissue.open import open_section

    made = make_section(mpp, rows=5, columns=4)
    source = (write_folder if kind == "spaceranger" else write_zarr)(made, tmp_path / "section.zarr")
    # a texture of noise has nothing coarse that a thumbnail could show: the slide is named, not found
    section = open_section(source, **({"mpp": mpp} if kind == "zarr" else {"fullres": source / "slide.jpg"}))
    assert section.calibration.mpp == pytest.approx(mpp, rel=1e-6)
    model = CropModel(card_for(tuple(made.spots.genes.symbols), patch_px=128))
    result = synthesize(section, Request(), model)
    name = result.save(tmp_path / "out.zarr")

    # by affines: canvas -> coordinate system -> slide, against the plan
    store = read_zarr(tmp_path / "out.zarr")
    system = "stage" if kind == "zarr" else next(iter(section.coordinate_systems))
    transform = get_transformation(store.images[name], to_coordinate_system=system)
    to_system = transform.to_affine_matrix(("y", "x"), ("y", "x"))
    slide_to_system = np.array([[SCALE, 0, SHIFT[0]], [0, SCALE, SHIFT[1]], [0, 0, 1]]) if kind == "zarr" else np.eye(3)
    to_slide = np.linalg.inv(slide_to_system) @ to_system
    height, width = result.rgba.shape[:2]
    corners = np.array([[0, 0, 1], [height, 0, 1], [0, width, 1], [height, width, 1]]).T
    off = np.abs((to_slide - result.plan.frame.affine) @ corners)[:2].max()
    assert off <= 0.1

    # by image registration: the written pixels drawn at full resolution, against the slide's own
    written = np.moveaxis(np.asarray(store.images[name]["scale0"].image), 0, 2)
    slide = made.image.levels[0].compute().mean(axis=2)
    shift = registration_error(written, to_slide, slide)
    print(f"{kind} {mpp} um/px: {off:.2e} px by affines, {shift:.2f} px by registration")
    assert shift <= 0.25

    # and the napari layer draws the same pixels at the same place: its pixel centres are integers
    layer = napari_affine(result.plan.frame.affine, mpp)
    centre = layer @ [10, 20, 1]
    expected = mpp * (result.plan.frame.affine @ [10.5, 20.5, 1])
    np.testing.assert_allclose(centre[:2], expected[:2], atol=0.01 * mpp)


def registration_error(rgba: np.ndarray, to_slide: np.ndarray, slide: np.ndarray) -> float:
    """Shift in slide pixels between a canvas, drawn through its affine (corner convention), and the slide under it."""
    height, width = rgba.shape[:2]
    y0, x0 = np.ceil((to_slide @ [8, 8, 1])[:2]).astype(int)
    y1, x1 = np.floor((to_slide @ [height - 8, width - 8, 1])[:2]).astype(int)
    y0, x0, y1, x1 = max(y0, 0), max(x0, 0), min(y1, slide.shape[0]), min(x1, slide.shape[1])
    yy, xx = np.meshgrid(np.arange(y0, y1) + 0.5, np.arange(x0, x1) + 0.5, indexing="ij")
    back = np.linalg.inv(to_slide)
    at = np.stack([back[0, 0] * yy + back[0, 2], back[1, 1] * xx + back[1, 2]]) - 0.5
    grey = map_coordinates(rgba[..., :3].mean(axis=2), at, order=3)
    there = map_coordinates(rgba[..., 3].astype(float), at, order=1) > 254
    mean = slide[y0:y1, x0:x1].mean()
    real = np.where(there, slide[y0:y1, x0:x1] - mean, 0)
    drawn = np.where(there, grey - mean, 0)
    shift, _, _ = phase_cross_correlation(real, drawn, upsample_factor=50, normalization=None)
    return float(np.abs(shift).max())


def test_the_measure_notices_half_a_pixel():
    """The registration above can fail: a canvas drawn by the pixel-centre rule is found to be off."""
    made = make_section(0.5, rows=5, columns=4)
    model = CropModel(card_for(tuple(made.spots.genes.symbols), patch_px=128))
    result = synthesize(made, Request(), model)
    wrong = result.plan.frame.affine.copy()
    wrong[:2, 2] += 0.5
    slide = made.image.levels[0].compute().mean(axis=2)
    assert registration_error(result.rgba, result.plan.frame.affine, slide) <= 0.25
    assert registration_error(result.rgba, wrong, slide) > 0.3  # the common mask pulls the measure a little towards 0
