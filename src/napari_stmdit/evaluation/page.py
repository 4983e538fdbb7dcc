"""Plots as inline SVG: values with their intervals, and curves. No colour carries meaning alone; every mark has its label."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tissue.export import NEW, labelled
from .figures import Claim, Figures
from .measures import MEASURES, STATISTICS, CaseValues
from .reading import FIRST_TOP

WIDTH, LABEL, ROW, RIGHT = 860, 220, 24, 230
COLOURS = ("#1f5fa8", "#c2571a", "#2b7a3d", "#8a3a8f", "#7a6a00", "#5a5a5a", "#b0305a", "#137a7f")
REAL = "#5a5a5a"


def forest(rows: Sequence[tuple[str, Mapping[str, Any], bool]], title: str, digits: int = 3) -> str:
    """Draw one line a row: a dot at the value and a bar over its interval.

    Parameters
    ----------
    rows
        (label, facts of an interval, whether it is of real patches).
    title
        Of the plot; what the axis measures, with unit.
    digits
        After the point, of the written values; the axis always reaches 0.
    """
    known = [v for _, facts, _ in rows for v in (facts["value"], facts["low"], facts["high"]) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    span = (high - low) or 1.0
    low, high = low - 0.04 * span, high + 0.04 * span
    left, right = LABEL, WIDTH - RIGHT

    def x(value: float) -> float:
        return float(left + (value - low) / (high - low) * (right - left))

    height = 30 + ROW * len(rows) + 26
    parts = [_text(0, 16, title, weight="bold")]
    parts += _ticks(low, high, x, 24, height - 22)
    if low < 0 < high:
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="24" y2="{height - 22}" stroke="#444" stroke-width="1"/>'
        )
    for place, (label, facts, real) in enumerate(rows):
        y = 30 + ROW * place + ROW / 2
        colour = REAL if real else COLOURS[0]
        parts.append(_text(left - 8, y + 4, label, anchor="end"))
        if facts["value"] is None:
            parts.append(_text(left + 4, y + 4, "cannot be told"))
            continue
        if facts["low"] is not None:
            a, b = x(facts["low"]), x(facts["high"])
            parts.append(f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        shape = f'<rect x="{x(facts["value"]) - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{colour}"/>'
        dot = f'<circle cx="{x(facts["value"]):.1f}" cy="{y}" r="4.5" fill="{colour}"/>'
        parts.append(shape if real else dot)
        parts.append(_text(right + 8, y + 4, written(facts, digits)))
    return _svg(WIDTH, height, title, parts)


def curves(lines: Sequence[tuple[str, Sequence[float], bool]], title: str, first: int, x_label: str) -> str:
    """Draw curves over a shared axis of counts that starts at ``first``; (label, heights, whether of real patches)."""
    height, left, right, top, bottom = 320, 60, WIDTH - 250, 28, 280
    count = max(len(values) for _, values, _ in lines)
    known = np.concatenate([np.asarray(values, dtype=float) for _, values, _ in lines])
    low, high = min(0.0, float(known.min())), max(0.05, float(known.max()))
    span = (high - low) * 1.05

    def x(place: float) -> float:
        return left + (right - left) * place / max(1, count - 1)

    def y(value: float) -> float:
        return bottom - (value - low) / span * (bottom - top)

    parts = [_text(0, 16, title, weight="bold"), _text((left + right) / 2, 312, x_label, anchor="middle")]
    for value in _nice(low, high):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y(value) + 4, f"{value:g}", anchor="end"))
    for place in sorted({0, (count - 1) // 2, count - 1}):
        parts.append(_text(x(place), bottom + 16, str(first + place), anchor="middle"))
    heights = sorted(range(len(lines)), key=lambda k: y(lines[k][1][-1]))
    label_y = dict(zip(heights, _apart([y(lines[k][1][-1]) for k in heights], 15, bottom), strict=True))
    for k, (label, values, real) in enumerate(lines):
        colour, dash = (REAL, ' stroke-dasharray="6 4"') if real else (COLOURS[k % len(COLOURS)], "")
        points = " ".join(f"{x(place):.1f},{y(float(v)):.1f}" for place, v in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        end = y(float(values[-1]))
        parts.append(
            f'<line x1="{right}" y1="{end:.1f}" x2="{right + 14}" y2="{label_y[k]:.1f}" stroke="{colour}" stroke-width="1"/>'
        )
        parts.append(_text(right + 18, label_y[k] + 4, label, colour=colour))
    return _svg(WIDTH, height, title, parts)


def written(facts: Mapping[str, Any], digits: int = 3) -> str:
    """Return a value with its interval in words."""
    if facts["value"] is None:
        return "not known"
    text = f"{facts['value']:.{digits}f}"
    return text if facts["low"] is None else f"{text} [{facts['low']:.{digits}f}, {facts['high']:.{digits}f}]"


def _apart(places: list[float], least: float, last: float) -> list[float]:
    """Move ascending places so far apart that their labels can be read, none beyond ``last``."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    for k in range(len(out) - 1, -1, -1):
        out[k] = min(out[k], last - least * (len(out) - 1 - k))
    return out


