"""Does the checkpoint repeat what it saw? Nearest training crops of synthetic patches, and of real patches it never saw."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from parts_table import case_images, test_spots
from PIL import Image
from synthesizer import Synthesizer

from napari_stmdit.evaluation.spaces import EncoderStatistics, Frame, RandomConvolutions
from napari_stmdit.training.data import TrainingSection, cut, load_training_section

Place = tuple[str, float, float]
"""Section, y and x of a crop's centre in pixels at the checkpoint's scale."""

PATCHES = 100
STRIDE_PX = 128
REACH_UM = 103.0
SHOWN = 12


def memory(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Return feature distances and pixel correlations to the nearest training crop, for synthetic and for real held-out patches."""
    spots = test_spots(maker, options)
    chosen = np.sort(np.random.default_rng(2).permutation(len(spots.rows))[:PATCHES])
    sets = {
        "real, held out": spots.crops[chosen],
        "synthetic, both": case_images(maker, spots, "both", 0)[chosen],
        "synthetic, expression": case_images(maker, spots, "expression", 0)[chosen],
    }
    sections, places = training_crops(maker, options)
    side = maker.checkpoint.card.patch_px
    out: dict[str, Any] = {"training_crops": len(places), "patches": len(chosen)}
    for space in (EncoderStatistics(maker.checkpoint.morphology, "own encoder"), RandomConvolutions()):
        learned = np.concatenate(
            [
                space.features(np.stack([crop_of(sections, place, side) for place in places[start : start + 64]]))
                for start in range(0, len(places), 64)
            ]
        )
        frame = Frame.of(learned)
        keys = frame.project(learned)
        keys_spread = keys.std(axis=0)
        entry = {}
        for name, patches in sets.items():
            # features are nearly, not exactly, blind to symmetry: the nearest over all eight is taken
            best, distance = nearest(space, frame, keys, keys_spread, patches)
            entry[name] = {"quantiles_5_25_50": np.quantile(distance, [0.05, 0.25, 0.5]).round(3)}
            if space.name != "own encoder":
                pairs = [crop_of(sections, places[k], side) for k in best]
                entry[name]["largest_pixel_correlation"] = round(max(map(likeness, patches, pairs)), 3)
                if name != "real, held out":
                    show(patches, pairs, distance, options.work / f"nearest_{name.split(', ')[1]}.png")
        out[space.name] = entry
    return out


def training_crops(maker: Synthesizer, options: argparse.Namespace) -> tuple[dict[str, TrainingSection], list[Place]]:
    """Return the training sections in memory, and the places of dense crops on their tissue."""
    card = maker.checkpoint.card
    sections = {
        name: load_training_section(options.open(name), card.patch_mpp, options.work / "pixels")
        for name in options.trained_on
    }
    places: list[Place] = []
    for name, section in sections.items():
        reach = REACH_UM / section.mpp
        spans = [np.arange(axis.min() - reach, axis.max() + reach, STRIDE_PX) for axis in section.yx.T]
        grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 2)
        far = np.array([np.abs(section.yx - centre).max(axis=1).min() for centre in grid])
        places += [(name, *centre) for centre in grid[far <= reach]]
    return sections, places


def crop_of(sections: dict[str, TrainingSection], place: Place, side: int) -> np.ndarray:
    """Cut one training crop."""
    return cut(sections[place[0]].pixels, np.array(place[1:]), side)[0]


def symmetries(patches: np.ndarray):
    """Yield the patches under the eight symmetries of the square."""
    for turns in range(4):
        turned = np.rot90(patches, turns, axes=(1, 2))
        yield turned
        yield turned[:, :, ::-1]


def nearest(space, frame, keys, spread, patches) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of the nearest key and its distance, over all symmetries, each axis in units of the keys' spread."""
    best, row = np.full(len(patches), np.inf), np.zeros(len(patches), dtype=int)
    for turned in symmetries(patches):
        query = frame.project(space.features(np.ascontiguousarray(turned)))
        gap = np.linalg.norm(query[:, None] / spread - keys[None] / spread, axis=2)
        closest = gap.argmin(axis=1)
        value = gap[np.arange(len(gap)), closest]
        row, best = np.where(value < best, closest, row), np.minimum(best, value)
    return row, best


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest Pearson correlation of the pixels of two patches over the symmetries."""
    flat = a.astype(float).mean(axis=-1).ravel()
    return max(
        float(np.corrcoef(flat, turned[0].mean(axis=-1).ravel())[0, 1]) for turned in symmetries(b[None].astype(float))
    )


def show(patches: np.ndarray, pairs: list[np.ndarray], distance: np.ndarray, path) -> None:
    """Write the closest pairs, synthetic above and real below; shows real tissue, so it stays out of the repository."""
    order = np.argsort(distance)[:SHOWN]
    sheet = np.concatenate([np.concatenate([patches[k], pairs[k]], axis=0) for k in order], axis=1)
    Image.fromarray(sheet).save(path)
