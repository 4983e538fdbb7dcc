"""What a user may set once for all viewers, in napari's preferences; older napari has no such page, and the defaults hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .state import CompareMode

PLUGIN = "napari-stmdit"
PAGE = "workbench"
"""Key of the page in the manifest's ``configurations``."""


@dataclass(frozen=True)
class Preferences:
    """Preferences in force.

    Attributes
    ----------
    live_preview
        Show the patch that is being denoised every few steps.
    blink_ms
        How long each picture is shown while blinking; not below 350, as fast flicker can harm.
    compare_mode
        What "Compare with baseline" opens.
    device
        Where a checkpoint is loaded, unless another device is chosen.
    """

    live_preview: bool = True
    blink_ms: int = 700
    compare_mode: CompareMode = "swipe"
    device: str = "auto"


def read_preferences() -> Preferences:
    """Return the preferences in force."""
    page = _page()
    if page is None:
        return Preferences()
    found = {f.name: getattr(page, f.name) for f in fields(Preferences) if hasattr(page, f.name)}
    return Preferences(**{name: getattr(value, "value", value) for name, value in found.items()})


def _page() -> Any:
    try:
        from napari.settings import get_plugin_settings
    except ImportError:  # before napari 0.9
        return None
    try:
        return getattr(get_plugin_settings(PLUGIN), PAGE, None)
    except KeyError:  # the plugin is not registered, as in a script
        return None


def preference_events() -> Any:
    """Return the event group that tells of changed preferences, or None."""
    page = _page()
    return getattr(page, "events", None)
