import json
import os

import numpy as np
import pytest
import torch
import yaml
from checkpoints import plain_transformer, randomised
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from storage_trees import TREES, content, plant

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.model.foreign.convert import MPP_CANDIDATES, convert, write_safetensors
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.foreign.keys import Stacked, from_native
from napari_stmdit.model.zoo import MissingComponentError
from napari_stmdit.storage.fingerprint import of_file

SIZES = {
    "in_channels": 16,
    "out_channels": 32,
    "morphology_dim": 1536,
    "expression_dim": 256,
    "sample_size": 8,
}
SETTINGS = {
    "model": {"input_size": 8, "num_heads": 2, "pe_interpolation": 0.5},
    "diffusion": {"objective": "ddpm", "beta_schedule": "linear", "beta_start": 0.0002, "beta_end": 0.01, "steps": 500},
    "vae": {"scale_factor": 1.5305, "shift_factor": 0.0609},
}


@pytest.fixture
def net():
    return plain_transformer(**SIZES)


@pytest.fixture
def foreign(tmp_path, net):
    folder = tmp_path / "foreign"
    folder.mkdir()
    torch.save({"ema": from_native(net.state_dict(), "original")}, folder / "model.pt")
    (folder / "training_config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def vae_folder(tmp_path):
    """A VAE of the shape of Stable Diffusion 3.5's, in small."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    randomised(vae).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def forward(net):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 16, 8, 8), (1, 1536), (1, 256)]
    latents, morphology, expression = (torch.randn(shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        return net(latents, torch.tensor([321.5]), morphology, expression)


@pytest.mark.parametrize("naming", ["original", "diffusers", "native"])
def test_what_was_converted_computes_the_same(tmp_path, net, naming):
    save_file(from_native(net.state_dict(), naming), tmp_path / "weights.safetensors")
    made = convert(tmp_path / "weights.safetensors", tmp_path / "ours", patch_mpp=0.5, config=SETTINGS)
    loaded = load_transformer(made.path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    torch.testing.assert_close(forward(loaded), forward(net))
    assert made.card.patch_px == 64 and made.card.patch_mpp == 0.5
    assert not list(tmp_path.glob(".*"))


GOLDEN = ("stmdit_tiny_adaln", "stmdit_tiny_xattn", "stmdit_tiny_both", "stmdit_tiny_xattn_pma")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_checkpoints_convert(golden, tmp_path, name):
    made = convert(golden / f"{name}.safetensors", tmp_path / name, patch_mpp=0.2148)
    io = load_file(golden / f"{name}_io.safetensors")
    net = load_transformer(made.path)
    with torch.no_grad():
        given = (io["uni_embedding"], io["ge_embedding"])
        output = net(io["latents"], io["timesteps"], *given, expression_keep=io.get("ge_keep"))
    torch.testing.assert_close(output, io["out_mg"], rtol=0, atol=2e-5)
    index = json.loads((made.path / "model_index.json").read_text())
    assert index["expression_encoder"][1] == "CancerFoundationEncoder"
    config = json.loads((made.path / "expression_encoder" / "config.json").read_text())
    assert config["output"] == ("tokens" if name.endswith("pma") else "cls")
    assert made.card.conditions == ("morphology", "expression")


def test_golden_pixcell_has_no_expression(golden, tmp_path):
    made = convert(golden / "pixcell_tiny_diffusers.safetensors", tmp_path / "pixcell", patch_mpp=0.5)
    assert made.card.conditions == ("morphology",)
    assert not (made.path / "expression_encoder").exists()
    found = inspect_checkpoint(made.path)
    assert found.kind == "checkpoint" and found.objective == "epsilon" and found.patch_px == 256
    text = " ".join(found.missing)
    assert "stmdit download uni2-h" in text and "stmdit download sd3.5-vae" in text and "CC-BY-NC-ND" in text
    assert any("PixCell's (linear, 0.0001 to 0.02" in note for note in made.notes)


def test_the_scale_of_a_patch_is_asked_for(foreign, tmp_path):
    for wrong in (None, 0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(CheckpointError, match="64 px patches are not in its files.*--patch-mpp") as caught:
            convert(foreign, tmp_path / "ours", patch_mpp=wrong)
        assert all(f"{mpp:g}: " in str(caught.value) for mpp in MPP_CANDIDATES)
    assert not (tmp_path / "ours").exists()


def test_the_schedule_is_the_checkpoint_s_own(foreign, tmp_path):
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5)
    scheduler = load_component(read_folder(made.path), "scheduler")
    assert type(scheduler).__name__ == "DPMSolverMultistepScheduler"
    expected = {"beta_start": 0.0002, "beta_end": 0.01, "num_train_timesteps": 500, "prediction_type": "epsilon"}
    assert {name: scheduler.config[name] for name in expected} == expected
    assert not any("Noise schedule" in note for note in made.notes)


def test_a_flow_checkpoint_gets_a_flow_scheduler_and_a_note(tmp_path):
    net = plain_transformer(**{**SIZES, "out_channels": 16, "learn_sigma": False})
    save_file(from_native(net.state_dict(), "original"), tmp_path / "weights.safetensors")
    settings = {**SETTINGS, "diffusion": {"objective": "flow"}}
    made = convert(tmp_path / "weights.safetensors", tmp_path / "ours", patch_mpp=0.5, config=settings)
    scheduler = load_component(read_folder(made.path), "scheduler")
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert any("convention is not published" in note for note in made.notes)
    with pytest.raises(CheckpointError, match="noise or velocity"):
        convert(tmp_path / "weights.safetensors", tmp_path / "b", patch_mpp=0.5, config={"model": SETTINGS["model"]})


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({"objective": "v_prediction"}, "v_prediction is not supported"),
        ({"objective": "ddpm", "beta_schedule": "sigmoid"}, "'sigmoid' is unknown"),
    ],
)
def test_what_cannot_be_sampled_is_refused(foreign, tmp_path, diffusion, message):
    settings = {**SETTINGS, "diffusion": diffusion}
    with pytest.raises(CheckpointError, match=message):
        convert(foreign, tmp_path / "ours", patch_mpp=0.5, config=settings)
    assert not (tmp_path / "ours").exists()


def test_nothing_is_overwritten(foreign, tmp_path):
    target = tmp_path / "ours"
    target.mkdir()
    convert(foreign, target, patch_mpp=0.5)
    before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match="nothing is overwritten, give a new folder"):
        convert(foreign, target, patch_mpp=0.5)
    assert before == {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}


def test_a_failure_leaves_nothing_behind(foreign, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_stmdit.model.foreign.convert.write_safetensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(foreign, tmp_path / "ours", patch_mpp=0.5)
    assert {file.name for file in tmp_path.iterdir()} == {"foreign"}


def test_a_component_kept_elsewhere_is_found_checked_and_never_copied(foreign, tmp_path, vae_folder):
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5, sources={"vae": vae_folder})
    assert not list((made.path / "vae").glob("*.safetensors"))
    folder = read_folder(made.path)
    vae = load_component(folder, "vae")
    assert vae.config.scaling_factor == 1.5305 and vae.config.latent_channels == 16
    config = json.loads((vae_folder / "config.json").read_text())
    (vae_folder / "config.json").write_text(json.dumps({**config, "shift_factor": 0.0}))
    with pytest.raises(CheckpointError, match=r"shift_factor 0.0, but the transformer was trained with 0.0609"):
        load_component(folder, "vae")


def test_a_stated_hash_is_checked(foreign, tmp_path, vae_folder):
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5, sources={"vae": vae_folder})
    weights = vae_folder / "diffusion_pytorch_model.safetensors"
    path = made.path / "vae" / "reference.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({**stated, "sha256": {weights.name: of_file(weights)}}))
    load_component(read_folder(made.path), "vae")
    path.write_text(json.dumps({**stated, "sha256": {weights.name: "0" * 64}}))
    with pytest.raises(CheckpointError, match="was expected: it is damaged or another version"):
        load_component(read_folder(made.path), "vae")


def test_what_is_missing_says_where_it_is_to_be_had(foreign, tmp_path):
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5)
    with pytest.raises(MissingComponentError) as caught:
        load_component(read_folder(made.path), "vae")
    text = str(caught.value)
    assert "diffusion_pytorch_model.safetensors of stabilityai/stable-diffusion-3.5-large/vae" in text
    assert "Stability AI Community License" in text and "stmdit download sd3.5-vae" in text
    assert caught.value.component == "vae" and caught.value.reference.gated


def test_a_downloaded_component_is_found(foreign, tmp_path, vae_folder, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5)
    place = tmp_path / "home" / "downloads" / "sd3.5-vae"
    place.parent.mkdir(parents=True)
    os.rename(vae_folder, place)
    assert load_component(read_folder(made.path), "vae").config.latent_channels == 16
    assert not any(line.startswith("vae") for line in inspect_checkpoint(made.path).missing)


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "a/../../b", "..\\x"])
def test_a_reference_never_leads_out_of_its_folder(foreign, tmp_path, vae_folder, bad):
    made = convert(foreign, tmp_path / "ours", patch_mpp=0.5, sources={"vae": vae_folder})
    path = made.path / "vae" / "reference.json"
    stated = json.loads(path.read_text())
    for change in ({"files": [bad]}, {"subfolder": bad}):
        path.write_text(json.dumps({**stated, **change}))
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            load_component(read_folder(made.path), "vae")


def test_a_local_folder_must_hold_the_component(foreign, tmp_path, vae_folder):
    (vae_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing: config.json"):
        convert(foreign, tmp_path / "ours", patch_mpp=0.5, sources={"vae": vae_folder})
    with pytest.raises(CheckpointError, match="found the weights none"):
        convert(foreign, tmp_path / "ours", patch_mpp=0.5, sources={"morphology_encoder": tmp_path / "nowhere"})


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_the_stream_writes_what_safetensors_reads(tmp_path, kind):
    parts = (torch.randn(3, 4).to(kind), torch.randn(2, 4).to(kind))
    transposed = torch.randn(4, 3).to(kind).T
    tensors = {"stacked": Stacked(parts), "view": Stacked((transposed,)), "null": Stacked((torch.randn(5).to(kind),))}
    write_safetensors(tmp_path / "w.safetensors", tensors, {"stacked": (5, 4), "view": (3, 4), "null": (1, 5)})
    found = load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["stacked"], torch.cat(parts)) and torch.equal(found["view"], transposed)
    assert found["null"].shape == (1, 5) and found["null"].dtype == kind
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_stream_refuses_other_types(tmp_path):
    mixed = Stacked((torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.float16)))
    for odd in (mixed, Stacked((torch.zeros(2, dtype=torch.int64),))):
        with pytest.raises(CheckpointError, match="floating-point numbers of one type"):
            write_safetensors(tmp_path / "w.safetensors", {"odd": odd}, {"odd": odd.shape})
    assert not list(tmp_path.iterdir())


def test_half_precision_stays_half(tmp_path, net):
    tensors = {name: tensor.half() for name, tensor in from_native(net.state_dict(), "diffusers").items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    made = convert(tmp_path / "weights.safetensors", tmp_path / "ours", patch_mpp=0.5, config=SETTINGS)
    written = load_file(made.path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert np.isclose(sum(t.nbytes for t in written.values()), sum(t.nbytes for t in tensors.values()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_whatever_is_in_the_way_of_a_conversion_stays_as_it_is(tree, foreign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("way")
    (folder / "elsewhere").mkdir()
    plant(folder / "out", tree)
    before = content(folder)
    try:
        convert(foreign, folder / "out", patch_mpp=0.5)
    except CheckpointError:
        assert tree != {} and content(folder) == before
    else:
        assert tree == {}
