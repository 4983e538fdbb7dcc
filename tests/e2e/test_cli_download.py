"""`stmdit download` as a user meets it: its exit code, its two streams, a terminal, and a hub on this computer."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import command_line
import numpy as np
import pytest
from hub import LocalHub
from workspace import online

REPOSITORY = "StonyBrook-CVLab/PixCell-256"
CONFIG = b'{"sample_size": 32}'
BYTES = np.random.default_rng(0).bytes(700_000)


@pytest.fixture
def hub():
    with LocalHub() as served:
        served.put(REPOSITORY, "transformer/config.json", CONFIG, lfs=False)
        served.put(REPOSITORY, "transformer/diffusion_pytorch_model.safetensors", BYTES)
        yield served


@pytest.fixture
def surroundings(hub, tmp_path) -> dict[str, str]:
    """The environment of a process that knows this hub alone."""
    return os.environ | {
        "STMDIT_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "napari_stmdit.cli", "download", *map(str, arguments)]


@pytest.fixture
def stmdit(hub, tmp_path, monkeypatch):
    """Run ``stmdit download`` in this process, which knows this hub alone."""
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    online(monkeypatch, hub)
    return partial(command_line.stmdit, "download")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "home" / "downloads" / "pixcell-256"


def weights(folder: Path) -> bytes:
    return (folder / "diffusion_pytorch_model.safetensors").read_bytes()


def test_without_a_name_the_zoo_is_printed(stmdit, hub):
    done = stmdit()
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].isalnum()}
    assert "about 2.43 GB" in rows["pixcell-256"]
    assert "missing" in rows["pixcell-256"]
    assert "yes" in rows["uni2-h"].split()
    assert "unknown" in rows["cancerfoundation"]
    listed = json.loads(stmdit("--json").stdout)["zoo"]
    assert {row["name"] for row in listed} < set(rows)
    assert hub.requests == []


def test_terms_are_shown_and_consent_is_needed(stmdit, hub, folder):
    done = stmdit("pixcell-256")
    assert done.returncode == 2
    assert done.stdout == ""
    for word in ("about 2.43 GB", "CC BY-NC 4.0", f"https://huggingface.co/{REPOSITORY}", str(folder), "--yes"):
        assert word in done.stderr
    assert hub.requests == []
    assert not folder.exists()


def test_with_consent_the_files_arrive_and_what_else_is_needed_is_told(stmdit, folder):
    done = stmdit("pixcell-256", "--yes")
    assert done.returncode == 0, done.stderr
    assert weights(folder) == BYTES
    assert "was downloaded" in done.stdout
    assert "vae sd3.5-vae, missing: `stmdit download sd3.5-vae`" in done.stdout
    assert "morphology encoder uni2-h, missing" in done.stdout
    again = stmdit("pixcell-256")
    assert again.returncode == 0
    assert "is here already" in again.stdout
    assert "  here  " in next(line for line in stmdit().stdout.splitlines() if line.startswith("pixcell-256 "))


def test_json_is_one_object_on_stdout(stmdit, hub, folder):
    done = stmdit("pixcell-256", "--yes", "--json")
    facts = json.loads(done.stdout)
    assert facts["folder"] == str(folder)
    assert facts["already"] is False
    assert facts["record"]["revision"] == hub.commit
    assert facts["components"]["vae"] == {"name": "sd3.5-vae", "state": "missing", "where": None}
    assert json.loads(stmdit("pixcell-256", "--json").stdout)["already"] is True
    assert json.loads(stmdit("pixcell-256", "--json", "--yes", "--force").stdout)["already"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pixcell",), "Did you mean pixcell-256"),
        (("../x",), "nothing to download"),
        (("stmdit:../x",), "no row id"),
        (("stmdit:no-such-row", "--yes"), "stmdit-anon/stmdit-checkpoints"),
        (("uni2-h", "--yes"), "hf auth login"),
        (("pixcell-256", "--yes", "--offline"), "offline mode"),
        (("cancerfoundation", "--yes"), "polybox.ethz.ch"),
        (("cancerfoundation", "--yes", "--from", "nowhere"), "no folder"),
    ],
)
def test_what_cannot_be_had_is_one_message_and_exit_code_2(arguments, words, stmdit, hub):
    hub.gated["MahmoodLab/UNI2-h"] = 401
    assert words in command_line.check_refused(stmdit(*arguments))


def test_a_folder_of_the_user_serves_while_offline(stmdit, hub, tmp_path):
    for name in ("model.pth", "vocab.json", "args.json"):
        (tmp_path / name).write_bytes(name.encode())
    done = stmdit("cancerfoundation", "--from", tmp_path, "--yes", "--offline", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (Path(facts["folder"]) / "model.pth").read_bytes() == b"model.pth"
    assert facts["record"]["copied_from"] == str(tmp_path)
    assert hub.requests == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupt_keeps_the_part_and_the_next_run_continues(stmdit, hub, surroundings, folder):
    served = hub.repositories[REPOSITORY]["transformer/diffusion_pytorch_model.safetensors"]
    served.trickles = True
    process = subprocess.Popen(
        command("pixcell-256", "--yes"),
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(400):
        parts = list(folder.glob("diffusion*.part"))
        if parts and parts[0].stat().st_size > 0:
            break
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "continues" in err
    assert "Traceback" not in err
    arrived = parts[0].stat().st_size
    assert 0 < arrived < len(BYTES)
    served.trickles = False
    hub.requests.clear()
    assert stmdit("pixcell-256", "--yes").returncode == 0
    assert hub.ranges() == [f"bytes={arrived}-"]
    assert weights(folder) == BYTES


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0), (b"\x03", 130)])
def test_on_a_terminal_the_user_is_asked(answer, code, surroundings, hub, folder):
    import pty

    outside, inside = pty.openpty()
    try:
        process = subprocess.Popen(
            command("pixcell-256"),
            env=surroundings,
            stdin=inside,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        assert process.stderr is not None
        seen = b""
        while b"[y/N]" not in seen and (byte := process.stderr.read(1)):
            seen += byte
        assert b"CC BY-NC" in seen
        os.write(outside, answer)
        process.communicate(timeout=60)
    finally:
        os.close(outside)
        os.close(inside)
    assert process.returncode == code
    assert folder.is_dir() is (code == 0)
    if code:
        assert hub.requests == []


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that its Ctrl-C becomes an interrupt, also where interrupts were ignored so far."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# Public sections: here from the mirror that stands in for their servers.


B4 = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data/"


@pytest.fixture
def mirrored(hub, monkeypatch):
    monkeypatch.setenv("STMDIT_MIRROR", hub.web)
    return hub


def test_public_sections_are_listed_with_size_licence_and_state(stmdit, mirrored):
    rows = {line.split()[0]: line for line in stmdit().stdout.splitlines() if line[:1].isalnum()}
    assert (
        "about 4.7 MB" in rows["her2st-b4"] and "missing" in rows["her2st-b4"] and "unknown" in rows["10x-human-heart"]
    )
    listed = {row["name"]: row for row in json.loads(stmdit("--json").stdout)["sections"]}
    assert len(listed) == 13 and listed["her2st-b4"]["citation"].startswith("Andersson et al. 2021")
    assert mirrored.requests == []


def test_size_licence_and_citation_of_a_section_come_before_consent(stmdit, mirrored, tmp_path):
    done = stmdit("her2st-b4")
    assert done.returncode == 2 and mirrored.requests == []
    for word in ("about 4.7 MB", "CC BY 4.0", "10.5281/zenodo.4751624", "Nat Commun 12:6012", "283 spots", "--yes"):
        assert word in done.stderr
    for name in ("image.tif", "filtered_feature_bc_matrix.h5", "spatial.tar.gz"):
        mirrored.put_page(
            f"https://cf.10xgenomics.com/samples/spatial-exp/1.1.0/V1_Human_Heart/V1_Human_Heart_{name}",
            b"x" * 5_000_000,
        )
    assert "about 15 MB" in stmdit("10x-human-heart").stderr  # as the server says
    assert mirrored.asked() == [] and not (tmp_path / "home" / "downloads").exists()
    hint = stmdit("her2st-b5").stderr
    assert "Did you mean" in hint and "her2st-b4" in hint


def test_a_section_whose_bytes_are_others_is_one_message_and_nothing_is_kept(stmdit, mirrored, tmp_path):
    for name in ("ST-imgs/B/B4/BT10737_D2_HE.jpg", "ST-cnts/B4.tsv.gz", "ST-spotfiles/B4_selection.tsv"):
        mirrored.put_page(B4 + name, b"another")
    done = stmdit("her2st-b4", "--yes")
    assert done.returncode == 2 and "3cb165614ce2" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "home").rglob("*.jpg*")) and not (tmp_path / "home" / "sections").exists()


@pytest.mark.slow
def test_the_published_section_arrives_and_opens_by_its_name(stmdit, mirrored, shared_data):
    folder = shared_data / "her2st_B4_spaceranger1"
    mirrored.put_page(f"{B4}ST-imgs/B/B4/BT10737_D2_HE.jpg", (folder / "B4_image.jpg").read_bytes())
    mirrored.put_page(f"{B4}ST-cnts/B4.tsv.gz", (folder / "original" / "B4.tsv.gz").read_bytes())
    mirrored.put_page(f"{B4}ST-spotfiles/B4_selection.tsv", (folder / "original" / "B4_selection.tsv").read_bytes())
    done = stmdit("her2st-b4", "--yes")
    assert done.returncode == 0, done.stderr
    assert "was downloaded" in done.stdout and "stmdit synthesize her2st-b4" in done.stdout
    assert "is here already" in stmdit("her2st-b4", "--offline").stdout
    facts = json.loads(command_line.stmdit("inspect", "her2st-b4", "--json").stdout)
    assert (facts["name"], facts["spots"], facts["genes"], facts["image"]["shape"]) == (
        "her2st-b4",
        283,
        15289,
        [9923, 9272],
    )
    assert facts["mpp"] == pytest.approx(0.688, abs=5e-4) and facts["alignment"]["verdict"] == "fits"
