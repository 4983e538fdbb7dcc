"""Predicted tables: what they may hold, where their rows go, and that every mismatch is told."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from slides import SLIDE_MPP, predicted_counts, tissue_picture, write_pyramid, write_table
from tiny import TINY_GENES

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.slide import read_predicted

CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", tissue_picture(), **CM)


@pytest.fixture(scope="module")
def grid(pyramid):
    """The grid's own spots."""
    return open_section(pyramid).spots


# ------------------------------------------------------------------------------------------------- units


def test_logarithms_are_turned_back_by_what_the_file_states(tmp_path):
    yx = np.array([[10.0, 20.0], [30.0, 40.0]])
    counts = predicted_counts(2)
    shares = counts * 1e4 / counts.sum(axis=1, keepdims=True)
    for uns, values in (
        ({"log1p": {}}, np.log1p(shares)),
        ({"log1p": {"base": None}}, np.log1p(shares)),
        ({"log1p": {"base": 2.0}}, np.log2(1 + shares)),
    ):
        found = read_predicted(write_table(tmp_path / "t.h5ad", yx, values.astype(np.float32), uns=uns))
        np.testing.assert_allclose(found.spots.counts.toarray(), shares, rtol=1e-4)
        assert found.source.units == "log1p"


def test_counts_are_taken_as_they_are(tmp_path):
    yx = np.array([[10.0, 20.0], [30.0, 40.0]])
    whole = np.rint(predicted_counts(2))
    found = read_predicted(write_table(tmp_path / "t.h5ad", yx, whole, uns={}))
    np.testing.assert_array_equal(found.spots.counts.toarray(), whole)
    assert found.source.units == "counts"
    with pytest.raises(SectionError, match="does not state its units.*--predicted-units"):
        read_predicted(write_table(tmp_path / "f.h5ad", yx, predicted_counts(2), uns={}))
    found = read_predicted(tmp_path / "f.h5ad", "counts")
    np.testing.assert_array_equal(found.spots.counts.toarray(), predicted_counts(2))
    logs = read_predicted(tmp_path / "f.h5ad", "log1p").spots.counts.toarray()
    np.testing.assert_allclose(logs, np.expm1(predicted_counts(2)), rtol=1e-5)


def test_a_sparse_table_is_read_alike(tmp_path):
    from scipy.sparse import csc_matrix, csr_matrix

    yx, whole = np.array([[10.0, 20.0], [30.0, 40.0]]), np.rint(predicted_counts(2))
    for kind in (csr_matrix, csc_matrix):
        found = read_predicted(write_table(tmp_path / "t.h5ad", yx, kind(whole), uns={}))
        np.testing.assert_array_equal(found.spots.counts.toarray(), whole)


def test_name_hash_genes_and_positions(tmp_path):
    file = write_table(tmp_path / "mine.h5ad", np.array([[10.0, 20.0], [30.0, 40.0]]))
    found = read_predicted(file)
    assert found.source.file == "mine.h5ad"
    assert found.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.spots.genes.symbols.tolist() == list(TINY_GENES)
    assert found.spots.yx.tolist() == [[10.0, 20.0], [30.0, 40.0]]  # (y, x) inside, (x, y) in the file


# ------------------------------------------------------------------------------------------------- positions


def test_the_rows_become_the_spots(tmp_path, pyramid, grid):
    yx = grid.yx + np.random.default_rng(0).uniform(-30, 30, grid.yx.shape)
    off = np.array([[-5.0, 100.0], [100.0, 1700.0]])
    bare = np.array([[1550.0, 60.0]])
    table = write_table(tmp_path / "t.h5ad", np.concatenate([yx, off, bare, yx[:3]]))
    section = open_section(pyramid, predicted_expression=table)
    np.testing.assert_allclose(section.spots.yx, np.concatenate([yx, bare]), atol=1e-9)
    assert section.spots.ids.tolist() == [f"row{i}" for i in range(len(yx))] + [f"row{len(yx) + 2}"]
    assert section.spots.diameter == pytest.approx(55 / SLIDE_MPP)
    assert section.expression.kind == "predicted" and section.spots.counts.shape[1] == len(TINY_GENES)
    told = "; ".join(section.notes)
    for words in (
        f"the {len(yx) + 1} positions of t.h5ad",
        "2 rows lie off the slide and left out",
        "3 rows have the position of an earlier one and left out",
        "1 row lies off the tissue",
        "log1p",
        "no measured expression was used",
        section.expression.sha256[:12],
    ):
        assert words in told, words


def test_rows_are_matched_to_the_grid_within_a_spots_radius(tmp_path, pyramid, grid):
    shift = np.array([0.0, 40.0])  # 20 um
    far = grid.yx[:1] + [60.0, 60.0]  # 42 um from its spot, and farther from any other
    twin = grid.yx[5:6] + [0.0, 5.0]  # nearer than row 5
    table = write_table(tmp_path / "t.h5ad", np.concatenate([grid.yx[2:] + shift, far, twin]))
    section = open_section(pyramid, predicted_expression=table, grid_pitch=100.0)
    assert section.spots.ids.tolist() == grid.ids[2:].tolist()
    np.testing.assert_array_equal(section.spots.yx, grid.yx[2:])
    values = read_predicted(table).spots.counts.toarray()
    own = section.spots.counts.toarray()
    np.testing.assert_array_equal(own[0], values[0])
    np.testing.assert_array_equal(own[3], values[len(grid) - 2 + 1])  # the twin's row
    told = "; ".join(section.notes)
    for words in (
        f"{len(grid) - 2} of the grid's {len(grid)} spots found a row of t.h5ad within 27.5 um",
        "1 row is farther than 27.5 um",
        "1 row has a nearer one at the same spot",
    ):
        assert words in told, (words, told)


