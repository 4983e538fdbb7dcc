"""How soon Live shows what an edit does: a slider on one spot, a stroke of 300 um, and how late the event loop is meanwhile.

    python benchmarks/live.py [--strokes N] [--slides N] [--radius UM] [--spots N] [--seamless] [--screenshots DIR]

Run with the bundled checkpoint and section on a screen (or under ``xvfb-run -s '-screen 0 1600x1000x24'``). Strokes are drawn by Qt's mouse
events, each over tissue whose noise was found ahead and, apart from them, over tissue that is touched for the first time. A stroke's
times count from the press of the button; it is drawn in 0.4 s. ``--spots`` lays copies of the section side by side, ``--seamless`` asks for
one seamless tissue. Prints JSON with the load of the machine; the processor's
seconds, all threads and the drawing together, say what a busy machine hides.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="stmdit-bench-")) / "settings.yaml")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="stmdit-bench-cache-")  # no noise is known
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import napari
import numpy as np
from event_loop import Lateness, until, wait
from mouse import Mouse
from qtpy.QtCore import QEvent

from napari_stmdit.ui.jobs import touch
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Brush

STROKE_UM = 300.0
DRAWN_IN_S = 0.4
WAIT_S = 240.0


def enlarged(section, spots):
    """Return a section of so many spots: copies of a smaller one side by side, cut off in the last."""
    import dask.array as da
    from scipy.sparse import vstack

    table, image = section.spots, section.image
    side = int(np.ceil(np.sqrt(spots / len(table))))
    corners = np.array([(y, x) for y in range(side) for x in range(side)]) * image.shape * image.pixel_size
    more = replace(
        table,
        ids=np.array([f"{one}-{copy}" for copy in range(len(corners)) for one in table.ids]),
        yx=(table.yx[None] + corners[:, None]).reshape(-1, 2),
        counts=vstack([table.counts] * len(corners)).tocsr(),
        array_rc=None,
        obs={},
    ).at(np.arange(spots))
    levels = tuple(da.tile(level, (side, side, 1)) for level in image.levels)
    return replace(
        section, name=f"{section.name}, {spots} spots", spots=more, image=replace(image, levels=levels), path=None
    )


class Bench:
    """A viewer with the bundled section and checkpoint, and Live switched on."""

    def __init__(self, radius, screenshots, spots=0, seamless=False):
        self.viewer = napari.Viewer(show=True, show_welcome_screen=False)
        self.viewer.window.resize(1400, 900)
        self.dock = self.viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
        self.state, self.presenter, self.screenshots = self.dock.state, self.dock.presenter, screenshots
        state = self.state
        self.dock.section.sample_button.click()
        until(lambda: state.section is not None and state.checkpoint is not None and not state.busy, WAIT_S)
        if spots:
            section = enlarged(state.section, spots)
            touch(section)  # as opening one does off the GUI thread
            self.presenter.show(section)
            until(lambda: not state.busy, WAIT_S)
        if seamless:
            state.request = state.request.model_copy(update={"mode": "continuous"})
        self.dock.edits.form.what.setText("COL1A1, COL1A2, COL3A1")
        self.dock.edits.form.what.commit()
        self.presenter.set_brush(Brush(radius_um=radius))
        self.pictures, self.at_work = [], 0.0
        show = self.presenter.live._show

        def shown(picture):
            show(picture)
            if isinstance(picture, str):  # what is done before there is any
                return
            self.pictures.append((time.perf_counter(), picture, time.process_time() - self.at_work))

        self.presenter.live._show = shown

    def ahead(self):
        """Wait until nothing is computed any more."""
        until(lambda: not self.presenter.live._lane.busy, 3 * WAIT_S)

    def fine(self):
        return bool(self.pictures) and not self.pictures[-1][1].waiting

    def stroke(self, middle):
        """Draw a stroke; return the seconds to the first coarse picture, to all of it coarse, and to all of it fine."""
        mouse, half = Mouse(self.viewer), np.array([0.0, STROKE_UM / 2])
        path = np.linspace(middle - half, middle + half, 12)
        self.presenter.painting.choose(None)
        self.pictures.clear()
        start, at_work = time.perf_counter(), time.process_time()
        mouse.send(QEvent.Type.MouseButtonPress, path[0])
        for place in path[1:]:
            wait(DRAWN_IN_S / len(path))
            mouse.send(QEvent.Type.MouseMove, place)
        mouse.send(QEvent.Type.MouseButtonRelease, path[-1])

        def whole():  # while it is drawn, what there is of it may be fine already
            edits = self.state.request.edits
            return bool(edits) and self.fine() and set(edits[-1].spots) <= set(self.pictures[-1][1].steps)

        until(whole, WAIT_S)
        spots = set(self.state.request.edits[-1].spots)
        coarse = next(at for at, picture, _ in self.pictures if spots <= set(picture.steps))
        return {
            "spots": len(spots),
            "processor_s": round(time.process_time() - at_work, 2),
            "first_s": round(self.pictures[0][0] - start, 2),
            "all_coarse_s": round(coarse - start, 2),
            "fine_s": round(self.pictures[-1][0] - start, 2),
        }

    def slide(self, percent):
        """Move the strength of the last edit; return the seconds to the first picture, the processor's, and those to the fine one."""
        self.pictures.clear()
        start, self.at_work = time.perf_counter(), time.process_time()
        self.dock.edits.list.rows[-1].strength.setValue(percent)
        until(self.fine, WAIT_S)
        at, _, busy = self.pictures[0]
        return at - start, busy, self.pictures[-1][0] - start

    def shot(self, name):
        if self.screenshots is not None:
            wait(0.3)
            self.viewer.window.screenshot(str(self.screenshots / f"{name}.png"), canvas_only=False, flash=False)


