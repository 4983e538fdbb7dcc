"""Several writers of one store: nobody's result is lost, and none hides the others."""

import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
from killing import forked
from store_writers import save_many
from two_sections import one_of_two

from napari_stmdit.synthesis.stored import read_stored
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.store import write_result


def check_whole(store, expected):
    found = read_stored(open_section(store))
    assert not found.left_out
    assert Counter(one.provenance["writer"] for one in found.results) == expected
    numbers = {(one.provenance["writer"], one.provenance["number"]) for one in found.results}
    assert len(numbers) == sum(expected.values())
    for one in found.results:
        value = 1 + one.provenance["number"] % 200
        assert (np.asarray(one.rgba) == value).all()
        assert one.patches is not None and (np.asarray(one.patches[:]) == value).all()
    assert [name for name in os.listdir(store.parent) if name != store.name] == []


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.nightly)])
def test_two_processes_save_into_one_store_and_nothing_is_lost(count, tmp_path):
    store = tmp_path / "shared.zarr"  # made by one of them, whoever comes first
    writers = [forked(save_many, store, "A", count, prefix) for prefix in ("first", "second")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=900)
        assert writer.exitcode == 0
    check_whole(store, {"first": count, "second": count})


def test_two_threads_save_into_one_store_and_nothing_is_lost(tmp_path):
    store, faults = tmp_path / "shared.zarr", []

    def work(prefix):
        try:
            save_many(store, "A", 4, prefix)
        except Exception as error:  # noqa: BLE001 - a thread has no caller that could take it
            faults.append(error)

    threads = [threading.Thread(target=work, args=(prefix,)) for prefix in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    check_whole(store, {"first": 4, "second": 4})


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_writer_that_is_killed_leaves_a_store_that_can_be_read_and_added_to(kills, tmp_path):
    store, rng = tmp_path / "shared.zarr", random.Random(5)
    save_many(store, "A", 1, "before")
    for kill in range(kills):
        writer = forked(save_many, store, "A", 1000, f"killed{kill}")
        count = len(list((store / "images").iterdir()))
        writer.start()
        while len(list((store / "images").iterdir())) == count:
            assert writer.is_alive()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        writer.kill()
        writer.join()
        found = read_stored(open_section(store))
        kept = Counter(one.provenance["writer"] for one in found.results)
        assert kept["before"] == 1 and all(kept[f"killed{earlier}"] for earlier in range(kill))
        assert all(one.patches is not None for one in found.results)
        assert all("save that was cut short" in why or "no record" in why for why in found.left_out.values())
    name = write_result(store, np.zeros((8, 8, 4), np.uint8), np.eye(3), one_of_two("A"), None, {"writer": "after"})
    assert name in [one.element for one in read_stored(open_section(store)).results]
