import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.edits import Add, KnockOut, Scale, SetQuantile, Swap, Towards
from napari_stmdit.expression.changes import Profile
from napari_stmdit.expression.edits import apply_edits, faults_of
from napari_stmdit.expression.normalise import PER
from napari_stmdit.types import Genes, SpotTable

PROGRAMS = {"pair": {"A": 1.0, "C": 1.0}}


@pytest.fixture
def spots() -> SpotTable:
    counts = csr_matrix(np.array([[10, 0, 30, 60], [5, 5, 0, 90], [1, 2, 3, 4]], dtype=np.float32))
    return SpotTable(
        ids=np.array(["s0", "s1", "s2"]),
        yx=np.zeros((3, 2)),
        diameter=10.0,
        counts=counts,
        genes=Genes(np.array(["A", "B", "C", "D"])),
    )


def normalised(counts) -> np.ndarray:
    return np.log1p(counts.toarray() * PER / np.array([[100.0], [100.0], [10.0]]))


def edited(spots: SpotTable, *edits, profiles=None) -> np.ndarray:
    rows = np.arange(3)
    return apply_edits(rows, spots, edits, PROGRAMS, profiles or {}).toarray()


def test_scaling_multiplies_counts_per_ten_thousand_and_leaves_other_genes_alone(spots):
    result = edited(spots, Scale(genes=("A",), factor=3))
    np.testing.assert_allclose(result[:, 0], [30, 15, 3], rtol=1e-5)
    np.testing.assert_allclose(result[:, 1:], spots.counts.toarray()[:, 1:], rtol=1e-5)


def test_the_section_itself_is_never_touched(spots):
    before = spots.counts.toarray().copy()
    edited(spots, KnockOut(genes=("A", "D")))
    np.testing.assert_array_equal(spots.counts.toarray(), before)


def test_knocking_out_a_program_zeroes_its_genes(spots):
    result = edited(spots, KnockOut(programs=("pair",)))
    assert result[:, [0, 2]].max() == 0
    assert result[:, 1].tolist() == [0, 5, 2]


def test_adding_is_in_log_units_and_never_goes_below_zero(spots):
    result = edited(spots, Add(genes=("A", "B"), log_units=1.0))
    x = normalised(spots.counts)[:, :2] + 1.0
    np.testing.assert_allclose(normalised(csr_matrix(result))[:, :2], x, rtol=1e-4)
    assert edited(spots, Add(genes=("B",), log_units=-10)).min() >= 0


def test_strength_and_weight_blend_linearly_in_log_units(spots):
    edit = KnockOut(genes=("D",), strength=0.5, spots={"s1": 0.5, "s2": 1.0})
    x, y = normalised(spots.counts)[:, 3], normalised(csr_matrix(edited(spots, edit)))[:, 3]
    np.testing.assert_allclose(y, x * [1.0, 0.75, 0.5], rtol=1e-4)


def test_disabled_edits_change_nothing(spots):
    edit = KnockOut(genes=("D",), enabled=False)
    np.testing.assert_array_equal(edited(spots, edit), spots.counts.toarray())


def test_a_quantile_is_the_sections_own(spots):
    result = edited(spots, SetQuantile(genes=("A",), quantile=1.0))
    highest = normalised(spots.counts)[:, 0].max()
    np.testing.assert_allclose(normalised(csr_matrix(result))[:, 0], highest, rtol=1e-4)


def test_moving_towards_other_spots_reaches_their_mean(spots):
    result = edited(spots, Towards(target_spots=("s2",), spots={"s0": 1.0}))
    np.testing.assert_allclose(result[0] / result[0].sum(), spots.counts.toarray()[2] / 10, rtol=1e-4)
    # relative depth counts to a factor of e squared
    assert result[0].sum() == pytest.approx(100 * np.exp(-2), rel=1e-4)
    np.testing.assert_allclose(result[1:], spots.counts.toarray()[1:], rtol=1e-4)


def test_moving_towards_a_profile_is_normalised_over_the_profiles_genes(spots):
    profile = Profile(("C", "A"), np.log1p(np.array([2500.0, 7500.0], dtype=np.float32)))
    result = edited(spots, Towards(target_profile="fat"), profiles={"fat": profile})
    own = result[:, [2, 0]]
    np.testing.assert_allclose(own / own.sum(axis=1, keepdims=True), [[0.25, 0.75]] * 3, rtol=1e-4)
    np.testing.assert_array_equal(result[:, [1, 3]], spots.counts.toarray()[:, [1, 3]])


