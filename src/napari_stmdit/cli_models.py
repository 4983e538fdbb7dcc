"""What `stmdit inspect` and `stmdit convert` print."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model.foreign.convert import Converted
    from .model.foreign.inspect import Inspection

# What a person reads first, in words; the rest of an inspection is lists.
_ROWS = {
    "kind": "kind",
    "family": "family",
    "naming": "naming",
    "objective": "objective",
    "depth": "depth",
    "width": "width",
    "heads": "heads",
    "patch_size": "patch size (latent px)",
    "latent_channels": "latent channels",
    "latent_size": "latents (px)",
    "position_scale": "position scale",
    "learned_sigma": "learned sigma",
    "patch_px": "patches (px)",
    "patch_mpp": "patches (um/px)",
    "parameters": "parameters",
    "tensors": "tensors",
    "sha256": "sha256",
}


def print_inspection(found: Inspection) -> None:
    """Print an inspection as a table, then what was chosen, what was left aside and what is missing to run it."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, label in _ROWS.items():
        value = getattr(found, name)
        if value is not None:
            table.add_row(label, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    for condition, how in found.conditions.items():
        table.add_row(f"condition: {condition}", how)
    for component, kind in found.components.items():
        table.add_row(component.replace("_", " "), kind)
    if found.kind == "checkpoint":
        table.add_row("edits of real tissue", found.cannot_edit or _follows(found.morphology_map))
    console = _console()
    console.print(found.path, style="bold")
    console.print(table)
    for title, lines in (
        ("Notes", found.notes),
        ("Left aside", [f"{name}: {reason}" for name, reason in found.ignored.items()]),
        ("Missing to run", found.missing),
    ):
        if lines:
            console.print(f"\n{title}", style="bold")
            for line in lines:
                console.print(f"- {line}")
    if not found.missing:
        console.print("\nNothing is missing to run it.")


def _follows(known: dict[str, Any] | None) -> str:
    """Say by which map morphology follows an edit of expression, and what that explains."""
    if known is None:
        return (
            "possible; morphology follows by a map that is fitted on each section: none is stored with the checkpoint"
        )
    first = ", ".join(f"{value:.2f}" for value in known["r2"][:5])
    return (
        f"possible; morphology follows by the map that is stored with the checkpoint: expression explains {100 * known['share']:.0f} % of its "
        f"variance ({known['spots']} spots, on tissue left out; R2 of the largest components {first}); {known['components']} components "
        "follow an edit"
    )


def report_conversion(made: Converted, as_json: bool) -> None:
    """Say where the folder is, what was chosen where the files do not say, and how to go on."""
    if as_json:
        facts = {"path": str(made.path), "card": made.card.model_dump(mode="json"), "notes": list(made.notes)}
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return
    lines = [
        f"{made.path}: checkpoint {made.card.name!r}, patches of {made.card.patch_px} px at {made.card.patch_mpp:g} um/px"
    ]
    lines += [f"- {note}" for note in made.notes]
    lines.append(f"`stmdit inspect {made.path}` says what it still needs; --checkpoint {made.path} runs it.")
    sys.stdout.write("\n".join(lines) + "\n")


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    return console
