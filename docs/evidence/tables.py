"""Turn demo_checkpoint.json into the tables of the documentation: python docs/evidence/tables.py [FILE.json]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Print every part that is there."""
    figures = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "demo_checkpoint.json").read_text())
    writers = {"table": table, "edits": edits, "swap": swap, "memory": memory, "depth": depth}
    print("\n\n".join(write(figures[part]) for part, write in writers.items() if part in figures))


def table(part: dict[str, Any]) -> str:
    """Return the conditions' table, with floors and ceilings."""
    spaces = list(part["rows"]["both"]["frechet"])
    head = [
        "conditions",
        "r(H), one seed",
        "r(H), mean of seeds",
        "r(nuclei)",
        "r(blank)",
        "H",
        "nuclei",
        "blank",
        "HF",
    ]
    lines = [row([*head, *(f"FD, {space}" for space in spaces)]), row(["---"] * (len(head) + len(spaces)))]
    for case, entry in part["rows"].items():
        h, n, b = (entry[q] for q in ("haematoxylin", "nuclei", "blank"))
        cells = [case, span(h["r_first"]), span(h["r_mean_of_seeds"]), span(n["r_first"]), span(b["r_first"])]
        lines.append(row([*cells, *mean_cells(entry["means"]), *(seeds(entry["frechet"][s]) for s in spaces)]))
    lines.append(row(["real", "", "", "", "", *mean_cells(part["real"]), *("0" for _ in spaces)]))
    for name, floor in part["floors"].items():
        lines.append(row([name, *[""] * 8, *(f"{floor[s]:.1f}" for s in spaces)]))
    ceiling = part["ridge_from_expression"]
    values = [span(ceiling[q]["r"]) for q in ("haematoxylin", "nuclei", "blank")]
    lines.append(row(["ridge regression from expression", "", *values, *[""] * (4 + len(spaces))]))
    return "\n".join(lines)


def mean_cells(means: dict[str, list[float]]) -> list[str]:
    """Return the means with their intervals."""
    digits = {"haematoxylin": 2, "nuclei": 0, "blank": 3, "high_frequency": 2}
    return [f"{means[k][0]:.{d}f} [{means[k][1]:.{d}f}, {means[k][2]:.{d}f}]" for k, d in digits.items()]


def edits(part: dict[str, Any]) -> str:
    """Return how haematoxylin density follows the strength of an edit."""
    lines = [row(["edit", "spots x seeds", "H at strength 0, 1/6 ... 1", "median Spearman", "falling, rho <= -0.9"])]
    lines.append(row(["---"] * 5))
    for name, entry in part.items():
        strip = " ".join(f"{value:.2f}" for value in entry["haematoxylin_by_strength"])
        share = f"{entry['share_falling_at_least_0.9']:.0%}"
        lines.append(
            row([name, f"{entry['spots']} x {entry['seeds']}", strip, f"{entry['spearman_median']:.2f}", share])
        )
    return "\n".join(lines)


def swap(part: dict[str, Any]) -> str:
    """Return the change when only the expression is another tissue's."""
    lines = [row(["", "expression of", "change of H", "of eosin", "of nuclei", "of blank"]), row(["---"] * 6)]
    for scale, entry in part.items():
        for target, values in entry.items():
            cells = [span(values[q], 3) for q in ("haematoxylin", "eosin", "nuclei", "blank")]
            lines.append(row([scale, target, *cells]))
    return "\n".join(lines)


def memory(part: dict[str, Any]) -> str:
    """Return the distances to the nearest training crop."""
    lines = [
        row(["space", "patches", "distance, 5 / 25 / 50 % quantile", "largest pixel correlation"]),
        row(["---"] * 4),
    ]
    for space, entry in part.items():
        if isinstance(entry, dict):
            for name, values in entry.items():
                quantiles = " / ".join(f"{value:.2f}" for value in values["quantiles_5_25_50"])
                lines.append(row([space, name, quantiles, str(values.get("largest_pixel_correlation", ""))]))
    return "\n".join(lines)


def depth(part: dict[str, Any]) -> str:
    """Return what thinned counts do, with relative depth and without it."""
    lines = [row(["expression alone", "r(H), one seed", "r(H), mean of seeds", "H"]), row(["---"] * 4)]
    for name, entry in part["cases"].items():
        singles = ", ".join(f"{value:.2f}" for value in entry["r_per_seed"])
        lines.append(row([name, singles, span(entry["r_mean_of_seeds"]), f"{entry['mean_haematoxylin']:.2f}"]))
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cells) + " |"


def span(values: list[float], digits: int = 2) -> str:
    """Return a value with its 95 % interval."""
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"


def seeds(values: list[float]) -> str:
    """Return the range over the seeds."""
    low, high = min(values), max(values)
    return f"{low:.1f}" if len(values) == 1 else f"{low:.1f} to {high:.1f}"


if __name__ == "__main__":
    main()
