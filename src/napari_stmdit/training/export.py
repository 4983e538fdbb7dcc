"""From trained stages to a checkpoint folder that anyone can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import SmallConvEncoder
from ..errors import CheckpointError
from ..types import CheckpointCard, Guidance
from .autoencoder import load_autoencoder, open_sampler
from .conditions import REGION_MARKERS, region_profiles
from .config import TrainingConfig
from .diffusion import load_transformer_average
from .latents import encoder_folder, load_cache
from .modelcard import model_card
from .scheduler import make_scheduler
from .state import load_state

INDEX = {
    "transformer": ["napari_stmdit.model.transformer", "STMDiTTransformer2D"],
    "vae": ["napari_stmdit.model.autoencoder", "StmditAutoencoder"],
    "expression_encoder": ["napari_stmdit.encoders.linear_programs", "LinearProgramEncoder"],
    "morphology_encoder": ["napari_stmdit.encoders.small_conv", "SmallConvEncoder"],
}
FILE_LIMIT = 16 * 2**20


def export_checkpoint(config: TrainingConfig, folder: Path | None = None) -> Path:
    """Write the checkpoint folder of a finished (or running) training and return it.

    The folder is written beside its place and then moved there, so that a reader never meets half a checkpoint.

    Raises
    ------
    CheckpointError
        A stage has not been trained yet, or a file is larger than 16 MB.
    """
    target = folder or config.export or config.output / "checkpoint"
    draft = target.with_name(target.name + ".writing")
    shutil.rmtree(draft, ignore_errors=True)
    cache = load_cache(config)
    vae = load_autoencoder(config)
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    vae.half().save_pretrained(draft / "vae")
    load_transformer_average(config).bfloat16().save_pretrained(draft / "transformer")
    make_scheduler(config).save_pretrained(draft / "scheduler")
    expression = LinearProgramEncoder.load(encoder_folder(config, "expression"))
    expression.save(draft / "expression_encoder")
    SmallConvEncoder.load(encoder_folder(config, "morphology")).save(draft / "morphology_encoder")
    _write_profiles(config, expression, draft)
    card = make_card(config, expression.genes)
    (draft / "stmdit.json").write_text(card.model_dump_json(indent=1) + "\n")
    (draft / "model_index.json").write_text(json.dumps(_index(make_scheduler(config)), indent=1) + "\n")
    (draft / "README.md").write_text(model_card(config, card, _reached(config)))
    large = [file for file in draft.rglob("*") if file.is_file() and file.stat().st_size > FILE_LIMIT]
    if large:
        raise CheckpointError(
            f"{large[0].name} is {large[0].stat().st_size / 2**20:.1f} MB; at most 16 MB fit: train a smaller model."
        )
    for file in draft.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)
    return target


def make_card(config: TrainingConfig, genes: tuple[str, ...]) -> CheckpointCard:
    """Return the card: the config's words and numbers, the genes, the profiles."""
    from ..types import hash_genes

    fields = {key: value for key, value in config.card.items() if key in CheckpointCard.model_fields}
    fields.setdefault("guidance", Guidance(expression=2.0, morphology=2.0, rule="nested_morphology_first"))
    fields.setdefault("steps", 20)
    for words in ("training_data", "licence", "limits"):
        fields.setdefault(words, "not stated in the training config")
    return CheckpointCard(
        name=config.name,
        patch_px=config.patch_px,
        patch_mpp=config.patch_mpp,
        genes=genes,
        gene_hash=hash_genes(genes),
        profiles=tuple(REGION_MARKERS),
        **fields,
    )


def _reached(config: TrainingConfig) -> dict[str, int]:
    """Return the steps that each phase has really taken."""
    files = {"autoencoder": "autoencoder.pt", "decoder": "autoencoder_decoder.pt", "diffusion": "diffusion.pt"}
    states = {phase: load_state(config.output / name) for phase, name in files.items()}
    return {phase: 0 if state is None else int(state["step"]) for phase, state in states.items()}


def _index(scheduler: Any) -> dict[str, Any]:
    head = {
        "_class_name": ["napari_stmdit.model.pipeline", "STMDiTPipeline"],
        "_diffusers_version": diffusers.__version__,
    }
    return head | INDEX | {"scheduler": ["diffusers", type(scheduler).__name__]}


def _write_profiles(config: TrainingConfig, expression: LinearProgramEncoder, folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {}
    for name, (mean, spread) in region_profiles(open_sampler(config).sections, expression.genes).items():
        arrays[f"{name}.mean"] = np.ascontiguousarray(mean, dtype=np.float32)
        arrays[f"{name}.spread"] = np.ascontiguousarray(spread, dtype=np.float32)
    save_file(arrays, folder / "profiles.safetensors")
