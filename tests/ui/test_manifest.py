"""The manifest: valid, and every name in it is there, without Qt."""

import ast
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from npe2 import PluginManifest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.public import public_sections
from napari_stmdit.ui import manifest

YAML = Path(str(files("napari_stmdit").joinpath("napari.yaml")))
COMMANDS = {c["id"]: c["python_name"] for c in yaml.safe_load(YAML.read_text())["contributions"]["commands"]}

RESOLVE = """
import importlib, sys
class NoQt:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("qtpy", "PySide6", "PyQt6", "PyQt5", "superqt", "napari"):
            raise ImportError(name)
sys.meta_path.insert(0, NoQt())
module, name = sys.argv[1].split(":")
assert callable(getattr(importlib.import_module(module), name))
"""


def test_the_manifest_is_valid():
    found = PluginManifest.from_file(YAML)
    assert found.name == "napari-stmdit"
    assert not [w for w in found.contributions.widgets if getattr(w, "default_dock_area", None) not in (None, "right")]
    assert "default_dock_area" not in YAML.read_text()  # npe2 0.8 refuses the whole manifest for it


def test_the_sample_menu_has_every_public_section_under_its_title():
    every = yaml.safe_load(YAML.read_text())["contributions"]["sample_data"]
    assert [sample["key"] for sample in every[:2]] == ["synthetic_breast", "synthetic_colon"]
    samples = every[2:]
    listed = [(entry.name, entry.title) for entry in public_sections()]
    assert [(sample["key"], sample["display_name"]) for sample in samples] == listed
    for sample in samples:
        assert sample["uri"] == f"stmdit://{sample['key']}" and sample["reader_plugin"] == "napari-stmdit"
        assert manifest.get_reader(sample["uri"]) is manifest.read_public


@pytest.mark.parametrize("opened", [manifest.sample_section, manifest.sample_colon])
def test_a_bundled_section_opens_from_the_sample_menu(opened):
    layers = opened()
    image = next(layer for layer in layers if layer[2] == "image")
    assert image[1]["metadata"] and [kind for _, _, kind in layers].count("points") == 1


def test_without_a_window_a_public_section_is_read_at_once_or_said_to_be_missing(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path))
    with pytest.raises(SectionError, match="stmdit download her2st-b4"):
        manifest.read_public(["stmdit://her2st-b4"])
    shutil.copytree(tiny_folder, tmp_path / "sections" / "her2st-b4")
    assert [kind for _, _, kind in manifest.read_public(["stmdit://her2st-b4"])][0] == "image"


def test_the_top_level_name_is_a_link_to_the_file_in_the_package():
    link = Path(__file__).resolve().parents[2] / "napari.yaml"
    if not link.exists():
        pytest.skip("no checkout")
    assert link.read_text() == YAML.read_text()


@pytest.mark.parametrize("python_name", [n for n in COMMANDS.values() if ".widgets." not in n])
def test_commands_resolve_without_qt(python_name):
    subprocess.run([sys.executable, "-c", RESOLVE, python_name], check=True)


@pytest.mark.parametrize("python_name", [n for n in COMMANDS.values() if ".widgets." in n])
def test_the_widget_is_a_class_that_takes_the_viewer_by_name(python_name):
    module, name = python_name.split(":")
    tree = ast.parse(Path(find_spec(module).origin).read_text())
    found = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    init = next(n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert [a.arg for a in init.args.args] == ["self", "napari_viewer"]


def test_the_reader_is_polite(tmp_path, tiny_folder, tiny_zarr):
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "zarr.json").write_text(json.dumps({"attributes": {"ome": {"multiscales": []}}}))
    old = tmp_path / "old.zarr"
    old.mkdir()
    (old / ".zattrs").write_text("{not json")
    for path in (tmp_path, other, old, tmp_path / "none.zarr"):
        assert manifest.get_reader(str(path)) is None
    assert manifest.get_reader([str(tiny_folder), str(tiny_zarr)]) is None
    assert manifest.get_reader(str(tiny_folder)) is not None
    assert manifest.get_reader([str(tiny_zarr)]) is not None


@pytest.mark.parametrize("kind", ["tiny_folder", "tiny_zarr"])
def test_what_the_reader_returns_can_be_shown(kind, request):
    from napari.components import ViewerModel

    path = str(request.getfixturevalue(kind))
    viewer = ViewerModel()
    for data, state, layer_type in manifest.get_reader(path)(path):
        getattr(viewer, f"add_{layer_type}")(data, **state)
    assert [layer.metadata["stmdit"]["role"] for layer in viewer.layers] == ["slide", "spots"]
    slide = viewer.layers[0]
    shapes = [level.shape[0] for level in slide.data] if slide.multiscale else [slide.data.shape[0]]
    assert shapes == [level.shape[0] for level in open_section(path).image.levels]
    assert len(shapes) == 2


def test_a_store_with_results_shows_them_where_they_were_made(tmp_path, tiny_section, crop_model):
    from napari_stmdit.intent import Request
    from napari_stmdit.regions import SpotList
    from napari_stmdit.synthesis.session import synthesize
    from napari_stmdit.ui.layers import make, result_layer

    result = synthesize(tiny_section, Request(region=SpotList(ids=("SPOT03-1", "SPOT04-1"))), crop_model)
    result.save(tmp_path / "out.zarr")
    tuples = manifest.read_section(str(tmp_path / "out.zarr"))
    assert [state["metadata"]["stmdit"]["role"] for _, state, _ in tuples] == ["slide", "stored", "spots"]
    stored = make(tuples[1])
    made = make(result_layer(result.rgba, result.plan.frame, result.section, "synthetic", {}))
    np.testing.assert_array_equal(np.asarray(stored.data), made.data)
    corners = np.array([(0, 0), made.data.shape[:2]])
    for corner in corners:
        shift = np.subtract(stored.data_to_world(corner), made.data_to_world(corner)) / tiny_section.calibration.mpp
        assert np.abs(shift).max() < 0.01
    assert stored.metadata["stmdit"]["provenance"]["synthetic"] is True
