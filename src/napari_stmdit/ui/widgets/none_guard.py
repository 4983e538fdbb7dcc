"""A guard against a fault of some Qt bindings that ends the process after a while.

PySide6 6.12.0 on Python 3.11 gives up one reference to ``None`` too many at every call that returns nothing (measured with
``sys.getrefcount``). After some ten thousand calls the interpreter ends with "deallocating None". From Python 3.12 on, None is
immortal, and nothing happens. Whether the binding at hand does it is measured, not looked up.
"""

from __future__ import annotations

import sys

_CALLS = 64
_PLENTY = 1 << 40


def guard_none() -> bool:
    """Give None references to spare where the Qt binding takes them away; return whether it does."""
    if sys.version_info >= (3, 12) or sys.implementation.name != "cpython":
        return False
    if not loses_references():
        return False
    import ctypes

    if sys.getrefcount(None) < _PLENTY:
        ctypes.c_ssize_t.from_address(id(None)).value += _PLENTY
    return True


def loses_references() -> bool:
    """Tell whether a Qt call that returns nothing takes a reference of None away."""
    from qtpy.QtCore import QObject

    probe = QObject()
    before = sys.getrefcount(None)
    for _ in range(_CALLS):
        probe.setObjectName("probe")
    return before - sys.getrefcount(None) >= _CALLS // 2
