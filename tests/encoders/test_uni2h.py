import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from napari_stmdit.encoders.uni2h import UNI2H, Uni2hEncoder, VisionTransformer, ViTSizes, preprocess
from napari_stmdit.errors import CheckpointError, SynthesisError

SIZES = ViTSizes(depth=2, width=24, heads=2, hidden=32, registers=3, patch=8, grid=4)
CONFIG = {"num_heads": 2, "tile_px": 40}


def random_tensors(sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VisionTransformer(sizes).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.fixture
def tensors():
    return random_tensors()


@pytest.fixture
def encoder(tensors):
    return Uni2hEncoder.from_tensors(tensors, CONFIG)


def patches(n, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# ---------------------------------------------------------------- against the reference


@pytest.fixture
def reference(golden):
    config = json.loads((golden / "uni2h_tiny_config.json").read_text())
    image = np.asarray(Image.open(golden / "uni2h_tiny_image_256.png").convert("RGB"))
    encoder = Uni2hEncoder.from_tensors(load_file(golden / "uni2h_tiny.safetensors"), config)
    return encoder, image, load_file(golden / "uni2h_tiny_io.safetensors")


def test_preprocessing_is_the_published_one(reference):
    _, image, io = reference
    images = preprocess([image], 224)
    assert images.shape == (1, 3, 224, 224) and images.dtype == torch.float32
    torch.testing.assert_close(images[:, :, 96:128], io["normalised_rows_96_128"], rtol=0, atol=1e-6)
    torch.testing.assert_close(images.double().mean((0, 2, 3)), io["normalised_mean"], rtol=0, atol=1e-6)
    torch.testing.assert_close(images.double().std((0, 2, 3), correction=0), io["normalised_std"], rtol=0, atol=1e-4)


def test_a_resized_tile_is_the_published_one_to_the_grey_level(golden, reference):
    _, image, _ = reference
    published = np.asarray(Image.open(golden / "uni2h_tiny_image_224.png").convert("RGB"))
    torch.testing.assert_close(preprocess([image], 224), preprocess([published], 224), rtol=0, atol=0)


def test_the_forward_pass_is_the_published_one(reference):
    encoder, image, io = reference
    found = encoder.encode(np.stack([image, image[:, ::-1]]))
    np.testing.assert_allclose(found[:, 0], io["output"].numpy(), rtol=0, atol=5e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01  # the fixture can tell the two images apart
    with torch.inference_mode():
        tokens = encoder.network.tokens(preprocess([image], 224))
    torch.testing.assert_close(tokens[:, :9], io["prefix_tokens_after_norm"], rtol=0, atol=5e-5)


def test_the_sizes_of_uni2h_are_the_published_ones():
    with torch.device("meta"):
        network = VisionTransformer(UNI2H)
    state = network.state_dict()
    assert len(state) == 343 and sum(value.numel() for value in state.values()) == 681_394_176
    assert state["blocks.23.mlp.fc1.weight"].shape == (8192, 1536) and UNI2H.image_px == 224


# ---------------------------------------------------------------- patches and tiles


@pytest.mark.parametrize(("along", "tokens"), [(1, 1), (2, 4), (4, 16)])
def test_tiles_are_encoded_row_by_row(encoder, along, tokens):
    given = patches(2, 40 * along)
    found = encoder.encode(given)
    assert found.shape == (2, tokens, 24) and found.dtype == np.float32
    for row in range(along):
        for column in range(along):
            tile = given[:, 40 * row : 40 * (row + 1), 40 * column : 40 * (column + 1)]
            np.testing.assert_allclose(encoder.encode(tile)[:, 0], found[:, row * along + column], atol=1e-5)


def test_the_default_tile_is_256_px(tensors):
    encoder = Uni2hEncoder.from_tensors(tensors, {"num_heads": 2})
    assert encoder.encode(patches(1, 512)).shape == (1, 4, 24)


def test_the_result_does_not_depend_on_the_batch(encoder):
    given = patches(5, 80)
    whole = encoder.encode(given)
    sizes = []
    encoder.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    encoder.batch_tiles = 3
    np.testing.assert_allclose(encoder.encode(given), whole, atol=1e-5)
    assert sizes == [3] * 6 + [2]
    np.testing.assert_allclose(encoder.encode(given[3:4]), whole[3:4], atol=1e-5)
    assert encoder.encode(given[:0]).shape == (0, 4, 24)


def test_embeddings_are_not_normalised(encoder):
    lengths = np.linalg.norm(encoder.encode(patches(3, 40)), axis=-1)
    assert np.abs(lengths - 1).min() > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (patches(1, 60), "60 px wide, which is no multiple of the 40 px tiles"),
        (patches(1, 0), "0 px wide"),
        (patches(1, 40)[:, :, :20], r"expected|expects \(n, side, side, 3\) uint8"),
        (patches(1, 40)[0], r"expects \(n, side, side, 3\) uint8"),
        (patches(1, 40).astype(np.float32), "dtype float32"),
        (patches(1, 40)[..., :2], r"shape \(1, 40, 40, 2\)"),
    ],
)
def test_other_patches_are_refused(encoder, given, message):
    with pytest.raises(SynthesisError, match=message):
        encoder.encode(given)


def test_precision_is_a_choice_and_float32_comes_out(encoder):
    given = patches(2, 40)
    exact = encoder.encode(given)
    assert encoder.to("cpu", torch.bfloat16) is encoder and encoder.dtype == torch.bfloat16
    rough = encoder.encode(given)
    assert rough.dtype == np.float32
    difference = np.abs(rough - exact)
    assert 0 < difference.max() < 0.2


# ---------------------------------------------------------------- weights


def test_weights_are_used_without_a_copy(tensors):
    encoder = Uni2hEncoder.from_tensors(tensors, CONFIG)
    for name, parameter in encoder.network.named_parameters():
        assert parameter.data_ptr() == tensors[name].data_ptr() and not parameter.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": {f"module.{name}": value for name, value in tensors.items()}},
        lambda tensors: {f"model.module.{name}": value for name, value in tensors.items()},
        lambda tensors: {name: value.double() for name, value in tensors.items()},
    ],
)
def test_wrappers_are_taken_off(tensors, encoder, wrap):
    found = Uni2hEncoder.from_tensors(wrap(tensors), CONFIG)
    np.testing.assert_array_equal(found.encode(patches(1, 40)), encoder.encode(patches(1, 40)))
    assert found.ignored in ((), ("epoch",)) and found.dtype == torch.float32


