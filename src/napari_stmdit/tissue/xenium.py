"""Xenium output folders with an H&E image of the same section: cells summed to pseudo-spots of its pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import BadFile, is_number, read_json
from ..text import shorten
from ..types import Calibration, Outlines, Section, SlideImage
from .counts import read_counts
from .geometry import Affine, apply, check_mpp, compose, mean_scale, scaling
from .images import IMAGE_SUFFIXES, image_size, open_image
from .pseudo_spots import pieces_of_rings, sum_cells
from .slide_scale import refuse_stretched, stated_mpp
from .spaceranger import clusters_of, section_name
from .zarr_codecs import damage_as_section_error

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "experiment.xenium"
_COUNTS = ("cell_feature_matrix.h5", "cell_feature_matrix")
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_CELL_COLUMNS = ("cell_id", "x_centroid", "y_centroid", "cell_area")
_MORPHOLOGY = (
    "morphology_focus.ome.tif",
    "morphology_focus/morphology_focus_0000.ome.tif",
    "morphology_focus/ch0000_dapi.ome.tif",
    "morphology_mip.ome.tif",
)
_OTHER_STAIN = re.compile(r"^morphology|if_image", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.ome)?\.[^.]+$", re.IGNORECASE)
_MATRIX_ENDINGS = ("alignment.csv", "_alignment.csv", "_matrix.csv")
_SAME_SCALE = 0.05
"""Maximum relative difference between the scale of a slide file and that of its matrix."""
_AFFINE_TO = 1e-6


def open_xenium(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open a Xenium output folder.

    Full-resolution pixels are those of the H&E image; without one, those of the morphology image.

    Parameters
    ----------
    path
        The folder with ``experiment.xenium``.
    fullres
        The H&E image; by default the one in the folder, or above ``outs``, with a matrix beside it. Unless it is as large as the morphology image,
        it needs the matrix of Xenium Explorer, ``NAMEalignment.csv``: 3 x 3, from its pixels to those of the morphology image.
    mpp
        Microns per pixel of the H&E image; by default from the matrix and the size of a morphology pixel.

    Raises
    ------
    SectionError
        Files are missing or contradict each other, or the image's place relative to the cells is unknown.
    """
    pixel_um = _pixel_size(path / EXPERIMENT)
    source = next((path / name for name in _COUNTS if (path / name).exists()), None)
    if source is None:
        raise SectionError(f"{path} holds no counts of cells; expected {_COUNTS[0]}")
    matrix = read_counts(source)
    cells = _cells(path)
    slide, to_morphology, notes = _slide(path, fullres)
    from_microns = compose(np.linalg.inv(to_morphology), scaling(1 / pixel_um))
    cells[["y", "x"]] = apply(from_microns, cells[["y", "x"]].to_numpy())
    calibration = _calibration(slide, mean_scale(to_morphology) * pixel_um, mpp)
    if slide is not None:
        _refuse_elsewhere(slide, cells)
    spots, summed = sum_cells(matrix, cells, calibration, clusters_of(path, matrix.barcodes))
    name = section_name(path)
    panel = f"panel of {len(matrix.genes)} genes; control probes and codewords are none, and are left out"
    return Section(
        name=name,
        path=path,
        kind="xenium",
        spots=spots,
        image=slide,
        calibration=calibration,
        coordinate_systems={name: np.eye(3), "global": to_morphology},
        notes=(panel, *summed, *notes),
        image_fault="" if slide is not None else notes[-1],
        outlines=_outlines(path, from_microns),
    )


def _pixel_size(file: Path) -> float:
    try:
        content = read_json(file)
    except BadFile as error:
        raise SectionError(f"{file} cannot be read: {error}") from error
    size = content.get("pixel_size") if isinstance(content, dict) else None
    if not is_number(size) or not 0.01 <= size <= 10:
        raise SectionError(f"{file}: pixel_size is {shorten(repr(size))}; expected microns, 0.2125 as a rule")
    return float(size)


def _cells(path: Path) -> pd.DataFrame:
    """Return centre (y, x) in microns and area in square microns of each cell, by its name."""
    import pandas as pd

    file = next((path / name for name in _CELLS if (path / name).is_file()), None)
    if file is None:
        raise SectionError(f"{path} holds no cells; expected {_CELLS[0]} or {_CELLS[1]}")
    with damage_as_section_error(file, "cells of Xenium"):
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
        missing = [name for name in _CELL_COLUMNS if name not in table.columns]
        if missing:
            raise SectionError(f"{file} lacks the columns {', '.join(missing)}")
        numbers = table[list(_CELL_COLUMNS[1:])].to_numpy(dtype=np.float64)
        cells = pd.DataFrame(numbers, index=_names(table["cell_id"]), columns=["x", "y", "area"])
    if not cells.index.is_unique:
        raise SectionError(f"{file} lists a cell twice")
    return cells


