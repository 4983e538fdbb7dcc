"""The checkpoint that travels with the package: small enough, whole, and alive to expression."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.evaluation.measures import measure
from napari_stmdit.training.config import load_config
from napari_stmdit.training.sections import open_source
from napari_stmdit.types import Genes, GuidanceScales, Sampling

FOLDER = Path(str(files("napari_stmdit").joinpath("data/demo_checkpoint")))


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint("demo", device="cpu", dtype="float32")


def test_it_is_small_enough_and_readable_by_all():
    sizes = {file: file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()}
    assert sum(sizes.values()) < 25e6
    assert max(sizes.values()) < 16e6
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in sizes)


def test_its_card_names_data_licence_and_limits(checkpoint):
    card = checkpoint.card
    assert (card.patch_px, card.patch_mpp, len(card.genes)) == (256, 0.688, 1000)
    assert "Andersson" in card.training_data and "12:6012" in card.training_data
    assert "Attribution 4.0" in card.licence and "diagnosis" in card.limits
    assert "C6" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
def test_tumour_expression_is_darker_than_adipose_expression(checkpoint):
    genes = Genes(np.array(checkpoint.card.genes))
    density = {}
    for name in ("tumour", "adipose"):
        share = np.expm1(checkpoint.profiles[name].mean)
        counts = csr_matrix(np.repeat(share[None] / share.sum() * 1500, 2, axis=0))
        *_, last = checkpoint.pipeline.denoise_images(
            expression=checkpoint.encode_expression(counts, genes),
            seeds=(1, 2),
            sampling=Sampling(GuidanceScales.of(checkpoint.card.guidance), 8),
        )
        density[name] = measure(last.images, checkpoint.card.patch_mpp).haematoxylin
    assert (density["tumour"] > density["adipose"] + 0.2).all()


def test_a_shallower_count_of_a_real_section_is_read_as_the_same_tissue(checkpoint, shared_data):
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml", root=shared_data)
    table = open_source(config.held_out[0], config).spots
    counts = table.counts.tocsr()
    data = np.random.default_rng(0).binomial(counts.data.astype(int), 1 / 15).astype(np.float32)
    shallow = replace(table, counts=csr_matrix((data, counts.indices, counts.indptr), counts.shape))
    full, thinned = (
        checkpoint.encode_expression(one.counts, one.genes, depth=one.relative_depth) for one in (table, shallow)
    )
    shift = np.abs(thinned.mean(axis=0) - full.mean(axis=0))
    assert shift.max() < 0.25  # of programs whose spread is up to one
    assert np.corrcoef(full[:, 1], thinned[:, 1])[0, 1] > 0.8  # the second says most about C6
    assert np.corrcoef(full[:, -1], thinned[:, -1])[0, 1] > 0.97  # relative depth
