"""One seamless canvas: windows of the size a transformer was trained on share every denoising step.

The transformer predicts in overlapping windows and the predictions are averaged with a smooth weight at every step (MultiDiffusion:
Bar-Tal et al., 2023, arXiv 2302.08113), so that neighbouring windows agree long before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SynthesisError
from ..types import Guidance
from .pipeline import STMDiTPipeline
from .sampler import ConditionTensors, denoise, noise_for
from .vae import latent_channels, spatial_factor


@dataclass(frozen=True)
class WindowConditions:
    """Conditions of n windows in the order of `window_starts`: (n, t, dm) and (n, dg) float32; None for null."""

    morphology: NDArray[np.float32] | None
    expression: NDArray[np.float32] | None


def window_starts(size: tuple[int, int], window: int, stride: int) -> NDArray[np.int64]:
    """Return the corners (n, 2) of windows that cover a canvas, row by row; the last of a row ends at the canvas's border.

    Raises
    ------
    SynthesisError
        The canvas is smaller than a window, or neighbouring windows would not overlap.
    """
    if min(size) < window or not 0 < stride < window:
        raise SynthesisError(
            f"windows of {window} pixels every {stride} do not cover a canvas of {size[0]} x {size[1]}"
        )
    axes = [np.unique(np.append(np.arange(0, n - window, stride), n - window)) for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def denoise_canvas(
    pipeline: STMDiTPipeline,
    conditions: WindowConditions,
    size: tuple[int, int],
    *,
    window: int,
    stride: int,
    guidance: Guidance,
    steps: int,
    seed: int,
    batch: int = 15,
    on_step: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Synthesize a canvas of any size at once.

    Parameters
    ----------
    pipeline
        Its transformer was trained on ``window`` pixels.
    conditions
        One row per window of ``window_starts(size, window, stride)``.
    size, window, stride
        In pixels, all multiples of the autoencoder's factor.
    guidance, steps, seed
        As for patches; the noise is one field over the whole canvas.
    batch
        Windows predicted together.
    on_step
        Called with the step and the number of steps.

    Returns
    -------
    ndarray
        (height, width, 3) uint8.

    Raises
    ------
    SynthesisError
        Sizes do not fit the windows, the autoencoder or the conditions.
    """
    factor = spatial_factor(pipeline.vae)
    if any(n % factor for n in (*size, window, stride)):
        raise SynthesisError(f"canvas, window and stride must be multiples of {factor} pixels")
    starts = window_starts(size, window, stride) // factor
    for name, rows in (("morphology", conditions.morphology), ("expression", conditions.expression)):
        if rows is not None and len(rows) != len(starts):
            raise SynthesisError(f"{name} has {len(rows)} rows for {len(starts)} windows")
    shared = _Windows(pipeline.transformer, starts, window // factor, conditions, batch)
    noise = noise_for([seed], (latent_channels(pipeline.vae), *(n // factor for n in size)))
    given = ConditionTensors(
        *(None if rows is None else torch.empty(0) for rows in (conditions.morphology, conditions.expression))
    )
    branches = pipeline.branches(given, guidance)
    latents = noise
    for step, latents in denoise(  # noqa: B007 # the last latents are what is decoded
        shared, pipeline.scheduler, noise, ConditionTensors(), branches, steps
    ):
        if on_step is not None:
            on_step(step, steps)
    images: NDArray[np.uint8] = pipeline.decode(latents)
    return images[0]  # type: ignore[no-any-return]


class _Windows:
    """Looks like a transformer to the sampler; predicts a canvas from windows, each with conditions of its own."""

    def __init__(
        self, transformer: Any, starts: NDArray[np.int64], side: int, conditions: WindowConditions, batch: int
    ) -> None:
        self.transformer = transformer
        self.device = transformer.device
        self._starts = starts.tolist()
        self._side = side
        self._batch = batch
        self._morphology = self._tensor(conditions.morphology)
        self._expression = self._tensor(conditions.expression)
        bump = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side) ** 2
        self._weight = (bump[:, None] * bump[None]).clamp_min(1e-3).to(self.device)

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        *,
        morphology_null: Tensor,
        expression_null: Tensor,
        **_: Any,
    ) -> Tensor:
        """Predict (branches, c, H, W); the null masks say what each branch sees."""
        return torch.stack(
            [
                self._predict(canvas, time, bool(no_morphology), bool(no_expression))
                for canvas, time, no_morphology, no_expression in zip(
                    hidden_states, timestep, morphology_null, expression_null, strict=True
                )
            ]
        )

    def _predict(self, canvas: Tensor, time: Tensor, no_morphology: bool, no_expression: bool) -> Tensor:
        side, total, weights = self._side, None, torch.zeros(canvas.shape[1:], device=canvas.device)
        for first in range(0, len(self._starts), self._batch):
            part = slice(first, first + self._batch)
            starts = self._starts[part]
            crops = torch.stack([canvas[:, y : y + side, x : x + side] for y, x in starts])
            output = self.transformer(
                crops,
                time.expand(len(starts)),
                morphology=None if no_morphology or self._morphology is None else self._morphology[part],
                expression=None if no_expression or self._expression is None else self._expression[part],
            )[:, : canvas.shape[0]].float()
            total = torch.zeros_like(canvas) if total is None else total
            for (y, x), predicted in zip(starts, output, strict=True):
                total[:, y : y + side, x : x + side] += self._weight * predicted
                weights[y : y + side, x : x + side] += self._weight
        assert total is not None  # window_starts returns at least one window
        return total / weights

    def _tensor(self, rows: NDArray[np.float32] | None) -> Tensor | None:
        return None if rows is None else torch.from_numpy(rows).to(self.device)
