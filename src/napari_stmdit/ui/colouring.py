"""From a gene to the colours of the spots."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..expression.genes import gather_counts, match_genes
from ..types import SpotTable
from .state import Colouring, ColourScale

COLORMAPS = ("viridis", "magma", "inferno", "plasma", "gray_r")
"""Perceptually uniform; the first is the default. All can be read with the common colour vision deficiencies."""
RING = (0.10, 0.18, 0.30, 0.9)
"""Outline of a spot without a value: dark blue, seen on pink tissue and on bright glass."""
SELECTED = (0.0, 0.90, 1.0, 1.0)
"""Outline of a selected spot: cyan, the hue that an H&E stain has least of."""
FACE_ALPHA = 0.85


@dataclass(frozen=True)
class SpotLook:
    """Colours (n, 4) of faces and borders, 0 to 1, and border widths (n,) relative to the diameter."""

    face: NDArray[np.float32]
    border: NDArray[np.float32]
    width: NDArray[np.float32]


def gene_values(spots: SpotTable, gene: str, log: bool) -> NDArray[np.float32] | None:
    """Return a gene's expression per spot, counts per 10,000 or log(1 + that); None where the section lacks it."""
    match = match_genes((gene,), spots.genes)
    if not match.shared:
        return None
    counts = gather_counts(spots.counts, match, (gene,)).toarray()[:, 0].astype(np.float32)
    totals = np.asarray(spots.counts.sum(axis=1), dtype=np.float32).ravel()
    values = counts / np.maximum(totals, 1) * 1e4
    result: NDArray[np.float32] = (np.log1p(values) if log else values).astype(np.float32)
    return result


def unknown_gene(spots: SpotTable, gene: str) -> str:
    """Say that a gene is not there, and name the nearest that are."""
    near = difflib.get_close_matches(gene.upper(), [str(s) for s in spots.genes.symbols], n=3, cutoff=0.7)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return f"{gene!r} is not among the {len(spots.genes):,} genes of this section{hint}"


def scale_of(spots: SpotTable, colouring: Colouring) -> tuple[NDArray[np.float32] | None, ColourScale]:
    """Return the values that are drawn and what their colours mean; no values where no gene or an unknown one is asked for."""
    if colouring.gene is None:
        return None, ColourScale()
    values = gene_values(spots, colouring.gene, colouring.log)
    if values is None:
        return None, ColourScale(fault=unknown_gene(spots, colouring.gene))
    unit = "log(1 + counts per 10,000)" if colouring.log else "counts per 10,000"
    return values, ColourScale(colouring.gene, colouring.limits or auto_limits(values), unit)


def auto_limits(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return zero and the 99th percentile: one bright spot does not darken all others."""
    top = float(np.percentile(values, 99)) if values.size else 0.0
    top = top or (float(values.max()) if values.size else 0.0)
    return 0.0, top if top > 0 else 1.0


def look_of(
    values: NDArray[np.float32] | None,
    scale: ColourScale,
    colormap: str,
    selected: NDArray[np.bool_],
    hollow: NDArray[np.bool_],
) -> SpotLook:
    """Return how spots are drawn.

    Parameters
    ----------
    values
        (n,) or None for rings alone.
    scale
        Limits of the colour map.
    colormap
        Its name.
    selected
        (n,) spots with the selection's outline.
    hollow
        (n,) spots drawn as rings in the colour of their value, so that what was synthesized under them is seen.
    """
    from napari.utils.colormaps import ensure_colormap

    n = len(selected)
    face = np.zeros((n, 4), dtype=np.float32)
    border = np.tile(np.array(RING, dtype=np.float32), (n, 1))
    if values is not None:
        low, high = scale.limits
        share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
        face[:] = np.asarray(ensure_colormap(colormap).map(share), dtype=np.float32)
        border[:] = face
        face[:, 3] = np.where(hollow, 0, FACE_ALPHA)
    border[selected] = SELECTED
    return SpotLook(face, border, np.where(selected, 0.14, 0.07).astype(np.float32))
