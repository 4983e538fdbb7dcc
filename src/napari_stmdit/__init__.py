"""Virtual tissue synthesis from spatial transcriptomics, in napari.

The public names, listed in ``__init__.pyi``, are loaded when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any

from lazy_loader import attach_stub

try:
    __version__ = version("napari-stmdit")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

_load, __dir__, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]

_OLD = {
    **{f"{name}Edit": f"edits.{name}" for name in "Add KnockOut Scale SetQuantile Swap Table Towards".split()},
    **{name: f"regions.{name}" for name in "AllSpots Polygons SampleOfSpots SpotList".split()},
    "export_result": "Result.export",
}
"""Earlier name -> where it is now; until version 0.2."""


def __getattr__(name: str) -> Any:
    if name not in _OLD:
        return _load(name)
    warnings.warn(f"{__name__}.{name} is now {__name__}.{_OLD[name]}", DeprecationWarning, stacklevel=2)
    return attrgetter(_OLD[name])(sys.modules[__name__])
