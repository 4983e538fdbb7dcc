import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.edits import Add, KnockOut, Scale, SetQuantile, Swap, Towards
from napari_stmdit.expression.changes import Measured, Profile
from napari_stmdit.expression.covariation import covariation_of
from napari_stmdit.expression.edits import apply_edits, edited_depths, edited_levels
from napari_stmdit.expression.following import following_notes, program_reach, reach_of
from napari_stmdit.expression.normalise import PER
from napari_stmdit.types import Genes, SpotTable

SIDE, GENES = 12, 40
WITH, AGAINST, APART = slice(0, 10), slice(10, 20), slice(20, 40)
"""Genes that rise with a tissue, that fall with it, and that have nothing to do with it."""


def table(side: int = SIDE, seed: int = 0) -> SpotTable:
    """A grid of spots with one tissue whose share falls off from one side to the other, and deeper spots where there is more of it."""
    rng = np.random.default_rng(seed)
    yx = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2) * 100.0
    tissue = np.cos(yx[:, 0] / yx[:, 0].max() * 3) + 0.2 * rng.normal(size=len(yx))
    log = np.full((len(yx), GENES), np.log(8.0))
    log[:, WITH] += 0.5 * tissue[:, None]
    log[:, AGAINST] -= 0.5 * tissue[:, None]
    counts = rng.poisson(np.exp(log + 0.4 * tissue[:, None]))
    names = np.array([f"G{k}" for k in range(GENES)])
    ids = np.array([f"s{k}" for k in range(len(yx))])
    return SpotTable(ids, yx, 50.0, csr_matrix(counts.astype(np.float32)), Genes(names))


@pytest.fixture(scope="module")
def spots() -> SpotTable:
    return table()


def names(part: slice) -> tuple[str, ...]:
    return tuple(f"G{k}" for k in range(*part.indices(GENES)))


def levels(counts, spots) -> np.ndarray:
    totals = np.asarray(spots.counts.sum(axis=1))
    return np.log1p(counts.toarray() * PER / totals)


def change(spots, *edits, programs=None, **more) -> np.ndarray:
    rows = np.arange(len(spots))
    return levels(apply_edits(rows, spots, edits, programs or {}, {}, **more), spots) - levels(spots.counts, spots)


def deeper(spots, *edits) -> np.ndarray:
    return edited_depths(np.arange(len(spots)), spots, edits, {}, {}) - spots.relative_depth


