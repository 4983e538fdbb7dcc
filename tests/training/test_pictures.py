"""Images without expression: what is drawn of them, and an autoencoder that learns from them."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from training_settings import TINY

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.errors import CheckpointError, RequestError
from napari_stmdit.evaluation.measures import stain_density
from napari_stmdit.intent import Guidance
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.training.config import AugmentationSettings, load_config
from napari_stmdit.training.diffusion import build_transformer
from napari_stmdit.training.latents import load_cache
from napari_stmdit.training.pictures import (
    PictureSampler,
    SlidePool,
    cut_at_scale,
    held_out_crops,
    open_pictures,
    vary_stains,
)
from napari_stmdit.training.start import apply_start
from napari_stmdit.training.state import load_state
from napari_stmdit.training.train import run_stage, train
from napari_stmdit.types import GuidanceScales, Sampling

STILL = AugmentationSettings(stain=0, geometry=False)


def noise():
    """Noise, which no crop takes for glass: (400, 600, 3); its left half has no blue, its right half no red."""
    pixels = np.random.default_rng(0).integers(40, 216, (400, 600, 3), dtype=np.uint8)
    pixels[:, :300, 2] = 0
    pixels[:, 300:, 0] = 0
    return pixels


@pytest.fixture
def textured():
    return noise()


@pytest.fixture
def pictures(tmp_path):
    return config_in(tmp_path)


def config_in(place):
    """Write an image and slides of tiles; return a function that writes a config on its left half and on two of three slides."""
    textured, tiles = noise(), place / "tiles"
    Image.fromarray(textured).save(place / "slide.png")
    tiles.mkdir()
    lines = ["file,case,mpp"]
    for number, case in enumerate(("one", "one", "two", "left-out")):
        tile = textured[:120, 300:420] * np.array(
            [1, case != "left-out", 1], dtype=np.uint8
        )  # no green in the one left out
        Image.fromarray(tile).save(tiles / f"{number}.png")
        lines.append(f"{number}.png,{case},0.7")
    (place / "tiles.csv").write_text("\n".join(lines) + "\n")
    table = {"kind": "tiles", "table": "tiles.csv", "folder": "tiles", "slide": "case"}
    image = {"kind": "image", "image": "slide.png", "mpp": 0.7}

    def write(**changes):
        content = TINY | {
            "pictures": [
                {**table, "name": "tiles", "without": ["left-out"]},
                {**image, "name": "left", "part": [0, 0, 1, 0.5]},
            ],
            "held_out_pictures": [
                {**table, "name": "other", "only": ["left-out"]},
                {**image, "name": "right", "part": [0, 0.5, 1, 1]},
            ],
        }
        path = place / "pictures.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def test_crops_come_from_what_is_not_held_out_and_only_from_that(pictures):
    config = load_config(pictures(augmentation={"stain": 0, "geometry": False}))
    crops = open_pictures(config).batch(np.random.default_rng(0), 40, 64)
    from_tiles, from_left = (~crops.any(axis=(1, 2))[:, channel] for channel in (0, 2))
    assert crops.shape == (40, 64, 64, 3) and from_tiles.any() and from_left.any()
    assert (from_tiles ^ from_left).all() and crops[..., 1].any(axis=(1, 2)).all()
    held = held_out_crops(config, 5)
    assert {name: crops.shape for name, crops in held.items()} == dict.fromkeys(("other", "right"), (5, 64, 64, 3))
    assert not held["right"][..., 0].any() and not held["other"][..., 1].any()
    np.testing.assert_array_equal(held["right"], held_out_crops(config, 5)["right"])


def test_a_crop_spans_the_microns_asked_for_and_never_enlarges_much(textured):
    ramp = np.repeat(np.arange(400, dtype=np.uint8).astype(np.uint8)[:256, None, None], 256, axis=1).repeat(3, axis=2)
    for low, high, wanted in ((1.0, 1.0, 2.0), (0.1, 0.1, 1 / 1.4)):
        settings = AugmentationSettings(stain=0, geometry=False, mpp=(low, high))
        crop = PictureSampler([SlidePool(ramp, 0.5)], [1.0], settings, 0.5).draw(np.random.default_rng(3), 32).pixels
        step = (float(crop[24, 16, 0]) - float(crop[8, 16, 0])) / 16
        assert step == pytest.approx(wanted, abs=0.1)
    np.testing.assert_array_equal(cut_at_scale(textured, np.array([3.0, 5.0]), 32, 1.0), textured[3:35, 5:37])
    own = PictureSampler([SlidePool(textured, 0.7)], [1.0], STILL, 0.7).draw(np.random.default_rng(0), 64)
    y, x = (own.centre - 32).astype(int)
    np.testing.assert_array_equal(own.pixels, textured[y : y + 64, x : x + 64])


def test_stains_vary_on_their_own_and_glass_stays_glass():
    rng, white = np.random.default_rng(0), np.full((8, 8, 3), 255, dtype=np.uint8)
    np.testing.assert_array_equal(vary_stains(white, rng, 0.1, 0.3), white)
    tissue = np.full((8, 8, 3), (150, 90, 160), dtype=np.uint8)
    before = stain_density(tissue)[0, 0, :2]
    gains = np.array([stain_density(vary_stains(tissue, rng, 0.0, 0.2))[0, 0, :2] / before for _ in range(40)])
    assert 0.1 < np.log(gains).std(axis=0).min() and np.log(gains).std(axis=0).max() < 0.3
    assert abs(np.corrcoef(gains.T)[0, 1]) < 0.5


def test_pictures_that_cannot_be_used_are_all_named(pictures):
    broken = [
        {"kind": "tiles", "name": "a", "table": "tiles.csv", "folder": "tiles", "slide": "slide"},
        {"kind": "tiles", "name": "b", "table": "tiles.csv", "folder": "tiles", "slide": "case", "only": ["nine"]},
        {"kind": "tiles", "name": "c", "table": "tiles.csv", "folder": "elsewhere", "slide": "case"},
        {"kind": "image", "name": "d", "image": "slide.png", "mpp": 0.7, "part": [0, 0, 0.1, 1]},
    ]
    with pytest.raises(RequestError) as error:
        open_pictures(load_config(pictures(pictures=broken)))
    for words in ("lacks the columns ['slide']", "has no slides nine", "4 of the tiles", "smaller than the 64 px"):
        assert words in str(error.value)


def test_a_config_learns_from_sections_or_from_pictures(pictures):
    section = [{"kind": "sample", "name": "sample"}]
    for changes in ({"train": section}, {"pictures": []}):
        with pytest.raises(RequestError, match="either sections under 'train' or images"):
            load_config(pictures(**changes))
    twice = [{"kind": "image", "name": "left", "image": "slide.png", "mpp": 0.7}]
    with pytest.raises(RequestError, match="both trained on and held out"):
        load_config(pictures(held_out_pictures=twice))


def test_an_autoencoder_learns_from_pictures_looks_at_those_held_out_and_goes_on(pictures, monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
    looking = TINY["autoencoder"] | {"validate_every": 2}
    config = load_config(pictures(autoencoder=looking))
    run_stage(config, "autoencoder")
    further = looking | {"decoder_steps": 4}
    run_stage(load_config(pictures(autoencoder=further)), "autoencoder")
    lines = [json.loads(line) for line in (config.output / "autoencoder.jsonl").read_text().splitlines()]
    looks = [(line["phase"], line["step"]) for line in lines if "held_out" in line]
    assert looks == [("whole", 2), ("decoder", 2), ("decoder", 4)]
    figures = lines[-1]["held_out"]
    assert set(figures) == {"other", "right"} and set(figures["right"]) == {"ms_ssim", "high_frequency", "colour"}
    with pytest.raises(CheckpointError, match="were made from other inputs"):
        run_stage(load_config(pictures(augmentation={"hed": 0.3})), "autoencoder")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A folder with pictures, and in it ``prior``, a training on them with all its stages. Do not write in it."""
    place = tmp_path_factory.mktemp("pictures")
    config = config_in(place)(latents=TINY["latents"] | {"pictures": ["left"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
        train(config, "autoencoder", output=place / "prior")
        for number in range(3):  # from here on, the tiles that are not named are not needed
            (place / "tiles" / f"{number}.png").unlink()
        train(config, output=place / "prior")
    return place


@pytest.fixture
def morphology_alone(prior, monkeypatch):
    """The checkpoint of that training."""
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
    return prior / "prior" / "checkpoint"


def test_a_transformer_learns_tissue_from_pictures_alone(morphology_alone, prior):
    cache = load_state(prior / "prior" / "latents.pt")
    assert "expression" not in cache and len(cache["latents"]) == 10 and "held_morphology" in cache
    lines = [json.loads(line) for line in (prior / "prior" / "diffusion.jsonl").read_text().splitlines()]
    assert [set(line["validation"]) for line in lines if "validation" in line] == [{"morphology", "none"}] * 2
    checkpoint = load_checkpoint(morphology_alone, device="cpu")
    assert checkpoint.card.conditions == ("morphology",) and not checkpoint.card.genes
    words = (morphology_alone / "README.md").read_text()
    assert "Images without expression trained on: tiles, left. Held out, never trained on: other, right." in words
    assert "from morphology." in words and "- Expression" not in words
    *_, last = checkpoint.pipeline.denoise_images(
        morphology=checkpoint.encode_morphology(np.zeros((1, 64, 64, 3), dtype=np.uint8)),
        expression=None,
        seeds=(1,),
        sampling=Sampling(GuidanceScales.of(Guidance(expression=1, morphology=2)), 2),
        height=64,
        width=64,
    )
    assert last.images.shape == (1, 64, 64, 3)


def test_a_checkpoint_of_pictures_learns_expression_from_sections(
    morphology_alone, prior, tiny_config, tiny_section, tmp_path
):
    right = {"kind": "image", "name": "right", "image": str(prior / "slide.png"), "mpp": 0.7, "part": [0, 0.5, 1, 1]}
    path = tiny_config(start=str(morphology_alone), autoencoder={}, transformer={}, held_out_pictures=[right])
    folder = train(path, output=tmp_path / "more")
    known = load_component(read_folder(morphology_alone), "transformer")
    config = apply_start(load_config(path, output=tmp_path / "more"))
    cache = load_cache(config)
    assert "held_latents" not in cache  # held-out pictures have no expression to validate with
    grown = build_transformer(config, cache).eval()
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 800.0])
    morphology, expression = torch.randn(2, 1, 6), torch.randn(2, grown.config.expression_dim)
    with torch.no_grad():  # before it has learned, expression says nothing
        torch.testing.assert_close(grown(x, time, morphology, expression), known.float()(x, time, morphology))
    checkpoint = load_checkpoint(folder, device="cpu")
    assert checkpoint.card.conditions == ("expression", "morphology") and len(checkpoint.card.genes) == 12
    assert checkpoint.encode_expression(tiny_section.spots.counts[:2], tiny_section.spots.genes).shape[0] == 2
    assert (folder / "morphology_map" / "model.safetensors").is_file() and checkpoint.profiles
    for part in ("vae", "morphology_encoder"):
        for file in (folder / part).iterdir():
            assert file.read_bytes() == (morphology_alone / part / file.name).read_bytes(), file
    words = (folder / "README.md").read_text()
    assert "It started from the checkpoint `tiny`" in words and "- Expression: 12 genes" in words
    assert "`profiles.safetensors` holds mean and spread" in words
    train(path, output=tmp_path / "more")  # finished: nothing more happens, and nothing is refused


def test_checkpoints_of_the_package_share_one_autoencoder(morphology_alone, tiny_config, tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setattr("napari_stmdit.downloads.places.PACKAGE_DATA", data)
    shutil.copytree(morphology_alone, data / "holder")
    path = tiny_config(start=str(morphology_alone), autoencoder={}, transformer={}, vae_of="holder")
    folder = train(path, output=tmp_path / "more")
    assert sorted(file.name for file in (folder / "vae").iterdir()) == ["config.json", "reference.json"]
    shared, own = (
        load_checkpoint(place, device="cpu").pipeline.vae.state_dict() for place in (folder, morphology_alone)
    )
    assert all(torch.equal(shared[name], own[name]) for name in own)
    weights = data / "holder" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(CheckpointError, match="damaged or another version"):
        load_checkpoint(folder, device="cpu")
    shutil.rmtree(folder)
    with pytest.raises(
        CheckpointError, match="'holder' for the autoencoder, but the one in the package's data is another one"
    ):
        train(path, "export", output=tmp_path / "more")
    with pytest.raises(RequestError, match="give 'start', or leave 'vae_of' out"):
        load_config(tiny_config(vae_of="holder"))
