"""Sections from objects in memory: the same as from disk, and refused for the same reasons."""

import json

import numpy as np
import pytest
import spatialdata
from tiny import TINY_MPP, tiny_arrays

from napari_stmdit import Request, open_section
from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.in_memory import link_elements
from napari_stmdit.tissue.open import synthesis_fault


@pytest.fixture
def sdata(tiny_zarr):
    return spatialdata.read_zarr(tiny_zarr)


@pytest.fixture
def adata(tiny_folder):
    """The tiny section as scanpy reads a Space Ranger folder: images as numbers from 0 to 1, positions as (x, y)."""
    import anndata
    import pandas as pd
    from PIL import Image
    from tiny import TINY_GENES

    arrays = tiny_arrays()
    obs = pd.DataFrame(
        {
            "in_tissue": 1,
            "array_row": arrays["array_rc"][:, 0],
            "array_col": arrays["array_rc"][:, 1],
            "region": "left",
        },
        index=arrays["ids"],
    )
    made = anndata.AnnData(arrays["counts"].astype(np.float32), obs=obs, var=pd.DataFrame(index=list(TINY_GENES)))
    made.obsm["spatial"] = arrays["yx"][:, ::-1].copy()
    hires = np.asarray(Image.open(tiny_folder / "spatial" / "tissue_hires_image.png"), dtype=np.float32) / 255
    factors = json.loads((tiny_folder / "spatial" / "scalefactors_json.json").read_text())
    made.uns["spatial"] = {"tiny library": {"images": {"hires": hires}, "scalefactors": factors}}
    return made


def same(found, expected):
    order = found.spots.rows(expected.spots.ids.tolist())
    np.testing.assert_allclose(found.spots.yx[order], expected.spots.yx)
    assert (found.spots.counts[order] != expected.spots.counts).nnz == 0
    assert found.spots.genes.symbols.tolist() == expected.spots.genes.symbols.tolist()
    assert found.calibration.mpp == pytest.approx(expected.calibration.mpp)


def test_a_spatialdata_that_was_read_is_the_section_of_its_store(sdata, tiny_zarr):
    found, expected = open_section(sdata), open_section(tiny_zarr)
    same(found, expected)
    assert found.path == tiny_zarr and found.store == expected.store and found.name == expected.name
    np.testing.assert_array_equal(found.image.levels[-1].compute(), expected.image.levels[-1].compute())


def test_a_spatialdata_that_was_never_written_opens_and_is_changed_in_nothing(sdata, tiny_zarr, tmp_path):
    from spatialdata import SpatialData

    parts = {kind: dict(getattr(sdata, kind)) for kind in ("images", "shapes", "tables")}
    made = SpatialData(**parts)
    found = open_section(made, mpp=0.6)
    same(open_section(made), open_section(tiny_zarr))
    assert found.calibration.mpp == 0.6 and found.path is None and found.store is None
    assert {kind: set(getattr(made, kind)) for kind in parts} == {kind: set(part) for kind, part in parts.items()}
    assert len(link_elements(found).adata) == len(found.spots)


def test_an_anndata_as_scanpy_reads_it_is_the_section_of_its_folder(adata, tiny_folder):
    before = adata.copy()
    found = open_section(adata)
    same(found, open_section(tiny_folder))
    assert found.name == "tiny_library" and found.image is not None and found.image.pixel_size > 1
    assert found.spots.obs["region_of_table"].tolist() == ["left"] * 30
    assert list(adata.obs) == list(before.obs) and adata.uns["spatial"].keys() == before.uns["spatial"].keys()
    assert adata.uns["spatial"]["tiny library"]["images"]["hires"].dtype == np.float32


def test_an_anndata_is_synthesized_from_with_its_full_resolution_image(adata, tiny_folder, tmp_path):
    from standins import CropModel, card_for
    from tiny import TINY_GENES

    from napari_stmdit import synthesize

    section = open_section(adata, fullres=tiny_folder / "slide.png")
    assert section.image.pixel_size == 1 and synthesis_fault(section, TINY_MPP) is None
    model = CropModel(card_for(TINY_GENES))
    expected = synthesize(open_section(tiny_folder), Request(steps=1), model)
    result = synthesize(section, Request(steps=1), model)
    assert len(result.done) == 30
    np.testing.assert_array_equal(result.patches, expected.patches)
    result.save(tmp_path / "out.zarr")
    same(open_section(tmp_path / "out.zarr"), section)


def test_without_an_image_an_anndata_opens_and_says_what_is_missing(adata):
    adata.uns["spatial"]["tiny library"]["images"] = {}
    section = open_section(adata)
    assert section.image is None and "no slide image" in synthesis_fault(section, TINY_MPP)
    del adata.uns["spatial"]["tiny library"]["images"]
    assert open_section(adata).image is None


def test_an_image_without_its_scale_is_left_out_and_named(adata):
    library = adata.uns["spatial"]["tiny library"]
    library["images"]["other"] = library["images"]["hires"]
    library["images"]["masks"], library["scalefactors"]["tissue_masks_scalef"] = np.zeros((4, 4), bool), 0.5
    notes = " ".join(open_section(adata).notes)
    assert "image other is not shown: its tissue_other_scalef is missing" in notes
    assert "image masks is not shown: it is no colour image" in notes


def libraries(adata, **parts):
    adata.uns["spatial"] = parts


