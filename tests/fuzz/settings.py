"""Visium HD folders, checkpoint folders, training configurations and job files, broken or odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fuzz.harness import MISSING, Refused, Scene, Works, cases, request_error, section_error
from PIL import Image
from scipy.sparse import csr_matrix
from tiny import TINY_GENES

BINS = "binned_outputs/square_008um"
FACTORS = "spatial/scalefactors_json.json"


def hd(change: Callable[[Path], object] = lambda folder: None, **factors: Any) -> Callable[[Scene], object]:
    """A made Visium HD section of 40 x 40 bins at 0.7 um/px, and a change to its folder of bins."""

    def apply(scene: Scene) -> None:
        from napari_stmdit.tissue.st_array import write_counts
        from napari_stmdit.types import Genes

        scene.section = scene.root / "sample"
        folder = scene.section / BINS
        (folder / "spatial").mkdir(parents=True)
        rc = np.argwhere(np.ones((40, 40)))
        yx = (rc + 0.5) * 8 / 0.7
        ids = np.array([f"s_008um_{r:05d}_{c:05d}-1" for r, c in rc])
        columns = (ids, 1, rc[:, 0], rc[:, 1], yx[:, 0], yx[:, 1])
        names = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
        pd.DataFrame(dict(zip(names, columns, strict=True))).to_parquet(folder / "spatial/tissue_positions.parquet")
        counts = np.random.default_rng(0).poisson(1, (len(ids), len(TINY_GENES)))
        write_counts(folder / "filtered_feature_bc_matrix.h5", ids, csr_matrix(counts), Genes(np.array(TINY_GENES)))
        made = {"spot_diameter_fullres": 11.4, "bin_size_um": 8, "microns_per_pixel": 0.7, "tissue_hires_scalef": 0.5}
        text = json.dumps({k: v for k, v in (made | factors).items() if v is not MISSING})
        (folder / FACTORS).write_text(text)
        Image.new("RGB", (229, 229), (200, 150, 180)).save(folder / "spatial/tissue_hires_image.png")
        Image.new("RGB", (458, 458), (200, 150, 180)).save(scene.section / "scan.png")
        change(folder)

    return apply


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        file = folder / "spatial/tissue_positions.parquet"
        change(pd.read_parquet(file)).to_parquet(file)

    return apply


def cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((d := (folder / name).read_bytes())[: int(share * len(d))])


PARQUET = "tissue_positions.parquet"
HD = cases(
    "HD",
    "nothing",
    [
        ("as it is", hd(), Works("pseudo-spots")),
        ("bins of no stated size, but a folder that says it", hd(bin_size_um=MISSING), Works("bins of 8 um")),
        *(
            (f"bins of {value!r:.20} um", hd(bin_size_um=value), section_error("bin_size_um"))
            for value in (0, -8, float("nan"), float("inf"), "8", True, 10**400)
        ),
        (
            "bins of no size in a folder of another name",
            hd(lambda f: f.rename(f.parent / "square_x"), bin_size_um=MISSING),
            Works("bins of 8 um"),
        ),
        ("bins of another size than their barcodes", hd(bin_size_um=16), section_error("bins have one size")),
        (
            "bins without barcodes of any size, in a folder of another name",
            hd(
                lambda f: (
                    table(lambda t: t.assign(barcode=[f"b{i}" for i in range(len(t))]))(f),
                    f.rename(f.parent / "square_x"),
                ),
                bin_size_um=MISSING,
            ),
            section_error("size of its bins is unknown"),
        ),
        ("no folder of bins", hd(shutil.rmtree), section_error("no tissue section")),
        ("positions cut short", hd(cut(f"spatial/{PARQUET}", 0.6)), section_error(PARQUET, "cannot be read")),
        ("positions empty", hd(cut(f"spatial/{PARQUET}", 0)), section_error(PARQUET, "cannot be read")),
        (
            "positions without pixels",
            hd(table(lambda t: t.drop(columns="pxl_row_in_fullres"))),
            section_error("lacks the columns pxl_row_in_fullres"),
        ),
        ("positions in text", hd(table(lambda t: t.assign(pxl_row_in_fullres="x"))), section_error("no number")),
        (
            "positions with nan",
            hd(table(lambda t: t.assign(pxl_row_in_fullres=np.nan))),
            section_error("no finite number"),
        ),
        ("array rows with nan", hd(table(lambda t: t.assign(array_row=np.nan))), section_error(PARQUET)),
        ("no position", hd(table(lambda t: t.iloc[:0])), section_error("no barcode")),
        (
            "all bins in one place",
            hd(table(lambda t: t.assign(pxl_row_in_fullres=200.0, pxl_col_in_fullres=200.0))),
            Works("1 pseudo-spot"),
        ),
        (
            "one bin on tissue",
            hd(table(lambda t: t.assign(in_tissue=[1] + [0] * (len(t) - 1)))),
            Works("No disc is covered by half"),
        ),
        (
            "bins a kilometre apart",
            hd(table(lambda t: t.assign(pxl_row_in_fullres=t.pxl_row_in_fullres * 1e9))),
            section_error("farther than any slide is large"),
        ),
        ("no scale, bins on their lattice", hd(microns_per_pixel=MISSING), Works("by lattice")),
        (
            "no scale, bins anywhere",
            hd(
                table(lambda t: t.assign(pxl_row_in_fullres=np.random.default_rng(0).uniform(0, 450, len(t)))),
                microns_per_pixel=MISSING,
            ),
            section_error("--mpp"),
        ),
        (
            "counts cut short",
            hd(cut("filtered_feature_bc_matrix.h5", 0.5)),
            section_error("cannot be read as a Space Ranger counts file"),
        ),
        (
            "a second folder of bins that is empty",
            hd(lambda f: (f.parent / "square_016um").mkdir()),
            Works("pseudo-spots"),
        ),
        ("a folder of bins named for none", hd(lambda f: f.rename(f.parent / "square_zero")), Works("pseudo-spots")),
    ],
)

_WRITTEN: dict[str, Path] = {}


def checkpoint(change: Callable[[Path], object] = lambda folder: None) -> Callable[[Scene], object]:
    """A copy of the tiny checkpoint, changed, and opened with its card, its index and every component."""

    def apply(scene: Scene) -> None:
        import tempfile

        if "tiny" not in _WRITTEN:
            from checkpoints import write_tiny_checkpoint

            _WRITTEN["tiny"] = write_tiny_checkpoint(Path(tempfile.mkdtemp(prefix="stmdit-fuzz-")) / "tiny", TINY_GENES)
        folder = scene.root / "checkpoint"
        shutil.copytree(_WRITTEN["tiny"], folder)
        change(folder)

        def load() -> str:
            from napari_stmdit.assemble import load_checkpoint

            return f"{load_checkpoint(folder, 'cpu').card.patch_px} px"

        scene.other = load

    return apply


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda f: (f / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def keys(name: str, /, **values: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not MISSING}))

    return apply


def gone(name: str) -> Callable[[Path], object]:
    return lambda f: shutil.rmtree(f / name) if (f / name).is_dir() else (f / name).unlink()


def wrong(*says: str) -> Refused:
    return Refused("CheckpointError", says)


CARD, INDEX = "stmdit.json", "model_index.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHECKPOINTS = cases(
    "checkpoints",
    "nothing",
    [
        ("as it is", checkpoint(), Works("64 px")),
        *(
            (f"without {name}", checkpoint(gone(name)), wrong(says))
            for name, says in (
                (CARD, CARD),
                (INDEX, INDEX),
                ("transformer", "lacks the folder transformer"),
                ("vae", "lacks the folder vae"),
                (WEIGHTS, "one weights file, found none"),
                ("transformer/config.json", "no settings file was found"),
                ("vae/config.json", "config.json"),
                ("vae/diffusion_pytorch_model.safetensors", "is missing"),
                ("scheduler/scheduler_config.json", "scheduler_config.json"),
                ("expression_encoder", "lacks the folder"),
                ("morphology_encoder", "lacks the folder"),
                ("profiles.safetensors", "profiles.safetensors"),
            )
        ),
        *(
            (f"{name} is {kind}", checkpoint(text(name, content)), wrong(name.split("/")[-1]))
            for name in (CARD, INDEX, "transformer/config.json")
            for kind, content in (
                ("empty", ""),
                ("a list", "[]"),
                ("random bytes", bytes(range(256))),
                ("nested a hundred thousand deep", "[" * 100_000),
            )
        ),
        *(
            (f"card: {key} is {value!r}", checkpoint(keys(CARD, **{key: value})), wrong(CARD, key))
            for key, value in (
                ("patch_px", 0),
                ("patch_px", "x"),
                ("patch_mpp", -1.0),
                ("patch_mpp", float("nan")),
                ("patch_mpp", float("inf")),
                ("steps", 0),
                ("genes", ["A"]),
                ("format_version", 99),
                ("guidance", {"expression": -1}),
                ("minimum_gene_fraction", 2),
                ("name", None),
                ("colour", "red"),
            )
        ),
        *(
            (f"index: transformer is {value!r}", checkpoint(keys(INDEX, transformer=value)), wrong("transformer"))
            for value in (None, [], ["os", "system"], ["a"], 7, [1, 2], {"a": 1}, ["builtins", "eval"])
        ),
        *(
            (f"weights {kind}", checkpoint(text(WEIGHTS, content)), wrong("diffusion_pytorch_model.safetensors"))
            for kind, content in (
                ("empty", b""),
                ("random", b"\xaa" * 5000),
                ("whose header is longer than the file", b"\xff" * 8 + b"{}"),
                ("that are a pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0cos\nsystem\n(S'touch pwned'\ntR."),
            )
        ),
        ("weights cut short", checkpoint(cut(WEIGHTS, 0.7)), wrong("diffusion_pytorch_model.safetensors")),
        (
            "another width in the configuration",
            checkpoint(keys("transformer/config.json", attention_head_dim=8)),
            wrong("attention_head_dim"),
        ),
        ("an option nobody knows", checkpoint(keys("transformer/config.json", colour="red")), wrong("colour")),
        (
            "a scheduler nobody knows",
            checkpoint(keys(INDEX, scheduler=["diffusers", "EvilScheduler"])),
            wrong("EvilScheduler"),
        ),
        ("profiles the card does not name", checkpoint(keys(CARD, profiles=["tumour", "bone"])), wrong("bone.mean")),
    ],
)


def config(content: str | bytes | dict[str, Any]) -> Callable[[Scene], object]:
    """A training configuration that is read."""

    def apply(scene: Scene) -> None:
        file = scene.root / "config.yaml"
        data = json.dumps(content) if isinstance(content, dict) else content
        file.write_bytes(data if isinstance(data, bytes) else data.encode())

        def load() -> str:
            from napari_stmdit.training.config import load_config

            return str(load_config(file))

        scene.other = load

    return apply


NOT_YAML = request_error("config.yaml", "YAML")
CONFIGS = cases(
    "training configurations",
    "nothing",
    [
        *(
            (f"the value {value!r}", config(value), request_error(says))
            for value, says in (
                ("", "valid dictionary"),
                ("7", "valid dictionary"),
                ("[]", "valid dictionary"),
                ("word", "valid dictionary"),
                ("{1: 2}", "Keys should be strings"),
            )
        ),
        ("no YAML", config("a: [b"), NOT_YAML),
        ("random bytes", config(bytes(range(128, 256))), request_error("config.yaml")),
        ("a field nobody knows", config({"colour": "red"}), request_error("colour")),
        (
            "a tag that runs a command",
            config('a: !!python/object/apply:os.system ["touch pwned"]'),
            request_error("config.yaml", "asks to build an object"),
        ),
        (
            "a billion laughs",
            config(
                "a0: &a0 [lol, lol]\n"
                + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
            ),
            request_error("aliases"),
        ),
        ("nested a hundred thousand deep", config("[" * 100_000), request_error("nested")),
    ],
)


def jobs(text: str = "", **changes: Any) -> Callable[[Scene], object]:
    """A job file of one section, changed or replaced by a text, that is read."""

    def apply(scene: Scene) -> None:
        (scene.root / "a").mkdir()
        (scene.root / "b").mkdir()
        content = {"output": "results", "sections": [{"path": "a"}], "edits": {"measured": []}} | changes
        file = scene.root / "jobs.yaml"
        file.write_text(text or json.dumps({k: v for k, v in content.items() if v is not MISSING}))

        def load() -> str:
            from napari_stmdit.scale.batch import read_jobs

            return "; ".join(f"{job.name} in {job.folder.name}" for job in read_jobs(file))

        scene.other = load

    return apply


JOBS = cases(
    "job files",
    "nothing",
    [
        ("as it is", jobs(), Works("a / measured in a.zarr.measured.unfinished")),
        ("edits with their programs", jobs(edits={"x": {"programs": {"p": ["G"]}, "edits": []}}), Works("a / x")),
        *(
            (f"{key} is empty", jobs(**{key: value}), request_error(key))
            for key, value in (("output", ""), ("checkpoint", ""), ("sections", []), ("edits", {}))
        ),
        *(
            (f"{key} is {value!r}", jobs(**{key: value}), request_error(key))
            for key, value in (
                ("sections", 0),
                ("sections", [7]),
                ("edits", ""),
                ("edits", [[]]),
                ("request", ""),
                ("request", []),
            )
        ),
        *(
            (f"a section's {key} is empty", jobs(sections=[{"path": "a", key: ""}]), request_error(f"sections.0.{key}"))
            for key in ("path", "name", "fullres", "region", "predicted_expression")
        ),
        (
            "an edit called as a store calls it",
            jobs(edits={"stmdit_x": []}),
            request_error("edits.stmdit_x", "leave it out"),
        ),
        ("an edit called STMDIT_x", jobs(edits={"STMDIT_x": []}), request_error("edits.STMDIT_x")),
        ("edits that differ in case", jobs(edits={"Low": [], "low": []}), request_error("edits.low", "'Low'")),
        (
            "sections that differ in case",
            jobs(sections=[{"path": "a"}, {"path": "b", "name": "A"}]),
            request_error("sections.1.name"),
        ),
        ("an edit's name is a path", jobs(edits={"../x": []}), request_error("edits.../x")),
        (
            "an edit's name is a number",
            jobs("{output: o, sections: [{path: a}], edits: {1: []}}"),
            request_error("edits.1"),
        ),
        ("an edit is null", jobs(edits={"x": None}), request_error("edits.x", "expected a list")),
        ("an edit's file is missing", jobs(edits={"x": "none.yaml"}), request_error("edits.x", "none.yaml")),
        ("an edit's file is a device", jobs(edits={"x": "/dev/zero"}), request_error("edits.x", "no file")),
        ("an edit's file has a NUL", jobs(edits={"x": "a\0b"}), request_error("edits.x")),
        (
            "a region's file is a device",
            jobs(sections=[{"path": "a", "region": "/dev/zero"}]),
            request_error("sections.0.region"),
        ),
        (
            "a region's file is of nobody",
            jobs(sections=[{"path": "a", "region": "~nosuchuser/r"}]),
            request_error("~nosuchuser"),
        ),
        (
            "two jobs of one folder",
            jobs(sections=[{"path": "a"}, {"path": "b", "name": "a.zarr.b"}], edits={"b.zarr.c": [], "c": []}),
            request_error("one folder"),
        ),
        (
            "faults of every kind at once",
            jobs(
                sections=[{"path": "a", "mpp": 0}, {"path": "none"}],
                edits={"stmdit_x": [], "y": [{"operation": "fly"}]},
                request={"seed": -1},
            ),
            request_error("sections.0.mpp", "sections.1.path", "edits.stmdit_x", "'fly'", "request.seed"),
        ),
    ],
)
CASES = [*HD, *CHECKPOINTS, *CONFIGS, *JOBS]
