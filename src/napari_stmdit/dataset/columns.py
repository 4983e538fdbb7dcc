"""What a data set says of each of its images: the one list that files, tables and the card are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["string", "bool", "int64", "float64", "indices", "values"]


@dataclass(frozen=True)
class Column:
    """A column: its name, what it holds, and what that means. ``indices`` and ``values`` are lists of int32 and of float32."""

    name: str
    kind: Kind
    meaning: str


FACTS = (
    Column("id", "string", "names the image: RUN/SPOT, or slide/SPOT for a crop of the slide"),
    Column("origin", "string", "`model`: made by the checkpoint; `slide`: cropped from the section's slide image"),
    Column(
        "synthetic",
        "bool",
        "true for every image that was made by a model, and for crops of a section that is synthetic itself",
    ),
    Column(
        "run", "string", "the result it belongs to, whose whole record is in runs/RUN.json; null for crops of the slide"
    ),
    Column("spot", "string", "the spot in the middle of the image"),
    Column("slide_id", "string", "the crop of the slide at the same place and scale; null where there is none"),
    Column(
        "baseline_id",
        "string",
        "the image made with the same noise and settings, but without the edits; of edited real tissue the crop of the slide; null where "
        "there is none or no edit",
    ),
    Column("edited", "bool", "whether an edit changed the expression here"),
    Column(
        "counterfactual",
        "bool",
        "true where real tissue was edited: the image is the slide's crop, changed by the edits; false where new tissue was made",
    ),
    Column(
        "edits",
        "string",
        "JSON list of the edits that touch this spot: their place in the request, what they do, and their weight at this spot; in "
        "seamless tissue the mean weight over the spots that are mixed there",
    ),
    Column(
        "expression",
        "string",
        "what the image was conditioned on: `own`, `shuffled` (another spot's, a control), `null` (none), `embeddings` (computed "
        "elsewhere); for crops of the slide `measured`, or `predicted` or `null` where the section has no measured expression",
    ),
    Column(
        "expression_spot",
        "string",
        "the spot whose counts those are; another than `spot` in the shuffled control; null where none, and in seamless tissue, which "
        "mixes several",
    ),
    Column(
        "morphology",
        "string",
        "`own` (the crop at this place), `mean` (of the section), `null` (none) or the id of a spot",
    ),
    Column("mode", "string", "`spots`: one image a spot; `continuous`: cut from one seamless tissue"),
    Column(
        "pixels",
        "string",
        "`as made`; `cut from the blended canvas` (shared with neighbouring patches near its border); `cut from the seamless canvas`; "
        "`slide` (what reaches over the slide's edge has the colour of its glass)",
    ),
    Column("seed", "string", "seed of this image's noise, as text, as 63 bits are more than a float holds"),
    Column("run_seed", "int64", "seed of the run"),
    Column("steps", "int64", "denoising steps"),
    Column("guidance_expression", "float64", "guidance scale of expression"),
    Column("guidance_morphology", "float64", "guidance scale of morphology"),
    Column("guidance_rule", "string", "how the two scales combine"),
    Column("checkpoint", "string", "name of the checkpoint"),
    Column("checkpoint_sha256", "string", "hash of the checkpoint's folder"),
    Column("section", "string", "name of the section"),
    Column("y_um", "float64", "spot's centre from the slide's upper edge, in microns"),
    Column("x_um", "float64", "spot's centre from the slide's left edge, in microns"),
    Column("y_fullres", "float64", "the same in full-resolution pixels of the slide"),
    Column("x_fullres", "float64", "the same in full-resolution pixels of the slide"),
    Column("source_y0", "float64", "upper edge of the image, in full-resolution pixels of the slide"),
    Column("source_x0", "float64", "left edge"),
    Column("source_y1", "float64", "lower edge"),
    Column("source_x1", "float64", "right edge"),
    Column("patch_px", "int64", "pixels along a side of the image"),
    Column("patch_mpp", "float64", "microns per pixel of the image"),
)
EXPRESSION = (
    Column("gene_index", "indices", "rows of genes.csv whose count at `spot`, as measured, is not zero"),
    Column("gene_count", "values", "those counts"),
    Column(
        "edited_gene_index",
        "indices",
        "rows of genes.csv whose count is not zero in what the image was conditioned on: after edits and shuffling; of crops of the "
        "slide as measured; in seamless tissue the mix of the nearest spots at this place, by the rule in the run's record; empty where "
        "`expression` is `null`",
    ),
    Column("edited_gene_count", "values", "those counts; fractional, as edits work on log(1 + counts per 10,000)"),
)
COLUMNS = (*FACTS, *EXPRESSION)


def arrow_schema(first: Literal["file_name", "image"]) -> pa.Schema:
    """Return the schema of a table whose first column is a file's name, or holds the image itself.

    The metadata say which column `datasets` decodes as an image, so that nobody has to name it.
    """
    import pyarrow as pa

    types: dict[str, Any] = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "indices": pa.list_(pa.int32()),
        "values": pa.list_(pa.float32()),
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    lead = pa.field("file_name", pa.string()) if first == "file_name" else pa.field("image", image)
    schema = pa.schema([lead, *(pa.field(column.name, types[column.kind]) for column in COLUMNS)])
    if first == "file_name":
        return schema
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})


def _features() -> dict[str, Any]:
    lists = {"indices": "int32", "values": "float32"}
    found: dict[str, Any] = {"image": {"_type": "Image"}}
    for column in COLUMNS:
        if column.kind in lists:  # "Sequence" is what old and new versions of datasets read
            found[column.name] = {"feature": {"dtype": lists[column.kind], "_type": "Value"}, "_type": "Sequence"}
        else:
            found[column.name] = {"dtype": column.kind, "_type": "Value"}
    return found


def as_arrow(records: Sequence[dict[str, Any]], first: Literal["file_name", "image"]) -> pa.Table:
    """Return records as a table of that schema."""
    import pyarrow as pa

    schema = arrow_schema(first)
    return pa.table(
        {name: pa.array([record[name] for record in records], schema.field(name).type) for name in schema.names}, schema
    )
