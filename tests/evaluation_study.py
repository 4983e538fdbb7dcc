"""A section whose tissue tells its expression, and two checkpoints at either end: one that knows everything, one that knows nothing."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix, issparse
from standins import NoiseModel, card_for

from napari_stmdit.evaluation.measures import crops_at
from napari_stmdit.types import Calibration, Genes, Section, SlideImage, SpotTable

MPP = 0.688
GENES = tuple(f"GENE{k}" for k in range(24))
CARD = card_for(GENES, patch_px=64, patch_mpp=MPP, name="study", steps=2)


@cache  # it takes seconds; do not write in its arrays
def telling_section(seed: int = 0, name: str = "telling", rows: int = 8, columns: int = 6) -> Section:
    """A section in which a hidden field darkens the tissue and drives the genes, half of them up and half down."""
    import dask.array as da

    rng = np.random.default_rng(seed)
    rc = np.array([(r, c) for r in range(rows) for c in range(columns)])
    yx = (60 + rc * 100.0) / MPP
    height, width = (int(np.ceil(v)) for v in yx.max(axis=0) + 60 / MPP)
    hidden = gaussian_filter(rng.normal(size=(height, width)), 60 / MPP)
    hidden = (hidden - hidden.mean()) / hidden.std()
    grain = gaussian_filter(rng.normal(size=(height, width)), 2.0)
    depth = np.clip(0.5 + 0.2 * hidden + 0.1 * grain / grain.std(), 0, 1)[..., None]
    pale, dark = np.array([235.0, 205.0, 225.0]), np.array([90.0, 60.0, 130.0])
    image = np.rint(pale + depth * (dark - pale)).astype(np.uint8)
    at = hidden[tuple(yx.astype(int).T)][:, None]
    sign = np.where(np.arange(len(GENES)) % 2 == 0, 1.0, -1.0)
    strength = np.linspace(1.2, 0.4, len(GENES))
    counts = rng.poisson(30 * np.exp(sign * strength * at))
    spots = SpotTable(
        ids=np.array([f"{r}x{c}" for r, c in rc]),
        yx=yx,
        diameter=55 / MPP,
        counts=csr_matrix(counts.astype(np.float32)),
        genes=Genes(np.array(GENES)),
    )
    return Section(
        name=name,
        path=None,
        kind="spatialdata",
        spots=spots,
        image=SlideImage((da.from_array(image, chunks=(512, 512, 3)),), 1.0, "made"),
        calibration=Calibration(MPP, "override", f"{MPP} um/px, as made"),
        coordinate_systems={"global": np.eye(3)},
    )


class Described(NoiseModel):
    """Encodes a patch as the means and spreads of its colours, and expression as the counts themselves; returns noise."""

    def encode_expression(self, counts, genes, spots=(), depth=None):
        return np.asarray(counts.toarray() if issparse(counts) else counts, dtype=np.float32)

    def encode_morphology(self, patches, spots=()):
        told = [patches.mean(axis=(1, 2), dtype=np.float32), patches.std(axis=(1, 2), dtype=np.float32)]
        return np.concatenate(told, axis=1)[:, None]


class Knowing(Described):
    """Returns the real patch of the spot whose expression it is told, the real crop where it is told that alone, and else noise."""

    def __init__(self, card, *sections):
        super().__init__(card)
        self.sections = sections

    @cached_property
    def known(self):
        counts = np.concatenate([s.spots.counts.toarray() for s in self.sections])
        return counts, np.concatenate([crops_at(s, s.spots.yx, self.card) for s in self.sections])

    def images(self, batch):
        if batch.expression is None:
            return super().images(batch) if batch.crops is None else batch.crops
        counts, crops = self.known
        far = ((np.log1p(batch.expression[:, None]) - np.log1p(counts[None])) ** 2).sum(axis=2)
        return crops[far.argmin(axis=1)]


class Copying(Described):
    """Returns the real crop where it is told one, and else noise; takes nothing but morphology."""

    def images(self, batch):
        return super().images(batch) if batch.crops is None else batch.crops
