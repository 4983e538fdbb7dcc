"""Conversion of foreign checkpoints to our folder: the transformer's weights, and references to what may not be redistributed.

Weights are streamed to safetensors. Joining tensors along their rows is joining their bytes, so stacked projections need no memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ...downloads.places import Reference
from ...errors import CheckpointError
from ...frozen import validated
from ...intent import DEFAULT_GUIDANCE, DEFAULT_STEPS, CheckpointCard, hash_genes
from ...storage.atomic import check_free, replacing, write_json
from ...text import shown
from ..base import ConfigMixin
from ..checkpoint import Opened, Settings, open_weights, skeleton
from ..reading import SETTING_SUFFIXES, WEIGHT_SUFFIXES
from ..zoo import COMPONENTS, REFERENCE_FILE, reference_of, zoo_entry
from .keys import KeyMapping, Stacked

_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(path: Path, tensors: Mapping[str, Stacked], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write floating-point tensors in their own precision; the file appears under its name only when it is whole.

    The format is public: the header's length (8 bytes, little endian), a JSON header with type, shape and place of each tensor, then
    the numbers. ``shapes`` are written, of the same size as the tensors' own.

    Raises
    ------
    CheckpointError
        A tensor is of another type.
    OSError
        The disk is full or not writable; nothing is left behind.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].parts[0].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        kinds = {part.dtype for part in tensors[name].parts}
        if len(kinds) != 1 or (kind := kinds.pop()) not in _CODES:
            raise CheckpointError(f"{name} is of the types {kinds}; weights are floating-point numbers of one type.")
        end = start + sum(part.numel() * part.element_size() for part in tensors[name].parts)
        header[name] = {"dtype": _CODES[kind], "shape": list(shapes[name]), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as draft, draft.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in tensors[name].parts:
                stream.write(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


MPP_CANDIDATES = {
    0.2148: "a patch of 256 px shows one 55 um Visium spot",
    0.3448: "scanned at 0.3448 um/px, the published resolution of the TuPro melanoma slides, and not resampled",
    0.5: "20x, as PixCell's training tiles: a patch of 256 px shows 128 um",
}
"""Plausible microns per pixel of a foreign checkpoint's patches, which no published file states."""

LATENT_FACTOR = 8
UNI_WIDTH = 1536
SD3_CHANNELS = 16
CANCER_FOUNDATION_WIDTHS = (256, 128)
WEIGHTS = "diffusion_pytorch_model.safetensors"

_LIMITS = (
    "Converted from a foreign checkpoint; its authors' model card says what it was trained on and what it must not be used for. Its "
    "images are synthetic and must be labelled so. For research; not for diagnosis."
)


@dataclass(frozen=True)
class Converted:
    """Converted folder, and the choices made where the files do not say."""

    path: Path
    card: CheckpointCard
    notes: tuple[str, ...]


