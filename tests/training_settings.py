"""Settings of a training that takes seconds."""

from pathlib import Path

import yaml

TINY = {
    "name": "tiny",
    "output": "run",
    "workers": 1,
    "patch_px": 64,
    "patch_mpp": 0.7,
    "expression": {"genes": 12, "programs": 4, "thinning": 3.0},
    "autoencoder": {
        **{"latent_channels": 4, "crop_px": 32, "batch": 2, "steps": 3, "decoder_steps": 2},
        **{"encoder_widths": [16, 24], "decoder_widths": [24, 16, 16]},
    },
    "latents": {"crops": 10, "morphology_components": 6},
    "transformer": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_ratio": 2.0},
    "diffusion": {"steps": 4, "small_cells": 4, "small_batch": 3, "batch": 2, "validate_every": 2},
    "card": {"steps": 3, "training_data": "made up", "licence": "none", "limits": "a test"},
}


def write_config(path: Path, tiny_folder: Path, **changes: object) -> Path:
    """Write a config on the tiny section."""
    content = TINY | {"train": [{"kind": "folder", "name": "tiny", "folder": str(tiny_folder)}]} | changes
    path.write_text(yaml.safe_dump(content))
    return path
