import json
import sys

import numpy as np
import pytest
import torch
from evaluation_study import CARD, Described
from safetensors.torch import save_file

from napari_stmdit.encoders.uni2h import VisionTransformer, ViTSizes
from napari_stmdit.errors import RequestError, SectionError
from napari_stmdit.evaluation.spaces import TorchSpace, open_spaces

PATCHES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_a_checkpoints_own_encoder_is_named_after_it(tiny_model):
    encoder, random = open_spaces(("encoder", "random"), tiny_model)
    assert encoder.name.startswith("encoder of tiny (") and random.name == "random convolutions, seed 123"
    assert encoder.features(PATCHES).shape == (5, 38) and random.features(PATCHES).shape == (5, 96)
    (other,) = open_spaces(("encoder",), Described(CARD))
    np.testing.assert_allclose(other.features(PATCHES)[:, :3], PATCHES.mean(axis=(1, 2)), rtol=1e-5)


def test_embeddings_computed_elsewhere_cannot_describe_a_synthetic_patch():
    class Precomputed(Described):
        def encode_morphology(self, patches, spots=()):
            raise SectionError("embeddings are known for spots alone")

    (space,) = open_spaces(("encoder",), Precomputed(CARD))
    with pytest.raises(SectionError, match="choose other spaces"):
        space.features(PATCHES)


def test_every_space_that_cannot_be_opened_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    names = ("random", "random", "inception", "encoder", "timm:resnet18=x.safetensors", f"uni2h={tmp_path / 'no.bin'}")
    with pytest.raises(RequestError) as caught:
        open_spaces(names, None)
    text = str(caught.value)
    for words in (
        "given twice",
        "'inception': it is unknown",
        "no checkpoint is at hand",
        "[metrics]",
        "there is no file",
    ):
        assert words in text
    with pytest.raises(RequestError, match="none was given"):
        open_spaces((), None)


def test_uni2h_reads_a_network_of_its_kind(tmp_path):
    torch.manual_seed(0)
    network = VisionTransformer(ViTSizes(depth=1, width=16, heads=2, hidden=16, registers=1, patch=8, grid=4))
    weights = {name: value.contiguous() + 0.1 for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    config = {"num_heads": 2, "tile_px": 32, "embed_dim": 16, "reg_tokens": 1, "patch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (space,) = open_spaces((f"uni2h={tmp_path / 'model.safetensors'}",), None)
    assert space.name == "UNI2-h, model.safetensors" and space.features(PATCHES).shape == (5, 16)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RequestError, match="uni2h"):
        open_spaces((f"uni2h={tmp_path / 'model.safetensors'}",), None)


def test_a_torch_network_of_the_users_own_is_a_space():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.9))
    space = TorchSpace(network, "mine", image_px=32)
    found = space.features(PATCHES)
    assert found.shape == (5, 4) and np.array_equal(found, space.features(PATCHES))  # eval mode: no dropout
