"""Diffusers pipeline from conditions to H&E patches; stoppable after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import SynthesisError
from ..intent import DEFAULT_STEPS, Guidance
from ..types import DenoiseStep, GuidanceScales, Sampling
from .autoencoder import decode_latents, latent_channels, spatial_factor
from .base import DiffusionPipeline, ImagePipelineOutput
from .guidance import Branch, branches
from .inference import ConditionTensors
from .sampling import denoise, fast_solver, noise_for


class STMDiTPipeline(DiffusionPipeline):
    """Synthesizes H&E patches from morphology and gene expression.

    Parameters
    ----------
    transformer
        `napari_stmdit.model.transformer.STMDiTTransformer2D`.
    vae
        ``AutoencoderKL`` of diffusers, or the bundled ``StmditAutoencoder``.
    scheduler
        A deterministic diffusers scheduler, for noise or for flow prediction.
    preview_vae
        ``AutoencoderTiny`` of diffusers, which decodes quickly and less well; None where there is none.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["preview_vae"]  # diffusers' name and kind

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, preview_vae: Any = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, preview_vae=preview_vae)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Set to True, from a callback or another thread, to make a call stop after its present step."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    def __call__(
        self,
        morphology: ArrayLike | Tensor | None = None,
        expression: ArrayLike | Tensor | None = None,
        expression_keep: ArrayLike | Tensor | None = None,
        guidance: Guidance | None = None,
        num_inference_steps: int = DEFAULT_STEPS,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], Any] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Synthesize one patch for each row of the conditions.

        Parameters
        ----------
        morphology
            (b, t, dm), or (b, dm) where the transformer takes one vector; None: null.
        expression
            (b, dg) or (b, g, dg); None: null.
        expression_keep
            (b, g) bool, True for the expression vectors that count.
        guidance
            Scales and rule; what is None is taken from `napari_stmdit.intent.DEFAULT_GUIDANCE`.
        num_inference_steps
            Denoising steps.
        seeds, generator, latents
            The noise: one seed or one generator for each patch, or the noise itself (b, c, h, w). None of them: random.
        height, width
            Pixels of a patch; the size the transformer was trained on by default.
        output_type
            ``np`` (uint8 (b, height, width, 3)), ``pil`` or ``latent``.
        return_dict
            Whether to return an ``ImagePipelineOutput`` rather than a tuple.
        callback_on_step_end
            Called as (pipeline, step, time, {"latents": ...}) after each step; may set ``pipeline.interrupt``.

        Returns
        -------
        ImagePipelineOutput
            The images, in ``images``; after an interrupt, of the step that was reached.

        Raises
        ------
        SynthesisError
            Conditions, seeds and sizes do not fit each other or the transformer.
        """
        self._interrupt = False
        conditions, batch = self.prepare_conditions(morphology, expression, expression_keep, seeds, generator, latents)
        noise = self.prepare_noise(batch, seeds if seeds is not None else generator, latents, height, width)
        times = self.timesteps(num_inference_steps)
        final = noise
        sampling = Sampling(GuidanceScales.of(guidance or Guidance()), num_inference_steps)
        for step, final in self.denoise(noise, conditions, sampling):
            if callback_on_step_end is not None:
                callback_on_step_end(self, step - 1, times[step - 1], {"latents": final})
            if self._interrupt:
                break
        images: Any = final if output_type == "latent" else decode_latents(self.vae, final)
        if output_type == "pil":
            images = self.numpy_to_pil(images / 255.0)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def denoise_images(
        self,
        morphology: ArrayLike | Tensor | None = None,
        expression: ArrayLike | Tensor | None = None,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        preview_every: int = 0,
    ) -> Iterator[DenoiseStep]:
        """Synthesize as a call does, one step at a time; closing the generator ends the work. Parameters as for a call.

        Parameters
        ----------
        sampling
            Guidance, steps, solver and decoder; None: the defaults.
        preview_every
            Number of steps between previews of the first patch, (height, width, 3) uint8; 0: none. Each costs one decoding.

        Yields
        ------
        DenoiseStep
            The last one carries the images (b, height, width, 3) uint8.
        """
        conditions, batch = self.prepare_conditions(morphology, expression, None, seeds)
        noise = self.prepare_noise(batch, seeds, None, height, width)
        sampling = sampling or Sampling()
        steps = sampling.steps
        preview: NDArray[np.uint8] | None = None

        def decode_preview(step: int, clean: Tensor) -> None:
            nonlocal preview
            due = step % preview_every == 0 and step < steps
            preview = self.decode(clean[:1], preview=True)[0] if due else None

        on_estimate = decode_preview if preview_every > 0 else None
        for step, latents in self.denoise(noise, conditions, sampling, on_estimate):
            images = self.decode(latents, sampling.preview_decoder) if step == steps else None
            yield DenoiseStep(step, steps, images, preview)

    def prepare_conditions(
        self,
        morphology: ArrayLike | Tensor | None,
        expression: ArrayLike | Tensor | None,
        expression_keep: ArrayLike | Tensor | None = None,
        *others: Any,
    ) -> tuple[ConditionTensors, int]:
        """Put conditions into tensors and count the patches; ``others`` are further things with one entry a patch.

        Raises
        ------
        SynthesisError
            They disagree on the number of patches.
        """
        tensors = ConditionTensors(_tensor(morphology), _tensor(expression), _tensor(expression_keep))
        given = [tensors.morphology, tensors.expression, tensors.expression_keep, *others]
        counts = {1 if isinstance(one, torch.Generator) else len(one) for one in given if one is not None} or {1}
        if len(counts) > 1:
            raise SynthesisError(
                f"Conditions and seeds are for {' and '.join(map(str, sorted(counts)))} patches; give one each."
            )
        return tensors, counts.pop()

    def prepare_noise(
        self,
        batch: int,
        seeds: Sequence[int] | torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Return the starting noise (b, c, h, w) float32, each patch's from its own seed.

        Raises
        ------
        SynthesisError
            The size in pixels is no multiple of the size of a token.
        """
        if latents is not None:
            return latents
        factor, trained = spatial_factor(self.vae), int(self.transformer.config.sample_size)
        token = factor * int(self.transformer.config.patch_size)
        sides = [side or trained * factor for side in (height, width)]
        if any(side % token for side in sides):
            raise SynthesisError(
                f"A patch of {sides[0]} x {sides[1]} px cannot be made: sides must be multiples of {token} px."
            )
        if seeds is None:
            seeds = [int(seed) for seed in torch.randint(2**31, (batch,))]
        own = [seeds] if isinstance(seeds, torch.Generator) else seeds
        return noise_for(own, (latent_channels(self.vae), *(side // factor for side in sides)))

    def timesteps(self, steps: int) -> list[float]:
        """Return the timesteps of a number of steps, largest first."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        return [float(time) for time in scheduler.timesteps]

    def denoise(
        self,
        noise: Tensor,
        conditions: ConditionTensors,
        sampling: Sampling,
        on_estimate: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (step, latents) after every denoising step; see `napari_stmdit.model.sampling.denoise`."""
        has = conditions.morphology is not None, conditions.expression is not None
        given = (noise, conditions, self.branches(sampling, *has), sampling.steps, on_estimate)
        return denoise(self.transformer, self.solver(sampling), *given, above=sampling.guidance.above)

    def branches(self, sampling: Sampling, has_morphology: bool, has_expression: bool) -> tuple[Branch, ...]:
        """Return the predictions that guidance combines; see `napari_stmdit.model.guidance.branches`."""
        scales = sampling.guidance
        has = {"has_morphology": has_morphology, "has_expression": has_expression}
        return branches(scales.rule, scales.morphology, scales.expression, **has)

    def solver(self, sampling: Sampling) -> Any:
        """Return the scheduler that a sampling uses."""
        return fast_solver(self.scheduler) if sampling.fast_solver else self.scheduler

    def decode(self, latents: Tensor, preview: bool = False) -> NDArray[np.uint8]:
        """Decode latents (b, c, h, w) into images (b, H, W, 3) uint8; with ``preview`` by the preview decoder, where there is one."""
        return decode_latents(self.preview_vae if preview and self.preview_vae is not None else self.vae, latents)


def _tensor(values: ArrayLike | Tensor | None) -> Tensor | None:
    if values is None or isinstance(values, Tensor):
        return values
    return torch.as_tensor(np.asarray(values))
