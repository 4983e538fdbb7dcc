"""Contents of a data set: its sources, columns, rows in order, and image, facts and expression of each row."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..assemble import checkpoint_folder
from ..edits import Swap, Towards
from ..errors import CheckpointError, SectionError, StmditError, StoreError
from ..expression.changes import Profile, spot_weights
from ..intent import Request
from ..model.folder import read_folder, read_profiles
from ..synthesis.conditions import conditioned_counts, mixed_counts, shuffled_rows
from ..synthesis.result import NO_PATCH, Finished, Result, finished, place_of
from ..synthesis.stored import StoredResult, StoredResults, read_stored
from ..synthesis.variants import noise_key
from ..synthesis.windows import mixing, nearest_spots
from ..tissue.crops import read_patches
from ..tissue.elements import is_same_section, section_key
from ..tissue.open import open_section, synthesis_fault
from ..tissue.store_entries import element_name
from ..types import Patch, Section, SlideImage

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_matrix

    from ..model.folder import CheckpointFolder

Kind = Literal["string", "bool", "int64", "float64", "indices", "values"]


@dataclass(frozen=True)
class Column:
    """Column: name, type and meaning. ``indices`` and ``values`` are lists of int32 and of float32."""

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
    """Return the schema of a table whose first column is a file name or the image, declared as such for `datasets`."""
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


_SPOTS_OF_AN_EDIT = {"spots", "group_a", "group_b", "target_spots", "enabled", "strength"}
"""Fields of an edit that are long and the same in every row; the run's record has them once."""


@dataclass(frozen=True)
class Row:
    """One image: its run (None for a crop of the slide), place among the run's patches, and position."""

    run: int | None
    at: int
    patch: Patch


