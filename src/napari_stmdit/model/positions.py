"""Fixed sine-cosine embeddings of times and of places."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_WIDTH = 256


def time_sinusoid(timestep: Tensor) -> Tensor:
    """Embed times (B,) as (B, 256) float32: cosines first, then sines, periods up to 2 pi * 10,000; fractions count.

    The frequencies are rounded correctly on every machine: times go up to 1000, so that the last bit of a frequency, in which the
    exponential functions of processors differ, is seen in the output.
    """
    half = TIME_WIDTH // 2
    exponent = -math.log(10000) * (torch.arange(half, dtype=torch.float32, device="cpu") / half)  # (128,)
    frequency = torch.exp(exponent.double()).float().to(timestep.device)  # (128,); not every device has float64
    angle = timestep.float()[:, None] * frequency  # (B, 128)
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, 256)


def position_table(rows: int, columns: int, width: int, base: int, scale: float, phase: float = 0.0) -> Tensor:
    """Embed the tokens of a grid as (rows*columns, width) float32; the first half of the width encodes the column.

    A grid of any size is stretched over ``base`` positions, then divided by ``scale`` and moved by ``phase``. Made on the
    CPU whatever the default device, so that a network built without storage ("meta") still gets its table.
    """
    y = torch.arange(rows, dtype=torch.float64, device="cpu") * (base / rows) / scale + phase  # (rows,)
    x = torch.arange(columns, dtype=torch.float64, device="cpu") * (base / columns) / scale + phase  # (columns,)
    by_column = _sincos(x, width // 2)[None].expand(rows, -1, -1)  # (rows, columns, width/2)
    by_row = _sincos(y, width // 2)[:, None].expand(-1, columns, -1)  # (rows, columns, width/2)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).float()


def condition_position_table(tokens: int, width: int, base: int, scale: float) -> Tensor:
    """Embed condition vectors that tile the patch row by row as (1, tokens, width), moved towards their centres.

    PixCell's rule: a square grid over the same base as the latents, every coordinate moved by base // tokens.
    """
    side = math.isqrt(tokens)
    return position_table(side, side, width, base, scale, phase=base // tokens)[None]


def _sincos(coordinates: Tensor, width: int) -> Tensor:
    """Embed coordinates (n,) as (n, width): sines, then cosines."""
    omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))  # (width/2,)
    angle = coordinates[:, None] * omega  # (n, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
