"""Morphology as the class token of UNI2-h: DINOv2's vision transformer, with register tokens, gated feed-forward layers and scaled residuals.

Parameters have the names of the published weights, so that they load as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..errors import CheckpointError, Fault, SynthesisError, table
from ..text import shown
from .tensors import WEIGHTS, fill_network, read_config, read_tensors, shape_of, unwrap_tensors, write_encoder

EPS = 1e-6


@dataclass(frozen=True)
class ViTSizes:
    """Sizes of a vision transformer.

    Attributes
    ----------
    depth, width, heads
        Blocks, channels and attention heads; the width is a multiple of the heads.
    hidden
        Channels inside the feed-forward layer, after the gate.
    registers
        Tokens beside the class token, without a position.
    patch, grid
        Pixels along a patch, and patches along the image.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    registers: int
    patch: int
    grid: int

    @property
    def image_px(self) -> int:
        """Pixels along a side of the input image."""
        return self.patch * self.grid


UNI2H = ViTSizes(depth=24, width=1536, heads=24, hidden=4096, registers=8, patch=14, grid=16)
"""UNI2-h: 681,394,176 parameters in 343 tensors."""


class GatedFeedForward(nn.Module):
    """SwiGLU with both halves in one matrix: silu(first half) * second half (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)  # each (B, N, hidden)
        out: Tensor = self.fc2(F.silu(gate) * value)
        return out


class SelfAttention(nn.Module):
    """Attention among all tokens; the rows of ``qkv`` are queries, keys and values, each by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, N, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual (Touvron et al., "Going deeper with image transformers", 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        return x * self.gamma


class ViTBlock(nn.Module):
    """Attention and feed-forward, each normalised before and scaled after."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=EPS)
        self.attn = SelfAttention(sizes.width, sizes.heads)
        self.ls1 = LayerScale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=EPS)
        self.mlp = GatedFeedForward(sizes.width, sizes.hidden)
        self.ls2 = LayerScale(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbedding(nn.Module):
    """Image patches as tokens, row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, H / patch * W / patch, width)."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A vision transformer whose output is its class token.

    Source: Oquab et al., "DINOv2", 2023; Darcet et al., "Vision transformers need registers", 2023; sizes of UNI2-h (Chen et al.,
    "Towards a general-purpose foundation model for computational pathology", 2024) in `UNI2H`.
    """

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.grid**2, sizes.width))
        self.patch_embed = PatchEmbedding(sizes.width, sizes.patch)
        self.blocks = nn.ModuleList(ViTBlock(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, image_px, image_px) to (B, width)."""
        return self.tokens(images)[:, 0]

    def tokens(self, images: Tensor) -> Tensor:
        """Return all tokens after the last norm: (B, 1 + registers + grid * grid, width), class token first."""
        batch = images.shape[0]
        placed = self.patch_embed(images) + self.pos_embed  # class and register tokens have no place
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), placed], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


def sizes_in(tensors: Mapping[str, Any], default: ViTSizes = UNI2H) -> ViTSizes:
    """Return the sizes of a state dict from its shapes, by majority; defaults where no shape shows one."""
    # by majority, so that the comparison that follows points at the odd tensor
    found = {name: shape_of(value) for name, value in tensors.items()}
    blocks = {int(index) for name in found if name.startswith("blocks.") and (index := name.split(".")[1]).isdecimal()}
    # an absurd index is no depth: it must not make us build that many blocks
    depth = max((index for index in blocks if index < 2 * len(blocks)), default=default.depth - 1) + 1
    one_axis = [
        shape[0]
        for name, shape in found.items()
        if name.endswith(("norm.weight", "norm.bias", ".gamma")) and len(shape) == 1
    ]
    width = _majority((*one_axis, *_axis(found, "cls_token", 2, 3), *_axis(found, "pos_embed", 2, 3)), default.width)
    hidden = [shape[1] for name, shape in found.items() if name.endswith("mlp.fc2.weight") and len(shape) == 2]
    places = _majority(_axis(found, "pos_embed", 1, 3), default.grid**2)
    return ViTSizes(
        depth=depth,
        width=width,
        heads=default.heads,
        hidden=_majority(hidden, default.hidden),
        registers=_majority(_axis(found, "reg_token", 1, 3), default.registers),
        patch=_majority(_axis(found, "patch_embed.proj.weight", 3, 4), default.patch),
        grid=max(round(places**0.5), 1),
    )


