"""Files of a data set: its folder, with only whole files under lasting names, none written twice; its formats; and its data card."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import __version__
from ..errors import StoreError
from ..files import BadFile, user_path
from ..storage.atomic import (
    LOCK,
    bring_to_disk,
    explained,
    place_folder,
    read_object,
    remove_drafts_in,
    remove_left_drafts,
    replacing,
    sync,
    take_lock,
    write_json,
)
from ..storage.fingerprint import of_file
from ..synthesis.identity import differences
from ..synthesis.result import Finished
from ..synthesis.session import unfinished_folder
from ..text import capitalised, some_of
from ..tissue.export import NEW, SLIDE, SYNTHETIC_SLIDE, Label, label_of_result, png_of
from ..tissue.spatialdata_store import quiet
from ..tissue.store_entries import written_array
from .contents import COLUMNS, FACTS, CheckpointFacts, Contents, Slide, as_arrow, condition_of

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

MANIFEST = "manifest.json"
WORK = ".work"
CONTENT = "content"
"""Manifest key for the hashes of counts and of the slide's crops; manifests of earlier versions lack it."""
FORMAT = 1
AGAIN = "export again, what is finished is kept"


class DatasetFolder:
    """Unfinished folder of a data set, held by one process at a time.

    It grows at ``path`` and moves to ``out``. ``shards`` are manifest entries of finished shards, by number; ``notes`` tell of a resumed one.
    """

    def __init__(self, out: Path, path: Path, manifest: dict[str, Any], lock: Any) -> None:
        self.out, self.path = out, path
        self.shards: dict[int, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._manifest, self._lock = manifest, lock

    @property
    def rows(self) -> int:
        """Number of rows in finished shards."""
        return sum(stop - start for start, stop in (entry["rows"] for entry in self.shards.values()))

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any]) -> DatasetFolder:
        """Make the folder of a data set, or resume it.

        Raises StoreError where it is of another data set (saying what differs), another process holds it, or it cannot be written.
        """
        path = unfinished_folder(out)
        with explained(path, AGAIN):
            if path.exists():
                if not (path / MANIFEST).is_file():
                    raise StoreError(
                        f"{path} is in the way: it is no unfinished data set; remove it, or choose another place"
                    )
                manifest = read_object(path / MANIFEST)
                _check_same(manifest, identity, path)
                folder = cls(out, path, manifest, take_lock(path))
                remove_drafts_in(path)
                folder._restore()
                return folder
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_left_drafts(path.parent, path.name)
            manifest = {"format": FORMAT, "complete": False, "identity": _plain(identity), "shards": []}
            with replacing(path) as draft:  # with its manifest: a folder without one is not ours
                draft.mkdir()
                write_json(draft / MANIFEST, manifest)
            return cls(out, path, manifest, take_lock(path))

    def work(self) -> Path:
        """Return an empty folder for unfinished files."""
        place = self.path / WORK
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def put(self, source: Path, name: str) -> None:
        """Move a whole file or folder to its place, over leftovers of an interrupted export."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        bring_to_disk(source)
        os.replace(source, target)
        sync(target.parent)

    def commit(self, number: int, rows: tuple[int, int], names: Sequence[str]) -> None:
        """List a shard whose files are in place."""
        entry = {"shard": number, "rows": list(rows), "files": [self._entry(name) for name in names]}
        self.shards[number] = entry
        self._write()

    def publish(self, facts: Mapping[str, Any], names: Sequence[str]) -> None:
        """Complete the manifest, release the folder, and give it its name."""
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        self._manifest |= {
            **_plain(facts),
            "files": [self._entry(name) for name in names],
            "software": {"name": "napari-stmdit", "version": __version__},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": True,
        }
        self._write()
        self.release()
        with suppress(OSError):
            (self.path / LOCK).unlink()
        place_folder(self.path, self.out)

    def release(self) -> None:
        """Release the folder as it is."""
        self._lock.release()

    def _entry(self, name: str) -> dict[str, Any]:
        size, sha256 = measure(self.path / name)
        return {"path": name, "bytes": size, "sha256": sha256}

    def _restore(self) -> None:
        try:
            listed = list(self._manifest["shards"])
            for entry in listed:
                if all(_fits(self.path, file) for file in entry["files"]):
                    self.shards[int(entry["shard"])] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.path / MANIFEST} is damaged ({error!r}); remove {self.path} to start anew"
            ) from error
        if len(self.shards) < len(listed):
            self.notes.append(f"{len(listed) - len(self.shards)} shards were damaged or gone and are written again")

    def _write(self) -> None:
        entries = [self.shards[number] for number in sorted(self.shards)]
        self._manifest["shards"] = entries
        write_json(self.path / MANIFEST, self._manifest)


def output_place(out: str | Path) -> Path:
    """Return the absolute path of a data set; raises StoreError where it may not be written."""
    try:
        return user_path(out).absolute()
    except BadFile as error:
        raise StoreError(f"the data set cannot be written: {error}; choose another place") from error


def complete_manifest(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a whole data set that is there already; None where the place is free.

    Raises StoreError where something else is there, or this data set but incomplete.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.is_symlink() and not out.exists():
            raise StoreError(f"{out} is a link that leads nowhere; remove it, or choose another place")
        return None
    if not (out / MANIFEST).is_file():
        raise StoreError(
            f"{out} is there already and is no data set of ours; nothing is overwritten, choose another place"
        )
    manifest = read_object(out / MANIFEST)
    _check_same(manifest, identity, out)
    files = [*manifest.get("files", []), *(file for shard in manifest.get("shards", []) for file in shard["files"])]
    hurt = [str(file["path"]) for file in files if _size(out / file["path"]) != file["bytes"]]
    if hurt:
        raise StoreError(
            f"{out} holds this data set, but {len(hurt)} of its parts are gone or of another size, such as {hurt[0]}; remove it and "
            "export again"
        )
    return manifest


def measure(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file, or of a folder (names and hashes of its files)."""
    if path.is_file():
        return path.stat().st_size, of_file(path)
    total, size = hashlib.sha256(), 0
    for file in _files(path):
        file_bytes, sha256 = measure(file)
        size += file_bytes
        total.update(f"{file.relative_to(path).as_posix()}\n{sha256}\n".encode())
    return size, total.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path)) if path.exists() else -1


