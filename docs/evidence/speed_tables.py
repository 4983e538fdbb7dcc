"""Turn speed.json and presets.json into the tables of docs/evidence/speed.md: python docs/evidence/speed_tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from presets import table

HERE = Path(__file__).resolve().parent
STEPS = {
    "open": "open a section, to its first picture",
    "click": "click on a spot",
    "lasso": "lasso around some 750 spots",
    "recolour": "colour by another gene",
    "brush": "a stroke of the brush, with its edit",
    "paste": "paste a patch",
    "pan": "pan (napari's own drawing alone)",
    "zoom": "zoom",
}


def main() -> None:
    """Print every table."""
    speed, presets = (json.loads((HERE / name).read_text()) for name in ("speed.json", "presets.json"))
    runs = speed["demo"]["models"][0]["runs"] if "demo" in speed else None
    parts = [table(presets, case) for case in ("morphology + expression", "expression") if case in presets]
    if runs is not None:
        parts += [whole_runs(runs), stages(speed["demo"]), comparison(speed["demo"])]
    if "base" in speed:
        parts += [stages(speed["base"]), comparison(speed["base"])]
    if "viewer" in speed:
        parts.append(viewer(speed["viewer"]))
    print("\n\n".join(parts))


def row(*cells: Any) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def whole_runs(runs: dict[str, Any]) -> str:
    """Return the times from request to canvas."""
    lines = [row("run", "median, s", "least, s", "times exact"), row(*["---"] * 4)]
    for count, time in runs["seconds"].items():
        lines.append(row(f"{count} patch{'' if count == '1' else 'es'}", time["median"], time["least"], ""))
    for name, time in runs["presets"].items():
        lines.append(row(f"1 patch, {name}", time["median"], time["least"], f"{time['times_faster']} x"))
    return "\n".join(lines)


def stages(report: dict[str, Any]) -> str:
    """Return what each stage costs."""
    model = report["models"][0]
    lines = [f"{model['name']}; matrix peak {report['peak_gflops']} GFLOP/s", ""]
    lines += [row("stage", "precision", "batch", "ms a patch", "GFLOP", "of the peak", "MB"), row(*["---"] * 7)]
    for one in [*model["stages"], *model.get("around", [])]:
        counted = one["gflop"] is not None
        cells = (f"{one['gflop']:.1f}", f"{one['utilisation']:.0%}", f"{one['peak_mb']:.0f}") if counted else ("",) * 3
        each = f"{one['milliseconds'] / one['batch']:.1f}" + ("" if one["rounds"] else " (once)")
        lines.append(row(one["stage"], one["dtype"], one["batch"], each, *cells))
    return "\n".join(lines)


def comparison(report: dict[str, Any]) -> str:
    """Return the comparison with the straightforward loops."""
    model = report["models"][0]
    found = model["comparison"]
    key = next(key for key in found if key.startswith("times faster"))
    lines = [
        f"{model['name']}, one patch, {found['steps']} steps, {found['branches']} branches, blocks {found['blocks']}, {found['rounds']} rounds; "
        f"largest difference of latents in float32 {found['largest_difference_in_float32']:.1e}",
        "",
        row("way", "denoising, s", "decoding, s", f"{key}, denoising", "with decoding"),
        row(*["---"] * 5),
    ]
    for name, time in found["seconds"].items():
        ratios = found[key].get(name)
        cells = ("", "") if ratios is None else (f"{ratios['denoising']} x", f"{ratios['with decoding']} x")
        lines.append(row(name, time["denoising"], time["decoding"], *cells))
    if "precision" in model:
        lines += ["", str(model["precision"])]
    return "\n".join(lines)


def viewer(turns: list[dict[str, Any]]) -> str:
    """Return what a user waits for, in the turns one after the other."""
    sides = list(turns[0])
    lines = [row("step", *(f"{side}, ms (processor)" for side in sides)), row(*["---"] * (1 + len(sides)))]
    for name, words in STEPS.items():
        cells = []
        for side in sides:
            values = [(turn[side][name]["median_ms"], turn[side][name]["processor_ms"]) for turn in turns]
            cells.append(", ".join(f"{wall:.0f} ({busy:.0f})" for wall, busy in values))
        lines.append(row(words, *cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