def _axis(found: Mapping[str, tuple[int, ...]], name: str, axis: int, rank: int) -> tuple[int, ...]:
    shape = found.get(name, ())
    return (shape[axis],) if len(shape) == rank else ()


def _majority(values: Iterable[int], default: int) -> int:
    counted = Counter(value for value in values if value > 0).most_common(1)
    return counted[0][0] if counted else default


TILE_PX = 256
"""Pixels along a tile that gets one vector; PixCell's tiles, at its scale of about 0.5 um per pixel."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation by channel, with which UNI2-h was trained."""
HEADS = {UNI2H.width: UNI2H.heads}
"""Attention heads by width: no shape tells their number."""
IGNORED = ("head.weight", "head.bias", "head_drop")
"""Tensors of a classifier in some files, not used by the embedding."""


class Uni2hEncoder:
    """Encoder by UNI2-h or a network of its kind: one vector for each tile of a patch, not of unit length.

    Parameters
    ----------
    network
        The vision transformer.
    tile_px
        Pixels along a tile; the whole tile is resized to the network's own image size.
    batch_tiles
        Tiles in one forward pass; the result does not depend on it beyond rounding.
    ignored
        Names that came with the weights and are not used.
    """

    def __init__(
        self, network: VisionTransformer, tile_px: int = TILE_PX, batch_tiles: int = 16, ignored: tuple[str, ...] = ()
    ) -> None:
        if tile_px < 1 or batch_tiles < 1:
            raise CheckpointError(f"tile_px is {tile_px} and batch_tiles is {batch_tiles}; both must be at least 1")
        self.network = network.eval().requires_grad_(False)
        self.tile_px = tile_px
        self.batch_tiles = batch_tiles
        self.ignored = ignored

    @property
    def dim(self) -> int:
        """Width d of a vector; 1536 for UNI2-h."""
        return self.network.sizes.width

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network; embeddings are float32 in any case."""
        return self.network.cls_token.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Uni2hEncoder:
        """Move the network to a device or another precision, and return the encoder."""
        self.network.to(device=device, dtype=dtype)
        return self

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches.

        Parameters
        ----------
        patches
            (n, side, side, 3) uint8, side a multiple of ``tile_px``.

        Returns
        -------
        NDArray[np.float32]
            (n, T, d), T = (side / tile_px)^2 tiles row by row: 1 for 256 px, 4 for 512 px, 16 for 1024 px.

        Raises
        ------
        SynthesisError
            The patches have another shape or dtype.
        """
        along = _tiles_along(patches, self.tile_px)
        cut = patches.reshape(len(patches), along, self.tile_px, along, self.tile_px, 3).swapaxes(2, 3)
        places = list(np.ndindex(cut.shape[:3]))
        vectors = np.empty((len(places), self.dim), dtype=np.float32)
        for start in range(0, len(places), self.batch_tiles):
            batch = places[start : start + self.batch_tiles]
            images = preprocess([cut[place] for place in batch], self.network.sizes.image_px)
            found: Tensor = self.network(images.to(self.device, self.dtype))
            vectors[start : start + len(batch)] = found.float().cpu().numpy()
        return vectors.reshape(len(patches), along * along, self.dim)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; UNI2-h's licence does not allow passing the latter on."""
        config = {"_class_name": type(self).__name__, "tile_px": self.tile_px, **_config_of(self.network.sizes)}
        write_encoder(folder, config, self.network.state_dict())

    @classmethod
    def load(cls, folder: Path, tensors: Mapping[str, Any] | None = None) -> Uni2hEncoder:
        """Read an encoder from its folder, in float32 on the CPU; ``tensors`` are weights read elsewhere, as `from_tensors` takes them.

        Raises
        ------
        CheckpointError
            The folder is incomplete, or the weights do not fit.
        """
        config = read_config(folder, "morphology encoder")
        if tensors is not None:
            return cls.from_tensors(tensors, config, f"the weights for {folder}")
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder / WEIGHTS} is missing. The weights of UNI2-h may not be passed on with a checkpoint: ask for access to "
                "MahmoodLab/UNI2-h and download them, or use embeddings that were computed before."
            )
        return cls.from_tensors(read_tensors(folder, "morphology encoder"), config, str(folder / WEIGHTS))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None, what: str = "the weights of UNI2-h"
    ) -> Uni2hEncoder:
        """Build an encoder around published weights, without a second copy of them.

        Parameters
        ----------
        tensors
            By name, as timm names them; bare or in the usual wrappers (``state_dict``, ``model``, ``module.``).
        config
            ``num_heads`` (needed for other widths than 1536), ``tile_px`` (default 256), and any of ``depth``, ``embed_dim``,
            ``patch_size``, ``reg_tokens`` and ``img_size``, which must then agree with the weights.
        what
            What the weights are, for messages.

        Raises
        ------
        CheckpointError
            Tensors are unknown, missing, mis-shaped or not finite (one table of all), or the config contradicts them.
        """
        config = config or {}
        bare, beside = unwrap_tensors(tensors, "cls_token")
        ignored = tuple(name for name in bare if name.startswith(IGNORED))
        used = {name: value for name, value in bare.items() if name not in ignored}
        if not any(name.startswith("blocks.") for name in used):
            listed = table((name, shape_of(value), "") for name, value in used.items())
            raise CheckpointError(
                f"{what} are not of UNI2-h or its kind: no tensor is named blocks.*. They hold:\n{listed}"
            )
        stated = replace(
            UNI2H,
            width=_whole(config, "embed_dim", UNI2H.width),
            patch=_whole(config, "patch_size", UNI2H.patch),
            registers=_whole(config, "reg_tokens", UNI2H.registers),
        )
        sizes = sizes_in(used, stated)
        sizes = replace(sizes, heads=_heads(sizes.width, config, what))
        with torch.device("meta"):
            network = VisionTransformer(sizes)
        fill_network(network, used, what, _contradictions(sizes, config))
        tile_px = _whole(config, "tile_px", TILE_PX)
        return cls(network.float(), tile_px, ignored=(*beside, *ignored))


