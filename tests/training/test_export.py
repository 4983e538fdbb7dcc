"""Where a trained checkpoint may be written: a free place, or over what this very training exported before."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from storage_trees import TREES, content, plant
from training_settings import write_config

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.errors import StoreError
from napari_stmdit.training import train as training
from napari_stmdit.training.config import load_config
from napari_stmdit.training.export import export_checkpoint
from napari_stmdit.training.train import run_stage, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder):
    """A config whose training is finished but for the export."""
    path = write_config(tmp_path_factory.mktemp("trained") / "config.yaml", tiny_folder, tensorboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
        for stage in ("autoencoder", "latents", "diffusion"):
            run_stage(load_config(path), stage)
    return load_config(path)


def with_config(tmp_path, tiny_config, export):
    """A folder with a thesis and its data beside the config."""
    (tmp_path / "thesis" / "data").mkdir(parents=True)
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "thesis" / "data" / "raw.csv").write_text("1")
    return tiny_config(export=export)


@pytest.mark.parametrize(
    ("export", "said"),
    [
        ("thesis", "is a folder that holds chapter1.tex, data, not made by the training"),
        ("thesis/chapter1.tex", "is there already"),
        (".", "it is where the work files"),
        ("..", "it is where the work files"),
        ("run", "it is where the work files"),
        ("run/encoders", "it is where the work files"),
        ("run/latents.pt", "it is where the work files"),
    ],
)
def test_training_does_not_begin_where_its_checkpoint_would_take_the_place_of_something(
    export, said, tmp_path, tiny_config, monkeypatch
):
    path = with_config(tmp_path, tiny_config, export)
    monkeypatch.setattr(training, "run_stage", lambda *_: pytest.fail("it began to train"))
    before = content(tmp_path)
    with pytest.raises(StoreError, match=f"{said}.*give another folder as 'export'"):
        train(path)
    assert content(tmp_path) == before


def test_the_package_and_its_checkpoint_are_never_replaced(trained):
    from napari_stmdit.training.export import PACKAGE, check_target

    for folder in (PACKAGE, PACKAGE / "data" / "demo_checkpoint", PACKAGE / "training"):
        with pytest.raises(StoreError, match="not made by the training"):
            check_target(trained, folder)


def test_a_training_replaces_its_own_checkpoint_and_nothing_else(trained, tmp_path):
    ours = export_checkpoint(trained, tmp_path / "ours")
    first = load_checkpoint(ours, device="cpu").provenance["sha256"]
    export_checkpoint(trained, ours)
    assert load_checkpoint(ours, device="cpu").provenance["sha256"] == first
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    (ours / "README.md").write_text("completed by hand")
    before = content(tmp_path)
    with pytest.raises(StoreError, match=r"README\.md in it was added or changed since"):
        export_checkpoint(trained, ours)
    assert content(tmp_path) == before


def test_a_checkpoint_of_another_training_stays(trained, tmp_path):
    theirs = export_checkpoint(trained, tmp_path / "theirs")
    other = trained.model_copy(update={"output": tmp_path / "other"})
    shutil.copytree(trained.output, other.output)
    (other.output / "training_id").unlink()
    with pytest.raises(StoreError, match="not made by the training"):
        export_checkpoint(other, theirs)


def test_a_folder_called_writing_is_somebody_elses(trained, tmp_path):
    (tmp_path / "made.writing").mkdir()
    (tmp_path / "made.writing" / "novel.txt").write_text("mine")
    export_checkpoint(trained, tmp_path / "made")
    assert (tmp_path / "made.writing" / "novel.txt").read_text() == "mine"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_whatever_is_in_the_way_stays_as_it_is(tree, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("way")
    (folder / "elsewhere").mkdir()
    plant(folder / "out", tree)
    before = content(folder)
    try:
        export_checkpoint(trained, folder / "out")
    except StoreError:
        assert tree != {} and content(folder) == before
    else:
        assert tree == {}
