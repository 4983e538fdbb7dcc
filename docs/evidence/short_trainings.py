"""What one change of a training brings, told by short trainings on the bundled autoencoder, each from the beginning.

    python docs/evidence/short_trainings.py prior --root DATA --work FOLDER
    python docs/evidence/short_trainings.py demo --root DATA --work FOLDER
    python docs/evidence/short_trainings.py lines --root DATA --work FOLDER
    python docs/evidence/short_trainings.py larger --root DATA --work FOLDER

``prior``: patient C alone, its transformer from nothing and from one that has first learned the tiles of 14 slides without expression; tested
on patient B by expression alone. ``demo``: the sections of the bundled checkpoint with all programs' genes, from a longer prior. ``lines``: one
change each, validated on C6; ``larger``: a transformer of twice the size. Finished work is kept; figures go to short_trainings.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from intervals import correlate
from synthesizer import Spots, Synthesizer, open_named
from torch import Tensor

from napari_stmdit.assemble import checkpoint_folder
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.training.state import load_state, save_state
from napari_stmdit.training.train import train
from napari_stmdit.types import Section

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
OUTPUT = HERE / "short_trainings.json"
CASES = ("both", "both_shuffled", "expression", "expression_shuffled", "morphology", "none")
POOL = 8
"""Number of crops, alike in expression and morphology, of a pooled deep profile."""
SPOTS, SEEDS, SCALES, RESAMPLES = 96, 2, (2.5, 1.0), 2000
"""Test of a prior: spots of patient B, seeds a spot, guidance scales of expression, and bootstrap samples."""
LOOKS = ("haematoxylin", "nuclei", "blank", "high_frequency")


def config_of(name: str) -> dict[str, Any]:
    """Return a committed training config."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return content


