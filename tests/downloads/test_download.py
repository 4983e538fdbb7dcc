"""Downloads from a hub on this computer: whole, checked, continued, and refused in words."""

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub import LocalHub

from napari_stmdit.downloads import transfer as hub_module
from napari_stmdit.downloads.download import check_source, download, find_download
from napari_stmdit.downloads.places import download_directory
from napari_stmdit.downloads.transfer import DownloadCancelledError, PartFile
from napari_stmdit.errors import DownloadError
from napari_stmdit.model.zoo import ZooEntry, reference_of, resolve_reference, zoo_entry
from napari_stmdit.progress import CancelToken, DownloadProgress

REPOSITORY = "StonyBrook-CVLab/PixCell-256"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = b'{"sample_size": 32}'


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


BYTES = noise(1_500_000)


@pytest.fixture(autouse=True)
def online(tmp_path, monkeypatch):
    """The hub's client may talk to 127.0.0.1, and to nothing else by a proxy."""
    import huggingface_hub
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("STMDIT_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(hub_module, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 5.0)
    close_session()
    yield
    close_session()


@pytest.fixture
def hub():
    with LocalHub() as served:
        served.put(REPOSITORY, "transformer/config.json", CONFIG, lfs=False)
        served.put(REPOSITORY, WEIGHTS, BYTES)
        served.put(REPOSITORY, "transformer/pixcell_transformer_2d.py", b"raise SystemExit", lfs=False)
        yield served


@pytest.fixture
def entry() -> ZooEntry:
    return zoo_entry("pixcell-256")


@pytest.fixture
def folder(entry) -> Path:
    return download_directory(entry.name)


def weights(hub: LocalHub):
    return hub.repositories[REPOSITORY][WEIGHTS]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


WHOLE = {"config.json", "diffusion_pytorch_model.safetensors", "download.json"}


def refused(entry: ZooEntry, **options: object) -> str:
    with pytest.raises(DownloadError) as caught:
        download(entry, **options)
    return str(caught.value)


def test_files_arrive_whole_with_a_record_of_where_they_came_from(hub, entry, folder):
    done = download(entry, endpoint=hub.endpoint)
    assert done.folder == folder
    assert names(folder) == WHOLE
    assert (folder / "config.json").read_bytes() == CONFIG
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    record = json.loads((folder / "download.json").read_text())
    assert record["source"] == REPOSITORY
    assert record["revision"] == hub.commit
    assert record["files"]["diffusion_pytorch_model.safetensors"] == {
        "sha256": hashlib.sha256(BYTES).hexdigest(),
        "size": len(BYTES),
    }
    assert record["licence"] == entry.licence
    assert record["terms"] == entry.terms
    assert record["date"].endswith("+00:00")
    assert record["software"].startswith("napari-stmdit")
    assert resolve_reference(reference_of(entry), "transformer") == folder


def test_no_code_is_fetched_and_every_byte_is_of_one_commit(hub, entry):
    download(entry, endpoint=hub.endpoint)
    assert not any(path.endswith(".py") for _, _, path, _ in hub.requests)
    resolved = [path for path in hub.asked() if "/resolve/" in path]
    assert len(resolved) == 2
    assert all(f"/resolve/{hub.commit}/" in path for path in resolved)


def test_the_token_stays_with_the_hub(hub, entry, folder):
    download(entry, endpoint=hub.endpoint, token="hf_secret")
    sent = {(role, headers.get("authorization")) for role, _, _, headers in hub.requests}
    assert sent == {("hub", "Bearer hf_secret"), ("cdn", None)}
    assert "hf_secret" not in (folder / "download.json").read_text()


def test_progress_grows_from_zero_to_all_bytes(hub, entry, monkeypatch):
    monkeypatch.setattr("napari_stmdit.downloads.download._REPORT_S", 0.0)
    weights(hub).drop_after = [400_000]
    seen: list[DownloadProgress] = []
    download(entry, endpoint=hub.endpoint, on_progress=seen.append)
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, len(CONFIG) + len(BYTES))
    assert len(set(done)) > 10
    assert {progress.bytes_total for progress in seen} == {len(CONFIG) + len(BYTES)}
    assert {progress.file for progress in seen} == set(entry.files)
    assert seen[-1].fraction == 1


