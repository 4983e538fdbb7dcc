"""What a user feels while choosing and painting on 5,000 spots of 18,000 genes, in a real viewer with the dock open.

Run with ``pytest benchmarks/test_painting.py --benchmark-only`` under a display or xvfb. Each figure covers everything up to the
painted canvas: the gesture's handler, the state, the forms of the dock, the spots' colours and the frame.
"""

import dask.array as da
import numpy as np
import pytest
from qtpy.QtWidgets import QApplication
from scipy.sparse import csr_matrix
from standins import CropModel, card_for

from napari_stmdit.types import Calibration, Genes, Section, SlideImage, SpotTable
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Brush, Colouring, EditDraft
from napari_stmdit.ui.strokes import Stroke

SIDE, GENES, PER_SPOT = 71, 18_000, 1_800


@pytest.fixture(scope="module")
def section():
    rng = np.random.default_rng(0)
    rc = np.array([(r, c) for r in range(SIDE) for c in range(r % 2, 2 * SIDE, 2)])
    n = len(rc)
    columns = np.sort(rng.integers(0, GENES, (n, PER_SPOT)), axis=1).ravel()
    counts = csr_matrix((rng.poisson(2, n * PER_SPOT) + 1.0, columns, np.arange(n + 1) * PER_SPOT), shape=(n, GENES))
    counts.sum_duplicates()
    spots = SpotTable(
        ids=np.array([f"{r}x{c}" for r, c in rc]),
        yx=300 + rc * np.array([100 * np.sqrt(3) / 2, 50]) / 0.5,
        diameter=110.0,
        counts=counts.astype(np.float32),
        genes=Genes(np.array([f"GENE{k}" for k in range(GENES)])),
        array_rc=rc,
    )
    calibration = Calibration(0.5, "override", "0.5 um/px, as made")
    height, width = (int(v) for v in spots.yx.max(axis=0) + 300)
    levels = tuple(da.zeros((height // k, width // k, 3), dtype=np.uint8, chunks=(1024, 1024, 3)) for k in (1, 4, 16))
    image = SlideImage(levels, 1.0, "made")
    return Section("made", None, "spaceranger", spots, image, calibration, {"global": np.eye(3)})


@pytest.fixture
def bench(section, make_napari_viewer):
    viewer = make_napari_viewer(show=True)
    _, workbench = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    workbench.presenter.use_model(CropModel(card_for(tuple(f"GENE{k}" for k in range(1000)))))
    workbench.reveal(workbench.edits)
    workbench.presenter._show(section)
    workbench.presenter.colour(Colouring("GENE7"))
    for _ in range(20):
        QApplication.processEvents()
    return workbench


def painted(bench):
    """Let the event loop paint what is due."""
    viewer = bench._viewer()
    viewer.window._qt_viewer.canvas.native.repaint()
    QApplication.processEvents()


def test_lasso_to_selection(benchmark, bench, section):
    middle = section.spots.yx.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, 60)
    rings = [middle + r * np.column_stack([np.sin(angle), np.cos(angle)]) for r in (4000, 4200)]
    turn = iter(range(1000))

    def choose():
        bench.presenter.ring(rings[next(turn) % 2], "replace")

    benchmark.pedantic(choose, rounds=20, warmup_rounds=3)
    assert len(bench.state.selected) > 1000


def test_lasso_to_painted_canvas(benchmark, bench, section):
    middle = section.spots.yx.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, 60)
    rings = [middle + r * np.column_stack([np.sin(angle), np.cos(angle)]) for r in (4000, 4200)]
    turn = iter(range(1000))

    def choose():
        bench.presenter.ring(rings[next(turn) % 2], "replace")
        painted(bench)

    benchmark.pedantic(choose, rounds=20, warmup_rounds=3)


def test_brush_stroke_to_recolour(benchmark, bench, section):
    painting = bench.presenter.painting
    painting.take_draft(EditDraft(genes=tuple(f"GENE{k}" for k in range(10))))
    bench.presenter.set_brush(Brush(radius_um=300))
    bench.presenter.use_tool("brush")
    path = np.linspace(section.spots.yx.min(axis=0), section.spots.yx.max(axis=0), 60)
    bench.presenter.stroke("begin", path[0], False)
    place = iter(path[1:])

    def move():
        painting._drawn_at = 0.0  # every move is recoloured here; in use at most one in 80 ms is
        bench.presenter.stroke("move", next(place), False)
        painted(bench)

    benchmark.pedantic(move, rounds=40, warmup_rounds=5)
    bench.presenter.stroke("end", path[-1], False)


def test_end_of_a_stroke(benchmark, bench, section):
    painting = bench.presenter.painting
    painting.take_draft(EditDraft(genes=tuple(f"GENE{k}" for k in range(10))))
    bench.presenter.set_brush(Brush(radius_um=300))
    bench.presenter.use_tool("brush")
    rows = iter(range(0, len(section.spots), 101))

    def begin():
        bench.presenter.stroke("begin", section.spots.yx[next(rows)], False)

    def end():
        bench.presenter.stroke("end", section.spots.yx[next(rows)], False)
        painted(bench)

    benchmark.pedantic(end, setup=begin, rounds=15, warmup_rounds=2)


def test_a_move_of_the_brush_alone(benchmark, section):
    from scipy.spatial import cKDTree

    tree = cKDTree(section.spots.yx)
    stroke = Stroke(section.spots, tree, Brush(radius_um=300), 600.0, {})
    path = iter(np.linspace(section.spots.yx.min(axis=0), section.spots.yx.max(axis=0), 400))
    benchmark.pedantic(lambda: stroke.to(next(path)), rounds=300)
