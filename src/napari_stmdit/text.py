"""Texts for messages: values and lists of names, shortened."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


def shorten(text: str, n: int = 80) -> str:
    """Return a text of at most n characters: control characters escaped, and cut where it is longer."""
    shown = text if text.isprintable() and text == text.strip() and text else repr(text)
    return shown if len(shown) <= n else shown[:n] + "..."


def some_of(items: Iterable[object], n: int = 5, separator: str = ", ") -> str:
    """Join the first n items, and say how many more there are: ``a, b and 3 more``."""
    texts = [str(item) for item in items]
    joined = separator.join(texts[:n])
    if len(texts) <= n:
        return joined
    return f"{joined}{' ' if separator == ', ' else separator}and {len(texts) - n} more"


def capitalised(text: str) -> str:
    """Return a text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number with what is counted: ``1 patch``, ``1,240 patches``; ``many`` is ``one`` with an s where it is left out."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def shown(value: object, n: int = 80) -> str:
    """Return a short ``repr`` of any value, however large."""
    brief = _Brief()
    brief.maxlevel, brief.maxstring = 2, n
    return shorten(brief.repr(value), n)


class _Brief(reprlib.Repr):
    """Short ``repr`` of a value's first parts; huge numbers are shown by their size."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length():,} bits"


def size_words(size: int | None) -> str:
    """Return a number of bytes as it is shown before a download; None is unknown."""
    if size is None:
        return "unknown"
    if size >= 1e9:
        return f"about {size / 1e9:.2f} GB"
    return f"about {size / 1e6:.0f} MB" if size >= 1e7 else f"about {max(size / 1e6, 0.1):.1f} MB"
