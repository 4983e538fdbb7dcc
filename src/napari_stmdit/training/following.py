"""The map from expression to morphology of an exported checkpoint: fitted on the very sections that it was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoders.morphology_map import MorphologyMap
from ..model.folder import MORPHOLOGY_MAP, CheckpointFolder, map_folder, read_folder
from ..synthesis.counterfactual import fitted_map
from ..types import Genes, Section
from .config import TrainingConfig
from .parallel import choose_compute
from .start import open_start, source_sections, starting_sources

MAP_ENTRY = [MorphologyMap.__module__, MorphologyMap.__name__]
"""What ``model_index.json`` says of the map."""


@dataclass(frozen=True)
class TrainedEncoders:
    """Encoders of a checkpoint folder, as `fitted_map` asks for them."""

    expression: Any
    morphology: Any

    def encode_expression(
        self, counts: Any, genes: Genes, spots: Sequence[str] = (), depth: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encode counts (n, g)."""
        return np.asarray(self.expression.encode(counts, genes, depth), dtype=np.float32)

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode crops (n, patch_px, patch_px, 3)."""
        return np.asarray(self.morphology.encode(patches), dtype=np.float32)


def encoders_of(folder: CheckpointFolder, device: torch.device) -> TrainedEncoders:
    """Open a checkpoint's encoders; raises CheckpointError where one is not on this computer."""
    return TrainedEncoders(*starting_sources(folder, device))


def fit_map(folder: CheckpointFolder, sections: Sequence[Section], device: torch.device) -> MorphologyMap:
    """Fit a checkpoint's map on sections; raises CheckpointError where one of its encoders is not on this computer."""
    return fitted_map(sections, folder.card, encoders_of(folder, device))


def write_map(config: TrainingConfig, draft: Path) -> MorphologyMap:
    """Write the map into a checkpoint that is whole but for it, and return it.

    That of the checkpoint to start from is kept where expression is still read as there; the encoder of morphology never changes then.
    """
    place = draft / MORPHOLOGY_MAP
    kept = kept_map(config)
    if kept is not None:
        shutil.copytree(kept, place)
        return MorphologyMap.load(place)
    found = fit_map(read_folder(draft), source_sections(config, "train"), torch.device(choose_compute(config).device))
    found.save(place)
    return found


def kept_map(config: TrainingConfig) -> Path | None:
    """Return the folder of the map that the checkpoint to start from has and that still holds; None where one is to be fitted."""
    return None if config.start is None or config.expression.refit else map_folder(open_start(config))
