"""The folder that the commands of the pages are run in: small real files under the names that the pages use.

Everything is real and small: sections of 30 spots, checkpoints of two blocks with random weights, a hub on this computer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoints import plain_transformer, write_tiny_checkpoint
from documentation import ROOT, Page
from foreign import SETTINGS
from hub import LocalHub
from PIL import Image
from slides import tissue_picture, write_aperio, write_pyramid, write_table
from tiny import TINY_GENES, TINY_MPP, TINY_SIDE_PX, tiny_arrays

GENES = tuple("GRB7" if gene == "ACTB" else gene for gene in TINY_GENES)
"""Those of the tiny section, with every gene that the pages' edits name."""
PROFILES = ("tumour", "stroma", "adipose", "immune")
UNI_WIDTH, CANCER_WIDTH, LATENTS = 1536, 256, 16
"""What the published encoders and the SD3.5 autoencoder give: `convert` knows them by it."""
SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}


def make_workspace(place: Path, pages: list[Page]) -> Path:
    """Make the folder: files that pages show, under the names they give, and what else their commands ask for."""
    for page in pages:
        write_files(page, place)
    for folder in ("outs", "C3/outs", "B4/outs", "train", "held"):
        _section(place / folder)
        (place / folder / "slide.png").unlink()  # as Space Ranger leaves it: without the image that it was run on
    for folder in ("SECTION", "A", "B", "C", "cohort/one", "cohort/two"):
        _section(place / folder)
    (place / "request.yaml").write_text("region: {kind: sample, count: 2}\n")
    _slides(place)
    square = [[100, 100], [600, 100], [600, 600], [100, 600], [100, 100]]
    for name in ("lasso", "B4_tumour"):
        (place / f"{name}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    (place / "ERBB2_low.yaml").write_text("- {operation: scale, genes: [ERBB2], factor: 0.2}\n")
    (place / "genes.txt").write_text("\n".join(GENES) + "\n")
    _foreign(place)
    _embeddings(place)
    _training(place)
    (place / "demo").mkdir()  # what `stmdit demo --output demo` leaves behind stands in nobody's way
    (place / "DIR").mkdir()
    torch.save({"weight": torch.zeros(2, 2)}, place / "DIR" / "pytorch_model.bin")
    return place


def write_files(page: Page, place: Path) -> None:
    """Write the files that a page shows; what is long in them, short."""
    for block in page.blocks:
        if block.mark == "file":
            text = re.sub(r"\bsteps: \d+", "steps: 2", block.text)
            (place / block.name).write_text(text.replace("{kind: all}", "{kind: sample, count: 4}"))


def make_home(place: Path) -> Path:
    """Make a folder of the user's data in which the name ``demo`` means a small checkpoint, in every process that looks there."""
    write_tiny_checkpoint(place / "checkpoints" / "demo", GENES, steps=2, profiles=PROFILES)
    return place


@contextmanager
def served() -> Iterator[LocalHub]:
    """Serve small files under the names of the published ones."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save

    from napari_stmdit.bench.stages import SD3_VAE
    from napari_stmdit.model.foreign.keys import from_native

    with LocalHub() as hub:
        rows = "stmdit-anon/stmdit-checkpoints"
        hub.put(rows, "adaln-ddpm-p06/model.pt", _bytes(_transformer()))
        hub.put(rows, "adaln-ddpm-p06/training_config.yaml", yaml.safe_dump(SETTINGS).encode(), lfs=False)
        net = _transformer(expression_dim=None, expression_adaln=False, expression_cross_attention=False)
        tensors = {name: part.clone() for name, part in from_native(net.state_dict(), "diffusers").items()}
        sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
        shape = {"in_channels": LATENTS, "out_channels": 2 * LATENTS, "sample_size": 32, "patch_size": 2}
        config = {"_class_name": "PixCellTransformer2DModel", "caption_channels": UNI_WIDTH, "interpolation_scale": 0.5}
        pixcell = "StonyBrook-CVLab/PixCell-256"
        hub.put(pixcell, "transformer/config.json", json.dumps({**config, **sizes, **shape}).encode(), lfs=False)
        hub.put(pixcell, "transformer/diffusion_pytorch_model.safetensors", save(tensors))
        hub.put("MahmoodLab/UNI2-h", "pytorch_model.bin", b"weights")
        vae = AutoencoderKL(**{**SD3_VAE, **SMALL_VAE})
        large = "stabilityai/stable-diffusion-3.5-large"
        hub.put(large, "vae/config.json", vae.to_json_string().encode(), lfs=False)
        hub.put(large, "vae/diffusion_pytorch_model.safetensors", save(vae.state_dict()))
        yield hub


def online(monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> None:
    """Let the hub's client talk to this hub, and to nothing else."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    from napari_stmdit.downloads import transfer as hub_module

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "STMDIT_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_module, "PAUSES_S", (0.0, 0.0))
    close_session()


def _section(folder: Path) -> None:
    """A Space Ranger folder with its slide image; that of ``held`` is another section."""
    from napari_stmdit.tissue.st_array import write_spaceranger_folder
    from napari_stmdit.types import Genes

    arrays = tiny_arrays()
    if folder.name == "held":
        arrays["counts"] = 2 * arrays["counts"][::-1]
    write_spaceranger_folder(
        folder,
        image=tissue_picture(TINY_SIDE_PX),  # what slide.tif shows, too
        genes=Genes(np.array(GENES)),
        mpp=TINY_MPP,
        slide_name="slide.png",
        **arrays,
    )


def _slides(place: Path) -> None:
    """Slides in each layout; ``slide.tif`` has the size of the section in ``outs``, and a table that was predicted for it."""
    from napari_stmdit.tissue.open import open_section

    scale = {"resolution": (1e4 / TINY_MPP, 1e4 / TINY_MPP), "resolutionunit": "CENTIMETER"}
    for name in ("slide.tif", "B4.tif", "C3.tif"):
        write_pyramid(place / name, tissue_picture(TINY_SIDE_PX), **scale)
    write_aperio(place / "slide.svs")
    Image.fromarray(tissue_picture(2600)).save(place / "slide.png", compress_level=1)
    spots = open_section(place / "slide.tif").spots
    write_table(place / "predicted.h5ad", spots.yx, genes=list(GENES))


def _transformer(**changes) -> torch.nn.Module:
    sizes = {"in_channels": LATENTS, "out_channels": 2 * LATENTS, "sample_size": 32}
    return plain_transformer(**{**sizes, "morphology_dim": UNI_WIDTH, "expression_dim": CANCER_WIDTH, **changes})


def _bytes(net: torch.nn.Module) -> bytes:
    """Weights as STMDiT's ``model.pt`` has them."""
    import io

    from napari_stmdit.model.foreign.keys import from_native

    file = io.BytesIO()
    torch.save(from_native(net.state_dict(), "original"), file)
    return file.getvalue()


def _foreign(place: Path) -> None:
    """A foreign checkpoint, in the folder itself and in ``FOLDER``."""
    (place / "model.pt").write_bytes(_bytes(_transformer()))
    (place / "training_config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (place / "FOLDER").mkdir()
    for name in ("model.pt", "training_config.yaml"):
        shutil.copy(place / name, place / "FOLDER" / name)
    _unknown(place / "theirs.pt")


def _unknown(path: Path) -> None:
    """Weights under names that the page's mapping file tells: a head that is none of ours, no null embedding of expression."""
    from napari_stmdit.model.foreign.keys import from_native

    net = _transformer(num_attention_heads=12)
    tensors = from_native(net.state_dict(), "original")
    del tensors["ge_embedder.null_embedding"]
    tensors = {
        re.sub(r"^blocks\.(\d+)\.attn\.", r"encoder.block_\1.self.", name): part for name, part in tensors.items()
    }
    torch.save(tensors | {"head.weight": torch.zeros(2, 2)}, path)


def _embeddings(place: Path) -> None:
    import anndata
    import h5py
    import pandas as pd

    ids, rng = tiny_arrays()["ids"], np.random.default_rng(0)
    with h5py.File(place / "uni.h5", "w") as file:
        file["embeddings"] = rng.normal(size=(len(ids), UNI_WIDTH)).astype(np.float32)
        file["barcodes"] = [str(name) for name in ids]
    table = anndata.AnnData(np.zeros((len(ids), 1), np.float32), obs=pd.DataFrame(index=ids))
    table.obsm["X_cf"] = rng.normal(size=(len(ids), CANCER_WIDTH)).astype(np.float32)
    table.write_h5ad(place / "cancerfoundation.h5ad")
    table.obsm["nmf20"] = rng.gamma(1.0, size=(len(ids), 20)).astype(np.float32)
    table.write_h5ad(place / "joint.h5ad")


def _training(place: Path) -> None:
    """The template of a training on less, and the bundled checkpoint's configuration with small sections in place of its own."""
    from napari_stmdit.cli.train import TEMPLATE

    content = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    short = {"steps": 2, "batch": 1, "small_batch": 1, "small_cells": 4, "warmup": 1}
    content["diffusion"] |= {**short, "validate_every": 2, "sample_every": 2}
    content |= {"workers": 1, "latents": {"crops": 8}, "card": {**content["card"], "steps": 2}}
    (place / "finetune.yaml").write_text(yaml.safe_dump(content))
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    content["root"] = ".."
    for part, folder in (("train", "train"), ("held_out", "held")):
        content[part] = [{"kind": "folder", "name": part, "folder": folder, "image": "slide.tif"}]
    (place / "configs").mkdir()
    (place / "configs" / "demo.yaml").write_text(yaml.safe_dump(content))
