"""Stand-ins for a checkpoint that are real implementations of the loop's Protocol, without a network."""

from collections.abc import Iterator
from functools import cache
from types import MappingProxyType

import numpy as np

from napari_stmdit.intent import CheckpointCard, Guidance, hash_genes
from napari_stmdit.synthesis.models import PatchBatch
from napari_stmdit.types import DenoiseStep, Genes


def card_for(genes: tuple[str, ...], patch_px: int = 64, patch_mpp: float = 0.688, **changes) -> CheckpointCard:
    """A card for a checkpoint that sees these genes."""
    values = {
        "name": "stand-in",
        "patch_px": patch_px,
        "patch_mpp": patch_mpp,
        "guidance": Guidance(expression=2.0, morphology=1.5, rule="nested_morphology_first"),
        "steps": 4,
        "genes": genes,
        "gene_hash": hash_genes(genes),
        "training_data": "none",
        "licence": "none",
        "limits": "returns what it is given",
        "edits_tissue": False,
    }
    return CheckpointCard(**{**values, **changes})


class CropModel:
    """Returns the real crop of every patch: what registration is proven with."""

    profiles = MappingProxyType({})

    def __init__(self, card: CheckpointCard) -> None:
        self.card = card
        self.provenance = {"device": "cpu", "dtype": "none", "sha256": "0" * 64}
        self.batches: list[PatchBatch] = []

    def encode_expression(self, counts, genes: Genes, spots=(), depth=None) -> np.ndarray:
        return np.asarray(counts.sum(axis=1), dtype=np.float32).reshape(-1, 1)

    def encode_morphology(self, patches: np.ndarray, spots=()) -> np.ndarray:
        return patches.mean(axis=(1, 2), dtype=np.float32)[:, None]

    def denoise(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        self.batches.append(batch)
        for step in range(1, batch.steps):
            yield DenoiseStep(step, batch.steps)
        yield DenoiseStep(batch.steps, batch.steps, self.images(batch))

    def images(self, batch: PatchBatch) -> np.ndarray:
        assert batch.crops is not None
        return batch.crops


class NoiseModel(CropModel):
    """Returns noise from each patch's own seed, shaded by its expression: depends on nothing else."""

    def images(self, batch: PatchBatch) -> np.ndarray:
        side = self.card.patch_px
        pixels = [np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8) for seed in batch.seeds]
        return np.stack(pixels)


@cache
def _texture(height: int, width: int, smoothness: float, seed: int):
    """A smooth random picture, which takes most of the time, and the state that its generator is left in."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(height, width, 3)), (smoothness, smoothness, 0))
    texture = 128 + 50 * texture / texture.std()
    image = np.clip(texture, 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image, rng.bit_generator.state


def make_section(mpp: float = 0.5, rows: int = 6, columns: int = 5, genes: int = 40, seed: int = 0):
    """A section in memory: spots on a Visium lattice over a smooth random texture, Poisson counts."""
    import dask.array as da
    from scipy.sparse import csr_matrix

    from napari_stmdit.types import Calibration, Section, SlideImage, SpotTable

    rc = np.array([(r, c) for r in range(rows) for c in range(r % 2, 2 * columns, 2)])
    yx = 150 / mpp + rc * np.array([100 * np.sqrt(3) / 2, 50]) / mpp
    height, width = (int(np.ceil(v)) for v in yx.max(axis=0) + 150 / mpp)
    image, state = _texture(height, width, 2.5 / mpp, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    symbols = np.array([f"GENE{k}" for k in range(genes)])
    spots = SpotTable(
        ids=np.array([f"{r}x{c}" for r, c in rc]),
        yx=yx,
        diameter=55 / mpp,
        counts=csr_matrix(rng.poisson(3, (len(rc), genes)).astype(np.float32)),
        genes=Genes(symbols),
        array_rc=rc,
    )
    return Section(
        name="made",
        path=None,
        kind="spaceranger",
        spots=spots,
        image=SlideImage((da.from_array(image, chunks=(512, 512, 3)),), 1.0, "made"),
        calibration=Calibration(mpp, "override", f"{mpp} um/px, as made"),
        coordinate_systems={"global": np.eye(3)},
    )
