"""Elements of SpatialData stores: image pyramids, spots, counts and slide."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.fingerprint import of_ends
from ..types import Section, SlideImage
from .crops import level_factors
from .geometry import Affine, compose, scaling, swap_axes
from .images import MIN_LEVEL_PX
from .original_slide import record_of
from .spatialdata_store import OWN_TABLE, element_stem, own_spots, quiet
from .store_entries import PutFile

CHUNK = 512
"""Side of the chunks of a written image."""


def halvings(height: int, width: int) -> int:
    """Return how often an image is halved for display: until it fits in about 512 pixels, and at least once."""
    wanted = max(1, int(np.ceil(np.log2(max(height, width) / MIN_LEVEL_PX))))
    return min(wanted, int(np.log2(min(height, width))))


def halved_rgba(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve a (4, h, w) image with colours weighted by alpha, so that transparent pixels darken no edge."""
    height, width = rgba.shape[1] // 2, rgba.shape[2] // 2
    blocks = rgba[:, : 2 * height, : 2 * width].astype(np.float32).reshape(4, height, 2, width, 2)
    alpha = blocks[3:]
    weight = alpha.sum(axis=(2, 4))
    colour = (blocks[:3] * alpha).sum(axis=(2, 4)) / np.maximum(weight, 1)
    return np.concatenate([np.rint(colour), np.rint(weight / 4)]).astype(np.uint8)


# What a store is made of: image elements with their transformations, and a section that stands alone.


MAX_SLIDE_PX = 4000
"""Maximum side of the slide image in a store of our own."""


def fingerprint(section: Section) -> str:
    """Return a hash of the spots' ids and positions (to 0.01 px) that identifies a section."""
    text = "\n".join(f"{i} {y:.2f} {x:.2f}" for i, (y, x) in zip(section.spots.ids, section.spots.yx, strict=True))
    if section.expression.kind != "measured":  # the same grid may come with other tables
        text += f"\n{section.expression.kind} {section.expression.sha256}"
    return hashlib.sha256(text.encode()).hexdigest()


def slide_mark(section: Section) -> str:
    """Return a hash that tells slides without expression apart, whose grids of spots are equal where their sizes are; empty where it is not needed or known."""
    image = section.image
    if section.expression.kind != "none" or image is None or image.file is None:
        return ""
    return of_ends(image.file)


def section_key(section: Section) -> str:
    """Return a name for a section, with the spots that it excludes, among all that are worked on."""
    return fingerprint(section.whole) + slide_mark(section)


def is_same_section(one: Section, other: Section) -> bool:
    """Return whether two are the same section, whatever spots they exclude and wherever they lie."""
    marks = {slide_mark(one), slide_mark(other)} - {""}
    return len(marks) < 2 and fingerprint(one.whole) == fingerprint(other.whole)


def is_fingerprint_of(recorded: object, section: Section) -> bool:
    """Return whether a fingerprint in a store, of any version, is a section's."""
    return recorded in (fingerprint(section.whole), fingerprint(section))


def image_element(pixels: Any, pixel_to_fullres: Affine, systems: Mapping[str, Affine]) -> Any:
    """Return a multiscale image element from (h, w, 3 or 4) pixels, registered to every coordinate system."""
    import dask.array as da
    from spatialdata.models import Image2DModel

    array = da.moveaxis(da.asarray(pixels), -1, 0)
    channels = ["r", "g", "b", "a"][: array.shape[0]]
    height, width = array.shape[1:]
    times = halvings(height, width)
    chunks = (len(channels), CHUNK, CHUNK)
    element = Image2DModel.parse(
        array.rechunk(chunks),
        dims=("c", "y", "x"),
        c_coords=channels,
        scale_factors=[2] * times or None,
        transformations={n: _transformation(compose(affine, pixel_to_fullres)) for n, affine in systems.items()},
        chunks=chunks,
    )
    if len(channels) == 4 and times and isinstance(pixels, np.ndarray):
        levels = np.moveaxis(pixels, -1, 0)
        for scale in range(1, times + 1):
            levels = halved_rgba(levels)
            element[f"scale{scale}"]["image"].data = da.from_array(levels, chunks=chunks)
    return element


