"""The folder of a CancerFoundation encoder: settings and gene list, vocabulary, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..errors import CheckpointError
from ..files import BadFile, read_json, shown
from ..types import hash_genes
from .cancer_foundation_network import ValueStyle
from .cancer_foundation_settings import CancerFoundationSettings, make_settings, read_arguments

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
VOCABULARY = "vocab.json"

_OWN_KEYS = {"_class_name", "genes", "gene_hash", "dim", "network"}
_REFERENCE_KEYS = {"source", "revision", "sha256", "licence", "gated", "weights", "vocabulary", "files"}
"""Where weights that may not be copied come from; of no concern here."""


@dataclass(frozen=True)
class DescribedEncoder:
    """What ``config.json`` says.

    Attributes
    ----------
    genes, settings
        As for the encoder.
    heads, value_style
        Of the network; None where it does not say.
    sizes
        Sizes that the weights must have; those of `NetworkSizes` that it names.
    """

    genes: tuple[str, ...]
    settings: CancerFoundationSettings
    heads: int | None
    value_style: ValueStyle | None
    sizes: Mapping[str, Any]


def read_encoder(folder: Path) -> DescribedEncoder:
    """Read ``config.json``; raises CheckpointError where it is missing, not valid, or its genes are none or not its own."""
    try:
        config = read_json(folder / CONFIG)
    except BadFile as error:
        raise CheckpointError(f"{folder} is no readable encoder: {error}") from None
    where = f"{CONFIG} of {folder}"
    if not isinstance(config, dict) or not isinstance(config.get("network") or {}, dict):
        raise CheckpointError(f"{where} holds no settings of an encoder.")
    sizes = dict(config.get("network") or {})
    style = sizes.pop("value_style", None)
    if style is not None and style not in get_args(ValueStyle):
        raise CheckpointError(
            f"{where}: value_style is {shown(style)}, expected one of {', '.join(get_args(ValueStyle))}."
        )
    heads = read_arguments({"nheads": sizes.pop("heads", None)}, where).heads
    settings = {name: value for name, value in config.items() if name not in _OWN_KEYS | _REFERENCE_KEYS}
    return DescribedEncoder(_listed_genes(config, folder), make_settings(settings, where), heads, style, sizes)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``; raises CheckpointError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no readable encoder: {error}") from None


def write_encoder(
    folder: Path, config: Mapping[str, Any], vocabulary: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> None:
    """Write the three files; the folder is made where it is not there."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / VOCABULARY).write_text(json.dumps(dict(vocabulary), indent=0) + "\n", encoding="utf-8")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def _listed_genes(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    genes = config.get("genes") or []
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise CheckpointError(f"config.json of {folder}: genes must be a list of gene symbols.")
    if not genes:
        raise CheckpointError(
            f"config.json of {folder} lists no genes, and an embedding depends on them. Write the list that the checkpoint was "
            'trained with under "genes", in its order, and its SHA-256 under "gene_hash"; where there is none, '
            "`napari_stmdit.encoders.variable_genes.choose_genes` picks the most variable genes of a section."
        )
    fitting = hash_genes(tuple(genes))
    if config.get("gene_hash") is None:
        raise CheckpointError(f"config.json of {folder} lacks gene_hash; of its {len(genes)} genes it is {fitting}.")
    if config["gene_hash"] != fitting:
        raise CheckpointError(f"{folder}: the gene list does not fit its hash; the folder was changed or damaged")
    return tuple(genes)
