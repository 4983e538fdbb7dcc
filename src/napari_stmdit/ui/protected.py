"""Layers that show what was measured or made: napari's own tools leave them as they are. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEYS = ("Delete", "Backspace", "1", "2", "3", "4", "5", "Control-C", "Control-V", "Control-D")
"""Keys by which napari removes, adds, moves and pastes, or takes up a tool to do so."""
CHOOSING = ("A", "Shift-A", "Control-A")
"""Keys by which napari chooses points for that."""


def _nothing() -> None:
    pass


def protect(layer: Any, refused: Callable[[], None] = _nothing, choose_all: Callable[[], None] = _nothing) -> None:
    """Keep napari's tools, keys and hints off a layer.

    Parameters
    ----------
    layer
        Of ours.
    refused
        Called when a key was pressed that would have changed it.
    choose_all
        Called when a key was pressed that chooses everything.
    """

    # what cannot be edited has no mode but to pan and zoom; napari allows editing anew with each change of data or dimensions
    def keep(event: Any = None) -> None:
        if layer.editable:
            layer.editable = False
        if layer.help:  # it offers the modes
            layer.help = ""

    layer.events.editable.connect(keep, position="last")
    layer.events.help.connect(keep, position="last")
    for keys in KEYS:
        layer.bind_key(keys, lambda _: refused(), overwrite=True)
    for keys in CHOOSING:
        layer.bind_key(keys, lambda _: choose_all(), overwrite=True)
    keep()
