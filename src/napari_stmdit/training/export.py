"""The export stage: the checkpoint folder of a training, with its map from expression to morphology."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from ..downloads.places import WITHIN_PACKAGE, Reference, find_reference
from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.morphology_map import MorphologyMap
from ..encoders.small_conv import SmallConvEncoder
from ..errors import CheckpointError, StoreError
from ..model.folder import MORPHOLOGY_MAP, PROFILES, CheckpointFolder, map_folder, read_folder
from ..model.reading import read_settings
from ..model.zoo import REFERENCE_FILE
from ..storage.atomic import Work, write_json, write_text
from ..storage.fingerprint import of_file
from ..synthesis.counterfactual import fitted_map
from ..types import Genes, Section
from .autoencoder import load_autoencoder
from .cards import keeps_scheduler, make_card, make_scheduler, model_card, steps_taken, training_record
from .config import Look, TrainingConfig
from .diffusion import load_transformer_average
from .latents import encoder_folder, load_cache
from .parallel import choose_compute
from .programs import REGION_LOOKS, REGION_MARKERS, RegionProfile, region_profiles
from .sections import open_sections, source_sections
from .start import KEPT, StartRecord, fits_expression, open_start, record_start, starting_sources

INDEX = {
    "transformer": ["napari_stmdit.model.transformer", "STMDiTTransformer2D"],
    "vae": ["napari_stmdit.model.autoencoder", "StmditAutoencoder"],
    "expression_encoder": ["napari_stmdit.encoders.linear_programs", "LinearProgramEncoder"],
    "morphology_encoder": ["napari_stmdit.encoders.small_conv", "SmallConvEncoder"],
}
MAP_ENTRY = [MorphologyMap.__module__, MorphologyMap.__name__]
"""Entry of the map in ``model_index.json``."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_PACKAGED_BYTES = 16 * 2**20
"""Largest file of a bundled checkpoint."""
PACKAGE = Path(__file__).resolve().parents[1]
_WORK_FILES = re.compile(r"encoders|pixels|samples|tensorboard|training_id|.*\.(pt|json|jsonl)")
"""Names of the files that a training writes into its output folder."""
_Parts = tuple[tuple[str, ...], dict[str, RegionProfile | None], dict[str, Any]]
_REMEDY = "give another folder as 'export', or move away what is there"


