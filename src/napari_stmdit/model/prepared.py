"""What of a prediction does not change from step to step, computed once: conditions, and what times do in every block.

Letters in the shapes: B batch; R rows, distinct conditions that the items of a batch share; L blocks; S steps; N tokens; D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Context


@dataclass(frozen=True)
class Condition:
    """Morphology or expression of the items of a batch.

    Attributes
    ----------
    contexts
        For the cross-attention of every block; empty where there is none.
    time
        (B, D), what it adds to the time embedding; None where it does not.
    """

    contexts: tuple[Context, ...] = ()
    time: Tensor | None = None

    def rows(self, index: Tensor | None) -> Condition:
        """Return the condition of items whose rows ``index`` (B,) names; None: every item has a row of its own."""
        if index is None:
            return self
        contexts = tuple(context.rows(index) for context in self.contexts)
        return Condition(contexts, None if self.time is None else self.time[index])


@dataclass(frozen=True)
class Prepared:
    """Everything that `STMDiTTransformer2D.predict` needs beside latents and time.

    Attributes
    ----------
    items
        B, the items that are predicted.
    grid
        Rows and columns of tokens.
    positions
        (N, D), or None.
    morphology, expression
        The conditions.
    """

    items: int
    grid: tuple[int, int]
    positions: Tensor | None
    morphology: Condition
    expression: Condition


@dataclass(frozen=True)
class Modulation:
    """Shifts, scales (with the 1 that is added to them) and gates of all steps.

    Attributes
    ----------
    tables
        (L, 1, 6, D) float32, what every block adds of its own.
    blocks
        (S, B or 1, 6, D), what all blocks share; one row for all items where no condition enters the time embedding.
    final
        (S, B or 1, 2, D), shift and scale of the final layer.
    """

    tables: Tensor
    blocks: Tensor
    final: Tensor

    def at(self, step: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return L tables (B or 1, 6, D), and shift and scale (B or 1, 1, D) of the final layer, of a step from 0."""
        tables = (self.tables + self.blocks[step]).to(self.blocks.dtype)  # (L, B or 1, 6, D)
        shift, scale = self.final[step].chunk(2, dim=1)  # 2 x (B or 1, 1, D)
        return tables.unbind(0), shift, scale


def row_index(given: Tensor | None, null: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """Return which row each of the items has where row 0 is null and row 1 + k the k-th given; None: each has its own."""
    if given is None:
        return torch.zeros(batch, dtype=torch.long, device=device)  # (B,)
    if null is None:
        return None
    own = torch.arange(1, batch + 1, device=device)  # (B,)
    return own.masked_fill(null.to(device), 0)  # (B,)