def test_all_faults_are_found_at_once_with_their_places(spots):
    edits = (
        Scale(genes=("A", "nope"), factor=2),
        KnockOut(programs=("missing",), spots={"s9": 1.0}),
        Towards(target_profile="moon"),
        Towards(target_spots=("s8",)),
    )
    places = [place for place, _ in faults_of(edits, spots, PROGRAMS, ("fat",))]
    assert places == [
        "edits[0].genes",
        "edits[1].programs",
        "edits[1].spots",
        "edits[2].target_profile",
        "edits[3].target_spots",
    ]


def test_an_edit_of_no_spot_is_a_fault_unless_it_is_switched_off(spots):
    edits = (KnockOut(genes=("A",), spots={}), KnockOut(genes=("A",), spots={}, enabled=False))
    ((place, message),) = faults_of(edits, spots, PROGRAMS, ())
    assert place == "edits[0].spots" and message.startswith("names no spot")


def test_an_unknown_profile_is_told_with_those_that_are_there(spots):
    edit = Towards(target_profile="moon")
    assert [text for _, text in faults_of((edit,), spots, PROGRAMS, ("fat", "skin"))] == [
        "'moon' is unknown; request and checkpoint have: fat, skin"
    ]
    assert faults_of((edit,), spots, PROGRAMS, ())[0][1].endswith("have: none")


def test_a_program_must_have_a_gene_in_the_section_and_may_have_others(spots):
    programs = {"elsewhere": {"X": 1.0, "A": 0.0}, "half": {"A": 1.0, "X": 1.0}}
    edits = (KnockOut(programs=("half",)), KnockOut(programs=("half", "elsewhere")))
    assert faults_of(edits, spots, programs, ()) == [
        ("edits[1].programs", "none of its genes is in this section: elsewhere")
    ]


def test_of_many_strangers_eight_are_named_and_the_others_counted(spots):
    def told(count):
        ids = tuple(f"x{k}" for k in range(count))
        ((_, text),) = faults_of((Towards(target_spots=ids),), spots, PROGRAMS, ())
        return text.removeprefix("not in this section: ")

    assert told(8) == "x0, x1, x2, x3, x4, x5, x6, x7"
    assert told(11) == "x0, x1, x2, x3, x4, x5, x6, x7 and 3 more"


def test_an_edit_that_is_not_painted_yet_does_not_end_what_follows(spots):
    knock = KnockOut(genes=("D",))
    np.testing.assert_array_equal(edited(spots, KnockOut(genes=("A",), spots={"s0": 0.0}), knock), edited(spots, knock))


def test_a_gene_of_weight_zero_in_its_program_is_left_alone(spots):
    counts = spots.counts.toarray()
    edit = KnockOut(programs=("half",))
    result = apply_edits(np.arange(3), spots, (edit,), {"half": {"A": 1.0, "D": 0.0}}, {}).toarray()
    assert result[:, 0].max() == 0
    np.testing.assert_allclose(result[:, 1:], counts[:, 1:], rtol=1e-5)


def test_what_a_swap_or_a_decrease_aims_at_is_never_below_zero(spots):
    """Half of the way to a level below zero would be less than half of the way to none."""
    x = normalised(spots.counts)
    swapped = edited(spots, Swap(group_a=("s0",), group_b=("s1",), genes=("C",)))
    assert swapped[0, 2] == 0  # all that s0 has more than s1, whose level is zero
    less = normalised(csr_matrix(edited(spots, Add(genes=("A",), log_units=-10, strength=0.5))))
    np.testing.assert_allclose(less[:, 0], x[:, 0] / 2, rtol=1e-4)


def test_genes_of_a_profile_that_the_section_lacks_change_nothing_else(spots):
    levels = np.log1p(np.array([2500.0, 2500.0, 5000.0], dtype=np.float32))
    profile = Profile(("A", "X", "B"), levels)
    result = edited(spots, Towards(target_profile="fat"), profiles={"fat": profile})
    np.testing.assert_array_equal(result[:, 2:], spots.counts.toarray()[:, 2:])


