from xml.etree import ElementTree

import numpy as np
import pytest

from napari_stmdit.evaluation.figures import Claim, Measurements, figures_of
from napari_stmdit.evaluation.measures import CaseValues, PatchMetrics
from napari_stmdit.evaluation.report import curves, forest, written
from napari_stmdit.evaluation.spaces import RandomConvolutions
from napari_stmdit.evaluation.statistics import Interval

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8) // 4 + RNG.integers(0, 180, (12, 1, 1, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.5, "a beats b"), (-0.01, 0.5, "a does not beat b"), (-0.5, -0.01, "a does not beat (is worse than) b")],
)
def test_a_claim_holds_where_the_whole_interval_does(low, high, words):
    claim = Claim("r", "a", "b", Interval(0.2, low, high, 30), True)
    assert words in claim.sentence and "30 spots" in claim.sentence
    assert claim.facts["verdict"] == ("beats" if low > 0 else "does not")
    assert (claim.holds, claim.reversed) == (low > 0, high < 0)


def test_what_cannot_be_told_is_no_claim():
    claim = Claim("r", "a", "b", Interval(0.2, float("nan"), float("nan"), 30), True)
    assert not claim.holds and claim.facts["difference"]["low"] is None


def measurements(**stacks):
    metrics = PatchMetrics(REAL, 22.0, (RandomConvolutions(),))
    cases = []
    for key, images in stacks.items():
        values = CaseValues(key, key)
        values.per_seed = [metrics.measure(one) for one in images]
        cases.append(values)
    ids = tuple(map(str, range(12)))
    pairs = (("good", "bad"), ("good", "absent"))
    return Measurements("made", np.zeros(12, dtype=np.int64), ids, metrics.real, (), tuple(cases), pairs)


def test_seeds_are_averaged_for_correlations_and_listed_for_distances():
    other = RNG.permutation(REAL)
    found = figures_of(measurements(good=[REAL, REAL], bad=[REAL, other]), 100)
    good, bad = (found.facts["statistics"][key]["haematoxylin"]["r"]["value"] for key in ("good", "bad"))
    assert good == pytest.approx(1) and bad < 0.95
    space = found.facts["distribution"]["random convolutions, seed 123"]["cases"]
    assert space["good"]["kid"]["per_seed"] == [0.0, 0.0] and space["bad"]["kid"]["per_seed"][0] == 0.0
    assert found.facts["paired"]["bad"]["ssim"]["best_of_k"]["value"] == pytest.approx(1)
    assert found.facts["paired"]["bad"]["ssim"]["mean_of_k"]["value"] < 0.8
    assert {(claim.true, claim.control) for claim in found.claims} == {
        ("good", "bad")
    }  # what was not run is not compared


def test_charts_are_well_formed_and_write_their_values():
    nan = float("nan")
    rows = [
        ("a < b & c", Interval(0.5, 0.2, 0.8, 9), False),
        ("floor", Interval(nan, nan, nan, 0), True),
    ]
    root = ElementTree.fromstring(forest(rows, 'title with "quotes"'))
    text = "".join(root.itertext())
    assert "a < b & c" in text and "0.500 [0.200, 0.800]" in text and "cannot be told" in text
    lines = [(f"line {k}", [0.1 * k, 0.0], k == 0) for k in range(9)]
    root = ElementTree.fromstring(curves(lines, "curves", 10, "n"))
    labels = [
        float(e.attrib["y"])
        for e in root.iter("{http://www.w3.org/2000/svg}text")
        if (e.text or "").startswith("line ")
    ]
    assert len(labels) == 9 and np.diff(sorted(labels)).min() >= 11.9 and max(labels) < 240  # points
    assert written(Interval(2.0, nan, nan, 9), 1) == "2.0"