@dataclass(frozen=True)
class Contents:
    """Rows of a data set, spot by spot: the crop of the slide first, then the runs in order.

    Runs have unique names, one section and one size of patch. ``profiles`` hold, for each run, the checkpoint's profiles that its edits move
    towards. Without a ``slide`` there are no crops.
    """

    runs: tuple[Finished, ...]
    profiles: tuple[Mapping[str, Profile], ...] = field(repr=False)
    slide: SlideImage | None
    rows: tuple[Row, ...] = field(repr=False)
    _ids: frozenset[str] = field(repr=False)
    _baselines: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def of(
        cls, runs: Sequence[Finished], profiles: Sequence[Mapping[str, Profile]], slide: SlideImage | None
    ) -> Contents:
        """Order the rows of some runs; raises StoreError where there are none or they do not fit into one table."""
        _check(runs)
        rows = _rows(runs, slide is not None)
        ids = [_id(runs, row) for row in rows]
        return cls(tuple(runs), tuple(profiles), slide, rows, frozenset(ids), _baselines(runs))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def section(self) -> Section:
        """Section of all runs."""
        return self.runs[0].section

    @property
    def patch_px(self) -> int:
        """Pixels along a side of every image."""
        return self.runs[0].patch_px

    @property
    def patch_mpp(self) -> float:
        """Microns per pixel of every image."""
        return self.runs[0].patch_mpp

    @property
    def synthetic(self) -> int:
        """Number of synthetic images."""
        return sum(row.run is not None for row in self.rows)

    def facts(self, at: int) -> dict[str, Any]:
        """Return the columns `FACTS` of a row."""
        row = self.rows[at]
        slide_id = f"slide/{row.patch.spot_id}"
        common = {
            "id": _id(self.runs, row),
            "spot": row.patch.spot_id,
            "slide_id": slide_id if slide_id in self._ids else None,
            "section": self.section.name,
            **place_of(row.patch, self.section),
            "patch_px": self.patch_px,
            "patch_mpp": self.patch_mpp,
        }
        own = self._slide_facts(row) if row.run is None else self._run_facts(row.run, row)
        return dict.fromkeys(column.name for column in FACTS) | common | own

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the images of some rows, (n, patch_px, patch_px, 3) uint8."""
        rows = self.rows[start:stop]
        found = np.empty((len(rows), self.patch_px, self.patch_px, 3), dtype=np.uint8)
        crops = [k for k, row in enumerate(rows) if row.run is None]
        if crops and self.slide is not None:
            found[crops] = read_patches(self.slide, [rows[k].patch.source_box for k in crops], self.patch_px)
        try:
            for k, row in enumerate(rows):
                if row.run is not None:
                    found[k] = self.runs[row.run].pixels(row.at)
        except (StmditError, MemoryError):
            raise
        except Exception as error:  # every store and codec has its own for damaged data
            raise StoreError(f"the result cannot be read, it may be damaged: {error}") from error
        return found

    def measured(self, start: int, stop: int) -> csr_matrix:
        """Return the counts of some rows as measured at their spots, (n, genes) float32."""
        rows = [row.patch.row for row in self.rows[start:stop]]
        return _tidy(self.section.spots.counts[rows])

    def conditioned(self, start: int, stop: int) -> csr_matrix:
        """Return the counts that some rows were conditioned on, (n, genes) float32."""
        from scipy.sparse import vstack

        rows = self.rows[start:stop]
        parts, order = [], []
        for run in dict.fromkeys(row.run for row in rows):
            mine = [k for k, row in enumerate(rows) if row.run == run]
            order += mine
            parts.append(self._conditioned(run, np.array([rows[k].patch.row for k in mine], dtype=np.int64)))
        return _tidy(vstack(parts, format="csr")[np.argsort(order)])

    def _conditioned(self, run: int | None, rows: NDArray[np.int64]) -> csr_matrix:
        from scipy.sparse import csr_matrix

        counts = self.section.spots.counts
        if run is None:
            return counts[rows].astype(np.float32)
        made = self.runs[run]
        if condition_of(made) == "null":
            return csr_matrix((len(rows), counts.shape[1]), dtype=np.float32)
        if not _mixes_spots(made):
            return conditioned_counts(rows, self.section, made.request, self.profiles[run])[0]
        near, weights = nearest_spots(self.section.spots.yx[rows], made.section)
        drawn, places = np.unique(near, return_inverse=True)
        counts = conditioned_counts(drawn, self.section, made.request, self.profiles[run])[0]
        return mixed_counts(mixing(places.reshape(near.shape), weights, len(drawn)), counts)

    def _drawn_on(self, made: Finished, row: int) -> dict[str, float]:
        """Return the spots (in seamless tissue neighbours, too) and weights that make up the expression at a spot."""
        if not _mixes_spots(made):
            return {str(self.section.spots.ids[row]): 1.0}
        near, weights = nearest_spots(self.section.spots.yx[[row]], made.section)
        return dict(zip(self.section.spots.ids[near[0]].tolist(), weights[0].tolist(), strict=True))

    def _slide_facts(self, row: Row) -> dict[str, Any]:
        kind = self.section.expression.kind
        return {
            "origin": "slide",
            "synthetic": self.section.synthetic,
            "edited": False,
            "counterfactual": False,
            "edits": "[]",
            "expression": "null" if kind == "none" else kind,
            "expression_spot": None if kind == "none" else row.patch.spot_id,
            "pixels": "slide",
        }

    def _run_facts(self, run: int, row: Row) -> dict[str, Any]:
        made, spot = self.runs[run], row.patch.spot_id
        guidance, checkpoint = (dict(made.provenance.get(name) or {}) for name in ("guidance", "checkpoint"))
        condition, edits = condition_of(made), edits_at(made.request, self._drawn_on(made, row.patch.row))
        return {
            "origin": "model",
            "synthetic": True,
            "run": made.name,
            "baseline_id": self._baseline_id(run, spot),
            "edited": bool(edits) and condition != "null",
            "counterfactual": bool(made.provenance.get("counterfactual")),
            "edits": json.dumps(edits),
            "expression": condition,
            "expression_spot": self._source_of(made, condition, row.patch.row),
            "morphology": made.request.morphology,
            "mode": made.request.mode,
            "pixels": made.source,
            "seed": str(row.patch.seed),
            "run_seed": made.request.seed,
            "steps": made.provenance.get("steps"),
            "guidance_expression": guidance.get("expression"),
            "guidance_morphology": guidance.get("morphology"),
            "guidance_rule": guidance.get("rule"),
            "checkpoint": checkpoint.get("name"),
            "checkpoint_sha256": checkpoint.get("sha256"),
        }

    def _baseline_id(self, run: int, spot: str) -> str | None:
        if self.runs[run].provenance.get("counterfactual"):  # made from the slide, not from noise
            return f"slide/{spot}" if f"slide/{spot}" in self._ids else None
        names = (f"{self.runs[base].name}/{spot}" for base in self._baselines[run])
        return next((name for name in names if name in self._ids), None)

    def _source_of(self, made: Finished, condition: str, row: int) -> str | None:
        if condition == "null" or _mixes_spots(made):
            return None
        if condition == "shuffled":
            row = int(shuffled_rows(len(self.section.spots), made.request.seed)[row])
        return str(self.section.spots.ids[row])


def _tidy(counts: csr_matrix) -> csr_matrix:
    """Return counts as float32, each once, without stored zeros."""
    from scipy.sparse import csr_matrix

    found = csr_matrix(counts, dtype=np.float32, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def condition_of(made: Finished) -> str:
    """Return a run's expression condition, as in the column ``expression``."""
    checkpoint = dict(made.provenance.get("checkpoint") or {})
    if made.request.expression == "null" or "expression" not in checkpoint.get("conditions", ("expression",)):
        return "null"
    return "embeddings" if "expression_embeddings" in checkpoint else made.request.expression


