"""The model panel in a real viewer: what is missing is said, foreign weights are asked about, files are brought by buttons."""

import json

import numpy as np
import pytest
from checkpoints import plain_transformer
from qtpy.QtWidgets import QFileDialog
from safetensors.torch import save_file
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.model.foreign.keys import from_native
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.ui.checkpoints import ConvertIntent
from napari_stmdit.ui.state import QueuedRun

pytestmark = pytest.mark.gui


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def vae_source(golden, tmp_path):
    folder = tmp_path / "vae_source"
    folder.mkdir()
    (folder / "config.json").write_bytes((golden / "vae_tiny_config.json").read_bytes())
    weights = (golden / "vae_tiny.safetensors").read_bytes()
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def foreign(tmp_path):
    net = plain_transformer(
        in_channels=16, out_channels=32, sample_size=8, morphology_dim=1536, expression_dim=256, num_layers=1
    )
    tensors = from_native(net.state_dict(), "original") | {"pos_embed": net.position_table[None]}
    save_file(tensors, tmp_path / "foreign.safetensors")
    (tmp_path / "foreign_config.json").write_text('{"num_heads": 2}')
    return tmp_path / "foreign.safetensors"


def answer(monkeypatch, kind, path):
    """Let a file dialog answer with a path."""
    reply = str(path) if kind == "getExistingDirectory" else (str(path), "")
    monkeypatch.setattr(QFileDialog, kind, staticmethod(lambda *_, **__: reply))


def test_size_and_terms_come_before_the_button(home, workbench):  # noqa: F811
    panel = workbench.model.downloads
    workbench.reveal(workbench.model)
    workbench.model.downloads_fold.unfold()
    panel.choose("uni2-h")
    assert "2.73 GB" in panel.facts.plain() and "not on this computer" in panel.facts.plain()
    assert "CC-BY-NC-ND" in panel.licence.plain()
    assert (
        "accept the terms there first" in panel.terms.text()
        and "https://huggingface.co/MahmoodLab" in panel.terms.text()
    )
    panel.choose("cancerfoundation")
    assert not panel.download.isEnabled() and panel.folder.isEnabled() and "no hub" in panel.licence.plain()
    for control in (panel.choice, panel.download, panel.folder, panel.stop, panel.bar):
        assert control.accessibleName() and control.toolTip()


def test_offline_is_honoured_and_said(home, workbench):  # noqa: F811
    panel = workbench.model.downloads
    panel.choose("uni2-h")
    panel.download.click()
    assert settle(lambda: workbench.state.message.kind == "error" and workbench.state.fetching is None)
    assert "offline" in workbench.state.message.text.lower()
    assert panel.download.isEnabled() and panel.bar.isHidden()


def test_a_foreign_checkpoint_from_file_to_run(home, workbench, foreign, vae_source, tiny_folder, monkeypatch):  # noqa: F811
    state, model = workbench.state, workbench.model
    workbench.reveal(workbench.model)
    panel = model.downloads
    panel.choose("sd3.5-vae")
    answer(monkeypatch, "getExistingDirectory", vae_source)
    panel.folder.click()
    assert settle(lambda: state.message.text.startswith("sd3.5-vae is on this computer"))
    assert json.loads((home / "downloads" / "sd3.5-vae" / "download.json").read_text())["files"]
    assert settle(lambda: "(here)" in panel.choice.currentText())  # shown when the job has ended

    workbench.section.setValue(SectionSource(path=str(tiny_folder)))
    workbench.section.open_button.click()
    assert settle(lambda: state.section is not None and not state.busy and state.checkpoint is not None)

    answer(monkeypatch, "getOpenFileName", foreign)
    next(action for action in model.open.menu().actions() if "file" in action.text().lower()).trigger()
    assert settle(lambda: state.foreign is not None)
    convert = model.convert
    assert not convert.isHidden() and not convert.convert.isEnabled()
    assert "64 px" in convert.question.plain()
    assert all(mpp in convert.why.plain() for mpp in ("0.2148", "0.3448", "0.5"))
    convert.mpp.setEditText("0.5")
    assert convert.convert.isEnabled() and "32 µm of tissue" in convert.why.plain()
    convert.convert.click()
    assert settle(lambda: getattr(state.checkpoint, "lacking", None), 60)
    assert convert.isHidden()

    lacking = model.lacking.plain()
    for part in (
        "pytorch_model.bin",
        "MahmoodLab/UNI2-h",
        "CC-BY-NC-ND",
        "embeddings that were",
        "without a gene list",
    ):
        assert part in lacking, part
    assert not any(button.isHidden() for button in model.embeddings.values())
    assert model.downloads.name() == "uni2-h"

    ids = state.section.spots.ids.tolist()
    for what, width in (("morphology", 1536), ("expression", 256)):
        path = foreign.parent / f"{what}.npy"
        np.save(path, np.random.default_rng(0).normal(size=(len(ids), width)).astype(np.float32))
        path.with_name(f"{what}.ids.txt").write_text("\n".join(ids))
        answer(monkeypatch, "getOpenFileName", path)
        model.embeddings[what].click()
        assert settle(lambda path=path: path.name in model.using.plain() and state.checkpoint is not None, 60)
    assert settle(lambda: not state.checkpoint.lacking) and model.lacking.isHidden()

    workbench.presenter.select(ids[:1])
    state.request = state.request.model_copy(update={"steps": 1})
    assert settle(lambda: not state.obstacle and not state.faults)
    workbench.run_bar.run.click()
    assert settle(lambda: len(state.results) == 1, 60)
    provenance = state.results[0].result.provenance["checkpoint"]
    assert provenance["morphology_embeddings"]["source"].endswith("morphology.npy")


def test_a_checkpoint_that_was_converted_during_a_run_is_offered(home, workbench, foreign):  # noqa: F811
    state, choice = workbench.state, workbench.model.checkpoint
    state.queue = (QueuedRun(1, "a run that waits"),)
    workbench.presenter.acquisition.convert(ConvertIntent(str(foreign), 0.5, "mine"))
    assert settle(lambda: state.message.text.startswith("mine is ready") and not state.converting, 60)
    assert state.checkpoint is None and state.queue
    assert [choice.itemText(k) for k in range(choice.count())].count("mine") == 1
    state.queue = ()
    workbench.presenter.acquisition.convert(ConvertIntent(str(foreign), 0.5, "another"))
    assert settle(lambda: state.model.checkpoint.endswith("another") and not state.busy and not state.converting, 60)
    assert [choice.itemText(k) for k in range(choice.count())].count("another") == 1


def test_an_unreadable_file_is_told_and_the_viewer_goes_on(home, workbench, tmp_path, monkeypatch):  # noqa: F811
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    answer(monkeypatch, "getOpenFileName", bad)
    next(action for action in workbench.model.open.menu().actions() if "file" in action.text().lower()).trigger()
    assert settle(lambda: workbench.state.message.kind == "error")
    assert "bad.pt is damaged" in workbench.state.message.text and workbench.state.foreign is None
