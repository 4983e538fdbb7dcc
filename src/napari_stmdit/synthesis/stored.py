"""Results in a section's store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, StoreError
from ..intent import Request
from ..tissue.crops import computed
from ..tissue.identity import attribute
from ..tissue.store import write_result
from ..tissue.store_entries import names_there, open_store, read_image, read_stored_patches
from ..types import Section
from .requests import as_recorded, make_request


@dataclass(frozen=True)
class StoredResult:
    """Stored result.

    Attributes
    ----------
    element
        Name of the element, ``stmdit_<run>``.
    store
        The .zarr folder.
    rgba
        (h, w, 4) uint8, lazy; alpha 0 where nothing was synthesized.
    pixel_to_fullres
        (3, 3) affine from (y, x, 1) pixels to full-resolution pixels, both measured from their corners.
    section
        The section it belongs to.
    provenance
        As it was recorded.
    levels
        The pyramid of the image, each level lazy, largest first.
    note
        Uncertainties: which section it was made from, or whether the table is still the same.
    """

    element: str
    store: Path
    rgba: Any = field(repr=False)
    pixel_to_fullres: NDArray[np.float64]
    section: Section
    provenance: Mapping[str, Any] = field(repr=False)
    levels: tuple[Any, ...] = field(default=(), repr=False)
    note: str = ""

    @property
    def request(self) -> Request:
        """The request it was made from.

        Raises
        ------
        StoreError
            The record lacks it, or holds one that this version does not understand.
        """
        try:
            asked = as_recorded(dict(self.provenance["request"]))
            asked.setdefault("counterfactual", "off")  # records of earlier versions: all that they made was new tissue
            return make_request(asked, self.element)
        except (KeyError, TypeError, ValueError):
            raise StoreError(f"{self.element} in {self.store} does not say what was asked for") from None
        except RequestError as error:
            raise StoreError(f"{self.element} in {self.store} holds a request of another version: {error}") from error

    @property
    def patches(self) -> Any | None:
        """The finished patches before blending, (n, p, p, 3) uint8, lazy, in the order of `spots`; None where the store lacks them."""
        return read_stored_patches(self.store, self.element, self.provenance)

    def save(self, path: str | Path, run: str | None = None) -> str:
        """Write it into another SpatialData store; see `napari_stmdit.synthesis.result.Result.save`."""
        patches = self.patches
        made = None if patches is None else np.asarray(patches[:])
        (pixels,), affine = computed(self.rgba), self.pixel_to_fullres
        return write_result(path, pixels, affine, self.section, run, dict(self.provenance), made)

    @property
    def spots(self) -> tuple[str, ...]:
        """Ids of the finished spots."""
        return tuple(map(str, dict(self.provenance.get("patches") or {}).get("spots", ())))


@dataclass(frozen=True)
class StoredResults:
    """Results of a section in its store, and why each further image is none of them."""

    results: tuple[StoredResult, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about images that were left out, and about uncertain results."""
        doubtful = [f"{one.element}: {one.note}" for one in self.results if one.note]
        return (*doubtful, *(f"{name} is left out: {why}" for name, why in self.left_out.items()))


def read_stored(section: Section) -> StoredResults:
    """Read the results in a section's SpatialData store that belong to it; none where it has no store.

    An image that is no result, or cannot be read, does not hide the others.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    if section.store is None:
        return StoredResults()
    root = section.store.root
    sdata = open_store(root)
    found, left_out = [], {}
    for name in names_there(sdata, root):
        try:
            image = read_image(sdata, root, name)
        except StoreError as error:
            left_out[name] = str(error)
            continue
        whose = attribute(image, section, sdata)
        if not whose.mine:
            left_out[name] = whose.note
            continue
        place, facts, levels = image.pixel_to_fullres, image.provenance, image.levels
        found.append(StoredResult(name, root, levels[0], place, section, facts, levels, whose.note))
    return StoredResults(tuple(found), left_out)


def stored_results(section: Section) -> tuple[StoredResult, ...]:
    """Return the results that a section's SpatialData store holds of it; see `read_stored`."""
    return read_stored(section).results