def _mixes_spots(made: Finished) -> bool:
    """Return whether a run mixes the expression of several spots: in seamless tissue, unless embeddings were given."""
    return made.request.mode == "continuous" and condition_of(made) != "embeddings"


def edits_at(request: Request, spots: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the edits at spots, whose shares sum to one: place in the request, operation, weight; JSON types only."""
    found = []
    for number, edit in enumerate(request.edits):
        members = set(spots)
        if isinstance(edit, Swap):
            members &= {*edit.group_a, *edit.group_b}
        own = spot_weights(edit, list(members)).tolist()
        weight = round(sum(spots[spot] * value for spot, value in zip(members, own, strict=True)), 6)
        if edit.enabled and weight > 0:
            what = edit.model_dump(mode="json", exclude=_SPOTS_OF_AN_EDIT, exclude_defaults=True)
            found.append({"edit": number, "operation": edit.operation, **what, "weight": weight})
    return found


def _check(runs: Sequence[Finished]) -> None:
    if not runs or not any(made.done for made in runs):
        raise StoreError("there is no finished patch to make a data set of")
    for made in runs:
        if made.done and not len(made):
            raise StoreError(f"{made.name}: {NO_PATCH}")
    names = [made.name for made in runs]
    if not all(re.fullmatch(r"\w[\w.-]*", name, re.ASCII) for name in names):
        raise StoreError(f"a run's name has letters, digits and _ . - alone; got {', '.join(map(repr, names))}")
    if len({name.lower() for name in names}) < len(names) or "slide" in names:
        raise StoreError(f"runs of one data set need different names, none of them 'slide'; got {', '.join(names)}")
    sizes = {(made.patch_px, round(made.patch_mpp, 9), made.section.calibration.mpp) for made in runs}
    if len(sizes) > 1:
        each = "; ".join(f"{made.name}: {made.patch_px} px at {made.patch_mpp:g} um/px" for made in runs)
        raise StoreError(f"images of one data set have one size and scale; choose runs of one kind ({each})")
    if len({(section_key(made.section), made.section.spots.counts.shape) for made in runs}) > 1:
        raise StoreError("the runs are of different sections; make one data set of each")


def _rows(runs: Sequence[Finished], with_slide: bool) -> tuple[Row, ...]:
    at_spot: dict[int, list[Row]] = {}
    for run, made in enumerate(runs):
        for at, patch in enumerate(made.patches):
            at_spot.setdefault(patch.row, []).append(Row(run, at, patch))
    rows: list[Row] = []
    for spot in sorted(at_spot):
        if with_slide:
            rows.append(Row(None, 0, at_spot[spot][0].patch))
        rows += at_spot[spot]
    return tuple(rows)


def _id(runs: Sequence[Finished], row: Row) -> str:
    return f"{'slide' if row.run is None else runs[row.run].name}/{row.patch.spot_id}"


def _baselines(runs: Sequence[Finished]) -> tuple[tuple[int, ...], ...]:
    """Return the baselines of each run: runs that differ from it by the edits alone; none for a run without edits."""
    keys = [noise_key(made.request, made.provenance) for made in runs]
    found = []
    for run, made in enumerate(runs):
        wanted = noise_key(made.request, made.provenance, edited=False)
        edited = any(edit.enabled for edit in made.request.edits)
        found.append(tuple(k for k, key in enumerate(keys) if edited and key == wanted and k != run))
    return tuple(found)


log = logging.getLogger(__name__)
AnyResult = str | Path | Result | StoredResult | Sequence[Result | StoredResult]


@dataclass(frozen=True)
class Slide:
    """Slide that crops are read from; ``mpp`` of its finest level, and a sentence that describes it."""

    image: SlideImage
    mpp: float
    description: str


@dataclass(frozen=True)
class CheckpointFacts:
    """Known facts of a checkpoint; profiles only where edits move towards them."""

    name: str
    sha256: str
    training_data: str | None
    licence: str | None
    limits: str | None
    profiles: Mapping[str, Profile] = field(default_factory=dict, repr=False)


def open_results(source: AnyResult, names: Sequence[str] = ()) -> tuple[Finished, ...]:
    """Open the results of a data set: those of a store by ``names``, with or without ``stmdit_``, or all.

    Raises StoreError where there are none or a name is not among them, SectionError where the store cannot be opened.
    """
    if isinstance(source, str | Path):
        section = open_section(source)
        stored = read_stored(section)
        if not stored.results:
            why = "".join(f"; {note}" for note in stored.notes)
            raise StoreError(
                f"{source} holds no results of {section.name}; `stmdit synthesize {source} --output OUT.zarr` makes some{why}"
            )
        return tuple(finished(one) for one in _chosen(stored, names, str(source)))
    results = [source] if isinstance(source, Result | StoredResult) else list(source)
    if names:
        raise StoreError("runs are chosen by name from a store; of results at hand, pass those that are wanted")
    return tuple(
        finished(one, None if isinstance(one, StoredResult) else f"run_{number}")
        for number, one in enumerate(results, 1)
    )


def _chosen(stored: StoredResults, names: Sequence[str], where: str) -> Sequence[StoredResult]:
    by_name = {one.element: one for one in stored.results}
    wanted = {name: name if name in by_name else element_name(name) for name in names or by_name}
    if unknown := [name for name, element in wanted.items() if element not in by_name]:
        why = "".join(f"; {stored.left_out[wanted[name]]}" for name in unknown if wanted[name] in stored.left_out)
        raise StoreError(f"{where} holds no run {', '.join(unknown)}; its runs: {', '.join(by_name)}{why}")
    chosen = [by_name[element] for element in dict.fromkeys(wanted.values())]
    left_out = {} if names else stored.left_out  # who names runs knows that there are others
    for note in StoredResults(tuple(chosen), left_out).notes:
        log.warning("%s: %s", where, note)
    return chosen


def find_slide(made: Finished, section: str | Path | None = None, fullres: str | Path | None = None) -> Slide:
    """Return the slide for real crops: the one given, else the finest one of the result.

    A store made for a result has a slide of at most 4000 px; the original section in the result's record is used if it is still there with
    the same spots. Raises StmditError where no image is fine enough.
    """
    own = made.section
    if section is not None or fullres is not None:
        place = section if section is not None else own.path
        if place is None:
            raise SectionError("the result has no folder that --fullres could belong to; give --section as well")
        given = open_section(place, fullres=fullres, mpp=own.calibration.mpp)
        if not is_same_section(given, own):
            raise SectionError(f"{place} is another section than the one of the result: its spots differ")
        return _slide(given, made, f"the slide image of {given.name}, as given")
    reduced = own.image is not None and own.image.pixel_size > 1 + 1e-6
    if own.image is not None and not reduced and synthesis_fault(own, made.patch_mpp) is None:
        return _slide(own, made, f"the slide image of {own.name}")
    recorded = _recorded_section(made)
    if recorded is not None:
        return _slide(recorded, made, f"the slide image of {recorded.name}, which the result was made from")
    try:
        return _slide(own, made, f"the reduced slide image that is kept with the result of {own.name}")
    except StmditError as error:
        asked = f"; the result was made from {made.request.section}" if made.request.section else ""
        raise SectionError(
            f"real patches cannot be read from the result's own store: {error}{asked}. Give that section with --section (and --fullres), "
            "or leave real patches out with --no-real"
        ) from error


def _recorded_section(made: Finished) -> Section | None:
    """Return the section in the result's record, if it still opens, is the same, and is fine enough."""
    if not made.request.section or not Path(made.request.section).exists():
        return None
    try:
        section = open_section(made.request.section, mpp=made.section.calibration.mpp)
    except StmditError:
        return None
    same = is_same_section(section, made.section)
    return section if same and synthesis_fault(section, made.patch_mpp) is None else None


def _slide(section: Section, made: Finished, description: str) -> Slide:
    fault = synthesis_fault(section, made.patch_mpp)
    if fault is not None:
        raise SectionError(fault)
    mpp = section.slide.pixel_size * section.mpp
    return Slide(section.slide, mpp, f"{description}, {mpp:.4g} um/px")


def checkpoint_facts(made: Finished, checkpoint: str | Path | None = None) -> CheckpointFacts:
    """Return the known facts of a result's checkpoint, with its target profiles.

    ``checkpoint`` is its name or folder, if the record does not lead there. Raises CheckpointError where it is needed for edited expression
    and is missing or changed, or where another one is given.
    """
    record = dict(made.provenance.get("checkpoint") or {})
    name, sha256 = str(record.get("name") or made.request.checkpoint), str(record.get("sha256") or "")
    data, licence, limits = (_text(record.get(key)) for key in ("training_data", "licence", "limits"))
    recorded = CheckpointFacts(name, sha256, data, licence, limits)
    needed = _profiles_needed(made.request)
    if not needed and checkpoint is None and data and licence and limits:
        return recorded
    folder, reason = _folder_of(made, checkpoint, sha256)
    if folder is None and checkpoint is not None:
        raise CheckpointError(reason)
    if folder is None and needed:
        raise CheckpointError(
            f"the expression after the edits of {made.name} needs the profile {', '.join(needed)} of checkpoint {name!r} (sha256 "
            f"{sha256[:12]}): {reason}. Give its folder with --checkpoint"
        )
    if folder is None:
        return recorded
    card = folder.card
    profiles = read_profiles(folder) if needed else {}
    if missing := [profile for profile in needed if profile not in profiles]:
        raise CheckpointError(
            f"checkpoint {name!r} has no profile {', '.join(missing)}, which edits of {made.name} name"
        )
    return CheckpointFacts(
        name,
        sha256,
        data or card.training_data,
        licence or card.licence,
        limits or card.limits,
        profiles,
    )


def _profiles_needed(request: Request) -> list[str]:
    """Return the checkpoint's profiles that the edits of a request move towards."""
    named = {edit.target_profile for edit in request.edits if isinstance(edit, Towards) and edit.enabled}
    return sorted(profile for profile in named if profile is not None and profile not in request.profiles)


def _folder_of(made: Finished, checkpoint: str | Path | None, sha256: str) -> tuple[CheckpointFolder | None, str]:
    """Return the folder of the checkpoint that made a result, or why it is not available."""
    try:
        folder = read_folder(checkpoint_folder(checkpoint if checkpoint is not None else made.request.checkpoint))
    except CheckpointError as error:
        return None, str(error)
    if folder.sha256 != sha256:
        return None, f"{folder.path} is in another state than the checkpoint that made {made.name}"
    return folder, ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
