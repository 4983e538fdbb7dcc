"""The report as one page: images, plots and tables inside, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tissue.labels import NEW, labelled
from .charts import curves, forest, written
from .fidelity import FIRST_TOP
from .figures import Claim, Figures
from .judge import STATISTICS, CaseValues
from .page_edits import edits_of_real_tissue
from .paired import MEASURES

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
