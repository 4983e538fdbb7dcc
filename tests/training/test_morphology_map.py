"""The map from expression to morphology of a trained checkpoint: fitted on what it was trained on, by its own encoders."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from tiny import TINY_GENES

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.encoders import morphology_map
from napari_stmdit.errors import CheckpointError
from napari_stmdit.expression.regression import compact_folds
from napari_stmdit.model.folder import map_folder, read_folder
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.synthesis.counterfactual import fitted_map
from napari_stmdit.tissue.open import open_section
from napari_stmdit.training import export
from napari_stmdit.training.config import load_config


def parts(found):
    return [getattr(found, name) for name in ("weights", "components", "r2", "penalties")]


@pytest.fixture
def started(tmp_path, tiny_folder, tiny_config, monkeypatch):
    """A config that goes on from a tiny checkpoint; 20 spots are enough for a map here."""
    monkeypatch.setattr(morphology_map, "MIN_SPOTS", 5)
    monkeypatch.setattr(compact_folds, "__defaults__", (4, 5))
    start = write_tiny_checkpoint(tmp_path / "start", TINY_GENES, patch_mpp=0.7)
    config = load_config(tiny_config(start=str(start), transformer={}))
    return start, config


def without_map(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["morphology_map"]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_the_map_is_fitted_under_the_conditions_of_a_run(started, tiny_folder, tmp_path):
    start, config = started
    without_map(start)
    shutil.copytree(start, tmp_path / "draft", ignore=shutil.ignore_patterns("morphology_map"))
    made = export.write_map(config, tmp_path / "draft")
    model = load_checkpoint(start, "cpu", "float32")
    again = fitted_map([open_section(tiny_folder)], model.card, model)
    assert made.spots == again.spots > 5
    for one, other in zip(parts(made), parts(again), strict=True):
        np.testing.assert_array_equal(one, other)
    back = morphology_map.MorphologyMap.load(tmp_path / "draft" / "morphology_map")
    assert back.facts() == made.facts()


def test_the_map_of_the_checkpoint_to_start_from_is_kept_with_its_encoders(started, tmp_path):
    start, config = started
    made = export.write_map(config, tmp_path / "draft")
    for one, other in zip(parts(made), parts(load_checkpoint(start, "cpu").morphology_map), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_map_is_fitted_anew_where_expression_is_read_otherwise(started):
    _, config = started
    assert export.map_to_keep(config) is not None
    refit = config.expression.model_copy(update={"refit": True})
    assert export.map_to_keep(config.model_copy(update={"expression": refit})) is None
    assert export.map_to_keep(config.model_copy(update={"start": None})) is None


def test_inspect_says_what_the_map_explains(started):
    start, _ = started
    found = inspect_checkpoint(start)
    assert found.components["morphology_map"] == "MorphologyMap" and not found.missing
    assert found.morphology_map == {"share": 0.5, "r2": [0.5] * 3, "components": 3, "spots": 100}
    without_map(start)
    found = inspect_checkpoint(start)
    assert found.morphology_map is None and not found.missing
    assert map_folder(read_folder(start)) is None and load_checkpoint(start, "cpu").morphology_map is None


def test_a_map_that_is_listed_and_not_there_or_of_another_kind_is_refused(started):
    start, _ = started
    index = json.loads((start / "model_index.json").read_text())
    index["morphology_map"] = ["somewhere", "OtherMap"]
    (start / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'OtherMap'; this version knows MorphologyMap"):
        load_checkpoint(start, "cpu")
    (start / "morphology_map").rename(start / "elsewhere")
    with pytest.raises(CheckpointError, match="lacks the folder morphology_map/"):
        load_checkpoint(start, "cpu")