def convert(
    weights_or_dir: str | Path,
    output: str | Path,
    *,
    patch_mpp: float | None,
    config: Settings = None,
    mapping: str | Path | KeyMapping | None = None,
    name: str | None = None,
    genes: tuple[str, ...] = (),
    sources: Mapping[str, str | Path] | None = None,
    licence: str | None = None,
    notes: Sequence[str] = (),
    on_stage: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write our checkpoint folder for a foreign transformer. Memory stays at about the size of its file.

    Parameters
    ----------
    weights_or_dir, config, mapping
        As for `napari_stmdit.load_transformer`.
    output
        The folder to make; it must not exist, or be empty.
    patch_mpp
        Microns per pixel of the patches it was trained on. Not in any published file, and never assumed.
    name
        Name of the checkpoint; that of the folder by default.
    genes
        Symbols that the expression encoder reads, in order; not needed for embeddings.
    sources
        Component (``vae``, ``expression_encoder``, ``morphology_encoder``) -> local folder, in place of the published one.
    licence
        Terms of the weights, for the card.
    notes
        What the caller chose; listed with what is chosen here.
    on_stage
        Called with the name of each stage.

    Raises
    ------
    CheckpointError
        The weights cannot be loaded, the scale is missing, or the folder exists; nothing is left behind.
    """
    source, target = Path(weights_or_dir), Path(output)
    check_free(target, "give a new folder", CheckpointError)
    on_stage("reading")
    opened = open_weights(source, config, mapping=mapping)
    values = opened.options.values
    if patch_mpp is None or not 0 < patch_mpp < 100:
        raise CheckpointError(mpp_question(values["sample_size"] * LATENT_FACTOR, patch_mpp))
    scheduler = scheduler_of(opened)
    chosen = [*notes, *opened.notes, *scheduler.notes]
    card = _card(opened, name or target.name, patch_mpp, genes, licence, chosen)
    references = _references(values, sources or {}, chosen)
    on_stage("checking")
    net = skeleton(opened)
    try:
        on_stage("writing")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as draft:
            for part in ("transformer", "scheduler", *references):
                (draft / part).mkdir(parents=True)
            ConfigMixin.save_config(net, draft / "transformer")
            shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
            write_safetensors(draft / "transformer" / WEIGHTS, opened.tensors, shapes)
            write_json(draft / "scheduler" / "scheduler_config.json", scheduler.config)
            for component, reference in references.items():
                write_json(draft / component / REFERENCE_FILE, reference.model_dump(mode="json"))
                write_json(draft / component / "config.json", _component_config(component, opened, genes))
            write_json(draft / "model_index.json", _index(scheduler.name, references))
            write_json(draft / "stmdit.json", card.model_dump(mode="json"))
            (draft / "README.md").write_text(_model_card(card, opened, references, chosen), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error}. Nothing was left behind.") from None
    return Converted(target, card, tuple(chosen))


# The names that training codes use for a schedule -> that of diffusers.
_BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squaredcos_cap_v2",
    "cosine": "squaredcos_cap_v2",
}
_PIXCELL_NOISE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}
"""PixCell's (and PixArt's) schedule, on which STMDiT builds."""


@dataclass(frozen=True)
class FoundScheduler:
    """Scheduler: class name in diffusers, configuration, and what was taken from publications."""

    name: str
    config: dict[str, Any]
    notes: tuple[str, ...]


def scheduler_of(opened: Opened) -> FoundScheduler:
    """Return the scheduler of an opened transformer; raises CheckpointError where objective or schedule is unknown.

    Noise prediction gets the solver PixCell samples with, DPM-Solver++ of order 2 (Lu et al., 2022, arXiv 2211.01095); flow gets Euler
    steps from noise at time 1 to data at time 0.
    """
    section = opened.stated.get("diffusion")
    stated = {key: value for key, value in section.items() if value is not None} if isinstance(section, Mapping) else {}
    objective = opened.options.objective
    if objective is None:
        raise CheckpointError(
            f"{opened.weights.name}: nothing says whether it predicts noise or velocity. Give settings with diffusion: "
            "{objective: ddpm} or {objective: flow}."
        )
    steps = int(stated.get("steps", _PIXCELL_NOISE["steps"]))
    if objective == "flow":
        shift = float(stated.get("shift", 1.0))
        note = (
            "Flow: the velocity is taken as noise minus data, with time 1,000 at pure noise, as in rectified flow (Liu et al., 2022); "
            "the checkpoint's own convention is not published."
        )
        return FoundScheduler(
            "FlowMatchEulerDiscreteScheduler",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": steps, "shift": shift},
            (note,),
        )
    lacking = [name for name in _PIXCELL_NOISE if name not in stated]
    values = {**_PIXCELL_NOISE, **stated}
    schedule = _BETAS.get(str(values["beta_schedule"]))
    if schedule is None:
        raise CheckpointError(
            f"{opened.weights.name}: the noise schedule {shown(values['beta_schedule'])} is unknown; this version knows {', '.join(_BETAS)}."
        )
    notes: tuple[str, ...] = ()
    if lacking:
        notes = (
            f"Noise schedule: {', '.join(lacking)} as PixCell's (linear, 0.0001 to 0.02, 1,000 steps); the settings do not say.",
        )
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": schedule,
        "beta_start": float(values["beta_start"]),
        "beta_end": float(values["beta_end"]),
        "prediction_type": "epsilon",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "linspace",
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "thresholding": False,
    }
    return FoundScheduler("DPMSolverMultistepScheduler", config, notes)


def mpp_question(patch_px: int, got: float | None = None) -> str:
    """Ask for the microns per pixel of the patches, with the candidates and what each would mean."""
    start = "" if got is None else f"Got a patch mpp of {got}, expected a number between 0 and 100. "
    listed = "; ".join(f"{mpp:g}: {why}" for mpp, why in MPP_CANDIDATES.items())
    return (
        f"{start}The microns per pixel of this checkpoint's {patch_px} px patches are not in its files, and a wrong value misplaces "
        f"and misscales every image. Find it in its model card, or try: {listed}. Then give it as --patch-mpp (patch_mpp=)."
    )


def _card(
    opened: Opened, name: str, mpp: float, genes: tuple[str, ...], licence: str | None, notes: list[str]
) -> CheckpointCard:
    values = opened.options.values
    conditions: list[Literal["expression", "morphology"]] = ["morphology"]
    if values.get("expression_dim"):
        conditions.append("expression")
    notes.append(
        f"Guidance rule {DEFAULT_GUIDANCE.rule}, scales {DEFAULT_GUIDANCE.expression:g} and {DEFAULT_GUIDANCE.morphology:g}, {DEFAULT_STEPS} steps: ours, as no "
        "rule is published for two conditions; PixCell samples with scale 2 and 20 steps."
    )
    if "expression" in conditions and not genes:
        notes.append(
            "No gene list was given: expression can be conditioned on by embeddings computed elsewhere only. Convert again with "
            "--genes FILE (one symbol a line, as the encoder saw them in training) to encode it here."
        )
    values = {
        "name": name,
        "patch_px": values["sample_size"] * LATENT_FACTOR,
        "patch_mpp": mpp,
        "guidance": DEFAULT_GUIDANCE,
        "steps": DEFAULT_STEPS,
        "genes": genes,
        "gene_hash": hash_genes(genes) if genes else "",
        "conditions": tuple(conditions),
        "training_data": "Not stated in the files; see its authors' model card.",
        "licence": licence or "Not stated in the files; ask its authors. Assume that it may not be passed on.",
        "limits": _LIMITS,
    }
    return validated(CheckpointCard, values, "the card cannot be written")


_OPTIONAL_FILES = ("args.json", "config.json")
"""Files with sizes that weights do not show (number of heads)."""


def _references(values: Mapping[str, Any], sources: Mapping[str, str | Path], notes: list[str]) -> dict[str, Reference]:
    """Choose the published component for each width; without one, a note says that embeddings are needed."""
    fits = {
        "vae": values["in_channels"] == SD3_CHANNELS,
        "morphology_encoder": values["morphology_dim"] == UNI_WIDTH,
        "expression_encoder": values.get("expression_dim") in CANCER_FOUNDATION_WIDTHS,
    }
    if not values.get("expression_dim"):
        del fits["expression_encoder"]
    found = {}
    for component, known in fits.items():
        reference = reference_of(zoo_entry(COMPONENTS[component]))
        if component in sources:
            found[component] = _local(reference, Path(sources[component]).expanduser().resolve(), component)
        elif known:
            found[component] = reference
        elif component == "vae":
            raise CheckpointError(
                f"no published VAE has this transformer's {values['in_channels']} latent channels: give the folder of its "
                "AutoencoderKL (config.json and safetensors) as --vae."
            )
        else:
            notes.append(
                f"No known {component.replace('_', ' ')} has its width: embeddings computed elsewhere are needed."
            )
    return found


def _local(published: Reference, place: Path, component: str) -> Reference:
    """Refer to a folder of the user's, whatever its weights file is called there."""
    weights = [place] if place.is_file() else sorted(f for f in _files(place) if f.suffix in WEIGHT_SUFFIXES)
    folder = place.parent if place.is_file() else place
    needed = [name for name in published.files if Path(name).suffix in SETTING_SUFFIXES]
    beside = [name for name in needed if component == "vae" or name not in _OPTIONAL_FILES]
    gone = [name for name in beside if not (folder / name).is_file()]
    if len(weights) != 1 or gone:
        listed = ", ".join(file.name for file in weights) or "none"
        raise CheckpointError(
            f"the {component.replace('_', ' ')} in {place}: expected one weights file and {', '.join(beside) or 'nothing else'}, "
            f"found the weights {listed}{'; missing: ' + ', '.join(gone) if gone else ''}."
        )
    optional = [name for name in _OPTIONAL_FILES if name not in beside and (folder / name).is_file()]
    names = (weights[0].name, *beside, *optional)
    update: dict[str, Any] = {
        "source": str(folder.expanduser().absolute()),
        "subfolder": "",
        "revision": None,
        "files": names,
        "sha256": {},
    }
    return published.model_copy(update=update)