def test_a_symbol_with_several_columns_changes_in_all_of_them(spots):
    twins = dataclasses.replace(spots, genes=Genes(np.array(["A", "B", "A", "D"])))
    assert edited(twins, KnockOut(genes=("A",)))[:, [0, 2]].max() == 0


def test_a_profile_reaches_the_sum_of_a_symbols_columns(spots):
    twins = dataclasses.replace(spots, genes=Genes(np.array(["A", "B", "A", "D"])))
    profile = Profile(("A", "D"), np.log1p(np.array([2500.0, 7500.0], dtype=np.float32)))
    result = edited(twins, Towards(target_profile="fat"), profiles={"fat": profile})
    a, d = result[:, [0, 2]].sum(axis=1), result[:, 3]
    np.testing.assert_allclose(a / (a + d), 0.25, rtol=1e-4)


def test_edits_are_prepared_once_and_do_not_depend_on_how_many_rows_are_changed_at_once(spots, monkeypatch):
    from napari_stmdit.expression import edits as module
    from napari_stmdit.expression.changes import Measured

    wanted = (
        Scale(genes=("A",), factor=3, spots={"s0": 1.0, "s2": 0.5}),
        SetQuantile(genes=("B",), quantile=0.5),
        Towards(target_spots=("s1",), strength=0.5),
        Swap(group_a=("s0",), group_b=("s1", "s2"), spots={"s0": 1.0, "s2": 0.25}),
    )
    whole, calls, of = edited(spots, *wanted), [], Measured.of
    monkeypatch.setattr(module, "DENSE_ROWS", 1)
    monkeypatch.setattr(Measured, "of", lambda *given: calls.append(given) or of(*given))
    np.testing.assert_array_equal(edited(spots, *wanted), whole)
    assert len(calls) == 1  # the totals of the whole table
    assert apply_edits(np.array([], dtype=np.int64), spots, wanted, PROGRAMS, {}).shape == (0, 4)


def test_the_mean_of_many_spots_is_not_rounded_on_the_way():
    levels = np.random.default_rng(0).gamma(2.0, 40.0, (60000, 1)).astype(np.float32)
    counts = csr_matrix(np.hstack([levels, 10000 - levels]))
    ids = np.array([f"s{k}" for k in range(len(levels))])
    many = SpotTable(ids, np.zeros((len(ids), 2)), 1.0, counts, Genes(np.array(["A", "B"])))
    towards = Towards(genes=("A", "B"), target_spots=tuple(ids.tolist()))
    after = np.log1p(apply_edits(np.array([0]), many, (towards,), {}, {}).toarray()[0, 0])
    assert after == pytest.approx(np.log1p(levels.astype(float)).mean(), rel=1e-6)


def test_a_profile_of_more_genes_than_the_section_has_says_the_same_of_those(spots):
    """Its levels are relative to all of its genes."""
    counts = spots.counts[:1].toarray().repeat(len(spots), axis=0)
    same = dataclasses.replace(spots, counts=csr_matrix(counts))
    levels = np.log1p(counts[0] / counts[0].sum() * 1e4).astype(np.float32)
    profile = Profile(tuple(spots.genes.symbols), levels)
    few = dataclasses.replace(same, counts=same.counts[:, :3], genes=Genes(spots.genes.symbols[:3]))
    for gene in few.genes.symbols[:3]:
        moved = apply_edits(np.arange(2), few, [Towards(genes=(gene,), target_profile="p")], {}, {"p": profile})
        np.testing.assert_allclose(moved.toarray(), few.counts[:2].toarray(), rtol=1e-3)


def test_a_gene_of_a_profile_may_be_named_by_its_id_or_a_former_symbol(spots):
    symbols = np.array(["SEPTIN1", *spots.genes.symbols[1:]])
    ids = np.array([f"ENSG{k:011d}" for k in range(len(symbols))])
    named = dataclasses.replace(spots, genes=Genes(symbols, ids))
    profile = {"p": Profile(tuple(symbols), np.full(len(symbols), 3.0, np.float32))}
    made = [
        apply_edits(np.arange(3), named, [Towards(genes=(gene,), target_profile="p")], {}, profile).toarray()
        for gene in ("SEPTIN1", "SEPT1", ids[0])
    ]
    assert (made[0] != named.counts[:3].toarray()).any()
    np.testing.assert_array_equal(made[1], made[0])
    np.testing.assert_array_equal(made[2], made[0])
