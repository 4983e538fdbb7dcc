"""One run on several workers, which are real processes: the same pixels, whatever happens to a worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from killing import forked_workers

from napari_stmdit.edits import Scale
from napari_stmdit.errors import RequestError, StmditError, StoreError, SynthesisError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SampleOfSpots, SpotList

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    """Two workers, which are forked; as users have them, started afresh, they are in `e2e/test_workers`."""
    from napari_stmdit.scale.cluster import connect

    with forked_workers(), connect(None, 2, "cpu") as client:
        yield client


@pytest.fixture(scope="module")
def source(tiny_folder):
    from napari_stmdit.scale.work import SectionSource

    return SectionSource(path=tiny_folder)


@pytest.fixture(scope="module")
def section(source):
    return source.open()


@pytest.fixture(scope="module")
def request_(tiny_checkpoint):
    return Request(checkpoint=str(tiny_checkpoint), edits=(Scale(genes=("ERBB2",), factor=3.0),), seed=5)


@pytest.fixture(scope="module")
def alone(section, request_):
    """The run in this process."""
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.session import synthesize

    return synthesize(section, request_, load_checkpoint(request_.checkpoint, "cpu"))


def shared(client, source, section, request, folder, **options):
    from napari_stmdit.scale.cluster import synthesize_shared

    options = {"batch": 2, "device": "cpu", **options}
    return synthesize_shared(client, source, section, request, folder=folder, **options)


def same(result, alone) -> bool:
    return int(np.abs(np.asarray(result.rgba).astype(int) - np.asarray(alone.rgba)).max()) <= 1


def test_two_workers_make_the_pixels_of_one(client, source, section, request_, alone, tmp_path):
    seen = []
    result = shared(client, source, section, request_, tmp_path / "o.unfinished", on_progress=seen.append)
    assert result.complete and same(result, alone)
    assert [p.patches_done for p in seen] == sorted(p.patches_done for p in seen) and seen[-1].fraction == 1
    assert result.provenance["checkpoint"]["sha256"] == alone.provenance["checkpoint"]["sha256"]
    assert result.provenance["patches"]["seeds"] == alone.provenance["patches"]["seeds"]
    events = [e for topic, found in client.get_events().items() if topic.startswith("stmdit-") for e in found]
    assert {event["worker"] for _, event in events} == set(client.nthreads()), "one worker did it all"
    name = result.save(tmp_path / "o.zarr")
    from napari_stmdit.tissue.store_entries import read_result

    np.testing.assert_array_equal(read_result(tmp_path / "o.zarr", name)[0].compute(), np.asarray(result.rgba))


def test_a_worker_that_is_killed_loses_nothing(client, source, section, request_, alone, tmp_path):
    killed = []
    pids = client.run(os.getpid)

    def kill(progress):
        if not killed and progress.patches_done >= 4:
            killed.append(next(iter(pids.values())))
            os.kill(killed[0], signal.SIGKILL)

    slow = request_.model_copy(update={"steps": 20, "region": SampleOfSpots(count=16)})
    result = shared(client, source, section, slow, tmp_path / "o", batch=1, on_progress=kill)
    assert killed and result.complete and not result.failed
    assert any("1 worker left" in note for note in result.notes)
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.session import synthesize

    assert same(result, synthesize(section, slow, load_checkpoint(slow.checkpoint, "cpu")))
    client.wait_for_workers(2, timeout=60)
    assert killed[0] not in client.run(os.getpid).values()


def test_stopping_keeps_what_is_done_and_another_client_takes_it_up(client, source, section, request_, alone, tmp_path):
    cancel, folder = CancelToken(), tmp_path / "o"
    began = []

    def stop(progress):
        if progress.patches_done >= 4 and not began:
            began.append(time.perf_counter())
            cancel.cancel()

    part = shared(client, source, section, request_, folder, batch=1, cancel=cancel, on_progress=stop)
    assert 4 <= len(part.done) < 30 and not part.complete
    assert time.perf_counter() - began[0] < 20
    with pytest.raises(StoreError, match="--resume"):
        shared(client, source, section, request_, folder)
    with pytest.raises(StoreError, match="seed"):
        shared(client, source, section, request_.model_copy(update={"seed": 6}), folder, resume=True)
    whole = shared(client, source, section, request_, folder, resume=True)
    assert whole.complete and same(whole, alone)
    assert any(f"{len(part.done)} of 30 patches were finished before" in note for note in whole.notes)


def test_a_continuous_region_stays_on_one_worker(client, source, section, request_, tmp_path):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.session import synthesize

    request = request_.model_copy(
        update={"mode": "continuous", "steps": 2, "region": SpotList(ids=("SPOT07-1", "SPOT08-1"))}
    )
    before = {topic for topic in client.get_events() if topic.startswith("stmdit-")}
    fractions = []
    result = shared(
        client,
        source,
        section,
        request,
        tmp_path / "o",
        on_progress=lambda progress: fractions.append(progress.fraction),
    )
    assert any(0 < fraction < 1 for fraction in fractions) and fractions == sorted(fractions)
    assert result.complete and same(result, synthesize(section, request, load_checkpoint(request.checkpoint, "cpu")))
    news = {topic: found for topic, found in client.get_events().items() if topic.startswith("stmdit-")}
    workers = {event["worker"] for topic in set(news) - before for _, event in news[topic]}
    assert len(workers) == 1


def test_a_continuous_region_goes_on_where_its_worker_was_killed(client, source, section, request_, tmp_path):
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.session import synthesize

    few = SpotList(ids=("SPOT07-1", "SPOT08-1"))
    request = request_.model_copy(update={"mode": "continuous", "steps": 12, "region": few})
    killed = []

    def kill(progress):
        if not killed and (tmp_path / "o" / "solver.npz").exists():
            killed.extend(client.run(os.getpid).values())  # whichever of them it is on
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = shared(client, source, section, request, tmp_path / "o", on_progress=kill)
    assert killed and result.complete
    assert same(result, synthesize(section, request, load_checkpoint(request.checkpoint, "cpu")))


def test_a_checkpoint_named_by_a_relative_path_is_the_one_that_is_here(
    client, source, section, request_, tiny_checkpoint, tmp_path, monkeypatch
):
    """A worker works in a folder of its own, where another checkpoint may be called the same."""
    from napari_stmdit.scale.cluster import remote_checkpoint

    own = tmp_path / "mine"
    shutil.copytree(tiny_checkpoint, own)
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_checkpoint, elsewhere / "mine")
    card = elsewhere / "mine" / "stmdit.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "steps": 7}))
    before = client.run(os.getcwd)
    client.run(os.chdir, str(elsewhere))
    try:
        assert remote_checkpoint(client, "mine", "cpu", "auto").card.steps != 7
        few = request_.model_copy(update={"checkpoint": "mine", "region": SampleOfSpots(count=2)})
        result = shared(client, source, section, few, tmp_path / "o")
    finally:
        for worker, folder in before.items():
            client.run(os.chdir, folder, workers=[worker])
    assert result.complete and result.provenance["request"]["checkpoint"] == "mine"
    assert shared(client, source, section, few, tmp_path / "o", resume=True).complete


def test_a_worker_that_would_compute_something_else_is_refused(client, source, request_, tmp_path):
    from napari_stmdit.scale.work import SectionSource

    other = SectionSource(path=source.path, mpp=0.6)
    with pytest.raises(SynthesisError, match="would compute something else") as error:
        shared(client, source, other.open(), request_, tmp_path / "o")
    assert "mpp: 0.6 then, 0.7 now" in str(error.value) and "--resume" in str(error.value)


@pytest.mark.parametrize("mode", ["spots", "continuous"])
@pytest.mark.parametrize("disk", ["has no such folder", "has another run in it", "has a copy of it"])
def test_workers_that_see_another_disk_are_refused(
    disk, mode, client, source, section, request_, tmp_path, monkeypatch
):
    """All would be computed, and nothing of it be here."""
    from napari_stmdit.scale import work

    elsewhere, task_of = tmp_path / "elsewhere", work.Task

    def task(source, request, folder, *rest):
        if disk != "has no such folder":
            shutil.copytree(folder, elsewhere)
        if disk == "has another run in it":
            record = elsewhere / "run.json"
            record.write_text(json.dumps(json.loads(record.read_text()) | {"run_id": "another"}))
        return task_of(source, request, elsewhere, *rest)

    monkeypatch.setattr(work, "Task", task)
    few = {"mode": mode, "steps": 1, "region": SpotList(ids=("SPOT07-1", "SPOT08-1"))}
    with pytest.raises(StmditError, match="workers need (the|this) disk") as error:
        shared(client, source, section, request_.model_copy(update=few), tmp_path / "o")
    assert "--resume" in str(error.value)
    if disk == "has a copy of it":
        assert f"are not in {tmp_path / 'o'}" in str(error.value) and "0 of 2 patches are finished" in str(error.value)
    else:
        assert re.search(f"worker tcp://127.0.0.1:[0-9]+ does not find this run in {elsewhere}", str(error.value))
    assert elsewhere.exists() == (disk != "has no such folder")


def test_a_worker_with_another_version_of_the_package_is_refused(
    client, source, section, request_, tmp_path, monkeypatch
):
    from napari_stmdit.scale import work

    monkeypatch.setattr(work, "Task", partial(work.Task, version="0.0.1"))
    with pytest.raises(SynthesisError, match="napari-stmdit: '0.0.1' then, .* now") as error:
        shared(client, source, section, request_, tmp_path / "o")
    assert "need the same version of the package" in str(error.value)


def test_a_plain_slide_is_opened_by_the_workers_as_it_was_here(client, request_, tmp_path):
    from slides import tissue_picture, write_pyramid, write_table

    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.synthesis.session import synthesize
    from napari_stmdit.tissue.open import SectionSource

    slide = write_pyramid(tmp_path / "slide.tif", tissue_picture())
    table = write_table(tmp_path / "mine.h5ad", SectionSource(path=slide, mpp=0.5).open().spots.yx)
    plain = request_.model_copy(update={"region": SampleOfSpots(count=3), "edits": ()})
    for options in ({"grid_pitch": 120.0, "tissue_fraction": 0.2}, {"predicted_expression": table}):
        source = SectionSource(path=slide, mpp=0.5, **options)
        section = source.open()
        result = shared(client, source, section, plain, tmp_path / f"o{len(options)}")
        assert result.complete
        assert same(result, synthesize(section, plain, load_checkpoint(plain.checkpoint, "cpu")))


def test_bad_requests_and_checkpoints_are_refused_as_without_a_cluster(client, source, section, request_, tmp_path):
    from napari_stmdit.errors import CheckpointError

    with pytest.raises(RequestError, match="NOSUCH"):
        wrong = request_.model_copy(update={"edits": (Scale(genes=("NOSUCH",), factor=2.0),)})
        shared(client, source, section, wrong, tmp_path / "o")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        shared(client, source, section, request_.model_copy(update={"checkpoint": "nothing"}), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_share_over_which_workers_die_again_and_again_ends_the_run(client, source, section, request_, tmp_path):
    from concurrent.futures import Future

    from distributed import KilledWorker

    from napari_stmdit.scale import cluster
    from napari_stmdit.synthesis.plan import plan

    model = cluster.remote_checkpoint(client, request_.checkpoint, "cpu", "auto")
    share = cluster._SharedSynthesis(client, None, plan(section, request_, model.card), CancelToken(), None)
    dead: Future = Future()
    dead.set_exception(KilledWorker("compute-1", SimpleNamespace(address="tcp://10.0.0.1:1"), 3))
    assert share._outcome(dead, [1, 2]) is None, "the first time it is tried again"
    assert share._outcome(dead, [3]) is None
    with pytest.raises(SynthesisError, match="worker after worker died over the same 1 patches"):
        share._outcome(dead, [2])


def test_nobody_at_the_address_is_said(monkeypatch):
    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "ANSWER_S", 1)
    with (
        pytest.raises(StmditError, match="no dask scheduler answers at tcp://127.0.0.1:1"),
        cluster.connect("tcp://127.0.0.1:1", None),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "missing port"),
        ("tcp://head", "missing port"),
        ("tcp://:8786", "no host"),
        ("tcp://head:0", "no port"),
        ("tcp://head:port", "invalid literal"),
        ("htp://head:8786", "unknown address scheme"),
        ("tls://head:8786", "certificates"),
        ("ucx://head:8786", "UCX"),
    ],
)
def test_a_bad_address_is_said_at_once_and_once(address, says, monkeypatch):
    import distributed

    from napari_stmdit.scale import cluster

    monkeypatch.setattr(distributed, "Client", None)  # half made, it waits for 40 s and prints a traceback
    with (
        pytest.raises(StmditError, match=f"no dask scheduler answers at {address} .*{says}.*tcp://host:8786"),
        cluster.connect(address, None),
    ):
        pass


def test_a_cluster_without_workers_is_not_waited_for_for_ever(monkeypatch, source, section, request_, tmp_path):
    from distributed import Client, LocalCluster

    from napari_stmdit.scale import cluster

    monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
    with (
        LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1", silence_logs=50) as empty,
        Client(empty, set_as_default=False) as nobody,
        pytest.raises(SynthesisError, match="no worker for 1 s"),
    ):
        shared(nobody, source, section, request_, tmp_path / "o")


def test_everything_is_closed_at_the_end():
    from napari_stmdit.scale.cluster import connect

    threads = threading.active_count()
    with forked_workers(), connect(None, 1, "cpu") as client:
        (pid,) = client.run(os.getpid).values()
        address = client.scheduler_info()["address"]
        assert address.startswith("tcp://127.0.0.1:") and all("127.0.0.1" in worker for worker in client.nthreads())
    deadline = time.monotonic() + 15
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid)
    assert threading.active_count() <= threads + 3  # of executors that dask keeps


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(") ")[1][0] != "Z"


@pytest.mark.parametrize(
    ("workers", "device", "gpus", "message"),
    [
        (3, "auto", 2, "3 workers need a GPU each, and this computer has 2"),
        (2, "cuda:1", 4, "one device"),
        (0, "cpu", 0, "got 0"),
    ],
)
def test_workers_that_do_not_fit_the_computer_are_refused(workers, device, gpus, message):
    from napari_stmdit.scale.cluster import worker_environments

    with pytest.raises(RequestError, match=message):
        worker_environments(workers, device, gpus, 16)


def test_each_worker_gets_a_gpu_or_its_part_of_the_cores(monkeypatch):
    from napari_stmdit.scale.cluster import worker_environments

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(4, "auto", 4, 32)] == ["0", "1", "2", "3"]
    assert {e["OMP_NUM_THREADS"] for e in worker_environments(4, "cpu", 4, 32)} == {"8"}
    assert all("CUDA_VISIBLE_DEVICES" not in e for e in worker_environments(2, "cpu", 4, 1))
    assert worker_environments(3, "auto", 0, 2)[0]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("names", ["2,3", "GPU-1f, GPU-2e", "MIG-a1,MIG-b2", "7,1,0"])
def test_workers_stay_on_the_gpus_that_were_given(names, monkeypatch):
    """On a shared node the others belong to somebody else."""
    from napari_stmdit.scale.cluster import worker_environments

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    expected = [part.strip() for part in names.split(",")]
    for device in ("auto", "cuda"):
        found = worker_environments(2, device, len(expected), 8)
        assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == expected[:2]
    for device in ("cpu", "cuda:1"):  # the one device is counted within what is visible, by torch itself
        (environment,) = worker_environments(1, device, len(expected), 8)
        assert "CUDA_VISIBLE_DEVICES" not in environment


def test_threads_of_workers_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch):
    from napari_stmdit.devices import WAITING
    from napari_stmdit.scale.cluster import worker_environments

    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    assert all(WAITING.items() <= e.items() for e in worker_environments(2, "cpu", 0, 4))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # not with a number of spins that would undo it
    for environment in worker_environments(2, "cpu", 0, 4):
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and "GOMP_SPINCOUNT" not in environment


def test_a_port_that_is_taken_is_nobodys_business(recwarn):
    """The scheduler's own pages are off, and so is the port they would have; another cluster on this computer may hold it."""
    import socket

    from napari_stmdit.scale.cluster import local_client

    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 8787))
            other.listen()
        except OSError:
            pass  # then somebody else holds it already
        with forked_workers(), local_client(1, "cpu"):
            pass
    assert [str(w.message) for w in recwarn if "8787" in str(w.message)] == []
