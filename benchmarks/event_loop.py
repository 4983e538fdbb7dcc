"""How late the event loop is while the bundled checkpoint runs, and how long a patch takes to be pasted on a large section.

Run with ``python benchmarks/event_loop.py`` on a screen (or under ``xvfb-run -s '-screen 0 1600x1000x24'``). A timer asks to be
called every 10 ms; what it comes later than that is the lateness that a user feels in every click and drag. It is measured idle
and during a run in one process, so that the difference is the run's doing. Prints JSON with the load of the machine.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="stmdit-bench-")) / "settings.yaml")

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_stmdit.types import CanvasFrame, Patch, PatchResult
from napari_stmdit.ui.manifest import DOCK, PLUGIN

INTERVAL_MS = 10
IDLE_S = 6.0


class Lateness:
    """Collects how much later than asked a precise timer is called."""

    def __init__(self):
        self.late = []
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(INTERVAL_MS)
        self._timer.timeout.connect(self._tick)

    def _tick(self):
        now = time.perf_counter()
        self.late.append(max(0.0, (now - self._last) * 1000 - INTERVAL_MS))
        self._last = now

    def __enter__(self):
        self._last = time.perf_counter()
        self._timer.start()
        return self

    def __exit__(self, *_):
        self._timer.stop()

    def figures(self):
        late = np.sort(self.late)
        return {
            "ticks": len(late),
            "p50_ms": round(float(np.percentile(late, 50)), 1),
            "p95_ms": round(float(np.percentile(late, 95)), 1),
            "p99_ms": round(float(np.percentile(late, 99)), 1),
            "most_ms": round(float(late[-1]), 1),
        }


def until(condition, seconds):
    """Run Qt's own event loop, not a polling one, until a condition holds."""
    loop, end = QEventLoop(), time.perf_counter() + seconds
    watch = QTimer()
    watch.setInterval(100)
    watch.timeout.connect(lambda: loop.quit() if condition() or time.perf_counter() > end else None)
    watch.start()
    loop.exec()
    watch.stop()
    if not condition():
        sys.exit("it took too long")


def wait(seconds):
    """Run the event loop for a while."""
    end = time.perf_counter() + seconds
    until(lambda: time.perf_counter() >= end, seconds + 5)


def measure_run(bench, patches, steps):
    state = bench.state
    bench.section.sample_button.click()
    until(lambda: state.section is not None and state.checkpoint is not None and not state.busy, 120)
    ids = state.section.spots.ids[:patches].tolist()
    bench.presenter.select(ids[:1])
    state.request = state.request.model_copy(update={"steps": 2})
    bench.run_bar.run.click()
    until(lambda: not state.status.busy, 120)  # warm
    bench.presenter.select(ids)
    state.request = state.request.model_copy(update={"steps": steps})
    wait(1)
    gc.collect()
    with Lateness() as idle:
        wait(IDLE_S)
    start = time.perf_counter()
    with Lateness() as busy:
        bench.run_bar.run.click()
        until(lambda: not state.status.busy, 500)
    figures = {"idle": idle.figures(), "run": busy.figures(), "seconds": round(time.perf_counter() - start, 1)}
    for name in ("p95_ms", "p99_ms"):
        figures[f"{name[:3]}_above_idle_ms"] = round(figures["run"][name] - figures["idle"][name], 1)
    return figures


def measure_paste(bench, side_spots=71, count=25):
    """Paste patches on a canvas as large as a section of some 5,000 spots asks for (100 um apart)."""
    from napari_stmdit.synthesis.canvas import MemoryCanvas
    from napari_stmdit.ui.runs import GrowingLayer

    section, card = bench.state.section, bench.state.checkpoint.card
    pitch = round(100 / card.patch_mpp)
    height, width = (side_spots * pitch + card.patch_px for _ in range(2))
    frame = CanvasFrame((height, width), (0.0, 0.0), card.patch_mpp / section.calibration.mpp)
    canvas = MemoryCanvas(frame)
    growing = GrowingLayer(canvas, section, "synthetic (benchmark)")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (card.patch_px, card.patch_px, 3), np.uint8)
    times, drawn = [], []
    for number in range(count):
        y, x = (int(v) for v in rng.integers(0, [height - card.patch_px, width - card.patch_px]))
        patch = Patch(number, "x", 0, (0, 0, 1, 1), (y, x, y + card.patch_px, x + card.patch_px), 0)
        start = time.perf_counter()
        growing.changed(canvas.paste(PatchResult(patch, pixels)))
        if number == 0:
            growing.add(bench.presenter.results.insert, {"run": 10_000})
            bench.presenter._viewer().reset_view()
        else:
            growing.refresh()
        times.append((time.perf_counter() - start) * 1000)
        QApplication.processEvents()
        drawn.append((time.perf_counter() - start) * 1000)
    figures = {"spots": side_spots**2, "canvas_px": [height, width], "first_ms": round(times[0], 1)}
    for name, rest in (("pasted", times[1:]), ("and_drawn", drawn[1:])):
        figures[f"{name}_median_ms"] = round(statistics.median(rest), 1)
        figures[f"{name}_p95_ms"] = round(float(np.percentile(rest, 95)), 1)
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--patches", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=("run", "paste"), default=None)
    chosen = parser.parse_args()
    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(1400, 900)
    bench = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    found = {"load_before": os.getloadavg(), "cores": os.cpu_count()}
    found["run"] = measure_run(bench, chosen.patches, chosen.steps if chosen.only != "paste" else 2)
    if chosen.only != "run":
        found["paste"] = measure_paste(bench)
    found["load_after"] = os.getloadavg()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    viewer.close()


if __name__ == "__main__":
    main()
