"""Edits of slide crops by a checkpoint; paths to noise are cached, so that a second edit only predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .devices import memory_given_back
from .encoders.cache import EmbeddingCache
from .errors import NotFiniteError
from .progress import Batches, mapped
from .types import DenoiseStep

if TYPE_CHECKING:
    from .model.inference import ConditionTensors
    from .model.pipeline import STMDiTPipeline
    from .synthesis.models import Edited, PatchBatch

METHOD = 2
"""Version of cached paths; raise it when the path of a crop to its noise changes."""
NOISE_BYTES = 512 * 2**20
NOISE_FOLDER_BYTES = 2 * 2**30
IMAGE_BYTES = 128 * 2**20


class TissueEditor:
    """Editor of crops with one checkpoint.

    Parameters
    ----------
    pipeline
        The checkpoint's.
    identity
        Further key of a cached path: the checkpoint's hash, precision and kind of device.
    cache
        Cache of paths.

    Attributes
    ----------
    abducted
        Number of crops taken to their noise so far; others were in the cache.
    """

    def __init__(self, pipeline: STMDiTPipeline, identity: str, cache: EmbeddingCache) -> None:
        self.pipeline = pipeline
        self.identity = identity
        self.cache = cache
        self.abducted = 0
        self._images = EmbeddingCache(IMAGE_BYTES)

    def edit(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        """Yield after every network call; the last step carries the edited crops (b, p, p, 3) uint8.

        Raises
        ------
        NotFiniteError
            A prediction is not finite; names the patches.
        """
        from .model.counterfactual import edited_pixels, mixed_noise, predict
        from .model.sampling import noise_for

        assert batch.crops is not None and batch.edited is not None  # `denoise` asks for it
        before = conditions_of(batch.morphology, batch.expression)
        after = conditions_of(batch.edited.morphology, batch.edited.expression)
        abduction = yield from _in_steps(self._abduction(batch, before), batch.steps)
        transformer, noise = self.pipeline.transformer, None
        if batch.edited.fresh > 0:
            drawn = noise_for(batch.seeds, abduction.noise.shape[1:])
            noise = mixed_noise(abduction.noise, drawn, batch.edited.fresh)
        whole = at_once(len(batch.patches))
        work = predict(transformer, abduction, after, scale=batch.edited.scale, noise=noise, batch=whole)
        change = yield from _in_steps(_shares(work, 0.5), batch.steps)
        keys = batch.edited.keys

        def known(items: list[int]) -> Any:
            return self._decoded([keys[item] for item in items], abduction.latents[items])

        images = edited_pixels(self.pipeline.vae, batch.crops, abduction.latents, change, known)
        yield DenoiseStep(batch.steps, batch.steps, images)

    def _decoded(self, keys: Sequence[str], latents: Any) -> Any:
        """Decode the latents (b, c, h, w) of crops into (b, 3, H, W); recent ones are cached."""
        import torch

        from .model.counterfactual import decoded

        found = [self._images.get(key) for key in keys]
        missing = [place for place, image in enumerate(found) if image is None]
        if missing:
            for place, image in zip(missing, decoded(self.pipeline.vae, latents[missing]).cpu().numpy(), strict=True):
                self._images.put(keys[place], image)
                found[place] = image
        return torch.from_numpy(np.stack([image for image in found if image is not None]))

    def _abduction(self, batch: PatchBatch, before: ConditionTensors) -> Generator[float, None, Any]:
        from .model.autoencoder import encode_latents
        from .model.counterfactual import abduct

        assert batch.crops is not None
        assert batch.edited is not None
        keys = [self._key(f"{key} {batch.steps}") for key in batch.edited.keys]
        paths = [self.cache.get(key) for key in keys]
        missing = [item for item, path in enumerate(paths) if path is None]
        if missing:
            latents = encode_latents(self.pipeline.vae, batch.crops[missing]).float()
            own = taken(before, missing)
            whole = at_once(len(missing))
            work = abduct(
                self.pipeline.transformer, self.pipeline.scheduler, latents, own, steps=batch.steps, batch=whole
            )
            try:
                found = yield from _shares(work, 0.0)
            except NotFiniteError as error:
                raise NotFiniteError(str(error), [missing[place] for place in error.items]) from error
            arrays = found.arrays()
            for place, item in enumerate(missing):
                path = np.stack([arrays["states"][:, place], arrays["slopes"][:, place]])
                self.cache.put(keys[item], path)
                paths[item] = path
            self.abducted += len(missing)
        whole_path = self._restored(paths, before)
        nodes = batch.sampling.nodes
        return whole_path.thinned((0, *(round(batch.steps * share) for share in nodes))) if nodes else whole_path

    def _restored(self, paths: Sequence[NDArray[np.float32] | None], before: ConditionTensors) -> Any:
        from .model.counterfactual import restored

        stacked = np.stack([path for path in paths if path is not None], axis=2)  # (2, steps + 1, b, c, h, w)
        return restored(self.pipeline.scheduler, {"states": stacked[0], "slopes": stacked[1]}, before)

    @memory_given_back()
    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode an image (H, W, 3) uint8 as latents (c, h, w), cached."""
        from .model.autoencoder import encode_latents

        key = self._key(f"latents {image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}")
        kept = self.cache.get(key)
        if kept is None:
            kept = encode_latents(self.pipeline.vae, image[None])[0].float().cpu().numpy()
            self.cache.put(key, kept)
        return kept

    def edit_canvas(
        self,
        latents: NDArray[np.float32],
        morphology: NDArray[np.float32],
        expression: NDArray[np.float32],
        edited: Edited,
        corners: NDArray[np.int64],
        weight: NDArray[np.float32],
        steps: int,
        batches: Batches,
    ) -> Generator[float, None, NDArray[np.float32]]:
        """Edit a canvas: yield the share of work done, return the change (c, h, w) of the slide's latents (c, h, w).

        ``corners`` (n, 2) are those of n windows, in latent cells, with ``weight`` (s, s); conditions are one for each window.
        """
        from .model.counterfactual import CanvasWindows, predict

        layout = CanvasWindows(corners, weight, (latents.shape[1], latents.shape[2]))
        before = conditions_of(morphology, expression)
        key = self._key(f"{edited.keys[0]} {steps}")
        after = conditions_of(edited.morphology, edited.expression)
        with memory_given_back():
            abduction = yield from self._canvas_path(key, latents, before, layout, steps, batches)
            work = predict(self.pipeline.transformer, abduction, after, scale=edited.scale, batch=batches)
            change = yield from _shares(work, 0.5)
        found: NDArray[np.float32] = change.numpy()
        return found

    def _canvas_path(
        self,
        key: str,
        latents: NDArray[np.float32],
        before: ConditionTensors,
        layout: Any,
        steps: int,
        batches: Batches,
    ) -> Generator[float, None, Any]:
        import torch

        from .model.counterfactual import abduct, restored

        count, side = len(layout.corners), layout.side
        kept = self.cache.get(key)
        if kept is None:
            work = abduct(
                self.pipeline.transformer,
                self.pipeline.scheduler,
                torch.tensor(latents),
                before,
                layout=layout,
                steps=steps,
                batch=batches,
            )
            found = yield from _shares(work, 0.0)
            arrays = found.arrays()
            self.cache.put(key, np.concatenate([arrays["states"].ravel(), arrays["slopes"].ravel()]))
            self.abducted += count
            return found
        kept = kept.copy()  # what the cache holds is read-only, which torch does not take
        channels = len(latents)
        shape = (steps + 1, channels, *layout.size)
        size = int(np.prod(shape))
        slopes = kept[size:].reshape(steps + 1, count, channels, side, side)
        arrays = {"states": kept[:size].reshape(shape), "slopes": slopes}
        return restored(self.pipeline.scheduler, arrays, before, layout)

    @memory_given_back()
    def decode_change(self, latents: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
        """Decode a change (c, h, w) of the slide's latents (c, h, w) into (H, W, 3) grey levels."""
        import torch

        from .model.counterfactual import decoded_change

        parts = (torch.tensor(part)[None] for part in (latents, change))
        found: NDArray[np.float32] = decoded_change(self.pipeline.vae, *parts)[0]
        return found

    def _key(self, content: str) -> str:
        return hashlib.sha256(f"{METHOD} {self.identity} {content}".encode()).hexdigest()


def at_once(count: int) -> Batches:
    """Return batches of a fixed size: the caller halves them itself."""
    return Batches(count, smallest=count)


def conditions_of(morphology: NDArray[np.float32] | None, expression: NDArray[np.float32] | None) -> ConditionTensors:
    """Return conditions as tensors."""
    import torch

    from .model.inference import ConditionTensors

    parts = (
        None if rows is None else torch.from_numpy(np.ascontiguousarray(rows)) for rows in (morphology, expression)
    )
    return ConditionTensors(*parts)


def taken(conditions: ConditionTensors, items: Sequence[int]) -> ConditionTensors:
    """Select the conditions of some items."""
    from .model.inference import ConditionTensors

    parts = (conditions.morphology, conditions.expression, conditions.expression_keep)
    return ConditionTensors(*(None if part is None else part[list(items)] for part in parts))


def _in_steps(work: Generator[float, None, Any], steps: int) -> Generator[DenoiseStep, None, Any]:
    """Yield shares of the work as steps, keeping the last one for the images; return the work's result."""
    return mapped(work, lambda share: DenoiseStep(min(int(share * steps), steps - 1), steps))


def _shares(work: Any, start: float) -> Generator[float, None, Any]:
    """Yield the share of the whole from an integration that is one half of it, beginning at ``start``."""
    return mapped(work, lambda step: start + step.fraction / 2)
