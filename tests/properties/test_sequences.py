"""Whatever is done in whatever order, with inputs changing in between: nothing is lost, nothing is mixed.

Three sequences are tried at every run, nightly as many as `STMDIT_SEQUENCES` says, 20 by default.
"""

import os

import numpy as np
import pytest
from sequences import World, make_templates

COUNT = int(os.environ.get("STMDIT_SEQUENCES", "20"))
SEEDS = [pytest.param(seed, marks=() if seed < 3 else pytest.mark.nightly) for seed in range(COUNT)]
LENGTH = 8


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    return make_templates(tmp_path_factory.mktemp("templates") / "inputs")


@pytest.fixture(autouse=True)
def small_trainings(monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_and_nothing_is_mixed(seed, templates, tmp_path):
    world = World(tmp_path, np.random.default_rng(seed), templates, {})
    try:
        for _ in range(LENGTH):
            world.act()
            world.check()
        world.finish()
    except BaseException:
        print("\n".join(world.log))
        raise
