"""The command line that asks for an evaluation, for one that did not come from a command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..synthesis.requests import EditFile, read_edit_file, write_edit_file
from ..types import Section
from .cases import EvaluationRequest

EDITS = "edits.yaml"


def equivalent_command(
    sections: Sequence[Section],
    checkpoint: str,
    request: EvaluationRequest,
    folder: Path,
    *,
    predictor_sections: Sequence[Section] = (),
    own_spaces: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Return a command line that asks for the same; what no option can ask for is named in a comment behind it.

    Parameters
    ----------
    sections, checkpoint, request
        What is evaluated, and with what.
    folder
        Of the report. Edits are written into a file there, which the command names.
    predictor_sections, own_spaces
        As the evaluation was given them: other sections, and whether there were feature spaces of the caller's own.
    provenance
        Of the checkpoint, which tells whether embeddings took the place of its encoders.

    Raises
    ------
    RequestError
        The file of the edits cannot be written.
    """
    words = ["stmdit", "evaluate", checkpoint, *(_place(section) for section in sections)]
    words += ["--seed", str(request.seed), "--draws", str(request.draws)]
    if "conditions" in request.parts:
        words += ["--spots", str(request.spots), "--seeds", str(request.seeds), "--genes", str(request.genes)]
    if request.parts != ("conditions",):
        words += [part for name in request.parts for part in ("--parts", name)]
        swaps = ["--pairs", str(request.pairs), "--mode", request.mode]
        words += swaps if "counterfactual" in request.parts else []
    given = {
        "--steps": request.steps,
        "--guidance-expression": request.guidance.expression,
        "--guidance-morphology": request.guidance.morphology,
        "--predictor": request.predictor,
        "--edits": _edits_file(request, folder),
        **(_opened(sections[0]) if len(sections) == 1 else {}),
    }
    words += [part for name, value in given.items() if value is not None for part in (name, str(value))]
    judges = request.feature_spaces if "conditions" in request.parts else ()
    words += [part for name in judges for part in ("--feature-space", name)]
    words += [part for section in predictor_sections for part in ("--predictor-sections", _place(section))]
    words += ["--allow-gene-mismatch"] if request.allow_gene_mismatch else []
    line = shlex.join([*words, "--output", str(folder)])
    missing = [*_not_said(sections, predictor_sections, request)]
    missing += ["feature spaces of the caller's own"] if own_spaces else []
    brought = [name for name in provenance or {} if name.endswith("_embeddings")]
    missing += [f"{name.replace('_', ' ')} in place of an encoder" for name in brought]
    told = " ".join("; ".join(missing).split())  # a line break in a name would end the comment
    return f"{line}  # no option says: {told}" if told else line


def _place(section: Section) -> str:
    return str(section.path or section.name)


def _opened(section: Section) -> dict[str, Any]:
    """What a single section was opened with."""
    image, scale = section.image, section.calibration
    from_file = image is not None and section.kind != "image" and image.pixel_size == 1 and Path(image.source).is_file()
    return {
        "--fullres": image.source if image is not None and from_file else None,
        "--mpp": scale.mpp if scale.source == "override" else None,
    }


def _edits_file(request: EvaluationRequest, folder: Path) -> Path | None:
    """Write the edits beside the report; an earlier file that holds others keeps its name."""
    if not request.edits:
        return None
    file = EditFile(edits=request.edits, programs=request.programs, profiles=request.profiles)
    for number in count(1):
        path = folder / (EDITS if number == 1 else f"edits-{number}.yaml")
        if not path.exists():
            write_edit_file(file, path)
            return path
        if path.is_file() and _holds(path, file):
            return path
    return None


def _holds(path: Path, file: EditFile) -> bool:
    try:
        return read_edit_file(path) == file
    except RequestError:
        return False


def _not_said(sections: Sequence[Section], others: Sequence[Section], request: EvaluationRequest) -> Iterator[str]:
    """What was asked for and no option of the command can ask for."""
    if request.guidance.rule is not None:
        yield f"guidance rule {request.guidance.rule}"
    if request.guidance.above is not None:
        yield f"guidance above noise level {request.guidance.above:g} alone"
    for section in (*sections, *others):
        if section.path is None:
            yield f"{section.name} was not opened from a path"
        if section.kind == "image":
            yield f"the grid of spots of {section.name} and its predicted expression, where they are not the default"
    for section in (*(sections if len(sections) > 1 else ()), *others):
        if section.calibration.source == "override":
            yield f"{section.name} was opened with {section.calibration.mpp} um/px"
