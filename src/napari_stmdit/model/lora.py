"""Low-rank adapters (LoRA; Hu et al., 2021, arXiv 2106.09685) in PEFT's naming, merged into the weights they adapt.

``X.base_layer.weight`` W, ``X.lora_A.NAME.weight`` A (rank, in) and ``X.lora_B.NAME.weight`` B (out, rank) become
``X.weight`` = W + alpha / rank * B A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Fault

if TYPE_CHECKING:
    from torch import Tensor

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_BASE = ".base_layer."


def merge_lora(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[Fault, ...]]:
    """Merge every adapter, and take ``base_layer`` out of the names.

    Parameters
    ----------
    tensors
        By name, wrappers stripped.
    settings
        Where ``lora_alpha`` is looked for; the weights do not hold it.

    Returns
    -------
    tuple
        The merged tensors, notes, and (name, shape, reason) of what cannot be merged.
    """
    factors: dict[str, dict[tuple[str, str], str]] = {}
    for name in tensors:
        if match := _FACTOR.fullmatch(name):
            place = factors.setdefault(match["layer"], {})
            place[match["which"], match["adapter"] or ""] = name
    used = {name for place in factors.values() for name in place.values()}
    merged = {name.replace(_BASE, "."): tensor for name, tensor in tensors.items() if name not in used}
    alpha = _alpha(settings)
    faults: list[Fault] = []
    ranks: set[int] = set()
    for layer, place in factors.items():
        reason = _fault(place, merged.get(f"{layer}.weight"), tensors, alpha)
        if reason is not None:
            faults += [(name, tuple(tensors[name].shape), reason) for name in place.values()]
            continue
        assert alpha is not None
        down, up = (tensors[next(name for (w, _), name in place.items() if w == which)] for which in "AB")
        weight = merged[f"{layer}.weight"]
        change = (alpha / down.shape[0]) * (up.float() @ down.float())
        merged[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
        ranks.add(int(down.shape[0]))
    notes: tuple[str, ...] = ()
    if ranks:
        listed = ", ".join(map(str, sorted(ranks)))
        notes = (f"Low-rank adapters of {len(factors)} layers (rank {listed}, alpha {alpha:g}) were merged.",)
    return merged, notes, tuple(faults)


def _fault(
    place: Mapping[tuple[str, str], str], base: Tensor | None, tensors: Mapping[str, Tensor], alpha: float | None
) -> str | None:
    if len(place) != 2 or {which for which, _ in place} != {"A", "B"} or len({adapter for _, adapter in place}) != 1:
        return "an adapter needs one lora_A and one lora_B"
    if base is None:
        return "an adapter without the weights it adapts; load the full checkpoint"
    down, up = (tensors[next(name for (w, _), name in place.items() if w == which)] for which in "AB")
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != base.shape:
        return f"does not fit the {tuple(base.shape)} weights it adapts"
    if alpha is None:
        return "lora_alpha is unknown; give it in the settings (PixCell's virtual staining: equal to its rank, 4)"
    return None


def _alpha(settings: Mapping[str, Any] | None) -> float | None:
    for section in (settings or {}, (settings or {}).get("lora"), (settings or {}).get("model")):
        if isinstance(section, Mapping):
            for name in ("lora_alpha", "alpha"):
                value = section.get(name)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return float(value)
    return None
