"""Open a transformer: from our folder, or from PixCell or STMDiT files in original or diffusers naming.

Every tensor is used or listed and every parameter filled, or loading fails with a table of misfits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Fault, SynthesisError, table
from .foreign.keys import KeyMapping, Naming, Stacked, Weights, merge_lora, read_mapping, to_native, unwrap
from .foreign.options import Options, gather_options
from .reading import SETTING_SUFFIXES, WEIGHT_SUFFIXES, read_settings, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_FOLDER_WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "model.pt",
    "diffusion_pytorch_model.bin",
)
_FOLDER_SETTINGS = ("training_config.yaml", "training_config.yml", "config.yaml", "config.json", "training_config.json")


@dataclass(frozen=True)
class Opened:
    """Transformer before it is built: tensors under our names, and options.

    Attributes
    ----------
    tensors
        By our names, those of several parts not joined yet.
    naming
        How they were named in the file.
    options
        Of the transformer, each with its source.
    notes, ignored
        Choices made, and tensor -> why it is not used.
    weights, settings, stated
        The files, and the settings as read.
    """

    tensors: dict[str, Stacked]
    naming: Naming
    options: Options
    notes: tuple[str, ...]
    ignored: dict[str, str]
    weights: Path
    settings: Path | None
    stated: Mapping[str, Any]


Settings = str | Path | Mapping[str, Any] | None
"""Settings file, its contents, or None for the file beside the weights."""


def load_transformer(
    weights_or_dir: str | Path, config: Settings = None, *, mapping: str | Path | KeyMapping | None = None
) -> nn.Module:
    """Load a transformer in float32, ready to predict.

    Parameters
    ----------
    weights_or_dir
        A safetensors or torch file, or a folder that holds one: our checkpoint folder or its ``transformer``, a diffusers
        ``transformer`` folder, or an STMDiT folder (``model.pt`` and ``training_config.yaml``).
    config
        Settings as a YAML or JSON file or a mapping; None for the file beside the weights.
    mapping
        A mapping file for names that we do not know; see `napari_stmdit.model.foreign.keys`.

    Returns
    -------
    torch.nn.Module
        `napari_stmdit.model.transformer.STMDiTTransformer2D` in evaluation mode on the CPU.

    Raises
    ------
    CheckpointError
        The file is unsafe, damaged or of no known kind; options are missing or contradict the shapes; a tensor is missing,
        unknown, of a wrong shape or not finite. A table lists (key, shape, reason).
    """
    return build_transformer(open_weights(weights_or_dir, config, mapping=mapping))


def open_weights(
    weights_or_dir: str | Path, config: Settings = None, *, mapping: str | Path | KeyMapping | None = None
) -> Opened:
    """Read and recognise a transformer without building it; arguments and errors as for `load_transformer`."""
    opened, faults = examine(weights_or_dir, config, mapping=mapping)
    if faults:
        raise CheckpointError(
            f"{len(faults)} tensors of {opened.weights.name} cannot be placed.\n{table(faults)}\n"
            "If they are known under other names, give a mapping file."
        )
    if opened.options.faults:
        missing = "; ".join(opened.options.faults)
        raise CheckpointError(f"{opened.weights.name}: the transformer cannot be built: {missing}.")
    return opened


def examine(
    weights_or_dir: str | Path,
    config: Settings = None,
    *,
    mapping: str | Path | KeyMapping | None = None,
    found: Weights | None = None,
) -> tuple[Opened, tuple[Fault, ...]]:
    """Read a transformer and collect the tensors that cannot be placed; faults of its options are in ``options.faults``.

    ``found`` saves reading the file again. Raises CheckpointError where a file is unsafe, damaged or missing, or of no known naming.
    """
    path, beside = locate(Path(weights_or_dir))
    mapping = mapping if mapping is None or isinstance(mapping, KeyMapping) else read_mapping(mapping)
    settings_path = beside if config is None else None if isinstance(config, Mapping) else Path(config)
    settings = (
        config if isinstance(config, Mapping) else None if settings_path is None else read_settings(settings_path)
    )
    if mapping is not None and mapping.settings:
        settings = {**(settings or {}), **mapping.settings}
    found = unwrap(read_weights(path), mapping) if found is None else found
    if found.naming is None:
        raise CheckpointError(
            f"{path.name} is no STMDiT or PixCell transformer: its tensors have other names.\n"
            + table((name, tuple(tensor.shape), "unknown name") for name, tensor in found.tensors.items())
        )
    tensors, merged, misfits = merge_lora(found.tensors, settings)
    renamed = to_native(tensors, found.naming)
    native = renamed.tensors | _filled(renamed.tensors, mapping)
    options = gather_options(native, settings, _position_buffer(found))
    stated = [f"{name} is zero, as the mapping file states." for name in native.keys() - renamed.tensors.keys()]
    notes = (*found.notes, *merged, *options.notes, *stated)
    ignored = {**found.ignored, **renamed.ignored}
    opened = Opened(native, found.naming, options, notes, ignored, path, settings_path, settings or {})
    return opened, (*misfits, *renamed.faults)


def skeleton(opened: Opened) -> nn.Module:
    """Build an opened transformer without storage; raises CheckpointError unless every tensor is there and fits."""
    import torch

    from .transformer import STMDiTTransformer2D

    try:
        with torch.device("meta"):
            net = STMDiTTransformer2D(**opened.options.values)
    except (SynthesisError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{opened.weights.name}: the transformer cannot be built: {error}") from None
    faults = list(_misfits(opened.tensors, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}))
    if faults:
        raise CheckpointError(f"{len(faults)} tensors of {opened.weights.name} do not fit.\n" + table(faults))
    return net  # type: ignore[no-any-return]


def build_transformer(opened: Opened) -> nn.Module:
    """Build an opened transformer around its tensors, without a second copy of those in float32."""
    net = skeleton(opened)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    tensors = {name: stacked.tensor().reshape(shapes[name]).float() for name, stacked in opened.tensors.items()}
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval()


def locate(path: Path) -> tuple[Path, Path | None]:
    """Find the weights and the settings file of a transformer; raises CheckpointError unless there is exactly one candidate."""
    if path.is_file():
        return path, _settings_beside(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist. Expected a weights file or a folder with one.")
    if (path / "transformer").is_dir():
        path = path / "transformer"
    named = next((path / name for name in _FOLDER_WEIGHTS if (path / name).is_file()), None)
    if named is None:
        others = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(others) != 1:
            listed = ", ".join(file.name for file in others) or "none"
            raise CheckpointError(f"{path} should hold one weights file, found {listed}. Name the file instead.")
        named = others[0]
    return named, _settings_beside(named)


def _settings_beside(weights: Path) -> Path | None:
    stem = weights.name.split(".")[0]
    own = [f"{stem}_{name}" for name in _FOLDER_SETTINGS] + [f"{stem}{suffix}" for suffix in SETTING_SUFFIXES]
    return next(
        (weights.parent / name for name in (*own, *_FOLDER_SETTINGS) if (weights.parent / name).is_file()), None
    )


def _position_buffer(found: Weights) -> Tensor | None:
    return found.tensors.get("pos_embed", found.tensors.get("pos_embed.pos_embed"))


def _filled(native: Mapping[str, Stacked], mapping: KeyMapping | None) -> dict[str, Stacked]:
    """Make the null embeddings that a mapping file states to be zero."""
    import torch

    made: dict[str, Stacked] = {}
    for name in mapping.fill if mapping is not None else ():
        kind = name.removesuffix("_null")
        layers = (native.get(f"{kind}_embed.fc1.weight"), native.get(f"{kind}_time.fc1.weight"))
        width = next((layer.shape[1] for layer in layers if layer is not None and layer.ndim == 2), None)
        if name not in native and width is not None:
            made[name] = Stacked((torch.zeros(1, width),))
    return made


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Leave out axes of length 1: null embeddings are stored as (1, d), (d,) or (1, 1, d)."""
    return tuple(n for n in shape if n != 1)


def _misfits(tensors: Mapping[str, Stacked], expected: Mapping[str, tuple[int, ...]]) -> Iterable[Fault]:
    for name in expected.keys() - tensors.keys():
        yield name, expected[name], "missing; it is never filled at random"
    for name, stacked in tensors.items():
        if name not in expected:
            yield name, stacked.shape, "not part of this transformer"
        elif _squeezed(stacked.shape) != _squeezed(expected[name]):
            yield name, stacked.shape, f"expected {expected[name]}"
        elif not all(part.is_floating_point() and bool(part.isfinite().all()) for part in stacked.parts):
            yield name, stacked.shape, "holds values that are not finite numbers"
