"""What a run is made from, by content, so that only the same is ever continued, compared or taken for done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ..tissue.identity import Boxes, section_identity
from ..types import Plan, Section
from .conditions import shared_morphology_boxes
from .models import KnownModel
from .requests import as_recorded

PIXELS = 4
"""What the code makes of the same inputs. Raised by hand with every change of the code after which pixels differ, as the golden tests say;
3 is the first that is a number, not a hash of source files."""


def identity_of(plan: Plan, section: Section, model: KnownModel) -> dict[str, Any]:
    """Return what must be the same for a run to be continued; JSON types only.

    Paths are left out: section and checkpoint are known by their content. So are batch and device.
    """
    request = plan.request.model_dump(mode="json", exclude={"section", "checkpoint"})
    return {"request": request, **inputs_of(plan, section, model)}


def inputs_of(plan: Plan, section: Section, model: KnownModel) -> dict[str, Any]:
    """Return what a run is made from beside its request, by content; JSON types only. It is recorded with every result."""
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
    """Return whether an identity was recorded before inputs were known by all of their content: what it stands for cannot be told."""
    return "pixels" not in dict(identity.get("code") or {})


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, each as a line with its place."""
    old, new = dict(_leaves(_complete(then, now))), dict(_leaves(now))
    places = list(dict.fromkeys([*old, *new]))
    return [
        f"{place}: {_short(old.get(place))} then, {_short(new.get(place))} now"
        for place in places
        if old.get(place) != new.get(place)
    ]


def _complete(then: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill what earlier versions did not ask.

    The first made new tissue alone, and without an edit that is all there is; later ones drew no noise for an edit, and nothing
    followed one.
    """
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
    """Return what differs between the inputs in a result's record and an identity.

    Records of earlier versions hold fewer inputs; those that they hold are compared.
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
    """Return the checkpoint, with what is kept elsewhere or was given in the place of an encoder, as far as this run uses it."""
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
    """Return where a run reads the slide, nowhere where morphology is null, and the side in pixels of what it reads."""
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


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
