"""Sections of the first Spatial Transcriptomics arrays, from before Visium, written as Space Ranger 2 writes a section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..storage.atomic import check_free, link_or_copy
from ..types import Calibration, Genes, Section, SpotTable
from .export import SLIDE, SYNTHETIC_SLIDE, Label, labelled
from .images import open_image, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from scipy.sparse import csr_matrix

PITCH_UM, SPOT_UM = 200.0, 100.0
"""Distance between neighbouring array positions, and diameter of a spot, of the arrays of her2st."""


def write_st_array(path: Path, image: Path, counts: Path, spots: Path) -> None:
    """Write a section of a Spatial Transcriptomics array as a Space Ranger folder; positions and scale as of `read_table_section`.

    Parameters
    ----------
    path
        New folder.
    image, counts, spots
        As for `read_table_section`; the slide is copied unchanged.

    Raises
    ------
    SectionError
        As for `read_table_section`, or counts are no whole numbers, or the array lies mirrored or on its side on the slide.
    """
    section = read_table_section(path.name, counts, spots, image)
    table = section.spots
    assert table.array_rc is not None
    if (table.counts.data < 0).any() or (table.counts.data % 1 != 0).any():
        raise SectionError(f"{counts} holds something that is no whole number; expected counts, one row a spot")
    if any(np.polyfit(table.array_rc[:, axis], table.yx[:, axis], 1)[0] <= 0 for axis in (0, 1)):
        raise SectionError(f"{spots} has its array mirrored or on its side on the slide; nothing is guessed")
    write_spaceranger_folder(
        path,
        image=image,
        ids=table.ids,
        yx=table.yx,
        counts=table.counts,
        genes=table.genes,
        mpp=section.calibration.mpp,
        array_rc=table.array_rc,
        diameter=table.diameter,
        slide_name=image.name,
    )


def read_table_section(
    name: str, counts: Path, spots: Path, image: Path, *, pitch_um: float = PITCH_UM, spot_um: float = SPOT_UM
) -> Section:
    """Read a section of the Spatial Transcriptomics kind: the spots that are in both tables, scaled by their square lattice.

    Parameters
    ----------
    name
        Name of the section.
    counts
        Tab-separated, optionally gzipped: a row for each spot, named ``<x>x<y>`` after its array position; a column for each gene.
    spots
        Tab-separated with columns x, y (array position) and pixel_x, pixel_y (pixels of the image); with a column selected, only
        spots where it is 1.
    image
        RGB slide image.
    pitch_um, spot_um
        Distance between neighbouring array positions, and diameter of a spot, in microns.

    Raises
    ------
    SectionError
        A file is damaged, a file or a column is missing, or the tables share fewer than three spots.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    for path in (counts, spots, image):
        if not path.is_file():
            raise SectionError(f"Section {name}: {path} is not a file; correct the path in the training config.")
    try:
        table, places = pd.read_csv(counts, sep="\t", index_col=0), pd.read_csv(spots, sep="\t")
    except (OSError, EOFError, ValueError) as error:
        raise SectionError(f"Section {name}: {counts} or {spots} cannot be read as a table: {error}") from error
    missing = {"x", "y", "pixel_x", "pixel_y"} - set(places.columns)
    if missing:
        raise SectionError(
            f"Section {name}: {spots} lacks the columns {sorted(missing)}; it has {list(places.columns)}."
        )
    if "selected" in places.columns:
        places = places[places["selected"] == 1]
    places.index = pd.Index([f"{int(x)}x{int(y)}" for x, y in zip(places["x"], places["y"], strict=True)])
    shared = [spot for spot in table.index if spot in places.index]
    if len(shared) < 3:
        raise SectionError(
            f"Section {name}: only {len(shared)} spots stand in both {counts} and {spots}; at least 3 are needed. "
            "Row names of the counts must be <x>x<y>."
        )
    places = places.loc[shared]
    array_rc = places[["y", "x"]].to_numpy(dtype=np.int64)
    yx = places[["pixel_y", "pixel_x"]].to_numpy(dtype=np.float64)
    mpp = fit_square_lattice(array_rc, yx, pitch_um)
    spot_table = SpotTable(
        ids=np.array(shared, dtype=np.str_),
        yx=yx,
        diameter=spot_um / mpp,
        counts=csr_matrix(table.loc[shared].to_numpy(dtype=np.float32)),
        genes=Genes(np.array(table.columns, dtype=np.str_)),
        array_rc=array_rc,
    )
    detail = f"{mpp:.4f} um per pixel, from the square lattice of {len(shared)} spots at {pitch_um:g} um"
    return Section(
        name=name,
        path=counts,
        kind="spatialdata",  # the nearest of the kinds: an image with spots, and no folder of 10x
        spots=spot_table,
        image=open_image(image),
        calibration=Calibration(mpp, "lattice", detail),
        coordinate_systems={"global": np.eye(3)},
    )


def fit_square_lattice(array_rc: NDArray[np.int64], yx: NDArray[np.float64], pitch_um: float) -> float:
    """Return microns per pixel, pitch / sqrt(|det A|), with A the least squares affine map from array (row, column) to pixels.

    It is robust to rotation, offset and slightly different scales of the axes; raises SectionError where the spots lie on one line.
    """
    design = np.column_stack([array_rc, np.ones(len(array_rc))])
    if np.linalg.matrix_rank(design) < 3:
        raise SectionError(
            "The spots lie on one line of the array: microns per pixel cannot be fitted; state the scale."
        )
    affine, *_ = np.linalg.lstsq(design, yx, rcond=None)
    return float(pitch_um / np.sqrt(abs(np.linalg.det(affine[:2]))))