def median(values):
    return round(statistics.median(values), 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strokes", type=int, default=3)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--radius", type=float, default=60.0)
    parser.add_argument("--spots", type=int, default=0)
    parser.add_argument("--seamless", action="store_true")
    parser.add_argument("--screenshots", type=Path, default=None)
    chosen = parser.parse_args()
    found = {"load_before": os.getloadavg(), "cores": os.cpu_count(), "brush_um": chosen.radius}
    bench = Bench(chosen.radius, chosen.screenshots, chosen.spots, chosen.seamless)
    found |= {"spots": len(bench.state.section.spots), "mode": bench.state.request.mode}
    section = bench.state.section
    world = section.spots.yx * section.calibration.mpp
    wait(1)
    gc.collect()
    with Lateness() as idle:
        wait(6)
    bench.dock.edits.live.click()
    bench.dock.edits.paint.click()
    low, high = world.min(axis=0), world.max(axis=0)
    middles = [low + (high - low) * np.array([share, 0.5]) for share in np.linspace(0.2, 0.8, chosen.strokes)]
    bench.shot("before")
    with Lateness() as busy:
        found["stroke_first_touch"] = bench.stroke(middles[0])
    bench.shot("stroke")
    bench.ahead()
    found["strokes_noise_known"] = [bench.stroke(middle) for middle in middles[1:]]
    bench.shot("strokes")

    one = str(section.spots.ids[np.argmin(((world - (low + high) / 2) ** 2).sum(axis=1))])
    for number in range(len(bench.state.request.edits) - 1, -1, -1):
        bench.presenter.painting.delete(number)
    bench.presenter.painting.choose(None)
    bench.pictures.clear()
    bench.presenter.painting.add([one])
    until(bench.fine, WAIT_S)
    bench.ahead()
    bench.slide(50)  # warm
    with Lateness() as sliding:
        slides = [bench.slide(percent) for percent in np.linspace(20, 100, chosen.slides).astype(int).tolist()]
    bench.shot("slider")
    found["slider_one_spot"] = {
        "first_s": median([first for first, _, _ in slides]),
        "least_first_s": round(min(first for first, _, _ in slides), 3),
        "first_processor_s": median([busy for _, busy, _ in slides]),
        "fine_s": median([fine for _, _, fine in slides]),
    }
    found["event_loop"] = {"idle": idle.figures(), "stroke": busy.figures(), "slider": sliding.figures()}
    for name in ("stroke", "slider"):
        above = found["event_loop"][name]["p95_ms"] - found["event_loop"]["idle"]["p95_ms"]
        found["event_loop"][f"{name}_p95_above_idle_ms"] = round(above, 1)
    found["load_after"] = os.getloadavg()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    bench.viewer.close()


if __name__ == "__main__":
    main()
