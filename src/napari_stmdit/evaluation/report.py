"""The report of an evaluation as JSON and as an HTML page: claims, charts as inline SVG, and their template."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .. import __version__
from ..errors import StoreError
from ..storage.atomic import Work, write_text
from ..synthesis.models import PatchModel
from ..tissue.elements import fingerprint
from ..tissue.export import NEW, labelled
from ..types import Plan, Section
from .cases import LATER, EvaluationRequest
from .figures import CaseFidelity, Claim, Figures, SpaceFigures
from .measures import MEASURES, STATISTICS
from .pictures import own_style
from .statistics import Interval
from .work import STACKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .counterfactual import CheckFigures

Rows = list[tuple[str, Any, bool]]
"""Rows of a chart: label, `Interval` or heights of a curve, and whether it is of real patches, which get another mark."""
EDIT_NAMES = {
    **STATISTICS,
    "pixel_change_grey_levels": "mean change of a pixel (grey levels)",
    "read_change_along_edit": "r over genes: change read off the patches with the change that the edit makes",
}
THUMB_PX = 112


def page_of(facts: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """Return the report as HTML.

    Parameters
    ----------
    facts
        Contents of the JSON file.
    figures
        Figures of each set of spots, with their images.
    """
    subject = facts["checkpoint"]["name"] if facts["kind"] == "checkpoint" else facts["result"]
    return _template().render(facts={"counterfactual": None, "notes": (), **facts}, figures=figures, subject=subject)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters |= {
        "data_uri": data_uri,
        "distances": _distance_rows,
        "number": number,
        "rows": _case_rows,
        "interval_text": interval_text,
        "statistic": _statistic_rows,
        "written": written,
    }
    environment.globals |= {
        "curves": curves,
        "edit_names": EDIT_NAMES,
        "forest": forest,
        "paired_names": {measure.key: measure.name for measure in MEASURES},
        "statistics": STATISTICS,
    }
    return environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))


def _case_rows(cases: Iterable[tuple[str, CaseFidelity]], name: str) -> Rows:
    rows = [(key, getattr(case, name), key.startswith("real")) for key, case in cases]
    return [row for row in rows if row[1] is not None]


def _statistic_rows(statistics: Mapping[str, Mapping[str, Mapping[str, Interval]]], name: str, key: str) -> Rows:
    found = [(case, values[name].get(key), case.startswith("real")) for case, values in statistics.items()]
    return [row for row in found if row[1] is not None]


def _distance_rows(space: SpaceFigures, name: str) -> Rows:
    floors = [(f"{key} (N {one.kid.n})", getattr(one, name), True) for key, one in space.floors.items()]
    return floors + [(key, getattr(one, name), False) for key, one in space.cases.items()]


def data_uri(pixels: NDArray[np.uint8], synthetic: bool) -> str:
    """Return a (h, w, 3) uint8 image as a small PNG; a synthetic one has its label drawn into it, so that copies keep it."""
    image = Image.fromarray(pixels).resize((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
    if synthetic:
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, THUMB_PX - 13, THUMB_PX, THUMB_PX), fill=(20, 20, 20))
        draw.text((4, THUMB_PX - 13), "synthetic", fill=(255, 214, 120))
    stream = io.BytesIO()
    image.save(stream, "PNG", **(labelled(NEW) if synthetic else {}))
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text, or that it is not known."""
    return "cannot be told" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # never "-0.000"


