"""Card, scheduler, training record and README of an exported checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..encoders.morphology_map import MorphologyMap
from ..intent import DEFAULT_GUIDANCE, DEFAULT_STEPS, CheckpointCard, Guidance, hash_genes
from .config import TrainingConfig
from .sections import open_sections
from .start import StartRecord, learns_expression, open_start
from .state import load_record, load_state, save_record


def make_scheduler(config: TrainingConfig) -> Any:
    """Return a flow scheduler with the solver and shift of the config's card."""
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    shift = float(config.card.get("shift", 1.0))
    if config.card.get("solver", "dpm") == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )


def keeps_scheduler(config: TrainingConfig) -> bool:
    """Return whether the scheduler of the checkpoint to start from is kept, as the config's card names no solver or shift."""
    return config.start is not None and not {"solver", "shift"} & set(config.card)


def guidance_and_steps(config: TrainingConfig) -> tuple[Guidance, int]:
    """Return the guidance and the denoising steps of the card: the config's, else those of the checkpoint to start from."""
    guidance, steps = DEFAULT_GUIDANCE, DEFAULT_STEPS
    if config.start is not None:
        card = open_start(config).card
        guidance, steps = card.guidance, card.steps
    if "guidance" in config.card:
        guidance = guidance.model_copy(
            update=Guidance.model_validate(config.card["guidance"]).model_dump(exclude_none=True)
        )
    return guidance, int(config.card.get("steps", steps))


def make_card(
    config: TrainingConfig, genes: tuple[str, ...], profiles: Sequence[str], started: StartRecord | None
) -> CheckpointCard:
    """Return the card: the config's texts and numbers, genes and profiles, and the statements of the checkpoint it started from."""
    known = {key: value for key, value in config.card.items() if key in CheckpointCard.model_fields}
    names = ", ".join(source.name for source in (*config.train, *config.pictures))
    kind = "Images without expression" if config.pictures else "Sections"
    silent = "Not stated in the training config."
    data = known.get("training_data", f"{kind} {names}; the training config says no more of them.")
    limits = known.get("limits") or (started.limits if started is not None else "") or silent
    known |= {
        "training_data": data.strip(),
        "licence": (known.get("licence") or silent).strip(),
        "limits": limits.strip(),
    }
    if started is not None:
        origin = f"It started from the checkpoint {started.name!r} (SHA-256 {started.sha256[:12]}...), trained on"
        known["training_data"] = _joined(known["training_data"], started.training_data, origin)
        for key, before in (("licence", started.licence), ("limits", started.limits)):
            known[key] = _joined(known[key], before, "Of the checkpoint it started from")
    made_up = [section["name"] for section in section_records(config) if section["synthetic"]]
    if made_up:
        known["limits"] += (
            f" Trained on synthetic sections ({', '.join(made_up)}): it shows how training works and says nothing about tissue."
        )
    guidance, steps = guidance_and_steps(config)
    return CheckpointCard(
        **{
            **known,
            "name": config.name,
            "patch_px": config.patch_px,
            "patch_mpp": config.patch_mpp,
            "guidance": guidance,
            "steps": steps,
            "conditions": _conditions(config),
            "genes": genes,
            "gene_hash": hash_genes(genes) if genes else "",
            "profiles": tuple(profiles),
        }
    )


def _conditions(config: TrainingConfig) -> tuple[str, ...]:
    if config.trains_decoder_alone:
        return open_start(config).card.conditions
    return ("morphology",) if config.pictures else ("expression", "morphology")


def _joined(own: str, before: str, link: str) -> str:
    """Append a statement of an earlier checkpoint, unless it is the same."""
    if before.strip() == own:
        return f"{own} {link}: the same." if "SHA" in link else own
    return f"{own} {link}: {before.strip()}"


def section_records(config: TrainingConfig) -> list[dict[str, Any]]:
    """Return name, spots and whether it is synthetic of each training section; recorded when they are first opened."""
    path = config.output / "sections.json"
    records: list[dict[str, Any]] | None = load_record(path)
    if records is None:
        opened = open_sections(config, "train")
        records = [{"name": one.name, "spots": len(one.yx), "synthetic": one.section.synthetic} for one in opened]
        save_record(path, records)
    return records


def steps_taken(config: TrainingConfig) -> dict[str, int]:
    """Return the steps taken in each phase that was trained."""
    files = {"autoencoder": "autoencoder.pt", "decoder": "autoencoder_decoder.pt", "transformer": "diffusion.pt"}
    if config.start is not None:
        refined, kept = config.autoencoder.refine, config.trains_decoder_alone
        files = {phase: files[phase] for phase in ("decoder",) * refined + ("transformer",) * (not kept)}
    states = {phase: load_state(config.output / name) for phase, name in files.items()}
    return {phase: 0 if state is None else int(state["step"]) for phase, state in states.items()}


def training_record(config: TrainingConfig, started: StartRecord | None) -> dict[str, Any]:
    """Return the content of ``training.json``: sections, steps, seed, settings, and the checkpoint it started from."""
    settings = ("augmentation", "expression", "autoencoder", "latents", "diffusion")
    return {
        "software": f"napari-stmdit {__version__}",
        "sections": section_records(config),
        **({"pictures": [source.name for source in config.pictures]} if config.pictures else {}),
        "held_out": [source.name for source in (*config.held_out, *config.held_out_pictures)],
        "seed": config.seed,
        "steps": steps_taken(config),
        "settings": {name: getattr(config, name).model_dump(mode="json") for name in settings},
        "started_from": None if started is None else vars(started),
    }


