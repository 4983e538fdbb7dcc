"""Clusters that have no worker yet, lose the last one, or lose their scheduler: what is finished is kept, and the error says how to go on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import yaml
from killing import forked_workers, mortal_cluster

from napari_stmdit.errors import ClusterGoneError, SynthesisError
from napari_stmdit.intent import Request
from napari_stmdit.regions import SampleOfSpots, SpotList
from napari_stmdit.tissue.open import SectionSource

pytest.importorskip("distributed", reason="runs on a cluster need the extra: napari-stmdit[cluster]")


@contextmanager
def cluster_of(workers):
    from distributed import LocalCluster

    how = {"threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1", "silence_logs": 50}
    with forked_workers(), LocalCluster(n_workers=workers, **how) as cluster:
        yield cluster


@pytest.fixture
def patience(monkeypatch):
    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)


def shared(client, folder, tiny_folder, tiny_checkpoint, on_progress=None, **request):
    from napari_stmdit.scale.cluster import synthesize_shared

    source = SectionSource(path=tiny_folder)
    asked = Request(checkpoint=str(tiny_checkpoint), seed=5, **request)
    how = {"batch": 1, "device": "cpu", "on_progress": on_progress}
    return synthesize_shared(client, source, source.open(), asked, folder=folder, **how)


def test_a_cluster_that_grows_with_what_is_asked_of_it_gets_its_first_worker(
    tiny_folder, tiny_checkpoint, tmp_path, monkeypatch
):
    from distributed import Client

    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "PATIENCE_S", 40.0)
    with cluster_of(0) as empty, Client(empty, set_as_default=False) as client:
        empty.adapt(minimum=0, maximum=1)
        region = SampleOfSpots(count=2)
        assert shared(client, tmp_path / "o", tiny_folder, tiny_checkpoint, steps=1, region=region).complete


def test_ctrl_c_ends_the_wait_for_the_first_worker(tiny_folder, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    from napari_stmdit import cli
    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "PATIENCE_S", 15.0)
    with cluster_of(0) as empty:
        options = ["--checkpoint", tiny_checkpoint, "--output", tmp_path / "o", "--scheduler", empty.scheduler_address]
        monkeypatch.setattr(sys, "argv", ["stmdit", "synthesize", str(tiny_folder), *map(str, options)])
        press = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
        press.start()
        since = time.monotonic()
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 130 and time.monotonic() - since < 12
    assert "stopped before a worker had loaded the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["spots", "continuous"])
def test_a_scheduler_that_is_lost_is_said_with_what_is_kept(
    mode, tiny_folder, tiny_checkpoint, tmp_path, monkeypatch, caplog
):
    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    lost = []
    region = SampleOfSpots(count=16) if mode == "spots" else SpotList(ids=("SPOT07-1", "SPOT08-1"))
    with (
        mortal_cluster(tmp_path / "address") as (address, scheduler),
        cluster.connect(address, None) as client,
    ):

        def lose(progress):
            if not lost and (progress.patches_done >= 2 or progress.step >= 2):
                lost.append(progress)
                scheduler.kill()

        with pytest.raises(ClusterGoneError, match="connection to the dask scheduler was lost") as error:
            shared(client, tmp_path / "o", tiny_folder, tiny_checkpoint, lose, mode=mode, steps=20, region=region)
    assert lost and str(tmp_path / "o") in str(error.value) and "--resume" in str(error.value)
    assert not [record for record in caplog.records if record.name == "distributed.client"], "it was said twice"
    if mode == "spots":
        assert re.search("[1-9] of 16 patches are finished and kept", str(error.value))


def test_a_scheduler_without_the_package_is_told_from_a_bad_checkpoint(tiny_checkpoint, tmp_path):
    from distributed import Client

    from napari_stmdit.scale.cluster import remote_checkpoint

    with (
        mortal_cluster(tmp_path / "address", "bare scheduler") as (address, _),
        Client(address, set_as_default=False) as client,
        pytest.raises(SynthesisError, match="napari_stmdit.*the scheduler and all workers need napari-stmdit, in this"),
    ):
        remote_checkpoint(client, str(tiny_checkpoint), "cpu", "auto")


@pytest.fixture
def jobs(tiny_folder, tiny_checkpoint, tmp_path):
    """A cohort of four sections."""
    from napari_stmdit.scale.batch import read_jobs

    names = ["a", "b", "c", "d"]
    for name in names:
        shutil.copytree(tiny_folder, tmp_path / name)
    content = {
        "output": "results",
        "checkpoint": str(tiny_checkpoint),
        "sections": [{"path": name} for name in names],
        "request": {"region": {"kind": "sample", "count": 2}, "steps": 1},
    }
    file = tmp_path / "jobs.yaml"
    file.write_text(yaml.safe_dump(content))
    return read_jobs(file)


def take_workers_away(cluster, client):
    cluster.scale(0)
    while client.nthreads():
        time.sleep(0.1)


@pytest.mark.parametrize("gone", ["its workers", "its scheduler"])
def test_a_batch_ends_with_its_cluster(gone, patience, jobs):
    """Each further job would but wait as long for a worker, and fail."""
    from distributed import Client

    from napari_stmdit.scale.batch import ClusterRunner, exit_code, run_batch, table

    with cluster_of(1) as cluster, Client(cluster.scheduler_address, timeout=1, set_as_default=False) as client:

        def lose(outcome):
            if outcome.job.place.name == "a":
                take_workers_away(cluster, client) if gone == "its workers" else client.close()

        outcomes = run_batch(jobs, ClusterRunner(client, "cpu"), on_outcome=lose)
    assert [o.state for o in outcomes] == ["done", "failed", "not begun", "not begun"] and exit_code(outcomes) == 1
    expected = "has had no worker for 1 s" if gone == "its workers" else "connection to the dask scheduler was lost"
    assert expected in outcomes[1].message and "run the batch again" in outcomes[1].message
    assert table(outcomes).count("run the batch again") == 1


def test_a_batch_that_waits_for_a_worker_can_be_stopped(jobs, monkeypatch):
    from distributed import Client

    from napari_stmdit.progress import CancelToken
    from napari_stmdit.scale import cluster as module
    from napari_stmdit.scale.batch import ClusterRunner, exit_code, run_batch

    monkeypatch.setattr(module, "PATIENCE_S", 10.0)
    cancel = CancelToken()
    with cluster_of(1) as cluster, Client(cluster.scheduler_address, set_as_default=False) as client:

        def lose(outcome):
            if outcome.state == "done":
                take_workers_away(cluster, client)
                threading.Timer(1.0, cancel.cancel).start()

        outcomes = run_batch(jobs, ClusterRunner(client, "cpu"), cancel=cancel, on_outcome=lose)
    assert [o.state for o in outcomes] == ["done", "stopped", "not begun", "not begun"] and exit_code(outcomes) == 130
