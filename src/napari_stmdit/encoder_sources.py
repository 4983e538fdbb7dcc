"""Encoders of a checkpoint: in its folder, kept elsewhere, replaced by the user's embeddings, or missing.

The encoders package knows no foreign files and the model package no encoders; both meet here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import PrecomputedEmbeddings, read_embeddings
from .errors import CheckpointError, GeneError, StmditError
from .files import BadFile, read_text

if TYPE_CHECKING:
    import torch

    from .model.folder import CheckpointFolder, Component

CACHE_BYTES = 256 * 2**20
CACHE_FOLDER_BYTES = 2**30
"""Maximum bytes of an encoder's cached embeddings in memory, and of all on disk."""


class LackingEncoderError(CheckpointError):
    """Error for a checkpoint without a usable encoder; ``reason`` is the message without its commands."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason = reason


class MissingEncoder:
    """Placeholder of a missing encoder; raises as soon as it is used."""

    def __init__(self, error: StmditError) -> None:
        self.error = error

    def encode(self, *_: Any) -> NDArray[np.float32]:
        """Raise the error."""
        raise self.error


def given_embeddings(
    config: Mapping[str, Any], morphology: str | Path | None, expression: str | Path | None
) -> dict[str, PrecomputedEmbeddings]:
    """Read a user's embeddings, with the widths in a transformer's ``config``.

    Raises
    ------
    CheckpointError
        The transformer takes no expression.
    SectionError
        A file is missing, damaged or of another width.
    """
    given = {}
    if morphology is not None:
        given["morphology"] = read_embeddings(morphology, config["morphology_dim"], config["morphology_tokens"])
    if expression is not None:
        if config["expression_dim"] is None:
            raise CheckpointError(f"{expression}: this checkpoint takes no expression; leave the embeddings out.")
        given["expression"] = read_embeddings(expression, config["expression_dim"])
    return given


def open_sources(
    folder: CheckpointFolder,
    config: Mapping[str, Any],
    given: Mapping[str, PrecomputedEmbeddings],
    device: torch.device,
) -> dict[str, Any]:
    """Return the encoders of ``morphology`` and ``expression``: given embeddings, else the folder's encoder, else a placeholder.

    Raises
    ------
    CheckpointError
        An encoder is there but damaged, of an unknown class, or of another width than the transformer; or it reads factors, and embeddings
        were given in the place of what it makes of them.
    """
    sources: dict[str, Any] = {}
    for what in ("morphology", "expression"):
        component = folder.components.get(f"{what}_encoder")
        if what in given:
            if component is not None and component.kind == "LinearProgramEncoder" and _reads_factors(component.path):
                raise CheckpointError(
                    f"checkpoint {folder.card.name!r} reads {len(folder.card.genes)} factors of each spot through its own encoder: give them with --factors "
                    "(factors=...), not as embeddings"
                )
            sources[what] = given[what]
        elif component is None:
            sources[what] = MissingEncoder(_absent(folder, what))
        else:
            sources[what] = _open_or_miss(folder, component, what, device)
            _check_width(sources[what], config[f"{what}_dim"], what, folder.path)
    return sources


def _reads_factors(encoder: Path) -> bool:
    from .model.reading import read_settings

    return not read_settings(encoder / "config.json").get("logged", True)


def encoder_notes(source: Any) -> tuple[str, ...]:
    """Return an encoder's notes for the user: genes found by another symbol, unused tensors."""
    return tuple(getattr(getattr(source, "encoder", source), "notes", ()))


def _absent(folder: CheckpointFolder, what: str) -> CheckpointError:
    if what not in folder.card.conditions:
        return CheckpointError(f"checkpoint {folder.card.name!r} is not conditioned on {what}.")
    return LackingEncoderError(
        f"checkpoint {folder.card.name!r} comes without a {what} encoder, and none is known for it.",
        f"Give embeddings computed elsewhere, --{what}-embeddings FILE (.npy, .h5, .h5ad, .zarr or .csv), or run with {what} null.",
    )


def _open_or_miss(folder: CheckpointFolder, component: Component, what: str, device: torch.device) -> Any:
    from .model.zoo import MissingComponentError

    try:
        return _open(component, f"{what}_encoder", device)
    except MissingComponentError as error:
        return MissingEncoder(error)
    except CheckpointError:
        if what == "expression" and component.reference is not None and not folder.card.genes:
            return MissingEncoder(
                LackingEncoderError(
                    f"checkpoint {folder.card.name!r} was converted without a gene list, and an embedding depends on it.",
                    "Convert it again with --genes FILE, or give embeddings computed elsewhere, --expression-embeddings FILE.",
                )
            )
        raise


