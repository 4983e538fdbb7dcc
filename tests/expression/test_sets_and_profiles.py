"""Programs, gene sets from files, profiles of regions, and how far an edit reaches."""

import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.edits import Add, KnockOut, Swap, Towards
from napari_stmdit.errors import GeneError
from napari_stmdit.expression.changes import Measured
from napari_stmdit.expression.edits import apply_edits, edited_levels
from napari_stmdit.expression.following import reach_of
from napari_stmdit.expression.normalise import PER
from napari_stmdit.expression.profiles import as_profiles, measure_profile, read_profile, write_profile
from napari_stmdit.expression.programs import bundled_notes, bundled_programs, known_programs, read_gmt, report
from napari_stmdit.intent import SpotProfile
from napari_stmdit.types import Genes, SpotTable


def test_bundled_programs_have_genes_a_meaning_and_a_source():
    programs, notes = bundled_programs(), bundled_notes()
    wanted = (
        "proliferation emt hypoxia interferon melanocytic epithelial luminal her2 stromal endothelial t_cell b_plasma"
    )
    assert {*wanted.split(), "myeloid", "adipose"} <= set(programs)
    for name, genes in programs.items():
        assert 5 <= len(genes) <= 12, name
        assert all(re.fullmatch(r"[A-Z0-9-]+", gene) for gene in genes), name
        assert re.search(r"(19|20)\d\d.*doi:10\.\d{4,}/\S+", notes[name].source), name
        assert notes[name].about


def test_of_two_programs_with_one_name_the_users_counts():
    known = known_programs({"hypoxia": {"CA9": 0.5}, "mine": {"A": 1.0}})
    assert known["hypoxia"] == {"CA9": 0.5}
    assert known["mine"] == {"A": 1.0}
    assert "adipose" in known


def test_a_gmt_file_and_what_is_doubtful_about_it(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("one\tabout\tA\tB\tA\n\ntwo\t\tC\tNOPE\n# a remark\nthree\tx\tNO1\tNO2\n")
    sets = read_gmt(path)
    assert sets.programs == {"one": {"A": 1, "B": 1}, "two": {"C": 1, "NOPE": 1}, "three": {"NO1": 1, "NO2": 1}}
    told = report(sets, Genes(np.array(["A", "B", "C"])))
    assert len(told) == 3
    assert "A more than once" in told[0]
    assert "NOPE" in told[1]
    assert "none of its 2" in told[2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one about A B\n", "line 1 has 1 columns"),
        ("one\tx\tA\none\tx\tB\n", "line 2 gives 'one' other genes"),
        ("", "no gene set"),
    ],
)
def test_a_file_that_is_no_gmt_is_refused_in_words(tmp_path, text, says):
    path = tmp_path / "bad.gmt"
    path.write_text(text)
    with pytest.raises(GeneError, match=says):
        read_gmt(path)


@pytest.fixture
def spots() -> SpotTable:
    counts = csr_matrix(np.array([[10, 0, 30, 60, 0], [5, 5, 0, 90, 0], [1, 2, 3, 4, 0]], dtype=np.float32))
    return SpotTable(np.array(["s0", "s1", "s2"]), np.zeros((3, 2)), 10.0, counts, Genes(np.array(list("ABCDE"))))


def levels(counts, totals=(100, 100, 10)) -> np.ndarray:
    return np.log1p(np.asarray(counts) * PER / np.array(totals, dtype=float)[:, None])


@pytest.mark.parametrize("suffix", ["json", "tsv"])
def test_a_profile_goes_to_a_file_and_back(tmp_path, spots, suffix):
    profile = measure_profile(spots, ["s0", "s1"], "two spots")
    assert list(profile.values) == ["A", "B", "C", "D"]  # the section has no E and says nothing about it
    expected = levels(spots.counts.toarray())[:2].mean(axis=0)[:4]
    np.testing.assert_allclose(list(profile.values.values()), expected, atol=1e-4)
    path = tmp_path / f"profile.{suffix}"
    write_profile(profile, path)
    assert read_profile(path) == profile


