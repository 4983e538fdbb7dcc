"""The live look at the patch that is being denoised: one small layer at the patch's place, gone when the run ends. No Qt."""

from __future__ import annotations

import weakref
from typing import Any

from ..types import PatchResult, Plan, Section
from . import layers


class LivePreview:
    """Shows what a patch is becoming.

    Nothing provisional is ever put on the run's own canvas: what is saved is finished.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._layer: Any = None

    def show(self, patch: PatchResult, plan: Plan, section: Section) -> None:
        """Show a patch, in place of the one shown before."""
        viewer = self._viewer()
        if viewer is None:
            return
        if self._layer is None or self._layer not in viewer.layers:
            below = [x for x in viewer.layers if layers.role_of(x) in ("slide", "result")]
            data = layers.preview_layer(patch, plan.frame, section)
            self._layer = layers.insert(viewer, data, above=below[-1] if below else None)
            return
        self._layer.affine = layers.patch_affine(patch, plan.frame, section)
        self._layer.data = patch.pixels

    def clear(self) -> None:
        """Take the layer away."""
        viewer, layer, self._layer = self._viewer(), self._layer, None
        if viewer is not None and layer is not None and layer in viewer.layers:
            viewer.layers.remove(layer)
