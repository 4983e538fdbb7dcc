"""What an autoencoder keeps of slides that it was not trained on.

    python docs/evidence/autoencoder.py --root DATA --autoencoder demo --seen B4-right
    python docs/evidence/autoencoder.py --root DATA --autoencoder ../runs/autoencoder/vae --output FILE

Held out: C6 and the right half of B4 (her2st), animal d14 of the mouse colon, and two slides of he_tiles whose scale is known: pancreas and
duodenum (pale, violet) and a congested spleen (dark, red, with pigment). Patches of 256 px at 0.688 um/px around spots, read as a run reads them, or from the middle
of tiles; d14 also at its own 0.971 um/px, where a pixel holds more. The autoencoder is a checkpoint's, or a folder that holds one alone.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from napari_stmdit.assemble import list_checkpoints
from napari_stmdit.evaluation.effects import ms_ssim
from napari_stmdit.evaluation.measures import blank_fraction, high_frequency
from napari_stmdit.model.autoencoder import StmditAutoencoder
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.storage.fingerprint import of_folder
from napari_stmdit.synthesis.canvas import boxes_around
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.images import open_image
from napari_stmdit.training.config import TableSource, TrainingConfig
from napari_stmdit.training.sections import open_source
from napari_stmdit.types import SlideImage

HERE = Path(__file__).resolve().parent
PX, MPP, COLON_MPP = 256, 0.688, 0.971
C6 = TableSource(
    name="C6",
    counts=Path("her2st_sections/counts/C6.tsv.gz"),
    spots=Path("her2st_sections/spots/C6_selection.tsv"),
    image=Path("her2st_sections/images/C6_5714_HE_BT_E2.jpg"),
)
B4 = TableSource(
    name="B4",
    counts=Path("her2st_B4_spaceranger1/original/B4.tsv.gz"),
    spots=Path("her2st_B4_spaceranger1/original/B4_selection.tsv"),
    image=Path("her2st_B4_spaceranger1/B4_image.jpg"),
)
TILES = ("PDAC-benign-vs-malignant", "congestion-spleen")
BLANK = 0.9
"""Share of empty pixels above which a patch shows no tissue to judge."""


def main() -> None:
    """Measure one autoencoder on every held-out set and write the figures under its name."""
    options = parse()
    model, digest = load(options.autoencoder)
    own: dict[str, Any] = {"sha256": digest, "parameters": sum(p.numel() for p in model.parameters()), "sets": {}}
    for name, make in held_out(options.root, options.limit).items():
        own["sets"][name] = measure(model, make(), options.pictures and options.pictures / f"{name}.png")
        own["sets"][name]["seen_in_training"] = name in options.seen
        print(name, json.dumps(own["sets"][name]), flush=True)
    figures = json.loads(options.output.read_text()) if options.output.is_file() else {}
    figures[options.name or Path(options.autoencoder).name] = own
    options.output.write_text(json.dumps(figures, indent=1) + "\n")


def load(name: str) -> tuple[StmditAutoencoder, str]:
    """Return an autoencoder in float32 and the hash of its folder."""
    if (Path(name) / "config.json").is_file():
        model: StmditAutoencoder = StmditAutoencoder.from_pretrained(name, torch_dtype=torch.float32)
        return model.eval(), of_folder(name)
    known = {entry.name: entry.path for entry in list_checkpoints()}
    folder = read_folder(known.get(name, Path(name)))
    return load_component(folder, "vae"), of_folder(folder.components["vae"].weights("vae"))


def held_out(root: Path, limit: int) -> dict[str, Callable[[], np.ndarray]]:
    """Return how to make each set's patches (n, 256, 256, 3), at most ``limit`` of them, evenly over the set."""
    config = TrainingConfig(name="held out", root=root, output=root, train=(C6,))

    def section(source: TableSource, right: bool = False) -> np.ndarray:
        opened = open_source(source, config)
        assert opened.image is not None and opened.calibration.mpp is not None
        left = opened.image.shape[1] // 2 if right else 0
        return around(opened.image, opened.spots.yx, MPP / opened.calibration.mpp, left, limit)

    def colon(mpp: float) -> np.ndarray:
        folder = root / "visium_mouse_colon/d14_DSS_spaceranger1"
        places = np.loadtxt(folder / "spatial/tissue_positions_list.csv", delimiter=",", usecols=(1, 4, 5))
        return around(open_image(folder / "d14_DSS_HE.jpg"), places[places[:, 0] == 1, 1:], mpp / COLON_MPP, 0, limit)

    def tiles(repo: str) -> np.ndarray:
        patches = []
        with (root / "he_tiles/tiles.csv").open() as file:
            for row in csv.DictReader(file):
                if row["repo"] == repo:
                    pixels = np.asarray(Image.open(root / "he_tiles/tiles" / row["file"]).convert("RGB"))
                    y, x = ((n - PX) // 2 for n in pixels.shape[:2])
                    patches.append(pixels[y : y + PX, x : x + PX])
        return np.stack(patches[:limit])

    return {
        "C6": lambda: section(C6),
        "B4-right": lambda: section(B4, right=True),
        "d14": lambda: colon(MPP),
        "d14-own-scale": lambda: colon(COLON_MPP),
        **{f"tiles-{repo}": lambda repo=repo: tiles(repo) for repo in TILES},
    }


def around(image: SlideImage, yx: np.ndarray, scale: float, left: int, limit: int) -> np.ndarray:
    """Read patches around spots, of those whose patch lies inside the slide and right of a column."""
    boxes = np.array([box.source for box in boxes_around(yx, PX, scale)])
    inside = (boxes[:, :2] >= (0, left)).all(axis=1) & (boxes[:, 2:] <= image.shape[:2]).all(axis=1)
    chosen = boxes[inside]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(limit, len(chosen))).round().astype(int)]
    return read_patches(image, [tuple(box) for box in chosen.tolist()], PX)


