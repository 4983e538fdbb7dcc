"""``stmdit inspect`` and ``convert``: what checkpoints and sections hold, and checkpoints made of foreign weights."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import (
    Exclude,
    Json,
    Mpp,
    OldOutput,
    Orientation,
    console,
    one_output,
    output_option,
    print_json,
    section_option,
)

if TYPE_CHECKING:
    from ..model.foreign.convert import Converted
    from ..model.foreign.inspect import Inspection
    from ..tissue.open import SectionSource

parts_option = partial(typer.Option, rich_help_panel="Encoders and decoder")

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


SettingsFile = Annotated[Path | None, typer.Option(help="Settings, where they are not beside the weights.")]
MappingFile = Annotated[Path | None, typer.Option(help="Mapping file for names that are not known.")]


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint file or folder, a name that `stmdit info` lists, or a tissue section.")
    ],
    config: SettingsFile = None,
    mapping: MappingFile = None,
    fullres: Annotated[Path | None, section_option(help="Full-resolution image, where the folder lacks it.")] = None,
    mpp: Mpp = None,
    exclude: Exclude = None,
    orientation: Orientation = "as-given",
    picture: Annotated[
        Path | None, section_option(help="PNG to write: the spots over the slide, as they are and as they fit better.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint holds and lacks to run, without running code from it; or whether a section's spots lie right on its slide."""
    if is_section(path):
        from ..tissue.open import SectionSource

        source = SectionSource.given(path, fullres=fullres, mpp=mpp, exclude=exclude, orientation=orientation)
        inspect_section(source, picture, as_json)
        return
    from ..assemble import list_checkpoints
    from ..model.foreign.inspect import inspect_checkpoint

    named = {} if path.is_file() else {entry.name: entry.path for entry in list_checkpoints()}  # as where one is run
    found = inspect_checkpoint(named.get(str(path), path), config, mapping)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_inspection(found)


def print_inspection(found: Inspection) -> None:
    """Print an inspection as a table, then choices, unused tensors and what is missing to run it."""
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
    out = console()
    out.print(found.path, style="bold")
    out.print(table)
    for title, lines in (
        ("Notes", found.notes),
        ("Left aside", [f"{name}: {reason}" for name, reason in found.ignored.items()]),
        ("Missing to run", found.missing),
    ):
        if lines:
            out.print(f"\n{title}", style="bold")
            for line in lines:
                out.print(f"- {line}")
    if not found.missing:
        out.print("\nNothing is missing to run it.")


def _follows(known: dict[str, Any] | None) -> str:
    """Return a sentence about the map by which morphology follows an edit of expression."""
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


def convert(
    source: Annotated[str, typer.Argument(help="Foreign weights, their folder, or the name of a download.")],
    place: OldOutput = None,
    output: Annotated[Path | None, output_option(help="Checkpoint folder to make.")] = None,
    patch_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of its patches: no file states it.")
    ] = None,
    config: SettingsFile = None,
    mapping: MappingFile = None,
    name: Annotated[str | None, output_option(help="Name of the checkpoint; the folder's by default.")] = None,
    genes: Annotated[Path | None, parts_option(help="Genes of the expression encoder, one symbol a line.")] = None,
    genes_from: Annotated[Path | None, parts_option(help="Section to choose those genes from instead.")] = None,
    vae: Annotated[Path | None, parts_option(help="Local folder of the VAE.")] = None,
    expression_encoder: Annotated[Path | None, parts_option(help="Local folder of CancerFoundation.")] = None,
    morphology_encoder: Annotated[Path | None, parts_option(help="Local folder of UNI2-h.")] = None,
    licence: Annotated[str | None, output_option(help="Terms of the weights, for the card.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint folder of a foreign transformer; what may not be passed on is referred to, not copied."""
    from ..assemble import convert_checkpoint

    places = {"vae": vae, "expression_encoder": expression_encoder, "morphology_encoder": morphology_encoder}
    made = convert_checkpoint(
        source,
        one_output(output, place),
        patch_mpp=patch_mpp,
        config=config,
        mapping=mapping,
        name=name,
        genes=genes,
        genes_from=genes_from,
        sources={component: place for component, place in places.items() if place is not None},
        licence=licence,
    )
    _report_conversion(made, as_json)


def _report_conversion(made: Converted, as_json: bool) -> None:
    """Print the folder, choices where the files state nothing, and the next step."""
    if as_json:
        facts = {"path": str(made.path), "card": made.card.model_dump(mode="json"), "notes": list(made.notes)}
        print_json(facts)
        return
    lines = [
        f"{made.path}: checkpoint {made.card.name!r}, patches of {made.card.patch_px} px at {made.card.patch_mpp:g} um/px"
    ]
    lines += [f"- {note}" for note in made.notes]
    lines.append(f"`stmdit inspect {made.path}` says what it still needs; --checkpoint {made.path} runs it.")
    sys.stdout.write("\n".join(lines) + "\n")


def is_section(path: Path) -> bool:
    """Return whether a path is a section rather than a checkpoint, by names and small files."""
    from ..tissue.images import IMAGE_SUFFIXES
    from ..tissue.public import named_section
    from ..tissue.remote import url_of
    from ..tissue.spatialdata_store import is_spatialdata
    from ..ui.manifest import is_space_ranger

    if url_of(path) is not None or named_section(path) is not None:
        return True
    if path.is_file():
        return path.suffix.lower() in (*IMAGE_SUFFIXES, ".h5ad")
    return path.is_dir() and (is_space_ranger(path) or is_spatialdata(path))


def inspect_section(source: SectionSource, picture: Path | None, as_json: bool) -> None:
    """Print a description of a section and its alignment, and write the check picture."""
    from rich.table import Table

    from ..tissue.alignment import check_alignment, write_check_picture

    section = source.open()
    found = check_alignment(section)
    image = section.image
    size = None if image is None else list(image.shape)
    if picture is not None:
        write_check_picture(section, picture, found.best)
    if as_json:
        facts: dict[str, Any] = {
            "kind": "section",
            "name": section.name,
            "spots": len(section.spots),
            "genes": len(section.spots.genes),
            "image": None if image is None else {"source": image.source, "shape": size},
            "mpp": section.calibration.mpp,
            "mpp_source": section.calibration.detail,
            "excluded": {} if section.excluded is None else {k: len(v) for k, v in section.excluded.regions.items()},
            "notes": list(section.notes),
            "alignment": found.facts(),
        }
        print_json(facts)
        return
    rows = {
        "kind": "section",
        "name": section.name,
        "spots": f"{len(section.spots):,}",
        "genes": f"{len(section.spots.genes):,}",
        "slide image": "none" if image is None else f"{image.source}, {image.shape[1]} x {image.shape[0]} px",
        "scale": section.calibration.detail,
        "alignment": found.statement,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    out = console()
    out.print(table)
    for note in section.notes:
        out.print(f"- {note}")
    if found.best is not None and source.orientation == "as-given":
        sys.stdout.write(f"--orientation {found.best} lays them so.\n")
