import gzip
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from training_settings import write_config


@pytest.fixture
def tiny_config(tiny_folder, tmp_path):
    """A function that writes a config on the tiny section with changes, and returns its path."""
    return partial(write_config, tmp_path / "config.yaml", tiny_folder)


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
