from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from napari_stmdit.errors import RequestError
from napari_stmdit.training.config import FolderSource, load_config
from napari_stmdit.training.parallel import choose_compute


def test_paths_are_taken_from_the_config_or_from_the_options(tiny_config, tmp_path):
    path = tiny_config(root="data", export="ready")
    config = load_config(path)
    assert (
        config.root == tmp_path / "data" and config.output == tmp_path / "run" and config.export == tmp_path / "ready"
    )
    assert load_config(path, root=tmp_path / "x", output=tmp_path / "y").output == tmp_path / "y"


def test_every_fault_is_named_with_its_place(tiny_config):
    with pytest.raises(RequestError) as caught:
        load_config(tiny_config(patch_px=-1, diffusion={"steps": 0}, unknown=3))
    assert {place for place, _ in caught.value.faults} == {"patch_px", "diffusion.steps", "unknown"}


@pytest.mark.parametrize(("products", "precision"), [(True, "bf16"), (False, "no")])
def test_a_cpu_trains_in_bfloat16_where_its_hardware_multiplies_it_alone(tiny_config, monkeypatch, products, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    config = load_config(tiny_config(device="cpu"))
    assert choose_compute(config).precision == precision
    assert choose_compute(config.model_copy(update={"precision": "bf16"})).precision == "bf16"


def test_a_precision_of_no_needs_no_quotes(tiny_config, tmp_path):
    path = tiny_config()
    path.write_text(path.read_text() + "precision: no\n")
    assert load_config(path).precision == "no"


def test_a_section_cannot_be_trained_on_and_held_out(tiny_config):
    with pytest.raises(RequestError, match="both trained on and held out"):
        load_config(tiny_config(held_out=[{"kind": "folder", "name": "tiny", "folder": "elsewhere"}]))


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="is not a file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RequestError, match="is not valid YAML"):
        load_config(tmp_path / "bad.yaml")


def test_the_shipped_config_is_valid_and_never_trains_on_c6():
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")
    assert [s.name for s in config.train] == ["B4", "C2", "C3", "C5"]
    assert [s.name for s in config.held_out] == ["C6"]


def test_a_folder_is_named_as_everywhere_and_the_keys_of_before_are_read():
    now = FolderSource.model_validate({"name": "a", "path": "outs", "fullres": "slide.tif", "exclude": "pen.geojson"})
    assert (
        FolderSource.model_validate(
            {"kind": "folder", "name": "a", "folder": "outs", "image": "slide.tif", "exclude": "pen.geojson"}
        )
        == now
    )
    assert now.absolute("/data").path == Path("/data/outs") and now.absolute("/data").fullres == "slide.tif"
    with pytest.raises(ValidationError, match="folder"):
        FolderSource.model_validate({"name": "a", "path": "outs", "folder": "outs"})
