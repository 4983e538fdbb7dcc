"""A world of two sections with the same barcodes in one store, in which random work is done while its inputs change.

`World.act` draws one of the things that people do: synthesize, stop, resume, save, reopen, batch, export, evaluate, train, delete, change an
input. After each of them `World.check` holds what must always hold: nothing outside the outputs has changed, every result is what its inputs
of then give, and every finished patch belongs to its own section.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import yaml
import zarr
from checkpoints import write_tiny_checkpoint
from tiny import TINY_GENES, TINY_MPP, analytic_image, tiny_arrays

from napari_stmdit.edits import KnockOut, Scale
from napari_stmdit.errors import StmditError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SpotList

NAMES = ("A", "B")
SPOTS = ("SPOT07-1", "SPOT12-1", "SPOT16-1", "SPOT22-1")
EDITS = {"measured": (), "more": (Scale(genes=("ERBB2",), factor=8.0),), "less": (KnockOut(genes=("KRT8",)),)}


@dataclass(frozen=True)
class Wish:
    """What a run is asked for: section, settings, and how it is computed."""

    section: str
    edit: str
    seed: int
    mode: str
    checkpoint: str
    embeddings: bool
    mpp: float | None

    @property
    def request(self) -> Request:
        return Request(
            region=SpotList(ids=SPOTS),
            edits=EDITS[self.edit],
            seed=self.seed,
            steps=2,
            mode=self.mode,
            expression="own",
        )


@dataclass
class Saved:
    """A result that was saved: its section, and its pixels then."""

    section: str
    pixels: np.ndarray
    inputs: tuple


@dataclass
class World:
    """The files of one sequence, and what is known to be true of them."""

    place: Path
    rng: np.random.Generator
    templates: Path
    models: dict[tuple[str, str], Any]
    log: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    unfinished: dict[Path, tuple[Wish, tuple]] = field(default_factory=dict)
    saved: dict[tuple[Path, str], Saved] = field(default_factory=dict)
    exports: dict[Path, tuple] = field(default_factory=dict)
    refused: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.inputs, self.outputs = self.place / "inputs", self.place / "outputs"
        shutil.copytree(self.templates, self.inputs)
        self.outputs.mkdir()
        for name in ("thesis/chapter1.tex", "thesis/data/raw.csv", "outputs/notes.txt", "outputs/report/report.html"):
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_text(f"{name} is of the user\n")
        self.store = self.inputs / "two.zarr"
        self.kept = self._hashes()

    # --- doing

    def act(self) -> None:
        """Do one thing at random; an error of ours is an answer, any other fails the test."""
        acts: list[tuple[Callable[[], str], float]] = [
            *((self.synthesize, 4), (self.resume, 3), (self.reopen, 2), (self.change, 4)),
            *((self.batch, 1), (self.export, 1), (self.evaluate, 0.5), (self.train, 0.3), (self.delete, 0.7)),
        ]
        weights = np.array([weight for _, weight in acts])
        act = acts[int(self.rng.choice(len(acts), p=weights / weights.sum()))][0]
        try:
            said = act()
            self.done += 1
        except StmditError as error:
            self.refused += 1
            said = f"refused: {str(error).splitlines()[0][:160]}"
        self.log.append(f"{act.__name__}: {said}")

    def wish(self) -> Wish:
        draw = self.rng.choice
        return Wish(
            section=str(draw(NAMES)),
            edit=str(draw(list(EDITS))),
            seed=int(draw(2)),
            mode=str(draw(["spots", "spots", "continuous"])),
            checkpoint=str(draw(["one", "two"])),
            embeddings=bool(draw(4) == 0),
            mpp=[None, None, None, 0.66][int(draw(4))],
        )

    def synthesize(self) -> str:
        """Begin a run; it goes to its end, or is stopped at a random place."""
        wish = self.wish()
        output = self._output(wish)
        folder = self.outputs / f"{output.name}.{len(self.log)}.unfinished"
        return self._run(wish, output, folder, resume=False, stop=int(self.rng.integers(1, 20)))

    def resume(self) -> str:
        """Take up an unfinished run: as it was, or with one wish changed."""
        if not self.unfinished:
            return "nothing to resume"
        folder = list(self.unfinished)[int(self.rng.integers(len(self.unfinished)))]
        wish, _ = self.unfinished[folder]
        if self.rng.random() < 0.3:
            wish = self.wish()
        return self._run(wish, self._output(wish), folder, resume=True, stop=99)

    def _run(self, wish: Wish, output: Path, folder: Path, resume: bool, stop: int) -> str:
        from napari_stmdit.synthesis.session import synthesize

        section, inputs = self.open(wish.section, wish.mpp), self._inputs(wish)
        cancel, told = CancelToken(), []

        def watch(progress: Any) -> None:
            told.append(progress)
            if len(told) >= stop:
                cancel.cancel()

        result = synthesize(
            section,
            wish.request,
            self.model(wish),
            batch=1,
            cancel=cancel,
            on_progress=watch,
            folder=folder,
            resume=resume,
        )
        if resume and folder in self.unfinished:
            begun = self.unfinished[folder]
            assert (wish, inputs) == begun, f"a run was resumed with other inputs: {begun} then, {(wish, inputs)} now"
        if not result.complete:
            self.unfinished[folder] = (wish, inputs)
            return f"stopped {len(result.done)}/{len(result.plan)} {wish}"
        self.unfinished.pop(folder, None)
        pixels = np.array(result.rgba)  # before the canvas on disk goes
        self.hold(pixels, wish, inputs)
        element = result.save(output)
        assert result.canvas is not None
        result.canvas.discard()
        assert (output, element) not in self.saved, "a result was overwritten"
        self.saved[output, element] = Saved(wish.section, pixels, inputs)
        return f"saved {element} in {output.name}: {wish}"

    def reopen(self) -> str:
        """Open every store with results again: each section finds its own, and no other's."""
        from napari_stmdit.synthesis.stored import stored_results
        from napari_stmdit.tissue.open import open_section

        for store in dict.fromkeys(place for place, _ in self.saved):
            elements = {name: s for (place, name), s in self.saved.items() if place == store}
            if store == self.store:
                for name in NAMES:
                    own = {element for element, saved in elements.items() if saved.section == name}
                    assert {r.element for r in stored_results(self.open(name))} == own
            else:
                found = stored_results(open_section(store))
                assert {r.element for r in found} == set(elements)
        return f"{len(self.saved)} results found"

    def change(self) -> str:
        """Change an input as its owner may: a patch of the slide, counts, or a table of embeddings."""
        what = str(self.rng.choice(["slide", "slide", "counts", "embeddings", "checkpoint"]))
        name = str(self.rng.choice(NAMES))
        if what == "slide":
            spot = int(self.rng.choice([7, 12, 16, 22]))
            y, x = (int(v) + int(self.rng.integers(-8, 8)) for v in tiny_arrays()["yx"][spot])
            level = zarr.open_array(self.store / "images" / f"slide_{name}" / "s0", mode="r+")
            level[:, y : y + 12, x : x + 12] = int(self.rng.integers(0, 255))
        elif what == "counts":
            data = zarr.open_array(self.store / "tables" / f"table_{name}" / "X" / "data", mode="r+")
            data[int(self.rng.integers(data.shape[0]))] = float(self.rng.integers(1, 90))
        elif what == "embeddings":
            vectors = np.load(self.inputs / "vectors.npy")
            vectors[int(self.rng.choice([7, 12, 16, 22]))] += 1
            np.save(self.inputs / "vectors.npy", vectors)
            self.models.pop(("one", str(self.inputs)), None)
            self.models.pop(("two", str(self.inputs)), None)
            name = ""
        else:
            weights = self.inputs / "one" / "expression_encoder" / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-3] ^= 1  # the last number of the offset, by a little
            weights.write_bytes(bytes(content))
            self.models.pop(("one", ""), None)
            self.models.pop(("one", str(self.inputs)), None)
            name = ""
        key = f"{what}{name}"
        self.versions[key] = self.versions.get(key, 0) + 1
        self.kept = self._hashes()
        return key

    def batch(self) -> str:
        """Compute a cohort of both sections, or find it there."""
        from napari_stmdit.scale.batch import LocalRunner, read_jobs, run_batch

        wishes = {
            name: Wish(name, "more", 0, "spots", "two", False, [None, 0.66][int(self.rng.random() < 0.2)])
            for name in NAMES
        }
        content = {
            "output": str(self.outputs / "batch"),
            "checkpoint": str(self.inputs / "two"),
            "sections": [
                {"path": str(self.store / "shapes" / name), "name": name} | ({"mpp": wish.mpp} if wish.mpp else {})
                for name, wish in wishes.items()
            ],
            "edits": {"more": [EDITS["more"][0].model_dump(mode="json")]},
            "request": {"region": {"kind": "spots", "ids": list(SPOTS)}, "seed": 0, "steps": 2},
        }
        file = self.place / "jobs.yaml"
        file.write_text(yaml.safe_dump(content))
        states = []
        try:
            outcomes = run_batch(read_jobs(file), LocalRunner("cpu", "float32"))
        finally:
            file.unlink()
        for outcome in outcomes:
            wish = wishes[outcome.job.place.name]
            inputs, key = self._inputs(wish), (outcome.job.place.store, "stmdit_more")
            states.append(outcome.state)
            if outcome.state == "done":
                pixels = self._stored(*key)
                self.hold(pixels, wish, inputs)
                self.saved[key] = Saved(wish.section, pixels, inputs)
            elif outcome.state == "there already":
                assert self.saved[key].inputs == inputs, "a result of other inputs was taken for this one"
            else:
                assert key in self.saved and self.saved[key].inputs != inputs, outcome.message
        return f"{states}"

    def export(self) -> str:
        """Make a data set of one section's results: its rows are that section's, and no other's."""
        from napari_stmdit import export_dataset

        name = str(self.rng.choice(NAMES))
        out = self.outputs / f"data_{name}_{int(self.rng.integers(2))}"
        own = {element: s for (store, element), s in self.saved.items() if store == self.store and s.section == name}
        inputs = (name, tuple(sorted(own)), self.versions.get(f"slide{name}", 0), self.versions.get(f"counts{name}", 0))
        found = export_dataset(self.store / "shapes" / name, out, formats=("anndata",))
        if found.existed:
            assert self.exports[out] == inputs, "a data set of other inputs was taken for this one"
            return "there already"
        self.exports[out] = inputs
        table = anndata.read_zarr(out / "anndata" / "dataset.zarr")
        assert set(table.obs["run"].dropna().astype(str)) - {""} <= set(own)
        spots = self.open(name).spots
        rows = spots.rows(table.obs["spot"].astype(str).tolist())
        np.testing.assert_array_equal(table.X.toarray(), spots.counts[rows].toarray())
        return f"{found.rows} rows of {name}"

    def evaluate(self) -> str:
        """Measure results; the report goes to a new folder, to the one before, or to one of the user's."""
        from napari_stmdit import evaluate_result

        target = self.outputs / str(self.rng.choice(["evaluation", "report"]))
        name = str(self.rng.choice(NAMES))
        before = _hashes_of(target)
        try:
            evaluate_result(self.store / "shapes" / name, output=target, draws=20)
        except StmditError:
            assert {k: v for k, v in _hashes_of(target).items() if k in before} == before
            raise
        assert target.name != "report", "a report of the user was overwritten"
        return f"report of {name}"

    def train(self) -> str:
        """Train for a moment; the checkpoint goes to a free place, or must not."""
        from napari_stmdit.training.train import train

        target = [self.outputs / "trained", self.place / "thesis", self.outputs, self.inputs / "two"][
            int(self.rng.integers(4))
        ]
        settings = {
            "name": "tiny",
            "output": str(self.outputs / "training"),
            "export": str(target),
            "workers": 1,
            "patch_px": 64,
            "patch_mpp": 0.7,
            "train": [{"kind": "folder", "name": "tiny", "folder": str(self.inputs / "outs")}],
            "expression": {"genes": 12, "programs": 4, "thinning": 3.0},
            "autoencoder": {"latent_channels": 4, "crop_px": 32, "batch": 2, "steps": 1, "decoder_steps": 1},
            "latents": {"crops": 10, "morphology_components": 6},
            "transformer": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_ratio": 2.0},
            "diffusion": {"steps": 1, "small_cells": 4, "small_batch": 2, "batch": 2, "validate_every": 1},
            "card": {"steps": 2, "training_data": "made up", "licence": "none", "limits": "a test"},
        }
        file = self.place / "train.yaml"
        file.write_text(yaml.safe_dump(settings))
        try:
            train(file)
        finally:
            file.unlink()
        assert target == self.outputs / "trained", f"a training replaced {target}"
        return "exported"

    def delete(self) -> str:
        """Remove an unfinished run or a store of ours, as its owner may."""
        stores = {store for store, _ in self.saved if store != self.store}
        doomed = [*self.unfinished, *sorted(stores)]
        if not doomed:
            return "nothing to delete"
        path = doomed[int(self.rng.integers(len(doomed)))]
        shutil.rmtree(path, ignore_errors=True)
        self.unfinished.pop(path, None)
        self.saved = {key: saved for key, saved in self.saved.items() if key[0] != path}
        return path.name

    # --- holding

    def check(self) -> None:
        """Hold what must always hold."""
        assert self._hashes() == self.kept, "a file outside the outputs was changed"

    def finish(self) -> None:
        """At the end: every saved result still has its pixels, and is found by its own section alone."""
        for (store, element), saved in self.saved.items():
            assert np.array_equal(self._stored(store, element), saved.pixels), f"{element} in {store.name} has changed"
        self.reopen()

    def hold(self, pixels: np.ndarray, wish: Wish, inputs: tuple) -> None:
        """Compare an image with that of a run that was never stopped, on the inputs of now; one grey level is rounding."""
        from napari_stmdit.synthesis.session import synthesize

        fresh = synthesize(self.open(wish.section, wish.mpp), wish.request, self.model(wish), batch=4)
        assert pixels.shape == fresh.rgba.shape
        assert np.abs(pixels.astype(int) - fresh.rgba).max() <= 1, f"the image mixes inputs: {wish} {inputs}"

    def open(self, name: str, mpp: float | None = None) -> Any:
        from napari_stmdit.tissue.open import open_section

        return open_section(self.store / "shapes" / name, mpp=mpp)

    def model(self, wish: Wish) -> Any:
        from napari_stmdit.assemble import load_checkpoint

        key = (wish.checkpoint, str(self.inputs) if wish.embeddings else "")
        if key not in self.models:
            given = {"morphology_embeddings": self.inputs / "vectors.npy"} if wish.embeddings else {}
            self.models[key] = load_checkpoint(self.inputs / wish.checkpoint, "cpu", "float32", **given)
        return self.models[key]

    def _output(self, wish: Wish) -> Path:
        return self.store if self.rng.random() < 0.6 else self.outputs / f"results_{wish.section}.zarr"

    def _inputs(self, wish: Wish) -> tuple:
        """All that a run depends on, as versions."""
        keys = [f"slide{wish.section}", f"counts{wish.section}"]
        keys += ["embeddings"] if wish.embeddings else []
        keys += ["checkpoint"] if wish.checkpoint == "one" else []
        return (*((key, self.versions.get(key, 0)) for key in keys), ("mpp", wish.mpp))

    def _stored(self, store: Path, element: str) -> np.ndarray:
        from napari_stmdit.tissue.store_entries import read_result

        return np.asarray(read_result(store, element)[0].compute())

    def _hashes(self) -> dict[str, str]:
        """Hashes of all that is the user's: everything but what lies in the outputs, and results and metadata in the store."""
        found = {}
        for path in (
            self.inputs,
            self.place / "thesis",
            self.outputs / "notes.txt",
            self.outputs / "report" / "report.html",
        ):
            found |= _hashes_of(path)
        ours = [f"{self.store}/{part}" for part in ("zarr.json", "images/zarr.json", "images/stmdit_", "stmdit", ".")]
        return {name: digest for name, digest in found.items() if not name.startswith(tuple(ours))}


