"""Stores on a server: tables and shapes are fetched, pixels where they are looked at; what keeps them away is one sentence."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from standins import CropModel, card_for
from tiny import TINY_GENES, TINY_MPP
from tiny_fixtures import tiny_checkpoint  # noqa: F401

from napari_stmdit import Request, synthesize
from napari_stmdit.errors import SectionError
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.tissue.open import SectionSource, open_section, synthesis_fault


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and remembers which were asked for."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def list_directory(self, path):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(root, tiny_zarr):
    shutil.copytree(tiny_zarr, root / "tiny.zarr")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch):
    for name in ("STMDIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def chunks_asked():
    return [path for path in Handler.asked if "/images/" in path and "/c/" in path]


def test_a_store_of_a_server_opens_as_the_same_store_here_and_its_slide_waits(address, tiny_zarr):
    Handler.asked.clear()
    section, here = open_section(f"{address}/tiny.zarr"), open_section(tiny_zarr)
    assert not chunks_asked() and not any("/labels/" in path for path in Handler.asked)
    assert section.name == here.name == "tiny" and section.path is None and section.store is None
    assert section.spots.ids.tolist() == here.spots.ids.tolist() and section.calibration.mpp == here.calibration.mpp
    np.testing.assert_array_equal(section.spots.yx, here.spots.yx)
    assert (section.spots.counts != here.spots.counts).nnz == 0 and len(section.spots.genes) == len(TINY_GENES)
    assert section.notes[0].startswith(f"read from {address}/tiny.zarr: tables and shapes whole")
    assert synthesis_fault(section, TINY_MPP) is None
    np.testing.assert_array_equal(section.image.levels[0][:64, :64].compute(), here.image.levels[0][:64, :64].compute())
    assert 0 < len(chunks_asked()) <= 4


def test_a_run_on_it_reads_the_right_pixels(address, tiny_zarr, tmp_path):
    request, model = Request(region=SampleOfSpots(count=2), steps=1), CropModel(card_for(TINY_GENES))
    remote, here = (synthesize(open_section(path), request, model) for path in (f"{address}/tiny.zarr", tiny_zarr))
    np.testing.assert_array_equal(remote.rgba, here.rgba)
    remote.save(tmp_path / "out.zarr")
    assert open_section(tmp_path / "out.zarr").spots.ids.tolist() == here.section.spots.ids.tolist()


def test_the_command_line_takes_the_address(address, tiny_checkpoint, tmp_path):  # noqa: F811
    from typer.testing import CliRunner

    from napari_stmdit.cli import app

    url, output = f"{address}/tiny.zarr", tmp_path / "out.zarr"
    found = CliRunner().invoke(app, ["inspect", url, "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["spots"] == 30
    options = ["--sample", "1", "--steps", "1", "--checkpoint", str(tiny_checkpoint), "--output", str(output), "--json"]
    made = CliRunner().invoke(app, ["synthesize", url, *options])
    assert made.exit_code == 0, made.output
    (result,) = stored_results(open_section(output))
    assert result.provenance["request"]["section"] == url


def test_an_element_is_chosen_by_its_address_and_a_path_of_it_is_still_one(address):
    Handler.asked.clear()
    source = SectionSource.given(f"{address}/tiny.zarr/shapes/spots")
    assert len(source.open().spots) > 0 and source.absolute().path == source.path
    from pathlib import Path

    assert len(open_section(Path(f"{address}/tiny.zarr")).spots) > 0  # which has lost a slash
    with pytest.raises(SectionError, match="shapes/none of the store is no set of Visium spots"):
        open_section(f"{address}/tiny.zarr/shapes/none")


def test_an_old_store_opens_as_well(address, root):
    """In zarr version 2, with metadata consolidated as SpatialData did then."""
    import anndata  # noqa: F401 # writes the table
    import spatialdata
    from spatialdata._io.format import SpatialDataContainerFormatV01

    sdata = spatialdata.read_zarr(root / "tiny.zarr")
    sdata.write(root / "old.zarr", sdata_formats=SpatialDataContainerFormatV01())
    assert (root / "old.zarr" / ".zgroup").is_file()
    section, here = open_section(f"{address}/old.zarr"), open_section(root / "old.zarr")
    assert (section.spots.counts != here.spots.counts).nnz == 0
    np.testing.assert_array_equal(section.image.levels[0].compute(), here.image.levels[0].compute())


def change_root(root, name, change):
    path = shutil.copytree(root / "tiny.zarr", root / name, dirs_exist_ok=True)
    file = path / "zarr.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    return name


def without_list(content):
    return {k: v for k, v in content.items() if k != "consolidated_metadata"}


def null_list(content):
    return {**content, "consolidated_metadata": None}


def outside(content):
    nodes = content["consolidated_metadata"]["metadata"]
    nodes["../../aside"] = nodes["tables"]
    return content


def pickled(content):
    nodes = content["consolidated_metadata"]["metadata"]
    nodes["tables/table/X/data"]["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}]
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_list, "has no consolidated metadata, without which"),
        (null_list, "has no consolidated metadata, without which"),
        (outside, "its metadata name a place outside of it, ../../aside"),
        (pickled, "pickled, and reading it could run code"),
        (lambda content: {**content, "attributes": {}}, "is a zarr store, but no SpatialData"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_sentence(address, root, change, said):
    name = change_root(root, f"{change.__name__.strip('<>')}.zarr", change)
    with pytest.raises(SectionError, match=said) as raised:
        open_section(f"{address}/{name}")
    assert f"{address}/{name}" in str(raised.value) and "stmdit-remote" not in str(raised.value)


def test_what_is_not_there_or_no_store_is_one_sentence(address):
    with pytest.raises(SectionError, match="there is no zarr store at http"):
        open_section(f"{address}/none.zarr")
    with pytest.raises(SectionError, match="only SpatialData stores .* download it"):
        open_section(f"{address}/slide.tif")
    with pytest.raises(SectionError, match=r"http://127.0.0.1:9/x.zarr cannot be reached: .*Check the address"):
        open_section("http://127.0.0.1:9/x.zarr")


def test_a_chunk_that_the_server_fails_to_give_is_no_blank_table(address, monkeypatch):
    get = Handler.do_GET

    def failing(self):
        if "/tables/" in self.path and "/c/" in self.path:
            self.send_error(503)
        else:
            get(self)

    monkeypatch.setattr(Handler, "do_GET", failing)
    with pytest.raises(SectionError, match="tiny.zarr cannot be reached: 503"):
        open_section(f"{address}/tiny.zarr")


def test_offline_mode_and_a_missing_package_are_told(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SectionError, match="s3://bucket/x.zarr cannot be read without the package s3fs: pip install"):
        open_section("s3://bucket/x.zarr")
    monkeypatch.setenv("STMDIT_OFFLINE", "1")
    Handler.asked.clear()
    with pytest.raises(SectionError, match="offline mode"):
        open_section(f"{address}/tiny.zarr")
    assert not Handler.asked
