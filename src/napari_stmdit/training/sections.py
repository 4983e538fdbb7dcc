"""Training sections: tables with an image, or folders that a user could open, read into `Section`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..tissue.images import open_image
from ..types import Calibration, Genes, Section, SlideImage, SpotTable
from .config import WHOLE, FolderSource, Part, SampleSource, Source, TableSource, TrainingConfig, load_config


def open_source(source: Source, config: TrainingConfig) -> Section:
    """Open one section of a training config.

    Raises
    ------
    SectionError
        A file is missing or does not hold what its kind needs.
    """
    if isinstance(source, TableSource):
        table = read_table_section(
            source.name,
            config.source_path(source.counts),
            config.source_path(source.spots),
            config.source_path(source.image),
            pitch_um=source.pitch_um,
            spot_um=source.spot_um,
        )
        return part_of(table, source.part)
    section = _open_sample() if isinstance(source, SampleSource) else _open_folder(source, config)
    section = replace(section, name=source.name)  # folders of several samples are often all called "outs"
    return section if isinstance(source, SampleSource) else part_of(section, source.part)


def part_of(section: Section, part: Part) -> Section:
    """Cut a section down to a part of its image; raises SectionError where that holds fewer than three spots."""
    if part == WHOLE or section.image is None:
        return section
    image, spots = section.image, section.spots
    height, width = image.shape
    y0, x0, y1, x1 = (round(share * side) for share, side in zip(part, (height, width) * 2, strict=True))
    corner, end = np.array([y0, x0]) * image.pixel_size, np.array([y1, x1]) * image.pixel_size
    rows = np.flatnonzero(((spots.yx >= corner) & (spots.yx < end)).all(axis=1))
    if len(rows) < 3:
        raise SectionError(
            f"Section {section.name}: its part {list(part)} holds {len(rows)} spots; at least 3 are needed."
        )
    kept = replace(
        spots,
        ids=spots.ids[rows],
        yx=spots.yx[rows] - corner,
        counts=spots.counts[rows],
        array_rc=None if spots.array_rc is None else spots.array_rc[rows],
        obs={name: values[rows] for name, values in spots.obs.items()},
    )
    pixels = image.levels[0][y0:y1, x0:x1]
    return replace(section, spots=kept, image=SlideImage((pixels,), image.pixel_size, f"{image.source}, a part"))


def sections_of_config(path: str | Path, which: str) -> tuple[Section, ...]:
    """Open all sections that a training config holds out, or trains on.

    Parameters
    ----------
    path
        The YAML file.
    which
        ``held_out`` or ``train``.

    Raises
    ------
    SectionError
        There are none, or one cannot be opened.
    """
    config = load_config(Path(path))
    sources = config.held_out if which == "held_out" else config.train
    if not sources:
        raise SectionError(f"{path} names no section under {which!r}; add one, or give sections by their paths")
    return tuple(open_source(source, config) for source in sources)


def _open_folder(source: FolderSource, config: TrainingConfig) -> Section:
    from ..tissue.open import open_section

    image: str | Path | None = None if source.image is None else config.source_path(source.image)
    if image is not None and not Path(image).is_file():
        image = str(source.image)  # in the section's folder, or the name of an image of a SpatialData store
    return open_section(config.source_path(source.folder), fullres=image, mpp=source.mpp)


def _open_sample() -> Section:
    from ..tissue.sample import open_sample_section

    return open_sample_section()


def read_table_section(
    name: str, counts: Path, spots: Path, image: Path, *, pitch_um: float, spot_um: float
) -> Section:
    """Read a section of the Spatial Transcriptomics kind: two tables and an image.

    Parameters
    ----------
    name
        Name of the section.
    counts
        Tab-separated, optionally gzipped: a row for each spot, named ``<x>x<y>`` after its array position; a column for each gene.
    spots
        Tab-separated with columns x, y (array position) and pixel_x, pixel_y (pixels of the image).
    image
        RGB slide image.
    pitch_um
        Distance between neighbouring array positions in microns.
    spot_um
        Diameter of a spot in microns.

    Returns
    -------
    Section
        Only spots that stand in both tables. Microns per pixel come from the lattice that is fitted to the array positions.

    Raises
    ------
    SectionError
        A file is missing, a column is missing, or the tables share fewer than three spots.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    for path in (counts, spots, image):
        if not path.is_file():
            raise SectionError(f"Section {name}: {path} is not a file; correct the path in the training config.")
    table = pd.read_csv(counts, sep="\t", index_col=0)
    places = pd.read_csv(spots, sep="\t")
    missing = {"x", "y", "pixel_x", "pixel_y"} - set(places.columns)
    if missing:
        raise SectionError(
            f"Section {name}: {spots} lacks the columns {sorted(missing)}; it has {list(places.columns)}."
        )
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
        kind="spatialdata",  # what `to_spatialdata` makes of it
        spots=spot_table,
        image=open_image(image),
        calibration=Calibration(mpp, "lattice", detail),
        coordinate_systems={"global": np.eye(3)},
    )


def fit_square_lattice(array_rc: NDArray[np.int64], yx: NDArray[np.float64], pitch_um: float) -> float:
    """Return microns per pixel from spots on a square array.

    The affine map from array (row, column) to pixels is fitted by least squares; its area per array cell gives the scale, so
    that rotation, offset and a slightly different scale along the two axes do no harm.

    Raises
    ------
    SectionError
        The spots lie on one line.
    """
    design = np.column_stack([array_rc, np.ones(len(array_rc))])
    if np.linalg.matrix_rank(design) < 3:
        raise SectionError(
            "The spots lie on one line of the array: microns per pixel cannot be fitted; state the scale."
        )
    affine, *_ = np.linalg.lstsq(design, yx, rcond=None)
    return float(pitch_um / np.sqrt(abs(np.linalg.det(affine[:2]))))


def to_spatialdata(section: Section) -> Any:
    """Return a section as SpatialData: image ``<name>_image``, circles ``<name>_spots`` and table ``table``.

    Everything lies in the coordinate system ``global``, in full-resolution pixels.
    """
    import anndata
    import geopandas
    import pandas as pd
    import spatialdata
    from shapely import points
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    region = f"{section.name}_spots"
    spots = section.spots
    # SpatialData takes (x, y) with a pixel's centre at +0.5, as our corner-based positions do
    frame = geopandas.GeoDataFrame(
        {"radius": np.full(len(spots), spots.diameter / 2)},
        geometry=points(spots.yx[:, ::-1]),
        index=pd.Index(spots.ids.astype(object)),
    )
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(spots)), "spot": spots.ids.astype(object)})
    obs.index = pd.Index(spots.ids.astype(object))
    if spots.array_rc is not None:
        obs["array_row"], obs["array_col"] = spots.array_rc.T
        obs["in_tissue"] = 1
    table = anndata.AnnData(X=spots.counts.copy(), obs=obs, var=pd.DataFrame(index=spots.genes.symbols.astype(object)))
    table.uns["stmdit"] = {"mpp": section.calibration.mpp, "source": section.calibration.detail}
    place = {"global": Identity()}
    images = {}
    if section.image is not None:
        pixels = section.image.levels[0].transpose(2, 0, 1)  # stays lazy
        images[f"{section.name}_image"] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=place
        )
    return spatialdata.SpatialData(
        images=images,
        shapes={region: ShapesModel.parse(frame, transformations=place)},
        tables={"table": TableModel.parse(table, region=region, region_key="region", instance_key="spot")},
    )
