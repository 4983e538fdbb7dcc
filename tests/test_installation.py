"""The text for a bug report: what a maintainer needs, and nothing that should stay at home."""

import json

from napari_stmdit import installation
from napari_stmdit.installation import describe_installation


def test_it_says_what_a_maintainer_needs():
    facts = describe_installation()
    assert json.loads(json.dumps(facts)) == facts
    assert {"torch", "napari", "spatialdata", "npe2", "Qt", "python"} <= facts["versions"].keys()
    assert facts["computer"]["memory"].endswith("free") and "threads" in facts["computer"]["processor"]
    assert facts["torch"]["built for"] and facts["devices"]["cpu"] == "CPU"
    assert "free" in facts["directories"]["data"] and facts["checkpoints"]["demo"]


def test_the_environment_is_shown_where_it_matters_and_secrets_never(monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", "/somewhere")
    monkeypatch.setenv("NAPARI_TOKEN", "hunter2")
    monkeypatch.setenv("QT_API", "pyside6")
    monkeypatch.setenv("PATIENT", "Jane Doe")
    found = describe_installation()["environment"]
    assert found["STMDIT_HOME"] == "/somewhere" and found["QT_API"] == "pyside6"
    assert found["NAPARI_TOKEN"] == "set, not shown"
    assert "PATIENT" not in found


def test_known_troubles_are_named(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(installation.sys, "version_info", (3, 11, 7))
    monkeypatch.setattr(installation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert any("no Qt" in one for one in installation._warnings({}, []))
    found = installation._warnings({"PySide6_Essentials": "6.12.0", "PyQt6": "6.8"}, [tmp_path / "new" / "folder"])
    assert any("several Qt" in one for one in found) and any("6.12.0" in one for one in found)
    assert any("built without CUDA" in one for one in found)
    monkeypatch.setattr(installation, "_LITTLE_SPACE", 2**60)
    assert any("little space" in one for one in installation._warnings({}, [tmp_path / "new"]))
    assert not any(
        "several Qt" in one for one in installation._warnings({"PySide6": "6.9", "PySide6_Essentials": "6.9"}, [])
    )