def model_card(
    config: TrainingConfig,
    card: CheckpointCard,
    steps: Mapping[str, int],
    started: StartRecord | None,
    follows: MorphologyMap | None,
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
    """Return the README in Markdown.

    ``steps`` as of `steps_taken`, ``follows`` the map from expression to morphology, if any, and ``found`` where each tissue profile was
    measured here (`RegionProfile`).
    """
    rule = card.guidance.rule or DEFAULT_GUIDANCE.rule
    made = _from_the_beginning(config, card, steps) if started is None else _continued(config, card, steps, started)
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
{_figures(config)}
Defaults: {card.steps} steps, expression scale {card.guidance.expression:g}, morphology scale {card.guidance.morphology:g}, rule `{rule}`.
{_profiles(card, started, found)}{"" if follows is None else map_section(follows)}
"""


def _trained_on(config: TrainingConfig) -> str:
    kind = "Images without expression" if config.pictures else "Sections"
    trained = ", ".join(source.name for source in (*config.train, *config.pictures))
    held_out = ", ".join(source.name for source in (*config.held_out, *config.held_out_pictures))
    return f"{kind} trained on: {trained}. Held out, never trained on: {held_out or 'none'}."


def map_section(follows: MorphologyMap) -> str:
    """Return a card's section about the map from expression to morphology."""
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
    if any(getattr(source, "factors", None) is not None for source in config.train):
        return f"""
- Expression: {len(card.genes)} factors of each spot in the place of counts, as parts of their sum, ranked by what they say about morphology."""
    return f"""
- Expression: {len(card.genes)} genes, log1p(counts per 10,000), {config.expression.programs} linear programs ranked by how well they predict morphology. {_by_depth(config)}"""


def _by_depth(config: TrainingConfig) -> str:
    return (
        "Each of several depth levels has its own projection, and one program is the depth of a spot relative to its section; "
        f"profiles thinned up to {config.expression.thinning:g}-fold in training."
    )


def _continued(config: TrainingConfig, card: CheckpointCard, steps: Mapping[str, int], started: StartRecord) -> str:
    before = started.training.get("steps")
    taken = ", ".join(f"{phase} {n} steps" for phase, n in before.items()) if isinstance(before, Mapping) else ""
    known = f" They had taken, as far as is recorded: {taken}." if isinstance(before, Mapping) else ""
    new = []
    if config.autoencoder.refine:
        share = config.autoencoder.refined_share
        part = (
            f" The exported weights lie {share:.0%} of the way from the initial to the trained ones."
            if share < 1
            else ""
        )
        new.append(f"- Decoder: {steps['decoder']} further steps against a new patch discriminator.{part}")
    if config.expression.refit:
        new.append(f"- Expression: the programs of that checkpoint, refitted. {_by_depth(config)}")
    kept = "unchanged" if not new else "unchanged but for what follows"
    parts = "encoders and gene list"
    if learns_expression(config):
        parts, new = "scheduler and encoder of morphology", [*new, _expression(config, card).strip()]
    head = f"- It started from the checkpoint `{started.name}` (SHA-256 `{started.sha256}`). Autoencoder, {parts} are that checkpoint's, {kept}.{known}"
    return "\n".join([head, *new])


def _transformer(config: TrainingConfig, steps: Mapping[str, int], started: StartRecord | None) -> str:
    if config.trains_decoder_alone:
        return "- Transformer: that checkpoint's, unchanged."
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


def _profiles(
    card: CheckpointCard, started: StartRecord | None, found: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
    if not card.profiles:
        return ""
    if started is not None and not found:
        return f"""
## Tissue profiles
`profiles.safetensors` is that of `{started.name}`: {", ".join(card.profiles)}, from its training sections."""
    return profiles_section(found)


def profiles_section(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a card's section about the tissue profiles that were ``found`` in training sections."""
    rows = [
        f"| {region} | {section} | {looks['spots']:g} | {looks['haematoxylin']:.2f} | {looks['eosin']:.2f} | {looks['nuclei']:.0f} | {looks['blank']:.0%} |"
        for region, sections in found.items()
        for section, looks in sections.items()
    ]
    return (
        """
## Tissue profiles
`profiles.safetensors` holds mean and spread of log1p(counts per 10,000) over the gene list, and mean depth relative to the section, of spots that have a tissue's marker genes, standardised within
their section, and whose crops look like it where that was asked for. What their crops look like, means for each section:

| tissue | section | spots | haematoxylin | eosin | nuclei | blank |
|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n\nThey describe these sections, not tissue in general."
    )


def _figures(config: TrainingConfig) -> str:
    hardware = config.card.get("hardware")
    figures = config.card.get("figures")
    lines = [f"- Hardware and time: {hardware}"] if hardware else []
    lines += (
        [f"\n## Figures\n{figures if isinstance(figures, str) else json.dumps(figures, indent=1)}\n"] if figures else []
    )
    return "\n".join(lines)
