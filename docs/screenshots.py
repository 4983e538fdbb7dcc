"""Makes the pictures of the documentation by driving the real workbench on the bundled section.

Run with ``make docs``; on Linux it needs a display or ``xvfb-run -s '-screen 0 1600x1000x24'``. Pictures go to docs/images.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="stmdit-docs-"))  # nobody's own settings and sections
os.environ["NAPARI_CONFIG"], os.environ["STMDIT_HOME"] = str(HOME / "settings.yaml"), str(HOME / "stmdit")

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_stmdit.edits import Towards
from napari_stmdit.evaluation.pictures import save_sheet
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.requests import EditFile
from napari_stmdit.tissue.export import NEW, labelled
from napari_stmdit.tissue.open import open_sample_section
from napari_stmdit.ui.gestures import camera_of
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Brush, Colouring, EditDraft, RunStatus

IMAGES = Path(__file__).parent / "images"
GENES = ("ERBB2", "KRT8", "EPCAM")
LASSO_UM = 165
"""Radius of the lasso: on spots 100 um apart it holds about ten."""


def settle(condition=lambda: False, seconds=120.0):
    """Let the event loop run until a condition holds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not condition():
        QApplication.processEvents()
        time.sleep(0.01)


class Studio:
    """A viewer with the workbench, and a camera."""

    def __init__(self, theme="dark", dock_width=340):
        self.viewer = napari.Viewer(show=True, show_welcome_screen=False)
        self.viewer.theme = theme
        self.viewer.window.resize(1480, 920)
        self.dock, self.workbench = self.viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
        settle(seconds=0.3)
        self.dock.parentWidget().resizeDocks([self.dock], [dock_width], Qt.Orientation.Horizontal)

    def picture(self, name):
        settle(seconds=0.8)
        IMAGES.mkdir(exist_ok=True)
        path = IMAGES / f"{name}.png"
        pixels = self.viewer.window.screenshot(flash=False, canvas_only=False)
        # 256 colours are enough for a page and a third of the size
        Image.fromarray(pixels).convert("RGB").quantize(256).save(path, optimize=True, **labelled(NEW, path))
        print(path)

    def open_sample(self):
        bench = self.workbench
        bench.section.sample_button.click()
        settle(lambda: bench.state.section is not None and bench.state.checkpoint is not None and not bench.state.busy)
        if bench.state.section is None or bench.state.checkpoint is None:
            sys.exit(f"the sample section or the checkpoint did not open: {bench.state.message.text}")
        known = set(bench.state.section.spots.genes.symbols.tolist())
        gene = next((g for g in GENES if g in known), str(bench.state.section.spots.genes.symbols[0]))
        self.gene = gene
        bench.presenter.colour(Colouring(gene))

    def lasso(self):
        """Draw a ring around the spots where the coloured gene is highest, as the mouse would."""
        bench = self.workbench
        section, spots = bench.state.section, bench.state.section.spots
        bench.select.tool.button("lasso").click()
        radius = LASSO_UM / section.calibration.mpp
        values = bench.presenter.view.values.of(Colouring(self.gene))[0]
        near = np.linalg.norm(spots.yx[:, None] - spots.yx[None], axis=2) < radius
        whole = near.sum(axis=1) >= np.percentile(near.sum(axis=1), 70)
        centre = spots.yx[np.argmax(np.where(whole, near @ values, -np.inf))]
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        bench.presenter.ring(centre + radius * np.column_stack([np.sin(angle), np.cos(angle)]), None)
        bench.select.tool.button("click").click()

    def paint(self):
        """Paint less epithelium across the top of the section and more stroma across its bottom, as the mouse would."""
        bench, presenter = self.workbench, self.workbench.presenter
        spots, mpp = bench.state.section.spots, bench.state.section.calibration.mpp
        corner, size = spots.yx.min(axis=0), np.ptp(spots.yx, axis=0)
        strokes = (
            (
                EditDraft(operation="add", programs=("epithelial",), log_units=-2.0),
                [(0.2, 0.15), (0.35, 0.5), (0.2, 0.85)],
            ),
            (EditDraft(operation="add", programs=("stromal",), log_units=1.5), [(0.75, 0.2), (0.6, 0.5), (0.75, 0.8)]),
        )
        presenter.use_tool("brush")
        presenter.set_brush(Brush(radius_um=180 if mpp else 300, softness=0.7))
        for draft, places in strokes:
            presenter.painting.choose(None)
            presenter.painting.take_draft(draft)
            path = [corner + size * np.array(place) for place in places]
            presenter.stroke("begin", path[0], False)
            for place in path[1:]:
                presenter.stroke("move", place, False)
            presenter.stroke("end", path[-1], False)

    def run(self):
        bench = self.workbench
        bench.run_bar.run.click()
        settle(lambda: not bench.state.status.busy, 600)
        if bench.state.status is not RunStatus.DONE:
            sys.exit(f"the run did not end well: {bench.state.message.text}")


