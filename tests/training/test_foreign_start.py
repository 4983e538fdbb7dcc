"""Training goes on from a converted checkpoint, whose encoders are large foreign ones and which predicts noise."""

# ruff: noqa: F811 # fixtures that are imported are asked for by name

import json

import pytest
import torch
from foreign import convert, elsewhere, foreign  # noqa: F401 # fixtures

from napari_stmdit import Request, load_checkpoint, synthesize
from napari_stmdit.errors import RequestError
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.training.config import load_config
from napari_stmdit.training.latents import load_cache
from napari_stmdit.training.objective import objective_of
from napari_stmdit.training.train import train

SETTINGS = {"steps": 3, "batch": 2, "warmup": 1, "validate_every": 2, "sample_every": 0}
FREE = {"expression": {"thinning": 3.0}, "autoencoder": {}, "transformer": {}, "card": {"licence": "none"}}


def further(tiny_config, start, **changes):
    path = tiny_config(**FREE, start=str(start), diffusion=SETTINGS, **changes)
    content = (
        path.read_text().replace("patch_px: 64\n", "").replace("patch_mpp: 0.7\n", "")
    )  # they are the checkpoint's
    path.write_text(content)
    return path


def test_a_converted_checkpoint_is_trained_further_and_synthesizes(
    foreign, elsewhere, tiny_config, tiny_section, tmp_path
):
    start = convert(foreign, elsewhere, tmp_path).path
    before = load_checkpoint(start)
    path = further(tiny_config, start)
    folder = train(path, output=tmp_path / "more")
    cache = load_cache(load_config(path, output=tmp_path / "more"))
    assert (
        cache["morphology"].ndim == 4 and float(cache["expression_spread"]) > 0
    )  # whole crops alone; noise on their own scale
    after = load_checkpoint(folder)
    assert objective_of(after.pipeline.scheduler).kind == "epsilon"
    assert after.card.genes == before.card.genes and after.card.guidance == before.card.guidance
    old, new = (c.pipeline.transformer.state_dict() for c in (before, after))
    assert any(not torch.equal(old[key].float(), new[key].float()) for key in old)
    record = json.loads((folder / "training.json").read_text())
    assert record["started_from"]["sha256"] == before.provenance["sha256"] and record["steps"] == {"transformer": 3}
    assert synthesize(tiny_section, Request(region=SampleOfSpots(count=1), steps=2), after).complete


def test_what_the_checkpoint_decides_cannot_be_told_otherwise(foreign, elsewhere, tiny_config, tmp_path):
    start = convert(foreign, elsewhere, tmp_path).path
    path = further(tiny_config, start)
    path.write_text(path.read_text() + "patch_mpp: 0.7\n")
    with pytest.raises(RequestError, match="patch_mpp: is 0.7, but the checkpoint .* has 0.5; leave it out"):
        train(path)