def test_rows_farther_than_a_spots_radius_are_not_matched(tmp_path, pyramid, grid):
    at = 27.5 / SLIDE_MPP
    near = write_table(tmp_path / "near.h5ad", grid.yx + [0.0, at - 0.5])
    assert len(open_section(pyramid, predicted_expression=near, grid_pitch=100.0).spots) == len(grid)
    far = write_table(tmp_path / "far.h5ad", grid.yx + [0.0, at + 0.5])
    with pytest.raises(SectionError, match="no row of far.h5ad lies within"):
        open_section(pyramid, predicted_expression=far, grid_pitch=100.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda yx: yx * 4, "rows of t.h5ad lie off the slide"),  # of a finer level
        (lambda yx: yx / 8, "off the tissue that was found"),  # of a smaller level
    ],
)
def test_positions_of_another_scale_are_refused(tmp_path, pyramid, grid, change, says):
    table = write_table(tmp_path / "t.h5ad", change(grid.yx))
    with pytest.raises(SectionError, match=says) as raised:
        open_section(pyramid, predicted_expression=table)
    assert r"(x, y) in pixels of the full-resolution slide" in str(raised.value)
    if "tissue" in says:
        assert len(open_section(pyramid, predicted_expression=table, tissue_fraction=0).spots) == len(grid)


def test_a_store_of_a_predicted_run_keeps_the_fractions_and_says_so(tmp_path, pyramid, grid):
    from standins import CropModel, card_for

    from napari_stmdit.intent import Request
    from napari_stmdit.regions import SampleOfSpots
    from napari_stmdit.synthesis.session import synthesize

    table = write_table(tmp_path / "t.h5ad", grid.yx)
    section = open_section(pyramid, predicted_expression=table)
    result = synthesize(section, Request(region=SampleOfSpots(count=2)), CropModel(card_for(TINY_GENES)))
    result.save(tmp_path / "out.zarr")
    again = open_section(tmp_path / "out.zarr")
    assert again.expression == section.expression
    np.testing.assert_allclose(again.spots.counts.toarray(), section.spots.counts.toarray(), rtol=1e-6)
    assert (section.spots.counts.data != np.rint(section.spots.counts.data)).any()


def test_what_uns_says_is_held_against_x(tmp_path):
    """scanpy leaves uns["log1p"] also where a layer was logged; X of normalised counts must not be exponentiated."""
    yx = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    counts = predicted_counts(3)
    even = (counts / counts.sum(axis=1, keepdims=True) * 40).astype(np.float32)
    with pytest.raises(SectionError, match="all rows of X have the same sum.*--predicted-units"):
        read_predicted(write_table(tmp_path / "t.h5ad", yx, even))
    np.testing.assert_array_equal(read_predicted(tmp_path / "t.h5ad", "log1p").spots.counts.toarray(), np.expm1(even))
    found = read_predicted(write_table(tmp_path / "l.h5ad", yx, np.log1p(even)))
    np.testing.assert_allclose(found.spots.counts.toarray(), even, rtol=1e-4)


def test_logarithms_that_would_give_absurd_counts_are_asked_for(tmp_path):
    values = np.full((2, len(TINY_GENES)), 0.5, dtype=np.float32)
    values[0, 0] = 18.5  # 108 million counts of one gene
    with pytest.raises(SectionError, match=r"would give a row 1\.08e\+08 counts.*--predicted-units"):
        read_predicted(write_table(tmp_path / "t.h5ad", np.array([[10.0, 20.0], [30.0, 40.0]]), values))


def test_a_table_of_two_samples_is_refused(tmp_path):
    import anndata

    file = write_table(tmp_path / "t.h5ad", np.array([[10.0, 20.0], [30.0, 40.0]]))
    table = anndata.read_h5ad(file)
    table.obs["library_id"] = ["a", "b"]
    table.write_h5ad(file)
    with pytest.raises(SectionError, match="library_id: a, b"):
        read_predicted(file)


@pytest.mark.parametrize("base", [np.array([2.0]), 2, np.float32(2.0)])
def test_a_base_is_a_number_however_it_was_written(tmp_path, base):
    yx, shares = np.array([[10.0, 20.0], [30.0, 40.0]]), predicted_counts(2)
    table = write_table(tmp_path / "t.h5ad", yx, np.log2(1 + shares).astype(np.float32), uns={"log1p": {"base": base}})
    np.testing.assert_allclose(read_predicted(table).spots.counts.toarray(), shares, rtol=1e-4)


@pytest.mark.parametrize("base", ["2", 1.0, 0, -2.0, np.array([2.0, 10.0])])
def test_a_base_that_is_none_of_logarithms_is_refused(tmp_path, base):
    yx = np.array([[10.0, 20.0], [30.0, 40.0]])
    table = write_table(tmp_path / "t.h5ad", yx, np.log1p(predicted_counts(2)), uns={"log1p": {"base": base}})
    with pytest.raises(SectionError, match="no base of logarithms"):
        read_predicted(table)
