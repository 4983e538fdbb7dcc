import sys

import numpy as np
import pytest

from napari_stmdit.evaluation.measures import (
    MAX_PSNR,
    PairedMeasure,
    embedding_cosine,
    find_lpips,
    peak_signal_to_noise,
    structural_similarity,
)


def test_likeness_of_equal_and_of_known_patches():
    rng = np.random.default_rng(0)
    real = rng.integers(20, 230, (3, 32, 32, 3), dtype=np.uint8)
    assert structural_similarity(real, real) == pytest.approx([1, 1, 1])
    assert peak_signal_to_noise(real, real).tolist() == [MAX_PSNR] * 3
    off = real + 10  # a mean squared error of 100
    assert peak_signal_to_noise(off, real) == pytest.approx([10 * np.log10(255**2 / 100)] * 3)
    noise = rng.integers(0, 256, real.shape, dtype=np.uint8)
    assert (structural_similarity(noise, real) < 0.1).all()


def test_cosine_is_taken_about_the_reference():
    reference = np.array([[10.0, 100.0], [12.0, 300.0]])  # mean (11, 200), spread (1, 100)
    made, real = np.array([[12.0, 200.0], [12.0, 300.0]]), np.array([[14.0, 200.0], [11.0, 250.0]])
    assert embedding_cosine(made, real, reference) == pytest.approx([1.0, np.sqrt(0.5)], rel=1e-4)


def test_the_best_of_k_is_the_most_or_the_least():
    values = np.array([[0.1, 0.5], [0.9, 0.3]])
    assert PairedMeasure("a", "likeness").best(values).tolist() == [0.5, 0.9]
    assert PairedMeasure("b", "distance", more_is_better=False).best(values).tolist() == [0.1, 0.3]


def test_lpips_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    found, reason = find_lpips()
    assert found is None and 'pip install "napari-stmdit[metrics]"' in reason
