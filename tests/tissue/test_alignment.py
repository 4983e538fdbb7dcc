"""Spots that lie on the slide the wrong way round are found out, and right ones are left alone."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.alignment import WORDS, check_alignment, check_picture, oriented, write_check_picture
from napari_stmdit.tissue.open import open_sample_section, open_section
from napari_stmdit.tissue.st_array import write_spaceranger_folder
from napari_stmdit.types import Genes

REAL = ("her2st_B4_spaceranger1", "her2st_C3_spaceranger2", "visium_v4_no_fullres/outs")
UNTOLD = {"visium_mouse_brain_crop/outs_spaceranger1": "about as well", "visium_hd_layout": "5 spots"}


def slide_turned(section, orientation):
    """The section with its slide turned or mirrored by hand, so that the orientation would set the spots right again."""
    levels = tuple(pixels_turned(level, orientation) for level in section.image.levels)
    return replace(section, image=replace(section.image, levels=levels, file=None))


def pixels_turned(pixels, orientation):
    """Pixels turned or mirrored by hand."""
    pixels = pixels.transpose(1, 0, 2) if orientation in ("swap-xy", "swap-yx", "turn-90", "turn-270") else pixels
    pixels = pixels[::-1] if orientation in ("mirror-y", "turn-180", "turn-270", "swap-yx") else pixels
    return pixels[:, ::-1] if orientation in ("mirror-x", "turn-180", "turn-90", "swap-yx") else pixels


@pytest.fixture(scope="module")
def sample():
    return open_sample_section()


def small(section):
    """The section with a slide shrunk eightfold, which is as fine as the check looks, and quick to turn."""
    import dask.array as da

    level = section.image.levels[0][: section.image.shape[0] // 8 * 8, : section.image.shape[1] // 8 * 8]
    shrunk = da.coarsen(np.mean, level, {0: 8, 1: 8}).astype(np.uint8).compute()
    image = replace(section.image, levels=(da.from_array(shrunk),), pixel_size=8 * section.image.pixel_size, file=None)
    return replace(section, image=image)


@pytest.mark.parametrize("orientation", WORDS)
def test_each_way_to_turn_the_sample_is_found(sample, orientation):
    found = check_alignment(slide_turned(sample, orientation))
    assert found.best == (None if orientation == "as-given" else orientation)
    assert found.verdict == ("fits" if orientation == "as-given" else "other")
    assert orientation == "as-given" or WORDS[orientation] in found.statement


@pytest.mark.parametrize("name", REAL)
def test_each_way_to_turn_a_real_section_is_found(shared_data, name):
    section = small(open_section(shared_data / name)) if "v4" not in name else open_section(shared_data / name)
    for orientation in WORDS:
        found = check_alignment(slide_turned(section, orientation))
        assert found.best == (None if orientation == "as-given" else orientation)
        assert found.verdict == ("fits" if orientation == "as-given" else "other")


@pytest.mark.parametrize("name", UNTOLD)
def test_a_real_section_that_says_nothing_is_said_so(shared_data, name):
    found = check_alignment(open_section(shared_data / name))
    assert found.verdict == "unknown" and found.best is None and UNTOLD[name] in found.statement


def test_nothing_is_said_without_counts(sample, tiny_folder):
    none = replace(sample.spots, counts=csr_matrix(sample.spots.counts.shape, dtype=np.float32))
    assert "no spot has a count" in check_alignment(replace(sample, spots=none)).statement
    slide = open_section(tiny_folder / "slide.png", mpp=0.7, tissue_fraction=0)
    assert "a plain slide has no counts" in check_alignment(slide).statement
    assert "no slide image" in check_alignment(replace(sample, image=None)).statement


def test_counts_that_do_not_follow_the_stain_decide_nothing(sample):
    rng = np.random.default_rng(0)
    shuffled = replace(sample.spots, counts=sample.spots.counts[rng.permutation(len(sample.spots))])
    assert check_alignment(replace(sample, spots=shuffled)).verdict == "unknown"


@pytest.mark.parametrize("orientation", WORDS)
def test_turned_spots_lie_where_the_turned_slide_has_them(sample, orientation):
    there = oriented(slide_turned(sample, orientation), orientation)
    again = check_alignment(there)
    assert again.verdict == "fits"
    assert (orientation == "as-given") == (there.spots is sample.spots)
    if orientation != "as-given":
        assert WORDS[orientation] in there.notes[-1]


@pytest.fixture(scope="module")
def oblong():
    """A slide that is higher than wide, with tissue in one corner of it and spots on that: pixels, ids, places and array indices."""
    rc = np.array([(r, c) for r in range(11) for c in range(7) if (r + c) % 2 == 0])
    yx = 30 + rc * (50 * 3**0.5 / 2, 25)
    pixels = np.full((1000, 400, 3), 240, np.uint8)
    pixels[:490, :210] = (170, 90, 150)
    return pixels, np.array([f"spot{k}" for k in range(len(rc))]), yx, rc


def as_folder(pixels, ids, yx, rc, place):
    """A Space Ranger folder without pictures to tell its slide by."""
    counts, genes = csr_matrix(np.arange(1, len(ids) + 1, dtype=np.int32)[:, None]), Genes(np.array(["A"]))
    how = {"ids": ids, "yx": yx, "counts": counts, "genes": genes, "array_rc": rc, "diameter": 27.5, "mpp": 2.0}
    write_spaceranger_folder(place / "outs", image=pixels, slide_name="slide.png", **how)
    for name in ("hires", "lowres"):
        (place / "outs" / "spatial" / f"tissue_{name}_image.png").unlink()
    return {"path": place / "outs", "fullres": "slide.png"}


def as_table(pixels, ids, yx, rc, place):
    """A table of spots that says nothing of its slide, and the slide."""
    counts = np.arange(1, len(ids) + 1, dtype=np.float32)[:, None]
    table = anndata.AnnData(counts, pd.DataFrame(index=ids), pd.DataFrame(index=["A"]), obsm={"spatial": yx[:, ::-1]})
    table.write_h5ad(place / "spots.h5ad")
    Image.fromarray(pixels).save(place / "slide.png")
    return {"path": place / "spots.h5ad", "fullres": "slide.png", "mpp": 2.0}


@pytest.mark.parametrize("kept_as", [as_folder, as_table])
@pytest.mark.parametrize("orientation", WORDS)
def test_spots_on_an_oblong_slide_are_opened_found_out_and_laid_right(oblong, tmp_path, kept_as, orientation):
    pixels, *spots = oblong
    how = kept_as(np.ascontiguousarray(pixels_turned(pixels, orientation)), *spots, tmp_path)
    given, right = open_section(**how), open_section(**how, orientation=orientation)
    turned = orientation != "as-given"
    assert check_alignment(given).best == (orientation if turned else None)
    asked = f"lay them so with --orientation {orientation} " in " ".join(given.notes)
    assert asked == (turned and kept_as is as_table)
    assert check_alignment(right).verdict == "fits" and not any("off the slide" in note for note in right.notes)


@pytest.mark.parametrize(
    ("kept_as", "message"), [(as_folder, "but spots lie between"), (as_table, "spots lie off slide.png")]
)
def test_spots_that_lie_on_an_oblong_slide_in_no_way_are_refused(oblong, tmp_path, kept_as, message):
    pixels, ids, yx, rc = oblong
    with pytest.raises(SectionError, match=message):
        open_section(**kept_as(pixels, ids, 3 * yx, rc, tmp_path))


def test_the_section_is_opened_as_it_is_asked_to_lie(sample):
    turned = open_section(sample.path, orientation="mirror-x")
    width = sample.image.shape[1] * sample.image.pixel_size
    np.testing.assert_allclose(turned.spots.yx[:, 1], width - sample.spots.yx[:, 1])
    with pytest.raises(SectionError, match=r"orientation is 'sideways': Input should be 'as-given', 'mirror-x'"):
        open_section(sample.path, orientation="sideways")


def test_the_picture_shows_the_spots_on_the_slide(sample, tmp_path):
    plain = check_picture(replace(sample, spots=sample.spots.at(np.arange(0))))
    both = check_picture(sample), check_picture(sample, "mirror-x")
    assert plain.shape == both[0].shape and max(plain.shape) == 300
    assert (both[0] != plain).any() and (both[0] != both[1]).any()
    write_check_picture(sample, tmp_path / "check.png", "mirror-x")
    assert (tmp_path / "check.png").stat().st_size > 1000
    with pytest.raises(SectionError, match="already there"):
        write_check_picture(sample, tmp_path / "check.png")


def test_two_orientations_are_one_or_are_refused(tiny_section):
    turned = oriented(oriented(tiny_section, "mirror-x"), "mirror-y")
    assert turned.orientation == "turn-180"
    np.testing.assert_allclose(turned.spots.yx, oriented(tiny_section, "turn-180").spots.yx)
    assert oriented(turned, "turn-180").orientation == "as-given"
    image = tiny_section.image
    wide = replace(tiny_section, image=replace(image, levels=tuple(level[:800] for level in image.levels)))
    assert oriented(oriented(wide, "swap-xy"), "mirror-x").orientation == "turn-90"
    with pytest.raises(SectionError, match="none of the eight orientations of this slide; open the section again"):
        oriented(oriented(wide, "mirror-x"), "swap-xy")
