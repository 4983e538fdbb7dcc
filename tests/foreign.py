"""A foreign checkpoint as its authors lay it out: a DiT of two blocks, and the components that it may not contain, of the small references."""

import json
import shutil

import pytest
import torch
from checkpoints import plain_transformer
from safetensors.torch import load_file, save_file

from napari_stmdit.assemble import convert_checkpoint
from napari_stmdit.model.foreign.keys import from_native

SETTINGS = {"model": {"input_size": 32, "num_heads": 2, "pe_interpolation": 0.5}, "diffusion": {"objective": "ddpm"}}
UNI_WIDTH, CANCER_WIDTH = 48, 32


@pytest.fixture(scope="module")
def elsewhere(golden, tmp_path_factory, request):
    """The three components that a checkpoint may not contain, in folders as their authors lay them out."""
    from tiny import TINY_GENES

    home = tmp_path_factory.mktemp("elsewhere")
    for name in ("vae", "uni", "cancer"):
        (home / name).mkdir()
    shutil.copy(golden / "vae_tiny.safetensors", home / "vae" / "diffusion_pytorch_model.safetensors")
    shutil.copy(golden / "vae_tiny_config.json", home / "vae" / "config.json")
    torch.save(load_file(golden / "uni2h_tiny.safetensors"), home / "uni" / "pytorch_model.bin")
    shutil.copy(golden / "uni2h_tiny_config.json", home / "uni" / "config.json")
    released = load_file(golden / "cancerfoundation_tiny_released_file_naming.safetensors")
    torch.save(released, home / "cancer" / "model.pth")
    shutil.copy(golden / "cancerfoundation_tiny_args.json", home / "cancer" / "args.json")
    vocabulary = json.loads((golden / "cancerfoundation_tiny_vocab.json").read_text())
    special, others = list(vocabulary)[:3], list(vocabulary)[3 + len(TINY_GENES) :]
    named = {name: place for place, name in enumerate([*special, *TINY_GENES, *others])}
    (home / "cancer" / "vocab.json").write_text(json.dumps(named))
    (home / "genes.txt").write_text("# of the tiny section\n" + "\n".join(TINY_GENES) + "\n")
    return home


def sources(elsewhere, *without):
    places = {"vae": "vae", "morphology_encoder": "uni", "expression_encoder": "cancer"}
    return {component: elsewhere / place for component, place in places.items() if component not in without}


@pytest.fixture
def foreign(tmp_path):
    """An STMDiT of two blocks, of the widths of the small reference encoders."""
    net = plain_transformer(
        in_channels=16, out_channels=32, sample_size=32, morphology_dim=UNI_WIDTH, expression_dim=CANCER_WIDTH
    )
    save_file(from_native(net.state_dict(), "original"), tmp_path / "foreign.safetensors")
    return tmp_path / "foreign.safetensors"


def convert(foreign, elsewhere, tmp_path, **changes):
    options = {"patch_mpp": 0.5, "config": SETTINGS, "genes": elsewhere / "genes.txt", "sources": sources(elsewhere)}
    return convert_checkpoint(foreign, tmp_path / "ours", **{**options, **changes})