def test_a_broken_connection_is_continued_where_it_was(hub, entry, folder):
    weights(hub).drop_after = [400_000]
    download(entry, endpoint=hub.endpoint)
    assert hub.ranges() == [None, "bytes=400000-"]
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES


def test_a_connection_that_breaks_again_and_again_says_what_arrived_and_the_next_call_continues(hub, entry, folder):
    weights(hub).drop_after = [400_000, 100_000, 0]
    message = refused(entry, endpoint=hub.endpoint)
    assert "500,000 of 1,500,000 bytes of diffusion_pytorch_model.safetensors" in message
    assert "stmdit download pixcell-256" in message
    assert not names(folder) & WHOLE
    assert find_download(entry) is None
    hub.requests.clear()
    download(entry, endpoint=hub.endpoint)
    assert hub.ranges() == ["bytes=500000-"]
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    assert names(folder) == WHOLE


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub, entry, folder, monkeypatch):
    monkeypatch.setattr("napari_stmdit.downloads.download._REPORT_S", 0.0)
    weights(hub).drop_after = [400_000]
    weights(hub).ranges = False
    done: list[int] = []
    download(entry, endpoint=hub.endpoint, on_progress=lambda progress: done.append(progress.bytes_done))
    assert hub.ranges() == [None, "bytes=400000-"]
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    assert done == sorted(done)


def test_two_versions_are_never_mixed(hub, entry, folder):
    weights(hub).drop_after = [400_000, 0, 0]
    refused(entry, endpoint=hub.endpoint)
    weights(hub).content = noise(1_500_000, seed=1)
    hub.commit = "f" * 40
    hub.requests.clear()
    download(entry, endpoint=hub.endpoint)
    assert hub.ranges() == [None]
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == noise(1_500_000, seed=1)
    assert names(folder) == WHOLE


def test_a_file_that_differs_from_the_hubs_hash_is_removed(hub, entry, folder):
    weights(hub).etag = "0" * 64
    message = refused(entry, endpoint=hub.endpoint)
    assert "0" * 64 in message
    assert hashlib.sha256(BYTES).hexdigest() in message
    assert not any("diffusion" in name for name in names(folder))
    assert "config.json" not in names(folder)


def test_a_file_that_differs_from_the_entrys_hash_is_removed(hub, entry, folder):
    stated = entry.model_copy(update={"sha256": {"config.json": "1" * 64}})
    assert "1" * 64 in refused(stated, endpoint=hub.endpoint)
    assert names(folder) == set()


@pytest.mark.parametrize(
    "fields", [{"files": ("../x.json",)}, {"subfolder": "../x"}, {"name": "../x"}, {"files": ("x.py",)}]
)
def test_an_entry_that_was_never_validated_is_refused(fields, hub, entry, tmp_path):
    bad = type(entry).model_construct(**{**entry.model_dump(), **fields})
    assert "no valid entry" in refused(bad, endpoint=hub.endpoint)
    assert hub.requests == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_where_to_accept_its_terms(hub, status):
    hub.gated["MahmoodLab/UNI2-h"] = status
    message = refused(zoo_entry("uni2-h"), endpoint=hub.endpoint)
    assert "https://huggingface.co/MahmoodLab/UNI2-h" in message
    assert "hf auth login" in message
    assert "HF_TOKEN" in message


def test_what_is_not_there_is_named(hub, entry):
    missing = refused(zoo_entry("pixcell-1024"), endpoint=hub.endpoint)
    assert "no repository StonyBrook-CVLab/PixCell-1024" in missing
    revision = refused(entry.model_copy(update={"revision": "v9"}), endpoint=hub.endpoint)
    assert "no revision 'v9'" in revision
    del hub.repositories[REPOSITORY][WEIGHTS]
    assert f"no file {REPOSITORY}/{WEIGHTS} at revision" in refused(entry, endpoint=hub.endpoint)
    assert not any(path.endswith("config.json") for path in hub.asked()), "nothing is fetched before all are known"


def test_a_busy_hub_is_asked_again(hub, entry, folder):
    hub.busy = 2
    download(entry, endpoint=hub.endpoint)
    assert names(folder) == WHOLE


def test_a_hub_that_stays_busy_is_given_up(hub, entry):
    hub.busy = 99
    assert "status 503" in refused(entry, endpoint=hub.endpoint)
    assert len(hub.requests) == 3


