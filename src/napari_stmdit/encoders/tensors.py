"""Folders of encoders, and their weights: unwrapped, and checked against the network's names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Fault, table
from ..files import BadFile, read_json
from ..storage.atomic import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

CONTAINERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")


def write_encoder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` of tensors or arrays, then ``config.json``, which marks the encoder as whole."""
    from safetensors.torch import save_file
    from torch import is_tensor, tensor

    folder.mkdir(parents=True, exist_ok=True)
    found = {name: value if is_tensor(value) else tensor(value) for name, value in tensors.items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in found.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, config)


def read_config(folder: Path, what: str = "encoder") -> dict[str, Any]:
    """Read ``config.json``; raises CheckpointError where it is missing, damaged or no mapping."""
    try:
        config = read_json(folder / CONFIG)
    except BadFile as error:
        raise CheckpointError(f"{folder} is no readable {what}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} holds {type(config).__name__}, expected a mapping of settings")
    return config


def read_tensors(folder: Path, what: str = "encoder") -> dict[str, Tensor]:
    """Read ``model.safetensors``; raises CheckpointError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is no readable {what}: {WEIGHTS} is damaged or no safetensors file ({error}). Copy it again."
        ) from error


def read_arrays(folder: Path, names: tuple[str, ...], further: tuple[str, ...] = ()) -> dict[str, NDArray[np.float32]]:
    """Read the named arrays of ``model.safetensors``, and ``further`` ones where they are there; raises CheckpointError."""
    found = read_tensors(folder)
    if missing := sorted(set(names) - set(found)):
        raise CheckpointError(f"{folder}/{WEIGHTS} lacks {missing}; it holds {sorted(found)}")
    return {name: found[name].float().numpy() for name in (*names, *further) if name in found}


def unwrap_tensors(found: Mapping[str, Any], anchor: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take tensors out of the mappings that training loops wrap around them.

    Parameters
    ----------
    found
        As read from a file: tensors by name, or such a mapping under ``state_dict``, ``model_state_dict`` or ``model``.
    anchor
        A name that the network must have; whatever of `PREFIXES` precedes it is taken off every name.

    Returns
    -------
    tuple
        The tensors by bare name, and the names of what lay beside a container (epochs, optimisers). A name without the prefix stays as it
        is, for the comparison to report.
    """
    ignored: list[str] = []
    while (inner := next((name for name in CONTAINERS if isinstance(found.get(name), Mapping)), None)) is not None:
        ignored += [name for name in found if name != inner]
        found = found[inner]
    prefix = next((name[: -len(anchor)] for name in found if _is_wrapped(name, anchor)), "")
    return {str(name).removeprefix(prefix): value for name, value in found.items()}, tuple(ignored)


def fill_network(network: nn.Module, tensors: Mapping[str, Any], what: str, known: Iterable[Fault] = ()) -> None:
    """Put tensors, by name and of any floating-point dtype, into a network on the meta device, without copying them.

    Raises
    ------
    CheckpointError
        A tensor is unknown, missing, of another shape, or not of finite numbers; one table of all, with the ``known`` faults first.
    """
    faults = [*known, *_misfits(tensors, {name: tuple(value.shape) for name, value in network.state_dict().items()})]
    if faults:
        raise CheckpointError(f"{len(faults)} tensors of {what} do not fit; nothing was loaded.\n{table(faults)}")
    network.load_state_dict(dict(tensors), strict=True, assign=True)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor; () for anything else."""
    return tuple(getattr(value, "shape", ()))


def _is_wrapped(name: object, anchor: str) -> bool:
    """Return whether ``name`` is the anchor behind known prefixes and nothing else."""
    if not isinstance(name, str) or not name.endswith(anchor):
        return False
    rest = name[: -len(anchor)]
    while prefix := next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None):
        rest = rest.removeprefix(prefix)
    return not rest


def _misfits(tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> Iterable[Fault]:
    """Compare tensors with the expected shapes; list misfits before missing tensors."""
    for name, value in tensors.items():
        if name not in expected:
            yield name, shape_of(value), "not part of this network"
        elif shape_of(value) != expected[name]:
            yield name, shape_of(value), f"expected {expected[name]}"
        elif not _is_finite(value):
            yield name, shape_of(value), "is no tensor of finite numbers"
    for name, shape in expected.items():
        if name not in tensors:
            yield name, shape, "missing; it is never filled at random"


def _is_finite(value: Any) -> bool:
    from torch import is_tensor

    return is_tensor(value) and value.is_floating_point() and bool(value.isfinite().all())
