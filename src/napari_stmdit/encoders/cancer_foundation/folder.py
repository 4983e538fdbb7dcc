"""Settings and weights of CancerFoundation: its training arguments (``args.json``), its folder, and its tensors in all known layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor

from ...errors import CheckpointError, Fault, table
from ...frozen import Frozen, validated
from ...intent import hash_genes
from ...text import shown
from ..tensors import CONFIG, fill_network, read_config
from .network import CancerFoundationNetwork, NetworkSizes, ValueStyle
from .vocabulary import Ties

Output = Literal["cls", "tokens"]


class CancerFoundationSettings(Frozen):
    """Settings that an embedding depends on, besides weights, vocabulary and gene list.

    Attributes
    ----------
    n_bins, ties, seed
        See `napari_stmdit.encoders.cancer_foundation.vocabulary.bin_rows`.
    normalise_bins
        Whether the network was trained on bins divided by ``n_bins``.
    max_seq_len
        Longest sequence, with ``<cls>``.
    output
        ``cls``: one vector a spot; ``tokens``: one vector a gene.
    include_cls
        Of ``tokens``: whether the vector of ``<cls>`` comes before those of the genes.
    normalize
        Whether every vector is divided by its length, as the released code does with cell embeddings.
    """

    n_bins: Annotated[int, Field(ge=3)] = 51
    ties: Ties = "middle"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    normalise_bins: bool = False
    max_seq_len: Annotated[int, Field(ge=2)] = 1200
    output: Output = "cls"
    include_cls: bool = False
    normalize: bool = True


@dataclass(frozen=True)
class TrainingArguments:
    """A model's ``args.json``; None where it does not say.

    Attributes
    ----------
    heads, value_style
        Of the network.
    sizes
        Width, depth and feed_forward that the weights must have.
    settings
        Those of `CancerFoundationSettings` that it fixes.
    """

    heads: int | None
    value_style: ValueStyle | None
    sizes: Mapping[str, int]
    settings: Mapping[str, Any]


_SIZES = {"embsize": "width", "nlayers": "depth", "d_hid": "feed_forward"}
_SETTINGS = ("n_bins", "max_seq_len", "normalise_bins")
_VALUE_STYLES: dict[str, ValueStyle] = {"continuous": "plain", "theirs": "plain", "mine": "zero_below_zero"}

# Argument -> the values that we compute; absent means the first of them.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "input_emb_style": tuple(_VALUE_STYLES),
    "input_style": ("binned",),
    "cell_emb_style": ("cls",),
    "activation": ("relu",),
    "norm_first": (False,),
    "pre_norm": (False,),
    "domain_spec_batchnorm": (False,),
}


def read_arguments(args: Mapping[str, Any], where: str = "args.json") -> TrainingArguments:
    """Read the training arguments of a model; raises CheckpointError with all faults where its variant cannot be computed."""
    faults = [
        f"{name} is {shown(args[name])}, supported: {' or '.join(map(repr, values))}"
        for name, values in _SUPPORTED.items()
        if args.get(name) is not None and args[name] not in values
    ]
    for name in ("nheads", *_SIZES):
        value = args.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            faults.append(f"{name} is {shown(value)}, a whole number above 0 was expected")
    if faults:
        raise CheckpointError(
            f"{where} describes a CancerFoundation that cannot be computed here: {'; '.join(faults)}."
        )
    style = args.get("input_emb_style")
    return TrainingArguments(
        heads=args.get("nheads"),
        value_style=None if style is None else _VALUE_STYLES[style],
        sizes={ours: args[name] for name, ours in _SIZES.items() if args.get(name) is not None},
        settings={name: args[name] for name in _SETTINGS if args.get(name) is not None},
    )


# ---- tensors, in all the layouts that training codes have written


class Alternatives(NamedTuple):
    """One of our names, and the stored names it may have."""

    ours: str
    stored: tuple[str, ...]


STACKS = ("encoder", "transformer_encoder", "transformer_encoder.transformer_encoder")
_LAYER = "{L}.layers.{i}."

RULES = (
    Alternatives("gene_encoder.embedding.weight", ("gene_encoder.embedding.weight", "encoder.embedding.weight")),
    Alternatives("gene_encoder.enc_norm.*", ("gene_encoder.enc_norm.*", "encoder.enc_norm.*")),
    Alternatives("value_encoder.linear1.*", ("value_encoder.linear1.*",)),
    Alternatives("value_encoder.linear2.*", ("value_encoder.linear2.*",)),
    Alternatives("value_encoder.norm.*", ("value_encoder.norm.*",)),
    *(
        Alternatives(
            f"encoder.layers.{{i}}.self_attn.in_proj_{end}",
            (
                f"{_LAYER}self_attn.in_proj_{end}",
                f"{_LAYER}self_attn.self_attn.in_proj_{end}",
                f"{_LAYER}in_proj.{end}",  # flex attention
                f"{_LAYER}self_attn.Wqkv.{end}",  # flash attention
            ),
        )
        for end in ("weight", "bias")
    ),
    Alternatives(
        "encoder.layers.{i}.self_attn.out_proj.*",
        (f"{_LAYER}self_attn.out_proj.*", f"{_LAYER}self_attn.self_attn.out_proj.*", f"{_LAYER}out_proj.*"),
    ),
    *(
        Alternatives(f"encoder.layers.{{i}}.{part}.*", (f"{_LAYER}{part}.*",))
        for part in ("linear1", "linear2", "norm1", "norm2")
    ),
)

MASKED_VALUE = "value_encoder.masked_expression_embedding"

# Left aside and listed: tensors that no embedding of a cell uses.
IGNORED = {
    r"decoder\..+": "head that predicts expression, for training",
    r"mvc_decoder\..+": "head that predicts expression from the cell embedding, for training",
    r"cls_decoder\..+": "head that predicts a class, for training",
    r"grad_reverse_discriminators\..+": "adversarial heads, for training",
    r"condition_encoders\..+": "conditions of training; cells are embedded without any",
    r"flag_encoder\.weight|generative_flag": "mark of genes to be generated, for training",
    re.escape(MASKED_VALUE): "embedding of masked values, for training",
}

# Known, used by the network that holds them, and not computed here.
REFUSED = {
    r"(ds)?bn\..+": "batch normalisation of the input embeddings, which the released model has not; not supported",
}

HEADS = {256: 8, 128: 8, 512: 8}
"""Width -> attention heads in every published configuration; weights do not show the number of heads."""

_MAX_LAYERS = 200  # a number in a name must not decide how much is built
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model)\.)+")
_INNER_WRAPPERS = re.compile(r"\b_orig_mod\.")
_SIGN = re.compile(r"(gene_encoder|encoder)\.embedding\.weight")


@dataclass(frozen=True)
class StoredNetwork:
    """Network in float32 built from stored tensors, and stored name -> why a tensor is not used."""

    network: CancerFoundationNetwork
    ignored: Mapping[str, str] = field(default_factory=dict)


def build_network(
    container: Mapping[str, Any], heads: int | None = None, value_style: ValueStyle | None = None
) -> StoredNetwork:
    """Build the network from tensors in any of the known layouts, wrapped or not; sizes come from the shapes.

    Parameters
    ----------
    container
        As read from a file.
    heads
        Attention heads; None: from the table `HEADS`.
    value_style
        How the network treats negative values; None: by its tensors. A network trained without masking does not say it.

    Raises
    ------
    CheckpointError
        A tensor is unknown, missing, doubled, of the wrong shape or not finite (all of them in one table), or the number of heads
        is not known.
    """
    tensors, ignored, faults = rename(container)
    sizes = _sizes(tensors, heads)
    found_style: ValueStyle = "zero_below_zero" if MASKED_VALUE in ignored else "plain"
    if value_style == "plain" and found_style != "plain":
        raise CheckpointError(
            f"{MASKED_VALUE} belongs to a value encoder that is zero for negative values, the settings name the plain one."
        )
    with torch.device("meta"):
        network = CancerFoundationNetwork(sizes, value_style or found_style)
    fill_network(network, tensors, "CancerFoundation", faults)
    return StoredNetwork(network.float().eval().requires_grad_(False), ignored)


def check_sizes(network: CancerFoundationNetwork, said: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError where settings name other sizes than those of the network."""
    wrong = [
        f"{name} {said[name]}, not {getattr(network.sizes, name)}"
        for name in said
        if said[name] != getattr(network.sizes, name, None)
    ]
    if wrong:
        raise CheckpointError(f"{where} does not describe these weights: it says {'; '.join(wrong)}.")


