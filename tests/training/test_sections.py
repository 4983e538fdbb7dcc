import numpy as np
import pandas as pd
import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.st_array import fit_square_lattice, read_table_section
from napari_stmdit.training.config import WHOLE
from napari_stmdit.training.sections import part_of


def read(files, **changes):
    return read_table_section("made", **(files | changes), pitch_um=200.0, spot_um=100.0)


def test_tables_and_image_become_a_section(table_section):
    section = read(table_section)
    assert len(section.spots) == 19  # the twentieth spot has no counts
    assert section.spots.counts.shape == (19, 30)
    assert section.calibration.source == "lattice"
    assert section.calibration.mpp == pytest.approx(200 / np.sqrt(290 * 291), rel=1e-6)
    assert section.spots.diameter == pytest.approx(100 / section.calibration.mpp)
    first = section.spots.rows(["7x3"])[0]
    np.testing.assert_allclose(section.spots.yx[first], (150.2, 200.4))
    np.testing.assert_array_equal(section.spots.array_rc[first], (3, 7))
    assert section.image.shape == (1200, 1500)


def test_the_scale_does_not_depend_on_rotation():
    array = np.array([(r, c) for r in range(4) for c in range(5)])
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert fit_square_lattice(array, array * 250.0 @ turn + 11, 200.0) == pytest.approx(0.8)
    with pytest.raises(SectionError, match="one line"):
        fit_square_lattice(array[:5], array[:5] * 250.0, 200.0)


def test_what_is_missing_is_named(table_section, tmp_path):
    with pytest.raises(SectionError, match="nowhere.tsv is not a file"):
        read(table_section, counts=tmp_path / "nowhere.tsv")
    spots = pd.read_csv(table_section["spots"], sep="\t")
    spots.drop(columns="pixel_y").to_csv(tmp_path / "bad.tsv", sep="\t", index=False)
    with pytest.raises(SectionError, match=r"lacks the columns \['pixel_y'\]"):
        read(table_section, spots=tmp_path / "bad.tsv")
    spots.assign(x=spots["x"] + 100).to_csv(tmp_path / "off.tsv", sep="\t", index=False)
    with pytest.raises(SectionError, match="only 0 spots"):
        read(table_section, spots=tmp_path / "off.tsv")


@pytest.mark.slow
def test_real_sections_have_the_published_scale(shared_data):
    folder = shared_data / "her2st_sections"
    image = next((folder / "images").glob("C6_*"))
    section = read_table_section(
        "C6", folder / "counts/C6.tsv.gz", folder / "spots/C6_selection.tsv", image, pitch_um=200.0, spot_um=100.0
    )
    assert len(section.spots) == 178 and len(section.spots.genes) == 15772
    assert section.calibration.mpp == pytest.approx(0.688, abs=0.004)


def test_a_config_stands_for_its_sections(table_section, tmp_path):
    import yaml

    from napari_stmdit.training.sections import sections_of_config

    source = {"kind": "table", "name": "made", **{key: str(path) for key, path in table_section.items()}}
    config = {"name": "tiny", "root": ".", "output": "out", "train": [source], "patch_px": 64, "patch_mpp": 0.7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (section,) = sections_of_config(tmp_path / "config.yaml", "train")
    assert (section.name, len(section.spots)) == ("made", 19)
    with pytest.raises(SectionError, match="no section under 'held_out'"):
        sections_of_config(tmp_path / "config.yaml", "held_out")


def test_a_part_of_a_section_shows_neither_spots_nor_pixels_of_the_rest(tiny_section):
    whole = np.asarray(tiny_section.image.levels[0])
    height, width = whole.shape[:2]
    left, right = part_of(tiny_section, (0, 0, 1, 0.5)), part_of(tiny_section, (0, 0.5, 1, 1))
    assert part_of(tiny_section, WHOLE) is tiny_section
    np.testing.assert_array_equal(np.asarray(right.image.levels[0]), whole[:, width // 2 :])
    assert not set(left.spots.ids) & set(right.spots.ids)
    assert len(left.spots) + len(right.spots) == len(tiny_section.spots)
    rows = tiny_section.spots.rows(right.spots.ids.tolist())
    np.testing.assert_allclose(right.spots.yx + (0, width // 2), tiny_section.spots.yx[rows])
    assert (right.spots.counts != tiny_section.spots.counts[rows]).nnz == 0
    with pytest.raises(SectionError, match=r"part \[0.0, 0.0, 0.01, 0.01\] holds 0 spots"):
        part_of(tiny_section, (0.0, 0.0, 0.01, 0.01))


def test_spots_under_excluded_regions_are_not_trained_on(table_section, tmp_path):
    import yaml

    from napari_stmdit.tissue.selections import write_selections
    from napari_stmdit.training.config import load_config
    from napari_stmdit.training.sections import open_sections

    source = {"kind": "table", "name": "made", **{key: str(path) for key, path in table_section.items()}}
    config = {"name": "tiny", "root": ".", "output": "out", "train": [source], "patch_px": 64, "patch_mpp": 0.7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (whole,) = open_sections(load_config(tmp_path / "config.yaml"), "train")
    spots = whole.section.spots
    write_selections(spots, {"fold": spots.ids[:4].tolist(), "pen": spots.ids[6:7].tolist()}, tmp_path / "qc.geojson")
    for classes, left in ((), spots.ids[[4, 5, *range(7, 19)]]), (["pen"], np.delete(spots.ids, 6)):
        config["train"] = [{**source, "exclude": "qc.geojson", "exclude_classes": list(classes)}]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        (found,) = open_sections(load_config(tmp_path / "config.yaml"), "train")
        assert found.section.spots.ids.tolist() == left.tolist() and len(found.yx) == len(left)


def test_a_part_excludes_what_the_whole_excludes(tiny_section):
    from napari_stmdit.tissue.excluded import exclude

    gone = tiny_section.spots.ids[:4].tolist()
    part = part_of(exclude(tiny_section, {"fold": gone}), (0, 0, 1, 0.8))
    whole = part_of(tiny_section, (0, 0, 1, 0.8))
    inside = [spot for spot in gone if spot in set(whole.spots.ids.tolist())]
    assert inside and part.excluded.regions == {"fold": tuple(inside)}
    assert set(part.spots.ids) == set(whole.spots.ids) - set(gone)
    np.testing.assert_array_equal(part.whole.spots.yx, whole.spots.yx)
