"""What a user waits for in the viewer, on a section of 20,000 x 20,000 px with 5,000 spots and 18,000 genes.

    python benchmarks/waiting.py [--folder DIR] [--rounds N] [--only NAME,NAME] [--profile DIR]

Run on a screen, or under ``xvfb-run -s '-screen 0 1600x1000x24'``. The dock is open, the section is opened as from its button, and every
figure is the wall-clock time up to the painted canvas, beside it the processor's. Prints one JSON object; with ``--profile``, where the time goes is written
beside it, one text a step. DIR keeps the made section (2 GB) for the next time.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="stmdit-bench-")) / "settings.yaml")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import napari
import numpy as np
from event_loop import until
from large_section import make_section
from qtpy.QtWidgets import QApplication
from standins import CropModel, card_for

from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.types import CanvasFrame, Patch, PatchResult
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Brush, Colouring, EditDraft


class Steps:
    """The steps, on one viewer."""

    def __init__(self, folder, profiles):
        self.folder, self.profiles = folder, profiles
        self.viewer = napari.Viewer(show=True, show_welcome_screen=False)
        self.viewer.window.resize(1480, 920)
        self.bench = self.viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
        self.bench.presenter.use_model(CropModel(card_for(tuple(f"GENE{k}" for k in range(1000)))))
        self.rng = np.random.default_rng(0)
        self.turn = 0
        self.painted()

    def painted(self):
        """Let the event loop do what is due, and the canvas be drawn."""
        QApplication.processEvents()
        self.viewer.window._qt_viewer.canvas.native.repaint()
        QApplication.processEvents()

    def measure(self, name, rounds):
        step, times, busy = getattr(self, name), [], []
        profile = cProfile.Profile(time.process_time)  # of the processor: what else runs must not show
        for number in range(rounds + (name != "open")):  # the first warms up; a section is opened anew every time
            before = getattr(self, f"before_{name}", None)
            if before is not None:
                before()
            self.turn += 1
            if self.profiles is not None and number:
                profile.enable()
            start, at_work = time.perf_counter(), time.process_time()
            step()
            self.painted()
            times.append((time.perf_counter() - start) * 1000)
            busy.append((time.process_time() - at_work) * 1000)
            profile.disable()
        if self.profiles is not None:
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(60).sort_stats(
                "tottime"
            ).print_stats(30)
            (self.profiles / f"{name}.txt").write_text(text.getvalue())
        times, busy = times[name != "open" :], busy[name != "open" :]
        return {
            "median_ms": round(statistics.median(times), 1),
            "most_ms": round(max(times), 1),
            "processor_ms": round(statistics.median(busy), 1),
            "rounds": len(times),
        }

    def before_open(self):
        self.bench.presenter.close_section()
        self.viewer.layers.clear()
        self.painted()

    def open(self):
        state = self.bench.state
        self.bench.presenter.open(SectionSource(path=self.folder, fullres=self.folder / "slide.tif"))
        until(lambda: state.section is not None and not state.busy, 120)

    def lasso(self):
        middle = self.bench.state.section.spots.yx.mean(axis=0)
        angle = np.linspace(0, 2 * np.pi, 60)
        ring = (4000 + 200 * (self.turn % 2)) * np.column_stack([np.sin(angle), np.cos(angle)])
        self.bench.presenter.ring(middle + ring, "replace")

    def click(self):
        yx = self.bench.state.section.spots.yx
        self.bench.presenter.click(yx[self.turn * 37 % len(yx)], "replace")

    def recolour(self):
        self.bench.presenter.colour(Colouring(f"GENE{7 + self.turn % 500}"))

    def before_brush(self):
        if self.bench.state.tool != "brush":
            self.bench.presenter.painting.take_draft(EditDraft(genes=tuple(f"GENE{k}" for k in range(10))))
            self.bench.presenter.set_brush(Brush(radius_um=300))
            self.bench.presenter.use_tool("brush")

    def brush(self):
        yx = self.bench.state.section.spots.yx
        start, end = yx[self.turn * 101 % len(yx)], yx[(self.turn * 101 + 60) % len(yx)]
        self.bench.presenter.stroke("begin", start, False)
        self.bench.presenter.stroke("end", end, False)

    def before_paste(self):
        if hasattr(self, "growing"):
            return
        from napari_stmdit.synthesis.canvas import MemoryCanvas
        from napari_stmdit.ui.runs import GrowingLayer

        section, card = self.bench.state.section, self.bench.state.checkpoint.card
        self.side, self.pixels = card.patch_px, self.rng.integers(0, 255, (card.patch_px, card.patch_px, 3), np.uint8)
        scale = card.patch_mpp / section.calibration.mpp
        self.size = tuple(int(n / scale) for n in section.image.shape)
        self.canvas = MemoryCanvas(CanvasFrame(self.size, (0.0, 0.0), scale))
        self.growing = GrowingLayer(self.canvas, section, "synthetic (benchmark)")

    def paste(self):
        y, x = (int(v) for v in self.rng.integers(0, np.array(self.size) - self.side))
        patch = Patch(self.turn, "x", 0, (0, 0, 1, 1), (y, x, y + self.side, x + self.side), 0)
        self.growing.changed(self.canvas.paste(PatchResult(patch, self.pixels)))
        if self.growing.layer is None:
            self.growing.add(self.bench.presenter.results.insert, {"run": 10_000})
        else:
            self.growing.refresh()

    def zoom(self):
        self.viewer.scene.camera.zoom *= 2 if self.turn % 2 else 0.5

    def pan(self):
        y, x = self.bench.state.section.spots.yx.mean(axis=0) * self.bench.state.section.calibration.mpp
        self.viewer.scene.camera.center = (y + 50 * (self.turn % 7), x)


NAMES = ("open", "click", "lasso", "recolour", "pan", "zoom", "brush", "paste")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--profile", type=Path, default=None)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stmdit-bench-") as scratch:
        folder = chosen.folder or Path(scratch) / "section"
        if not (folder / "slide.tif").is_file():
            make_section(folder)
        if chosen.profile is not None:
            chosen.profile.mkdir(parents=True, exist_ok=True)
        steps = Steps(folder, chosen.profile)
        found = {"load_before": os.getloadavg()}
        for name in dict.fromkeys(("open", *chosen.only.split(","))):
            found[name] = steps.measure(name, 3 if name == "open" else chosen.rounds)
        found["load_after"] = os.getloadavg()
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        steps.viewer.close()


if __name__ == "__main__":
    main()
