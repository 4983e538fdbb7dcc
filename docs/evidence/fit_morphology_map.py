"""Give a checkpoint that was trained before there were maps its map from expression to morphology; nothing is trained.

    python docs/evidence/fit_morphology_map.py configs/demo_depth.yaml --root FOLDER_OF_THE_SECTIONS

It is fitted on the sections that the config trains on, as an export does it; the held-out ones are only tested: the correlation of each
principal component with what the map says of it. ``--write`` puts it into the checkpoint, with its words in the card.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch

from napari_stmdit.assemble import checkpoint_folder
from napari_stmdit.encoders.morphology_map import MorphologyMap
from napari_stmdit.model.folder import MORPHOLOGY_MAP, read_folder
from napari_stmdit.synthesis.counterfactual import encode_measured
from napari_stmdit.training.cards import map_section
from napari_stmdit.training.config import load_config
from napari_stmdit.training.export import MAP_ENTRY, encoders_of, fit_map
from napari_stmdit.training.sections import open_source

HEAD = "## How morphology follows expression"


def tested(follows: MorphologyMap, expression: np.ndarray, morphology: np.ndarray) -> list[float]:
    """Return r of the components that follow, on other tissue."""
    components = follows.components / np.linalg.norm(follows.components, axis=1, keepdims=True)
    real = (
        morphology.reshape(len(morphology), -1) - morphology.reshape(len(morphology), -1).mean(axis=0)
    ) @ components.T
    said = (expression - expression.mean(axis=0)) @ follows.weights
    return [round(float(np.corrcoef(a, b)[0, 1]), 3) for a, b in zip(real.T, said.T, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="what the checkpoint was trained by")
    parser.add_argument("--root", type=Path, help="folder of the data, in place of the config's")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.config, options.root, None)
    folder = read_folder(checkpoint_folder(options.checkpoint))
    device = torch.device("cpu")
    follows = fit_map(folder, [open_source(one, config) for one in config.train], device)
    print(json.dumps(follows.facts()))
    for section in (open_source(one, config) for one in config.held_out):
        expression, morphology, _ = encode_measured(section, folder.card, encoders_of(folder, device))
        print(section.name, json.dumps(tested(follows, expression, morphology)))
    if options.write:
        write(folder.path, follows)


def write(path: Path, follows: MorphologyMap) -> None:
    """Put the map into the folder, and its words into index, record and card."""
    follows.save(path / MORPHOLOGY_MAP)
    for file in (path / MORPHOLOGY_MAP).iterdir():
        file.chmod(0o644)
    for name, value in (("model_index.json", MAP_ENTRY), ("training.json", follows.facts())):
        content = json.loads((path / name).read_text(encoding="utf-8")) | {MORPHOLOGY_MAP: value}
        (path / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    card = (path / "README.md").read_text(encoding="utf-8")
    card = re.sub(rf"\n{HEAD}\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL)
    (path / "README.md").write_text(card.rstrip("\n") + "\n" + map_section(follows), encoding="utf-8")


if __name__ == "__main__":
    main()
