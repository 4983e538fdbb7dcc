"""What the loop needs of a checkpoint, and the values that go in and out."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..expression.edits import Profile
from ..intent import CheckpointCard, Guidance
from ..types import Genes, Patch


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
    guidance, steps
        As resolved by the plan.
    preview_every
        Steps between looks at what the first patch is becoming; 0 for none.
    fast_solver, preview_decoder
        Whether a solver for few steps takes the place of the checkpoint's own, and its preview decoder, where it has one, makes the
        images.
    edited
        Where the crops are edited, and no new tissue is made: what the edit makes of the conditions. Crops, morphology and expression
        are then the measured ones, and none is None.
    """

    patches: tuple[Patch, ...]
    crops: NDArray[np.uint8] | None
    morphology: NDArray[np.float32] | None
    expression: NDArray[np.float32] | None
    seeds: tuple[int, ...]
    guidance: Guidance
    steps: int
    preview_every: int = 0
    fast_solver: bool = False
    preview_decoder: bool = False
    edited: Edited | None = None


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


@dataclass(frozen=True)
class DenoiseStep:
    """State after one denoising step.

    The last one carries the (b, patch_px, patch_px, 3) uint8 images. ``preview`` is what the first patch (patch_px, patch_px, 3)
    uint8 is predicted to become, where one was asked for.
    """

    step: int
    steps: int
    images: NDArray[np.uint8] | None = None
    preview: NDArray[np.uint8] | None = None


def known_by_spot(provenance: Mapping[str, Any], what: Literal["morphology", "expression"]) -> bool:
    """Whether a checkpoint's condition comes from embeddings computed elsewhere: there is none of any place but the spots."""
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


class Solver(Protocol):
    """One canvas of latents on its way from noise; see `napari_stmdit.model.sampling.CanvasSolver`."""

    step: int
    """Steps that are done."""
    steps: int

    @property
    def latents(self) -> NDArray[np.float32]:
        """The canvas (c, h, w)."""

    def inputs(self) -> NDArray[np.float32]:
        """Return what the network is to see of the canvas at this step, (c, h, w)."""

    def predict(
        self,
        windows: NDArray[np.float32],
        morphology: NDArray[np.float32] | None,
        expression: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return the guided prediction for (b, c, s, s) windows, each under conditions of its own."""

    def advance(self, prediction: NDArray[np.float32]) -> None:
        """Take the whole canvas one step on."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything that is needed to go on from here."""


@runtime_checkable
class CanvasModel(PatchModel, Protocol):
    """What continuous mode needs beyond a `PatchModel`."""

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Channels of a latent, and image pixels per latent cell."""

    def solver(
        self,
        noise: NDArray[np.float32],
        guidance: Guidance,
        steps: int,
        *,
        has_morphology: bool,
        has_expression: bool,
        state: Mapping[str, NDArray[Any]] | None = None,
        fast_solver: bool = False,
    ) -> Solver:
        """Return a solver for a canvas of noise (c, h, w), or one that goes on from a state."""

    def decode(self, latents: NDArray[np.float32], *, preview: bool = False) -> NDArray[np.uint8]:
        """Decode latents (c, h, w) into an image (h * factor, w * factor, 3) uint8; with ``preview`` by the preview decoder, if any."""


@runtime_checkable
class EditingModel(CanvasModel, Protocol):
    """What edits of real tissue in continuous mode need beyond a `CanvasModel`."""

    def encode_slide(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode an image (H, W, 3) uint8 as latents (c, h, w)."""

    def edit_canvas(
        self,
        latents: NDArray[np.float32],
        morphology: NDArray[np.float32],
        expression: NDArray[np.float32],
        edited: Edited,
        corners: NDArray[np.int64],
        weight: NDArray[np.float32],
        steps: int,
        batch: int,
    ) -> Generator[float, None, NDArray[np.float32]]:
        """Yield the share of the work that is done; return the change (c, h, w) of the slide's latents (c, h, w).

        ``corners`` (n, 2) of n windows, in latent cells, with ``weight`` (s, s); conditions are one for each window.
        """

    def decode_change(self, latents: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how pixels move, (H, W, 3) in grey levels, with a change (c, h, w) of the slide's latents (c, h, w)."""


class SolverStates(Protocol):
    """Where the state of a solver is kept between processes."""

    def load_state(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the latest state; None where there is none."""

    def save_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Keep a state in place of the one before."""
