"""The README of an exported checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..types import CheckpointCard

if TYPE_CHECKING:
    from ..encoders.morphology_map import MorphologyMap
    from .config import TrainingConfig
    from .start import Started


def model_card(
    config: TrainingConfig,
    card: CheckpointCard,
    steps: Mapping[str, int],
    started: Started | None = None,
    follows: MorphologyMap | None = None,
) -> str:
    """Return the model card in Markdown: what it is, what it learned from, how, and what it must not be used for.

    Parameters
    ----------
    config, card
        Of the checkpoint.
    steps
        Phase -> steps that were really taken: ``autoencoder`` and ``decoder``, where they were trained, and ``transformer``.
    started
        The checkpoint that it went on from.
    follows
        Its map from expression to morphology.
    """
    rule = card.guidance.rule or "nested_morphology_first"
    made = _from_the_beginning(config, card, steps) if started is None else _gone_on(config, card, steps, started)
    return f"""# Checkpoint `{card.name}`

Synthesizes H&E patches of {card.patch_px} x {card.patch_px} px at {card.patch_mpp:g} um/px ({card.patch_um:.0f} um) from {" and ".join(card.conditions).replace("expression", "gene expression")}.

## Data
{card.training_data}

{_trained_on(config)}

## Licence
{card.licence}

## Intended use and limits
{card.limits}

## How it was made
{made}
{_transformer(config, steps, started)}
{_words(config)}
Defaults: {card.steps} steps, expression scale {card.guidance.expression:g}, morphology scale {card.guidance.morphology:g}, rule `{rule}`.
{_profiles(config, card, started)}{"" if follows is None else map_section(follows)}
"""


def _trained_on(config: TrainingConfig) -> str:
    kind = "Images without expression" if config.pictures else "Sections"
    trained = ", ".join(source.name for source in (*config.train, *config.pictures))
    held_out = ", ".join(source.name for source in (*config.held_out, *config.held_out_pictures))
    return f"{kind} trained on: {trained}. Held out, never trained on: {held_out or 'none'}."


def map_section(follows: MorphologyMap) -> str:
    """Return the section of a card about the map from expression to morphology."""
    if not follows.follows:
        said = f"{follows.words} An edit of real tissue therefore changes what expression alone changes."
    else:
        r2 = ", ".join(f"{value:.2f}" for value in follows.r2[:8])
        said = f"""On tissue left out (whole sections, where there are three or more), expression explains {100 * follows.share:.0f} % of the variance of morphology over the {follows.spots} spots of the training sections; R2 of its first
numbers (of tokens, principal components): {r2}. {len(follows.components)} components follow an edit. The rest is a spot's own and stays: an edited picture shows what goes with
expression in these sections, an association, and no more of it than this."""
    return f"""
## How morphology follows expression
`morphology_map/` is a ridge regression of morphology on expression. When real tissue is edited, morphology moves by what it says of the difference.
{said}
"""


def _from_the_beginning(config: TrainingConfig, card: CheckpointCard, steps: Mapping[str, int]) -> str:
    return f"""- Autoencoder: {config.autoencoder.latent_channels} channels, 8 px a cell; closed-form linear maps with a convolutional residual. \
{steps["autoencoder"]} steps on pixels, gradients and texture, then {steps["decoder"]} steps of the decoder against a patch discriminator.{_expression(config, card)}
- Morphology: {config.latents.morphology_components} whitened components of the statistics of convolutional features."""


def _expression(config: TrainingConfig, card: CheckpointCard) -> str:
    if not card.genes:
        return ""
    return f"""
- Expression: {len(card.genes)} genes, log1p(counts per 10,000), {config.expression.programs} linear programs ranked by what they say about morphology. {_by_depth(config)}"""


def _by_depth(config: TrainingConfig) -> str:
    return (
        "They are read by a projection fitted for each of several levels of counts, and one program is the depth of a spot relative to its section; "
        f"profiles thinned up to {config.expression.thinning:g}-fold in training."
    )


def _gone_on(config: TrainingConfig, card: CheckpointCard, steps: Mapping[str, int], started: Started) -> str:
    before = started.training.get("steps")
    known = f" They had taken, as far as is recorded: {_listed(before)}." if isinstance(before, Mapping) else ""
    new = []
    if config.autoencoder.refine:
        share = config.autoencoder.refined_share
        part = f" Its weights lie {share:.0%} of the way to where they led." if share < 1 else ""
        new.append(f"- Decoder: {steps['decoder']} further steps against a new patch discriminator.{part}")
    if config.expression.refit:
        new.append(f"- Expression: the programs of that checkpoint, learned anew. {_by_depth(config)}")
    kept = "unchanged" if not new else "unchanged but for what follows"
    parts = "encoders and gene list"
    if not any(name.startswith("expression_encoder") for name in started.parts):
        parts, new = "scheduler and encoder of morphology", [*new, _expression(config, card).strip()]
    head = f"- It went on from the checkpoint `{started.name}` (SHA-256 `{started.sha256}`). Autoencoder, {parts} are that checkpoint's, {kept}.{known}"
    return "\n".join([head, *new])


def _transformer(config: TrainingConfig, steps: Mapping[str, int], started: Started | None) -> str:
    diffusion = config.diffusion
    small = f", about the first {diffusion.small_fraction:.0%} on quarter patches" if diffusion.small_fraction else ""
    shares = (
        f"each condition dropped out on its own (both {diffusion.share_both:.0%}, expression alone {diffusion.share_expression:.0%}, "
        f"morphology alone {diffusion.share_morphology:.0%})."
    )
    if started is None:
        return f"- Transformer: rectified flow, {steps['transformer']} steps{small}; {shares}"
    return (
        f"- Transformer: that checkpoint's, {steps['transformer']} further steps of what it predicted before{small}; {shares} Where it had "
        "learned a variance, that part was not trained further."
    )


def _listed(steps: Mapping[str, object]) -> str:
    return ", ".join(f"{phase} {taken} steps" for phase, taken in steps.items())


def _profiles(config: TrainingConfig, card: CheckpointCard, started: Started | None) -> str:
    if not card.profiles:
        return ""
    if started is not None and not config.expression.refit:
        return f"""
## Tissue profiles
`profiles.safetensors` is that of `{started.name}`: {", ".join(card.profiles)}, from its training sections."""
    return f"""
## Tissue profiles
`profiles.safetensors` holds mean and spread of log1p(counts per 10,000) over the gene list, and mean depth relative to the section, for {", ".join(card.profiles)}: each the tenth of the training
spots with the highest score of marker genes, standardised within its section. They describe these sections, not tissue in general."""


def _words(config: TrainingConfig) -> str:
    hardware = config.card.get("hardware")
    figures = config.card.get("figures")
    lines = [f"- Hardware and time: {hardware}"] if hardware else []
    lines += (
        [f"\n## Figures\n{figures if isinstance(figures, str) else json.dumps(figures, indent=1)}\n"] if figures else []
    )
    return "\n".join(lines)