def _names(column: pd.Series) -> list[str]:
    """Return names of cells as the counts have them: until version 1.3 they are numbers or bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in column.tolist()]


def _outlines(path: Path, from_microns: Affine) -> Outlines | None:
    """Return the outlines of cells to draw; None where there is no file of them."""
    file = path / "cell_boundaries.parquet"

    def read() -> NDArray[np.float32]:
        import pandas as pd

        with damage_as_section_error(file, "outlines of cells"):
            corners = pd.read_parquet(file, columns=["cell_id", "vertex_x", "vertex_y"])
            yx = apply(from_microns, corners[["vertex_y", "vertex_x"]].to_numpy(dtype=np.float64))
            return pieces_of_rings(yx, pd.factorize(corners["cell_id"])[0])

    return Outlines(read) if file.is_file() else None


# ------------------------------------------------------------------------------------------------- the slide


def _slide(path: Path, given: Path | None) -> tuple[SlideImage | None, Affine, list[str]]:
    """Return the H&E image, the affine from its pixels to those of the morphology image, and notes; without an image the last note says why."""
    file, notes = (given, []) if given is not None else _find_slide(path)
    if file is None:
        return None, np.eye(3), notes
    if not file.is_file():
        raise SectionError(f"there is no image file {file}")
    matrix = _find_matrix(file, path)
    if matrix is not None:
        affine = _read_matrix(matrix)
        refuse_stretched(file.name, affine)
        return open_image(file), affine, [*notes, f"{file.name} is aligned by {matrix.name}"]
    morphology = _morphology_size(path)
    if morphology == image_size(file):
        return (
            open_image(file),
            np.eye(3),
            [*notes, f"{file.name} is exactly as large as the morphology image, and lies as that does"],
        )
    raise SectionError(
        f"it is not known how {file.name} lies to the cells: align it in Xenium Explorer, save its matrix (3 x 3, from pixels of this image to those of "
        f"the morphology image) beside it as {_SUFFIX.sub('', file.name)}{_MATRIX_ENDINGS[0]}, and open the section again"
    )


def _find_slide(path: Path) -> tuple[Path | None, list[str]]:
    places = [path, path.parent] if path.name == "outs" else [path]
    files = [f for p in places for f in sorted(p.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
    files = [f for f in files if not _OTHER_STAIN.search(f.name) and _find_matrix(f, path) is not None]
    if len(files) == 1:
        return files[0], [f"H&E image found by the matrix beside it: {files[0].name}"]
    what = (
        f"several images have a matrix ({', '.join(f.name for f in files)})" if files else "no H&E image with a matrix"
    )
    where = (
        "choose one with --fullres IMAGE"
        if files
        else "is in the folder; give it with --fullres IMAGE, its matrix beside it"
    )
    return None, [f"{what}{';' if files else ''} {where}"]


def _find_matrix(slide: Path, folder: Path) -> Path | None:
    """Return the matrix file of a slide, beside it or in the section's folder, by its name."""
    base = _SUFFIX.sub("", slide.name)
    files = {
        f.resolve(): f
        for place in (slide.parent, folder)
        for end in _MATRIX_ENDINGS
        if (f := place / f"{base}{end}").is_file()
    }
    if len(files) > 1:
        raise SectionError(
            f"{slide.name} has several matrices, {', '.join(map(str, files.values()))}; keep the right one"
        )
    return next(iter(files.values()), None)


def _read_matrix(file: Path) -> Affine:
    """Return the affine of a matrix over (x, y, 1), as Xenium Explorer writes it, over (y, x, 1)."""
    expected = "expected 3 x 3 numbers over (x, y, 1) as Xenium Explorer writes them, the last row 0, 0, 1"
    try:
        matrix = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise SectionError(f"{file} cannot be read as the matrix of an image: {error}; {expected}") from None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise SectionError(f"{file} holds {' x '.join(map(str, matrix.shape))} numbers; {expected}")
    if np.abs(matrix[2] - (0, 0, 1)).max() > _AFFINE_TO or abs(np.linalg.det(matrix)) < 1e-12:
        raise SectionError(f"{file}: {matrix.tolist()} is no affine transformation that can be undone; {expected}")
    return np.ascontiguousarray(matrix[[1, 0, 2]][:, [1, 0, 2]])


def _morphology_size(path: Path) -> tuple[int, int] | None:
    for name in _MORPHOLOGY:
        try:
            if (path / name).is_file():
                return image_size(path / name)
        except SectionError:
            continue
    return None


def _calibration(slide: SlideImage | None, mpp: float, override: float | None) -> Calibration:
    if override is not None:
        check_mpp(override)
        by_files = "" if abs(override / mpp - 1) <= _SAME_SCALE else f"; by the files of Xenium it would be {mpp:.4g}"
        return Calibration(float(override), "override", f"{override:.4g} um/px, as given{by_files}")
    stated = None if slide is None else stated_mpp(Path(slide.source))[0]
    if slide is not None and stated is not None and abs(stated[0] / mpp - 1) > _SAME_SCALE:
        raise SectionError(
            f"{slide.source} states {stated[0]:.4g} um/px ({stated[1]}), and by its matrix it has {mpp:.4g}: the matrix belongs to an image of another size. "
            "Give the image that was aligned in Xenium Explorer, or, where the file is wrong, the scale with --mpp"
        )
    by = "size of a morphology pixel" if slide is None else "matrix of the H&E image and the size of a morphology pixel"
    return Calibration(mpp, "scalefactors", f"{mpp:.4g} um/px, by the {by}")


def _refuse_elsewhere(slide: SlideImage, cells: pd.DataFrame) -> None:
    """Raise SectionError where most cells lie off the slide, as with a matrix of the opposite direction."""
    yx = cells[["y", "x"]].to_numpy()
    off = int(((yx < 0) | (yx > slide.shape)).any(axis=1).sum())
    if off > len(yx) / 2:
        raise SectionError(
            f"{off} of {len(yx)} cells lie off {Path(slide.source).name}: its matrix must take pixels of this image, (x, y), to those of the morphology "
            "image, as Xenium Explorer writes it; it may be that of another image, or of the other direction"
        )
