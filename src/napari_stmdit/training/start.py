"""What a transformer predicts, and what it sees while it learns to: by its checkpoint's scheduler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError, RequestError, StmditError
from ..expression.genes import match_genes
from ..intent import CheckpointCard
from ..model.autoencoder import FACTOR, StmditAutoencoder
from ..model.folder import CheckpointFolder, load_component, read_folder
from ..model.reading import read_settings
from ..storage.fingerprint import of_folder
from ..tissue.open import synthesis_fault
from ..types import Section
from .config import Source, TrainingConfig
from .data import CropSampler, TrainingSection, load_training_section
from .sections import open_source
from .state import save_text

if TYPE_CHECKING:
    from ..model.transformer import STMDiTTransformer2D


Kind = Literal["flow", "epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Objective:
    """A kind of prediction.

    With clean latents x, noise n and a noise level between 0 and 1, the transformer sees and is to predict:

    - flow: (1 - level) x + level n; the velocity n - x (rectified flow: Liu et al. 2023, arXiv 2209.03003)
    - otherwise a x + s n with a^2 + s^2 = 1 of the time t = floor(level * times) of the checkpoint's noise schedule (Ho et al. 2020,
      arXiv 2006.11239); the noise n (epsilon), a n - s x (v_prediction: Salimans & Ho 2022, arXiv 2202.00512) or x (sample).

    Attributes
    ----------
    kind
        Of the prediction.
    times
        The transformer's time is the level times this; whole numbers below it where there is a schedule.
    signal
        (times,) a of each time; None for flow.
    """

    kind: Kind = "flow"
    times: int = 1000
    signal: Tensor | None = None

    def pose(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is seen (B, C, h, w), its time (B,) and what is to be predicted (B, C, h, w), for levels (B,)."""
        if self.signal is None:
            weight = level.view(-1, 1, 1, 1)
            return (1 - weight) * x + weight * noise, level * self.times, noise - x
        time = (level * self.times).long().clamp(0, self.times - 1)
        a = self.signal.to(x.device)[time].view(-1, 1, 1, 1)
        s = (1 - a.square()).sqrt()
        target = {"epsilon": noise, "v_prediction": a * noise - s * x, "sample": x}[self.kind]
        return a * x + s * noise, time.float(), target

    def draw_levels(self, count: int, shift: float, share: float, rng: torch.Generator) -> Tensor:
        """Return (count,) noise levels: for flow logit-normal, with a schedule every time equally often.

        The odds of a ``share`` of the former are multiplied by ``shift``:
        Esser et al. 2024, arXiv 2403.03206. The mean of n cells stays visible until the noise level is about 1 - 1 / sqrt(n): what
        a condition has to say of the whole patch is learned there or nowhere.
        """
        if self.kind == "flow":
            odds, shifted = torch.randn(count, generator=rng), torch.rand(count, generator=rng) < share
            return torch.sigmoid(odds + shifted * torch.tensor(shift).log())
        return torch.rand(count, generator=rng)

    def even_levels(self, count: int, shift: float) -> Tensor:
        """Return (count,) rising noise levels for a comparison, evenly spaced; for flow with odds times ``shift``."""
        level = (torch.arange(count) + 0.5) / count
        return shift * level / (1 + (shift - 1) * level) if self.kind == "flow" else level


def objective_of(scheduler: Any) -> Objective:
    """Return what the transformer of a scheduler predicts.

    Raises
    ------
    CheckpointError
        The scheduler's prediction type is unknown.
    """
    settings = scheduler.config
    kind = settings.get("prediction_type", "flow_prediction")  # flow schedulers know only one and do not name it
    times = int(settings.num_train_timesteps)
    if kind == "flow_prediction" or settings.get("use_flow_sigmas"):
        return Objective("flow", times)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise CheckpointError(
            f"{type(scheduler).__name__} predicts {kind!r}; training goes on with epsilon, v_prediction, sample or flow_prediction."
        )
    return Objective(kind, times, scheduler.alphas_cumprod.float().sqrt())


# The checkpoint that a training goes on from: its parts, what it demands of a config, and the record of it.


KEPT = ("vae", "scheduler", "expression_encoder", "morphology_encoder", "preview_vae")
"""What a training does not touch; the parts that fix what latents and conditions mean."""
PROGRAMS = "LinearProgramEncoder"
"""The expression encoder that can be fitted here."""
WINDOWED = "SmallConvEncoder"
"""The morphology encoder that can describe a window of a crop on its own."""
_ELSEWHERE = ", whose weights are kept elsewhere,"


