"""Interfaces of encoders: numpy in, numpy out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class ExpressionEncoder(Protocol):
    """Encoder from counts to expression conditions."""

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts (n, g), whose columns are ``genes``, as (n, d) or (n, tokens, d) float32.

        ``depth`` (n,) is that of the spots relative to their section, `SpotTable.relative_depth`; an encoder may ignore it.
        """


class MorphologyEncoder(Protocol):
    """Encoder from patches of tissue to morphology conditions."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches (n, side, side, 3) uint8 as (n, tokens, d) float32."""