def interval_text(facts: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """Return a number with its interval as text, from JSON facts."""
    if facts[name] is None or facts["low"] is None:
        return number(facts[name], digits)
    return f"{number(facts[name], digits)} [{number(facts['low'], digits)}, {number(facts['high'], digits)}]"


def written(interval: Interval, digits: int = 3) -> str:
    """Return a value with its interval as text."""
    if not np.isfinite(interval.value):
        return "not known"
    value, low, high = (number(v, digits) for v in (interval.value, interval.low, interval.high))
    return value if np.isnan(interval.low) else f"{value} [{low}, {high}]"


# Charts. No colour carries meaning alone; every mark has its label.

WIDTH, LABEL, ROW, RIGHT, TOP, BOTTOM = 860, 220, 24, 230, 28, 34
"""Sizes in pixels: width of a chart, margins beside, above and below its axes, and height of a row."""
COLOURS = ("#1f5fa8", "#c2571a", "#2b7a3d", "#8a3a8f", "#7a6a00", "#5a5a5a", "#b0305a", "#137a7f")
REAL = "#5a5a5a"


def forest(rows: Rows, title: str, digits: int = 3) -> Markup:
    """Draw a forest plot: a dot at each value (a square for real patches), a bar over its interval, and both as text.

    The axis always includes 0; values are written with ``digits`` after the point.
    """

    def draw(axes: Axes) -> None:
        beside = axes.get_yaxis_transform()
        axes.axvline(0, color="#444", linewidth=1)
        for y, (_, one, real) in enumerate(rows):
            colour, mark = (REAL, "s") if real else (COLOURS[0], "o")
            if not np.isfinite(one.value):
                axes.text(0.01, y, "cannot be told", va="center", transform=beside)
                continue
            if np.isfinite(one.low):
                axes.hlines(y, one.low, one.high, colour, linewidth=2.5)
            axes.plot(one.value, y, mark, color=colour)
            axes.text(1.02, y, written(one, digits), va="center", transform=beside)
        axes.set(yticks=range(len(rows)), yticklabels=[label for label, _, _ in rows], ylim=(len(rows) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)

    return _chart(title, ROW * len(rows) + TOP + BOTTOM, LABEL, RIGHT, draw)


def curves(rows: Rows, title: str, first: int, x_label: str) -> Markup:
    """Draw curves over a shared axis of counts from ``first``, each labelled at its end."""
    height = 320
    inside = height - TOP - BOTTOM

    def draw(axes: Axes) -> None:
        for k, (_, values, real) in enumerate(rows):
            colour, line = (REAL, "--") if real else (COLOURS[k % len(COLOURS)], "-")
            axes.plot(range(first, first + len(values)), values, line, color=colour)
        low, high = axes.get_ylim()
        low, high = min(0.0, low), max(0.05, high)
        axes.set(xlabel=x_label, ylim=(low, high))
        order = sorted(range(len(rows)), key=lambda k: rows[k][1][-1])
        places = _spread_labels([(rows[k][1][-1] - low) / (high - low) * inside for k in order], 16, inside)
        for k, place in zip(order, places, strict=True):
            label, values, real = rows[k]
            colour = REAL if real else COLOURS[k % len(COLOURS)]
            end, to, arrow = (
                (first + len(values) - 1, values[-1]),
                (1.05, place / inside),
                {"arrowstyle": "-", "color": colour},
            )
            axes.annotate(label, end, to, textcoords="axes fraction", color=colour, arrowprops=arrow, va="center")

    return _chart(title, height, 60, 250, draw)


def _spread_labels(places: list[float], least: float, last: float) -> list[float]:
    """Move ascending positions apart so that their labels can be read, none beyond ``last``."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    return [min(place, last - least * (len(out) - 1 - k)) for k, place in enumerate(out)]


def _chart(title: str, height: int, left: int, right: int, draw: Callable[[Axes], None]) -> Markup:
    from matplotlib.figure import Figure  # slow to import

    with own_style(title):  # charts of one page share no names
        figure = Figure((WIDTH / 96, height / 96))
        figure.text(0, 1 - 16 / height, title, weight="bold")
        inside = (left / WIDTH, BOTTOM / height, 1 - (left + right) / WIDTH, 1 - (TOP + BOTTOM) / height)
        axes = figure.add_axes(inside)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(color="#e2e2e2")
        axes.set_axisbelow(True)
        draw(axes)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=True
        )
    text = file.getvalue()
    return Markup(text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


# The report and the two files it is written into.


FILES = ("report.html", "report.json")
METRICS = {"feature_spaces", "predictor", "genes", "draws"}
STATEMENT = "Images marked synthetic were made by a generative model. They are no evidence about a patient and not for diagnosis."
CAVEATS = (
    "Distances between distributions depend on the feature space and on the number of patches: figures of two spaces, of two N, or of two "
    "papers are not comparable. The Frechet distance is biased upwards for few patches; the floors beside it show by how much.",
    "A checkpoint's own encoder is also what it is conditioned on: in that space, cases with own morphology are favoured. The other space "
    "and the cases without morphology are free of that.",
    "Intervals are over spots, at the seeds and the shuffles that were drawn (one for each seed): other noise and other shuffles would give "
    "other figures. More seeds make that smaller.",
    "Neighbouring spots share tissue, stain and expression, so spots are not independent and the true intervals are wider than those given.",
    "Best of k grows with k, for noise as well; similarity to the one real patch is a weak measure where many images are right.",
    "Several comparisons are made at once, none corrected for: of twenty true ties, one is expected to look like a win or a loss.",
    "A predictor that reads expression off real patches poorly gives a low ceiling, and a share of a low ceiling means little.",
)

EDIT_CAVEATS = (
    "An edit moves along what goes together in the tissue that was seen: association, not cause. No experiment is simulated.",
    "What expression does not explain of a spot's looks is held as it is, so an edit shows less than what the other tissue shows: the "
    "ceiling says how much it could show at most.",
    "Encodings far from those of the section are outside what was seen; what an edit does there, none of these checks measures.",
)


@dataclass(frozen=True)
class EvaluationReport:
    """Report of an evaluation.

    Attributes
    ----------
    html, json
        One self-contained page, and its figures.
    claims
        Comparisons of each true condition with its controls.
    facts
        Contents of the JSON file.
    """

    html: Path
    json: Path
    claims: tuple[Claim, ...]
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def summary(self) -> str:
        """The claims about condition fidelity and haematoxylin, one a line."""
        return "\n".join(claim.sentence for claim in self.claims if claim.fidelity or "haematoxylin" in claim.measure)


def about_checkpoint(
    plan: Plan, model: PatchModel, sections: Sequence[Section], request: EvaluationRequest, seconds: float
) -> dict[str, Any]:
    """Return the subject of an evaluation of a checkpoint, in JSON types."""
    card = plan.card
    return {
        "kind": "checkpoint",
        "request": request.model_dump(mode="json"),
        "checkpoint": {
            "name": card.name,
            "patch_px": card.patch_px,
            "patch_mpp": card.patch_mpp,
            "conditions": list(card.conditions),
            "training_data": card.training_data,
            "licence": card.licence,
            "limits": card.limits,
            **model.provenance,
        },
        "sections": [about_section(section) for section in sections],
        "steps": plan.steps,
        "guidance": asdict(plan.guidance),
        "seconds": round(seconds, 1),
    }


def about_section(section: Section) -> dict[str, Any]:
    """Return the description of a section."""
    return {
        "name": section.name,
        "spots": len(section.spots),
        "mpp": section.calibration.mpp,
        "scale": section.calibration.detail,
        "synthetic": section.synthetic,
        "fingerprint": fingerprint(section),
    }


def check_report(folder: Path, about: Mapping[str, Any], resume: bool) -> None:
    """Refuse, before anything is computed, a folder whose report may not be replaced.

    Parameters
    ----------
    folder
        The evaluation's folder.
    about
        Subject of the evaluation.
    resume
        Whether a folder that holds it is continued; other metrics of the same patches are the same evaluation.

    Raises
    ------
    StoreError
        The folder holds another report, or an evaluation and ``resume`` is False.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise StoreError(f"{folder} cannot be written: it is no folder; give another --output")
    _work_of(about).check_files(folder, FILES)
    kept = folder / STACKS
    there = any((folder / name).exists() for name in FILES) or (kept.is_dir() and any(kept.iterdir()))
    if there and not resume:
        raise StoreError(
            f"{folder} holds an evaluation already; add --resume to go on with it, or give another --output"
        )


def _work_of(about: Mapping[str, Any]) -> Work:
    """Return the signature of a report: all that its patches depend on, but not the metrics."""
    request = {
        name: value
        for name, value in about.get("request", {}).items()
        if name not in METRICS and not (name in LATER and value == LATER[name])
    }
    checkpoint = about.get("checkpoint", {}).get("sha256")
    what = [about["kind"], about["sections"], request, checkpoint, about.get("results")]
    text = json.dumps(what, sort_keys=True, default=str)
    return Work(
        hashlib.sha256(text.encode()).hexdigest(),
        "this evaluation",
        "give another --output, or move away what is there",
    )


def write_report(
    folder: Path,
    about: Mapping[str, Any],
    figures: Sequence[Figures],
    command: str,
    counterfactual: CheckFigures | None = None,
) -> EvaluationReport:
    """Write ``report.json`` and ``report.html`` into a folder; ``counterfactual`` are the figures of edits of real tissue, if requested.

    Raises
    ------
    StoreError
        It cannot be written, or the folder holds another report.
    """
    facts = {
        "synthetic": True,
        "statement": STATEMENT,
        "software": {"name": "napari-stmdit", "version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **about,
        "figures": [one.facts for one in figures],
        **({} if counterfactual is None else {"counterfactual": counterfactual}),
        "caveats": list(CAVEATS if figures else CAVEATS[3:4]) + ([] if counterfactual is None else list(EDIT_CAVEATS)),
    }
    html, figures_file = (folder / name for name in FILES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {html: page_of(facts, figures), figures_file: json.dumps(facts, indent=1, allow_nan=False) + "\n"}
        work = _work_of(about)
        work.check_files(folder, FILES)
        work.sign(folder, {file.name: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()})
        for file, text in texts.items():
            write_text(file, text)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}; give another --output") from error
    claims = tuple(claim for one in figures for claim in one.claims)
    return EvaluationReport(html, figures_file, claims, facts)
