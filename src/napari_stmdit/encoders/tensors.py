"""Weights of published encoders: out of their wrappers, and held to the network's own names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Fault, table

if TYPE_CHECKING:
    from torch import nn


CONTAINERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")


def unwrap_tensors(found: Mapping[str, Any], anchor: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take tensors out of what training loops wrap around them.

    Parameters
    ----------
    found
        As read from a file: tensors by name, or such a mapping under ``state_dict``, ``model_state_dict`` or ``model``.
    anchor
        A name that the network must have; whatever of `PREFIXES` precedes it is taken off every name.

    Returns
    -------
    tuple
        The tensors by bare name, and the names of what lay beside a container (epochs, optimisers) and was left out. A name
        without the prefix stays as it is, for the comparison to report.
    """
    ignored: list[str] = []
    while (inner := next((name for name in CONTAINERS if isinstance(found.get(name), Mapping)), None)) is not None:
        ignored += [name for name in found if name != inner]
        found = found[inner]
    prefix = next((name[: -len(anchor)] for name in found if _is_wrapped(name, anchor)), "")
    return {str(name).removeprefix(prefix): value for name, value in found.items()}, tuple(ignored)


def fill_network(network: nn.Module, tensors: Mapping[str, Any], what: str, known: Iterable[Fault] = ()) -> None:
    """Put tensors into a network on the meta device without copying them; every tensor must be wanted, every want be met.

    Parameters
    ----------
    network
        Built on the meta device; its own names and shapes are what is expected.
    tensors
        By name, of any floating-point dtype; they become the network's parameters as they are.
    what
        What the tensors are, for the message.
    known
        Faults that were seen before; they go into the same table.

    Raises
    ------
    CheckpointError
        A tensor is unknown, missing, of another shape, or not of finite numbers; one table of all of them.
    """
    faults = [*known, *_misfits(tensors, {name: tuple(value.shape) for name, value in network.state_dict().items()})]
    if faults:
        raise CheckpointError(f"{len(faults)} tensors of {what} do not fit; nothing was loaded.\n{table(faults)}")
    network.load_state_dict(dict(tensors), strict=True, assign=True)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor; () for anything else."""
    return tuple(getattr(value, "shape", ()))


def _is_wrapped(name: object, anchor: str) -> bool:
    """Whether ``name`` is the anchor behind known prefixes and nothing else."""
    if not isinstance(name, str) or not name.endswith(anchor):
        return False
    rest = name[: -len(anchor)]
    while prefix := next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None):
        rest = rest.removeprefix(prefix)
    return not rest


def _misfits(tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> Iterable[Fault]:
    """Compare; what is there comes first, for it tells more of the file than what is not."""
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