def run(config: dict[str, Any], folder: Path, root: Path, *stages: str) -> None:
    """Train in a folder by a config; without stages all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**config, "root": str(root), "output": str(folder)}, sort_keys=False))
    for stage in stages or (None,):
        train(path, stage, on_progress=lambda at: print(f"{at.phase} {at.step} of {at.steps}", flush=True))


def with_bundled_autoencoder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the bundled autoencoder into a work folder as if it had been trained there; return the config that takes it as it is."""
    if not (folder / "autoencoder.pt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        vae = load_component(read_folder(checkpoint_folder("demo")), "vae")
        save_state(folder / "autoencoder.pt", step=1, average={"weights": vae.state_dict()})
    return {**config, "autoencoder": {"steps": 1, "decoder_steps": 0}}


# --- a prior from slides without expression


def tissue(root: Path, folder: Path, steps: int, crops: int) -> str:
    """Train a transformer on the tiles of 14 slides, without expression; return its checkpoint."""
    general = config_of("general.yaml")
    tiles = [picture for picture in general["pictures"] if picture["kind"] == "tiles"]
    unseen = [picture for picture in general["held_out_pictures"] if picture["kind"] == "tiles"]
    config = {**general, "pictures": tiles, "held_out_pictures": unseen, "latents": {"crops": crops}}
    config["diffusion"] = {**general["diffusion"], "steps": steps, "validate_every": 400, "sample_every": 0}
    run(with_bundled_autoencoder(config, folder), folder, root)
    return str(folder / "checkpoint")


def prior(root: Path, work: Path) -> None:
    """Train patient C's transformer with and without a prior, for as many steps."""
    start, patient = tissue(root, work / "prior", 1600, 6000), config_of("patient_c.yaml")
    patient["latents"] = {"crops": 5000, "held_out_spots": 96}
    patient["diffusion"] |= {"steps": 800, "warmup": 100, "validate_every": 200, "sample_every": 0}
    run(with_bundled_autoencoder(patient, work / "without_prior"), work / "without_prior", root)
    started = {key: value for key, value in patient.items() if key != "autoencoder"}
    run({**started, "start": start}, work / "with_prior", root)
    checkpoints = {name: str(work / name / "checkpoint") for name in ("without_prior", "with_prior")}
    section = open_named(CONFIGS / "patient_c.yaml", root, "B4")
    keep("prior", {f"{scale:g}": compared(checkpoints, work, section, SPOTS, scale) for scale in SCALES})


def demo(root: Path, work: Path) -> None:
    """Train on the bundled checkpoint's sections, with the genes of all programs, from a prior; compare on C6 with that checkpoint."""
    general = config_of("demo_general.yaml")
    start = tissue(root, work / "long_prior", 3000, 9000)
    config = {**general, "start": start}
    config["diffusion"] |= {"steps": 4000, "small_fraction": 0.6, "validate_every": 400, "sample_every": 0}
    run(config, work / "from_prior", root)
    checkpoints = {"bundled": "demo", "from_prior": str(work / "from_prior" / "checkpoint")}
    section = open_named(CONFIGS / "demo_general.yaml", root, "C6")
    keep("demo", compared(checkpoints, work, section, len(section.spots), None))


def compared(
    checkpoints: dict[str, str], work: Path, section: Section, count: int, scale: float | None
) -> dict[str, Any]:
    """Return what checkpoints make of a section by expression alone: r with its spots, level over the real one.

    Differences are those of r from the first checkpoint's, with 95 % intervals over spots.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(section.spots))[:count])
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    found: dict[str, Any] = {}
    first: dict[str, np.ndarray] = {}
    for name, checkpoint in checkpoints.items():
        maker = Synthesizer(checkpoint, work / f"{name}_images", 2, "auto", None)
        spots = Spots(section, rows, maker.checkpoint)
        guidance = maker.guidance(expression=scale)
        made = [
            spots.measured(maker.images(spots.seeds(seed), None, spots.expression, guidance)) for seed in range(SEEDS)
        ]
        found[name] = {}
        for look in LOOKS:
            real, ours = getattr(spots.real, look), np.mean([getattr(one, look) for one in made], axis=0)
            found[name][look] = {
                "r": round(correlate(ours, real), 3),
                "over_real": round(float(ours.mean() / real.mean()), 3),
            }
            if name == next(iter(checkpoints)):
                first[look] = ours
            else:
                gains = [correlate(ours[one], real[one]) - correlate(first[look][one], real[one]) for one in draws]
                found[name][look]["difference"] = np.percentile(gains, [2.5, 97.5]).round(3).tolist()
    return found


def keep(what: str, figures: dict[str, Any]) -> None:
    """Put figures of a part into the output file."""
    known = json.loads(OUTPUT.read_text()) if OUTPUT.is_file() else {}
    OUTPUT.write_text(json.dumps(known | {what: figures}, indent=1) + "\n")


# --- one change each


def residual_morphology(cache: dict[str, Tensor]) -> None:
    """Take from morphology what expression says of it, by ridge regression; whitened again, so that noise on it means the same."""
    x, y = cache["expression"][:, 0].double(), cache["morphology"][:, 0].double()
    middle, centred = x.mean(0), x - x.mean(0)
    gram = centred.T @ centred + 50.0 * torch.eye(x.shape[1], dtype=x.dtype)
    slope = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))

    def said(expression: Tensor) -> Tensor:
        return ((expression.double() - middle) @ slope + y.mean(0)).float()[:, None]

    kept = cache["morphology"].float() - said(cache["expression"].float().mean(1))
    held = cache["held_morphology"].float() - said(cache["held_expression"])
    cache["morphology"], cache["held_morphology"] = kept / kept[:, 0].std(0), held / kept[:, 0].std(0)


def pooled_profiles(cache: dict[str, Tensor]) -> None:
    """Put the mean encoding of crops that are alike in place of one of a crop's four expression vectors."""
    expression, morphology = cache["expression"][:, 0].float(), cache["morphology"][:, 0].float()
    place = torch.cat([expression / expression.std(0), morphology / morphology.std(0)], dim=1)
    alike = torch.cat([torch.cdist(part, place).topk(POOL, largest=False).indices for part in place.split(500)])
    cache["expression"][:, 3] = expression[alike].mean(1).to(cache["expression"].dtype)


def short(name: str) -> dict[str, Any]:
    """Return the config of a short training; of a balanced one, in which patient B's section counts twice."""
    depth = config_of("demo_depth.yaml")
    config = {key: depth[key] for key in ("workers", "patch_px", "patch_mpp", "train", "held_out")}
    if name.startswith("balanced"):
        config["train"] = [*config["train"], {**config["train"][0], "name": "B4 again"}]
    small = {"small_fraction": 1.0, "small_batch": 12, "warmup": 50, "rate": 1e-3, "matrix_rate": 1.5e-3}
    shares = {"share_both": 0.20, "share_expression": 0.58, "share_morphology": 0.10}
    learning = {"steps": 300, "validate_every": 100, "sample_every": 0, "expression_noise": 0.45, "coarse_weight": 0.15}
    config |= {"name": name, "seed": 0, "tensorboard": False, "expression": {"penalty": 2.0}, "card": depth["card"]}
    return config | {"latents": {"crops": 4000}, "diffusion": learning | small | shares}


def crops_of(base: str, root: Path, work: Path) -> None:
    """Encode the crops of a base, once."""
    run(with_bundled_autoencoder(short(base), work / base), work / base, root, "autoencoder", "latents")


LARGER = {"num_layers": 8, "num_attention_heads": 4}
"""Settings of a transformer of 10.8 million parameters, where the bundled one has 4.8."""


def larger(root: Path, work: Path) -> None:
    """Train a larger transformer and one of the bundled size, on the same machine and crops."""
    crops_of("base", root, work)
    changes: dict[str, dict[str, Any]] = {"control, seed 0": {}, "larger": {"transformer": LARGER}}
    keep("larger", {name: line(name, root, work, **change) for name, change in changes.items()})


def lines(root: Path, work: Path) -> None:
    """Train each line on the same crops, and keep its losses on C6."""
    found = {}
    for base in ("base", "balanced_base"):
        crops_of(base, root, work)
    less = {"share_both": 0.10, "share_expression": 0.72, "share_morphology": 0.06}
    changes: dict[str, dict[str, Any]] = {
        "control, seed 0": {},
        "residual morphology": {"change": residual_morphology},
        "morphology dropped more often": {"diffusion": less},
        "control, seed 1": {"seed": 1},
        "balanced donors": {"base": "balanced_base"},
        "pooled profiles": {"change": pooled_profiles},
    }
    for name, change in changes.items():
        found[name] = line(name, root, work, **change)
        keep("lines", found)


def line(
    name: str,
    root: Path,
    work: Path,
    base: str = "base",
    seed: int = 0,
    change: Callable[[dict[str, Tensor]], None] | None = None,
    **settings: dict[str, Any],
) -> dict[str, dict[str, float]]:
    """Train on a base's crops with one change; return the last losses: of flow, and of local and overall means."""
    folder = work / name.replace(", ", "_").replace(" ", "_")
    config = with_bundled_autoencoder(short(base), folder) | {"seed": seed}
    for key, value in settings.items():
        config[key] = {**config.get(key, {}), **value}
    if not (folder / "latents.pt").is_file():
        shutil.copytree(work / base / "encoders", folder / "encoders", dirs_exist_ok=True)
        noted = json.loads((work / base / "inputs.json").read_text())
        (folder / "inputs.json").write_text(
            json.dumps({stage: {**part, "seed": seed} for stage, part in noted.items()})
        )
        cache = load_state(work / base / "latents.pt")
        assert cache is not None
        if change is not None:
            change(cache)
        save_state(folder / "latents.pt", **cache)
    run(config, folder, root, "diffusion")
    records = [json.loads(text) for text in (folder / "diffusion.jsonl").read_text().splitlines()]
    last = [record["validation"] for record in records if "validation" in record][-1]
    return {case: last[case] for case in CASES}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prior", "demo", "lines", "larger"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    {"prior": prior, "demo": demo, "lines": lines, "larger": larger}[options.what](
        options.root.resolve(), options.work.resolve()
    )


if __name__ == "__main__":
    main()
