"""Section 7 of the numeric fixtures: what training loops wrap around weights, and what must be refused."""

import pytest
import torch
from safetensors.torch import load_file

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.checkpoint import open_weights
from napari_stmdit.model.foreign.inspect import inspect_checkpoint

CLOSE = {"rtol": 0, "atol": 2e-5}
AVERAGED = (
    "bare",
    "state_dict",
    "state_dict_and_ema",
    "ema_module_prefix",
    "compiled_ddp_prefix",
    "lightning_model_prefix",
    "shadow_params",
    "numpy_scalars",
)
REFUSED = {
    "argparse_namespace": "argparse.Namespace",
    "malicious_torch_zip": "io.open",
    "malicious_raw_pickle": "io.open",
    "malicious_yaml": "builtins.open",
}


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_weights_are_found(golden, name):
    folder = golden / "containers"
    expected = load_file(folder / "expected_io.safetensors")
    net = load_transformer(folder / name)
    with torch.no_grad():
        output = net(expected["latents"], expected["timesteps"], expected["uni_embedding"])
        null = net(expected["latents"], expected["timesteps"])
    torch.testing.assert_close(output[:, :16, ::2, ::2], expected["out_eps_stride2_ema"], **CLOSE)
    if name != "shadow_params":  # its null embedding can only come from the raw weights
        torch.testing.assert_close(null[:, :16, ::2, ::2], expected["out_null_eps_stride2_ema"], **CLOSE)


def test_a_buffer_taken_from_the_raw_weights_is_reported(golden):
    notes = open_weights(golden / "containers" / "shadow_params").notes
    assert any("y_embedder.y_embedding came from the raw weights" in note for note in notes)


def test_without_learned_sigma_it_is_a_flow(golden):
    folder = golden / "containers"
    expected = load_file(folder / "expected_io.safetensors")
    net = load_transformer(folder / "no_learned_sigma")
    with torch.no_grad():
        output = net(expected["latents"], expected["timesteps"], expected["uni_embedding"])
    torch.testing.assert_close(output[:, :, ::2, ::2], expected["out_stride2_no_sigma"], **CLOSE)
    found = inspect_checkpoint(folder / "no_learned_sigma")
    assert found.objective == "flow" and found.learned_sigma is False


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("read", [load_transformer, inspect_checkpoint])
def test_code_is_named_and_never_run(golden, tmp_path, monkeypatch, name, read):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        read(golden / "containers" / name)
    assert not list(tmp_path.iterdir())
