"""Edits of real tissue on several workers: what one process makes, the slide elsewhere, and the record says what the map explains."""

from __future__ import annotations

import numpy as np
import pytest
from killing import forked_workers
from tiny import TINY_GENES

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.edits import Scale
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.crops import read_patches

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    from napari_stmdit.scale.cluster import connect

    with forked_workers(), connect(None, 2, "cpu") as client:
        yield client


@pytest.mark.parametrize("mode", ["spots", "continuous"])
def test_two_workers_edit_tissue_as_one_does_and_record_the_map(client, tiny_folder, tiny_checkpoint, tmp_path, mode):
    from napari_stmdit.scale.cluster import synthesize_shared
    from napari_stmdit.scale.work import SectionSource

    source = SectionSource(path=tiny_folder)
    section = source.open()
    ids = tuple(section.spots.ids.tolist())
    edit = Scale(genes=tuple(TINY_GENES[:4]), factor=40.0, spots={ids[12]: 1.0, ids[13]: 1.0})
    request = Request(
        checkpoint=str(tiny_checkpoint), region=SpotList(ids=ids[10:16]), steps=3, mode=mode, edits=(edit,)
    )
    model = load_checkpoint(tiny_checkpoint, "cpu")
    for batch in (1, 8):
        alone = synthesize(section, request, model, batch=batch)
        result = synthesize_shared(
            client, source, section, request, folder=tmp_path / f"o{batch}", batch=batch, device="cpu"
        )
        assert result.complete and result.provenance["counterfactual"]
        assert np.abs(np.asarray(result.rgba).astype(int) - alone.rgba).max() <= 1
        assert result.provenance["edit"] == alone.provenance["edit"] and "map" in result.provenance["edit"]
        again = synthesize_shared(
            client, source, section, request, folder=tmp_path / f"o{batch}", batch=batch, device="cpu", resume=True
        )
        assert again.complete and again.provenance["edit"] == alone.provenance["edit"]
        assert set(result.notes) <= set(again.notes)
        if mode == "spots":
            for at, index in enumerate(result.done):
                patch = result.plan.patches[index]
                crop = read_patches(section.image, [patch.source_box], model.card.patch_px)[0]
                assert (patch.spot_id in ids[12:14]) == bool((np.asarray(result.patches[at]) != crop).any())