def _hashes_of(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def make_templates(place: Path) -> Path:
    """Write the inputs of a world once: a store of two sections with the same barcodes, a folder, two checkpoints, embeddings."""
    import pandas as pd
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    from napari_stmdit.tissue.st_array import write_spaceranger_folder
    from napari_stmdit.types import Genes

    images, shapes, tables = {}, {}, {}
    arrays = tiny_arrays()
    for number, name in enumerate(NAMES):
        system = {name: Identity()}
        pixels = np.ascontiguousarray(np.roll(analytic_image(), 37 * number, axis=1))
        images[f"slide_{name}"] = Image2DModel.parse(
            pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"], transformations=system
        )
        shapes[name] = ShapesModel.parse(
            arrays["yx"][:, ::-1], geometry=0, radius=arrays["diameter"] / 2, transformations=system
        )
        rows = {
            "region": pd.Categorical([name] * 30),
            "instance": np.arange(30),
            "array_row": arrays["array_rc"][:, 0],
            "array_col": arrays["array_rc"][:, 1],
        }
        counts = csr_matrix((arrays["counts"].toarray()[:: 1 - 2 * number] + number).astype(np.float32))
        table = anndata.AnnData(
            counts, obs=pd.DataFrame(rows, index=arrays["ids"]), var=pd.DataFrame(index=list(TINY_GENES))
        )
        tables[f"table_{name}"] = TableModel.parse(table, region=name, region_key="region", instance_key="instance")
    SpatialData(images=images, shapes=shapes, tables=tables).write(place / "two.zarr")
    write_spaceranger_folder(
        place / "outs",
        image=analytic_image(),
        genes=Genes(np.array(TINY_GENES)),
        mpp=TINY_MPP,
        slide_name="slide.png",
        **arrays,
    )
    for name in ("one", "two"):
        write_tiny_checkpoint(place / name, TINY_GENES, steps=2)
    rng = np.random.default_rng(1)
    np.save(place / "vectors.npy", rng.normal(size=(30, 10)).astype(np.float32))
    (place / "vectors.ids.txt").write_text("\n".join(arrays["ids"]) + "\n")
    return place
