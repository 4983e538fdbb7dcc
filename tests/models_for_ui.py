"""Stand-in models that fail, or wait and count."""

import threading
import time

from standins import CropModel, NoiseModel

from napari_stmdit.synthesis.run import DenoiseStep


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
