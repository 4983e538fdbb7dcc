import json

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.encoders.linear_programs import LinearProgramEncoder
from napari_stmdit.errors import CheckpointError
from napari_stmdit.types import Genes

NAMES = ("EPCAM", "KRT8", "COL1A1", "CD3E")


@pytest.fixture
def encoder():
    rng = np.random.default_rng(0)
    return LinearProgramEncoder(
        NAMES,
        mean=np.array([6.0, 6.0, 5.0, 4.0], dtype=np.float32),
        scale=np.array([1.0, 2.0, 1.0, 0.5], dtype=np.float32),
        abundance=np.array([4000, 3000, 2000, 1000], dtype=np.float32),
        projection=rng.normal(size=(4, 3)).astype(np.float32),
        offset=np.array([0.5, 0.0, -0.5], dtype=np.float32),
    )


def table(columns, rows=5, seed=1):
    counts = np.random.default_rng(seed).poisson(8, (rows, len(columns))) + 1
    return csr_matrix(counts.astype(np.float32)), Genes(np.array(columns))


def test_scores_are_the_stated_formula(encoder):
    counts, genes = table(NAMES)
    dense = counts.toarray()
    values = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    expected = (values - encoder.mean) / encoder.scale @ encoder.projection + encoder.offset
    scores = encoder.encode(counts, genes)
    assert scores.dtype == np.float32 and scores.shape == (5, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_genes_outside_the_list_have_no_effect_at_all(encoder):
    counts, genes = table((*NAMES, "ACTB", "MT-CO1"))
    changed = counts.toarray()
    changed[:, 4:] *= 50
    np.testing.assert_array_equal(encoder.encode(counts, genes), encoder.encode(csr_matrix(changed), genes))


def test_the_order_of_columns_does_not_matter(encoder):
    counts, genes = table(NAMES)
    turned = csr_matrix(counts.toarray()[:, ::-1])
    np.testing.assert_allclose(
        encoder.encode(turned, Genes(genes.symbols[::-1])), encoder.encode(counts, genes), atol=1e-5
    )


def test_a_missing_gene_counts_as_its_training_mean(encoder):
    # a spot that has exactly the training's shares: without one gene the others must keep their values
    counts = csr_matrix(np.array([[40.0, 30, 20, 10]]))
    whole = encoder.encode(counts, Genes(np.array(NAMES)))
    without = encoder.encode(counts[:, :3], Genes(np.array(NAMES[:3])))
    last = (np.log1p(1000.0) - encoder.mean[3]) / encoder.scale[3] * encoder.projection[3]
    np.testing.assert_allclose(without, whole - last, atol=1e-4)


def test_depth_alone_changes_little_and_an_empty_spot_is_the_mean(encoder):
    counts, genes = table(NAMES)
    np.testing.assert_allclose(encoder.encode(counts * 10, genes), encoder.encode(counts, genes), atol=1e-4)
    np.testing.assert_array_equal(encoder.encode(csr_matrix((1, 4)), genes)[0], encoder.offset)


def test_shallow_spots_are_drawn_to_the_offset(encoder):
    counts, genes = table(NAMES)
    encoder.offset[:] = 0
    plain = encoder.encode(counts, genes)
    encoder.half_depth = 30.0
    depth = counts.sum(axis=1)
    np.testing.assert_allclose(encoder.encode(counts, genes), plain * np.asarray(depth / (depth + 30)), rtol=1e-4)
    # what a missing gene would have counted belongs to the depth
    abundance = encoder.abundance / encoder.abundance.sum()
    part = counts[:, :3]
    full = part.sum(axis=1) / abundance[:3].sum()
    shrunken = encoder.encode(part, Genes(genes.symbols[:3]))
    encoder.half_depth = 0.0
    unshrunken = encoder.encode(part, Genes(genes.symbols[:3]))
    np.testing.assert_allclose(shrunken, unshrunken * np.asarray(full / (full + 30)), rtol=1e-4)


def test_symbols_match_exactly_and_without_any_every_spot_is_the_training_mean(encoder):
    counts, _ = table(NAMES)
    scores = encoder.encode(counts, Genes(np.array(["Epcam", "Krt8", "Col1a1", "Cd3e"])))
    np.testing.assert_allclose(scores, np.broadcast_to(encoder.offset, scores.shape), atol=1e-6)


def test_folder_round_trip_and_a_changed_gene_list_is_noticed(encoder, tmp_path):
    encoder.half_depth = 25.0
    encoder.save(tmp_path)
    counts, genes = table(NAMES)
    np.testing.assert_array_equal(
        LinearProgramEncoder.load(tmp_path).encode(counts, genes), encoder.encode(counts, genes)
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["genes"][0] = "ERBB2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit its hash"):
        LinearProgramEncoder.load(tmp_path)


def test_an_incomplete_folder_is_refused(encoder, tmp_path):
    with pytest.raises(CheckpointError, match="no readable encoder"):
        LinearProgramEncoder.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"mean has the shape \(3,\)"):
        LinearProgramEncoder(
            NAMES, encoder.mean[:3], encoder.scale, encoder.abundance, encoder.projection, encoder.offset
        )


