"""How cells are put to a CancerFoundation network, and what its training arguments (``args.json``) say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ..errors import CheckpointError
from ..files import shown
from ..types import Intent
from .binning import Ties
from .cancer_foundation_network import ValueStyle

Output = Literal["cls", "tokens"]


class CancerFoundationSettings(Intent):
    """Everything besides weights, vocabulary and gene list that an embedding depends on.

    Attributes
    ----------
    n_bins, ties, seed
        See `binning.bin_rows`.
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


def make_settings(values: Mapping[str, Any], where: str) -> CancerFoundationSettings:
    """Check settings; raises CheckpointError with every fault at once."""
    try:
        return CancerFoundationSettings.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CheckpointError(f"{where}: {faults}.") from None


@dataclass(frozen=True)
class TrainingArguments:
    """What matters of a model's ``args.json``; None where it does not say.

    Attributes
    ----------
    heads, value_style
        Of the network.
    sizes
        Sizes that the weights must have: width, depth, feed_forward.
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
    """Read the training arguments of a model.

    Raises
    ------
    CheckpointError
        They name a variant that is not supported (pre-norm layers, unbinned input, other activations, ...) or are no numbers; all
        faults at once.
    """
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
