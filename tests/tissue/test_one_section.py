"""Barcodes of several libraries, and what stands where spots should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.one_section import MIN_PITCH_UM, refuse_aggregated, refuse_bins, refuse_libraries
from napari_stmdit.types import Genes, SpotTable

SPOTS = ("AAACAAGTATCTCCCA", "AAACACCAATAACTGC", "AAACAGAGCGACTCCT")


def named(*suffixes: int, stems=SPOTS) -> np.ndarray:
    return np.array([f"{stem}-{suffix}" for suffix in suffixes for stem in stems])


def table(pitch_um: float, ids=None) -> SpotTable:
    """Spots on a square grid, at one micron a pixel."""
    yx = np.argwhere(np.ones((6, 6))) * pitch_um
    ids = np.array([f"s{i}" for i in range(36)]) if ids is None else ids
    return SpotTable(ids, yx, 10.0, csr_matrix((36, 1), dtype=np.int32), Genes(np.array(["A"])))


@pytest.mark.parametrize(
    ("counted", "placed", "listed"),
    [
        (named(1, 2), named(1), "-1, -2"),
        (named(1), named(1, 3), "-1, -3"),
        (named(2, 10), named(1), "-2, -10"),
        (named(1, 2, stems=("s_008um_00001_00002",)), named(1, stems=("s_008um_00001_00002",)), "-1, -2"),
    ],
)
def test_counts_of_several_libraries_are_not_laid_on_the_positions_of_one(counted, placed, listed):
    with pytest.raises(SectionError, match=rf"several libraries \(suffixes {listed}\)"):
        refuse_aggregated(counted, placed, "m.h5")


@pytest.mark.parametrize(
    ("counted", "placed"),
    [
        (named(1), named(1)),
        (named(1, 2), named(2)),  # positions that say which library they are of
        (np.array(["3-14", "3-15"]), np.array(["3-14", "3-15"])),  # places of an array, not barcodes
        (np.array([], dtype=np.str_), named(1)),
        (np.array(["SPOT-1", "SPOT-2"]), np.array(["SPOT-1", "SPOT-2"])),
    ],
)
def test_one_library_and_other_names_pass(counted, placed):
    refuse_aggregated(counted, placed, "m.h5")


@pytest.mark.parametrize("form", ["{k}_{b}-1", "{b}-{k}", "{b}-1-{k}", "lib{k}#{b}"])
def test_one_barcode_twice_is_two_samples_however_it_is_written(form):
    ids = np.array([form.format(k=k, b=b) for k in (0, 1) for b in SPOTS])
    with pytest.raises(SectionError, match="have one barcode, which a slide has once"):
        refuse_libraries(ids, {}, None, "the table")
    refuse_libraries(ids[:3], {}, None, "the table")


def test_a_library_column_of_one_value_and_gaps_is_one_library():
    refuse_libraries(named(1), {"library_id": np.array(["a", "", "a"])}, None, "t")
    refuse_libraries(named(1), {"library_id": np.array([1.0, np.nan, 1.0])}, None, "t")
    with pytest.raises(SectionError, match="library_id: 1.0, 2.0"):
        refuse_libraries(named(1), {"library_id": np.array([1.0, 2.0, 1.0])}, None, "t")


def test_array_indices_that_are_all_alike_say_nothing():
    refuse_libraries(named(1), {}, np.array([[0, 1], [0, 1], [0, 1]]), "t")
    with pytest.raises(SectionError, match="1 of 2 places of the array"):
        refuse_libraries(named(1), {}, np.array([[0, 1], [1, 2], [0, 1]]), "t")


def test_what_is_far_smaller_than_a_patch_is_no_spot():
    refuse_bins(table(MIN_PITCH_UM * 1.01), 1.0, "x")
    refuse_bins(table(8), None, "x")  # without a scale nothing can be said, nor synthesized
    with pytest.raises(SectionError, match="8 um from each other"):
        refuse_bins(table(8), 1.0, "x")
    with pytest.raises(SectionError, match="one of 16 um cannot stand"):
        refuse_bins(table(100, np.array([f"s_016um_{i:05d}_00001-1" for i in range(36)])), None, "x")
