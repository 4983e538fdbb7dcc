"""A profile that is moved fully is read by a checkpoint as its spots are on average, however deep they were measured."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.edits import Add, Towards
from napari_stmdit.expression.normalise import totals_of
from napari_stmdit.expression.profiles import measure_profile
from napari_stmdit.intent import Request
from napari_stmdit.regions import Polygons, SpotList
from napari_stmdit.synthesis.conditions import condition_rows, conditioned_counts
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.tissue.open import open_sample_section


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo")


@pytest.fixture(scope="module")
def section():
    return open_sample_section()


def thinned(section, factor):
    """The section as a shallower experiment would have seen it."""
    if factor == 1:
        return section
    counts = np.random.default_rng(0).binomial(section.spots.counts.toarray().astype(np.int64), 1 / factor)
    return replace(section, spots=replace(section.spots, counts=csr_matrix(counts.astype(np.float32))))


def measured(section, model):
    spots = section.spots
    return model.encode_expression(spots.counts.astype(np.float32), spots.genes, tuple(spots.ids), spots.relative_depth)


def encoded(section, model, *edits, **more):
    request = Request(edits=edits, counterfactual="off", **more)
    made = plan(section, request, model.card)
    conditions = condition_rows(made, section, model)
    return conditions.expression(made.patches, section, model)


def group_of(section, model):
    return np.argsort(measured(section, model)[:, 0])[-12:]


@pytest.mark.parametrize("factor", [1, 4, 16, 64, 256])
def test_spots_moved_fully_to_a_group_are_read_as_the_group_is_on_average(section, demo, factor):
    shallow = thinned(section, factor)
    own = measured(shallow, demo)
    group = group_of(shallow, demo)
    edit = Towards(target_spots=tuple(shallow.spots.ids[group].tolist()))
    others = tuple(np.delete(shallow.spots.ids, group)[:5].tolist())
    found = encoded(shallow, demo, edit, region=SpotList(ids=others))
    away = np.abs(found - own[group].mean(axis=0)) / own.std(axis=0)
    assert away.max() < 0.3


@pytest.mark.parametrize("factor", [1, 16, 256])
def test_a_profile_with_its_spread_is_read_nearly_as_its_spots_are(section, demo, factor):
    shallow = thinned(section, factor)
    own, group = measured(shallow, demo), group_of(shallow, demo)
    profile = measure_profile(shallow.spots, shallow.spots.ids[group].tolist())
    wanted = own[group].mean(axis=0)
    region = SpotList(ids=tuple(np.delete(shallow.spots.ids, group)[:3].tolist()))
    away = []
    for given in (profile, profile.model_copy(update={"spreads": {}})):
        found = encoded(shallow, demo, Towards(target_profile="p"), profiles={"p": given}, region=region)
        away.append(np.sqrt((((found - wanted) / own.std(axis=0)) ** 2).mean()))
    # at full depth the designed fat has more counts than any fat that the encoder has seen
    assert away[0] < (0.5 if factor == 1 else 0.3)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_a_spot_is_read_on_a_straight_way_to_its_target(section, demo, strength):
    ids, own = section.spots.ids, measured(section, demo)
    group, at = group_of(section, demo), np.array([60, 61, 62])
    region = SpotList(ids=tuple(ids[at].tolist()))
    for target in ({"target_spots": tuple(ids[group].tolist())}, {"target_profile": "adipose"}):
        full = encoded(section, demo, Towards(**target), region=region)
        found = encoded(section, demo, Towards(**target, strength=strength), region=region)
        np.testing.assert_allclose(found, own[at] + strength * (full - own[at]), atol=1e-4)
    np.testing.assert_allclose(full, np.broadcast_to(demo.profiles["adipose"].encoding, full.shape), atol=1e-4)


def test_a_later_target_takes_over_and_other_edits_move_nothing_more(section, demo):
    ids = section.spots.ids
    first, second = (Towards(target_spots=tuple(ids[k : k + 8].tolist())) for k in (0, 30))
    region = SpotList(ids=tuple(ids[60:62].tolist()))
    both = encoded(section, demo, first, second, region=region)
    np.testing.assert_allclose(both, encoded(section, demo, second, region=region), atol=1e-4)
    gene = Add(genes=(str(section.spots.genes.symbols[0]),), log_units=1)
    made = plan(section, Request(edits=(gene,), counterfactual="off", region=region), demo.card)
    assert condition_rows(made, section, demo).arrival is None


def test_totals_move_in_proportion_with_strength(section):
    spots = section.spots
    totals = totals_of(spots.counts.astype(np.float32))
    deep = tuple(spots.ids[np.argsort(totals)[-10:]].tolist())
    row = np.array([int(np.argsort(totals)[len(totals) // 4])])
    goal = np.log(np.median(totals)) + spots.relative_depth[spots.rows(deep)].mean()
    for strength in (0.0, 0.25, 0.5, 1.0):
        edits = (Towards(target_spots=deep, strength=strength),)
        genes = Towards(target_spots=deep, strength=strength, genes=tuple(spots.genes.symbols.tolist()))
        moved, _ = conditioned_counts(row, section, Request(edits=edits), {})
        still, _ = conditioned_counts(
            row, section, Request(edits=(genes,)), {}
        )  # the same levels, on the total as measured
        factor = float(np.log(moved.sum() / still.sum()))
        assert factor == pytest.approx(strength * (goal - np.log(totals[row[0]])), abs=1e-3)


def test_seamless_tissue_between_moved_spots_arrives_too(section, demo):
    spots = section.spots
    group = group_of(section, demo)
    edit = Towards(target_spots=tuple(spots.ids[group].tolist()))
    (y0, x0), (y1, x1) = spots.yx.min(axis=0), np.median(spots.yx, axis=0)
    ring = ((y0, x0), (y0, x1), (y1, x1), (y1, x0))
    request = Request(edits=(edit,), counterfactual="off", mode="continuous", region=Polygons(rings=(ring,)))
    made = plan(section, request, demo.card)
    conditions = condition_rows(made, section, demo)
    count = conditions.counts.shape[0]
    mix = csr_matrix(np.full((1, count), 1 / count, np.float32))
    found = conditions.mixed(mix, [0], section, demo)
    own = measured(section, demo)
    assert (np.abs(found[0] - own[group].mean(axis=0)) / own.std(axis=0)).max() < 0.3
