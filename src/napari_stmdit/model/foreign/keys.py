"""Tensors of a foreign transformer under our names: training containers, naming tables, mapping files, LoRA.

An EMA copy is preferred to the raw weights. Buffers that it lacks come from the raw copy, and a note says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import CheckpointError, Fault
from ...frozen import Frozen, validated
from ..reading import read_settings

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
    """Tensors of one network, without wrappers.

    Attributes
    ----------
    tensors
        By name, prefixes stripped.
    naming
        None for unknown names.
    place
        Where in the file they were, for example ``state_dict_ema``; empty for the top level.
    notes, ignored
        Choices made, for the user; tensor -> why a mapping file leaves it out.
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
    """Find the network's tensors in a container, preferring an averaged copy; ``mapping`` is applied after wrappers are stripped.

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


class KeyMapping(Frozen):
    """Names of a foreign checkpoint, from the user's mapping file.

    Attributes
    ----------
    naming
        The naming that ``rules`` lead into.
    rules
        Foreign template -> name in that naming.
    ignore
        Foreign template -> why its tensors are not needed.
    settings
        Override the checkpoint's own settings.
    fill
        Null embeddings that the checkpoint lacks and the user states to be zero.
    """

    naming: Literal["original", "diffusers", "native"] = "original"
    rules: dict[str, str] = {}
    ignore: dict[str, str] = {}
    settings: dict[str, Any] = {}
    fill: dict[Literal["expression_null", "morphology_null"], Literal["zeros"]] = {}

    def rename(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the renamed tensors, and name -> reason of those ignored; raises CheckpointError where two would get one name."""
        rules = [(pattern(theirs), ours) for theirs, ours in self.rules.items()]
        ignore = [(pattern(theirs), reason) for theirs, reason in self.ignore.items()]
        renamed: dict[str, Tensor] = {}
        ignored: dict[str, str] = {}
        for name, tensor in tensors.items():
            reason = next((why for expression, why in ignore if expression.fullmatch(name)), None)
            if reason is not None:
                ignored[name] = reason
                continue
            new = next((fill(ours, match) for rule, ours in rules if (match := rule.fullmatch(name))), name)
            if new in renamed:
                raise CheckpointError(f"The mapping file gives two tensors the name {new}; the second is {name}.")
            renamed[new] = tensor
        return renamed, ignored

    def touches(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether any rule fits any of these names."""
        expressions = [pattern(theirs) for theirs in (*self.rules, *self.ignore)]
        return any(expression.fullmatch(name) for expression in expressions for name in tensors)


def read_mapping(path: str | Path) -> KeyMapping:
    """Read a mapping file, YAML or JSON; raises CheckpointError with every fault and its place."""
    hint = " Expected naming, rules, ignore, settings and fill."
    return validated(KeyMapping, read_settings(path), f"{path} is no valid mapping file", hint)


_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_BASE = ".base_layer."


def merge_lora(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[Fault, ...]]:
    """Merge low-rank adapters in PEFT's naming (Hu et al., 2021, arXiv 2106.09685), and take ``base_layer`` out of the names.

    ``settings`` state ``lora_alpha``, which the weights do not hold. Returns the merged tensors, notes, and what cannot be merged.
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
        down, up = _factors(place, tensors)
        weight = merged[f"{layer}.weight"]
        change = (alpha / down.shape[0]) * (up.float() @ down.float())
        merged[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
        ranks.add(int(down.shape[0]))
    notes: tuple[str, ...] = ()
    if ranks:
        listed = ", ".join(map(str, sorted(ranks)))
        notes = (f"Low-rank adapters of {len(factors)} layers (rank {listed}, alpha {alpha:g}) were merged.",)
    return merged, notes, tuple(faults)


def _factors(place: Mapping[tuple[str, str], str], tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors A and B of an adapter that has both."""
    by_which = {which: tensors[name] for (which, _), name in place.items()}
    return by_which["A"], by_which["B"]


def _fault(
    place: Mapping[tuple[str, str], str], base: Tensor | None, tensors: Mapping[str, Tensor], alpha: float | None
) -> str | None:
    if len(place) != 2 or {which for which, _ in place} != {"A", "B"} or len({adapter for _, adapter in place}) != 1:
        return "an adapter needs one lora_A and one lora_B"
    if base is None:
        return "an adapter without the weights it adapts; load the full checkpoint"
    down, up = _factors(place, tensors)
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


Naming = Literal["native", "original", "diffusers"]


@dataclass(frozen=True)
class Rule:
    """Rule: one of our names, and the foreign names it is stacked from, in order."""

    ours: str
    theirs: tuple[str, ...]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(ours, tuple(theirs.split())) for ours, theirs in pairs)


# Gene expression has no public naming of its own in diffusers; the original names are then used beside the diffusers ones.
_EXPRESSION = _rules(
    ("expression_null", "ge_embedder.null_embedding"),
    ("expression_embed.fc1.*", "ge_embedder.proj.fc1.*"),
    ("expression_embed.fc2.*", "ge_embedder.proj.fc2.*"),
    ("expression_time.fc1.*", "ge_adaln.fc1.*"),
    ("expression_time.fc2.*", "ge_adaln.fc2.*"),
    ("expression_pool.seeds", "ge_pma.seeds"),
    ("expression_pool.q.*", "ge_pma.q_linear.*"),
    ("expression_pool.kv.*", "ge_pma.kv_linear.*"),
    ("expression_pool.proj.*", "ge_pma.proj.*"),
)

_ORIGINAL = (
    *_rules(
        ("patch_embed.*", "x_embedder.proj.*"),
        ("time_embed.fc1.*", "t_embedder.mlp.0.*"),
        ("time_embed.fc2.*", "t_embedder.mlp.2.*"),
        ("time_modulation.*", "t_block.1.*"),
        ("morphology_embed.fc1.*", "y_embedder.y_proj.fc1.*"),
        ("morphology_embed.fc2.*", "y_embedder.y_proj.fc2.*"),
        ("morphology_null", "y_embedder.y_embedding"),
        ("morphology_position_table", "y_pos_embed"),
        ("blocks.{i}.modulation", "blocks.{i}.scale_shift_table"),
        ("blocks.{i}.self_attention.qkv.*", "blocks.{i}.attn.qkv.*"),
        ("blocks.{i}.self_attention.q_norm.*", "blocks.{i}.attn.q_norm.*"),
        ("blocks.{i}.self_attention.k_norm.*", "blocks.{i}.attn.k_norm.*"),
        ("blocks.{i}.self_attention.proj.*", "blocks.{i}.attn.proj.*"),
        ("blocks.{i}.morphology_attention.q.*", "blocks.{i}.cross_attn.q_linear.*"),
        ("blocks.{i}.morphology_attention.kv.*", "blocks.{i}.cross_attn.kv_linear.*"),
        ("blocks.{i}.morphology_attention.proj.*", "blocks.{i}.cross_attn.proj.*"),
        ("blocks.{i}.expression_attention.q.*", "blocks.{i}.ge_cross_attn.q_linear.*"),
        ("blocks.{i}.expression_attention.kv.*", "blocks.{i}.ge_cross_attn.kv_linear.*"),
        ("blocks.{i}.expression_attention.proj.*", "blocks.{i}.ge_cross_attn.proj.*"),
        ("blocks.{i}.feed_forward.fc1.*", "blocks.{i}.mlp.fc1.*"),
        ("blocks.{i}.feed_forward.fc2.*", "blocks.{i}.mlp.fc2.*"),
        ("final_modulation", "final_layer.scale_shift_table"),
        ("final_linear.*", "final_layer.linear.*"),
    ),
    *_EXPRESSION,
)

_BLOCK = "transformer_blocks.{i}."
_DIFFUSERS = (
    *_rules(
        ("patch_embed.*", "pos_embed.proj.*"),
        ("time_embed.fc1.*", "adaln_single.emb.timestep_embedder.linear_1.*"),
        ("time_embed.fc2.*", "adaln_single.emb.timestep_embedder.linear_2.*"),
        ("time_modulation.*", "adaln_single.linear.*"),
        ("morphology_embed.fc1.*", "caption_projection.linear_1.*"),
        ("morphology_embed.fc2.*", "caption_projection.linear_2.*"),
        ("morphology_null", "caption_projection.uncond_embedding"),
        ("morphology_position_table", "y_pos_embed.y_pos_embed"),
        ("blocks.{i}.modulation", f"{_BLOCK}scale_shift_table"),
        ("blocks.{i}.self_attention.qkv.*", f"{_BLOCK}attn1.to_q.* {_BLOCK}attn1.to_k.* {_BLOCK}attn1.to_v.*"),
        ("blocks.{i}.self_attention.qkv.*", f"{_BLOCK}attn1.to_qkv.*"),
        ("blocks.{i}.self_attention.q_norm.*", f"{_BLOCK}attn1.norm_q.*"),
        ("blocks.{i}.self_attention.k_norm.*", f"{_BLOCK}attn1.norm_k.*"),
        ("blocks.{i}.self_attention.proj.*", f"{_BLOCK}attn1.to_out.0.*"),
        ("blocks.{i}.morphology_attention.q.*", f"{_BLOCK}attn2.to_q.*"),
        ("blocks.{i}.morphology_attention.kv.*", f"{_BLOCK}attn2.to_k.* {_BLOCK}attn2.to_v.*"),
        ("blocks.{i}.morphology_attention.kv.*", f"{_BLOCK}attn2.to_kv.*"),
        ("blocks.{i}.morphology_attention.proj.*", f"{_BLOCK}attn2.to_out.0.*"),
        ("blocks.{i}.expression_attention.q.*", f"{_BLOCK}ge_cross_attn.q_linear.*"),
        ("blocks.{i}.expression_attention.kv.*", f"{_BLOCK}ge_cross_attn.kv_linear.*"),
        ("blocks.{i}.expression_attention.proj.*", f"{_BLOCK}ge_cross_attn.proj.*"),
        ("blocks.{i}.feed_forward.fc1.*", f"{_BLOCK}ff.net.0.proj.*"),
        ("blocks.{i}.feed_forward.fc2.*", f"{_BLOCK}ff.net.2.*"),
        ("final_modulation", "scale_shift_table"),
        ("final_linear.*", "proj_out.*"),
    ),
    *_EXPRESSION,
)

TABLES: dict[Naming, tuple[Rule, ...]] = {"original": _ORIGINAL, "diffusers": _DIFFUSERS}

# A name that only this naming has; the native one is looked for first.
SIGNATURES: dict[Naming, str] = {
    "native": "blocks.0.self_attention.qkv.weight",
    "original": "x_embedder.proj.weight",
    "diffusers": "pos_embed.proj.weight",
}

# Carried by checkpoints, not weights: position tables are recomputed (and checked), the rest belongs to training.
IGNORED = {
    "pos_embed": "position table, recomputed",
    "pos_embed.pos_embed": "position table, recomputed",
    "n_averaged": "counter of an averaged copy",
    "num_updates": "counter of an averaged copy",
    "decay": "decay of an averaged copy",
}
_SCHEDULE = re.compile(
    r"(.+\.)?(betas|(sqrt_)?alphas_cumprod(_prev|_next)?|(log_)?sqrt_(one_minus|recip|recipm1)_alphas_cumprod"
    r"|sqrt_recip_alphas_cumprod|log_one_minus_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12]))"
)


def ignored_reason(name: str) -> str | None:
    """Return why a tensor of a checkpoint is not needed; None where it may be."""
    if name in IGNORED:
        return IGNORED[name]
    return "noise schedule of the training run, the scheduler has its own" if _SCHEDULE.fullmatch(name) else None


@dataclass(frozen=True)
class Stacked:
    """Tensor stored in parts along its rows, joined when needed."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        first = tuple(self.parts[0].shape)
        return first if len(self.parts) == 1 else (sum(part.shape[0] for part in self.parts), *first[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def tensor(self) -> Tensor:
        """Return the whole; the very tensor where there is one part."""
        import torch

        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)


@dataclass(frozen=True)
class Renamed:
    """Tensors under our names, ``ignored`` foreign names with the reason, and ``faults`` of names without a rule or partner."""

    tensors: dict[str, Stacked]
    ignored: dict[str, str] = field(default_factory=dict)
    faults: tuple[tuple[str, tuple[int, ...], str], ...] = ()


def recognise(names: Iterable[str]) -> Naming | None:
    """Return the naming of tensors; None for an unknown one."""
    known = set(names)
    return next((naming for naming, sign in SIGNATURES.items() if sign in known), None)


def to_native(tensors: Mapping[str, Tensor], naming: Naming) -> Renamed:
    """Rename and stack tensors to our names; what cannot be placed is listed."""
    ignored = {name: reason for name in tensors if (reason := ignored_reason(name)) is not None}
    rest = [name for name in tensors if name not in ignored]
    if naming == "native":
        return Renamed({name: Stacked((tensors[name],)) for name in rest}, ignored)
    parts: dict[str, dict[int, str]] = {}
    sizes: dict[str, int] = {}
    faults: list[tuple[str, tuple[int, ...], str]] = []
    patterns = [
        (pattern(their), rule.ours, index, len(rule.theirs))
        for rule in TABLES[naming]
        for index, their in enumerate(rule.theirs)
    ]
    for name in rest:
        place = next(
            (
                (match, template, index, count)
                for rule, template, index, count in patterns
                if (match := rule.fullmatch(name))
            ),
            None,
        )
        if place is None:
            faults.append((name, tuple(tensors[name].shape), "no rule knows this tensor"))
            continue
        match, template, index, count = place
        ours = fill(template, match)
        if sizes.setdefault(ours, count) != count or index in parts.setdefault(ours, {}):
            faults.append((name, tuple(tensors[name].shape), f"{ours} is given twice"))
        parts.setdefault(ours, {})[index] = name
    native: dict[str, Stacked] = {}
    for ours, found in parts.items():
        ordered = tuple(tensors[found[index]] for index in sorted(found))
        if len(ordered) != sizes[ours]:
            faults += [(name, tuple(tensors[name].shape), f"{ours} lacks its other parts") for name in found.values()]
        elif len({part.shape[1:] for part in ordered}) > 1:
            faults += [(name, tuple(tensors[name].shape), "its partners have other shapes") for name in found.values()]
        else:
            native[ours] = Stacked(ordered)
    return Renamed(native, ignored, tuple(faults))


def from_native(tensors: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Rename tensors from our names to another naming, splitting what that naming keeps apart.

    Raises CheckpointError where that naming has no name for a tensor (an option that only our transformer has).
    """
    if naming == "native":
        return dict(tensors)
    foreign: dict[str, Tensor] = {}
    table = [(pattern(rule.ours), rule.theirs) for rule in TABLES[naming]]
    for name, tensor in tensors.items():
        found = next(((match, theirs) for pattern, theirs in table if (match := pattern.fullmatch(name))), None)
        if found is None:
            raise CheckpointError(f"The {naming} naming has no name for {name}: it belongs to an option of ours only.")
        match, theirs = found
        for their, part in zip(theirs, tensor.chunk(len(theirs)) if len(theirs) > 1 else (tensor,), strict=True):
            foreign[fill(their, match)] = part
    return foreign


def pattern(template: str) -> re.Pattern[str]:
    """Compile a template: ``{i}`` is a number, a final ``.*`` is ``.weight`` or ``.bias``."""
    text = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(text.removesuffix(r"\.\*") + r"\.(?P<end>weight|bias)" if template.endswith(".*") else text)


def fill(template: str, match: re.Match[str]) -> str:
    """Put what a `pattern` matched into another template."""
    found = match.groupdict()
    if "i" in found:
        template = template.replace("{i}", found["i"])
    return template.removesuffix("*") + found["end"] if "end" in found else template