def places_twice(adata):
    adata.obs["array_row"], adata.obs["array_col"] = np.arange(30) // 4, np.arange(30) % 2


FAULTS = {
    "no positions": (lambda a: a.obsm.clear(), "has no positions, obsm['spatial']"),
    "three coordinates": (lambda a: a.obsm.update(spatial=np.zeros((30, 3))), "has the shape (30, 3)"),
    "a position of nan": (lambda a: a.obsm["spatial"].__setitem__((2, 0), np.nan), "the position of SPOT02-1"),
    "no scale": (lambda a: a.uns.clear(), "has no uns['spatial'] with the scalefactors"),
    "two libraries": (lambda a: libraries(a, one={}, two={}), "several libraries (uns['spatial']: one, two)"),
    "no scalefactors": (lambda a: libraries(a, one={"images": {}}), "no scalefactors in uns['spatial']['one']"),
    "no spot size": (lambda a: libraries(a, one={"scalefactors": {}}), "spot_diameter_fullres of the scalefactors"),
    "no counts": (lambda a: setattr(a, "X", a.X / 3), "does not hold counts"),
    "a place twice": (places_twice, "several samples"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_in_an_anndata_is_one_message(adata, name):
    change, says = FAULTS[name]
    change(adata)
    with pytest.raises(SectionError) as error:
        open_section(adata)
    assert says in str(error.value)


def test_what_is_missing_in_a_spatialdata_is_one_message(sdata):
    from spatialdata import SpatialData

    with pytest.raises(SectionError, match="no circles that a table annotates"):
        open_section(SpatialData(images=dict(sdata.images)))
    (name,) = sdata.shapes
    twice = {name: sdata.shapes[name], "more": sdata.shapes[name]}
    table = sdata.tables["table"].copy()
    table.obs["region"] = table.obs["region"].cat.rename_categories(["more"])
    table.uns["spatialdata_attrs"]["region"] = "more"
    made = SpatialData(shapes=twice, tables={"table": sdata.tables["table"], "second": table})
    with pytest.raises(SectionError, match="several sets of spots"):
        open_section(made)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid_pitch": 80}, "the AnnData has spots of its own: grid_pitch"),
        ({"mpp": 0}, "mpp is 0"),
        ({"fullres": "nothing.png"}, "--fullres nothing.png is neither"),
    ],
)
def test_options_are_checked_as_for_a_path(adata, options, says):
    with pytest.raises(SectionError) as error:
        open_section(adata, **options)
    assert says in str(error.value)


def test_a_result_goes_into_the_spatialdata_in_memory_that_its_section_is_of(sdata, tiny_zarr):
    from spatialdata import SpatialData
    from standins import CropModel, card_for
    from tiny import TINY_GENES

    from napari_stmdit import synthesize
    from napari_stmdit.errors import StoreError

    made = SpatialData(**{kind: dict(getattr(sdata, kind)) for kind in ("images", "shapes", "tables")})
    result = synthesize(open_section(made), Request(steps=1), CropModel(card_for(TINY_GENES)))
    assert [result.add_to(made), result.add_to(made, "again")] == ["stmdit_1", "stmdit_again"]
    np.testing.assert_array_equal(
        made.images["stmdit_1"]["scale0"]["image"].data.compute(), result.rgba.transpose(2, 0, 1)
    )
    assert made.attrs["stmdit"]["stmdit_1"]["synthetic"] is True
    with pytest.raises(StoreError, match="already holds stmdit_1"):
        result.add_to(made, "1")
    on_disk = synthesize(open_section(tiny_zarr), Request(steps=1), CropModel(card_for(TINY_GENES)))
    assert on_disk.add_to(made) == "stmdit_2"


def test_a_result_as_spatialdata_is_what_saving_writes(tiny_folder, tmp_path):
    from standins import CropModel, card_for
    from tiny import TINY_GENES

    from napari_stmdit import synthesize
    from napari_stmdit.synthesis.stored import read_stored

    section = open_section(tiny_folder)
    result = synthesize(section, Request(steps=1), CropModel(card_for(TINY_GENES)))
    result.to_spatialdata().write(tmp_path / "memory.zarr")
    result.save(tmp_path / "saved.zarr")
    kept, saved = (read_stored(open_section(tmp_path / f"{name}.zarr")).results for name in ("memory", "saved"))
    assert [stored.element for stored in kept] == [stored.element for stored in saved] == ["stmdit_1"]
    np.testing.assert_array_equal(np.asarray(kept[0].rgba), np.asarray(saved[0].rgba))
    np.testing.assert_array_equal(kept[0].pixel_to_fullres, saved[0].pixel_to_fullres)
    assert kept[0].provenance == saved[0].provenance


def test_a_result_is_not_added_to_the_spatialdata_of_another_section(sdata, tiny_folder):
    from standins import CropModel, card_for
    from tiny import TINY_GENES

    from napari_stmdit import synthesize
    from napari_stmdit.errors import StoreError

    result = synthesize(open_section(tiny_folder), Request(steps=1), CropModel(card_for(TINY_GENES)))
    (name,) = sdata.shapes
    sdata.shapes[name] = sdata.shapes[name].iloc[:-3]
    with pytest.raises(StoreError, match="another section"):
        result.add_to(sdata)
    assert not [image for image in sdata.images if image.startswith("stmdit_")]