def test_columns_of_one_symbol_are_one_gene_of_a_profile(spots):
    twins = SpotTable(spots.ids, spots.yx, 10.0, spots.counts, Genes(np.array(["A", "B", "A", "D", "E"])))
    profile = measure_profile(twins, ["s0"])
    assert profile.values["A"] == pytest.approx(np.log1p(40 * PER / 100), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", "[1]", "no mapping"),
        ("p.json", '{"values": {"A": -1}}', "values.A"),
        ("p.tsv", "gene\tmean\nA\t1\nA\t2\n", "second time"),
        ("p.tsv", "A\t1\t2\t3\n", "4 columns"),
        ("p.tsv", "A\thigh\n", "high"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_words(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(GeneError, match=says):
        read_profile(tmp_path / name)


def test_moving_towards_another_sections_profile_reaches_it(spots):
    profile = measure_profile(spots, ["s1"])
    after = apply_edits(np.arange(3), spots, (Towards(target_profile="x"),), {}, as_profiles({"x": profile})).toarray()
    np.testing.assert_allclose(after, np.repeat(spots.counts.toarray()[1:2], 3, axis=0), rtol=2e-3)  # levels and total


def test_a_swap_exchanges_the_means_of_two_groups_and_keeps_what_is_within(spots):
    many = SpotTable(
        np.array([f"s{k}" for k in range(4)]),
        np.zeros((4, 2)),
        10.0,
        csr_matrix(np.array([[40, 60], [60, 40], [80, 20], [90, 10]], dtype=np.float32)),
        Genes(np.array(["A", "B"])),
    )
    edit = Swap(group_a=("s0", "s1"), group_b=("s2",))
    before = levels(many.counts.toarray(), (100,) * 4)
    after = levels(apply_edits(np.arange(4), many, (edit,), {}, {}).toarray(), (100,) * 4)
    np.testing.assert_allclose(after[:2].mean(axis=0), before[2], rtol=1e-4)
    np.testing.assert_allclose(after[2], before[:2].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(after[1] - after[0], before[1] - before[0], atol=1e-3)
    np.testing.assert_allclose(after[3], before[3], rtol=1e-4)
    half = levels(
        apply_edits(np.arange(4), many, (edit.model_copy(update={"strength": 0.5}),), {}, {}).toarray(), (100,) * 4
    )
    np.testing.assert_allclose(half[:3], (before[:3] + after[:3]) / 2, rtol=1e-4)


def test_groups_that_share_spots_cannot_be_swapped():
    with pytest.raises(ValueError, match="share 1 spots"):
        Swap(group_a=("a", "b"), group_b=("b",))


def test_a_genes_weight_in_a_program_multiplies_the_effect(spots):
    edit = KnockOut(programs=("p",))
    before = levels(spots.counts.toarray())
    after = levels(apply_edits(np.arange(3), spots, (edit,), {"p": {"A": 1.0, "D": 0.25}}, {}).toarray())
    np.testing.assert_allclose(after[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(after[:, 3], 0.75 * before[:, 3], rtol=1e-4)


def test_a_few_genes_alone_give_what_the_whole_table_gives(spots):
    profiles = as_profiles(
        {"x": SpotProfile(values={"A": 3.0, "B": 8.0, "D": 5.0})}
    )  # without C, which has many counts
    edits = (
        Add(genes=("A", "B"), log_units=0.7, spots={"s0": 0.5, "s1": 1.0}),
        Towards(target_profile="x", strength=0.6),
        Swap(group_a=("s0",), group_b=("s1",), strength=0.5),
    )
    whole = levels(apply_edits(np.arange(3), spots, edits, {}, profiles).toarray())
    narrow = Measured.of(spots).narrowed(("D", "B"), profiles)
    few = edited_levels(narrow, edits, {}, profiles)
    np.testing.assert_allclose(few, whole[:, [1, 3]], atol=1e-5)


def test_reach_says_what_has_no_effect():
    genes = Genes(np.array(["A", "B", "C"]))
    edit = Add(genes=("A", "B"), programs=("p",), log_units=1)
    reach = reach_of(edit, {"p": {"C": 1.0, "X": 1.0}}, genes, ("A", "C", "X"))
    assert (reach.named, reach.missing, reach.unread) == (4, ("X",), ("B",))
    assert "X" in reach.warning
    assert "B" in reach.warning
    assert "will not change" in reach_of(Add(genes=("B",), log_units=1), {}, genes, ("A",)).warning
    assert reach_of(Add(genes=("B",), log_units=1), {}, genes, None).warning == ""
    assert reach_of(Towards(target_spots=("s",)), {}, genes, ("A",)).warning == ""
