"""The traps of generator workers (T1 to T7), each sprung on purpose. They need Qt's event loop, but no viewer."""

import gc
import threading
import time
import warnings
import weakref

import pytest
from models_for_ui import SlowModel
from viewing import no_leaks, settle  # noqa: F401

from napari_stmdit.errors import StmditError, SynthesisError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.synthesis.canvas import MemoryCanvas
from napari_stmdit.synthesis.models import Pasted
from napari_stmdit.synthesis.plan import plan as make_plan
from napari_stmdit.synthesis.session import Session
from napari_stmdit.ui import jobs
from napari_stmdit.ui.jobs import Handlers, Job

pytestmark = [pytest.mark.gui, pytest.mark.usefixtures("no_leaks")]


class Heard:
    """Collects what handlers are told, and on which thread."""

    def __init__(self):
        self.values, self.errors, self.ends, self.threads = [], [], 0, set()

    def handlers(self):
        return Handlers(self._value, self._error, self._end)

    def _value(self, value):
        self.values.append(value)
        self.threads.add(threading.current_thread())

    def _error(self, error):
        self.errors.append(error)
        self.threads.add(threading.current_thread())

    def _end(self):
        self.ends += 1
        self.threads.add(threading.current_thread())


def start(generate):
    from napari_stmdit.ui.widgets.worker import start as start_on_a_thread

    heard, token = Heard(), CancelToken()
    job = Job("a test", generate, lambda error: SynthesisError(f"said for the user: {error}"))
    start_on_a_thread(job, token, heard.handlers())
    return heard, token


def session(plan, section, model, batch):
    return Session(plan, section, model, MemoryCanvas(plan.frame), batch=batch)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("odd"), MemoryError()])
def test_t1_any_error_in_the_generator_arrives_as_ours_and_the_worker_ends(error):
    def generate(token):
        yield 1
        raise error

    heard, _ = start(generate)
    assert settle(lambda: heard.ends)
    assert heard.values == [1]
    assert [type(e) for e in heard.errors] == [SynthesisError]
    assert not isinstance(heard.errors[0], RuntimeError)
    assert heard.errors[0].__cause__ is error
    assert heard.ends == 1


def test_t1_is_real_napari_swallows_a_runtime_error():
    """What would happen without our own worker; if this fails, napari was mended and the trap can go."""
    from napari.qt.threading import create_worker

    def generate():
        yield 1
        raise RuntimeError("lost")

    heard = []
    worker = create_worker(generate, _ignore_errors=True, _start_thread=False)
    worker.errored.connect(lambda e: heard.append(e))
    worker.finished.connect(lambda: heard.append("finished"))
    worker.start()
    settle(lambda: heard, 1)
    assert heard == []
    type(worker)._worker_set.discard(worker)


def test_t2_what_the_generator_holds_is_let_go_when_the_worker_is_quit():
    from napari_stmdit.ui.widgets.worker import JobWorker

    class Weights:
        pass

    held, closed = [], threading.Event()

    def generate(token):
        weights = Weights()
        held.append(weakref.ref(weights))
        try:
            while True:
                time.sleep(0.005)
                yield 1
        finally:
            closed.set()

    heard, token = start(generate)
    assert settle(lambda: heard.values)
    worker = next(w for w in JobWorker._worker_set if isinstance(w, JobWorker))
    worker.quit()
    assert settle(lambda: heard.ends)
    assert closed.is_set()  # although this test still holds the worker
    assert token.cancelled
    gc.collect()
    assert held[0]() is None


def test_t3_what_was_finished_before_a_stop_has_arrived(tiny_section, card):
    from napari_stmdit.ui.widgets.worker import start as start_on_a_thread

    model = SlowModel(card)
    plan = make_plan(tiny_section, Request(), card)
    heard, token = Heard(), CancelToken()
    start_on_a_thread(jobs.synthesis(session(plan, tiny_section, model, 2)), token, heard.handlers())
    assert settle(lambda: any(isinstance(event, Pasted) for event in heard.values))
    token.cancel()
    assert settle(lambda: heard.ends)
    assert not heard.errors
    assert 2 <= sum(len(event.images) for event in heard.values if isinstance(event, Pasted)) < len(plan)
    assert model.closed.wait(1)


