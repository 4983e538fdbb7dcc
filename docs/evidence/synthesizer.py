"""Many patches for the evidence scripts: several one-thread processes, every finished job kept, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.evaluation.measures import SpotSet, crops_at
from napari_stmdit.intent import Guidance
from napari_stmdit.synthesis.plan import patch_seed
from napari_stmdit.training.config import load_config
from napari_stmdit.training.sections import open_source
from napari_stmdit.types import GuidanceScales, Sampling, Section

__all__ = ["Spots", "Synthesizer", "crops_at", "open_named", "quarters"]
AT_ONCE = 8
CHUNK = 16
_state: dict[str, Any] = {}


class Spots(SpotSet):
    """Spots of a section, with the seeds of their patches."""

    def seeds(self, seed: int) -> tuple[int, ...]:
        """Return the seed of each spot's patch for a run's seed, as a plan gives them."""
        return tuple(patch_seed(seed, spot) for spot in self.ids)


def _start(checkpoint: str, dtype: str) -> None:
    import torch

    torch.set_num_threads(1)
    _state["checkpoint"] = load_checkpoint(checkpoint, device="cpu", dtype=dtype)


def _synthesize(job: dict[str, Any]) -> np.ndarray:
    checkpoint = _state["checkpoint"]
    images = []
    for start in range(0, len(job["seeds"]), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        *_, last = checkpoint.pipeline.denoise_images(
            morphology=None if job["morphology"] is None else job["morphology"][part],
            expression=None if job["expression"] is None else job["expression"][part],
            seeds=job["seeds"][part],
            sampling=Sampling(GuidanceScales.of(job["guidance"]), job["steps"]),
        )
        images.append(last.images)
    return np.concatenate(images)


class Synthesizer:
    """Synthesizes patches of one checkpoint and keeps them.

    Parameters
    ----------
    checkpoint
        Name or folder.
    folder
        Where finished jobs are kept; a folder of one's own for each checkpoint.
    workers, dtype, steps
        Processes; precision; denoising steps, None for the checkpoint's own.
    """

    def __init__(self, checkpoint: str, folder: Path, workers: int, dtype: str, steps: int | None) -> None:
        self.checkpoint = load_checkpoint(checkpoint, device="cpu", dtype="float32")
        self.steps = steps or self.checkpoint.card.steps
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(checkpoint, dtype))
        self._sha = self.checkpoint.provenance["sha256"]

    def guidance(self, expression: float | None = None, morphology: float | None = None) -> Guidance:
        """Return the checkpoint's guidance, with other scales where they are given."""
        wanted = Guidance(expression=expression, morphology=morphology).model_dump(exclude_none=True)
        return self.checkpoint.card.guidance.model_copy(update=wanted)

    def images(
        self,
        seeds: Sequence[int],
        morphology: np.ndarray | None,
        expression: np.ndarray | None,
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """Return (n, side, side, 3) uint8 for n seeds, morphology (n, 1, d) or None and expression (n, d) or None."""
        guidance = guidance or self.guidance()
        path = self.folder / f"{self._key(seeds, morphology, expression, guidance)}.npz"
        if path.is_file():
            return np.load(path)["images"]
        jobs = []
        for start in range(0, len(seeds), CHUNK):
            part = slice(start, start + CHUNK)
            jobs.append(
                {
                    "seeds": tuple(seeds[part]),
                    "morphology": None if morphology is None else morphology[part],
                    "expression": None if expression is None else expression[part],
                    "guidance": guidance,
                    "steps": self.steps,
                }
            )
        images = np.concatenate(list(self._pool.map(_synthesize, jobs)))
        draft = path.with_suffix(".writing.npz")
        np.savez(draft, images=images)
        draft.replace(path)
        return images

    def _key(self, seeds, morphology, expression, guidance) -> str:
        digest = hashlib.sha256(f"{self._sha} {list(seeds)} {guidance.model_dump_json()} {self.steps}".encode())
        for array in (morphology, expression):
            digest.update(b"null" if array is None else np.ascontiguousarray(array, dtype=np.float32).tobytes())
        return digest.hexdigest()[:24]


def quarters(patches: np.ndarray) -> np.ndarray:
    """Cut (n, h, w, 3) patches into quarters, (4n, h / 2, w / 2, 3): more samples for a distance between sets."""
    y, x = patches.shape[1] // 2, patches.shape[2] // 2
    return np.concatenate([patches[:, :y, :x], patches[:, :y, x:], patches[:, y:, :x], patches[:, y:, x:]])


def open_named(config_path: Path, root: Path | None, name: str) -> Section:
    """Open a section of a training config by its name."""
    config = load_config(config_path, root)
    return open_source(next(s for s in (*config.held_out, *config.train) if s.name == name), config)
