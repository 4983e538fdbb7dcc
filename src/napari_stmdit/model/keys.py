"""Names of tensors: the original PixCell / STMDiT naming, the diffusers naming, and ours.

Each naming is a table of `Rule`: one of our names, and the foreign name or names whose tensors, stacked along their rows, make it.
``{i}`` stands for the number of a block; a name that ends in ``.*`` stands for its ``weight`` and its ``bias``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Naming = Literal["native", "original", "diffusers"]


@dataclass(frozen=True)
class Rule:
    """One of our names, and the foreign names it is stacked from, in order."""

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
    """Say why a tensor of a checkpoint is not needed; None where it may be."""
    if name in IGNORED:
        return IGNORED[name]
    return "noise schedule of the training run, the scheduler has its own" if _SCHEDULE.fullmatch(name) else None


@dataclass(frozen=True)
class Stacked:
    """A tensor that a file keeps in parts along its rows; they are joined only when it is needed."""

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
    """Tensors under our names, and what became of the rest.

    Attributes
    ----------
    tensors
        Tensors by our names, those of several parts not joined yet.
    ignored
        Foreign name -> why it is not needed.
    faults
        (foreign name, shape, reason) of each tensor that no rule knows, or whose partners are missing.
    """

    tensors: dict[str, Stacked]
    ignored: dict[str, str] = field(default_factory=dict)
    faults: tuple[tuple[str, tuple[int, ...], str], ...] = ()


def recognise(names: Iterable[str]) -> Naming | None:
    """Tell the naming from the names of the tensors; None where it is none of ours."""
    known = set(names)
    return next((naming for naming, sign in SIGNATURES.items() if sign in known), None)


def to_native(tensors: Mapping[str, Tensor], naming: Naming) -> Renamed:
    """Rename and stack tensors to our names; what cannot be placed is listed, nothing is dropped in silence."""
    ignored = {name: reason for name in tensors if (reason := ignored_reason(name)) is not None}
    rest = [name for name in tensors if name not in ignored]
    if naming == "native":
        return Renamed({name: Stacked((tensors[name],)) for name in rest}, ignored)
    parts: dict[str, dict[int, str]] = {}
    sizes: dict[str, int] = {}
    faults: list[tuple[str, tuple[int, ...], str]] = []
    places = _Places(TABLES[naming])
    for name in rest:
        place = places.find(name)
        if place is None:
            faults.append((name, tuple(tensors[name].shape), "no rule knows this tensor"))
            continue
        ours, index, count = place
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

    Raises
    ------
    CheckpointError
        The naming has no name for a tensor (an option that only our transformer has).
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


class _Places:
    """Where a foreign tensor goes: our name, its place among the parts, and how many parts there are."""

    def __init__(self, table: tuple[Rule, ...]) -> None:
        self.patterns = [
            (pattern(their), rule.ours, index, len(rule.theirs))
            for rule in table
            for index, their in enumerate(rule.theirs)
        ]

    def find(self, name: str) -> tuple[str, int, int] | None:
        """Return (our name, part, parts), or None where no rule fits."""
        for pattern, ours, index, count in self.patterns:
            if match := pattern.fullmatch(name):
                return fill(ours, match), index, count
        return None


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
