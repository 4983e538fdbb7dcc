"""Request, folder and progress of an adaptation, for the processes that start, watch and stop it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ..downloads.places import data_directory
from ..errors import RequestError
from ..files import BadFile, read_json
from ..frozen import Frozen
from ..types import Orientation

REQUEST, CONFIG, PROGRESS, STOP = "request.json", "config.yaml", "progress.json", "stop"
"""Files of the work folder: request, training config, progress, and the request to stop, if any."""
STAGES = {
    "preparing": "Choosing genes and preparing",
    "latents": "Encoding the tissue",
    "transformer": "Learning",
    "evaluation": "Evaluating on what was held out",
    "export": "Writing the checkpoint",
}
"""Stages in their order -> label."""

CORNERS = {
    "lower-right": (True, True),
    "lower-left": (True, False),
    "upper-right": (False, True),
    "upper-left": (False, False),
}
"""Corner of a section that may be held out -> whether it is a lower one, and a right one."""
NOTHING = "none"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class AdaptRequest(Frozen):
    """Request of an adaptation.

    ``sections`` are paths as `napari_stmdit.open_section` takes them; ``fullres``, ``mpp``, ``exclude`` (GeoJSON
    regions) and ``orientation`` are for the first. ``factors`` of the spots replace counts: one table for each section, in their order, or none. ``hold_out`` is evaluated and
    not trained on: a corner quarter of the first section's spots, a section by the name of its folder (another donor's, say), or ``none``.
    ``minutes`` is the total time on this computer, ``start`` the checkpoint to start from, and ``workers`` the training processes on a CPU
    (None: one a core, at most 4).
    """

    name: str
    sections: Annotated[tuple[str, ...], Field(min_length=1)]
    fullres: str | None = None
    mpp: Annotated[float, Field(gt=0)] | None = None
    factors: tuple[str, ...] = ()
    exclude: str | None = None
    orientation: Orientation = "as-given"
    minutes: Annotated[float, Field(gt=0, le=100_000)] = 30.0
    hold_out: str = "lower-right"
    start: str = "demo"
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=1)] | None = None


def request_of(**values: Any) -> AdaptRequest:
    """Return a request; raises RequestError with every fault."""
    try:
        return AdaptRequest(**values)
    except ValidationError as error:
        raise RequestError([(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]) from None


def home_of(name: str) -> Path:
    """Return the default work folder of a name; raises RequestError where the name is not valid for a checkpoint."""
    check_name(name)
    return adaptations_home() / name


def check_name(name: str) -> None:
    """Raise RequestError where a name is not valid for a checkpoint."""
    if not _NAME.fullmatch(name):
        raise RequestError([("name", f"{name!r} is no name for a checkpoint; use letters, digits, '.', '_' and '-'")])


def adaptations_home() -> Path:
    """Return the folder of all adaptations on this computer that have no folder of their own."""
    return data_directory() / "adapted"


def default_name(section: str | Path) -> str:
    """Return a default name for a checkpoint of a section."""
    path = Path(section).expanduser().resolve()
    folder = path.parent if path.name in ("outs", "spatial") else path
    return f"my-{re.sub(r'[^A-Za-z0-9._-]+', '-', folder.stem).strip('-.') or 'tissue'}"


State = Literal["running", "stopped", "failed", "done"]


@dataclass
class AdaptProgress:
    """Progress of an adaptation, as in ``progress.json``.

    ``fraction`` is of the whole, ``remaining_s`` an estimate, ``spent_s`` the seconds of all runs. ``controls`` are losses on held-out spots
    with their own expression and with another spot's. ``sheet`` is the latest sample sheet, ``checkpoint`` the finished folder, ``figures``
    the evaluation as Markdown of the card, ``short`` the same in a sentence.
    """

    name: str
    state: State = "running"
    stage: str = "preparing"
    fraction: float = 0.0
    remaining_s: float | None = None
    spent_s: float = 0.0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    controls: dict[str, float] = field(default_factory=dict)
    sheet: str | None = None
    checkpoint: str | None = None
    figures: str = ""
    short: str = ""
    message: str = ""

    @property
    def words(self) -> str:
        """Step, loss and controls in words."""
        parts = [f"{self.step} of {self.steps}"] if self.steps else []
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        if len(self.controls) == 2:
            parts.append(
                "held out {expression:.3f}, another spot's expression {expression_shuffled:.3f}".format(**self.controls)
            )
        return ", ".join(parts)


def command_of(request: AdaptRequest, work: Path) -> list[str]:
    """Return the command that begins or continues an adaptation."""
    words = [sys.executable, "-m", "napari_stmdit.cli", "train", "--name", request.name, "--output", str(work)]
    words += [word for path in request.sections for word in ("--section", path)]
    words += [word for place in request.factors for word in ("--factors", place)]
    words += [
        "--minutes",
        f"{request.minutes:g}",
        "--hold-out",
        request.hold_out,
        "--start",
        request.start,
        "--seed",
        str(request.seed),
    ]
    words += [] if request.fullres is None else ["--fullres", request.fullres]
    words += [] if request.exclude is None else ["--exclude", request.exclude]
    words += [] if request.orientation == "as-given" else ["--orientation", request.orientation]
    words += [] if request.workers is None else ["--workers", str(request.workers)]
    return words if request.mpp is None else [*words, "--mpp", repr(request.mpp)]


def read_progress(work: Path) -> AdaptProgress | None:
    """Return the progress of an adaptation; None where none was begun in the folder."""
    try:
        return AdaptProgress(**read_json(work / PROGRESS))
    except (BadFile, TypeError, OSError):
        return None


def read_request(work: Path) -> AdaptRequest | None:
    """Return the request of an adaptation; None where none was begun in the folder."""
    try:
        return AdaptRequest.model_validate(read_json(work / REQUEST))
    except (BadFile, ValueError, OSError):
        return None


def ask_to_stop(work: Path) -> None:
    """Ask the adaptation of a folder to save its state and end."""
    (work / STOP).touch()