@dataclass(frozen=True)
class Started:
    """What is recorded of the checkpoint that a training went on from.

    Attributes
    ----------
    name, sha256
        Its name, and the hash of its folder.
    parts
        Part -> hash of its sub-folder, of those that are kept.
    training_data, licence, limits
        The words of its card.
    training
        What its own ``training.json`` says of how it was made; empty where it has none.
    """

    name: str
    sha256: str
    parts: dict[str, str]
    training_data: str
    licence: str
    limits: str
    training: dict[str, Any]


def starting_folder(config: TrainingConfig) -> Path:
    """Return the folder of the checkpoint to start from.

    Raises
    ------
    CheckpointError
        It is neither a known name nor a folder.
    """
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


def settle(config: TrainingConfig) -> TrainingConfig:
    """Fill what the checkpoint to start from decides, and hold the config against it.

    Raises
    ------
    CheckpointError
        The checkpoint is not there, incomplete, or of a kind that training cannot go on from.
    RequestError
        The config contradicts it; names every fault with its place.
    """
    if config.start is None:
        return _fit_windows(config)
    folder = open_start(config)
    _check_kind(folder)
    card, faults, update = folder.card, list[tuple[str, str]](), dict[str, Any]()
    for key in ("patch_px", "patch_mpp"):
        own, of_card = getattr(config, key), getattr(card, key)
        if key not in config.model_fields_set:
            update[key] = of_card
        elif own != of_card:
            faults.append((key, f"is {own}, but the checkpoint {card.name!r} has {of_card}; leave it out"))
    faults += _unfit(config, folder)
    settings = read_settings(folder.components["transformer"].path / "config.json")
    for key, value in config.transformer.items():
        if settings.get(key) != value:
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


def _unfit(config: TrainingConfig, folder: CheckpointFolder) -> list[tuple[str, str]]:
    """Say which parts cannot be trained on as asked, being of another kind."""
    name, faults = folder.card.name, []
    kinds = {part: component.kind for part, component in folder.components.items()}
    if config.expression.refit and kinds["expression_encoder"] != PROGRAMS:
        faults.append(
            ("expression.refit", f"the encoder of {name!r} is a {kinds['expression_encoder']}, not a {PROGRAMS}")
        )
    if config.autoencoder.refine and kinds["vae"] != StmditAutoencoder.__name__:
        faults.append(("autoencoder.refine", f"the VAE of {name!r} is a {kinds['vae']}, not one that was trained here"))
    return faults


def _fit_windows(config: TrainingConfig) -> TrainingConfig:
    """Small crops must fit into whole ones."""
    cells, small = config.patch_px // FACTOR, config.diffusion.small_cells
    if small <= cells:
        return config
    if "small_cells" in config.diffusion.model_fields_set:
        fault = f"is {small}, but a patch of {config.patch_px} px has {cells} latent cells along a side"
        raise RequestError([("diffusion.small_cells", fault)])
    return config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"small_cells": cells})})