_LOWRES_PX = 600


def write_spaceranger_folder(
    path: str | Path,
    *,
    image: NDArray[np.uint8] | Path,
    ids: NDArray[np.str_],
    yx: NDArray[np.float64],
    counts: csr_matrix,
    genes: Genes,
    mpp: float | None,
    array_rc: NDArray[np.int64],
    diameter: float,
    synthetic_note: str | None = None,
    slide_name: str = "slide.jpg",
    hires_px: int = 2000,
) -> None:
    """Write a section as a Space Ranger 2 folder.

    Parameters
    ----------
    path
        New or empty folder.
    image
        (h, w, 3) uint8, the full-resolution slide; or its file, which is copied unchanged.
    ids
        (n,) barcodes.
    yx
        (n, 2) centres in pixels of ``image``.
    counts
        (n, g) sparse, whole numbers.
    genes
        The g columns.
    mpp
        Microns per pixel, written as ``microns_per_pixel``; None leaves it out.
    array_rc
        (n, 2) array rows and columns.
    diameter
        Diameter of a spot in pixels.
    synthetic_note
        Words that mark the folder as synthetic, if given.
    slide_name
        File name of the slide; of an array, .jpg is lossy, .png and .tif are not.
    hires_px
        Longest side of the hires image.

    Raises
    ------
    SectionError
        The folder holds something, or the arrays do not fit each other.
    """
    path = Path(path)
    n = len(ids)
    if yx.shape != (n, 2) or array_rc.shape != (n, 2) or counts.shape != (n, len(genes)):
        raise SectionError(
            f"{n} ids, but positions {yx.shape}, array indices {array_rc.shape} and counts {counts.shape} for {len(genes)} genes"
        )
    check_free(path, "give a new folder", SectionError)
    spatial = path / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    factors = _write_images(path, image, slide_name, SYNTHETIC_SLIDE if synthetic_note is not None else SLIDE, hires_px)
    factors |= {"spot_diameter_fullres": diameter, "fiducial_diameter_fullres": diameter}
    if mpp is not None:
        factors["microns_per_pixel"] = mpp
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors), encoding="utf-8")
    lines = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"]
    lines += [
        f"{barcode},1,{r},{c},{y!r},{x!r}"
        for barcode, (r, c), (y, x) in zip(ids.tolist(), array_rc.tolist(), yx.tolist(), strict=True)
    ]
    (spatial / "tissue_positions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_counts(path / "filtered_feature_bc_matrix.h5", ids, counts, genes)
    if synthetic_note is not None:
        (path / "SYNTHETIC.json").write_text(json.dumps({"note": synthetic_note}), encoding="utf-8")


def _write_images(
    path: Path, image: NDArray[np.uint8] | Path, slide_name: str, label: Label, hires_px: int
) -> dict[str, float]:
    from PIL import Image

    if isinstance(image, Path):
        link_or_copy(image, path / slide_name)
        with open_picture(image) as picture:
            slide = picture.convert("RGB")
    else:
        slide = Image.fromarray(np.ascontiguousarray(image))
        options = {"quality": 95, "subsampling": 0} if slide_name.lower().endswith((".jpg", ".jpeg")) else {}
        slide.save(path / slide_name, **options, **labelled(label, slide_name))
    longest = max(slide.size)
    factors = {}
    for kind, side in (("hires", hires_px), ("lowres", _LOWRES_PX)):
        # a thumbnail of a small slide is at most half as large, or it would only be a second copy
        factor = min(side, longest / 2) / longest
        factors[f"tissue_{kind}_scalef"] = factor
        _shrunk(slide, factor).save(path / "spatial" / f"tissue_{kind}_image.png")
    return factors


def _shrunk(slide: Image, factor: float) -> Image:
    from PIL import Image

    size = (max(1, round(slide.width * factor)), max(1, round(slide.height * factor)))
    return slide.resize(size, Image.Resampling.BOX)


def write_counts(path: Path, barcodes: NDArray[np.str_], counts: csr_matrix, genes: Genes) -> None:
    """Write counts as a Cell Ranger 3 HDF5 file.

    Parameters
    ----------
    path
        The file, ``filtered_feature_bc_matrix.h5``.
    barcodes
        (n,).
    counts
        (n, g) sparse, whole numbers.
    genes
        The g columns; symbols replace missing ids.
    """
    with h5py.File(path, "w") as file:
        file.attrs.update({"filetype": "matrix", "version": 2, "software_version": "napari-stmdit"})
        group = file.create_group("matrix")
        pack = {"compression": "gzip", "compression_opts": 6}
        group.create_dataset("data", data=counts.data.astype(np.int32), **pack)
        group.create_dataset("indices", data=counts.indices.astype(np.int64), **pack)
        group.create_dataset("indptr", data=counts.indptr.astype(np.int64), **pack)
        group.create_dataset("shape", data=np.array(counts.shape[::-1], dtype=np.int32))
        group.create_dataset("barcodes", data=np.char.encode(barcodes, "utf-8"))
        features = group.create_group("features")
        features.create_dataset("_all_tag_keys", data=np.array([b"genome"]))
        ids = genes.symbols if genes.ids is None else genes.ids
        for key, values in (("id", ids), ("name", genes.symbols)):
            features.create_dataset(key, data=np.char.encode(values, "utf-8"))
        features.create_dataset("feature_type", data=np.full(len(genes), b"Gene Expression"))
        features.create_dataset("genome", data=np.full(len(genes), b"unknown"))