def measure(model: StmditAutoencoder, patches: np.ndarray, picture: Path | None) -> dict[str, Any]:
    """Compare patches with their reconstructions; a ``picture`` shows eight of both."""
    back = reconstruct(model, patches)
    if picture is not None:
        some = np.linspace(0, len(patches) - 1, 8).round().astype(int)
        picture.parent.mkdir(parents=True, exist_ok=True)
        rows = [np.concatenate(list(images[some]), axis=1) for images in (patches, back)]
        Image.fromarray(np.concatenate(rows)).save(picture)
    likeness = np.array([ms_ssim(a, b) for a, b in zip(patches, back, strict=True)])
    tissue = np.array([blank_fraction(p) < BLANK for p in patches])
    error = back.astype(np.float64) - patches
    colour = np.abs(error.mean(axis=(1, 2))).max(axis=1)  # of a patch, in its worst channel
    sharp = [np.array([high_frequency(p) for p in images]) for images in (patches, back)]
    return {
        "patches": len(patches),
        "with_tissue": int(tissue.sum()),
        "ms_ssim": round(float(likeness[tissue].mean()), 4),
        "ms_ssim_5th_percentile": round(float(np.percentile(likeness[tissue], 5)), 4),
        "high_frequency_real": round(float(sharp[0].mean()), 3),
        "high_frequency_ratio": round(float(sharp[1].mean() / sharp[0].mean()), 4),
        "colour": round(float(colour.mean()), 3),
        "colour_95th_percentile": round(float(np.percentile(colour, 95)), 3),
        "psnr": round(float(10 * np.log10(255**2 / np.square(error).mean())), 2),
    }


@torch.inference_mode()
def reconstruct(model: StmditAutoencoder, patches: np.ndarray) -> np.ndarray:
    """Encode and decode (n, h, w, 3) uint8 patches."""
    made = []
    for start in range(0, len(patches), 8):
        images = torch.from_numpy(patches[start : start + 8]).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = model.decode_latents(model.encode_latents(images))
        made.append(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(made)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--autoencoder", default="demo", help="a checkpoint's name or folder, or the folder of its vae")
    parser.add_argument("--name", default=None, help="in the figures; default: the autoencoder's")
    parser.add_argument("--seen", nargs="*", default=[], help="sets that this autoencoder was trained on")
    parser.add_argument("--limit", type=int, default=128, help="most patches of a set")
    parser.add_argument(
        "--pictures", type=Path, default=None, help="folder for pictures of real tissue, kept elsewhere"
    )
    parser.add_argument("--output", type=Path, default=HERE / "autoencoder.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