def _ticks(low: float, high: float, x: Any, top: float, bottom: float) -> list[str]:
    parts = []
    for value in _nice(low, high):
        parts.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom}" stroke="#e2e2e2"/>')
        parts.append(_text(x(value), bottom + 15, f"{value:g}", anchor="middle", colour="#555"))
    return parts


def _nice(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round values in a range."""
    raw = (high - low) / count
    power = 10 ** np.floor(np.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw)
    first = np.ceil(low / step)
    return [round(float((first + k) * step), 10) for k in range(count + 2) if (first + k) * step <= high]


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", colour: str = "#1a1a1a") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'


def _svg(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" '
        f'aria-label="{escape(title, quote=True)}" font-family="sans-serif" font-size="12">{inside}</svg>'
    )


# The report as one page: images, plots and tables inside, nothing fetched from anywhere.


THUMB_PX = 112
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1120px;margin:24px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:19px;margin:32px 0 8px;border-bottom:1px solid #ccc}h3{font-size:16px;margin:20px 0 6px}
.label{background:#fff3d6;border-left:4px solid #b87400;padding:8px 12px}pre{background:#f4f4f4;padding:10px;white-space:pre-wrap;
overflow-wrap:anywhere}table{border-collapse:collapse;margin:8px 0}th,td{border:1px solid #ccc;padding:3px 8px;text-align:left;
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th{background:#f4f4f4}
td:first-child{min-width:7em}.yes{color:#1d6b2f;
font-weight:600}.no{color:#a3271c;font-weight:600}.grid{overflow-x:auto}.grid td,.grid th{padding:2px;font-size:12px;text-align:center;
min-width:0;max-width:118px}.grid img{display:block;width:112px;height:112px}.quiet{color:#555;font-size:13px}svg{max-width:100%;height:auto;
display:block;margin:10px 0}ul{margin:6px 0;padding-left:22px}
"""


def page_of(facts: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """Return the report as HTML.

    Parameters
    ----------
    facts
        Contents of the JSON file.
    figures
        What they were computed from, for the images.
    """
    parts = [_head(facts)]
    if figures or "counterfactual" not in facts:
        parts += [_verdicts(figures), *(_section(one, len(figures) > 1) for one in figures)]
    if "counterfactual" in facts:
        parts.append(edits_of_real_tissue(facts["counterfactual"]))
    parts.append(_foot(facts))
    title = escape(f"Evaluation of {_subject(facts)}")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{''.join(parts)}\n</body>\n</html>\n"
    )


def _subject(facts: Mapping[str, Any]) -> str:
    return str(facts["checkpoint"]["name"]) if facts["kind"] == "checkpoint" else str(facts["result"])


def _head(facts: Mapping[str, Any]) -> str:
    rows = [("Sections", "; ".join(_about_section(section) for section in facts["sections"]))]
    if facts["kind"] == "checkpoint":
        checkpoint, guidance = facts["checkpoint"], facts["guidance"]
        edits_alone = facts["request"].get("parts") == ["counterfactual"]
        hashed = str(checkpoint.get("sha256", ""))[:12]
        rows += [
            (
                "Checkpoint",
                f"{checkpoint['name']}, sha256 {hashed}, {checkpoint.get('dtype')} on {checkpoint.get('device')}",
            ),
            ("Trained on", checkpoint["training_data"]),
            ("Limits", checkpoint["limits"]),
            (
                "Synthesis",
                f"{facts['steps']} steps to the noise and as many back, unguided; seed {facts['request']['seed']}; {facts['seconds']:g} s in "
                "this session"
                if edits_alone
                else f"{facts['steps']} steps; guidance: expression {guidance['expression']:g}, morphology {guidance['morphology']:g}, "
                f"rule {guidance['rule']}; first seed {facts['request']['seed']}; {facts['seconds']:g} s in this session",
            ),
        ]
    software = f"{facts['software']['name']} {facts['software']['version']}, {facts['created']}"
    table = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in (*rows, ("Made by", software))
    )
    return (
        f'<h1>Evaluation of {escape(_subject(facts))}</h1><p class="label">{escape(facts["statement"])}</p>'
        f"<pre>{escape(facts['command'])}</pre><table>{table}</table>"
    )


