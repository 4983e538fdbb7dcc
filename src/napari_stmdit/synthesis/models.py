"""What the loop needs of a checkpoint, and the values that go in and out."""

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
    """What a patch is predicted to become, while it is denoised."""

    image: PatchResult


@dataclass(frozen=True)
class Pasted:
    """Patches or tiles that are finished, and on the canvas where a run has one."""

    images: tuple[PatchResult, ...]


Event = Preview | Pasted | Progress


@dataclass(frozen=True)
class PatchBatch:
    """What one batch of patches is made from.

    Attributes
    ----------
    patches
        The b patches, in order.
    crops
        (b, patch_px, patch_px, 3) uint8 real tissue at the checkpoint's scale, or None where no patch asks for its own crop.
    morphology
        (b, t, d) float32, or None for null.
    expression
        (b, d) or (b, g, d) float32, or None for null.
    seeds
        One per patch.
    sampling
        As resolved by the plan.
    preview_every
        Steps between previews of what the first patch is becoming; 0 for none.
    edited
        Where the crops are edited, and no new tissue is made: what the edit makes of the conditions. Crops, morphology and expression
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
    """What changes where real tissue is edited: the conditions after the edit, and the scale of their difference.

    Attributes
    ----------
    morphology
        (b, t, d) float32, moved by what the edit of expression implies.
    expression
        (b, d) or (b, g, d) float32, after the edits.
    keys
        What the b crops and their measured expression are, by content: what is found out about them is kept under these names. Of a
        canvas, one for all of it.
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
    """Return whether a checkpoint's condition comes from embeddings computed elsewhere: there is none of any place but the spots."""
    return f"{what}_embeddings" in provenance


class KnownModel(Protocol):
    """What can be said of a checkpoint without computing with it."""

    @property
    def card(self) -> CheckpointCard:
        """What the checkpoint says of itself."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What to record with a result: hash of the checkpoint, device, dtype."""


class PatchModel(KnownModel, Protocol):
    """What the loop needs of a checkpoint: a diffusion transformer with its encoders, or a stand-in that returns real crops."""

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
        """Return a solver for a canvas of noise (c, h, w), or one that goes on from a state."""

    def decode(self, latents: NDArray[np.float32], *, preview: bool = False) -> NDArray[np.uint8]:
        """Decode latents (c, h, w) into an image (h * factor, w * factor, 3) uint8; with ``preview`` by the preview decoder, if any."""

    @property
    def editor(self) -> TissueEditor:
        """What edits real tissue."""
