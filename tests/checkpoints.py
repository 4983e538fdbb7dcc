"""Tiny real checkpoints, made on the spot: every component is the real class, with few and random weights."""

import json
from pathlib import Path

import numpy as np
import torch

from napari_stmdit.intent import CheckpointCard, Guidance, hash_genes

TINY_OPTIONS = {
    "in_channels": 12,
    "out_channels": 12,
    "sample_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "morphology_dim": 10,
    "morphology_expand": 4,
    "morphology_adaln": True,
    "expression_dim": 8,
    "expression_adaln": True,
    "expression_cross_attention": True,
    "expression_expand": 4,
    "qk_norm": True,
    "ff_conv": True,
    "cross_norm": True,
    "position_embedding": "none",
}
"""The options of the bundled checkpoint's transformer, in small: latents of 8 x 8, so patches of 64 px."""


def randomised(network: torch.nn.Module, seed: int = 0, scale: float = 0.1) -> torch.nn.Module:
    """Add noise to every parameter: many start at zero or one, and a wrong use of those would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return network.eval()


def tiny_transformer(**changes):
    """A transformer with every option of ours switched on."""
    from napari_stmdit.model.transformer import STMDiTTransformer2D

    torch.manual_seed(0)
    return randomised(STMDiTTransformer2D(**{**TINY_OPTIONS, **changes}))


def plain_transformer(**changes):
    """A transformer as PixCell's and STMDiT's are: none of our own options, learned sigma, position table."""
    from napari_stmdit.model.transformer import STMDiTTransformer2D

    options = {
        "in_channels": 4,
        "out_channels": 8,
        "learn_sigma": True,
        "sample_size": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "morphology_dim": 10,
        "expression_dim": 8,
        "expression_adaln": True,
        "expression_cross_attention": True,
        "position_scale": 0.5,
    }
    torch.manual_seed(0)
    return randomised(STMDiTTransformer2D(**{**options, **changes}))


def write_tiny_checkpoint(
    folder: Path,
    genes: tuple[str, ...],
    *,
    patch_mpp: float = 0.688,
    steps: int = 4,
    profiles=("tumour", "stroma"),
    **card,
) -> Path:
    """Write a complete checkpoint folder for 64 px patches of these genes, and return it."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from safetensors.numpy import save_file

    from napari_stmdit.encoders.linear_programs import LinearProgramEncoder
    from napari_stmdit.encoders.morphology_map import MorphologyMap
    from napari_stmdit.encoders.small_conv import FeatureTrunk, SmallConvEncoder
    from napari_stmdit.model.autoencoder import StmditAutoencoder

    rng = np.random.default_rng(0)
    tiny_transformer().save_pretrained(folder / "transformer")
    torch.manual_seed(0)
    vae = StmditAutoencoder(latent_channels=12, encoder_widths=(8, 8), decoder_widths=(8, 8, 8))
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    count = len(genes)
    LinearProgramEncoder(
        genes,
        mean=np.ones(count, np.float32),
        scale=np.ones(count, np.float32),
        abundance=np.full(count, 1e4 / count, np.float32),
        projection=rng.normal(size=(count, 8)).astype(np.float32) / np.float32(np.sqrt(count)),
        offset=np.zeros(8, np.float32),
    ).save(folder / "expression_encoder")
    statistics = 6 + 2 * 8 + 2 * 8
    SmallConvEncoder(
        FeatureTrunk((8, 8)),
        mean=torch.zeros(statistics),
        projection=torch.from_numpy(rng.normal(size=(statistics, 10)).astype(np.float32)),
    ).save(folder / "morphology_encoder")
    index = {
        "_class_name": "STMDiTPipeline",
        "transformer": ["napari_stmdit.model.transformer", "STMDiTTransformer2D"],
        "vae": ["napari_stmdit.model.autoencoder", "StmditAutoencoder"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "expression_encoder": ["napari_stmdit.encoders.linear_programs", "LinearProgramEncoder"],
        "morphology_encoder": ["napari_stmdit.encoders.small_conv", "SmallConvEncoder"],
        "morphology_map": ["napari_stmdit.encoders.morphology_map", "MorphologyMap"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    values = {
        "name": "tiny",
        "patch_px": 64,
        "patch_mpp": patch_mpp,
        "guidance": Guidance(expression=2.0, morphology=1.5, rule="nested_morphology_first"),
        "steps": steps,
        "genes": genes,
        "gene_hash": hash_genes(genes),
        "profiles": tuple(profiles),
        "training_data": "none: random weights",
        "licence": "BSD-3-Clause",
        "limits": "Random weights: its images mean nothing.",
    }
    (folder / "stmdit.json").write_text(CheckpointCard(**{**values, **card}).model_dump_json(indent=1))
    MorphologyMap(
        (1, 10),
        weights=rng.normal(size=(8, 3)).astype(np.float32),
        components=rng.normal(size=(3, 10)).astype(np.float32),
        r2=np.full(3, 0.5, np.float32),
        share=0.5,
        penalties=np.ones(3, np.float32),
        spots=100,
    ).save(folder / "morphology_map")
    arrays = {f"{name}.mean": rng.gamma(1.0, size=count).astype(np.float32) for name in profiles}
    save_file(arrays | {"tumour.spread": np.ones(count, np.float32)}, folder / "profiles.safetensors")
    return folder
