"""The dictionaries that training loops wrap around weights: averaged copies, optimiser state, prefixes of wrappers.

An averaged (EMA) copy is preferred to the raw weights; buffers come from the same copy, and only those that it lacks come from the raw
one, which is noted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .keys import SIGNATURES, Naming, recognise
from .mapping import KeyMapping

if TYPE_CHECKING:
    from torch import Tensor

AVERAGED = ("state_dict_ema", "ema", "ema_model", "model_ema", "ema_state_dict", "params_ema")
_WRAPPERS = "module|_orig_mod|model|ema_model|ema|net|transformer|diffusion_model|dit|base_model\\.model|state_dict"
_PREFIX = re.compile(f"(?:(?:{_WRAPPERS})\\.)*")
_INSIDE = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")  # wrappers of single layers

# Tensors that are buffers in the original and the diffusers classes: averaging by parameters leaves them out.
BUFFERS = {
    "pos_embed",
    "y_embedder.y_embedding",
    "y_pos_embed",
    "caption_projection.uncond_embedding",
    "y_pos_embed.y_pos_embed",
}


@dataclass(frozen=True)
class Weights:
    """The tensors of one network, without wrappers.

    Attributes
    ----------
    tensors
        By name, prefixes stripped.
    naming
        None where the names are none we know.
    place
        Where in the file they were, for example ``state_dict_ema``; empty for the top level.
    notes
        What was chosen or filled in, for the user.
    ignored
        Tensor -> why a mapping file leaves it out.
    """

    tensors: dict[str, Tensor]
    naming: Naming | None
    place: str
    notes: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def averaged(self) -> bool:
        """Whether this is an averaged copy."""
        return any(part in (*AVERAGED, "shadow_params") for part in self.place.split("."))


def unwrap(container: Mapping[str, Any], mapping: KeyMapping | None = None) -> Weights:
    """Find the network's tensors in a container, preferring an averaged copy.

    Parameters
    ----------
    container
        As read from the file.
    mapping
        The user's own names, applied after wrappers are stripped.

    Raises
    ------
    CheckpointError
        There are no tensors, or a list of nameless averaged tensors does not fit the named ones.
    """
    found = [_weights(tensors, place, mapping) for place, tensors in _dictionaries(container)]
    if not found:
        raise CheckpointError(
            f"No tensors were found; the top level holds {', '.join(map(str, list(container)[:10]))}."
        )
    known = [weights for weights in found if weights.naming is not None]
    raw = next((weights for weights in known if not weights.averaged), None)
    averaged = next((weights for weights in known if weights.averaged), None)
    nameless = next(_nameless(container), None)
    if averaged is None and nameless is not None and raw is not None:
        averaged = _name(*nameless, raw)
    if averaged is not None:
        return averaged if raw is None else _with_buffers(averaged, raw)
    return raw or max(found, key=lambda weights: len(weights.tensors))


def _weights(tensors: dict[str, Tensor], place: str, mapping: KeyMapping | None) -> Weights:
    if mapping is None:
        return Weights(*_strip(tensors), place)
    plain = _without_common_prefix(tensors)
    renamed, ignored = mapping.rename(plain if mapping.touches(plain) else tensors)
    return Weights(*_strip(renamed), place, ignored=ignored)


def _without_common_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the wrappers that every name has, and those of single layers."""
    plain = {_INSIDE.sub("", name): tensor for name, tensor in tensors.items()}
    prefixes = {match.group() if (match := _PREFIX.match(name)) else "" for name in plain}
    common = os.path.commonprefix(sorted(prefixes))
    common = common[: common.rfind(".") + 1]
    return {name.removeprefix(common): tensor for name, tensor in plain.items()}


def _dictionaries(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary of tensors with its place, outermost first."""
    import torch

    if not isinstance(value, Mapping) or depth > 3:
        return
    tensors = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}
    if tensors:
        yield place, tensors
    for name, inner in value.items():
        if name not in ("optimizer", "scheduler", "optimizer_states", "lr_schedulers"):
            yield from _dictionaries(inner, f"{place}.{name}".lstrip("."), depth + 1)


def _nameless(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, list[Tensor]]]:
    if isinstance(value, Mapping) and depth <= 3:
        if isinstance(value.get("shadow_params"), list):
            yield f"{place}.shadow_params".lstrip("."), value["shadow_params"]
        for name, inner in value.items():
            yield from _nameless(inner, f"{place}.{name}".lstrip("."), depth + 1)


def _strip(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Naming | None]:
    """Strip the prefix under which a naming's signature is found; of several, one of an averaged copy."""
    plain = {_INSIDE.sub("", name): tensor for name, tensor in tensors.items()}
    prefixes = {
        name.removesuffix(sign)
        for sign in SIGNATURES.values()
        for name in plain
        if name.endswith(sign) and _PREFIX.fullmatch(name.removesuffix(sign))
    }
    if not prefixes:
        return plain, None
    prefix = min(prefixes, key=lambda text: (not any(part in AVERAGED for part in text.split(".")), text))
    others = tuple(text for text in prefixes if text and text != prefix)
    stripped = {
        name.removeprefix(prefix): tensor for name, tensor in plain.items() if not (others and name.startswith(others))
    }
    return stripped, recognise(stripped)


def _name(place: str, values: list[Tensor], raw: Weights) -> Weights:
    """Give nameless averaged tensors the names of the raw parameters, in their order; every shape must fit."""
    names = [name for name in raw.tensors if name not in BUFFERS]
    shapes = [tuple(raw.tensors[name].shape) for name in names]
    if [tuple(value.shape) for value in values] != shapes:
        raise CheckpointError(
            f"{place} holds {len(values)} nameless tensors that do not fit the {len(names)} named parameters in their "
            "order and shapes. Ask its author for named averaged weights."
        )
    note = f"The {len(values)} nameless tensors of {place} took the names of the raw weights, in their order."
    return Weights(dict(zip(names, values, strict=True)), raw.naming, place, (note,), raw.ignored)


def _with_buffers(averaged: Weights, raw: Weights) -> Weights:
    lacking = [name for name in raw.tensors if name in BUFFERS and name not in averaged.tensors]
    chosen = f"The averaged weights ({averaged.place or 'top level'}) were chosen over the raw ones."
    notes = [*averaged.notes, chosen]
    if lacking:
        notes.append(f"{', '.join(lacking)} came from the raw weights: the averaged copy has none.")
    tensors = averaged.tensors | {name: raw.tensors[name] for name in lacking}
    return Weights(tensors, averaged.naming, averaged.place, tuple(notes), averaged.ignored)
