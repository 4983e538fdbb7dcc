"""The tiny section in arrays: 30 spots on a Visium lattice, 20 genes, a slide whose every place looks different."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

TINY_MPP = 0.7
TINY_SIDE_PX = 860
TINY_GENES = (
    *("EPCAM", "KRT8", "KRT18", "ERBB2", "MKI67", "COL1A1", "COL1A2", "DCN", "VIM", "ACTA2"),
    *("CD3D", "CD3E", "CD79A", "MS4A1", "PTPRC", "CD68", "PLIN1", "ADIPOQ", "FABP4", "ACTB"),
)


def analytic_image(side: int = TINY_SIDE_PX) -> np.ndarray:
    """A smooth (side, side, 3) uint8 slide whose every place looks different: waves of three directions and periods."""
    centre = np.arange(side) + 0.5
    y, x = centre[:, None], centre[None, :]
    channels = [
        150 + 60 * np.sin(2 * np.pi * y / 97) + 0 * x,
        150 + 60 * np.sin(2 * np.pi * x / 113) + 0 * y,
        150 + 60 * np.sin(2 * np.pi * (x + y) / 151),
    ]
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


def tiny_arrays() -> dict:
    """Positions (yx, array_rc, ids) of 30 spots on a Visium lattice, and Poisson counts that change over the tissue."""
    array_rc = np.array([(row, 2 * column + row % 2) for row in range(6) for column in range(5)])
    yx = (array_rc * (50 * np.sqrt(3), 50.0) + 70.0) / TINY_MPP
    rng = np.random.default_rng(0)
    side = yx[:, 1] / TINY_SIDE_PX
    left = np.arange(len(TINY_GENES)) < 10
    rates = 20 * np.where(left, 1 - side[:, None], side[:, None]) + 1
    counts = csr_matrix(rng.poisson(rates).astype(np.int32))
    return {
        "ids": np.array([f"SPOT{i:02d}-1" for i in range(len(yx))]),
        "yx": yx,
        "array_rc": array_rc,
        "counts": counts,
        "diameter": 55 / TINY_MPP,
    }
