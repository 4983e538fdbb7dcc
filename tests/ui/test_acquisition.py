"""Downloads and conversions as the dock does them, without Qt; only the network is stood in for."""

import threading

import pytest
from checkpoints import plain_transformer
from safetensors.torch import save_file

from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.foreign.keys import from_native
from napari_stmdit.progress import DownloadProgress
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.ui.checkpoints import Acquisition, ConvertIntent, downloadables
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.state import ModelChoice, QueuedRun, RunStatus, WorkbenchState


class Desk:
    """What an acquisition talks to, remembered."""

    def __init__(self):
        self.state = WorkbenchState()
        self.told: list[tuple[str, str]] = []
        self.loaded: list[ModelChoice] = []
        self.state.events.message.connect(lambda message: self.told.append((message.kind, message.text)))
        self.opened: list[SectionSource] = []
        self.acquisition = Acquisition(self.state, start_inline, self.loaded.append, self.opened.append)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    return Desk()


@pytest.fixture
def foreign(tmp_path):
    net = plain_transformer(
        in_channels=16,
        out_channels=32,
        sample_size=8,
        morphology_dim=1536,
        expression_dim=256,
    )
    tensors = from_native(net.state_dict(), "original") | {"pos_embed": net.position_table[None]}
    save_file(tensors, tmp_path / "foreign.safetensors")
    (tmp_path / "foreign_config.json").write_text('{"num_heads": 2}')
    return tmp_path / "foreign.safetensors"


def test_offers_say_size_licence_and_state_before_anything_is_fetched(desk):
    found = {offer.entry.name: offer for offer in downloadables()}
    uni = found["uni2-h"]
    assert (
        uni.entry.gated
        and not uni.here
        and "CC-BY-NC-ND" in uni.entry.licence
        and uni.entry.terms.startswith("https://")
    )
    assert uni.size == "about 2.73 GB"
    assert found["cancerfoundation"].by_hand and found["sd3.5-vae"].size == "size unknown"


def test_files_are_taken_from_a_folder(desk, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"weights" * 100)
    seen = []
    desk.state.events.fetching.connect(seen.append)
    desk.acquisition.download("uni2-h", str(source))
    assert (tmp_path / "home" / "downloads" / "uni2-h" / "pytorch_model.bin").read_bytes() == b"weights" * 100
    assert seen[0].name == "uni2-h" and desk.state.fetching is None
    assert desk.told[-1][0] == "info" and "uni2-h is on this computer" in desk.told[-1][1]
    assert next(offer for offer in downloadables() if offer.entry.name == "uni2-h").here


def test_what_cannot_be_fetched_is_told(desk, tmp_path):
    desk.acquisition.download("uni2-h", str(tmp_path / "nowhere"))
    assert desk.told[-1][0] == "error" and desk.state.fetching is None
    desk.acquisition.download("sd3.5-vae")
    assert desk.told[-1][0] == "error" and "offline" in desk.told[-1][1].lower()


def test_a_download_tells_its_progress_and_can_be_stopped(desk, monkeypatch):
    from napari_stmdit.downloads import download as downloads
    from napari_stmdit.downloads.transfer import DownloadCancelledError

    stopped = threading.Event()

    def slow(entry, *, on_progress, cancel, source_folder):
        for done in range(1000):
            on_progress(DownloadProgress(done, 1000, "a.bin", done / 10))
            if cancel.cancelled:
                stopped.set()
                raise DownloadCancelledError("stopped")
            threading.Event().wait(0.002)

    monkeypatch.setattr(downloads, "download", slow)

    def stop_soon(fetching):
        if fetching is not None and fetching.fraction > 0.01:
            desk.acquisition.stop_download()

    desk.state.events.fetching.connect(stop_soon)
    desk.acquisition.download("uni2-h")
    assert stopped.is_set() and desk.state.fetching is None
    assert not desk.told  # a stop that was asked for is no error


def test_a_checkpoint_that_waited_for_a_component_is_loaded_again(desk, tmp_path):
    class Waiting:
        lacking = {"morphology_encoder": CheckpointError("missing")}

    desk.state.checkpoint = Waiting()
    desk.state.model = ModelChoice("somewhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    desk.acquisition.download("uni2-h", str(tmp_path))
    assert desk.loaded == [ModelChoice("somewhere")]


def at_work(desk, what):
    if what == "a run":
        desk.state.status = RunStatus.RUNNING
    else:
        desk.state.queue = (QueuedRun(1, "a run that waits"),)


@pytest.mark.parametrize("what", ["a run", "a queue"])
def test_a_conversion_that_ends_leaves_runs_alone(desk, foreign, tmp_path, what):
    at_work(desk, what)
    desk.acquisition.convert(ConvertIntent(str(foreign), 0.5, "mine"))
    assert (tmp_path / "home" / "checkpoints" / "mine" / "stmdit.json").is_file()
    assert not desk.loaded and desk.told[-1] == ("info", "mine is ready: choose it when the run has ended.")
    assert desk.state.foreign is None and not desk.state.converting


@pytest.mark.parametrize("what", ["a run", "a queue"])
def test_a_component_that_arrives_leaves_runs_alone(desk, tmp_path, what):
    class Waiting:
        lacking = {"morphology_encoder": CheckpointError("missing")}

    at_work(desk, what)
    desk.state.checkpoint = Waiting()
    desk.state.model = ModelChoice("somewhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    desk.acquisition.download("uni2-h", str(tmp_path))
    assert not desk.loaded and desk.state.fetching is None
    text = "uni2-h is on this computer: choose somewhere again when the run has ended."
    assert desk.told[-1] == ("info", text)


def test_our_own_folder_is_loaded_at_once(desk, tmp_path):
    (tmp_path / "stmdit.json").write_text("{}")
    desk.state.model = ModelChoice("demo", "cpu", "old.npy")
    desk.acquisition.choose(str(tmp_path))
    assert desk.loaded == [ModelChoice(str(tmp_path), "cpu")]


def test_a_foreign_file_is_looked_at_asked_about_and_converted(desk, foreign, tmp_path):
    desk.acquisition.choose(str(foreign))
    question = desk.state.foreign
    assert question is not None and question.patch_px == 64 and question.takes_expression
    assert [mpp for mpp, _ in question.candidates] == [0.2148, 0.3448, 0.5]
    assert "stmdit_adaln_cross_attention" in question.summary and not desk.loaded
    desk.acquisition.convert(ConvertIntent(str(foreign), None, "mine"))
    assert desk.told[-1][0] == "error" and "--patch-mpp" in desk.told[-1][1] and not desk.loaded
    desk.acquisition.convert(ConvertIntent(str(foreign), 0.5, "mine"))
    folder = tmp_path / "home" / "checkpoints" / "mine"
    assert (folder / "stmdit.json").is_file() and desk.loaded == [ModelChoice(str(folder))]
    assert desk.state.foreign is None and not desk.state.converting


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\\b"])
def test_a_name_is_the_name_of_a_folder(desk, foreign, name):
    desk.acquisition.convert(ConvertIntent(str(foreign), 0.5, name))
    assert desk.told[-1][0] == "error" and "cannot be the name" in desk.told[-1][1] and not desk.loaded


def test_what_is_no_transformer_is_told(desk, golden):
    desk.acquisition.choose(str(golden / "vae_tiny.safetensors"))
    assert desk.told[-1] == ("error", desk.told[-1][1]) and "is a vae, no transformer" in desk.told[-1][1]
    assert desk.state.foreign is None
