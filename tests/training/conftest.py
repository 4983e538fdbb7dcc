import gzip

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

TINY = {
    "name": "tiny",
    "output": "run",
    "workers": 1,
    "patch_px": 64,
    "patch_mpp": 0.7,
    "expression": {"genes": 12, "programs": 4, "thinning": 3.0},
    "autoencoder": {"latent_channels": 4, "crop_px": 32, "batch": 2, "steps": 3, "decoder_steps": 2},
    "latents": {"crops": 10, "morphology_components": 6},
    "transformer": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_ratio": 2.0},
    "diffusion": {"steps": 4, "small_cells": 4, "small_batch": 3, "batch": 2, "validate_every": 2},
    "card": {"steps": 3, "training_data": "made up", "licence": "none", "limits": "a test"},
}


@pytest.fixture
def tiny_config(tiny_folder, tmp_path):
    """A config on the tiny section, as a dictionary, and a function that writes it and returns its path."""

    def write(**changes):
        content = TINY | {"train": [{"kind": "folder", "name": "tiny", "folder": str(tiny_folder)}]} | changes
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def table_section(tmp_path):
    """A section as two tables and an image: 4 x 5 spots, 291 px a step along y and 290 along x, so about 0.6885 um per pixel."""
    rng = np.random.default_rng(0)
    names, rows, places = [f"G{k}" for k in range(30)], {}, []
    for row in range(4):
        for column in range(5):
            rows[f"{column + 7}x{row + 3}"] = rng.poisson(3, 30)
            places.append(
                {"x": column + 7, "y": row + 3, "pixel_x": 200.4 + 290 * column, "pixel_y": 150.2 + 291 * row}
            )
    counts, spots, image = tmp_path / "c.tsv.gz", tmp_path / "s.tsv", tmp_path / "i.png"
    with gzip.open(counts, "wt") as file:
        pd.DataFrame.from_dict(rows, orient="index", columns=names).iloc[:-1].to_csv(file, sep="\t")
    pd.DataFrame(places).to_csv(spots, sep="\t", index=False)
    Image.fromarray(rng.integers(0, 256, (1200, 1500, 3), dtype=np.uint8)).save(image)
    return {"counts": counts, "spots": spots, "image": image}