def _about_section(section: Mapping[str, Any]) -> str:
    made = ", itself synthetic" if section["synthetic"] else ""
    return f"{section['name']} ({section['spots']} spots, {section['scale']}{made})"


def _verdicts(figures: Sequence[Figures]) -> str:
    claims = [claim for one in figures for claim in one.claims]
    if not claims:
        return (
            "<h2>Does the true condition beat its controls?</h2><p>Nothing here can say so: no true condition and control were evaluated "
            "on the same spots.</p>"
        )
    words = (
        "<p>True minus control, over the same spots, with a 95 % interval from bootstrap samples that both share. It <b>beats</b> the "
        "control where the whole interval lies above 0, and otherwise <b>does not</b>; an interval around 0 is no proof of equality.</p>"
    )
    parts = []
    for title, wanted in (
        ("Condition fidelity: expression read off the patch", True),
        ("Stain and nuclei: correlation with the real patch", False),
    ):
        chosen = [claim for claim in claims if claim.fidelity is wanted]
        if chosen:
            won = sum(claim.holds for claim in chosen)
            parts.append(f"<h3>{title}: {won} of {len(chosen)} comparisons hold</h3>{_claims_table(chosen)}")
    return f"<h2>Does the true condition beat its controls?</h2>{words}{''.join(parts)}"


def _claims_table(claims: Sequence[Claim]) -> str:
    rows = []
    for claim in claims:
        lost = "does not; the control is better" if claim.reversed else "does not"
        verdict = '<td class="yes">beats</td>' if claim.holds else f'<td class="no">{lost}</td>'
        rows.append(
            f"<tr><td>{escape(claim.measure)}</td><td>{escape(claim.true)}</td><td>{escape(claim.control)}</td>"
            f'<td class="n">{written(claim.difference.facts)}</td>{verdict}</tr>'
        )
    return (
        "<table><tr><th>measure</th><th>true condition</th><th>control</th><th>difference [95 % interval]</th><th></th></tr>"
        f"{''.join(rows)}</table>"
    )


# ------------------------------------------------------------------------------------------------- one set of spots


