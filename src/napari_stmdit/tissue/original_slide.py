"""The slide that a store of ours was made from: its record in the store, which holds a smaller picture, and where it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.fingerprint import of_ends
from ..types import Section


@dataclass(frozen=True)
class Original:
    """Original slide: its file or store, or the reason why it was not found.

    ``image`` is the name of the image in a store, None of a file; ``pixel_size`` is in full-resolution pixels.
    """

    path: Path | None = None
    image: str | None = None
    shape: tuple[int, int] = (0, 0)
    pixel_size: float = 1.0
    fault: str = ""


def record_of(section: Section, store: Path | None) -> dict[str, Any]:
    """Return the record of a section's slide for a store; JSON types only, empty for a slide in memory.

    Parameters
    ----------
    section
        With its slide.
    store
        The .zarr folder that is written, so that the slide is also found when both were moved together.
    """
    image = section.image
    if image is None or (image.file is None and section.store is None):
        return {}
    place = Path(image.file if image.file is not None else section.store.root).absolute()  # type: ignore[union-attr]
    found: dict[str, Any] = {"path": str(place), "shape": list(image.shape), "pixel_size": image.pixel_size}
    if store is not None:
        try:
            found["beside"] = Path(os.path.relpath(place, store.absolute().parent)).as_posix()
        except ValueError:  # another drive
            pass
    if image.file is None:
        return {**found, "image": image.source}
    return {**found, "bytes": place.stat().st_size, "sha256": of_ends(place)}


def find_original(record: object, root: Path) -> Original | None:
    """Find the slide that a store was made from, by path, size and hash; None where the store has no record.

    It is looked for at its old place, and where it would be if it was moved together with the store.
    """
    try:
        kept: Mapping[str, Any] = dict(record)  # type: ignore[call-overload]
        was, height, width = Path(str(kept["path"])), *map(int, kept["shape"])
        name, size = kept.get("image"), float(kept["pixel_size"])
        places = [was, *([root.absolute().parent / str(kept["beside"])] if "beside" in kept else ())]
        places += [root.absolute().parent / was.name, root.absolute() / was.name]
    except (KeyError, TypeError, ValueError):
        return None
    changed = False
    for place in dict.fromkeys(Path(os.path.normpath(one)) for one in places):
        if name is not None and place.is_dir() and place.resolve() != root.resolve():
            return Original(place, str(name), (height, width), size)
        if name is None and place.is_file():
            if place.stat().st_size == kept.get("bytes") and of_ends(place) == kept.get("sha256"):
                return Original(place, None, (height, width), size)
            changed = True
    if changed:
        return Original(fault=f"the slide {was} is no longer the file that this store was made from")
    return Original(fault=f"the slide that this store was made from, {was}, is not there any more")