def export_checkpoint(config: TrainingConfig, folder: Path | None = None) -> Path:
    """Write the checkpoint folder of a finished or running training and return it.

    A training that started from a checkpoint copies everything but the transformer from it; the scheduler, too, unless the config's card
    names a solver or a shift. The map from expression to morphology is fitted on the training sections unless that checkpoint has one and its
    encoders are kept. The folder is written beside its place and moved there, and replaces only an unchanged earlier export of this training.

    Raises
    ------
    CheckpointError
        A stage has not been trained yet, the checkpoint it started from has changed, or a file of a bundled checkpoint is
        larger than 16 MB.
    StoreError
        Something that this training did not make is in the way.
    """
    target = check_target(config, folder)
    started = record_start(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _work_of(config, make=True).replacing(target) as draft:
        _write(config, draft, target, started)
    return target


def check_target(config: TrainingConfig, folder: Path | None = None) -> Path:
    """Return the folder of the checkpoint to write.

    Raises StoreError where it holds something that this training did not export, or is also the folder of the work files.
    """
    target = folder or config.export or config.output / "checkpoint"
    inside = target.relative_to(config.output).parts if target.is_relative_to(config.output) else ()
    if config.output.is_relative_to(target) or (inside and _WORK_FILES.fullmatch(inside[0])):
        raise StoreError(
            f"the checkpoint cannot be written to {target}: it is where the work files in {config.output} are; {_REMEDY}"
        )
    _work_of(config).check(target)
    return target


def _work_of(config: TrainingConfig, *, make: bool = False) -> Work:
    """Return the signature of a training's checkpoint: a random number that lies among its work files."""
    path = config.output / "training_id"
    identity = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    if identity is None and make:
        identity = uuid.uuid4().hex
        config.output.mkdir(parents=True, exist_ok=True)
        write_text(path, identity + "\n", new=True)
    return Work(identity, f"the training in {config.output}", _REMEDY)


def _write(config: TrainingConfig, draft: Path, target: Path, started: StartRecord | None) -> None:
    if started is None:
        genes, profiles, index = _write_own_parts(config, draft)
    else:
        genes, profiles, index = _copy_kept_parts(config, draft)
    if config.trains_decoder_alone:
        shutil.copytree(open_start(config).path / "transformer", draft / "transformer")
    else:
        transformer = load_transformer_average(config)
        dtype = torch.bfloat16 if started is None else _dtype_of(open_start(config).path / "transformer")
        torch.nn.Module.to(transformer, dtype=dtype)  # diffusers' own warns of modules to be kept in float32
        transformer.save_pretrained(draft / "transformer")
    card = make_card(config, genes, tuple(profiles), started)
    (draft / "stmdit.json").write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_json(draft / "model_index.json", index)
    follows, record = None, training_record(config, started)
    if "expression" in card.conditions:
        follows = write_map(config, draft)  # by the encoders as they are written
        write_json(draft / "model_index.json", {**index, MORPHOLOGY_MAP: MAP_ENTRY})
        record |= {MORPHOLOGY_MAP: follows.facts()}
    found = {name: profile.found for name, profile in profiles.items() if profile is not None}
    if found:
        record |= {"profiles": found}
    write_json(draft / "training.json", record)
    words = model_card(config, card, steps_taken(config), started, follows, found)
    (draft / "README.md").write_text(words, encoding="utf-8")
    _check_sizes(draft, target)
    for file in draft.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone


def _write_own_parts(config: TrainingConfig, draft: Path) -> _Parts:
    """Write autoencoder, encoders, scheduler and profiles as trained; return genes, profiles and the index."""
    cache, vae = load_cache(config), load_autoencoder(config)
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    vae.half().save_pretrained(draft / "vae")
    scheduler = make_scheduler(config)
    scheduler.save_pretrained(draft / "scheduler")
    SmallConvEncoder.load(encoder_folder(config, "morphology")).save(draft / "morphology_encoder")
    index = _head() | INDEX | {"scheduler": ["diffusers", type(scheduler).__name__]}
    if config.pictures:
        index.pop("expression_encoder")
        return (), {}, index
    expression = LinearProgramEncoder.load(encoder_folder(config, "expression"))
    expression.save(draft / "expression_encoder")
    return expression.genes, {**write_profiles(config, expression, draft)}, index


def _copy_kept_parts(config: TrainingConfig, draft: Path) -> _Parts:
    """Copy what was not trained; return genes, profiles, None for one that was copied, and the index."""
    start = open_start(config)
    for name in KEPT:
        if name in start.components:
            shutil.copytree(start.components[name].path, draft / name)
    if start.card.profiles and not fits_expression(config):
        shutil.copy(start.path / PROFILES, draft / PROFILES)
    if config.autoencoder.refine:
        shutil.rmtree(draft / "vae")
        load_autoencoder(config).half().save_pretrained(draft / "vae")
    if config.vae_of is not None and (draft / "vae" / WEIGHTS).is_file():
        _share_vae(config.vae_of, draft / "vae")
    genes: tuple[str, ...] = start.card.genes
    profiles: dict[str, RegionProfile | None] = dict.fromkeys(start.card.profiles)
    index = {**read_settings(start.path / "model_index.json"), **_head()}
    if fits_expression(config):
        expression = LinearProgramEncoder.load(encoder_folder(config, "expression"))
        shutil.rmtree(draft / "expression_encoder", ignore_errors=True)
        expression.save(draft / "expression_encoder")
        genes, profiles = expression.genes, {**write_profiles(config, expression, draft)}
        index["expression_encoder"] = INDEX["expression_encoder"]
    index.pop(MORPHOLOGY_MAP, None)  # written, or copied, when all else is there
    if not keeps_scheduler(config):
        scheduler = make_scheduler(config)
        shutil.rmtree(draft / "scheduler")
        scheduler.save_pretrained(draft / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
    return genes, profiles, index


def _share_vae(holder: str, own: Path) -> None:
    """Replace an autoencoder's weights by a reference to a bundled checkpoint's; raises CheckpointError where they differ."""
    reference = Reference(
        name=f"{holder.replace('_', '-')}-vae",
        source=f"{WITHIN_PACKAGE}{holder}",
        subfolder="vae",
        files=(WEIGHTS,),
        sha256={WEIGHTS: of_file(own / WEIGHTS)},
        licence="as the package",
    )
    place = find_reference(reference)
    if place is None or of_file(place / WEIGHTS) != reference.sha256[WEIGHTS]:
        there = "is not there" if place is None else "is another one"
        raise CheckpointError(
            f"'vae_of' names {holder!r} for the autoencoder, but the one in the package's data {there}; leave 'vae_of' out, or export that checkpoint first."
        )
    (own / WEIGHTS).unlink()
    write_json(own / REFERENCE_FILE, reference.model_dump(mode="json"))


def _head() -> dict[str, Any]:
    return {
        "_class_name": ["napari_stmdit.model.pipeline", "STMDiTPipeline"],
        "_diffusers_version": diffusers.__version__,
    }


def _dtype_of(folder: Path) -> torch.dtype:
    """Return the data type of a transformer's stored weights; float32 where its files do not say."""
    from safetensors import safe_open

    file = folder / WEIGHTS
    if not file.is_file():
        return torch.float32
    with safe_open(file, framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kinds.pop() if len(kinds) == 1 else "", torch.float32)


def write_profiles(config: TrainingConfig, encoder: Any, folder: Path) -> dict[str, RegionProfile]:
    """Measure the tissue profiles on the training sections, write ``profiles.safetensors`` into a checkpoint's folder, and return them."""
    from safetensors.numpy import save_file

    settings, arrays = config.expression, {}
    looks: Mapping[str, Mapping[Look, tuple[float, float]]] = {} if settings.regions else REGION_LOOKS
    if settings.looks is not None:
        looks = settings.looks
    profiles = region_profiles(
        open_sections(config, "train"), encoder, settings.regions or REGION_MARKERS, looks, config.patch_px
    )
    for name, profile in profiles.items():
        arrays[f"{name}.mean"] = np.ascontiguousarray(profile.mean, dtype=np.float32)
        arrays[f"{name}.spread"] = np.ascontiguousarray(profile.spread, dtype=np.float32)
        arrays[f"{name}.depth"] = np.array([profile.depth], dtype=np.float32)
        arrays[f"{name}.encoding"] = np.ascontiguousarray(profile.encoding, dtype=np.float32)
    if arrays:
        save_file(arrays, folder / PROFILES)
    return profiles


def _check_sizes(draft: Path, target: Path) -> None:
    if PACKAGE not in target.resolve().parents:
        return
    large = [file for file in draft.rglob("*") if file.is_file() and file.stat().st_size > MAX_PACKAGED_BYTES]
    if large:
        raise CheckpointError(
            f"{large[0].name} is {large[0].stat().st_size / 2**20:.1f} MB; at most 16 MB fit into the package: train a smaller model."
        )


@dataclass(frozen=True)
class TrainedEncoders:
    """Encoders of a checkpoint folder, as `fitted_map` takes them."""

    expression: Any
    morphology: Any

    def encode_expression(
        self, counts: Any, genes: Genes, spots: Sequence[str] = (), depth: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encode counts (n, g)."""
        return np.asarray(self.expression.encode(counts, genes, depth), dtype=np.float32)

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode crops (n, patch_px, patch_px, 3)."""
        return np.asarray(self.morphology.encode(patches), dtype=np.float32)


def encoders_of(folder: CheckpointFolder, device: torch.device) -> TrainedEncoders:
    """Open a checkpoint's encoders; raises CheckpointError where one is not on this computer."""
    return TrainedEncoders(*starting_sources(folder, device))


def fit_map(folder: CheckpointFolder, sections: Sequence[Section], device: torch.device) -> MorphologyMap:
    """Fit a checkpoint's map on sections; raises CheckpointError where one of its encoders is not on this computer."""
    return fitted_map(sections, folder.card, encoders_of(folder, device))


def write_map(config: TrainingConfig, draft: Path) -> MorphologyMap:
    """Write the map into a checkpoint that is otherwise complete, and return it.

    The map of the checkpoint to start from is kept where its expression encoder is.
    """
    place = draft / MORPHOLOGY_MAP
    kept = map_to_keep(config)
    if kept is not None:
        shutil.copytree(kept, place)
        return MorphologyMap.load(place)
    found = fit_map(read_folder(draft), source_sections(config, "train"), torch.device(choose_compute(config).device))
    found.save(place)
    return found


def map_to_keep(config: TrainingConfig) -> Path | None:
    """Return the folder of the map to keep from the checkpoint to start from; None where one is to be fitted."""
    anew = config.start is None or config.expression.refit or config.expression.anew
    return None if anew else map_folder(open_start(config))
