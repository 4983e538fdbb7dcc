"""The checkpoint that a training starts from: its parts, its demands on a config, and its record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, RequestError
from ..model.autoencoder import FACTOR, StmditAutoencoder
from ..model.folder import CheckpointFolder, load_component, read_folder
from ..model.reading import read_settings
from ..storage.fingerprint import of_folder
from .config import TrainingConfig
from .objective import FLOW, Objective, objective_of
from .state import load_record, save_record

if TYPE_CHECKING:
    from ..model.transformer import STMDiTTransformer2D


KEPT = ("vae", "scheduler", "expression_encoder", "morphology_encoder", "preview_vae")
"""Parts that a training keeps, since they define latents and conditions."""
PROGRAMS = "LinearProgramEncoder"
"""Kind of expression encoder that can be fitted here."""
WINDOWED = "SmallConvEncoder"
"""Kind of morphology encoder that can encode a window of a crop."""
_ELSEWHERE = ", whose weights are kept elsewhere,"


@dataclass(frozen=True)
class StartRecord:
    """Record of the checkpoint that a training started from.

    ``sha256`` is that of its folder, ``parts`` those of the kept sub-folders; ``training_data``, ``licence`` and ``limits`` are from
    its card, and ``training`` is its ``training.json``, empty where it has none.
    """

    name: str
    sha256: str
    parts: dict[str, str]
    training_data: str
    licence: str
    limits: str
    training: dict[str, Any]


def starting_folder(config: TrainingConfig) -> Path:
    """Return the folder of the checkpoint to start from; raises CheckpointError where it is neither a known name nor a folder."""
    from ..assemble import list_checkpoints

    assert config.start is not None
    known = {entry.name: entry.path for entry in list_checkpoints()}
    folder = known.get(config.start, Path(config.start))
    if not folder.is_dir():
        raise CheckpointError(
            f"'start' names the checkpoint {config.start!r}, which is neither a folder nor one of {', '.join(known)}."
        )
    return folder


def open_start(config: TrainingConfig) -> CheckpointFolder:
    """Read the folder of the checkpoint to start from; raises CheckpointError where it is incomplete."""
    return read_folder(starting_folder(config))


def apply_start(config: TrainingConfig) -> TrainingConfig:
    """Fill in settings that the checkpoint to start from decides.

    Raises
    ------
    CheckpointError
        The checkpoint is missing, incomplete, or of a kind that training cannot start from.
    RequestError
        The config contradicts it; names every fault with its place.
    """
    if config.start is None:
        return _fit_windows(config)
    folder = open_start(config)
    _check_kind(folder, config.expression.anew)
    card, faults, update = folder.card, list[tuple[str, str]](), dict[str, Any]()
    learns = config.expression.anew or "expression" not in card.conditions
    for key in ("patch_px", "patch_mpp"):
        own, of_card = getattr(config, key), getattr(card, key)
        if learns and key == "patch_mpp" and key in config.model_fields_set:
            continue  # no expression was learned at one scale
        if key not in config.model_fields_set:
            update[key] = of_card
        elif own != of_card:
            faults.append((key, f"is {own}, but the checkpoint {card.name!r} has {of_card}; leave it out"))
    faults += _unfit(config, folder)
    settings = read_settings(folder.components["transformer"].path / "config.json")
    for key, value in config.transformer.items():
        grown = learns and key.startswith("expression_")
        if settings.get(key) != value and not grown:
            faults.append(
                (f"transformer.{key}", f"is {value}, but {card.name!r} has {settings.get(key)}; leave it out")
            )
    if folder.components["morphology_encoder"].kind != WINDOWED and config.diffusion.small_fraction:
        if "small_fraction" in config.diffusion.model_fields_set:
            kind = folder.components["morphology_encoder"].kind
            faults.append(("diffusion.small_fraction", f"must be 0: {kind} cannot describe a part of a crop"))
        update["diffusion"] = config.diffusion.model_copy(update={"small_fraction": 0.0})
    objective = objective_of(load_component(folder, "scheduler"))
    if objective.kind != "flow":
        faults += [
            (f"card.{key}", f"{card.name!r} predicts {objective.kind}, its scheduler is kept; leave it out")
            for key in ("solver", "shift")
            if key in config.card
        ]
    if faults:
        raise RequestError(faults)
    return _fit_windows(config.model_copy(update=update))


def learns_expression(config: TrainingConfig) -> bool:
    """Return whether expression is new to the checkpoint to start from: it has morphology alone, or its genes are replaced."""
    if config.start is None:
        return False
    return config.expression.anew or "expression" not in open_start(config).card.conditions


def fits_expression(config: TrainingConfig) -> bool:
    """Return whether the expression encoder is fitted here rather than kept."""
    return config.start is None or config.expression.refit or learns_expression(config)


def _unfit(config: TrainingConfig, folder: CheckpointFolder) -> list[tuple[str, str]]:
    """Return which parts are of a kind that cannot be trained on as asked."""
    name, faults = folder.card.name, []
    kinds = {part: component.kind for part, component in folder.components.items()}
    expression = kinds.get("expression_encoder", "new one")
    if config.expression.refit and expression != PROGRAMS:
        faults.append(("expression.refit", f"the encoder of {name!r} is a {expression}, not a {PROGRAMS}"))
    if config.autoencoder.refine and kinds["vae"] != StmditAutoencoder.__name__:
        faults.append(("autoencoder.refine", f"the VAE of {name!r} is a {kinds['vae']}, not one that was trained here"))
    return faults


def _fit_windows(config: TrainingConfig) -> TrainingConfig:
    """Reduce the small crops to fit into whole ones."""
    cells, small = config.patch_px // FACTOR, config.diffusion.small_cells
    if small <= cells:
        return config
    if "small_cells" in config.diffusion.model_fields_set:
        fault = f"is {small}, but a patch of {config.patch_px} px has {cells} latent cells along a side"
        raise RequestError([("diffusion.small_cells", fault)])
    return config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"small_cells": cells})})


def _check_kind(folder: CheckpointFolder, anew: bool) -> None:
    name = folder.card.name
    if set(folder.card.conditions) == {"morphology"} or (anew and "morphology" in folder.card.conditions):
        _check_can_learn_expression(folder)
        return
    if set(folder.card.conditions) != {"expression", "morphology"}:
        raise CheckpointError(
            f"The checkpoint {name!r} is conditioned on {' and '.join(folder.card.conditions)} alone; training goes on from checkpoints "
            "that take expression and morphology, or morphology alone."
        )
    lacking = [part for part in ("expression_encoder", "morphology_encoder") if part not in folder.components]
    if lacking:
        raise CheckpointError(
            f"The checkpoint {name!r} comes without {' and '.join(lacking)}, and embeddings computed elsewhere cannot be trained on: a "
            "crop lies anywhere on tissue. Start from a checkpoint that has its encoders."
        )
    expression = read_settings(folder.components["expression_encoder"].path / "config.json")
    if expression.get("output") == "tokens":
        raise CheckpointError(
            f"The expression encoder of {name!r} gives a vector for every gene, a megabyte a spot; training goes on from checkpoints with one "
            "vector a spot."
        )


def _check_can_learn_expression(folder: CheckpointFolder) -> None:
    """Refuse a checkpoint without flow or windowed encoder: new programs are ranked by how they predict that encoder's components."""
    encoder = folder.components.get("morphology_encoder")
    if encoder is None or encoder.kind != WINDOWED or objective_of(load_component(folder, "scheduler")).kind != "flow":
        raise CheckpointError(
            f"New expression programs cannot be learned with the checkpoint {folder.card.name!r}: only with one that predicts flow and has a {WINDOWED}. "
            "Start from another one."
        )