def _fits(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["path"]
    return path.exists() and measure(path) == (entry["bytes"], entry["sha256"])


def _check_same(manifest: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    if "identity" not in manifest:
        raise StoreError(
            f"{path} is there already and is no data set of ours; nothing is overwritten, choose another place"
        )
    then, now = manifest["identity"], _plain(identity)
    if CONTENT not in then:
        if not manifest.get("complete"):
            raise StoreError(
                f"{path} was begun by an earlier version, which did not record what its slide and counts were, so that it cannot be "
                "continued; finish it with that version, or remove it"
            )
        now.pop(CONTENT, None)
    found = differences(then, now)
    if found:
        what = some_of(found, 8, "\n  ")
        raise StoreError(f"{path} holds another data set:\n  {what}\nChoose another place, or remove it")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


IMAGES, TABLE = "anndata/images.zarr", "anndata/dataset.zarr"
ROWS_AT_ONCE = 256
"""Table rows held at a time: edits work on dense rows."""
_MAX_NAME = 80
_ROW_GROUP = 64
"""Rows of a Parquet row group; few, as each holds an image."""


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of a data set: pixels (n, p, p, 3) uint8, and columns and label of each row."""

    number: int
    start: int
    stop: int
    pixels: NDArray[np.uint8]
    records: tuple[dict[str, Any], ...]
    labels: tuple[Label, ...]

    @classmethod
    def of(cls, contents: Contents, number: int, start: int, pixels: NDArray[np.uint8]) -> Shard:
        """Return a shard of images with their facts."""
        stop = start + len(pixels)
        measured, edited = contents.measured(start, stop), contents.conditioned(start, stop)
        records = tuple(
            {
                **contents.facts(start + k),
                **_sparse(measured, k, "gene_index", "gene_count"),
                **_sparse(edited, k, "edited_gene_index", "edited_gene_count"),
            }
            for k in range(len(pixels))
        )
        made = {run.name: label_of_result(run.provenance) for run in contents.runs}
        slide = SYNTHETIC_SLIDE if contents.section.synthetic else SLIDE
        labels = tuple(made[r["run"]] if r["origin"] == "model" else slide for r in records)
        return cls(number, start, stop, pixels, records, labels)


def _sparse(matrix: csr_matrix, row: int, index: str, count: str) -> dict[str, NDArray[Any]]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return {index: matrix.indices[part].astype(np.int32), count: matrix.data[part].astype(np.float32)}


def encoded(shard: Shard, mpp: float) -> list[bytes]:
    """Encode the images of a shard as PNG, each with its label."""
    return [png_of(pixels, mpp, label) for pixels, label in zip(shard.pixels, shard.labels, strict=True)]


def file_names(shard: Shard) -> list[str]:
    """Return the file name of each image: its row, and what it is."""
    return [
        f"{shard.start + k:07d}_{re.sub(r'[^0-9A-Za-z_.-]', '_', record['id'])[:_MAX_NAME]}.png"
        for k, record in enumerate(shard.records)
    ]


def write_folder(shard: Shard, images: Sequence[bytes], folder: Path) -> None:
    """Write a shard as a folder that the ``imagefolder`` loader reads: PNG files and ``metadata.parquet``."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    names = file_names(shard)
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(image)
    table = as_arrow([{"file_name": n, **r} for n, r in zip(names, shard.records, strict=True)], "file_name")
    pq.write_table(table, folder / "metadata.parquet", compression="zstd")


def write_parquet(shard: Shard, images: Sequence[bytes], file: Path) -> None:
    """Write a shard as one Parquet file whose column ``image`` holds the files and decodes to images."""
    import pyarrow.parquet as pq

    rows = zip(file_names(shard), images, shard.records, strict=True)
    table = as_arrow([{"image": {"bytes": image, "path": name}, **record} for name, image, record in rows], "image")
    pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)


def make_images(place: Path, contents: Contents, rows_per_shard: int) -> None:
    """Make the zarr array of images, (n, y, x, rgb) uint8, unless it exists: one chunk an image, one file a shard."""
    import zarr

    if (place / "zarr.json").is_file():
        return
    side = contents.patch_px
    zarr.create_array(
        place,
        shape=(len(contents), side, side, 3),
        chunks=(1, side, side, 3),
        shards=(rows_per_shard, side, side, 3),
        dtype="uint8",
        fill_value=0,
        dimension_names=("image", "y", "x", "rgb"),
        config={"write_empty_chunks": True},
        attributes={
            "statement": NEW.statement,
            "layout": "image k belongs to row k of dataset.zarr beside it; RGB, 8 bits",
            "microns_per_pixel": contents.patch_mpp,
        },
    )


def write_images(place: Path, start: int, pixels: NDArray[np.uint8]) -> None:
    """Write the images of one shard, atomically."""
    written_array(place)[start : start + len(pixels)] = pixels


def images_file(number: int) -> str:
    """Return the file that holds the images of a shard."""
    return f"{IMAGES}/c/{number}/0/0/0"


def write_table(place: Path, contents: Contents, records: Mapping[str, Any], check: Callable[[], None]) -> None:
    """Write everything but the images as AnnData in zarr; ``check`` is called before every block, and what it raises ends the writing.

    ``X`` are the counts as measured, ``layers["edited"]`` those the images were conditioned on, both CSR float32; ``obs`` the facts of
    each image, ``obsm["spatial"]`` the spot's (x, y) in full-resolution pixels, ``var`` the genes, ``uns`` the provenance of each run.
    """
    import anndata

    uns = {
        "synthetic": True,
        "statement": NEW.statement,
        "images": "images.zarr beside this store: (n, y, x, rgb) uint8, image k belongs to row k of obs",
        "X": contents.section.expression.statement or "counts as measured at the spot",
        "layer_edited": "counts the image was conditioned on, after edits; zero where obs['expression'] is 'null'",
        "spatial": "(x, y) of the spot's centre in full-resolution pixels of the slide, from its corner",
        "patch_px": contents.patch_px,
        "patch_mpp": contents.patch_mpp,
        "runs": {name: json.dumps(record) for name, record in records.items()},
    }
    with quiet():
        table = anndata.AnnData(
            X=_lazy(contents, contents.measured, check),
            obs=_obs(contents),
            var=_var(contents),
            layers={"edited": _lazy(contents, contents.conditioned, check)},
            uns=uns,
        )
        table.obsm["spatial"] = table.obs[["x_fullres", "y_fullres"]].to_numpy(dtype=np.float64)
        table.write_zarr(place)


def genes_table(contents: Contents) -> pd.DataFrame:
    """Return the genes in the order of every count: index, symbol, and id where the section has ids."""
    import pandas as pd

    genes = contents.section.spots.genes
    found = pd.DataFrame({"index": np.arange(len(genes)), "symbol": genes.symbols.astype(object)})
    if genes.ids is not None:
        found["id"] = genes.ids.astype(object)
    return found


def _var(contents: Contents) -> pd.DataFrame:
    """Return the genes; a symbol that occurs twice gets a number in the index, and stays as it is in the column ``symbol``."""
    import pandas as pd
    from anndata.utils import make_index_unique

    genes = genes_table(contents).drop(columns="index")
    return genes.set_index(make_index_unique(pd.Index(genes["symbol"], name=None)))


def _obs(contents: Contents) -> pd.DataFrame:
    import pandas as pd

    records = [contents.facts(k) for k in range(len(contents))]
    columns: dict[str, Any] = {}
    for column in FACTS[1:]:
        values = [record[column.name] for record in records]
        match column.kind:
            case "string":
                columns[column.name] = pd.Categorical(values)
            case "int64":
                columns[column.name] = pd.array(values, dtype="Int64")
            case _:
                columns[column.name] = np.array(values, dtype=bool if column.kind == "bool" else np.float64)
    return pd.DataFrame(columns, index=pd.Index([record["id"] for record in records], dtype=object))


def _lazy(contents: Contents, counts: Callable[[int, int], csr_matrix], check: Callable[[], None]) -> Any:
    """Return the counts of all rows as a dask array, a block at a time."""
    import dask.array as da
    from scipy.sparse import csr_matrix

    def block(rows: NDArray[np.int64]) -> csr_matrix:
        check()
        return counts(int(rows[0]), int(rows[-1]) + 1)

    rows = da.arange(len(contents), chunks=ROWS_AT_ONCE, dtype=np.int64)
    genes = contents.section.spots.counts.shape[1]
    return rows.map_blocks(
        block,
        chunks=(rows.chunks[0], (genes,)),
        new_axis=1,
        dtype=np.float32,
        meta=csr_matrix((0, 0), dtype=np.float32),
    )


UNKNOWN = "unknown"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_NOT_KNOWN = "not known: the result's record does not say, and the checkpoint was not at hand"


def write_card(
    contents: Contents,
    checkpoints: Sequence[CheckpointFacts],
    slide: Slide | None,
    formats: Sequence[str],
    licence: str | None,
) -> str:
    """Return the text of a data card.

    ``checkpoints`` holds the facts of each run's checkpoint; ``slide`` is None where real patches were left out; ``licence`` is the user's
    words or a hub's identifier.
    """
    head = yaml.safe_dump(_front_matter(contents, formats, licence), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{head}---",
        _opening(contents),
        _counts(contents, slide),
        _runs(contents),
        _checkpoints(checkpoints),
        _layout(contents, formats),
        _schema(),
        _licence(licence),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(contents: Contents, formats: Sequence[str], licence: str | None) -> dict[str, Any]:
    head: dict[str, Any] = {"pretty_name": _title(contents), "license": UNKNOWN}
    if licence:
        identifier = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence)
        head |= {"license": licence} if identifier else {"license": "other", "license_name": licence}
    count = len(contents)
    head["tags"] = ["synthetic", "histology", "spatial-transcriptomics", "visium", "napari-stmdit"]
    head["size_categories"] = [next((name for most, name in _SIZES if count < most), "n>1M")]
    places = {"parquet": "parquet/*.parquet", "imagefolder": "imagefolder/train/**"}
    loaded = [name for name in places if name in formats]
    if loaded:  # one loader serves all configurations of a folder, so the first alone is named
        files = [{"split": "train", "path": places[loaded[0]]}]
        head["configs"] = [{"config_name": "default", "data_files": files}]
    return head


def _title(contents: Contents) -> str:
    return f"Synthetic H&E patches with expression: {contents.section.name}"


def _opening(contents: Contents) -> str:
    also = (
        "\n>\n> The section itself is synthetic, too: its slide and its counts show no tissue that exists."
        if contents.section.synthetic
        else ""
    )
    statement = contents.section.expression.statement
    also += f"\n>\n> {capitalised(statement)}. Where this card says 'measured', read that." if statement else ""
    return f"""# {_title(contents)}

> **Synthetic images, made by a generative model. Not for diagnosis.** They are for research, show what a model made of numbers, and are no
> evidence about a patient. The column `synthetic` tells them from crops of the slide; every PNG says it in its description.{also}

Image patches with the gene expression they belong to, one spot of a spatial transcriptomics section each: as the checkpoint made them, with the
expression as measured and after the virtual edits they were conditioned on."""


def _counts(contents: Contents, slide: Slide | None) -> str:
    crops = len(contents) - contents.synthetic
    real = (
        f"{crops} crops of the slide at the same places and scale, from {slide.description}"
        if slide
        else "no crops of the slide"
    )
    spots = len({row.patch.row for row in contents.rows})
    scale = contents.section.calibration
    return f"""## What is in it

- {len(contents)} images of {contents.patch_px} x {contents.patch_px} px at {contents.patch_mpp:g} um/px: {len(contents) - crops} synthetic, {real}.
- {spots} spots of section {contents.section.name}; {len(contents.section.spots.genes)} genes, listed in `genes.csv`.
- Scale of the section: {scale.detail.rstrip(".")}.
- All rows are in one split, `train`, which is no advice: images of one spot, and of one section, belong on one side of any split."""


def _runs(contents: Contents) -> str:
    return "## How it was made\n\n" + "\n".join(_run(contents, made) for made in contents.runs)


def _run(contents: Contents, made: Finished) -> str:
    record, request = made.provenance, made.request
    guidance = dict(record.get("guidance") or {})
    scales = ", ".join(f"{name} {guidance[name]:g}" for name in ("expression", "morphology") if name in guidance)
    edits = [edit.name or edit.operation.replace("_", " ") for edit in request.edits if edit.enabled]
    left = (
        f" {made.left_out} spots on it lie too near its border for a whole patch and are left out."
        if made.left_out
        else ""
    )
    edited = f"virtual edits: {'; '.join(edits)}" if edits else "no edits"
    return (
        f"- `{made.name}`: {len(made)} images, pixels {made.source}; expression {condition_of(made)}, morphology {request.morphology}, "
        f"{edited}; seed {request.seed}, {record.get('steps')} steps, guidance {scales or 'not recorded'}; made "
        f"{record.get('created', 'at an unknown time')} by {_software(record)}. The whole record is in `runs/{made.name}.json`.{left}"
    )


def _software(record: Mapping[str, Any]) -> str:
    software = dict(record.get("software") or {})
    return f"{software.get('name', 'napari-stmdit')} {software.get('version', '')}".strip()


def _checkpoints(checkpoints: Sequence[CheckpointFacts]) -> str:
    parts = ["## The checkpoint"]
    for facts in {one.sha256: one for one in checkpoints}.values():
        parts.append(
            f"`{facts.name}`, sha256 `{facts.sha256 or 'not recorded'}`.\n\n"
            f"- Trained on: {facts.training_data or _NOT_KNOWN}\n"
            f"- Licence of its weights and data: {facts.licence or _NOT_KNOWN}\n"
            f"- Limits, in its own words: {facts.limits or _NOT_KNOWN}"
        )
    return "\n\n".join(parts)


def _layout(contents: Contents, formats: Sequence[str]) -> str:
    side = contents.patch_px
    lines = {
        "imagefolder": '- `imagefolder/train/`: PNG files in numbered folders, each with its `metadata.parquet`: `load_dataset("imagefolder", '
        'data_dir="THIS/imagefolder")`',
        "parquet": '- `parquet/`: the same rows with the images inside: `load_dataset("parquet", data_files="THIS/parquet/*.parquet")`',
        "anndata": f'- `anndata/dataset.zarr`: `anndata.read_zarr("THIS/anndata/dataset.zarr")`; `anndata/images.zarr`: the images of its rows, '
        f'({len(contents)}, {side}, {side}, 3) uint8: `zarr.open_array("THIS/anndata/images.zarr")[k]`',
    }
    wanted = "\n".join(lines[name] for name in lines if name in formats)
    return f"""## How to read it

{wanted}
- `genes.csv`: the gene of every index. `runs/`: each run's request and record. `manifest.json`: every part with its size and SHA-256.

PNG is lossless: pixels are the same in every format. Written by napari-stmdit {__version__}."""


def _schema() -> str:
    rows = "\n".join(f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in COLUMNS)
    return f"""## Columns

In Parquet the image is `image`, in an image folder the file is `file_name`. In AnnData the expression is `X` (as measured) and
`layers["edited"]` (what the image was conditioned on), the rest is `obs` with `id` as its index, and `obsm["spatial"]` is (x, y) in full-resolution pixels.

| column | type | meaning |
|---|---|---|
{rows}"""


def _licence(licence: str | None) -> str:
    own = f"`{licence}`, as stated by its maker." if licence else "`unknown`: its maker has not stated one."
    return f"""## Licence

{own} Three sets of terms apply when the data set is passed on: those of the section (slide and counts), those of the checkpoint, and those of
the data that it was trained on (both above)."""
