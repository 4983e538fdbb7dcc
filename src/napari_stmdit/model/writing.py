"""Weights to safetensors as a stream: a tensor goes to the disk from where it lies, parts one after another.

The format is public: the header's length (8 bytes, little endian), a JSON header with type, shape and place of each tensor, then
the numbers. Joining tensors along their rows is joining their bytes, so stacked projections need no memory of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..storage.atomic import replacing
from .keys import Stacked

_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(path: Path, tensors: Mapping[str, Stacked], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write tensors in their own precision; the file appears under its name only when it is whole.

    Parameters
    ----------
    path
        Where to.
    tensors
        Floating-point tensors.
    shapes
        The shape each is written with; of the same size as its own.

    Raises
    ------
    CheckpointError
        A tensor is of another type.
    OSError
        The disk is full or not writable; nothing is left behind.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].parts[0].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        kinds = {part.dtype for part in tensors[name].parts}
        if len(kinds) != 1 or (kind := kinds.pop()) not in _CODES:
            raise CheckpointError(f"{name} is of the types {kinds}; weights are floating-point numbers of one type.")
        end = start + sum(part.numel() * part.element_size() for part in tensors[name].parts)
        header[name] = {"dtype": _CODES[kind], "shape": list(shapes[name]), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as draft, draft.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in tensors[name].parts:
                stream.write(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
