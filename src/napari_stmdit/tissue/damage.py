"""What readers of damaged files raise, each in its own way, turned into one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import SectionError, StmditError


@contextmanager
def told_as_damage(name: object, kind: str) -> Iterator[None]:
    """Raise SectionError in the place of whatever goes wrong inside; errors of ours pass as they are.

    Parameters
    ----------
    name
        The file or folder that is read, for the message.
    kind
        What it is read as: "SpatialData".
    """
    try:
        yield
    except StmditError:
        raise
    except MemoryError as error:  # of what is large, or of metadata that claim terabytes
        raise SectionError(f"{name} cannot be read as {kind}: it takes more memory than there is ({error})") from error
    except RecursionError:
        raise SectionError(f"{name} cannot be read as {kind}: its metadata are nested too deeply") from None
    except Exception as error:  # HDF5, zarr, anndata, pandas and codecs fail on damaged files with anything
        raise SectionError(
            f"{name} cannot be read as {kind}, it may be damaged, incomplete or of another kind: {str(error) or type(error).__name__}"
        ) from error
