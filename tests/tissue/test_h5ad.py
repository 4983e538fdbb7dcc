"""Sections in one .h5ad: as CELLxGENE keeps them, as scanpy writes them, and with no word of their slide."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import TINY_GENES, TINY_MPP, TINY_SIDE_PX, analytic_image, tiny_arrays

from napari_stmdit.errors import ScaleError, SectionError
from napari_stmdit.tissue.open import open_section, synthesis_fault


def made(tiny_folder, fullres: bool = True) -> anndata.AnnData:
    """The tiny section by CELLxGENE's schema: Ensembl ids, symbols in feature_name, normalised X, counts in raw, off-tissue rows too."""
    arrays = tiny_arrays()
    counts = arrays["counts"].astype(np.float32)
    obs = pd.DataFrame({"in_tissue": [0, *[1] * 29]}, index=arrays["ids"])
    obs["array_row"], obs["array_col"] = arrays["array_rc"].T
    var = pd.DataFrame(
        {
            "feature_name": pd.Categorical(TINY_GENES),
            "feature_type": "protein_coding",
            "feature_biotype": ["gene"] * (len(TINY_GENES) - 1) + ["spike-in"],
        },
        index=[f"ENSG{i:011d}" for i in range(len(TINY_GENES))],
    )
    adata = anndata.AnnData(counts, obs=obs, var=var)
    adata.raw = adata.copy()
    adata.X = counts.multiply(0.3).tocsr()
    adata.obsm["spatial"] = arrays["yx"][:, ::-1].copy()
    hires = np.asarray(Image.open(tiny_folder / "spatial" / "tissue_hires_image.png"))
    images = {"hires": hires} | ({"fullres": analytic_image()} if fullres else {})
    factors = json.loads((tiny_folder / "spatial" / "scalefactors_json.json").read_text())
    scalefactors = {key: factors[key] for key in ("spot_diameter_fullres", "tissue_hires_scalef")}
    adata.uns["spatial"] = {"is_single": True, "tiny": {"images": images, "scalefactors": scalefactors}}
    return adata


def written(adata, tmp_path):
    path = tmp_path / "section.h5ad"
    adata.write_h5ad(path)
    return path


def test_a_section_of_cellxgene_opens_with_the_slide_that_it_brings(tiny_folder, tmp_path):
    section = open_section(written(made(tiny_folder), tmp_path))
    arrays, genes = tiny_arrays(), len(TINY_GENES) - 1
    assert section.name == "tiny" and section.path == tmp_path / "section.h5ad"
    assert section.spots.ids.tolist() == arrays["ids"].tolist()[1:]
    np.testing.assert_allclose(section.spots.yx, arrays["yx"][1:])
    assert (section.spots.counts != arrays["counts"][1:, :genes]).nnz == 0
    assert section.spots.genes.symbols.tolist() == list(TINY_GENES)[:genes]
    assert section.spots.genes.ids[2] == "ENSG00000000002"
    assert section.calibration.source == "lattice" and section.calibration.mpp == pytest.approx(TINY_MPP, rel=1e-6)
    assert section.image.pixel_size == 1 and section.image.shape == (TINY_SIDE_PX, TINY_SIDE_PX)
    np.testing.assert_array_equal(section.image.levels[0].compute(), analytic_image())
    assert synthesis_fault(section, TINY_MPP) is None
    notes = " ".join(section.notes)
    assert "counts are those of the table's raw" in notes and "1 features of the table are no genes" in notes