def test_edits_that_nothing_follows_give_the_counts_that_they_always_gave():
    rng = np.random.default_rng(5)
    counts = csr_matrix(rng.poisson(rng.gamma(1.0, 3.0, (80, 40))).astype(np.float32))
    yx = np.stack([np.arange(80) // 10, np.arange(80) % 10], axis=1) * 100.0
    old = SpotTable(
        np.array([f"s{k}" for k in range(80)]), yx, 50.0, counts, Genes(np.array([f"G{k}" for k in range(40)]))
    )
    edits = (
        Scale(genes=("G1",), factor=3, spots={"s0": 1.0, "s2": 0.5}, follow="none"),
        Add(programs=("p",), log_units=-0.7, strength=0.8, follow="none"),
        KnockOut(genes=("G7", "G8"), spots={f"s{k}": k / 80 for k in range(80)}, follow="none"),
        SetQuantile(genes=("G3",), quantile=0.8, follow="none"),
        Towards(target_spots=("s5", "s6"), genes=("G1", "G9"), spots={"s9": 0.4}),
        Swap(group_a=("s1",), group_b=("s2", "s3")),
        Towards(target_profile="fat", strength=0.3, genes=("G4",)),
    )
    profiles = {"fat": Profile(("G4", "G5"), np.array([3.0, 8.0], np.float32), depth=-0.5)}
    made = apply_edits(np.arange(80), old, edits, {"p": {"G2": 1.0, "G4": 0.5}}, profiles).toarray()
    before = [  # of the version before anything could follow
        [3.000000238418579, 0.5666211247444153, 4.100802898406982, 0.0001459603081457317, 0.0, 6.0],
        [6.3242692947387695, 2.657677173614502, 9.624983787536621, 0.001313642831519246, 6.6095075607299805, 35.198215],
        [1.2968262434005737, 0.0, 4.982283592224121, 2.240192413330078, 0.0, 2.2909746170043945],
        [2.0, 1.7076239585876465, 5.365536689758301, 0.4164127707481384, 0.0011987912002950907, 10.0],
    ]
    np.testing.assert_allclose(made[[0, 2, 9, 79]][:, [1, 2, 3, 4, 7, 9]], before, rtol=1e-6)
    named = [1, 2, 3, 4, 7, 8, 9]
    rest = np.setdiff1d(np.arange(40), named)
    still = np.setdiff1d(np.arange(80), [1, 2, 3])  # a swap moves the whole profile
    np.testing.assert_array_equal(made[np.ix_(still, rest)], counts.toarray()[np.ix_(still, rest)])


def test_what_varies_with_a_program_goes_along_and_so_does_depth(spots):
    edit = Add(programs=("p",), log_units=0.3)
    programs = {"p": dict.fromkeys(names(slice(0, 5)), 1.0)}
    moved = change(spots, edit, programs=programs).mean(axis=0)
    np.testing.assert_allclose(moved[:5], 0.3, atol=1e-3)  # as asked
    assert (moved[5:10] > 0.15).all() and (moved[AGAINST] < -0.15).all()
    assert np.abs(moved[APART]).max() < 0.12
    rows = np.arange(len(spots))
    assert (edited_depths(rows, spots, (edit,), programs, {}) - spots.relative_depth).mean() > 0.05


def test_followers_go_by_the_slope_on_the_program_over_smoothed_spots(spots):
    known = covariation_of(spots)
    rows = np.arange(len(spots))
    smooth = known.smoothed(rows, np.arange(GENES))
    score = smooth[:, :5].mean(axis=1)
    slopes = np.array([np.polyfit(score, gene, 1)[0] for gene in smooth.T])
    moved = change(spots, Add(genes=names(slice(0, 5)), log_units=0.1)).mean(axis=0) / 0.1
    np.testing.assert_allclose(moved[5:], slopes[5:], atol=0.25)
    assert np.corrcoef(moved[5:], slopes[5:])[0, 1] > 0.97


def test_what_follows_is_linear_in_strength(spots):
    whole, half = (Add(genes=("G0", "G1"), log_units=0.4, strength=s) for s in (1.0, 0.5))
    np.testing.assert_allclose(change(spots, half), change(spots, whole) / 2, atol=2e-5)
    np.testing.assert_allclose(deeper(spots, half), deeper(spots, whole) / 2, atol=1e-6)


def test_two_genes_in_one_edit_and_in_two_are_the_same(spots):
    one = Add(genes=("G0", "G30"), log_units=0.4)
    two = tuple(Add(genes=(gene,), log_units=0.4) for gene in one.genes)
    np.testing.assert_allclose(change(spots, *two), change(spots, one), atol=1e-5)
    np.testing.assert_allclose(deeper(spots, *two), deeper(spots, one), atol=1e-6)


def test_genes_that_an_edit_names_do_not_follow_another(spots):
    stated = KnockOut(genes=("G6",), follow="none")
    moved = change(spots, Add(genes=("G0",), log_units=0.4), stated)
    np.testing.assert_allclose(moved[:, 6], change(spots, stated)[:, 6], atol=1e-5)
    assert moved[:, 5].mean() > 0.05


def test_factors_of_spots_are_those_that_genes_go_by(spots):
    known = covariation_of(spots)
    rows = np.arange(len(spots))
    scores = known.scores(rows)
    smooth = known.smoothed(rows)
    centred = scores - scores.mean(axis=0)
    np.testing.assert_allclose((centred**2).mean(axis=0), 1, rtol=0.01)
    np.testing.assert_allclose((smooth - smooth.mean(axis=0)).T @ centred / len(rows), known.loadings[:-1], atol=0.01)
    np.testing.assert_allclose(known.scores(rows[5:9]), scores[5:9])


def test_spots_that_are_not_painted_stay_as_measured(spots):
    edit = Add(genes=("G0",), log_units=0.4, spots={"s70": 1.0, "s71": 0.5})
    after = apply_edits(np.arange(len(spots)), spots, (edit,), {}, {}).toarray()
    changed = np.flatnonzero((after != spots.counts.toarray()).any(axis=1))
    assert changed.tolist() == [70, 71]
    assert np.flatnonzero(deeper(spots, edit)).tolist() == [70, 71]


def test_what_follows_is_held_inside_the_range_of_the_section_and_a_note_says_so(spots):
    strong, weak = (Add(genes=("G0", "G1"), log_units=units) for units in (6.0, 0.01))
    known, rows, columns = covariation_of(spots), np.arange(len(spots)), np.arange(2, GENES)
    smooth = known.smoothed(rows, columns)
    moved = change(spots, strong)[:, 2:]
    raised = moved > 0
    assert (smooth + moved)[raised].max() <= known.high[columns].max() + 1e-4
    assert ((smooth + moved) <= np.where(raised, known.high[columns], np.inf) + 1e-4).all()
    assert change(spots, strong).min() > -levels(spots.counts, spots).max()
    (note,) = following_notes(spots, (strong,), {}, names(slice(0, GENES)))
    assert "of the 40 genes that the checkpoint reads" in note and "cut off" in note
    assert following_notes(spots, (weak,), {}, names(slice(0, GENES))) == []


def test_depth_that_follows_is_held_inside_the_range_of_measured_depths(spots):
    """That of smoothed depths is narrower, and would hold back what is seen in single spots."""
    edit = Add(genes=("G0", "G1"), log_units=6.0)
    known, measured = covariation_of(spots), spots.relative_depth
    after = known.depth + (edited_depths(np.arange(len(spots)), spots, (edit,), {}, {}) - measured)
    assert after.max() <= measured.max() + 1e-5 and after.min() >= measured.min() - 1e-5
    assert after.max() > known.depth.max() + 0.01 or after.min() < known.depth.min() - 0.01


def test_nothing_follows_in_a_section_of_few_spots_and_a_note_says_why():
    few = table(side=7)
    edit = Add(genes=("G0",), log_units=0.4)
    none = edit.model_copy(update={"follow": "none"})
    np.testing.assert_array_equal(change(few, edit), change(few, none))
    (note,) = following_notes(few, (edit,), {}, names(slice(0, GENES)))
    assert "the section has 49 spots" in note and "at least 50 spots" in note
    assert following_notes(few, (none,), {}, names(slice(0, GENES))) == []


def test_a_few_genes_alone_follow_as_they_do_in_the_whole_table(spots):
    edits = (Add(genes=("G0",), log_units=0.4, spots={f"s{k}": k / 144 for k in range(144)}),)
    some = ("G3", "G15", "G0")
    narrow = Measured.of(spots).narrowed(some, {})
    few = edited_levels(narrow, edits, {}, {})
    whole = levels(apply_edits(np.arange(len(spots)), spots, edits, {}, {}), spots)
    np.testing.assert_allclose(few, whole[:, [0, 3, 15]], atol=1e-5)
    assert np.abs(few - narrow.levels(np.arange(3))).max(axis=0).min() > 0.05  # all three move


def test_genes_that_a_checkpoint_sees_follow_alike_whether_others_do_or_not(spots):
    edit = Add(genes=("G0",), log_units=0.4)
    rows = np.arange(len(spots))
    whole = apply_edits(rows, spots, (edit,), {}, {}).toarray()
    seen = apply_edits(rows, spots, (edit,), {}, {}, checkpoint_genes=("G3", "G15", "not there")).toarray()
    np.testing.assert_allclose(seen[:, [0, 3, 15]], whole[:, [0, 3, 15]], rtol=1e-5)
    np.testing.assert_array_equal(seen[:, 16:], spots.counts.toarray()[:, 16:])


def test_the_shuffled_control_follows_from_the_spot_whose_counts_it_takes(spots):
    edit = Add(genes=("G0",), log_units=0.4)
    rows, sources = np.arange(3), np.array([50, 51, 52])
    given = apply_edits(rows, spots, (edit,), {}, {}, sources).toarray()
    np.testing.assert_allclose(given, apply_edits(sources, spots, (edit,), {}, {}).toarray(), rtol=1e-6)


def test_what_is_estimated_depends_on_the_table_alone(spots):
    again = covariation_of(table())
    known = covariation_of(spots)
    assert known is covariation_of(spots) and known.settings == again.settings
    np.testing.assert_array_equal(known.loadings, again.loadings)
    other = dataclasses.replace(spots, counts=table(seed=1).counts)
    assert not np.array_equal(covariation_of(other).loadings, known.loadings)


def test_a_program_says_how_much_of_it_a_checkpoint_sees_directly_and_through_what_follows(spots):
    program = dict.fromkeys(names(slice(0, 5)), 1.0) | {"not here": 1.0, "G25": 0.0}
    seen = ("G1", "G7", "G15", "G30", "G31")
    reach = program_reach(program, spots, seen)
    assert (reach.named, reach.there, reach.read, reach.others) == (6, 5, 1, 4)
    assert reach.followers >= 2 and not reach.ineffective
    assert "reads 1 of its 6 genes, and" in reach.words
    unread = program_reach({"G2": 1.0}, spots, ("G15",))
    assert unread.read == 0 and unread.followers == 1 and not unread.ineffective
    few = program_reach({"G2": 1.0}, table(side=7), ("G15",))
    assert few.ineffective and "nothing that it reads follows them here" in few.words
    assert program_reach({"X": 1.0}, spots, seen).words == "this section has none of its 1 genes"


def test_unseen_genes_are_no_warning_where_others_follow(spots):
    edit = Add(genes=("G0",), log_units=1)
    assert "will not change" in reach_of(edit, {}, spots.genes, ("G5",)).warning
    assert reach_of(edit, {}, spots.genes, ("G5",), followed=True).warning == ""
    alone = edit.model_copy(update={"follow": "none"})
    assert "will not change" in reach_of(alone, {}, spots.genes, ("G5",), followed=True).warning


def test_genes_that_move_towards_a_target_do_not_follow_another_edit(spots):
    towards = Towards(genes=("G2",), target_spots=("s0", "s1"))
    swap = Swap(genes=("G3",), group_a=("s4",), group_b=("s90",))
    followed = Add(genes=("G0", "G1"), log_units=1.0)
    alone, beside = change(spots, towards), change(spots, towards, followed)
    np.testing.assert_allclose(beside[:, 2], alone[:, 2], atol=1e-6)
    alone, beside, without = change(spots, swap), change(spots, swap, followed), change(spots, followed)
    np.testing.assert_allclose(beside[[4, 90], 3], alone[[4, 90], 3], atol=1e-6)
    np.testing.assert_allclose(beside[[5, 6], 3], without[[5, 6], 3], atol=1e-6)  # no members: they follow


def test_a_gene_is_read_by_a_checkpoint_that_calls_it_otherwise(spots):
    renamed = dataclasses.replace(spots, genes=Genes(np.array(["SEPT1", *spots.genes.symbols[1:]])))
    assert reach_of(KnockOut(genes=("SEPT1",), follow="none"), {}, renamed.genes, ("SEPTIN1", "G1")).unread == ()
    assert program_reach({"SEPT1": 1.0, "G5": 1.0}, renamed, ("SEPTIN1", "G1")).read == 1
