"""Stand-in models that fail, or wait and count."""

import threading
import time
from dataclasses import replace

import numpy as np
from standins import CropModel, NoiseModel

from napari_stmdit.errors import StmditError
from napari_stmdit.synthesis.models import Pasted, Preview
from napari_stmdit.types import DenoiseStep


class FailingModel(CropModel):
    """Raises amid denoising, after some batches went well."""

    def __init__(self, card, error, good_batches=0):
        super().__init__(card)
        self.error, self.good_batches = error, good_batches

    def denoise(self, batch):
        if len(self.batches) < self.good_batches:
            yield from super().denoise(batch)
            return
        yield DenoiseStep(1, batch.steps)
        raise self.error


class SlowModel(NoiseModel):
    """Takes its time at every step, and counts them."""

    def __init__(self, card, step_s=0.02):
        super().__init__(card)
        self.step_s = step_s
        self.steps_done = 0
        self.closed = threading.Event()

    def denoise(self, batch):
        try:
            for step in super().denoise(batch):
                time.sleep(self.step_s)
                self.steps_done += 1
                yield step
        finally:
            self.closed.set()


class Tinted(NoiseModel):
    """Noise from each patch's own seed, shaded by its expression; shows a look at the first patch when asked."""

    def images(self, batch):
        tint = np.zeros(len(batch.patches)) if batch.expression is None else batch.expression[:, 0] % 64
        return np.clip(super().images(batch) * 0.7 + tint[:, None, None, None], 0, 255).astype(np.uint8)

    def denoise(self, batch):
        for step in super().denoise(batch):
            look = batch.preview_every and step.images is None and step.step % batch.preview_every == 0
            yield replace(step, preview=self.images(batch)[0]) if look else step


class ByHand:
    """Starts jobs and drives them one value at a time, as a worker would between two looks of the event loop."""

    def __init__(self):
        self.open = []
        self.ended = set()

    def __call__(self, job, token, handlers):
        self.open.append((job.guarded(token), handlers))

    def step(self, number=-1):
        values, handlers = self.open[number]
        try:
            while isinstance(value := next(values), Preview | Pasted):
                handlers.value(value)  # a step of a run ends with its progress
            handlers.value(value)
        except StopIteration:
            pass
        except StmditError as error:
            handlers.error(error)
        else:
            return True
        self.ended.add(number % len(self.open))
        handlers.end()
        return False

    def finish(self, number=-1):
        while self.step(number):
            pass

    def finish_all(self):
        """Finish what was begun and has not ended, in its order, and what that begins."""
        while waiting := [number for number in range(len(self.open)) if number not in self.ended]:
            self.finish(waiting[0])
