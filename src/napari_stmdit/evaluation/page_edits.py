"""The part of the report on edits of real tissue: what was checked, what came out, and what each control says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