def rename(container: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str], list[Fault]]:
    """Return tensors by our names, stored name -> why it is not used, and faults; raises CheckpointError for other weights."""
    tensors: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    faults: list[Fault] = []
    for name, tensor in _find_tensors(container).items():
        ours = _place(name)
        reason = _reason(name, IGNORED)
        if ours in tensors:
            faults.append((name, tuple(tensor.shape), f"{ours} is given twice"))
        elif ours is not None:
            tensors[ours] = tensor
        elif reason is not None:
            ignored[name] = reason
        else:
            why = _reason(name, REFUSED) or "no rule knows this tensor"
            faults.append((name, tuple(tensor.shape), why))
    return tensors, ignored, faults


def _find_tensors(container: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the dictionary of tensors that has a gene embedding, without prefixes of wrappers."""
    others: list[dict[str, Tensor]] = []
    for found in _dictionaries(container):
        names = {_INNER_WRAPPERS.sub("", _WRAPPERS.sub("", name)): name for name in found}
        if len(names) < len(found):
            raise CheckpointError("The same tensors are stored twice, with and without a prefix of a wrapper.")
        plain = {short: found[name] for short, name in names.items()}
        if any(_SIGN.fullmatch(name) for name in plain):
            return plain
        others.append(plain)
    rows = [(name, tuple(tensor.shape), "unknown name") for found in others for name, tensor in found.items()]
    raise CheckpointError(
        "These are no CancerFoundation weights: there is no gene_encoder.embedding.weight (or encoder.embedding.weight).\n"
        + (table(rows) if rows else f"  no tensors; the top level holds {', '.join(map(str, list(container)[:10]))}")
    )


def _dictionaries(value: Any, depth: int = 0) -> Iterator[dict[str, Tensor]]:
    if not isinstance(value, Mapping) or depth > 3:
        return
    tensors = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    if tensors:
        yield tensors
    for inner in value.values():
        yield from _dictionaries(inner, depth + 1)


def _place(name: str) -> str | None:
    for pattern, ours in _PATTERNS:
        if match := pattern.fullmatch(name):
            found = match.groupdict()
            return ours.replace("{i}", found.get("i", "")).replace(".*", f".{found.get('end', '')}")
    return None


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template.removesuffix(".*")) + (r"\.(?P<end>weight|bias)" if template.endswith(".*") else "")
    stacks = "|".join(map(re.escape, STACKS))
    return re.compile(text.replace(r"\{i\}", r"(?P<i>0|[1-9]\d*)").replace(r"\{L\}", f"(?:{stacks})"))


_PATTERNS = [(_pattern(stored), rule.ours) for rule in RULES for stored in rule.stored]


def _reason(name: str, rules: Mapping[str, str]) -> str | None:
    return next((reason for pattern, reason in rules.items() if re.fullmatch(pattern, name)), None)


def _sizes(tensors: Mapping[str, Tensor], heads: int | None) -> NetworkSizes:
    embedding = tensors["gene_encoder.embedding.weight"]
    if embedding.dim() != 2:
        raise CheckpointError(
            f"gene_encoder.embedding.weight has the shape {tuple(embedding.shape)}, (genes, width) was expected."
        )
    rows, width = embedding.shape
    heads = HEADS.get(width) if heads is None else heads
    if heads is None:
        raise CheckpointError(
            f"The number of attention heads of a CancerFoundation of width {width} is not known, and weights do not show it. "
            "Give the args.json of the model (its entry nheads)."
        )
    if heads < 1 or width % heads:
        raise CheckpointError(f"{heads} attention heads do not divide the width {width} of this CancerFoundation.")
    layers = [int(match.group(1)) for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))]
    inner = [t.shape[0] for name, t in tensors.items() if re.fullmatch(r"encoder\.layers\.\d+\.linear1\.bias", name)]
    depth = min(max(layers, default=0) + 1, _MAX_LAYERS)
    return NetworkSizes(rows, width, depth, heads, inner[0] if inner else 2 * width)


# ---- the folder


VOCABULARY = "vocab.json"

_OWN_KEYS = {"_class_name", "genes", "gene_hash", "dim", "network"}
_REFERENCE_KEYS = {"source", "revision", "sha256", "licence", "gated", "weights", "vocabulary", "files"}
"""Keys of ``config.json`` that name the source of weights which may not be copied; ignored here."""


@dataclass(frozen=True)
class DescribedEncoder:
    """The contents of ``config.json``.

    Attributes
    ----------
    genes, settings
        As for the encoder.
    heads, value_style
        Of the network; None if unknown.
    sizes
        Those of `NetworkSizes` that the weights must have.
    """

    genes: tuple[str, ...]
    settings: CancerFoundationSettings
    heads: int | None
    value_style: ValueStyle | None
    sizes: Mapping[str, Any]


def read_encoder(folder: Path) -> DescribedEncoder:
    """Read ``config.json``; raises CheckpointError where it is missing, not valid, or its genes are none or not its own."""
    config = read_config(folder)
    where = f"{CONFIG} of {folder}"
    if not isinstance(config.get("network") or {}, dict):
        raise CheckpointError(f"{where} holds no settings of an encoder.")
    sizes = dict(config.get("network") or {})
    style = sizes.pop("value_style", None)
    if style is not None and style not in get_args(ValueStyle):
        raise CheckpointError(
            f"{where}: value_style is {shown(style)}, expected one of {', '.join(get_args(ValueStyle))}."
        )
    heads = read_arguments({"nheads": sizes.pop("heads", None)}, where).heads
    settings = {name: value for name, value in config.items() if name not in _OWN_KEYS | _REFERENCE_KEYS}
    return DescribedEncoder(
        _listed_genes(config, folder), validated(CancerFoundationSettings, settings, where), heads, style, sizes
    )


def _listed_genes(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    genes = config.get("genes") or []
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise CheckpointError(f"config.json of {folder}: genes must be a list of gene symbols.")
    if not genes:
        raise CheckpointError(
            f"config.json of {folder} lists no genes, and an embedding depends on them. Write the list that the checkpoint was "
            'trained with under "genes", in its order, and its SHA-256 under "gene_hash"; where there is none, '
            "`napari_stmdit.encoders.cancer_foundation.vocabulary.choose_genes` picks the most variable genes of a section."
        )
    fitting = hash_genes(tuple(genes))
    if config.get("gene_hash") is None:
        raise CheckpointError(f"config.json of {folder} lacks gene_hash; of its {len(genes)} genes it is {fitting}.")
    if config["gene_hash"] != fitting:
        raise CheckpointError(f"{folder}: the gene list does not fit its hash; the folder was changed or damaged")
    return tuple(genes)
