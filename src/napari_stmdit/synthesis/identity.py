"""Identity of a run by the content of its inputs, so that only the same run is continued, compared or taken as done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ..text import shown
from ..tissue.identity import Boxes, section_identity
from ..types import Plan, Section
from .conditions import shared_morphology_boxes
from .models import KnownModel
from .requests import as_recorded

# up to 2 it was a hash of source files
PIXELS = 5
"""Version of the pixels that the code makes of the same inputs. Raise it by hand with every change after which the golden tests differ."""


def identity_of(plan: Plan, section: Section, model: KnownModel) -> dict[str, Any]:
    """Return the identity of a run, which a continued run must share; JSON types only.

    Section and checkpoint are identified by content; paths, batch and device are left out.
    """
    request = plan.request.model_dump(mode="json", exclude={"section", "checkpoint"})
    return {"request": request, **inputs_of(plan, section, model)}


def inputs_of(plan: Plan, section: Section, model: KnownModel) -> dict[str, Any]:
    """Return the inputs of a run beside its request, by content, for the record of every result; JSON types only."""
    return {
        "plan": {
            "patches": len(plan),
            "windows": 0 if plan.windows is None else len(plan.windows),
            "canvas": list(plan.frame.shape),
            "steps": plan.steps,
            "guidance": asdict(plan.guidance),
        },
        "checkpoint": _checkpoint(plan, model),
        "dtype": model.provenance.get("dtype"),
        "section": section_identity(section, *_slide_boxes(plan, section)),
        "code": {"pixels": PIXELS},
    }


def is_older(identity: Mapping[str, Any]) -> bool:
    """Return whether an identity was recorded by a version that did not identify all inputs by content."""
    return "pixels" not in dict(identity.get("code") or {})


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities, each as a line with its place."""
    old, new = dict(_leaves(_complete(then, now))), dict(_leaves(now))
    places = list(dict.fromkeys([*old, *new]))
    return [
        f"{place}: {shown(old.get(place), 60)} then, {shown(new.get(place), 60)} now"
        for place in places
        if old.get(place) != new.get(place)
    ]


def _complete(then: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in fields that earlier versions did not record, with their meaning then."""
    asked, wanted = as_recorded(dict(then.get("request") or {})), dict(now.get("request") or {})
    if not asked:
        return then
    if "counterfactual" in wanted and "counterfactual" not in asked:
        edits = any(dict(edit).get("enabled", True) for edit in asked.get("edits") or ())
        asked["counterfactual"] = "off" if edits else wanted["counterfactual"]
        asked["edit_scale"] = wanted.get("edit_scale")
    if "fresh_noise" in wanted:
        asked.setdefault("fresh_noise", 0.0)
    return {**then, "request": asked}


def recorded_differences(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between the inputs in a result's record and an identity.

    Records of earlier versions hold fewer inputs; only those are compared.
    """
    request = {k: v for k, v in dict(record.get("request") or {}).items() if k not in ("section", "checkpoint")}
    if "inputs" in record:
        return differences({"request": request, **record["inputs"]}, now)
    checkpoint, about = (dict(record.get(name) or {}) for name in ("checkpoint", "section"))
    section: dict[str, Any] = {"mpp": about.get("mpp")}
    expression = dict(about.get("expression") or {})
    if expression.get("kind", "measured") != "measured":
        section["expression"] = {"kind": expression["kind"], "sha256": expression.get("sha256", "")}
    then = {
        "request": request,
        "checkpoint": {name: checkpoint.get(name) for name in ("name", "sha256")},
        "dtype": checkpoint.get("dtype"),
        "section": section,
    }
    kept = {
        "request": now["request"],
        "checkpoint": {name: now["checkpoint"][name] for name in ("name", "sha256")},
        "dtype": now["dtype"],
        "section": {name: now["section"][name] for name in ("mpp", "expression") if name in now["section"]},
    }
    return differences(then, kept)


def _checkpoint(plan: Plan, model: KnownModel) -> dict[str, Any]:
    """Return the checkpoint's identity, with external components and replaced encoders as far as this run uses them."""
    request, known = plan.request, model.provenance
    unused = {name for name in ("morphology", "expression") if getattr(request, name) == "null"}
    found: dict[str, Any] = {"name": plan.card.name, "sha256": known.get("sha256")}
    for component, sha256 in dict(known.get("elsewhere") or {}).items():
        if component.removesuffix("_encoder") not in unused:
            found.setdefault("elsewhere", {})[component] = sha256
    for name in ("morphology", "expression"):
        given = known.get(f"{name}_embeddings")
        if given is not None and name not in unused:
            found[f"{name}_embeddings"] = given["sha256"]
            found.get("elsewhere", {}).pop(f"{name}_encoder", None)
    return found


def _slide_boxes(plan: Plan, section: Section) -> tuple[Boxes, int]:
    """Return the boxes of the slide that a run reads, none for null morphology, and their side in pixels."""
    match plan.request.morphology:
        case "null":
            return (), 0
        case "own" if plan.windows is not None:
            return [tuple(box) for box in plan.windows.source_boxes.tolist()], plan.windows.side
        case "own":
            return [patch.source_box for patch in plan.patches], plan.card.patch_px
    return shared_morphology_boxes(plan, section)[1], plan.card.patch_px


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple) and len(value) <= 50 and any(isinstance(v, Mapping) for v in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{place}[{number}]")
    else:
        yield place, list(value) if isinstance(value, tuple) else value
