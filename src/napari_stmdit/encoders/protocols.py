"""What an encoder is: numpy in, numpy out, whatever network is inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class ExpressionEncoder(Protocol):
    """Turns counts into what a transformer is conditioned on."""

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts (n, g), whose columns are ``genes``, as (n, d) or (n, tokens, d) float32.

        ``depth`` (n,) is that of the spots relative to their section, `SpotTable.relative_depth`; an encoder may leave it alone.
        """


class MorphologyEncoder(Protocol):
    """Turns patches of tissue into what a transformer is conditioned on."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches (n, side, side, 3) uint8 as (n, tokens, d) float32."""