def test_spots_are_excluded_and_turned_as_of_any_other_section(tiny_folder, tmp_path):
    path, (y, x) = written(made(tiny_folder), tmp_path), tiny_arrays()["yx"][1]
    square = [[x - 1, y - 1], [x + 1, y - 1], [x + 1, y + 1], [x - 1, y + 1], [x - 1, y - 1]]
    pen = {"type": "Feature", "properties": {"name": "pen"}, "geometry": {"type": "Polygon", "coordinates": [square]}}
    (tmp_path / "pen.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [pen]}))
    first = open_section(path).spots.ids[0]
    assert open_section(path, exclude=tmp_path / "pen.geojson").excluded.regions == {"pen": (first,)}
    turned = open_section(path, orientation="turn-180").spots
    np.testing.assert_allclose(turned.yx, TINY_SIDE_PX - open_section(path).spots.yx)


def test_with_hires_alone_it_opens_and_says_what_is_missing(tiny_folder, tmp_path):
    path = written(made(tiny_folder, fullres=False), tmp_path)
    section = open_section(path)
    assert section.image.pixel_size == pytest.approx(2.0) and len(section.spots) == 29
    assert "--fullres" in synthesis_fault(section, TINY_MPP / 2)
    (tmp_path / "slide.png").write_bytes((tiny_folder / "slide.png").read_bytes())
    given = open_section(path, fullres="slide.png")  # found beside the file
    assert given.image.pixel_size == 1 and synthesis_fault(given, TINY_MPP) is None
    np.testing.assert_allclose(given.spots.yx, section.spots.yx)


def test_without_a_word_of_its_slide_the_file_and_its_scale_are_asked_for(tiny_folder, tmp_path):
    adata = made(tiny_folder)
    del adata.uns["spatial"]
    path, slide = written(adata, tmp_path), tmp_path / "slide.png"
    pixels = np.full((TINY_SIDE_PX, TINY_SIDE_PX, 3), 245, np.uint8)
    pixels[20:-20, 20:-20] = (180, 90, 150)
    Image.fromarray(pixels).save(slide)
    with pytest.raises(SectionError, match=r"section.h5ad has no uns\['spatial'\].*give its slide as well"):
        open_section(path)
    with pytest.raises(ScaleError, match="slide.png does not state how large its pixels are"):
        open_section(path, fullres=slide)
    section = open_section(path, fullres=slide, mpp=TINY_MPP)
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"][1:])
    assert section.calibration.source == "override" and section.spots.diameter == pytest.approx(55 / TINY_MPP)
    assert any("is taken as pixels of slide.png" in note for note in section.notes)
    Image.new("RGB", (TINY_SIDE_PX, TINY_SIDE_PX), (245, 245, 245)).save(tmp_path / "glass.png")
    with pytest.raises(SectionError, match="29 of 29 spots lie off the tissue that was found in glass.png"):
        open_section(path, fullres="glass.png", mpp=TINY_MPP)
    adata.obsm["spatial"] = adata.obsm["spatial"] * 3
    with pytest.raises(SectionError, match="spots lie off slide.png"):
        open_section(written(adata, tmp_path), fullres=slide, mpp=TINY_MPP)


def test_normalised_values_alone_several_sections_and_antibodies_alone_are_refused(tiny_folder, tmp_path):
    adata = made(tiny_folder)
    del adata.raw
    with pytest.raises(SectionError, match="does not hold counts: its X has fractional values.*put the raw counts"):
        open_section(written(adata, tmp_path))
    adata.layers["counts"] = tiny_arrays()["counts"].astype(np.float32)
    assert open_section(written(adata, tmp_path)).spots.counts.sum() > 0
    adata.var["feature_types"] = "Antibody Capture"
    with pytest.raises(SectionError, match="holds no gene: its features are antibodies"):
        open_section(written(adata, tmp_path))
    adata.uns["spatial"]["is_single"] = False
    with pytest.raises(SectionError, match="several sections"):
        open_section(written(adata, tmp_path))


def test_a_table_without_genes_opens_without_expression(tiny_folder, tmp_path):
    adata = made(tiny_folder)[:, :0].copy()
    del adata.raw
    section = open_section(written(adata, tmp_path))
    assert section.expression.kind == "none" and section.spots.counts.shape == (29, 0)
    assert section.notes[0] == section.expression.statement and synthesis_fault(section, TINY_MPP) is None


def test_a_file_that_is_no_table_is_one_message(tmp_path):
    (tmp_path / "x.h5ad").write_bytes(b"x" * 1000)
    with pytest.raises(SectionError, match="x.h5ad"):
        open_section(tmp_path / "x.h5ad")


@pytest.mark.parametrize(("name", "spots", "genes"), [("d0_naive", 2604, 4338), ("d14_DSS", 3630, 0)])
def test_the_real_colon_tables_open_on_their_slides(shared_data, name, spots, genes):
    folder = shared_data / "visium_mouse_colon"
    slide = folder / f"{name}_spaceranger1" / f"{name}_HE.jpg"
    section = open_section(folder / f"{name}.h5ad", fullres=slide, mpp=0.971)
    assert section.spots.counts.shape == (spots, genes)
    assert section.expression.kind == ("measured" if genes else "none")
    outs = open_section(slide.parent)
    place = {barcode: i for i, barcode in enumerate(outs.spots.ids.tolist())}
    barcodes = [name.rpartition("_")[0] for name in section.spots.ids.tolist()]  # the tables were joined: -1_1, -1_2
    both = [(i, place[b]) for i, b in enumerate(barcodes) if b in place]
    here, there = np.array(both).T
    assert len(both) == spots
    assert np.abs(section.spots.yx[here] - outs.spots.yx[there]).max() < 3
    factors = "nmf20 (20)" in " ".join(section.notes) and "--factors d14_DSS.h5ad::" in section.notes[-1]
    assert factors is (genes == 0)


def test_names_with_spaces_half_precision_and_symbols_that_occur_twice_are_read(tiny_folder, tmp_path):
    counts = tiny_arrays()["counts"].astype(np.float32)
    plain = open_section(made(tiny_folder))
    named = made(tiny_folder)
    named.obs["cell type"], named.var["highly variable"], named.layers["log norm"] = "x", True, named.X
    half = made(tiny_folder)
    half.X = half.X.toarray().astype(np.float16)
    for adata in (named, half):
        found = open_section(adata)
        assert (found.spots.counts != plain.spots.counts).nnz == 0
    twice = anndata.AnnData(counts, obs=half.obs, uns=half.uns, obsm=half.obsm)
    twice.var_names = [TINY_GENES[1], *TINY_GENES[1:]]
    twice.raw = twice.copy()
    assert open_section(twice).spots.counts.shape[0] == 29


def test_positions_in_a_table_of_unknown_order_are_refused(tiny_folder):
    adata = made(tiny_folder)
    adata.obsm["spatial"] = pd.DataFrame(adata.obsm["spatial"][:, ::-1], index=adata.obs_names, columns=["y", "x"])
    with pytest.raises(SectionError, match="is a table with the columns y, x, not an array; expected"):
        open_section(adata)
