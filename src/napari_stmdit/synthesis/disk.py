"""Sets of numbers as short texts, for the manifest of a run."""

from __future__ import annotations

from collections.abc import Iterable


def to_ranges(numbers: Iterable[int]) -> str:
    """Write a set of numbers shortly: ``0-3,7``."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    start = 0
    for place, number in enumerate(ordered):
        if place + 1 == len(ordered) or ordered[place + 1] != number + 1:
            first = ordered[start]
            parts.append(str(number) if first == number else f"{first}-{number}")
            start = place + 1
    return ",".join(parts)


def from_ranges(text: str) -> set[int]:
    """Read what `to_ranges` wrote; raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