@pytest.fixture
def by_depth():
    rng = np.random.default_rng(0)
    return LinearProgramEncoder(
        NAMES,
        mean=np.array([[6.0, 6.0, 5.0, 4.0], [7.0, 6.5, 5.5, 5.0]], dtype=np.float32),
        scale=np.array([[1.0, 2.0, 1.0, 0.5], [0.5, 1.0, 1.0, 0.5]], dtype=np.float32),
        abundance=np.array([4000, 3000, 2000, 1000], dtype=np.float32),
        projection=rng.normal(size=(2, 4, 3)).astype(np.float32),
        offset=np.array([0.5, 0.0, -0.5], dtype=np.float32),
        levels=np.array([10.0, 1000.0], dtype=np.float32),
        depth_projection=np.array([0.0, 0.0, 2.0], dtype=np.float32),
    )


def level_scores(encoder, level, counts):
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    return (values - encoder.mean[level]) / encoder.scale[level] @ encoder.projection[level]


def test_a_spot_is_read_by_the_levels_around_its_depth(by_depth):
    shares = np.array([[0.4, 0.3, 0.2, 0.1]])
    genes = Genes(np.array(NAMES))
    shallow, deep = level_scores(by_depth, 0, shares), level_scores(by_depth, 1, shares)
    expected = {
        5.0: 0.5 * shallow,  # below the lowest level, in proportion to the counts
        10.0: shallow,
        100.0: (shallow + deep) / 2,  # half-way in the logarithm
        1000.0: deep,
        50000.0: deep,
    }
    for total, scores in expected.items():
        found = by_depth.encode(csr_matrix(shares * total), genes)
        np.testing.assert_allclose(found, scores + by_depth.offset, atol=1e-4, err_msg=str(total))
    np.testing.assert_array_equal(by_depth.encode(csr_matrix((1, 4)), genes)[0], by_depth.offset)


def test_depth_relative_to_the_section_adds_its_program_up_to_a_limit(by_depth):
    counts, genes = table(NAMES, rows=3)
    plain = by_depth.encode(counts, genes)
    np.testing.assert_array_equal(by_depth.encode(counts, genes, np.zeros(3, dtype=np.float32)), plain)
    changed = by_depth.encode(counts, genes, np.array([-1.0, 0.5, 9.0], dtype=np.float32)) - plain
    np.testing.assert_allclose(changed, np.outer([-1.0, 0.5, 2.0], [0, 0, 2.0]), atol=1e-5)


def test_a_missing_gene_counts_as_its_mean_at_every_level(by_depth):
    counts = csr_matrix(np.array([[40.0, 30, 20, 10]]))  # the training's shares
    whole = by_depth.encode(counts, Genes(np.array(NAMES)))
    without = by_depth.encode(counts[:, :3], Genes(np.array(NAMES[:3])))
    own = (np.log1p(1000.0) - by_depth.mean[:, 3]) / by_depth.scale[:, 3]
    np.testing.assert_allclose(without, whole - (own[:, None] * by_depth.projection[:, 3]).mean(0), atol=1e-4)


def test_levels_go_to_the_folder_and_back_and_wrong_ones_are_refused(by_depth, tmp_path):
    by_depth.save(tmp_path)
    counts, genes = table(NAMES)
    depth = np.linspace(-1, 1, 5).astype(np.float32)
    again = LinearProgramEncoder.load(tmp_path)
    np.testing.assert_array_equal(again.encode(counts, genes, depth), by_depth.encode(counts, genes, depth))
    parts = (by_depth.mean, by_depth.scale, by_depth.abundance, by_depth.projection, by_depth.offset)
    with pytest.raises(CheckpointError, match="not positive and ascending"):
        LinearProgramEncoder(NAMES, *parts, levels=np.array([50.0, 10.0]))
    with pytest.raises(CheckpointError, match=r"mean has the shape \(2, 4\), \(3, 4\) was expected"):
        LinearProgramEncoder(NAMES, *parts, levels=np.array([10.0, 50.0, 90.0]))


def test_turned_programs_are_the_same_scores_turned(by_depth):
    counts, genes = table(NAMES)
    turn, depth = np.random.default_rng(2).normal(size=(3, 2)), np.linspace(-1, 1, 5).astype(np.float32)
    found = by_depth.rotated(turn).encode(counts, genes, depth)
    np.testing.assert_allclose(found, by_depth.encode(counts, genes, depth) @ turn, atol=1e-4)
