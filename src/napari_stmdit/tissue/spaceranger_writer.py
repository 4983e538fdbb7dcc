"""Writer of Space Ranger 2 folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..storage.atomic import link_or_copy
from ..storage.owned import check_free
from ..types import Genes
from .export import SLIDE, SYNTHETIC_SLIDE, Label, labelled
from .images import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from scipy.sparse import csr_matrix

_HIRES_PX, _LOWRES_PX = 2000, 600


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
    factors = _write_images(path, image, slide_name, SYNTHETIC_SLIDE if synthetic_note is not None else SLIDE)
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


def _write_images(path: Path, image: NDArray[np.uint8] | Path, slide_name: str, label: Label) -> dict[str, float]:
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
    for kind, side in (("hires", _HIRES_PX), ("lowres", _LOWRES_PX)):
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