def test_t4_everything_arrives_on_the_gui_thread():
    def generate(token):
        assert threading.current_thread() is not threading.main_thread()
        yield 1
        raise RuntimeError("x")

    heard, _ = start(generate)
    assert settle(lambda: heard.ends)
    assert heard.values
    assert heard.errors
    assert heard.threads == {threading.main_thread()}


def test_t5_a_warning_does_no_harm_and_naparis_spinner_is_not_shown():
    from napari.utils import progress

    seen = []

    def generate(token):
        for number in range(5):
            warnings.warn("from the sampler", stacklevel=1)
            yield number
            time.sleep(0.01)

    heard, _ = start(generate)
    settle(lambda: seen.append(len(progress._all_instances)) or heard.ends)
    assert heard.values == [0, 1, 2, 3, 4]
    assert not heard.errors
    assert max(seen) == 0  # it repaints the whole window for as long as it turns


def test_t6_quitting_as_napari_does_when_its_window_closes_stops_at_the_next_step(tiny_section, card):
    from napari_stmdit.ui.widgets.worker import JobWorker
    from napari_stmdit.ui.widgets.worker import start as start_on_a_thread

    model = SlowModel(card)
    plan = make_plan(tiny_section, Request(), card)
    heard = Heard()
    start_on_a_thread(jobs.synthesis(session(plan, tiny_section, model, 2)), CancelToken(), heard.handlers())
    assert settle(lambda: model.steps_done >= 2)
    worker = next(w for w in JobWorker._worker_set if isinstance(w, JobWorker))
    worker.quit()
    at = model.steps_done
    assert settle(lambda: heard.ends)
    assert model.steps_done <= at + 1
    assert not worker.is_running


def test_t7_two_workers_leave_the_process_wide_warning_hook_alone():
    before = warnings.showwarning
    gates = [threading.Event(), threading.Event()]

    def waits_for(gate):
        def generate(token):
            yield 1
            gate.wait(5)

        return generate

    first, _ = start(waits_for(gates[0]))
    assert settle(lambda: first.values)
    second, _ = start(waits_for(gates[1]))
    assert settle(lambda: second.values)
    gates[0].set()  # the first ends first: nested catch_warnings would now put back the wrong hook
    assert settle(lambda: first.ends)
    gates[1].set()
    assert settle(lambda: second.ends)
    assert warnings.showwarning is before


def test_an_error_of_ours_arrives_as_it_is():
    def generate(token):
        yield 1
        raise StmditError("as it is")

    heard, _ = start(generate)
    assert settle(lambda: heard.ends)
    assert str(heard.errors[0]) == "as it is"


def test_a_run_lets_the_viewer_go_first(tiny_section, card, monkeypatch):
    import threading
    from concurrent.futures import ThreadPoolExecutor

    seen = []
    monkeypatch.setattr(jobs, "let_viewer_go_first", lambda: seen.append(threading.get_native_id()))

    class Asks(SlowModel):
        def denoise(self, batch):
            seen.append(threading.get_native_id())
            yield from super().denoise(batch)

    plan = make_plan(tiny_section, Request(), card)
    job = jobs.synthesis(session(plan, tiny_section, Asks(card, 0), 30))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: list(job.guarded(CancelToken()))).result()
    assert len(seen) > 1
    assert len(set(seen)) == 1


def test_a_thread_that_outlives_the_program_says_nothing(qapp):
    """Where Qt is gone, a signal raises: that is nobody's error, and no traceback."""
    from napari_stmdit.ui.widgets.worker import JobWorker

    def work(token, tell):
        yield 1
        raise ValueError("odd")

    def gone(error):
        raise RuntimeError("Signal source has been deleted")

    JobWorker(work, CancelToken(), print, gone).run()