def look_at_selected(studio, zoom):
    """Move the camera to the selected spots."""
    section = studio.workbench.state.section
    selected = section.spots.rows(list(studio.workbench.state.selected))
    middle = section.spots.yx[selected].mean(axis=0) * section.calibration.mpp
    camera = camera_of(studio.viewer)
    camera.center, camera.zoom = tuple(middle), zoom


def comparisons(studio):
    """Run an edit, and show it against its baseline in every way."""
    bench, state = studio.workbench, studio.workbench.state
    weights = dict.fromkeys(state.selected, 1.0)
    edit = Towards(name="towards adipose", target_profile="adipose", spots=weights)
    state.request = Request(**{**state.request.model_dump(), "edits": (edit,)})
    studio.run()
    bench.compare.baseline.click()
    settle(lambda: state.comparison is not None, 600)
    studio.picture("workbench_side_by_side")
    bench.compare.mode.button("swipe").click()
    look_at_selected(studio, 1.5)
    studio.picture("workbench_swipe")
    bench.compare.mode.button("off").click()
    bench.reveal(bench.spot)
    settle(lambda: state.close_up is not None and len(state.close_up.patches) == 3, 60)
    look_at_selected(studio, 1.5)
    studio.picture("workbench_spot")
    spot = bench.presenter.close_ups.spot
    bench.presenter.sheets.dose_strip(spot)
    settle(lambda: not state.status.busy, 600)
    with tempfile.TemporaryDirectory() as folder:
        made = save_sheet(state.sheet, Path(folder) / "sheet.png")
        with Image.open(made) as picture:
            picture.quantize(256).save(IMAGES / "dose_strip.png", optimize=True, **labelled(NEW))
    bench.sheet.close()


def plain_slide():
    """Open the sample's image as a plain slide, which has to be told its scale."""
    studio = Studio()
    bench, state = studio.workbench, studio.workbench.state
    sample = open_sample_section()
    bench.section.path.setText(sample.image.source)
    bench.section.open_button.click()
    settle(lambda: state.scale_asked)
    bench.section.mpp.setText(f"{sample.calibration.mpp:.4g}")
    bench.section.mpp.returnPressed.emit()
    settle(lambda: state.section is not None and state.checkpoint is not None and not state.busy)
    bench.section.details.setChecked(True)
    studio.picture("workbench_slide")
    studio.viewer.close()


def main():
    plain_slide()
    studio = Studio()
    studio.open_sample()
    studio.lasso()
    studio.picture("workbench_select")
    bench = studio.workbench
    bench.presenter.select(())
    bench.show_step("change")
    studio.paint()
    studio.picture("workbench_paint")
    bench.presenter.painting.take(EditFile())
    bench.presenter.use_tool("click")
    bench.presenter.colour(Colouring(bench.state.colouring.gene or studio.gene))
    studio.lasso()
    steps = int(os.environ.get("STMDIT_DOCS_STEPS", "0")) or None
    bench.state.request = Request(
        **{**bench.state.request.model_dump(), "seed": 1, "morphology": "null", "steps": steps}
    )
    studio.run()
    studio.picture("workbench_result")
    comparisons(studio)
    studio.viewer.close()


if __name__ == "__main__":
    main()
