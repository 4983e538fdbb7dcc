"""Morphology as the class token of UNI2-h: what PixCell and STMDiT are conditioned on.

The weights are gated and may not be passed on: each user asks for access to ``MahmoodLab/UNI2-h`` and downloads them. Without
access, embeddings that someone with access has computed can be read instead: `napari_stmdit.encoders.precomputed`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, Fault, SynthesisError, table
from ..files import BadFile, read_json, shown
from .tensors import fill_network, shape_of, unwrap_tensors
from .vision_transformer import UNI2H, VisionTransformer, ViTSizes, sizes_in

WEIGHTS = "model.safetensors"
TILE_PX = 256
"""Pixels along a tile that gets one vector; PixCell's tiles, at its scale of about 0.5 um per pixel."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, by channel, with which UNI2-h was trained."""
HEADS = {UNI2H.width: UNI2H.heads}
"""Attention heads by width: no shape tells their number."""
IGNORED = ("head.weight", "head.bias", "head_drop")
"""A classifier that some files carry; the embedding does not pass through it."""


class Uni2hEncoder:
    """UNI2-h, or a network of its kind: each tile of a patch as one vector, used as it comes (not normalised to unit length).

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
        """Where it computes."""
        return self.network.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """In what precision it computes; what it returns is float32 in any case."""
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
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, "tile_px": self.tile_px, **_config_of(self.network.sizes)}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, tensors: Mapping[str, Any] | None = None) -> Uni2hEncoder:
        """Read an encoder, in float32 on the CPU.

        Parameters
        ----------
        folder
            Holds ``config.json`` and, unless ``tensors`` are given, ``model.safetensors``.
        tensors
            Weights that were read elsewhere, as published; see `from_tensors`.

        Raises
        ------
        CheckpointError
            The folder is incomplete, or the weights do not fit.
        """
        config = _read_config(folder / "config.json")
        if tensors is not None:
            return cls.from_tensors(tensors, config, f"the weights for {folder}")
        return cls.from_tensors(_read_weights(folder / WEIGHTS), config, str(folder / WEIGHTS))

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
    """Resize tiles and normalise them as UNI2-h expects.

    Parameters
    ----------
    tiles
        Each (tile_px, tile_px, 3) uint8.
    side
        Pixels along the network's image, 224.

    Returns
    -------
    Tensor
        (B, 3, side, side) float32. The whole tile is resized by Pillow's bilinear filter, which averages where it shrinks, and
        rounds to grey levels as the published recipe does.
    """
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
    """Compare what the config states with what the weights are."""
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except BadFile as error:
        raise CheckpointError(f"{path.parent} is no readable morphology encoder: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {type(config).__name__}, expected a mapping of settings")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. The weights of UNI2-h may not be passed on with a checkpoint: ask for access to "
            "MahmoodLab/UNI2-h and download them, or use embeddings that were computed before."
        )
    try:
        return dict(load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}). Copy it again.") from error