def _files(place: Path) -> list[Path]:
    return [file for file in place.iterdir() if file.is_file()] if place.is_dir() else []


def _component_config(component: str, opened: Opened, genes: tuple[str, ...]) -> dict[str, Any]:
    values = opened.options.values
    if component == "vae":
        return {"_class_name": "AutoencoderKL", "latent_channels": values["in_channels"], **_vae_scaling(opened)}
    if component == "morphology_encoder":
        return {"_class_name": "Uni2hEncoder", "dim": values["morphology_dim"], "tokens": values["morphology_tokens"]}
    output = "tokens" if values.get("expression_pooling") == "pma" else "cls"
    listed = {"genes": list(genes), "gene_hash": hash_genes(genes) if genes else ""}
    return {"_class_name": "CancerFoundationEncoder", "dim": values["expression_dim"], "output": output, **listed}


def _vae_scaling(opened: Opened) -> dict[str, float]:
    """Return scaling and shift of the latents, where the settings state them: the VAE that is found must agree."""
    for section in (opened.stated.get("vae"), opened.stated):
        if isinstance(section, Mapping) and "scale_factor" in section:
            return {
                "scaling_factor": float(section["scale_factor"]),
                "shift_factor": float(section.get("shift_factor", 0.0)),
            }
    return {}


