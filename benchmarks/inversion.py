"""Which way of editing real tissue is best? Ways to invert and to edit without inverting, by error, effect and time, on one section.

    python benchmarks/inversion.py --data FOLDER_OF_THE_SECTIONS --pairs 32 --seed 0 --out docs/evidence/inversion.json

Spot a of a pair is given the expression of spot b, and its morphology follows. Measured for each way:

- identity: what latents come back as under unchanged conditions, mean absolute difference, and the same in grey levels after decoding
- swap: the coefficient of b's real value in a regression of the change of a's image on the real values of b and of a, with its 95 %
  bootstrap interval; haematoxylin density and nuclei (--control: a third spot's expression is given
  instead, and the change is regressed on b's value all the same)
- agreement: of the change of latents with that of the first way of the table, 48 steps: r, the ratio of sizes, and the median over spots of the
  relative difference
- time: seconds for a pair, of abduction and of one edit, and calls of the network

The section is held-out C6 of her2st, and the checkpoint the bundled one, which predicts flow. Schedulers of diffusers that know only
noise prediction get it through an exact change of variables: x / sqrt((1 - t)^2 + t^2) has the signal and noise of a
variance-preserving schedule.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.encoders.morphology_map import MorphologyMap, fit_morphology_map
from napari_stmdit.evaluation import measures
from napari_stmdit.model import counterfactual
from napari_stmdit.model.autoencoder import decode_images, encode_latents
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.inference import ConditionTensors, prediction
from napari_stmdit.progress import finish
from napari_stmdit.synthesis.canvas import boxes_around
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import open_section
from napari_stmdit.training.sections import read_table_section

BATCH = 16
REFERENCE = "change, 48 steps, even"


# ------------------------------------------------------------------------------------------------- data


@dataclass
class Spots:
    """Crops, conditions and positions of the spots of a section."""

    crops: np.ndarray
    expression: np.ndarray
    morphology: np.ndarray
    yx: np.ndarray


def read_spots(checkpoint: Any, section: Any) -> Spots:
    side, scale = checkpoint.card.patch_px, checkpoint.card.patch_mpp / section.calibration.mpp
    crops = read_patches(section.image, [box.source for box in boxes_around(section.spots.yx, side, scale)], side)
    seen = np.concatenate([checkpoint.encode_morphology(crops[k : k + 32]) for k in range(0, len(crops), 32)])
    spots = section.spots
    genes = checkpoint.encode_expression(
        spots.counts.astype(np.float32), spots.genes, tuple(spots.ids.tolist()), spots.relative_depth
    )
    return Spots(crops, genes, seen, spots.yx)


def read_data(checkpoint: Any, data: Path) -> tuple[Spots, list[Spots]]:
    """Return C6, and the sections that the map is fitted to."""
    tables = data / "her2st_sections"
    c6 = read_table_section(
        "C6",
        tables / "counts/C6.tsv.gz",
        tables / "spots/C6_selection.tsv",
        tables / "images/C6_5714_HE_BT_E2.jpg",
        pitch_um=200,
        spot_um=100,
    )
    others = [
        open_section(
            data / f"her2st_{name}_spaceranger{kind}",
            fullres=data / f"her2st_{name}_spaceranger{kind}/{name}_image.jpg",
        )
        for name, kind in (("B4", 1), ("C3", 2))
    ]
    return read_spots(checkpoint, c6), [read_spots(checkpoint, section) for section in others]


def fitted(sections: list[Spots]) -> MorphologyMap:
    return fit_morphology_map(
        np.concatenate([s.expression for s in sections]),
        np.concatenate([s.morphology for s in sections]),
        sections=np.repeat(np.arange(len(sections)), [len(s.yx) for s in sections]),
        yx=np.concatenate([s.yx for s in sections]),
    )


# ------------------------------------------------------------------------------------------------- the network


@dataclass
class Conditions:
    """Of one batch: morphology (b, t, d) and expression (b, d)."""

    morphology: torch.Tensor
    expression: torch.Tensor

    def tensors(self) -> ConditionTensors:
        return ConditionTensors(self.morphology, self.expression)


@dataclass
class Velocity:
    """The unguided velocity of a flow checkpoint, which counts its calls."""

    transformer: Any
    calls: int = 0

    def of(
        self, conditions: Conditions, levels: list[float], shape: Any
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Return the velocity at the k-th of the noise levels, prepared."""
        plan = [tuple(branches("nested_morphology_first", 1.0, 1.0))] * len(levels)
        times = torch.tensor([max(level, 1e-3) * 1000 for level in levels])
        with torch.inference_mode():
            predicts = prediction(self.transformer, conditions.tensors(), plan, times, shape)

        def velocity(k: int, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            with torch.inference_mode():
                return predicts(k, x)

        return velocity


class Way:
    """One way to edit: ``abduct`` returns what it keeps of an image, ``edit`` the latents under other conditions."""

    name: str

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        raise NotImplementedError

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        raise NotImplementedError


@dataclass
class Plain(Way):
    """The ODE there and back by a Runge-Kutta method of second order: Heun (2/1), midpoint (1/2), or Ralston (2/3)."""

    name: str
    steps: int
    node: float = 1.0  # where in a step the second call is

    def _integrate(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, grid: np.ndarray) -> torch.Tensor:
        levels = [level for s, t in zip(grid[:-1], grid[1:], strict=True) for level in (s, s + self.node * (t - s))]
        v = velocity.of(conditions, levels, x.shape)
        for k, width in enumerate(np.diff(grid).tolist()):
            first = v(2 * k, x)
            second = v(2 * k + 1, x + self.node * width * first)
            share = 1 / (2 * self.node)
            x = x + width * ((1 - share) * first + share * second)
        return x

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        return self._integrate(velocity, x, conditions, np.linspace(0, 1, self.steps + 1))

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        return self._integrate(velocity, kept, edited, np.linspace(1, 0, self.steps + 1))


@dataclass
class Change(Way):
    """The change alone is integrated, against the path that was kept, with one call a step: what the product does."""

    name: str
    steps: int
    scheduler: Any
    density: float = counterfactual.DENSITY

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        velocity.calls += self.steps + 1
        counterfactual.DENSITY = self.density
        work = counterfactual.abduct(
            velocity.transformer, self.scheduler, x, conditions.tensors(), steps=self.steps, batch=BATCH
        )
        return finish(work)

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        velocity.calls += self.steps + 1
        change = finish(counterfactual.predict(velocity.transformer, kept, edited.tensors(), batch=BATCH))
        return kept.latents + change


@dataclass
class ChangeByHeun(Change):
    """The same by Heun's method: two calls a step."""

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        v = velocity.of(edited, list(kept.path.tau), kept.states[0].shape)
        d = torch.zeros_like(kept.states[0])
        for node in range(self.steps, 0, -1):
            width = kept.path.tau[node] - kept.path.tau[node - 1]
            first = v(node, kept.states[node] + d) - kept.slopes[node]
            ahead = v(node - 1, kept.states[node - 1] + d - width * first) - kept.slopes[node - 1]
            d = d - width / 2 * (first + ahead)
        return kept.latents + d


@dataclass
class FlowEdit(Way):
    """Kulikov et al., 2024, arXiv 2412.08629: the change alone, against fresh noise at every step; scale 1, all levels."""

    name: str
    steps: int

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        return x, [torch.randn(x.shape, generator=rng) for _ in range(self.steps)]

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        x, fresh = kept
        if edited is conditions:
            return x  # by construction
        grid = np.linspace(1, 0, self.steps + 1)
        source, target = (velocity.of(c, list(grid), x.shape) for c in (conditions, edited))
        moved = x.clone()
        for k, (t, after) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            noisy = (1 - t) * x + t * fresh[k]
            moved = moved + (after - t) * (target(k, moved + noisy - x) - source(k, noisy))
        return moved


@dataclass
class EditFriendly(Way):
    """Huberman-Spiegelglas et al., 2024, arXiv 2304.06140: independent noise at every level; what each step leaves over is kept.

    Steps are those of DDPM on the variance-preserving schedule (``eta`` 1), or deterministic ones (``eta`` 0).
    """

    name: str
    steps: int
    eta: float

    def _mean(self, v: Any, k: int, grid: np.ndarray, x: torch.Tensor) -> torch.Tensor:
        """The mean of the state after step k of x, both variance-preserving."""
        t, after = grid[k], grid[k + 1]
        (_, _, r), (a, s, _) = preserving(t), preserving(after)
        clean, noise = of_flow(v(k, x * r), x * r, t)
        before = preserving(t)
        spread = self.eta * s / before[1] * np.sqrt(max(1 - (before[0] / a) ** 2, 0.0))
        return a * clean + np.sqrt(max(s**2 - spread**2, 0.0)) * noise

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        grid = np.linspace(1, 0, self.steps + 1)
        path = []
        for level in grid:
            a, s, _ = preserving(level)
            path.append(a * x + s * torch.randn(x.shape, generator=rng))
        path[-1] = x
        v = velocity.of(conditions, list(grid[:-1]), x.shape)
        left = [path[k + 1] - self._mean(v, k, grid, path[k]) for k in range(self.steps)]
        return path[0], left, grid, x

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        x, left, grid, data = kept
        if edited is conditions:
            return data  # by construction
        v = velocity.of(edited, list(grid[:-1]), x.shape)
        for k in range(self.steps):
            x = self._mean(v, k, grid, x) + left[k]
        return x


def preserving(level: float) -> tuple[float, float, float]:
    """Signal, noise and the factor between a flow state and its variance-preserving one at a level."""
    r = float(np.hypot(1 - level, level))
    return (1 - level) / r, level / r, r


def of_flow(velocity: torch.Tensor, x: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clean latents and noise that a velocity amounts to."""
    return x - level * velocity, x + (1 - level) * velocity


@dataclass
class Diffusers(Way):
    """An inverse scheduler of diffusers and its sampling partner, in noise prediction."""

    name: str
    steps: int
    kind: str
    levels: np.ndarray = field(default_factory=lambda: np.arange(1, 1001) / 1001)

    def _scheduler(self, inverse: bool) -> Any:
        import diffusers

        kept = np.array([preserving(level)[0] ** 2 for level in self.levels])
        betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
        name = {"ddim": "DDIM", "dpm": "DPMSolverMultistep"}[self.kind] + ("Inverse" if inverse else "") + "Scheduler"
        options: dict[str, Any] = {"trained_betas": betas.astype(np.float32), "prediction_type": "epsilon"}
        if self.kind == "ddim":
            options |= {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
        made = getattr(diffusers, name)(**options)
        made.set_timesteps(self.steps)
        return made

    def _run(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, inverse: bool) -> torch.Tensor:
        scheduler = self._scheduler(inverse)
        times = [int(t) for t in scheduler.timesteps]
        v = velocity.of(conditions, [float(self.levels[t]) for t in times], x.shape)
        for k, t in enumerate(times):
            r = preserving(float(self.levels[t]))[2]
            noise = of_flow(v(k, x * r), x * r, float(self.levels[t]))[1]
            x = scheduler.step(noise, scheduler.timesteps[k], x, return_dict=False)[0]
        return x

    def abduct(self, velocity: Velocity, x: torch.Tensor, conditions: Conditions, rng: torch.Generator) -> Any:
        return self._run(velocity, x, conditions, inverse=True)

    def edit(self, velocity: Velocity, kept: Any, conditions: Conditions, edited: Conditions) -> torch.Tensor:
        return self._run(velocity, kept, edited, inverse=False)


def ways(scheduler: Any) -> Iterator[Way]:
    yield Change(REFERENCE, 48, scheduler, 1.0)  # first: what the others are held against
    for density, words in ((1.0, ", even"), (1.25, ""), (1.5, ", density 1.5")):
        yield Change(f"change, 12 steps{words}", 12, scheduler, density)
    yield Change("change, 6 steps", 6, scheduler)
    yield ChangeByHeun("change by Heun, 6 steps", 6, scheduler)
    for steps in (6, 12):
        yield Plain(f"Heun, {steps} steps", steps)
    yield Plain("midpoint, 6 steps", 6, 0.5)
    yield FlowEdit("FlowEdit, 12 steps", 12)
    yield EditFriendly("edit-friendly noise, DDPM, 12 steps", 12, 1.0)
    yield Diffusers("DPMSolverMultistepInverseScheduler, 12 steps", 12, "dpm")
    yield Diffusers("DDIMInverseScheduler, 12 steps", 12, "ddim")
    yield Diffusers("DPMSolverMultistepInverseScheduler, 24 steps", 24, "dpm")
    yield Plain("Heun, 4 steps", 4)
    yield EditFriendly("edit-friendly noise, deterministic, 12 steps", 12, 0.0)
    yield Change("change, 24 steps", 24, scheduler)
    yield Plain("Heun, 24 steps", 24)


# ------------------------------------------------------------------------------------------------- measuring


@dataclass
class Study:
    """Pairs of spots, their real values, and what is done to all of them."""

    checkpoint: Any
    spots: Spots
    follow: MorphologyMap
    a: np.ndarray
    b: np.ndarray
    third: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        vae = self.checkpoint.pipeline.vae
        self.latents = torch.cat([encode_latents(vae, self.spots.crops[self.a[k]]).float() for k in self.parts()])
        self.real = {
            "haematoxylin": np.array([measures.haematoxylin_density(crop) for crop in self.spots.crops]),
            "nuclei": np.array(
                [float(measures.count_nuclei(crop, self.checkpoint.card.patch_mpp)) for crop in self.spots.crops]
            ),
        }

    def parts(self) -> Iterator[slice]:
        for first in range(0, len(self.a), BATCH):
            yield slice(first, first + BATCH)

    def conditions(self, part: slice, given: np.ndarray | None = None) -> Conditions:
        a = self.a[part]
        e, m = self.spots.expression[a], self.spots.morphology[a]
        if given is not None:
            swapped = self.spots.expression[given[part]]
            m = m + self.follow.delta(e, swapped)
            e = swapped
        return Conditions(torch.from_numpy(np.ascontiguousarray(m)), torch.from_numpy(np.ascontiguousarray(e)))

    def images(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.checkpoint.pipeline.vae
        made = [decode_images(vae, latents[k]).float().clamp(-1, 1) for k in self.parts()]
        return ((torch.cat(made) + 1) * 127.5).permute(0, 2, 3, 1).numpy()

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
        return {
            "haematoxylin": np.array([measures.haematoxylin_density(image) for image in pixels]),
            "nuclei": np.array(
                [float(measures.count_nuclei(image, self.checkpoint.card.patch_mpp)) for image in pixels]
            ),
        }

    def coefficient(self, what: str, change: np.ndarray, given: np.ndarray) -> dict[str, float]:
        """Regress the change of a's image on the real values of another spot, and of a."""
        real, count = self.real[what], len(self.a)
        design = np.stack([real[given], real[self.a], np.ones(count)], axis=1)
        rng = np.random.default_rng(self.seed)
        draws = [_slope(design[rows], change[rows]) for rows in rng.integers(0, count, (1000, count))]
        low, high = np.quantile(draws, [0.025, 0.975])
        found = {"coefficient": _slope(design, change), "low": low, "high": high}
        return {name: round(float(value), 4) for name, value in found.items()}


def _slope(design: np.ndarray, change: np.ndarray) -> float:
    return float(np.linalg.lstsq(design, change, rcond=None)[0][0])


def measure(
    study: Study, way: Way, reference: torch.Tensor | None, control: bool
) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the figures of one way, and the change of latents that it makes."""
    velocity = Velocity(study.checkpoint.pipeline.transformer)
    rng = torch.Generator().manual_seed(study.seed)
    back, moved, third, seconds, calls = [], [], [], np.zeros(2), np.zeros(2)
    for part in study.parts():
        own, other = study.conditions(part), study.conditions(part, study.b)
        started, before = time.perf_counter(), velocity.calls
        kept = way.abduct(velocity, study.latents[part], own, rng)
        middle, between = time.perf_counter(), velocity.calls
        moved.append(way.edit(velocity, kept, own, other))
        seconds += middle - started, time.perf_counter() - middle
        calls = np.array([between - before, velocity.calls - between])
        back.append(way.edit(velocity, kept, own, own))
        if control:
            third.append(way.edit(velocity, kept, own, study.conditions(part, study.third)))
    same, changed = torch.cat(back), torch.cat(moved)
    shown, was = study.images(changed), study.images(same)
    base = study.values(was)
    figures: dict[str, Any] = {
        "way": way.name,
        "calls": {"abduction": int(calls[0]), "edit": int(calls[1])},
        "seconds_per_spot": {
            name: round(float(value) / len(study.a), 4)
            for name, value in zip(("abduction", "edit"), seconds, strict=True)
        },
        "identity": {
            "latents": round(float((same - study.latents).abs().mean()), 5),
            "grey_levels": round(float(np.abs(was - study.images(study.latents)).mean()), 4),
        },
        "swap": {what: study.coefficient(what, now - base[what], study.b) for what, now in study.values(shown).items()},
    }
    if control:
        figures["swap_control"] = {
            what: study.coefficient(what, now - base[what], study.b)
            for what, now in study.values(study.images(torch.cat(third))).items()
        }
    change = changed - same
    if reference is not None:
        figures["agreement"] = {
            "r": round(float(np.corrcoef(change.flatten().numpy(), reference.flatten().numpy())[0, 1]), 4),
            "size": round(float(change.std() / reference.std()), 4),
            "median_difference": round(float(_relative(change, reference).nanmedian()), 4),
        }
    return figures, change


def _relative(change: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Relative difference of each spot; nan for a spot that was given its own expression."""
    return (change - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--map", choices=("trained", "own"), default="trained", help="fitted to B4 and C3, or to C6 itself"
    )
    parser.add_argument("--control", action="store_true", help="also give every spot a third spot's expression")
    parser.add_argument(
        "--only",
        nargs="*",
        help="ways whose names begin with one of these; agreement is told where the reference is among them",
    )
    parser.add_argument("--out", type=Path, help="a JSON file; what it holds of other settings stays")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    checkpoint = load_checkpoint("demo", device="cpu", dtype="float32")
    c6, others = read_data(checkpoint, options.data)
    follow = fitted(others if options.map == "trained" else [c6])
    rng = np.random.default_rng(options.seed)
    a, b, third = (rng.permutation(len(c6.crops))[: options.pairs] for _ in range(3))
    study = Study(checkpoint, c6, follow, a, b, third, options.seed)
    record: dict[str, Any] = {"section": "C6", "pairs": options.pairs, "seed": options.seed, "map": options.map}
    record |= {
        "map_facts": follow.facts(),
        "latents_mean_size": round(float(study.latents.abs().mean()), 4),
        "ways": [],
    }
    reference = None
    for way in ways(checkpoint.pipeline.scheduler):
        if options.only and not any(way.name.startswith(part) for part in options.only):
            continue
        figures, change = measure(study, way, reference, options.control)
        reference = change if way.name == REFERENCE else reference
        record["ways"].append(figures)
        print(json.dumps(figures), flush=True)
        if options.out:
            write(options.out, record)


def write(path: Path, record: dict[str, Any]) -> None:
    """Put a record into the file; ways that were measured before with the same settings stay where they are not measured again."""
    same = ("section", "pairs", "seed", "map")
    there = json.loads(path.read_text()) if path.is_file() else []
    of_these = [one for one in there if all(one[name] == record[name] for name in same)]
    others = [one for one in there if one not in of_these]
    now = {way["way"] for way in record["ways"]}
    before = [way for one in of_these for way in one["ways"] if way["way"] not in now]
    path.write_text(json.dumps([*others, record | {"ways": [*before, *record["ways"]]}], indent=1) + "\n")


if __name__ == "__main__":
    main()
