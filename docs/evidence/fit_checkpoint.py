"""Fit anew what a checkpoint takes from its training sections without training: its map from expression to morphology, its tissue profiles.

    python docs/evidence/fit_checkpoint.py map configs/demo.yaml --root FOLDER_OF_THE_SECTIONS
    python docs/evidence/fit_checkpoint.py profiles configs/demo.yaml --root FOLDER_OF_THE_SECTIONS

Both are made of the sections that the config trains on, as an export does it. The held-out ones are only tested: for the map the correlation
of each principal component with what the map says of it. ``--write`` puts it into the checkpoint, with its words in the card.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from napari_stmdit.assemble import checkpoint_folder
from napari_stmdit.encoders.morphology_map import MorphologyMap
from napari_stmdit.model.folder import MORPHOLOGY_MAP, PROFILES, CheckpointFolder, read_folder
from napari_stmdit.progress import finish
from napari_stmdit.synthesis.counterfactual import encoding_steps
from napari_stmdit.training.cards import map_section, profiles_section
from napari_stmdit.training.config import TrainingConfig, load_config
from napari_stmdit.training.export import MAP_ENTRY, encoders_of, fit_map, write_profiles
from napari_stmdit.training.sections import open_source


def tested(follows: MorphologyMap, expression: np.ndarray, morphology: np.ndarray) -> list[float]:
    """Return r of the components that follow, on other tissue."""
    components = follows.components / np.linalg.norm(follows.components, axis=1, keepdims=True)
    real = (
        morphology.reshape(len(morphology), -1) - morphology.reshape(len(morphology), -1).mean(axis=0)
    ) @ components.T
    said = (expression - expression.mean(axis=0)) @ follows.weights
    return [round(float(np.corrcoef(a, b)[0, 1]), 3) for a, b in zip(real.T, said.T, strict=True)]


def fit_the_map(config: TrainingConfig, folder: CheckpointFolder, write: bool) -> None:
    """Fit the map, test it, and write it where asked."""
    device = torch.device("cpu")
    follows = fit_map(folder, [open_source(one, config) for one in config.train], device)
    print(json.dumps(follows.facts()))
    for section in (open_source(one, config) for one in config.held_out):
        expression, morphology, _ = finish(encoding_steps(section, folder.card, encoders_of(folder, device)))
        print(section.name, json.dumps(tested(follows, expression, morphology)))
    if write:
        follows.save(folder.path / MORPHOLOGY_MAP)
        for file in (folder.path / MORPHOLOGY_MAP).iterdir():
            file.chmod(0o644)
        enter(folder.path / "model_index.json", MORPHOLOGY_MAP, MAP_ENTRY)
        enter(folder.path / "training.json", MORPHOLOGY_MAP, follows.facts())
        say(folder.path / "README.md", map_section(follows))


def measure_the_profiles(config: TrainingConfig, folder: CheckpointFolder, write: bool) -> None:
    """Measure the profiles, print where they were found, and write them where asked."""
    encoder = encoders_of(folder, torch.device("cpu")).expression
    with tempfile.TemporaryDirectory() as work:
        found = write_profiles(config.model_copy(update={"output": Path(work)}), encoder, Path(work))
        print(json.dumps({name: profile.found for name, profile in found.items()}, indent=1))
        if write:
            shutil.copyfile(Path(work) / PROFILES, folder.path / PROFILES)
    if write:
        where = {name: profile.found for name, profile in found.items()}
        enter(folder.path / "stmdit.json", "profiles", list(found))
        enter(folder.path / "training.json", "profiles", where)
        say(folder.path / "README.md", profiles_section(where))


def enter(file: Path, name: str, value: object) -> None:
    """Put a value into a file of JSON."""
    content = json.loads(file.read_text(encoding="utf-8")) | {name: value}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def say(card: Path, section: str) -> None:
    """Put a section into a card, in the place of the one of its heading, else at the end."""
    words, heading = card.read_text(encoding="utf-8"), re.escape(section.strip().splitlines()[0])
    there = re.compile(rf"\n{heading}\n.*?(?=\n## |\Z)", flags=re.DOTALL)
    section = "\n" + section.strip("\n") + "\n"
    words = there.sub(lambda _: section, words) if there.search(words) else words.rstrip("\n") + "\n" + section
    card.write_text(words.rstrip("\n") + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "profiles"])
    parser.add_argument("config", type=Path, help="what the checkpoint was trained by")
    parser.add_argument("--root", type=Path, help="folder of the data, in place of the config's")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.config, options.root, None)
    folder = read_folder(checkpoint_folder(options.checkpoint))
    {"map": fit_the_map, "profiles": measure_the_profiles}[options.what](config, folder, options.write)


if __name__ == "__main__":
    main()