def test_a_hub_that_is_not_reached_is_one_message(entry):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = refused(entry, endpoint=f"http://127.0.0.1:{port}")
    assert "cannot be reached" in message
    assert "--from FOLDER" in message


def test_a_server_that_goes_silent_does_not_hang(hub, entry, monkeypatch):
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.2)
    weights(hub).pause_s = 1.0
    assert "the connection broke" in refused(entry, endpoint=hub.endpoint)


def test_a_proxy_page_is_not_taken_for_a_file(hub, entry):
    hub.commit = ""
    assert "does not come from a hub" in refused(entry, endpoint=hub.endpoint)


@pytest.mark.parametrize("how", ["argument", "STMDIT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_never_touches_the_network(how, hub, entry, monkeypatch):
    if how == "argument":
        message = refused(entry, endpoint=hub.endpoint, offline=True)
    else:
        monkeypatch.setenv(how, "1")
        message = refused(entry, endpoint=hub.endpoint)
    assert "offline" in message
    assert hub.requests == []


def test_a_client_that_was_started_offline_says_so_too(hub, entry, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline" in refused(entry, endpoint=hub.endpoint, offline=False)
    assert hub.requests == []


def test_a_stop_keeps_what_arrived_and_the_next_call_continues(hub, entry, folder):
    cancel = CancelToken()
    weights(hub).pause_s = 0.02

    def stop(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            cancel.cancel()

    with pytest.raises(DownloadCancelledError, match="continues"):
        download(entry, endpoint=hub.endpoint, on_progress=stop, cancel=cancel)
    (part,) = folder.glob("diffusion*.part")
    arrived = part.stat().st_size
    assert 100_000 < arrived < len(BYTES)
    assert not names(folder) & WHOLE
    hub.requests.clear()
    download(entry, endpoint=hub.endpoint)
    assert hub.ranges() == [f"bytes={arrived}-"]
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES


def test_a_stop_before_the_start_asks_for_nothing(hub, entry):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(DownloadCancelledError):
        download(entry, endpoint=hub.endpoint, cancel=cancel)
    assert hub.requests == []


def test_what_is_here_is_not_fetched_again(hub, entry, folder):
    download(entry, endpoint=hub.endpoint)
    hub.requests.clear()
    again = download(entry, endpoint=hub.endpoint, offline=True)
    assert again.already
    assert again.record is not None
    assert hub.requests == []
    with (folder / "diffusion_pytorch_model.safetensors").open("ab") as stream:
        stream.write(b"x")
    assert not download(entry, endpoint=hub.endpoint).already
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    hub.requests.clear()
    assert not download(entry, endpoint=hub.endpoint, force=True).already
    assert hub.ranges() == [None]


def test_files_that_the_user_put_there_count(hub, entry, folder):
    folder.mkdir(parents=True)
    for name in entry.files:
        (folder / name).write_bytes(b"x")
    done = download(entry, endpoint=hub.endpoint)
    assert (done.already, done.record, done.folder) == (True, None, folder)
    assert hub.requests == []


def test_a_renewal_that_fails_leaves_the_old_files(hub, entry, folder):
    download(entry, endpoint=hub.endpoint)
    hub.repositories[REPOSITORY]["transformer/config.json"].content = b'{"sample_size": 64}'
    weights(hub).content = noise(1_500_000, seed=1)
    weights(hub).drop_after = [1000, 0, 0]
    refused(entry, endpoint=hub.endpoint, force=True)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    assert find_download(entry) is not None


def test_a_renewal_that_is_killed_between_two_files_is_not_taken_for_whole(hub, entry, folder, monkeypatch):
    class Killed(BaseException):
        pass

    publish, published = PartFile.publish, []

    def killed(self):
        if published:
            raise Killed
        published.append(self)
        publish(self)

    download(entry, endpoint=hub.endpoint)
    hub.repositories[REPOSITORY]["transformer/config.json"].content = b'{"sample_size": 64}'
    weights(hub).content = noise(1_500_000, seed=1)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PartFile, "publish", killed)
        download(entry, endpoint=hub.endpoint, force=True)
    assert find_download(entry) is None
    done = download(entry, endpoint=hub.endpoint, force=True)
    assert not done.already and find_download(entry) == replace(done, already=True)
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == weights(hub).content


@pytest.mark.parametrize("inside", ["", "transformer"])
def test_a_local_folder_serves_as_well(inside, hub, entry, folder, tmp_path):
    source = tmp_path / "mine" / inside
    source.mkdir(parents=True)
    (source / "config.json").write_bytes(CONFIG)
    (source / "diffusion_pytorch_model.safetensors").write_bytes(BYTES)
    seen: list[DownloadProgress] = []
    done = download(entry, source_folder=tmp_path / "mine", offline=True, on_progress=seen.append)
    assert names(folder) == WHOLE
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == BYTES
    assert done.record is not None
    assert done.record.files["config.json"].sha256 == hashlib.sha256(CONFIG).hexdigest()
    assert done.record.copied_from == str(tmp_path / "mine")
    assert done.record.revision is None
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(CONFIG) + len(BYTES)
    assert (source / "config.json").is_file()


def test_a_local_folder_that_lacks_files_names_them_all(tmp_path):
    entry = zoo_entry("cancerfoundation")
    (tmp_path / "vocab.json").write_text("{}")
    message = refused(entry, source_folder=tmp_path)
    assert "lacks model.pth, args.json" in message
    assert not download_directory(entry.name).exists()
    assert "is no folder" in refused(entry, source_folder=tmp_path / "nowhere")


def test_a_local_file_with_another_hash_is_refused(tmp_path, entry, folder):
    for name in entry.files:
        (tmp_path / name).write_bytes(b"x")
    stated = entry.model_copy(update={"sha256": {"diffusion_pytorch_model.safetensors": "2" * 64}})
    assert "2" * 64 in refused(stated, source_folder=tmp_path)
    assert not names(folder) & WHOLE


def test_what_only_a_person_can_fetch_says_where():
    message = refused(zoo_entry("cancerfoundation"))
    assert "https://polybox.ethz.ch" in message
    assert "--from FOLDER" in message
    with pytest.raises(DownloadError, match="on no hub"):
        check_source(zoo_entry("cancerfoundation"))


def test_too_little_room_is_told_before_anything_is_fetched(hub, entry, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    message = refused(entry, endpoint=hub.endpoint)
    assert "room for 10 bytes" in message
    assert f"{len(BYTES) + len(CONFIG):,} are needed" in message
    assert hub.asked() == []


def test_a_disk_that_fills_up_keeps_what_arrived(tmp_path):
    with PartFile(tmp_path / "x.bin", "1") as part:
        part.write(b"abc")
        real, part._stream = part._stream, FullDisk()
        with pytest.raises(DownloadError, match="disk is full"):
            part.write(b"def")
        part._stream = real
    with PartFile(tmp_path / "x.bin", "1") as again:
        assert again.size == 3
        assert again.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert not (tmp_path / "x.bin").exists()


class FullDisk:
    def write(self, block: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        pass


def test_a_place_that_cannot_be_written_is_one_message(hub, entry, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "file"))
    message = refused(entry, endpoint=hub.endpoint)
    assert "cannot be written" in message
    assert "STMDIT_HOME" in message


def test_a_second_download_of_the_same_is_kept_out(hub, entry):
    weights(hub).trickles = True
    started = threading.Event()
    first = threading.Thread(
        target=download, args=(entry,), kwargs={"endpoint": hub.endpoint, "on_progress": lambda _: started.set()}
    )
    first.start()
    assert started.wait(10)
    assert "under way" in refused(entry, endpoint=hub.endpoint)
    weights(hub).trickles = False
    first.join(30)
    assert find_download(entry) is not None


def test_a_file_that_the_user_put_there_is_replaced_only_where_asked(hub, entry, folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"of the user")
    said = refused(entry, endpoint=hub.endpoint)
    assert "config.json was not put there by `stmdit download`" in said and "--force" in said
    (folder / "config.json").write_bytes(b"x" * len(CONFIG))  # seen by its hash alone
    assert "config.json was not put there" in refused(entry, endpoint=hub.endpoint)
    assert (folder / "config.json").read_bytes() == b"x" * len(CONFIG)
    (folder / "config.json").write_bytes(CONFIG)  # what would be put there
    download(entry, endpoint=hub.endpoint)
    assert names(folder) == WHOLE


def test_no_file_is_taken_for_a_part_but_by_its_whole_name(hub, entry, folder):
    folder.mkdir(parents=True)
    (folder / "config.json.my-own-notes.part").write_bytes(b"of the user")
    download(entry, endpoint=hub.endpoint)
    assert names(folder) == WHOLE | {"config.json.my-own-notes.part"}
