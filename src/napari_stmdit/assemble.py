"""Assembly of checkpoints: encoders, model and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .devices import choose_device, decoder_on, memory_given_back
from .downloads.places import data_directory
from .editing import NOISE_BYTES, NOISE_FOLDER_BYTES, TissueEditor
from .embeddings import PrecomputedEmbeddings
from .encoder_sources import MissingEncoder
from .encoders.cache import EmbeddingCache, user_cache
from .errors import CheckpointError, GeneError, StmditError
from .expression.changes import Profile
from .intent import CheckpointCard
from .storage.fingerprint import of_json
from .synthesis.models import PatchBatch
from .types import DenoiseStep, Genes, Sampling

if TYPE_CHECKING:
    from .encoders.cache import ExpressionEncoder, MorphologyEncoder
    from .encoders.morphology_map import MorphologyMap
    from .model.foreign.convert import Converted
    from .model.pipeline import STMDiTPipeline
    from .model.sampling import CanvasSolver
    from .synthesis.counterfactual import Follows

    ExpressionSource: TypeAlias = ExpressionEncoder | PrecomputedEmbeddings | MissingEncoder
    MorphologySource: TypeAlias = MorphologyEncoder | PrecomputedEmbeddings | MissingEncoder

BUNDLED = {"demo": "data/demo_checkpoint", "demo_colon": "data/demo_colon_checkpoint"}


@dataclass(frozen=True)
class CheckpointEntry:
    """Checkpoint that can be loaded by name: ``name`` and the folder ``path``."""

    name: str
    path: Path


class Checkpoint:
    """Assembled checkpoint: the pipeline with its encoders on a device. It is a `PatchModel`.

    Attributes
    ----------
    card
        Sizes, genes, conditions, defaults and limits of the checkpoint.
    profiles
        Tissue profiles that edits may move towards.
    provenance
        Record for every result: hash, device, dtype, licence.
    expression, morphology
        Encoders; a missing one raises when it is first needed.
    morphology_map
        Map by which morphology follows an edit of expression; None: fitted on each section.
    """

    def __init__(
        self,
        card: CheckpointCard,
        pipeline: STMDiTPipeline,
        expression: ExpressionSource,
        morphology: MorphologySource,
        profiles: Mapping[str, Profile],
        provenance: Mapping[str, Any],
        morphology_map: MorphologyMap | None = None,
    ) -> None:
        self.card = card
        self.morphology_map = morphology_map
        self.fitted: dict[str, Follows] = {}
        self.profiles = profiles
        self.provenance = provenance
        self.pipeline = pipeline
        self.expression = expression
        self.morphology = morphology

    @property
    def device(self) -> str:
        """Device of the transformer."""
        return str(self.provenance["device"])

    @property
    def lacking(self) -> Mapping[str, StmditError]:
        """Missing encoders, and what to do about each; empty where none is missing."""
        sources = {"morphology_encoder": self.morphology, "expression_encoder": self.expression}
        return {name: source.error for name, source in sources.items() if isinstance(source, MissingEncoder)}

    def encode_expression(
        self, counts: Any, genes: Genes, spots: Sequence[str] = (), depth: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encode counts, sparse (n, g), measured at n ``spots``, as (n, d) or (n, tokens, d).

        ``depth`` (n,) is that of the spots relative to their section (`SpotTable.relative_depth`); None: all are like its median spot.

        Raises
        ------
        CheckpointError
            The encoder is missing; the message says where to get it.
        SectionError
            Embeddings were given, and some of the spots are not among them.
        """
        source = self.expression
        return source.rows(spots) if isinstance(source, PrecomputedEmbeddings) else source.encode(counts, genes, depth)

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode (n, patch_px, patch_px, 3) uint8 crops, taken at n ``spots``, as (n, tokens, d); errors as above."""
        source = self.morphology
        return source.rows(spots) if isinstance(source, PrecomputedEmbeddings) else source.encode(patches)

    @cached_property
    def editor(self) -> TissueEditor:
        """Editor of real crops; it caches their noise."""
        embeddings = self.provenance.get("morphology_embeddings", {})
        known = " ".join(str(v) for v in (self.provenance["sha256"], self.provenance["dtype"], *embeddings.values()))
        noise = user_cache("noise", NOISE_BYTES, NOISE_FOLDER_BYTES)
        return TissueEditor(self.pipeline, f"{known} {self.device.split(':')[0]}", noise)

    def with_noise_cache(self, cache: EmbeddingCache) -> Checkpoint:
        """Return this checkpoint with another cache for the noise of crops."""
        other = copy(self)
        other.editor = TissueEditor(self.pipeline, self.editor.identity, cache)
        return other

    def denoise(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        """Denoise or, where the batch says so, edit real crops; yield after every step, the last time with the images."""
        if batch.edited is not None:
            with memory_given_back():
                yield from self.editor.edit(batch)
            return
        side = self.card.patch_px
        with memory_given_back():
            yield from self.pipeline.denoise_images(
                batch.morphology,
                batch.expression,
                batch.seeds,
                batch.sampling,
                height=side,
                width=side,
                preview_every=batch.preview_every,
            )

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Channels of a latent, and image pixels per latent cell."""
        from .model.autoencoder import latent_channels, spatial_factor

        return latent_channels(self.pipeline.vae), spatial_factor(self.pipeline.vae)

    def solver(
        self,
        noise: NDArray[np.float32],
        sampling: Sampling,
        *,
        has_morphology: bool,
        has_expression: bool,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> CanvasSolver:
        """Return a solver for a canvas of noise (c, h, w), or one resumed from a state."""
        from .model.sampling import CanvasSolver

        pipeline, above = self.pipeline, sampling.guidance.above
        needed, scheduler = pipeline.branches(sampling, has_morphology, has_expression), pipeline.solver(sampling)
        return CanvasSolver(pipeline.transformer, scheduler, needed, noise, sampling.steps, state, above=above)

    def decode(self, latents: NDArray[np.float32], *, preview: bool = False) -> NDArray[np.uint8]:
        """Decode latents (c, h, w) into an image (h * factor, w * factor, 3) uint8; with ``preview`` by the preview decoder, if there is one."""
        import torch

        with memory_given_back():
            image: NDArray[np.uint8] = self.pipeline.decode(torch.from_numpy(latents)[None], preview)[0]
        return image


def load_checkpoint(
    name: str | Path = "demo",
    device: str = "auto",
    dtype: str = "auto",
    *,
    morphology_embeddings: str | Path | None = None,
    expression_embeddings: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint folder, verify it, and put it on a device.

    A missing encoder is no error until a run needs it.

    Parameters
    ----------
    name
        A name from `list_checkpoints`, or a folder.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    dtype
        ``auto``, ``float32``, ``bfloat16`` or ``float16``. Auto is bfloat16 where the hardware is fast at it, else float16 on a GPU
        and float32 on a CPU and on MPS. In float16 the autoencoder, which may overflow, stays in float32.
    morphology_embeddings, expression_embeddings
        Files with embeddings of the spots, computed elsewhere, in place of an encoder; see
        `napari_stmdit.embeddings.read_embeddings`.

    Raises
    ------
    CheckpointError
        The folder is missing, incomplete, unsafe or does not fit this version, or the device is not there.
    SectionError
        The embeddings are damaged or of another width.

    Examples
    --------
    >>> checkpoint = st.load_checkpoint("demo")
    >>> checkpoint.card.patch_px, checkpoint.card.patch_mpp
    (256, 0.688)
    """
    import torch

    from .encoder_sources import encoder_notes, given_embeddings, open_sources
    from .encoders.morphology_map import MorphologyMap
    from .model.counterfactual import counterfactual_fault
    from .model.folder import load_component, map_folder, read_folder, read_profiles
    from .model.pipeline import STMDiTPipeline

    path = checkpoint_folder(name)
    chosen, kind = choose_device(device, dtype)
    folder = read_folder(path)
    transformer = load_component(folder, "transformer").eval()
    given = given_embeddings(transformer.config, morphology_embeddings, expression_embeddings)
    torch.nn.Module.to(
        transformer, device=chosen, dtype=kind
    )  # diffusers' own `to` warns of modules to be kept in float32
    vae = decoder_on(load_component(folder, "vae"), chosen, kind)
    preview = None
    if "preview_vae" in folder.components:
        preview = decoder_on(load_component(folder, "preview_vae"), chosen, kind)
    pipeline = STMDiTPipeline(
        transformer=transformer, vae=vae, scheduler=load_component(folder, "scheduler"), preview_vae=preview
    )
    provenance: dict[str, Any] = {
        "sha256": folder.sha256,
        "device": str(chosen),
        "dtype": str(kind).removeprefix("torch."),
        "licence": folder.card.licence,
        "torch": version("torch"),
        "preview_decoder": preview is not None,
        **({"elsewhere": elsewhere} if (elsewhere := folder.elsewhere) else {}),
        **{f"{what}_embeddings": {"source": one.source, "sha256": one.sha256} for what, one in given.items()},
    }
    profiles = read_profiles(folder)
    card = folder.card
    if "expression" in given:  # no count is looked at: a plan must not promise that genes matter
        card = card.model_copy(update={"genes": (), "gene_hash": "", "profiles": (), "expression_given": True})
    if "expression" in given or counterfactual_fault(pipeline, card.conditions) is not None:
        card = card.model_copy(update={"edits_tissue": False})
    sources = open_sources(folder, transformer.config, given, chosen)
    card = card.model_copy(update={"reads_factors": not getattr(sources["expression"], "logged", True)})
    if notes := [note for source in sources.values() for note in encoder_notes(source)]:
        provenance["notes"] = notes  # how the genes were found, say: it belongs to the result
    stored = None if given else map_folder(folder)
    follows = None if stored is None else MorphologyMap.load(stored)
    return Checkpoint(card, pipeline, sources["expression"], sources["morphology"], profiles, provenance, follows)


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    patch_mpp: float | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    mapping: str | Path | None = None,
    name: str | None = None,
    genes: str | Path | Sequence[str] | None = None,
    genes_from: str | Path | None = None,
    sources: Mapping[str, str | Path] | None = None,
    licence: str | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Make a checkpoint folder of a foreign transformer; see `napari_stmdit.model.foreign.convert.convert`.

    Parameters
    ----------
    source
        A weights file, a folder, or the name of a download, whose licence and known scale are used.
    output
        The folder to make. In ``data_directory() / "checkpoints"`` it is found by its name.
    genes, genes_from
        The genes that the expression encoder reads: a text file (one symbol a line) or the symbols; or a section, whose most variable
        genes are chosen by CancerFoundation's released rule.
    patch_mpp, config, mapping, name, sources, licence, on_stage
        As for `napari_stmdit.model.foreign.convert.convert`.

    Raises
    ------
    StmditError
        What was given cannot be converted; nothing is left behind.
    """
    from .encoder_sources import genes_of_section, read_gene_list
    from .model.foreign.convert import convert
    from .model.zoo import reference_of, resolve_reference, zoo, zoo_entry

    path = Path(source)
    notes: tuple[str, ...] = ()
    if not path.exists() and str(source) in {entry.name for entry in zoo()}:
        entry = zoo_entry(str(source))
        path = resolve_reference(reference_of(entry), "transformer")
        if len(entry.files) == 1:
            path = path / entry.files[0]
        licence = licence or entry.licence
        if patch_mpp is None and entry.patch_mpp is not None:
            patch_mpp = entry.patch_mpp
            notes = (
                f"Patch mpp {patch_mpp:g}, as the list of known checkpoints has it for {entry.name}: {' '.join(entry.notes)}",
            )
    if genes is not None and genes_from is not None:
        raise GeneError("Got a gene list and a section to choose genes from; give one of them.")
    chosen: tuple[str, ...] = ()
    if genes_from is not None:
        chosen = genes_of_section(genes_from, (sources or {}).get("expression_encoder"))
    elif isinstance(genes, str | Path):
        chosen = read_gene_list(genes)
    elif genes is not None:
        chosen = tuple(genes)
    return convert(
        path,
        output,
        patch_mpp=patch_mpp,
        config=config,
        mapping=mapping,
        name=name,
        genes=chosen,
        sources=sources,
        licence=licence,
        notes=notes,
        on_stage=on_stage,
    )


def list_checkpoints() -> list[CheckpointEntry]:
    """Return the checkpoints that can be loaded by name: the bundled one and the folders in the data directory."""
    entries = [CheckpointEntry(name, _bundled(name)) for name in BUNDLED]
    home = data_directory() / "checkpoints"
    if home.is_dir():
        entries += [
            CheckpointEntry(folder.name, folder)
            for folder in sorted(home.iterdir())
            if (folder / "stmdit.json").is_file()
        ]
    return entries


def checkpoint_folder(name: str | Path) -> Path:
    """Return the folder of a checkpoint by its name or path; raises CheckpointError where there is none."""
    entries = {entry.name: entry.path for entry in list_checkpoints()}
    if str(name) in entries:
        return entries[str(name)]
    path = Path(name).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {str(name)!r}: it is neither a folder nor one of {', '.join(entries)}; `stmdit info` "
            "lists the checkpoints that are there"
        )
    return path


def place_of_checkpoint(name: str) -> str:
    """Return a checkpoint's name as it is, and a folder that is here with its whole path: another process may work in another folder."""
    if name in {entry.name for entry in list_checkpoints()} or not (path := Path(name).expanduser()).is_dir():
        return name
    return str(path.absolute())


def checkpoint_content(name: str | Path) -> str:
    """Return a hash of all that `load_checkpoint` reads: the folder, and components kept elsewhere.

    Raises
    ------
    CheckpointError
        The folder is missing or incomplete.
    """
    from .model.folder import read_folder

    folder = read_folder(checkpoint_folder(name))
    return of_json([folder.sha256, folder.elsewhere])


def _bundled(name: str) -> Path:
    return Path(str(files("napari_stmdit").joinpath(BUNDLED[name])))