def link_levels(levels: Path, element: Path, put: PutFile) -> None:
    """Replace the blank files of an image's levels, written with its metadata, by the real ones.

    Parameters
    ----------
    levels
        Folder of the levels ``0``, ``1``, ...: zarr arrays (4, y, x) uint8.
    element
        Folder of the image element.
    put
        Links or copies a file.

    Raises
    ------
    StoreError
        A level has another shape than the element's.
    """
    import zarr

    multiscales = zarr.open_group(element, mode="r", use_consolidated=False).attrs["ome"]["multiscales"]
    places = [str(dataset["path"]) for dataset in multiscales[0]["datasets"]]
    for number, place in enumerate(places):
        wanted = zarr.open_array(element / place, mode="r").shape
        found = zarr.open_array(levels / str(number), mode="r").shape
        if found != wanted:
            raise StoreError(f"level {number} of {levels} has the shape {found}, not {wanted}; nothing was kept")
        shutil.rmtree(element / place)
        shutil.copytree(levels / str(number), element / place, copy_function=put)


def _transformation(affine: Affine) -> Any:
    from spatialdata.transformations import Affine as SpatialAffine
    from spatialdata.transformations import Identity

    if np.array_equal(affine, np.eye(3)):
        return Identity()
    return SpatialAffine(affine, input_axes=("y", "x"), output_axes=("y", "x"))


def section_elements(section: Section, elements: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add what a self-contained store needs: spots, counts and a slide image."""
    import anndata
    import pandas as pd
    from spatialdata.models import ShapesModel, TableModel

    section = section.whole  # what is left out is kept, and said beside it
    spots, systems = section.spots, section.coordinate_systems
    label = own_spots(section.name)
    circles = ShapesModel.parse(
        swap_axes(spots.yx),
        geometry=0,
        radius=max(spots.diameter, 1e-6) / 2,
        transformations={name: _transformation(affine) for name, affine in systems.items()},
    )
    columns: dict[str, Any] = {"region": pd.Categorical([label] * len(spots)), "instance": np.arange(len(spots))}
    if spots.array_rc is not None:
        columns |= {"array_row": spots.array_rc[:, 0], "array_col": spots.array_rc[:, 1]}
    columns |= {name: values for name, values in spots.obs.items() if name not in columns}
    var = pd.DataFrame(index=pd.Index(spots.genes.symbols.astype(object)))
    if spots.genes.ids is not None:
        var["gene_ids"] = spots.genes.ids.astype(object)
    obs = pd.DataFrame(columns, index=pd.Index(spots.ids.astype(object)))
    with quiet():
        table = anndata.AnnData(spots.counts, obs=obs, var=var)
        table.obsm["spatial"] = swap_axes(spots.yx)
        table = TableModel.parse(table, region=label, region_key="region", instance_key="instance")
    images = dict(elements["images"])
    if section.image is not None:
        pixels, to_fullres = _reduced(section.image)
        images[f"{element_stem(section.name)}_slide"] = image_element(pixels, to_fullres, systems)
    return {"images": images, "shapes": {label: circles}, "tables": {OWN_TABLE: table}}


def _reduced(image: SlideImage) -> tuple[Any, Affine]:
    """Return the finest level of the slide within `MAX_SLIDE_PX`, and its affine to full resolution."""
    import dask.array as da

    for level, (fy, fx) in zip(image.levels, level_factors(image), strict=True):
        if max(level.shape[:2]) <= MAX_SLIDE_PX:
            return level, scaling(fy * image.pixel_size, fx * image.pixel_size)
    level, (fy, fx) = image.levels[-1], level_factors(image)[-1]
    by = -(-max(level.shape[:2]) // MAX_SLIDE_PX)
    mean = da.coarsen(np.mean, level, {0: by, 1: by}, trim_excess=True)
    return (mean + 0.5).astype(np.uint8), scaling(fy * by * image.pixel_size, fx * by * image.pixel_size)


def about(section: Section, store: Path | None = None) -> dict[str, Any]:
    """Return the record of a section and its full-resolution slide for a store of our own; JSON types only."""
    calibration = section.calibration
    excluded = (
        {} if section.excluded is None else {"excluded": {k: list(v) for k, v in section.excluded.regions.items()}}
    )
    section = section.whole
    return {
        **excluded,
        "name": section.name,
        "kind": section.kind,
        "fingerprint": fingerprint(section),
        "calibration": {"mpp": calibration.mpp, "source": calibration.source, "detail": calibration.detail},
        "synthetic": section.synthetic,
        "expression": section.expression.facts(),
        "slide": record_of(section, store),
        "notes": [n if n.startswith("synthetic") else f"of the original section: {n}" for n in section.notes],
    }
