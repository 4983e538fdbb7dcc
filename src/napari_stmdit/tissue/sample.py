"""The bundled sample section."""

from __future__ import annotations

from pathlib import Path

from ..errors import SectionError
from ..types import Section

_SAMPLE = Path(__file__).parent.parent / "data" / "sample_section"


def open_sample_section() -> Section:
    """Open the sample section that comes with the package; everything in it is synthetic.

    Raises
    ------
    SectionError
        The installation lacks it.
    """
    from .open import open_section

    if not _SAMPLE.is_dir():
        raise SectionError(f"the sample section is not at {_SAMPLE}; install the package again")
    return open_section(_SAMPLE)
