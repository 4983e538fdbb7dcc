"""Downloads from plain web servers, which know no commits and no hashes: what the hub's downloads share is in `test_download.py`."""

import hashlib
import json

import numpy as np
import pytest
from hub import LocalHub

from napari_stmdit.downloads import transfer
from napari_stmdit.downloads.download import ask_size, download, find_download
from napari_stmdit.downloads.places import Entry, download_directory
from napari_stmdit.downloads.transfer import DownloadCancelledError
from napari_stmdit.errors import DownloadError
from napari_stmdit.progress import CancelToken, DownloadProgress

LARGE, SMALL = np.random.default_rng(0).bytes(1_500_000), b"x\ty\n1\t2\n"
SOURCE = "https://data.example.org/record"
ENTRY = Entry(
    name="tissue",
    title="A tissue",
    fetch="web",
    source=SOURCE,
    subfolder="one",
    files=("images/slide.jpg", "spots.tsv"),
    licence="CC BY 4.0",
    terms="https://example.org/terms",
)
HASHES = {"images/slide.jpg": hashlib.sha256(LARGE).hexdigest(), "spots.tsv": hashlib.sha256(SMALL).hexdigest()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import close_session

    with LocalHub() as served:
        monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("STMDIT_MIRROR", served.web)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(transfer, "PAUSES_S", (0.0, 0.0))
        close_session()
        served.put_page(f"{SOURCE}/one/images/slide.jpg", LARGE)
        served.put_page(f"{SOURCE}/one/spots.tsv", SMALL)
        yield served
        close_session()


@pytest.fixture
def slide(hub):
    return hub.pages["/data.example.org/record/one/images/slide.jpg"]


def arrived() -> set[str]:
    folder = download_directory(ENTRY.name)
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    } - {".lock"}


WHOLE = {"images/slide.jpg", "spots.tsv", "download.json"}


def test_files_arrive_whole_with_their_hashes_recorded(hub):
    done = download(ENTRY)
    assert arrived() == WHOLE and (done.folder / "images" / "slide.jpg").read_bytes() == LARGE
    record = json.loads((done.folder / "download.json").read_text())
    assert {name: file["sha256"] for name, file in record["files"].items()} == HASHES
    assert (record["source"], record["subfolder"], record["revision"], record["copied_from"]) == (
        SOURCE,
        "one",
        None,
        None,
    )
    assert find_download(ENTRY).already


def test_no_token_of_the_hub_is_sent_to_another_server(hub):
    download(ENTRY)
    assert {headers.get("authorization") for _, _, _, headers in hub.requests} == {None}
    assert {headers["user-agent"] for _, _, _, headers in hub.requests} == {"napari-stmdit"}


def test_a_size_is_asked_for_without_fetching(hub):
    assert ask_size(ENTRY) == len(LARGE) + len(SMALL)
    assert hub.asked() == [] and len(hub.asked("HEAD")) == 2
    assert ask_size(ENTRY.model_copy(update={"size_bytes": 5})) == 5 and len(hub.requests) == 2
    hub.pages.clear()
    assert ask_size(ENTRY) is None


def test_a_broken_connection_is_continued_now_and_by_the_next_download(hub, slide):
    slide.drop_after = [400_000, 100_000, 0]
    with pytest.raises(DownloadError, match="500,000 of 1,500,000 bytes of images/slide.jpg.*stmdit download tissue"):
        download(ENTRY)
    assert hub.ranges("web") == [None, "bytes=400000-", "bytes=500000-"] and not arrived() & WHOLE
    hub.requests.clear()
    download(ENTRY)
    assert hub.ranges("web") == ["bytes=500000-", None] and arrived() == WHOLE
    assert (download_directory(ENTRY.name) / "images" / "slide.jpg").read_bytes() == LARGE


def test_two_versions_are_never_mixed(hub, slide):
    slide.drop_after = [400_000, 0, 0]
    with pytest.raises(DownloadError):
        download(ENTRY)
    slide.content = LARGE[::-1]
    hub.requests.clear()
    download(ENTRY)
    assert hub.ranges("web")[0] is None
    assert (download_directory(ENTRY.name) / "images" / "slide.jpg").read_bytes() == LARGE[::-1]


def test_a_file_that_differs_from_its_known_hash_is_removed(hub, slide):
    slide.content = LARGE[::-1]
    with pytest.raises(DownloadError, match=HASHES["images/slide.jpg"]):
        download(ENTRY.model_copy(update={"sha256": HASHES}))
    assert not arrived()


def test_a_stop_keeps_what_arrived(hub, slide):
    slide.pause_s, cancel = 0.02, CancelToken()

    def stop(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            cancel.cancel()

    with pytest.raises(DownloadCancelledError, match="continues"):
        download(ENTRY, on_progress=stop, cancel=cancel)
    assert not arrived() & WHOLE and any(name.endswith(".part") for name in arrived())


@pytest.mark.parametrize("how", ["STMDIT_OFFLINE", "HF_HUB_OFFLINE", "argument"])
def test_offline_never_touches_the_network(how, hub, monkeypatch):
    if how != "argument":
        monkeypatch.setenv(how, "1")
        assert ask_size(ENTRY) is None
    with pytest.raises(DownloadError, match="offline mode"):
        download(ENTRY, offline=True if how == "argument" else None)
    assert hub.requests == []


def test_what_cannot_be_had_is_one_message(hub, monkeypatch):
    hub.busy = 99
    with pytest.raises(DownloadError, match="status 503.*--from FOLDER"):
        download(ENTRY)
    hub.busy = 0
    del hub.pages["/data.example.org/record/one/spots.tsv"]
    hub.requests.clear()
    with pytest.raises(DownloadError, match="there is no file .*spots.tsv.*https://example.org/terms"):
        download(ENTRY)
    assert hub.asked() == [], "nothing is fetched before all are known"
    monkeypatch.setenv("STMDIT_MIRROR", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match="cannot be reached.*--from FOLDER"):
        download(ENTRY)
    monkeypatch.setenv("STMDIT_MIRROR", "no address")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(ENTRY)


def test_flat_files_of_a_folder_serve_as_well(hub, tmp_path):
    (tmp_path / "slide.jpg").write_bytes(LARGE)
    (tmp_path / "spots.tsv").write_bytes(SMALL)
    done = download(ENTRY, source_folder=tmp_path, offline=True)
    assert (done.folder / "images" / "slide.jpg").read_bytes() == LARGE and hub.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "http://data.example.org"},
        {"source": "owner/name"},
        {"files": ["../x"]},
        {"sha256": {"spots.tsv": "abc"}},
    ],
)
def test_a_hostile_entry_is_refused(fields):
    with pytest.raises(ValueError):
        Entry.model_validate({**ENTRY.model_dump(), **fields})