def preprocess(tiles: list[NDArray[np.uint8]], side: int) -> Tensor:
    """Resize tiles (tile_px, tile_px, 3) uint8 and normalise them as UNI2-h expects: (B, 3, side, side) float32."""
    # Pillow averages where it shrinks and rounds to grey levels, as the published recipe does; torch does not
    resized = [np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BILINEAR)) for tile in tiles]
    images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().div(255)
    return images.sub(torch.tensor(MEAN).view(3, 1, 1)).div(torch.tensor(STD).view(3, 1, 1))


def _tiles_along(patches: NDArray[np.uint8], tile_px: int) -> int:
    shape = tuple(patches.shape)
    fits = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and patches.dtype == np.uint8
    if not fits:
        raise SynthesisError(
            f"patches have shape {shape} and dtype {patches.dtype}; the morphology encoder expects (n, side, side, 3) uint8"
        )
    if shape[1] == 0 or shape[1] % tile_px:
        raise SynthesisError(
            f"patches are {shape[1]} px wide, which is no multiple of the {tile_px} px tiles of the morphology encoder; "
            f"a checkpoint with this encoder needs patch_px = {tile_px}, {2 * tile_px}, ..."
        )
    return int(shape[1]) // tile_px


def _config_of(sizes: ViTSizes) -> dict[str, int]:
    """Return sizes under the names that timm gives them."""
    return {
        "depth": sizes.depth,
        "embed_dim": sizes.width,
        "num_heads": sizes.heads,
        "patch_size": sizes.patch,
        "reg_tokens": sizes.registers,
        "img_size": sizes.image_px,
    }


def _contradictions(sizes: ViTSizes, config: Mapping[str, Any]) -> list[Fault]:
    return [
        (name, (), f"config.json says {config[name]!r}, the weights {value}")
        for name, value in _config_of(sizes).items()
        if name in config and config[name] != value
    ]


def _heads(width: int, config: Mapping[str, Any], what: str) -> int:
    if "num_heads" not in config and width not in HEADS:
        raise CheckpointError(
            f"{what}: the number of attention heads is unknown. The weights are {width} wide; it is known for "
            f"{', '.join(map(str, HEADS))} (UNI2-h). State num_heads in config.json."
        )
    heads = _whole(config, "num_heads", HEADS.get(width, 1))
    if width % heads:
        raise CheckpointError(f"{what}: the width {width} is no multiple of num_heads = {heads}")
    return heads


def _whole(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json of the morphology encoder: {name} is {shown(value)}, expected a whole number > 0"
        )
    return value
