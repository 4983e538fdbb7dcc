"""A spot's depth relative to its section reaches the model, whichever way patches are made."""

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_matrix
from standins import CropModel, card_for, make_section

from napari_stmdit.edits import Towards
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.conditions import condition_rows
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize


class Watching(CropModel):
    def encode_expression(self, counts, genes, spots=(), depth=None):
        self.seen = getattr(self, "seen", {}) | dict(zip(spots, depth, strict=True))
        return super().encode_expression(counts, genes, spots, depth)


def setting():
    section = make_section()
    return section, Watching(card_for(tuple(section.spots.genes.symbols.tolist())))


def test_each_patch_is_told_the_depth_of_its_spot_whatever_the_region():
    section, model = setting()
    chosen = section.spots.ids[[7, 2, 20]].tolist()
    synthesize(section, Request(region=SpotList(ids=tuple(chosen))), model)
    expected = dict(zip(section.spots.ids.tolist(), section.spots.relative_depth.tolist(), strict=True))
    assert model.seen == {spot: np.float32(expected[spot]) for spot in chosen}


def test_depth_follows_edits_and_the_shuffled_control():
    section, model = setting()
    target = int(section.spots.relative_depth.argmax())
    edit = Towards(target_spots=(section.spots.ids[target],))
    rows = condition_rows(plan(section, Request(edits=(edit,)), model.card), section, model)
    np.testing.assert_allclose(rows.depth, section.spots.relative_depth[target], atol=1e-6)
    shuffled = condition_rows(plan(section, Request(expression="shuffled"), model.card), section, model)
    sources = section.spots.rows(list(shuffled.sources))
    np.testing.assert_array_equal(shuffled.depth, section.spots.relative_depth[sources])
    null = condition_rows(plan(section, Request(expression="null"), model.card), section, model)
    assert null.counts is None and null.depth is None


def test_between_spots_depth_is_that_of_the_mixed_counts():
    section, model = setting()
    shared = condition_rows(plan(section, Request(), model.card), section, model)
    weights = np.zeros((1, len(section.spots)))
    weights[0, [3, 4]] = 0.25, 0.75
    shared.mixed(csr_matrix(weights), [4], section, model)
    totals = np.asarray(section.spots.counts.sum(axis=1)).ravel()
    mixed = np.log((0.25 * totals[3] + 0.75 * totals[4]) / np.median(totals))
    np.testing.assert_allclose(model.seen[section.spots.ids[4]], mixed, atol=1e-5)


def test_a_shallower_experiment_has_the_same_depths():
    section, _ = setting()
    shallow = replace(section.spots, counts=section.spots.counts / 4)
    np.testing.assert_allclose(shallow.relative_depth, section.spots.relative_depth, atol=1e-6)