def _check_kind(folder: CheckpointFolder) -> None:
    name = folder.card.name
    if set(folder.card.conditions) != {"expression", "morphology"}:
        raise CheckpointError(
            f"The checkpoint {name!r} is conditioned on {' and '.join(folder.card.conditions)} alone; training goes on from checkpoints "
            "that take expression and morphology."
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


# ------------------------------------------------------------------------------------------------- its parts


def starting_vae(folder: CheckpointFolder) -> Any:
    """Load its VAE, in float32 on the CPU."""
    return load_component(folder, "vae").eval()


def starting_transformer(folder: CheckpointFolder) -> STMDiTTransformer2D:
    """Load its transformer, in float32 on the CPU."""
    model: STMDiTTransformer2D = load_component(folder, "transformer")
    return torch.nn.Module.float(model)  # diffusers' own warns of modules to be kept in float32


def starting_objective(config: TrainingConfig) -> Objective:
    """Return what the transformer is to predict: of the checkpoint to start from, else the velocity of a rectified flow."""
    if config.start is None:
        return Objective()
    return objective_of(load_component(open_start(config), "scheduler"))


def starting_sources(folder: CheckpointFolder, device: torch.device) -> tuple[Any, Any]:
    """Return its encoders of expression and of morphology, large ones on a device.

    Raises
    ------
    CheckpointError
        One is not on this computer, or damaged; the message says where it is to be had.
    """
    from ..encoder_sources import MissingEncoder, open_sources

    settings = read_settings(folder.components["transformer"].path / "config.json")
    sources = open_sources(folder, settings, {}, device)
    for source in sources.values():
        if isinstance(source, MissingEncoder):
            raise source.error
    return sources["expression"], sources["morphology"]


def latent_statistics_of(vae: Any, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and scale (channels,) that cached latents are normalised by: those of diffusers' VAEs are normalised already."""
    if isinstance(vae, StmditAutoencoder):
        return torch.tensor(vae._mean), torch.tensor(vae._std)
    return torch.zeros(channels), torch.ones(channels)


# ------------------------------------------------------------------------------------------------- the record


def record_path(config: TrainingConfig) -> Path:
    """Return the file, among the work files, that records the checkpoint that a training went on from."""
    return config.output / "started_from.json"


def note_start(config: TrainingConfig) -> Started | None:
    """Record the checkpoint to start from, once; None where there is none.

    Raises
    ------
    CheckpointError
        The work files belong to a training that went on from another one: what was cached with it cannot be used with this one.
    """
    if config.start is None:
        return None
    folder = open_start(config)
    parts = {name: of_folder(folder.components[name].path) for name in KEPT if name in folder.components}
    parts |= {f"{name}{_ELSEWHERE}": digest for name, digest in folder.elsewhere.items()}
    path = record_path(config)
    if path.is_file():
        noted = Started(**json.loads(path.read_text(encoding="utf-8")))
        known = {
            name for name in parts if name in noted.parts or not name.endswith(_ELSEWHERE)
        }  # earlier versions noted no such
        changed = sorted(name for name in {*noted.parts, *known} if noted.parts.get(name) != parts.get(name))
        if changed:
            raise CheckpointError(
                f"The work files in {config.output} belong to a training that went on from {noted.name!r} (SHA-256 {noted.sha256[:12]}...), "
                f"but the {', '.join(changed)} of {config.start!r} differ from its. Give another output folder, or that checkpoint."
            )
        return noted
    own = folder.path / "training.json"
    noted = Started(
        name=folder.card.name,
        sha256=folder.sha256,
        parts=parts,
        **{key: getattr(folder.card, key) for key in ("training_data", "licence", "limits")},
        training=read_settings(own) if own.is_file() else {},
    )
    save_text(path, json.dumps(vars(noted), indent=1))
    return noted


# Opening the sections of a training, all of them before anything is refused.


def open_sampler(config: TrainingConfig) -> CropSampler:
    """Open the training sections (never the held-out ones) for drawing crops; errors as for `open_sections`."""
    return CropSampler(open_sections(config, "train"), config.augmentation)


def open_sections(config: TrainingConfig, what: str) -> list[TrainingSection]:
    """Open the sections ``train`` or ``held_out`` of a config; those to train on with their pixels in a file that processes share.

    Raises
    ------
    RequestError
        Sections cannot be opened or used; names every fault with its place.
    """
    opened = source_sections(config, what)
    store: Path | None = config.output / "pixels" if what == "train" else None
    return [load_training_section(section, config.patch_mpp, store) for section in opened]


def source_sections(config: TrainingConfig, what: str) -> list[Section]:
    """Open the sections ``train`` or ``held_out`` of a config, their slides still lazy; errors as for `open_sections`."""
    sources: Sequence[Source] = getattr(config, what)
    card = None if config.start is None else open_start(config).card
    opened: list[Section] = []
    faults: list[tuple[str, str]] = []
    for number, source in enumerate(sources):
        try:
            section = open_source(source, config)
            found = section_faults(section, config, card)
        except StmditError as error:
            found = [str(error)]
        else:
            opened.append(section)
        faults += [(f"{what}[{number}] ({source.name})", fault) for fault in found]
    if faults:
        raise RequestError(faults)
    return opened


def section_faults(section: Section, config: TrainingConfig, card: CheckpointCard | None) -> list[str]:
    """Say why a section cannot be trained on, with the encoders of a checkpoint where a ``card`` is given."""
    faults = []
    unfit = synthesis_fault(section, config.patch_mpp)
    if unfit is not None:
        faults.append(unfit)
    elif section.image is not None and section.calibration.mpp is not None:
        zoom = section.calibration.mpp * section.image.pixel_size / config.patch_mpp
        height, width = (round(side * zoom) for side in section.image.shape)
        if min(height, width) < config.patch_px:
            faults.append(
                f"its image is {width} x {height} px at the scale of a patch, smaller than {config.patch_px} px"
            )
    if card is not None and card.genes and not config.allow_gene_mismatch:
        shared, needed = match_genes(card.genes, section.spots.genes).shared, needed_genes(card)
        if shared < needed:
            faults.append(
                f"it has {shared} of the {len(card.genes)} genes of checkpoint {card.name!r}, at least {needed} are needed; start from a "
                "checkpoint of this species and panel, or set allow_gene_mismatch: true to count missing genes as their training mean"
            )
    return faults


def needed_genes(card: CheckpointCard) -> int:
    """Return how many of a checkpoint's genes a section must have."""
    return ceil(card.minimum_gene_fraction * len(card.genes))