def _open(component: Component, name: str, device: torch.device) -> Any:
    """Open an encoder by its class in ``model_index.json``, from an allow-list and never by import."""
    from .encoders.linear_programs import LinearProgramEncoder
    from .encoders.small_conv import SmallConvEncoder

    small: dict[str, Any] = {
        "LinearProgramEncoder": LinearProgramEncoder,
        "SmallConvEncoder": SmallConvEncoder,
    }
    large = {"CancerFoundationEncoder": _open_cancer_foundation, "Uni2hEncoder": _open_uni2h}
    known = {
        "expression_encoder": ("LinearProgramEncoder", "CancerFoundationEncoder"),
        "morphology_encoder": ("SmallConvEncoder", "Uni2hEncoder"),
    }[name]
    if component.kind not in known:
        raise CheckpointError(
            f"{name} of {component.path.parent} is a {component.kind!r}; this version knows {', '.join(known)}"
        )
    if component.kind in small:
        return small[component.kind].load(component.path)
    return large[component.kind](component, name, device)


def _open_cancer_foundation(component: Component, name: str, device: torch.device) -> Any:
    from .encoders.cache import CachedExpression, user_cache
    from .encoders.cancer_foundation.encoder import CancerFoundationEncoder
    from .encoders.cancer_foundation.folder import read_encoder
    from .encoders.cancer_foundation.vocabulary import read_vocabulary
    from .model.reading import read_settings, read_weights

    reference = component.reference
    if reference is None:
        encoder = CancerFoundationEncoder.load(component.path)
    else:
        described = read_encoder(component.path)
        weights = component.weights_file(name)
        args = weights.parent / "args.json"
        encoder = CancerFoundationEncoder.from_weights(
            read_weights(weights),
            read_vocabulary(weights.parent / "vocab.json"),
            described.genes,
            read_settings(args) if args.is_file() else None,
            **described.settings.model_dump(exclude_unset=True),
        )
    cache = user_cache("embeddings", CACHE_BYTES, CACHE_FOLDER_BYTES)
    return CachedExpression(encoder.to(device), cache, _key(component))


def _open_uni2h(component: Component, name: str, device: torch.device) -> Any:
    from .encoders.cache import CachedMorphology, user_cache
    from .encoders.uni2h import Uni2hEncoder
    from .model.reading import read_settings, read_weights

    reference = component.reference
    if reference is None:
        encoder = Uni2hEncoder.load(component.path)
    else:
        weights = component.weights_file(name)
        beside = weights.parent / "config.json"
        config = read_settings(beside) if beside.name in reference.files else {}
        encoder = Uni2hEncoder.from_tensors(read_weights(weights), config, str(weights))
    cache = user_cache("embeddings", CACHE_BYTES, CACHE_FOLDER_BYTES)
    return CachedMorphology(encoder.to(device), cache, _key(component))


def _key(component: Component) -> str:
    """Return the cache key of an encoder: a hash of the files in its folder and in its reference."""
    from .model.zoo import reference_hash
    from .storage.fingerprint import of_folder

    reference = component.reference
    return f"{of_folder(component.path)} {None if reference is None else reference_hash(reference)} float32"


def _check_width(source: Any, expected: int | None, what: str, path: Path) -> None:
    got = getattr(
        getattr(source, "encoder", source), "dim", None
    )  # a cache holds the encoder; what is missing has no width
    if expected is not None and got is not None and got != expected:
        raise CheckpointError(
            f"the {what} encoder of {path} gives vectors of width {got}, the transformer was trained with {expected}: it is another encoder."
        )


def read_gene_list(path: str | Path) -> tuple[str, ...]:
    """Read a gene list: one symbol a line, in the encoder's order; blank lines and ``#`` lines are skipped.

    Raises
    ------
    GeneError
        The file is missing, empty, no text, or names a gene twice.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except BadFile as error:
        raise GeneError(
            f"{path} is no readable gene list ({error}). Expected a text file, one symbol a line."
        ) from None
    genes = [line for line in lines if line and not line.startswith("#")]
    strange = [gene for gene in genes if any(mark in gene for mark in ",;\t ")]
    twice = sorted({gene for gene, count in Counter(genes).items() if count > 1})
    faults = [] if genes else ["it names no gene"]
    faults += [f"these lines are no single symbols: {', '.join(strange[:5])}"] if strange else []
    faults += [f"named twice: {', '.join(twice[:5])}"] if twice else []
    if faults:
        raise GeneError(f"{path}: {'; '.join(faults)}. Expected one gene symbol a line.")
    return tuple(genes)


def genes_of_section(section: str | Path, encoder_folder: str | Path | None = None) -> tuple[str, ...]:
    """Choose the genes of a CancerFoundation encoder from a section, by the released rule; see `choose_genes`.

    Parameters
    ----------
    section
        A section with counts.
    encoder_folder
        Folder with the encoder's ``vocab.json``; None for what `stmdit download cancerfoundation` left.

    Raises
    ------
    StmditError
        The section cannot be opened, or the vocabulary is not on this computer.
    """
    from .encoders.cancer_foundation.vocabulary import choose_genes, read_vocabulary
    from .model.zoo import reference_of, resolve_reference, zoo_entry
    from .tissue.open import open_section

    place = encoder_folder or resolve_reference(reference_of(zoo_entry("cancerfoundation")), "expression_encoder")
    vocabulary = read_vocabulary(Path(place) / "vocab.json")
    spots = open_section(section).spots
    return choose_genes(spots.counts, spots.genes, vocabulary)