def _section(figures: Figures, several: bool) -> str:
    facts, evidence = figures.facts, figures.evidence
    title = f"<h2>{escape(facts['title'])}</h2>" if several else ""
    words = "".join(f"<li><b>{escape(key)}</b>: {escape(text)}</li>" for key, text in facts["cases"].items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts["notes"])
    return (
        f"{title}<h2>Images</h2><p>{facts['spots']} spots, {facts['seeds']} seeds a case; the first seed is shown.</p><ul>{words}</ul>"
        f"{_grid(figures)}{_fidelity(facts)}{_statistics(facts)}{_distribution(facts)}{_paired(facts, evidence.cases)}{_edits(facts)}"
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _grid(figures: Figures) -> str:
    evidence = figures.evidence
    columns = [case for case in (evidence.real, *evidence.cases) if case.shown is not None]
    head = "".join(f"<th>{escape(case.key)}<br/>{'synthetic' if case.synthetic else 'real'}</th>" for case in columns)
    count = len(columns[0].shown) if columns and columns[0].shown is not None else 0
    rows = []
    for place in range(count):
        cells = "".join(f"<td>{_image(case, place)}</td>" for case in columns)
        rows.append(f"<tr>{cells}</tr>")
    return f'<div class="grid"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _image(case: CaseValues, place: int) -> str:
    assert case.shown is not None
    kind = "synthetic" if case.synthetic else "real"
    source = data_uri(case.shown[place], "synthetic" if case.synthetic else "")
    return f'<img src="{source}" alt="{kind} patch: {escape(case.key, quote=True)}, spot {place + 1} of those shown"/>'


def data_uri(pixels: NDArray[np.uint8], label: str = "") -> str:
    """Return a (h, w, 3) uint8 image as a data URI, small, with a label drawn into it so that it stays with a copy."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels).resize((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
    if label:
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, THUMB_PX - 13, THUMB_PX, THUMB_PX), fill=(20, 20, 20))
        draw.text((4, THUMB_PX - 13), label, fill=(255, 214, 120))
    stream = io.BytesIO()
    image.save(stream, "PNG", **(labelled(NEW) if label else {}))
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _fidelity(facts: Mapping[str, Any]) -> str:
    found = facts["fidelity"]
    if found is None:
        return ""
    cases = found["cases"]
    ordered = list(cases)
    plots = [
        forest([(key, cases[key][measure], key.startswith("real")) for key in ordered], title)
        for measure, title in (
            ("gene_pearson", "Mean of gene-wise Pearson r with the true expression"),
            ("area_under_top_n", "Area under Pearson against top n, as mean height"),
        )
    ]
    shares = [(key, cases[key]["share_of_ceiling"], False) for key in ordered if cases[key]["share_of_ceiling"]]
    if shares:
        plots.append(forest(shares, "Area as a share of what the same predictor reads off real patches (ceiling)", 2))
    ceiling = (
        ""
        if shares
        else "<p>The predictor reads nothing certain off the real patches themselves: its ceiling is not above 0, so no share is given.</p>"
    )
    above = [key for key, share, _ in shares if share["value"] > 1 and not key.startswith("real")]
    if above:
        ceiling += (
            f"<p><b>{escape('; '.join(above))}</b>: more can be read off these patches than off the real ones. That is no better than real: "
            "guidance shows what goes with the expression more plainly than tissue does, and a judge that is the checkpoint's own encoder, or "
            "that learned from the sections the checkpoint learned from, favours it.</p>"
        )
    lines = [(key, cases[key]["curve"], key.startswith("real")) for key in ordered]
    first = min(FIRST_TOP, found["genes"])
    plots.append(curves(lines, "Mean Pearson r of the n most variable genes", first, "n"))
    return (
        f"<h2>Condition fidelity</h2><p>Predictor: {escape(found['predictor'])}. {found['genes']} genes, the most variable first; the "
        f"predictions of a spot's seeds are averaged, and each section's mean is taken off.</p>{''.join(plots)}{ceiling}"
    )


def _statistics(facts: Mapping[str, Any]) -> str:
    found = facts["statistics"]
    cases = [key for key in found if key != "real"]
    parts = []
    for name, words in STATISTICS.items():
        digits = 0 if name == "nuclei" else 3
        parts.append(
            forest(
                [(key, found[key][name]["r"], key.startswith("real")) for key in cases],
                f"r of {words} with the real patch",
            )
        )
        means = [("real", found["real"][name]["mean"], True)]
        means += [(key, found[key][name]["mean"], key.startswith("real")) for key in cases]
        parts.append(forest(means, f"mean {words}", digits))
    return (
        "<h2>Stain and nuclei</h2><p>The seeds of a spot are averaged, and for correlations each section's mean is taken off.</p>"
        + "".join(parts)
    )


def _distribution(facts: Mapping[str, Any]) -> str:
    parts = [
        "<h2>Distributions</h2><p>Distance of each set of patches to the real patches of the same spots. Figures of two spaces must not be "
        "compared. Intervals are the spread of bootstrap samples about the figure.</p>"
    ]
    for space, found in facts["distribution"].items():
        rows = [(f"{key} (N {entry['kid']['n']})", entry, True) for key, entry in found["floors"].items()]
        rows += [(key, entry, False) for key, entry in found["cases"].items()]
        parts.append(
            f'<h3>Space: {escape(space)}</h3><p class="quiet">N = {found["n"]} patches a set; {found["features"]} features, standardised by '
            f"the real patches; Frechet distance on their first {found['components']} principal components; KID unbiased, polynomial kernel of "
            "degree 3. Floors are real against real.</p>"
        )
        parts.append(
            forest([(key, entry["frechet"], real) for key, entry, real in rows], f"Frechet distance, {space}", 2)
        )
        parts.append(forest([(key, entry["kid"], real) for key, entry, real in rows], f"KID, {space}", 2))
    return "".join(parts)


def _paired(facts: Mapping[str, Any], cases: Sequence[CaseValues]) -> str:
    found = facts["paired"]
    measures = [m for m in MEASURES if any(m.key in entry for entry in found.values())]
    head = "".join(f"<th>{escape(m.name)}, mean of k</th><th>{escape(m.name)}, best of k</th>" for m in measures)
    rows = []
    for key, entry in found.items():
        cells = "".join(
            f'<td class="n">{written(entry[m.key]["mean_of_k"], 2)}</td><td class="n">{written(entry[m.key]["best_of_k"], 2)}</td>'
            for m in measures
        )
        k = next(iter(entry.values()))["k"]
        rows.append(f"<tr><td>{escape(key)}</td><td>{k}</td>{cells}</tr>")
    return (
        "<h2>Likeness to the real patch of the spot</h2><p>A weak measure where many images are right. The row of shifted real patches "
        "shows what another place of the same tissue gets.</p>"
        f"<table><tr><th></th><th>k</th>{head}</tr>{''.join(rows)}</table>"
    )


def _edits(facts: Mapping[str, Any]) -> str:
    parts = []
    for pair, found in facts["edits"].items():
        rows = [(STATISTICS[name], found[name]) for name in STATISTICS]
        if "pixel_change_grey_levels" in found:
            rows.append(("mean change of a pixel (grey levels)", found["pixel_change_grey_levels"]))
        if "read_change_along_edit" in found:
            rows.append(
                (
                    "r over genes: change read off the patches with the change that the edit makes",
                    found["read_change_along_edit"],
                )
            )
        cells = "".join(
            f'<tr><td>{escape(name)}</td><td class="n">{written(entry, 3)}</td></tr>' for name, entry in rows
        )
        parts.append(
            f"<h3>{escape(pair)}</h3><table><tr><th>change</th><th>mean over spots [95 % interval]</th></tr>{cells}</table>"
        )
    if not parts:
        return ""
    return (
        "<h2>Edited against baseline, with common noise</h2><p>The same spots and the same noise; what differs is the effect of the edit on "
        f"this model.</p>{''.join(parts)}"
    )


def _foot(facts: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts.get("notes", ()))
    caveats = "".join(f"<li>{escape(text)}</li>" for text in facts["caveats"])
    parts = f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""
    return f"{parts}<h2>How to read this</h2><ul>{caveats}</ul>"


# The part of the report on edits of real tissue: what was checked, what came out, and what each control says.


Facts = Mapping[str, Any]
NUMBER = ' class="n"'
MODES = {
    "spots": "each is edited as a single patch (mode spots).",
    "continuous": "the crop of each is painted as a region in continuous mode, and all spots that its windows draw on are given the expression.",
}


def edits_of_real_tissue(facts: Facts) -> str:
    """Return the section of the report, of what `CounterfactualCheck.run` found."""
    parts = (_swaps, _identity, _programs, _dose, _where)
    words = (
        f"<p>Edits of {escape(facts['section'])}: the tissue on its slide, {facts['steps_each_way']} steps to the noise and as many back. "
        f"{escape(facts['map_statement'])} The map is that of the {escape(facts['map_from'].removeprefix('this '))}.</p>"
    )
    if facts["map_from"] == "this section":
        words += "<p>It was fitted to the spots that are tested here, so the swaps look better than on tissue that it never saw.</p>"
    return f"<h2>Counterfactual: edits of real tissue</h2>{words}{''.join(part(facts) for part in parts)}"


def _swaps(facts: Facts) -> str:
    rows = []
    for key, name in (("swap", "given the other spot's expression"), ("swap_control", "control: given a third spot's")):
        for measure, one in facts[key].items():
            rows.append([name, measure, spanned(one, "coefficient"), number(one["ceiling"]), _verdict(key, one)])
    return (
        "<h3>Does a spot take on the looks of the spot whose expression it is given?</h3><p>"
        f"{facts['pairs']} random pairs of spots; {MODES[facts['mode']]} 1: its image moves all the way to what the other spot really shows; 0: it does not move with "
        "it. The ceiling is what expression says of the measure at all (R² of cross-validated ridge regression from the same encoding). In the "
        "control the spot is given a third spot's expression and told against the other one: its interval should hold 0.</p>"
        + table(["edit", "measure", "coefficient [95 % interval]", "ceiling", "what it says"], rows, numbers=(2, 3))
    )


def _verdict(key: str, one: Facts) -> str:
    if one["low"] is None:
        return "cannot be told"
    if key == "swap":
        return "the image follows the edit" if one["low"] > 0 else "not told from no effect"
    held = one["low"] <= 0 <= one["high"]
    return "as it should be" if held else "should be 0: the swaps above are not to be trusted"


def _identity(facts: Facts) -> str:
    one = facts["identity"]
    rows = [
        ["largest change of a pixel, in grey levels of 255", number(one["pixels"], 0)],
        ["mean change of the latents", f"{number(one['latents'], 6)} (their mean size: {number(one['latent_size'])})"],
        ["likeness to the slide without the step that keeps its detail (MS-SSIM)", number(one["ms_ssim"], 4)],
        ["the autoencoder's own likeness to the slide", number(one["autoencoder_ms_ssim"], 4)],
    ]
    return (
        f"<h3>Does tissue stay as it is where nothing is edited?</h3><p>{one['n']} spots, taken to their noise and back without an edit. All "
        f"changes should be 0.</p>{table(['measure', 'found'], rows, numbers=(1,))}"
    )


def _programs(facts: Facts) -> str:
    one = facts["programs"]
    rows = [
        [name, number(p["real_trend"]), number(p["with_others"]), number(p["alone"])] for name, p in one["each"].items()
    ]
    summary = [
        ["with what varies with them", spanned(one, "correlation"), number(one["slope"])],
        ["their own genes alone", spanned(one["alone"], "correlation"), number(one["alone"]["slope"])],
    ]
    return (
        "<h3>Do programs of genes change tissue as they do in the section?</h3><p>Each program is raised by two standard deviations in "
        f"{one['spots']} spots, and the change of haematoxylin compared with its real trend over the section. A program alone hardly moves what "
        "a checkpoint sees; in tissue other genes go with it.</p>"
        + table(
            ["edit", "correlation over programs [95 % interval]", "slope (1: as in tissue)"], summary, numbers=(1, 2)
        )
        + table(["program", "real trend", "with what varies with it", "alone"], rows, numbers=(1, 2, 3))
    )


def _dose(facts: Facts) -> str:
    one = facts["dose"]
    share = "cannot be told" if one["monotone"] is None else f"{100 * one['monotone']:.0f} %"
    return (
        "<h3>Does more of an edit do more?</h3><p>"
        f"Of {one['n']} spots that were moved to another's expression in {len(one['doses'])} doses, {one['moved']} changed their haematoxylin by "
        f"0.01 or more; of these <b>{share}</b> went one way all along.</p>"
    )


def _where(facts: Facts) -> str:
    one, new = facts["locality"], facts["invention"]
    rows = [
        ["mean change of a pixel (grey levels)", *_both(one, "grey_levels"), number(one["ratio"], 2)],
        ["change of haematoxylin over 16 pixels", *_both(one, "haematoxylin"), number(one["ratio_haematoxylin"], 2)],
        *(
            [
                f"change of a crop's features, in spreads: {name}",
                number(f["inside"]),
                number(f["around"]),
                number(f["ratio"], 2),
            ]
            for name, f in one["features"].items()
        ),
        ["nuclei that the slide does not have there, per mm²", number(new["inside"], 0), number(new["around"], 0), ""],
    ]
    beyond = one["outside_pixels"]
    words = (
        f"Beyond that, {beyond:,} pixels were looked at: the largest change is <b>{one['outside_grey_levels']}</b> grey levels, the largest of a "
        f"crop's features {_beyond(one)}, and {_counted(new['outside_nuclei'])} are there that the slide does not have (all should be 0)."
        if beyond
        else "The edit reaches all of the section, so nothing could be looked at beyond it."
    )
    return (
        "<h3>Does an edit stay where it was painted?</h3><p>A disc was painted in continuous mode. Around it windows that overlap it fade "
        f"out. {words} New nuclei around the disc are inventions that nobody asked for; a count of nuclei is crude, and small shifts of stain "
        f"add a few.</p>{table(['', 'in the disc', 'around it', 'ratio'], rows, numbers=(1, 2, 3))}"
    )


def _beyond(facts: Facts) -> str:
    found = [f["outside"] for f in facts["features"].values()]
    return "cannot be told" if None in found else f"<b>{max(found):g}</b>"


def _counted(nuclei: int | None) -> str:
    return "nuclei cannot be told" if nuclei is None else f"<b>{nuclei}</b> nuclei"


def _both(facts: Facts, name: str) -> tuple[str, str]:
    return number(facts[f"inside_{name}"]), number(facts[f"around_{name}"])


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text, or that it cannot be told."""
    return "cannot be told" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # never "-0.000"


def spanned(facts: Facts, name: str, digits: int = 3) -> str:
    """Return a number with its interval as text."""
    if facts[name] is None or facts["low"] is None:
        return number(facts[name], digits)
    return f"{number(facts[name], digits)} [{number(facts['low'], digits)}, {number(facts['high'], digits)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; columns ``numbers`` are set right."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td{NUMBER if k in numbers else ''}>{escape(cell)}</td>" for k, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"
