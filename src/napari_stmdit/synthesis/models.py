"""Interface of a checkpoint in a run, and the values that go in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..expression.changes import Profile
from ..intent import CheckpointCard
from ..progress import Progress
from ..types import DenoiseStep, Genes, Patch, PatchResult, Sampling

if TYPE_CHECKING:
    from ..editing import TissueEditor
    from ..model.sampling import CanvasSolver


@dataclass(frozen=True)
class Preview:
    """Prediction of the finished patch while it is denoised."""

    image: PatchResult


@dataclass(frozen=True)
class Pasted:
    """Finished patches or tiles, pasted on the canvas if there is one."""

    images: tuple[PatchResult, ...]


Event = Preview | Pasted | Progress


@dataclass(frozen=True)
class PatchBatch:
    """Inputs of one batch of patches.

    Attributes
    ----------
    patches
        The b patches, in order.
    crops
        (b, patch_px, patch_px, 3) uint8 real tissue at the checkpoint's scale; None where no patch needs its own crop.
    morphology
        (b, t, d) float32, or None for null.
    expression
        (b, d) or (b, g, d) float32, or None for null.
    seeds
        One per patch.
    sampling
        As resolved by the plan.
    preview_every
        Steps between previews of the first patch; 0 for none.
    edited
        Conditions after the edit, where the crops are edited and no new tissue is made. Crops, morphology and expression
        are then the measured ones, and none is None.
    """

    patches: tuple[Patch, ...]
    crops: NDArray[np.uint8] | None
    morphology: NDArray[np.float32] | None
    expression: NDArray[np.float32] | None
    seeds: tuple[int, ...]
    sampling: Sampling
    preview_every: int = 0
    edited: Edited | None = None

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.sampling.steps


@dataclass(frozen=True)
class Edited:
    """Conditions of real tissue after an edit, and the scale of their difference.

    Attributes
    ----------
    morphology
        (b, t, d) float32, moved as expression implies.
    expression
        (b, d) or (b, g, d) float32, after the edits.
    keys
        Content keys of the b crops and their measured expression, for the cache of noise. One key for a whole canvas.
    scale
        w of v(c) + w (v(c') - v(c)).
    fresh
        Share of the noise, 0 to 1, that is drawn with the patches' seeds in place of the crops' own.
    """

    morphology: NDArray[np.float32]
    expression: NDArray[np.float32]
    keys: tuple[str, ...]
    scale: float = 1.0
    fresh: float = 0.0


def known_by_spot(provenance: Mapping[str, Any], what: Literal["morphology", "expression"]) -> bool:
    """Return whether a checkpoint's condition comes from precomputed embeddings, which exist only at the spots."""
    return f"{what}_embeddings" in provenance


class KnownModel(Protocol):
    """Part of a checkpoint that is known without computing with it."""

    @property
    def card(self) -> CheckpointCard:
        """Card of the checkpoint."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Provenance for a result's record: hash of the checkpoint, device, dtype."""


class PatchModel(KnownModel, Protocol):
    """Interface of a checkpoint in a run: a diffusion transformer with its encoders, or a stand-in that returns real crops."""

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Tissue profiles that edits may move towards."""

    def encode_expression(
        self, counts: Any, genes: Genes, spots: Sequence[str] = (), depth: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encode counts, sparse (n, g), measured at n ``spots`` of a ``depth`` (n,) relative to their section, as (n, d) or (n, tokens, d)."""

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode (n, patch_px, patch_px, 3) uint8 crops, taken at n ``spots``, as (n, tokens, d)."""

    def denoise(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        """Yield after every denoising step; the last step carries the images."""

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Channels of a latent, and image pixels per latent cell."""

    def solver(
        self,
        noise: NDArray[np.float32],
        sampling: Sampling,
        *,
        has_morphology: bool,
        has_expression: bool,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> CanvasSolver:
        """Return a solver for a canvas of noise (c, h, w), or one that continues from a state."""

    def decode(self, latents: NDArray[np.float32], *, preview: bool = False) -> NDArray[np.uint8]:
        """Decode latents (c, h, w) into an image (h * factor, w * factor, 3) uint8; with ``preview`` by the preview decoder, if any."""

    @property
    def editor(self) -> TissueEditor:
        """Editor of real tissue."""
