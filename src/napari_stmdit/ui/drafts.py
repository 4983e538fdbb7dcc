"""Between the form of an edit and the edit: both ways, with every fault beside its field. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import RequestError
from ..expression.genes import match_genes
from ..types import AddEdit, Edit, Genes, ScaleEdit, SetQuantileEdit, SwapEdit, TowardsEdit
from .state import EditDraft

_EDIT: TypeAdapter[Edit] = TypeAdapter(Edit)
PROGRAM_SUFFIX = " (program)"


def make_edit(draft: EditDraft, spots: Mapping[str, float] | None, name: str = "", **more: Any) -> Edit:
    """Return the edit that a form describes.

    Raises
    ------
    RequestError
        With what is wrong, by the field of the form: ``what`` or ``target``.
    """
    faults = []
    if draft.operation in ("scale", "add", "set_quantile", "knock_out") and not (draft.genes or draft.programs):
        faults.append(("what", "Name a gene or a program first."))
    if draft.operation == "towards" and draft.target_profile is None and not draft.target_spots:
        faults.append(("target", "Choose what the expression is to move towards."))
    if draft.operation == "swap" and not (draft.group_a and draft.group_b):
        faults.append(("target", "Choose two groups of spots that are to change places."))
    if faults:
        raise RequestError(faults)
    values: dict[str, Any] = {
        "operation": draft.operation,
        "name": name or describe(draft),
        "genes": draft.genes,
        "programs": draft.programs,
        "spots": None if spots is None else dict(spots),
        **more,
        **{field: getattr(draft, field) for field in _FIELDS.get(draft.operation, ())},
    }
    if values.get("target_profile") is not None:
        values["target_spots"] = ()
    try:
        return _EDIT.validate_python(values)
    except ValidationError as error:
        text = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False))
        raise RequestError([("target" if draft.operation in ("towards", "swap") else "what", text)]) from None


_FIELDS = {
    "scale": ("factor", "follow"),
    "add": ("log_units", "follow"),
    "set_quantile": ("quantile", "follow"),
    "knock_out": ("follow",),
    "towards": ("target_profile", "target_spots"),
    "swap": ("group_a", "group_b"),
}


def draft_of(edit: Edit, before: EditDraft) -> EditDraft:
    """Return the form that shows an edit; what the edit does not say is kept from before."""
    from dataclasses import replace

    changes: dict[str, Any] = {"operation": edit.operation, "genes": edit.genes, "programs": edit.programs}
    changes |= {field: getattr(edit, field) for field in _FIELDS.get(edit.operation, ())}
    return replace(before, **changes)


def describe(draft: EditDraft | Edit) -> str:
    """Return a short name: what is done to what."""
    what = ", ".join((*draft.programs, *draft.genes)) or "all genes"
    what = what if len(what) <= 24 else what[:22] + "…"
    match draft:
        case EditDraft(operation="scale") | ScaleEdit():
            return f"{what} × {draft.factor:g}"
        case EditDraft(operation="add") | AddEdit():
            return f"{what} {draft.log_units:+g}"
        case EditDraft(operation="set_quantile") | SetQuantileEdit():
            return f"{what} to quantile {draft.quantile:g}"
        case EditDraft(operation="towards") | TowardsEdit():
            return f"{what} → {draft.target_profile or f'{len(draft.target_spots)} spots'}"
        case EditDraft(operation="swap") | SwapEdit():
            return f"swap {what}: {len(draft.group_a)} and {len(draft.group_b)} spots"
    return f"{what} knocked out"


def parse_names(text: str, genes: Genes, programs: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the genes and programs that a list with commas names, and what is wrong with it.

    A name is taken for a gene where the section has one of that name, else for a program; ``(program)`` behind it decides.
    """
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    unknown = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            continue
        plain = name.removesuffix(PROGRAM_SUFFIX.strip()).strip()
        if plain != name or (plain in programs and not match_genes((plain,), genes).shared):
            if plain in programs:
                found[1][plain] = None
            else:
                unknown.append(name)
        elif match_genes((name,), genes).shared:
            found[0][name] = None
        else:
            unknown.append(name)
    fault = f"Neither a gene of this section nor a program: {', '.join(unknown[:5])}" if unknown else ""
    return tuple(found[0]), tuple(found[1]), fault


def written(genes: tuple[str, ...], programs: tuple[str, ...]) -> str:
    """Return what `parse_names` reads."""
    return ", ".join((*(f"{name}{PROGRAM_SUFFIX}" for name in programs), *genes))
