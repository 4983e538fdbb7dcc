"""Processes that save tiny results into one store; a module of its own, as they are started afresh."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_many(store: Path, name: str, count: int, prefix: str = "") -> None:
    """Save so many results of section A or B, each with what it is in its record and its pixels."""
    from two_sections import one_of_two

    from napari_stmdit.tissue.store import write_result

    section = one_of_two(name)
    for number in range(count):
        rgba = np.full((8, 8, 4), 1 + number % 200, np.uint8)
        patches = np.full((2, 4, 4, 3), 1 + number % 200, np.uint8)
        record = {"writer": prefix, "number": number, "created": f"{prefix}{number}", "patches": {"spots": ["a", "b"]}}
        write_result(store, rgba, np.eye(3), section, None, record, patches)