def _index(scheduler: str, references: Mapping[str, Reference]) -> dict[str, Any]:
    classes = {
        "vae": ["diffusers", "AutoencoderKL"],
        "morphology_encoder": ["napari_stmdit.encoders.uni2h", "Uni2hEncoder"],
        "expression_encoder": ["napari_stmdit.encoders.cancer_foundation.encoder", "CancerFoundationEncoder"],
    }
    return {
        "_class_name": ["napari_stmdit.model.pipeline", "STMDiTPipeline"],
        "transformer": ["napari_stmdit.model.transformer", "STMDiTTransformer2D"],
        "scheduler": ["diffusers", scheduler],
        **{component: classes[component] for component in references},
    }


def _model_card(card: CheckpointCard, opened: Opened, references: Mapping[str, Reference], notes: list[str]) -> str:
    rows = "\n".join(
        f"- {component.replace('_', ' ')}: {reference.name} ({reference.source}; {reference.licence})"
        for component, reference in references.items()
    )
    listed = "\n".join(f"- {note}" for note in notes)
    return f"""# Checkpoint `{card.name}`

Converted from `{opened.weights.name}` ({opened.naming} naming). Patches of {card.patch_px} x {card.patch_px} px at {card.patch_mpp:g} um/px, as stated at conversion.

## Licence
{card.licence}

## Intended use and limits
{card.limits}

## Components kept elsewhere
{rows}

## What was chosen, and why
{listed}
"""
