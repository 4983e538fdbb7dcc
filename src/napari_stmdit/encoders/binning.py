"""Values of a cell as digits of their rank, the input of CancerFoundation and its relatives.

The edges are ``n_bins - 1`` quantiles of the cell's own non-zero values, so a digit says where a gene stands within its cell, and
any increasing transform of a cell (depth, log1p) leaves the digits as they are. Where several edges fall on one value, as they do
with counts, several digits are equally right: a rule for ties chooses one.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Ties = Literal["middle", "random"]
TIES: tuple[str, ...] = get_args(Ties)


def bin_rows(rows: NDArray[np.float32], n_bins: int = 51, ties: Ties = "middle", seed: int = 0) -> NDArray[np.float32]:
    """Bin every row by itself; the digits of a row depend on nothing but that row (and the seed).

    Parameters
    ----------
    rows
        (n, g) finite values of any sign, in any unit that increases with expression.
    n_bins
        Digits are 0 (no expression) to ``n_bins - 1``.
    ties
        ``middle``: the middle of the digits allowed, rounded down; deterministic, equal values always get equal digits.
        ``random``: the released rule, a uniform draw among the digits allowed. The generator of each row is made from the seed
        and the row's content, so a row gets the same digits in every batch; any change of the row draws all of them anew.
    seed
        Of ``random``.

    Returns
    -------
    NDArray[np.float32]
        (n, g) digits.
    """
    binned = np.zeros(rows.shape, dtype=np.float32)
    for place, row in enumerate(rows):
        binned[place] = bin_row(row, n_bins, row_generator(row, seed) if ties == "random" else None)
    return binned


def bin_row(
    row: NDArray[np.float32], n_bins: int = 51, random: np.random.RandomState | None = None
) -> NDArray[np.int64]:
    """Bin one cell's (g,) values into (g,) digits.

    Zeros stay 0. Negative values count as non-zero and are binned with the others. A row whose largest value is 0 has nothing to
    rank and gets zeros (the released code fails on it). With ``random`` one uniform number is drawn for each non-zero value, in
    order; without, ties take the middle of the digits allowed, rounded down.
    """
    digits = np.zeros(len(row), dtype=np.int64)
    if row.size == 0 or row.max() == 0:
        return digits
    filled = np.flatnonzero(row)
    below, upto = _edges_around(row[filled], n_bins)
    if random is None:
        digits[filled] = (np.minimum(below + 1, upto) + upto) // 2
    else:
        digits[filled] = np.ceil(random.random_sample(len(filled)) * (below - upto) + upto)
    return digits


def allowed_digits(values: NDArray[np.float32], n_bins: int = 51) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and the highest digit that each of the (k,) non-zero values of a cell may get."""
    below, upto = _edges_around(values, n_bins)
    return np.minimum(below + 1, upto), upto


def _edges_around(values: NDArray[np.float32], n_bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the edges below each value, and those up to and including it; edges are quantiles in float64."""
    wide = values.astype(np.float64)
    edges = np.quantile(wide, np.linspace(0, 1, n_bins - 1))
    below, upto = (np.searchsorted(edges, wide, side=side).astype(np.int64) for side in ("left", "right"))
    return below, upto


def row_generator(row: NDArray[np.float32], seed: int) -> np.random.RandomState:
    """Return the generator of one row, made from the seed and the row's content."""
    content = np.ascontiguousarray(row, dtype="<f4") + np.float32(0)  # -0 and 0 are the same content
    digest = hashlib.sha256(f"{seed}:".encode() + content.tobytes()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