def test_a_classifier_is_ignored_and_listed(tensors, encoder):
    more = {**tensors, "head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}
    found = Uni2hEncoder.from_tensors(more, CONFIG)
    assert found.ignored == ("head.weight", "head.bias")
    np.testing.assert_array_equal(found.encode(patches(1, 40)), encoder.encode(patches(1, 40)))


def test_every_misfit_is_in_one_table(tensors):
    del tensors["blocks.1.ls1.gamma"]
    tensors["blocks.0.attn.q_norm.weight"] = torch.ones(12)
    tensors["cls_token"] = torch.zeros(1, 1, 25)
    tensors["pos_embed"] = torch.zeros(1, 15, 24)
    tensors["norm.bias"][3] = float("nan")
    tensors["norm.weight"] = np.ones(24, np.float32)
    tensors["epoch"] = 7
    with pytest.raises(CheckpointError) as caught:
        Uni2hEncoder.from_tensors(tensors, CONFIG)
    lines = {line.split()[0]: line for line in str(caught.value).splitlines()[1:]}
    assert "missing" in lines["blocks.1.ls1.gamma"] and "(24,)" in lines["blocks.1.ls1.gamma"]
    assert "not part of this network" in lines["blocks.0.attn.q_norm.weight"]
    assert "expected (1, 1, 24)" in lines["cls_token"] and "(1, 1, 25)" in lines["cls_token"]
    assert "expected (1, 16, 24)" in lines["pos_embed"]
    assert all("no tensor of finite numbers" in lines[name] for name in ("norm.bias", "norm.weight"))
    assert "not part" in lines["epoch"]
    assert list(lines)[-1] == "blocks.1.ls1.gamma"  # what is there comes first
    assert len(lines) == 7 and "7 tensors" in str(caught.value)


def test_an_absurd_block_number_builds_no_blocks(tensors):
    tensors["blocks.900000000.ls1.gamma"] = torch.ones(24)
    with pytest.raises(CheckpointError, match=r"blocks\.900000000\.ls1\.gamma .*not part"):
        Uni2hEncoder.from_tensors(tensors, CONFIG)


def test_a_config_that_contradicts_the_weights_is_refused(tensors):
    with pytest.raises(CheckpointError, match=r"reg_tokens .*config.json says 8, the weights 3"):
        Uni2hEncoder.from_tensors(tensors, {**CONFIG, "reg_tokens": 8})


def test_heads_are_never_guessed(tensors):
    with pytest.raises(CheckpointError, match="number of attention heads is unknown. The weights are 24 wide"):
        Uni2hEncoder.from_tensors(tensors)
    with pytest.raises(CheckpointError, match="24 is no multiple of num_heads = 7"):
        Uni2hEncoder.from_tensors(tensors, {"num_heads": 7})
    with pytest.raises(CheckpointError, match="num_heads is '2', expected a whole number"):
        Uni2hEncoder.from_tensors(tensors, {"num_heads": "2"})
    narrow = ViTSizes(depth=1, width=1536, heads=24, hidden=8, registers=1, patch=2, grid=2)
    assert Uni2hEncoder.from_tensors(random_tensors(narrow)).network.sizes == narrow


# ---------------------------------------------------------------- folders


def test_folder_round_trip(encoder, tmp_path):
    encoder.save(tmp_path)
    found = Uni2hEncoder.load(tmp_path)
    np.testing.assert_array_equal(found.encode(patches(2, 80)), encoder.encode(patches(2, 80)))
    assert found.network.sizes == SIZES and found.tile_px == 40
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "Uni2hEncoder"


def test_weights_from_elsewhere_need_no_file_in_the_folder(encoder, tensors, tmp_path):
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing\..* MahmoodLab/UNI2-h"):
        Uni2hEncoder.load(tmp_path)
    found = Uni2hEncoder.load(tmp_path, {"state_dict": tensors})
    np.testing.assert_array_equal(found.encode(patches(1, 40)), encoder.encode(patches(1, 40)))
    del tensors["norm.weight"]
    with pytest.raises(CheckpointError, match=r"norm.weight .*missing"):
        Uni2hEncoder.load(tmp_path, tensors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no readable morphology encoder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds list, expected a mapping"),
        (lambda folder: (folder / "config.json").write_text('{"num_heads": 2, "tile_px": 0}'), "tile_px is 0"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "damaged or no safetensors"),
        (
            lambda folder: save_file({"x": torch.ones(1)}, folder / "model.safetensors"),
            r"no tensor is named blocks\.\*\. They hold:\n  x  \(1,\)",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(encoder, tmp_path, damage, message):
    encoder.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Uni2hEncoder.load(tmp_path)
