"""Public sections: what is listed is whole and honest, and what was downloaded opens by its name as what it is."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hub import LocalHub
from public import PLACES, SIDE_PX, STEP_PX, WITHOUT_COUNTS, array_files, publish
from tiny import TINY_GENES, TINY_MPP
from workspace import online

from napari_stmdit.errors import DownloadError, SectionError, StoreError
from napari_stmdit.tissue.open import SectionSource, open_section
from napari_stmdit.tissue.public import (
    fetch_section,
    find_section,
    known_section,
    public_section,
    public_sections,
    section_directory,
)
from napari_stmdit.tissue.st_array import PITCH_UM, write_st_array


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch, tiny_folder):
    with LocalHub() as served:
        online(monkeypatch, served)
        publish(served, monkeypatch, tiny_folder)
        yield served


def test_every_section_states_its_licence_its_citation_and_all_its_hashes():
    assert len(public_sections()) == 13
    for entry in public_sections():
        assert entry.licence and entry.citation and entry.terms.startswith("https://")
        assert set(entry.sha256) == set(entry.files) and len(entry.files) == 3
        assert (entry.size_bytes is not None) == entry.name.startswith("her2st")  # nobody stated the others
    assert len({tuple(entry.sha256.values()) for entry in public_sections()}) == 13


def test_hashes_and_sizes_are_those_of_the_published_files(shared_data):
    folders = {name: shared_data / name / "original" for name in ("her2st_B4_spaceranger1", "her2st_C3_spaceranger2")}
    places = [*folders.values(), *(shared_data / "her2st_sections" / kind for kind in ("counts", "spots"))]
    tables = {file.name: file for place in places for file in place.iterdir()}
    images = {"her2st-b4": shared_data / "her2st_B4_spaceranger1" / "B4_image.jpg"}
    images["her2st-c3"] = shared_data / "her2st_C3_spaceranger2" / "C3_image.jpg"
    for file in (shared_data / "her2st_sections" / "images").iterdir():
        images[f"her2st-{file.name[:2].lower()}"] = file
    for name, image in images.items():
        entry = known_section(name)
        files = {path: image if path.endswith(".jpg") else tables[Path(path).name] for path in entry.files}
        assert {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()} == entry.sha256
        assert sum(file.stat().st_size for file in files.values()) == entry.size_bytes


def test_an_array_opens_by_its_name_with_positions_scale_and_counts_as_published(hub):
    done = fetch_section(known_section("her2st-b4"))
    section = open_section("her2st-b4")
    assert (done.folder, section.path, section.name) == (section_directory("her2st-b4"), done.folder, "her2st-b4")
    there = [place for place in PLACES if place not in (WITHOUT_COUNTS, (1, 4))]
    assert section.spots.ids.tolist() == [f"{x}x{y}" for x, y in there]
    x, y = np.array(there).T
    expected = np.stack([(y - 0.01 * x) * STEP_PX[1], (x + 0.02 * y) * STEP_PX[0]], axis=1) - 100
    np.testing.assert_allclose(section.spots.yx, expected, atol=0.01)
    np.testing.assert_array_equal(section.spots.array_rc, np.stack([y, x], axis=1))
    assert section.calibration.mpp == pytest.approx(PITCH_UM / STEP_PX.mean(), rel=1e-3)
    assert section.spots.diameter == pytest.approx(100 / section.calibration.mpp)
    assert section.spots.genes.symbols.tolist() == list(TINY_GENES)
    counts = np.random.default_rng(1).poisson(3, (len(PLACES) - 1, len(TINY_GENES)))
    rows = [i for i, place in enumerate(p for p in PLACES if p != WITHOUT_COUNTS) if place in there]
    np.testing.assert_array_equal(section.spots.counts.toarray(), counts[rows])
    assert section.image.shape[:2] == (SIDE_PX, SIDE_PX)
    assert Path(section.image.source).read_bytes() == array_files()["imgs/A/slide.jpg"]


def test_a_visium_section_opens_by_its_name(hub, tiny_section):
    fetch_section(known_section("10x-mouse-brain"))
    section = open_section("10x-mouse-brain")
    np.testing.assert_array_equal(section.spots.yx, tiny_section.spots.yx)
    assert (section.spots.counts != tiny_section.spots.counts).nnz == 0
    assert section.calibration.mpp == TINY_MPP and section.image.shape == tiny_section.image.shape


def test_a_name_is_the_section_wherever_a_path_is_taken_but_what_is_there_comes_first(
    hub, tmp_path, monkeypatch, tiny_folder
):
    with pytest.raises(SectionError, match="stmdit download her2st-b4"):
        open_section("her2st-b4")
    fetch_section(known_section("her2st-b4"))
    assert SectionSource(path="her2st-b4").absolute().path == section_directory("her2st-b4")
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_folder, tmp_path / "her2st-b4")
    assert len(open_section("her2st-b4").spots) == 30
    with pytest.raises(SectionError, match="no file or folder"):
        open_section("her2st-b5")
    assert public_section("her2st-b5") is None


def test_what_is_here_is_not_fetched_again_and_what_was_changed_is_not_replaced(hub):
    entry = known_section("her2st-b4")
    fetch_section(entry)
    hub.requests.clear()
    assert fetch_section(entry, offline=True).already and hub.requests == []
    assert not fetch_section(entry, force=True).already
    (section_directory(entry.name) / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="move it away"):
        fetch_section(entry, force=True)
    assert (section_directory(entry.name) / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("how", ["broken", "packed wrong"])
def test_what_fails_leaves_no_section(how, hub, home):
    entry = known_section("10x-mouse-brain")
    served = hub.pages[f"/data.example.org/10x-mouse-brain/{entry.files[2]}"]
    if how == "broken":
        served.drop_after = [100, 0, 0]
        with pytest.raises(DownloadError, match="the connection broke"):
            fetch_section(entry)
    else:
        served.content = b"not packed"
        sha256 = {**entry.sha256, entry.files[2]: hashlib.sha256(served.content).hexdigest()}
        with pytest.raises(SectionError, match="cannot be unpacked"):
            fetch_section(entry.model_copy(update={"sha256": sha256}))
    assert find_section(entry) is None
    assert not list((home / "sections").glob("*"))


def files_of(place: Path, change=lambda name, content: content) -> list[Path]:
    made = []
    for name, content in array_files().items():
        made.append(place / Path(name).name)
        made[-1].write_bytes(change(name, content))
    return made


@pytest.mark.parametrize(
    ("ending", "old", "new", "words"),
    [
        ("A.tsv", b"pixel_x", b"px", "lacks the columns .'pixel_x'"),
        ("A.tsv", b"x\ty", b"\xff\xfe", "cannot be read as a table"),
        ("A.tsv.gz", b"\x1f\x8b", b"no", "cannot be read as a table"),
        ("A.tsv", b"\t1\n", b"\t0\n", "only 0 spots stand in both"),
    ],
)
def test_tables_of_another_kind_are_refused(ending, old, new, words, tmp_path):
    files = files_of(tmp_path, lambda name, content: content.replace(old, new) if name.endswith(ending) else content)
    with pytest.raises(SectionError, match=words):
        write_st_array(tmp_path / "out", *files)
    assert not (tmp_path / "out").exists()


def test_a_mirrored_table_is_refused(tmp_path):
    slide, counts, spots = files_of(tmp_path)
    lines = [line.split("\t") for line in spots.read_text().splitlines()]
    spots.write_text(
        "\n".join(
            "\t".join([*line[:4], str(1400 - float(line[4])) if i else line[4], *line[5:]])
            for i, line in enumerate(lines)
        )
    )
    with pytest.raises(SectionError, match="mirrored or on its side"):
        write_st_array(tmp_path / "out", slide, counts, spots)


@pytest.mark.slow
def test_the_published_b4_is_the_section_that_was_converted_by_hand(shared_data, tmp_path):
    by_hand, source = shared_data / "her2st_B4_spaceranger1", tmp_path / "source"
    source.mkdir()
    for file in (*(by_hand / "original").iterdir(), by_hand / "B4_image.jpg"):
        (source / file.name.replace("B4_image", "BT10737_D2_HE")).write_bytes(file.read_bytes())
    fetch_section(known_section("her2st-b4"), source_folder=source, offline=True)
    found, expected = open_section("her2st-b4"), open_section(by_hand, fullres=by_hand / "B4_image.jpg")
    at = [expected.spots.ids.tolist().index(spot) for spot in found.spots.ids.tolist()]
    assert len(found.spots) == len(expected.spots) == 283
    assert (found.spots.counts != expected.spots.counts[at]).nnz == 0
    assert found.spots.genes.symbols.tolist() == expected.spots.genes.symbols.tolist()
    np.testing.assert_allclose(found.spots.yx, expected.spots.yx[at], atol=0.51)  # which rounded to whole pixels
    assert found.calibration.mpp == pytest.approx(expected.calibration.mpp, rel=5e-4)
