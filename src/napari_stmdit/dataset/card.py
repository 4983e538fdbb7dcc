"""Data card (README.md): what the images are, how they were made, and what they are not for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .. import __version__
from ..synthesis.result import Finished
from .contents import COLUMNS, Contents, condition_of
from .sources import CheckpointFacts, Slide

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
    also += (
        f"\n>\n> {statement[0].upper()}{statement[1:]}. Where this card says 'measured', read that."
        if statement
        else ""
    )
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
