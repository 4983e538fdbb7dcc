"""What a worker keeps between runs."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("distributed")


def test_a_worker_that_lives_on_takes_up_a_checkpoint_that_has_changed(tiny_checkpoint, tmp_path):
    from napari_stmdit.scale.work import facts

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    before = facts(str(folder), "cpu", "float32")
    assert facts(str(folder), "cpu", "float32") == before
    card = folder / "stmdit.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "steps": 7}))
    after = facts(str(folder), "cpu", "float32")
    assert after.card.steps == 7 and after.provenance["sha256"] != before.provenance["sha256"]
