"""Results read back from a section's store: what was asked for, what came of it, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, StoreError
from ..tissue.store import read_results
from ..tissue.stored_patches import read_stored_patches
from ..types import Request, Section
from .requests import make_request


@dataclass(frozen=True)
class StoredResult:
    """A result as its store has it.

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
    """

    element: str
    store: Path
    rgba: Any = field(repr=False)
    pixel_to_fullres: NDArray[np.float64]
    section: Section
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def request(self) -> Request:
        """The request it was made from.

        Raises
        ------
        StoreError
            The record lacks it, or holds one that this version does not understand.
        """
        try:
            return make_request(dict(self.provenance["request"]), self.element)
        except (KeyError, TypeError, ValueError):
            raise StoreError(f"{self.element} in {self.store} does not say what was asked for") from None
        except RequestError as error:
            raise StoreError(f"{self.element} in {self.store} holds a request of another version: {error}") from error

    @property
    def patches(self) -> Any | None:
        """The finished patches before blending, (n, p, p, 3) uint8, lazy, in the order of `spots`; None where the store lacks them."""
        return read_stored_patches(self.store, self.element, self.provenance)

    @property
    def spots(self) -> tuple[str, ...]:
        """Ids of the spots that were finished."""
        return tuple(map(str, dict(self.provenance.get("patches") or {}).get("spots", ())))


def stored_results(section: Section) -> tuple[StoredResult, ...]:
    """Return the results that a section's SpatialData store holds; none where it was opened from something else.

    Raises
    ------
    StoreError
        A result cannot be read.
    """
    if section.kind != "spatialdata" or section.path is None:
        return ()
    store = next((p for p in (section.path, *section.path.parents) if p.suffix == ".zarr"), section.path)
    return tuple(
        StoredResult(element, store, rgba, affine, section, provenance)
        for element, (rgba, affine, provenance) in read_results(store).items()
    )
