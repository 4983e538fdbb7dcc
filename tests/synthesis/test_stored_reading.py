"""What is read back lazily, while a viewer has turned on a cache for all of dask."""

import dask.array as da
import numpy as np
from dask.callbacks import Callback

from napari_stmdit.synthesis.result import _coverage
from napari_stmdit.synthesis.unsaved import _write_rgba
from napari_stmdit.tissue.export import _pyramid


def test_results_are_read_past_a_cache_that_another_thread_turned_on(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (64, 64, 4), dtype=np.uint8)
    rgba = da.from_array(pixels, chunks=16)

    def lost(key, *_):
        raise KeyError(key)

    with Callback(pretask=lost, posttask=lost):
        np.testing.assert_array_equal(_pyramid(rgba)[0], pixels)
        assert _coverage(rgba, np.array([[0, 0]]), 32)[0].all()
        _write_rgba(tmp_path / "rgba", rgba)
