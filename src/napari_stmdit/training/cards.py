"""What an exported checkpoint says of itself: its card, its scheduler, and the record of its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from .. import __version__
from ..types import CheckpointCard, Guidance, hash_genes
from .config import TrainingConfig
from .opening import open_sections
from .start import Started, open_start, record_path
from .state import load_state, save_text

GUIDANCE = Guidance(expression=2.0, morphology=2.0, rule="nested_morphology_first")
STEPS = 20


def make_scheduler(config: TrainingConfig) -> Any:
    """Return the scheduler of a checkpoint trained from the beginning: for flow, with the solver and shift that the config's card names."""
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
    """Whether the scheduler of the checkpoint to start from is kept: unless the config's card names a solver or a shift."""
    return config.start is not None and not {"solver", "shift"} & set(config.card)


def guidance_and_steps(config: TrainingConfig) -> tuple[Guidance, int]:
    """Return the guidance and the denoising steps of the card: the config's, else those of the checkpoint to start from."""
    guidance, steps = GUIDANCE, STEPS
    if config.start is not None:
        card = open_start(config).card
        guidance, steps = card.guidance, card.steps
    if "guidance" in config.card:
        guidance = Guidance.model_validate(config.card["guidance"]).filled(guidance)
    return guidance, int(config.card.get("steps", steps))


def make_card(
    config: TrainingConfig, genes: tuple[str, ...], profiles: Sequence[str], started: Started | None
) -> CheckpointCard:
    """Return the card: the config's words and numbers, the genes and profiles, and whatever the checkpoint it started from says."""
    known = {key: value for key, value in config.card.items() if key in CheckpointCard.model_fields}
    names = ", ".join(source.name for source in (*config.train, *config.pictures))
    kind = "Images without expression" if config.pictures else "Sections"
    known["training_data"] = _joined(
        known.get("training_data", f"{kind} {names}; the training config says no more of them."),
        None if started is None else started.training_data,
        ""
        if started is None
        else f"It went on from the checkpoint {started.name!r} (SHA-256 {started.sha256[:12]}...), trained on",
    )
    for key, silent in (("licence", "Not stated in the training config."), ("limits", "")):
        before = None if started is None else str(getattr(started, key))
        own = known.get(key) or (silent if before is None or key == "licence" else before)
        known[key] = _joined(own or "Not stated in the training config.", before, "Of the checkpoint it went on from")
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
            "conditions": ("morphology",) if config.pictures else ("expression", "morphology"),
            "genes": genes,
            "gene_hash": hash_genes(genes) if genes else "",
            "profiles": tuple(profiles),
        }
    )


def _joined(own: str, before: str | None, link: str) -> str:
    """Add what an earlier checkpoint says, unless it is the same."""
    own = own.strip()
    if before is None:
        return own
    if before.strip() == own:
        return f"{own} {link}: the same." if "SHA" in link else own
    return f"{own} {link}: {before.strip()}"


def section_records(config: TrainingConfig) -> list[dict[str, Any]]:
    """Return name, spots and whether it is synthetic of each section trained on; noted when they are first opened."""
    path = config.output / "sections.json"
    if not path.is_file():
        opened = open_sections(config, "train")
        records = [{"name": one.name, "spots": len(one.yx), "synthetic": one.section.synthetic} for one in opened]
        save_text(path, json.dumps(records, indent=1))
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def steps_taken(config: TrainingConfig) -> dict[str, int]:
    """Return the steps that each phase has really taken; of a training that went on from a checkpoint, those of what was trained."""
    files = {"autoencoder": "autoencoder.pt", "decoder": "autoencoder_decoder.pt", "transformer": "diffusion.pt"}
    if config.start is not None:
        phases = ("decoder", "transformer") if config.autoencoder.refine else ("transformer",)
        files = {phase: files[phase] for phase in phases}
    states = {phase: load_state(config.output / name) for phase, name in files.items()}
    return {phase: 0 if state is None else int(state["step"]) for phase, state in states.items()}


def training_record(config: TrainingConfig, started: Started | None) -> dict[str, Any]:
    """Return what ``training.json`` of an exported checkpoint holds: sections, steps, seed, settings, and what it started from."""
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


def read_start(config: TrainingConfig) -> Started | None:
    """Return the record of the checkpoint that the work files went on from, or None."""
    path = record_path(config)
    return Started(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
