"""The README of an exported checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..types import CheckpointCard

if TYPE_CHECKING:
    from .config import TrainingConfig


def model_card(config: TrainingConfig, card: CheckpointCard, reached: Mapping[str, int]) -> str:
    """Return the model card in Markdown: what it is, what it learned from, how, and what it must not be used for.

    ``reached`` holds the steps that were really taken in the phases ``autoencoder``, ``decoder`` and ``diffusion``.
    """
    rule = card.guidance.rule or "nested_morphology_first"
    diffusion = config.diffusion
    return f"""# Checkpoint `{card.name}`

Synthesizes H&E patches of {card.patch_px} x {card.patch_px} px at {card.patch_mpp:g} um/px ({card.patch_um:.0f} um) from gene expression and morphology.

## Data
{card.training_data}

Sections trained on: {", ".join(s.name for s in config.train)}. Held out, never trained on: {", ".join(s.name for s in config.held_out) or "none"}.

## Licence
{card.licence}

## Intended use and limits
{card.limits}

## How it was made
{_autoencoder(config, reached)}
- Expression: {len(card.genes)} genes, log1p(counts per 10,000), {config.expression.programs} linear programs ranked by what they say about morphology; profiles thinned up to {config.expression.thinning:g}-fold in training.
- Morphology: {config.latents.morphology_components} whitened components of the statistics of convolutional features.
- Transformer: rectified flow, {reached["diffusion"]} steps, about the first {diffusion.small_fraction:.0%} on quarter patches; noise levels shifted by \
{diffusion.level_shift:g} (on whole patches {diffusion.shifted_share:.0%} of them), errors of local and overall means weighted by {diffusion.coarse_weight:g}; each condition dropped out on its own \
(both {diffusion.share_both:.0%}, expression alone {diffusion.share_expression:.0%}, morphology alone {diffusion.share_morphology:.0%}).
{_words(config)}
Defaults: {card.steps} steps, expression scale {card.guidance.expression:g}, morphology scale {card.guidance.morphology:g}, rule `{rule}`.

## Tissue profiles
`profiles.safetensors` holds mean and spread of log1p(counts per 10,000) over the gene list for {", ".join(card.profiles)}: each the tenth of the training
spots with the highest score of marker genes, standardised within its section. They describe these sections, not tissue in general.
"""


def _autoencoder(config: TrainingConfig, reached: Mapping[str, int]) -> str:
    """Say how the autoencoder was made, or where it comes from."""
    if config.start is not None:
        from .start import starting_checkpoint

        begun = starting_checkpoint(config)
        return (
            f"- Goes on from checkpoint `{begun.card.name}`, version {begun.provenance['sha256'][:12]}: autoencoder and both encoders are "
            "its own, unchanged; the transformer started from its weights."
        )
    return (
        f"- Autoencoder: {config.autoencoder.latent_channels} channels, 8 px a cell; closed-form linear maps with a convolutional "
        f"residual. {reached['autoencoder']} steps on pixels, gradients and texture, then {reached['decoder']} steps of the decoder "
        "against a patch discriminator."
    )


def _words(config: TrainingConfig) -> str:
    hardware = config.card.get("hardware")
    figures = config.card.get("figures")
    lines = [f"- Hardware and time: {hardware}"] if hardware else []
    lines += (
        [f"\n## Figures\n{figures if isinstance(figures, str) else json.dumps(figures, indent=1)}\n"] if figures else []
    )
    return "\n".join(lines)