def starting_vae(folder: CheckpointFolder) -> Any:
    """Load its VAE, in float32 on the CPU."""
    return load_component(folder, "vae").eval()


def starting_transformer(folder: CheckpointFolder) -> STMDiTTransformer2D:
    """Load its transformer, in float32 on the CPU."""
    model: STMDiTTransformer2D = load_component(folder, "transformer")
    return torch.nn.Module.float(model)  # diffusers' own warns of modules to be kept in float32


def starting_objective(config: TrainingConfig) -> Objective:
    """Return the prediction target: of the checkpoint to start from, else the velocity of a rectified flow."""
    if config.start is None:
        return FLOW
    return objective_of(load_component(open_start(config), "scheduler"))


def starting_sources(folder: CheckpointFolder, device: torch.device) -> tuple[Any, Any]:
    """Return its encoders of expression and of morphology, large ones on a device.

    Raises CheckpointError where one is missing or damaged; the message says where to get it.
    """
    from ..encoder_sources import MissingEncoder, open_sources

    settings = read_settings(folder.components["transformer"].path / "config.json")
    sources = open_sources(folder, settings, {}, device)
    for source in sources.values():
        if isinstance(source, MissingEncoder):
            raise source.error
    return sources["expression"], sources["morphology"]


def latent_statistics_of(vae: Any, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and scale (channels,) that normalise cached latents: identity for diffusers' VAEs, whose latents are normalised."""
    if isinstance(vae, StmditAutoencoder):
        return torch.tensor(vae._mean), torch.tensor(vae._std)
    return torch.zeros(channels), torch.ones(channels)


def record_start(config: TrainingConfig) -> StartRecord | None:
    """Record the checkpoint to start from, once; None where there is none.

    Raises CheckpointError where the work files belong to a training from another checkpoint.
    """
    if config.start is None:
        return None
    folder = open_start(config)
    parts = {name: of_folder(folder.components[name].path) for name in KEPT if name in folder.components}
    parts |= {f"{name}{_ELSEWHERE}": digest for name, digest in folder.elsewhere.items()}
    path = config.output / "started_from.json"
    record = load_record(path)
    if record is not None:
        noted = StartRecord(**record)
        # earlier versions noted no weights that are kept elsewhere
        known = {name for name in parts if name in noted.parts or not name.endswith(_ELSEWHERE)}
        changed = sorted(name for name in {*noted.parts, *known} if noted.parts.get(name) != parts.get(name))
        if changed:
            raise CheckpointError(
                f"The work files in {config.output} belong to a training that started from {noted.name!r} (SHA-256 {noted.sha256[:12]}...), "
                f"but the {', '.join(changed)} of {config.start!r} differ from its. Give another output folder, or that checkpoint."
            )
        return noted
    own = folder.path / "training.json"
    noted = StartRecord(
        name=folder.card.name,
        sha256=folder.sha256,
        parts=parts,
        **{key: getattr(folder.card, key) for key in ("training_data", "licence", "limits")},
        training=read_settings(own) if own.is_file() else {},
    )
    save_record(path, vars(noted))
    return noted
