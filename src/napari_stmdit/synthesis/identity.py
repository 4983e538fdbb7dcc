"""What a run is, so that only the same run is ever continued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..tissue.elements import fingerprint
from ..types import Plan, Section
from .models import KnownModel

_CODE = ("types.py", "assemble.py", "encoder_sources.py", "expression", "encoders", "model", "synthesis", "tissue")


def identity_of(plan: Plan, section: Section, model: KnownModel) -> dict[str, Any]:
    """Return what must be the same for a run to be continued; JSON types only.

    Paths are left out: section and checkpoint are known by their content. So are batch and device.
    """
    request = plan.request.model_dump(mode="json", exclude={"section", "checkpoint"})
    return {
        "request": request,
        "plan": {
            "patches": len(plan),
            "windows": 0 if plan.windows is None else len(plan.windows),
            "canvas": list(plan.frame.shape),
            "steps": plan.steps,
            "guidance": plan.guidance.model_dump(mode="json"),
        },
        "checkpoint": {"name": plan.card.name, "sha256": model.provenance.get("sha256")},
        "dtype": model.provenance.get("dtype"),
        "section": _section(section, plan.request.morphology != "null"),
        "code": {"version": __version__, "sha256": code_hash()},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, each as a line with its place."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    places = list(dict.fromkeys([*old, *new]))
    return [
        f"{place}: {_short(old.get(place))} then, {_short(new.get(place))} now"
        for place in places
        if old.get(place) != new.get(place)
    ]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return a hash of the source files that pixels depend on."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in _CODE:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _section(section: Section, with_image: bool) -> dict[str, Any]:
    counts = section.spots.counts
    digest = hashlib.sha256()
    for part in (counts.indptr, counts.indices, counts.data):
        digest.update(np.ascontiguousarray(part).data)
    digest.update("\n".join(section.spots.genes.symbols.tolist()).encode())
    found = {
        "spots": fingerprint(section),
        "counts": digest.hexdigest(),
        "mpp": section.calibration.mpp,
    }
    if with_image and section.image is not None:
        coarsest = np.ascontiguousarray(section.image.levels[-1][::4, ::4].compute()).data
        found["image"] = f"{section.image.shape} {hashlib.sha256(coarsest).hexdigest()}"
    return found


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
