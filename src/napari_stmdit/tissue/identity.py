"""What a section is, by its content: its table, and the part of its slide that is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..storage.fingerprint import PerObject, of_arrays, of_file, of_parts
from ..types import Section, SlideImage, SpotTable
from .crops import background_colour, chunks_under, readable
from .elements import fingerprint

SMALL_FILE = 2**28
"""Bytes of a slide's file up to which it is hashed as a whole, about half a second; of a larger one the pixels are, where they are fewer."""

Boxes = Sequence[tuple[float, float, float, float]]

_tables = PerObject()


def table_hash(spots: SpotTable) -> str:
    """Return the hash of a table's counts and gene names."""
    counts = spots.counts
    return _tables.get(spots, lambda: of_arrays(counts.indptr, counts.indices, counts.data, spots.genes.symbols))


def section_identity(section: Section, boxes: Boxes = (), patch_px: int = 0) -> dict[str, Any]:
    """Return what a section is, as far as it is read; JSON types only.

    Parameters
    ----------
    section
        The section.
    boxes
        (y0, x0, y1, x1) in full-resolution pixels: where its slide is read; none where it is not.
    patch_px
        Side of the patches that the boxes become.
    """
    found: dict[str, Any] = {
        "spots": fingerprint(section),
        "counts": table_hash(section.spots),
        "mpp": section.calibration.mpp,
    }
    if section.expression.kind != "measured":
        found["expression"] = {"kind": section.expression.kind, "sha256": section.expression.sha256}
    if section.image is not None and len(boxes):
        found["slide"] = slide_identity(section.image, boxes, patch_px)
    return found


def slide_identity(image: SlideImage, boxes: Boxes, patch_px: int) -> dict[str, Any]:
    """Return what a slide is where boxes of it are read; where it lies does not matter. JSON types only.

    Of a slide in a file that is the hash of the file, which is kept while the file does not change; of one in a store, and of a large file
    of which little is read, the hash of the pixels of every chunk that `read_patches` reads.
    """
    found: dict[str, Any] = {"pixel_size": image.pixel_size, "shape": list(image.shape)}
    with readable(image):
        size = 0 if image.file is None else image.file.stat().st_size
        chunks, outside = ([], False) if 0 < size <= SMALL_FILE else chunks_under(image, boxes, patch_px)
        if image.file is not None and size <= max(SMALL_FILE, sum(_nbytes(image, chunk) for chunk in chunks)):
            return {**found, "file": of_file(image.file)}
        found["pixels"] = _pixels(image, chunks)
        if outside:
            found["glass"] = list(background_colour(image))
    return found


def whole_slide_hash(image: SlideImage) -> str:
    """Return the hash of all of a slide: of its file, or of its finest level."""
    with readable(image):
        if image.file is not None:
            return of_file(image.file)
        rows, columns = (len(sizes) for sizes in image.levels[0].chunks[:2])
        return _pixels(image, [(0, row, column) for row in range(rows) for column in range(columns)])


def _nbytes(image: SlideImage, chunk: tuple[int, int, int]) -> int:
    level, row, column = chunk
    sizes = image.levels[level].chunks
    return int(sizes[0][row]) * int(sizes[1][column]) * 3


def _pixels(image: SlideImage, chunks: Sequence[tuple[int, int, int]]) -> str:
    import dask

    hashed = dask.delayed(of_arrays, pure=False)
    blocks = (image.levels[level].blocks[row, column] for level, row, column in chunks)
    found = dask.compute(*(hashed(block) for block in blocks))  # by dask's threads, which hold a chunk each
    return of_parts(f"{chunk} {digest}" for chunk, digest in zip(chunks, found, strict=True))
