"""Opening of sections: all inputs become a `Section`, or are refused with a reason."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ValidationError, model_validator

from ..errors import SectionError
from ..files import BadFile, is_number, user_path
from ..frozen import Frozen
from ..text import counted, shorten
from ..types import Orientation, PredictedUnits, Section
from .alignment import oriented
from .excluded import exclude_file
from .factors import with_factors
from .flat_files import flat_samples, is_flat_sample, open_flat
from .geometry import is_plausible_mpp, mpp_fault
from .images import IMAGE_SUFFIXES, resolve_fullres
from .public import missing_section, named_section
from .remote import open_remote, url_of
from .slide import PITCH_WITHIN, open_slide
from .spaceranger import open_spaceranger
from .visium_hd import CELLS, holds_bins, holds_cells, note_version, open_cells, open_visium_hd
from .xenium import EXPERIMENT, open_xenium
from .zarr_codecs import damage_as_section_error

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

COARSEST_IMAGE = 1.5
"""Maximum ratio of the slide image's pixel size to the checkpoint's to synthesize from it."""

_SLICE = "feature_slice.h5"
"""File of Visium HD in ``outs``, beside the folders of bins and of cells."""
_EXPECTED = (
    "a Space Ranger folder (with 'spatial' and filtered_feature_bc_matrix.h5), a Visium HD folder (binned_outputs or one of its "
    "square_* folders), a Xenium output folder (with experiment.xenium), a SpatialData .zarr, a .h5ad with its spots, or a plain H&E image"
)


def _place(value: object) -> str | Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"got {shorten(repr(value))}, expected a path")
    if not str(value).strip():
        raise ValueError("a path is empty; give it, or leave it out")
    return value if isinstance(value, str) else Path(value)


def _mpp(value: object) -> object:
    if not is_plausible_mpp(value):
        raise ValueError(mpp_fault(value))
    return value


def _grid_pitch(value: object) -> object:
    low, high = PITCH_WITHIN
    if not (is_number(value) and low <= value <= high):
        raise ValueError(f"grid_pitch is {shorten(repr(value))}; expected microns between {low:g} and {high:g}")
    return value


def _tissue_fraction(value: object) -> object:
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"tissue_fraction is {shorten(repr(value))}; expected a number from 0 to 1")
    return value


Place = Annotated[str | Path, BeforeValidator(_place)]


class SectionSource(Frozen):
    """Location of a section and its options, as of a command line, a job file, a training config or the dock.

    Attributes
    ----------
    path
        A Space Ranger ``outs`` folder, a Visium HD ``binned_outputs`` folder or one of its ``square_*``, a Xenium output folder,
        a SpatialData .zarr (also ``https://`` or ``s3://``), a .h5ad, or a plain H&E image. Where a store holds several sets of spots,
        ``STORE.zarr/shapes/NAME``. Or the name of a downloaded public section.
    fullres
        The full-resolution slide image. A relative path is looked for in the working directory and in ``path``. For a
        SpatialData store also the name of one of its images.
    mpp
        Microns per full-resolution pixel; overrides the files.
    coordinate_system
        For a SpatialData store: system that relates spots and slide; needed only if several differ in that.
    grid_pitch
        For a plain image: microns between the centres of its hexagonal grid of virtual spots; 100 by default, as on a Visium slide. With
        a predicted table its spots take the nearest row; without ``grid_pitch`` the rows' own positions are the spots.
    tissue_fraction
        For a plain image: part of a spot that must lie on tissue, 0 to 1; 0.5 by default. With 0 spots cover the whole slide.
    predicted_expression
        For a plain image: a .h5ad with predicted expression; see `napari_stmdit.tissue.slide`.
    predicted_units
        Its units, if the file does not state them: ``counts`` or ``log1p``.
    factors
        Values of each spot in place of counts, ``FILE.h5ad::NAME`` of its ``obsm`` or a .csv; see `napari_stmdit.tissue.factors`.
    orientation
        Orientation of the spots over the slide, relative to the files; see `napari_stmdit.tissue.alignment`.
    exclude, exclude_classes
        GeoJSON polygons of spots to exclude, and classes of these; none: all. See
        `napari_stmdit.tissue.excluded`.
    """

    path: Place
    fullres: Place | None = None
    mpp: Annotated[float, BeforeValidator(_mpp)] | None = None
    coordinate_system: str | None = None
    grid_pitch: Annotated[float, BeforeValidator(_grid_pitch)] | None = None
    tissue_fraction: Annotated[float, BeforeValidator(_tissue_fraction)] | None = None
    predicted_expression: Place | None = None
    predicted_units: PredictedUnits | None = None
    factors: Place | None = None
    orientation: Orientation = "as-given"
    exclude: Place | None = None
    exclude_classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _units_of_a_table(self) -> Self:
        if self.predicted_units is not None and self.predicted_expression is None:
            raise ValueError("predicted_units was given without a predicted table; give predicted_expression too")
        if self.exclude_classes and self.exclude is None:
            raise ValueError("exclude_classes was given without a file of regions; give exclude too")
        return self

    @classmethod
    def given(cls, path: object, **options: object) -> Self:
        """Return a source from a user's input.

        Raises
        ------
        SectionError
            With every invalid value.
        """
        try:
            return cls.model_validate({"path": path, **options})
        except ValidationError as error:
            faults = [
                str(item["msg"]).removeprefix("Value error, ")
                if item["type"] == "value_error"
                else f"{item['loc'][0]} is {shorten(repr(item['input']))}: {item['msg']}"
                for item in error.errors(include_url=False)
            ]
            raise SectionError("; ".join(faults)) from None

    @property
    def slide_options(self) -> dict[str, Any]:
        """Options that are for plain images only."""
        names = ("grid_pitch", "tissue_fraction", "predicted_expression", "predicted_units")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def open(self) -> Section:
        """Open the section; see `open_section`."""
        return _open(self)

    def absolute(self, root: str | Path = "") -> Self:
        """Return it with absolute paths; relative ones start at ``root`` or the working directory.

        A ``fullres`` that is no file there is kept: it may be the name of an image, or lie in the section's folder.
        """
        update: dict[str, Any] = {
            name: Path(root, Path(given).expanduser()).absolute()
            for name in ("path", "fullres", "predicted_expression", "factors", "exclude")
            if (given := getattr(self, name)) is not None
        }
        if not update["path"].exists() and (public := named_section(Path(self.path))) is not None:
            update["path"] = public
        if self.fullres is not None and not update["fullres"].is_file():
            del update["fullres"]
        if url := url_of(self.path):
            update["path"] = url
        return self.model_copy(update=update)


def open_section(
    path: str | Path | SpatialData | AnnData,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    *,
    coordinate_system: str | None = None,
    grid_pitch: float | None = None,
    tissue_fraction: float | None = None,
    predicted_expression: str | Path | None = None,
    predicted_units: PredictedUnits | None = None,
    factors: str | Path | None = None,
    orientation: Orientation = "as-given",
    exclude: str | Path | None = None,
    exclude_classes: tuple[str, ...] = (),
) -> Section:
    """Open one tissue section.

    Parameters
    ----------
    path
        A folder, store or image, see `napari_stmdit.tissue.open.SectionSource`. Or an object in memory: a ``SpatialData`` with Visium
        spots, or an ``AnnData`` as scanpy and squidpy read Visium, with ``obsm["spatial"]`` and ``uns["spatial"]``.
    fullres
        The full-resolution slide image. A relative path is looked for in the working directory and in ``path``. For a
        SpatialData also the name of one of its images.
    mpp
        Microns per full-resolution pixel; overrides the files.
    coordinate_system
        For a SpatialData: system that relates spots and slide; needed only if several differ in that.
    grid_pitch, tissue_fraction, predicted_expression, predicted_units
        For a plain image: its virtual spots, and a table of predicted expression; see
        `napari_stmdit.tissue.open.SectionSource`.
    factors
        Values of each spot in the place of counts; see there, too.
    orientation, exclude, exclude_classes
        Orientation of the spots over the slide, and GeoJSON regions of spots to exclude; see there.

    Returns
    -------
    Section
        With the finest image available, opened lazily, the spots on tissue, and the calibration with its source.

    Raises
    ------
    SectionError
        It cannot be read, or is ambiguous; `ScaleError` where the scale of a plain image is unknown.
    """
    kind = _kind_in_memory(path)
    if kind is None and url_of(path) is None:
        _existing(path)
    source = SectionSource.given(
        kind or path,
        fullres=fullres,
        mpp=mpp,
        coordinate_system=coordinate_system,
        grid_pitch=grid_pitch,
        tissue_fraction=tissue_fraction,
        predicted_expression=predicted_expression,
        predicted_units=predicted_units,
        factors=factors,
        orientation=orientation,
        exclude=exclude,
        exclude_classes=exclude_classes,
    )
    if kind is None:
        return source.open()
    from .in_memory import open_in_memory

    _refuse_slide_options(f"the {kind}", source)
    return _adjusted(open_in_memory(path, source.fullres, source.mpp, source.coordinate_system), source)


def _open(source: SectionSource) -> Section:
    url = url_of(source.path)
    if url is not None:
        _refuse_slide_options(url, source)
        return _adjusted(_open_url(url, source), source)
    path = _existing(source.path)
    with damage_as_section_error(path, "a tissue section"):
        if not path.is_dir() and not is_flat_sample(path):
            if path.is_file() and path.suffix.lower() == ".h5ad":
                from .h5ad import open_h5ad

                _refuse_slide_options(path, source)
                return _adjusted(open_h5ad(path, source.fullres, source.mpp, source.coordinate_system), source)
            if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
                raise SectionError(_about_file(path))
            if source.fullres is not None:
                raise SectionError(f"{path.name} is the slide image itself; leave --fullres (fullres=...) out")
            return _adjusted(open_slide(path, source.mpp, **source.slide_options), source)
        _refuse_slide_options(path, source)
        return _adjusted(_read(path, source), source)


def _open_url(url: str, source: SectionSource) -> Section:
    if url.lower().endswith((".h5ad", ".h5", ".zip", ".tar.gz", ".tgz", *IMAGE_SUFFIXES)):
        raise SectionError(
            f"{url} is a file, and only SpatialData stores (.zarr) are read from afar; download it and give its path"
        )
    return open_remote(url, source.fullres, source.mpp, source.coordinate_system)


def _existing(path: object) -> Path:
    if path == "":
        raise SectionError(f"the section cannot be opened: its path is empty; expected {_EXPECTED}")
    try:
        found = user_path(path)  # type: ignore[arg-type] # whatever was given; it refuses what is no path
    except BadFile as error:
        raise SectionError(f"the section cannot be opened: {error}. Expected {_EXPECTED}") from error
    if (public := named_section(found)) is not None:
        if not public.is_dir():
            raise missing_section(found.name)
        return public
    if not found.exists() and not is_flat_sample(found):
        raise SectionError(f"there is no file or folder {found}; expected {_EXPECTED}")
    # the folder's own name and those above it tell what it is; a file keeps its name, which that of a cache may lack
    return found.resolve() if found.is_dir() else found.parent.resolve() / found.name


def _kind_in_memory(section: object) -> str | None:
    """Return the kind of an object, None where it is neither a SpatialData nor an AnnData; imports neither."""
    for module, name in (("spatialdata", "SpatialData"), ("anndata", "AnnData")):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(section, getattr(loaded, name, ())):
            return name
    return None


def _adjusted(section: Section, source: SectionSource) -> Section:
    """Return a section with the source's orientation, factors and exclusions applied."""
    section = _note_spots_off_slide(oriented(section, source.orientation))
    section = section if source.factors is None else with_factors(section, source.factors)
    return section if source.exclude is None else exclude_file(section, source.exclude, source.exclude_classes)


def _note_spots_off_slide(section: Section) -> Section:
    off = spots_off_slide(section)
    if not off:
        return section
    note = counted(off, "spot lies", "spots lie")
    return dataclasses.replace(section, notes=(*section.notes, f"{note} off the slide image"))


def _refuse_slide_options(name: object, source: SectionSource) -> None:
    """Refuse options of plain images for a section with spots of its own."""
    if given := source.slide_options:
        raise SectionError(
            f"{name} has spots of its own: {', '.join(given)} is for plain H&E images; leave it out, or give the slide image alone"
        )


def _read(path: Path, source: SectionSource) -> Section:
    if _in_store(path):
        from .spatialdata_store import open_spatialdata

        return open_spatialdata(path, source.fullres, source.mpp, source.coordinate_system)
    given = None if source.fullres is None else resolve_fullres(source.fullres, path if path.is_dir() else path.parent)
    if not (path / "spatial").is_dir() and any(
        (path / "outs" / inner).exists() for inner in ("spatial", "binned_outputs", CELLS, EXPERIMENT)
    ):
        path = path / "outs"
    if (path / EXPERIMENT).is_file():
        return open_xenium(path, given, source.mpp)
    if holds_bins(path):
        section = open_visium_hd(path, given, source.mpp)
        return note_version(section, section.path or path)
    if holds_cells(path):
        return open_cells(path, given, source.mpp)
    if (path / _SLICE).is_file():
        raise SectionError(
            f"{path} has images of Visium HD ({_SLICE}) and no expression: binned_outputs, or segmented_outputs, is missing; put it there, or give its place"
        )
    if (path / "spatial").is_dir():
        return open_spaceranger(path, given, source.mpp)
    if is_flat_sample(path) or flat_samples(path):
        return open_flat(path, given, source.mpp)
    raise SectionError(f"{path} is no tissue section that can be read; expected {_EXPECTED}")


def synthesis_fault(section: Section, patch_mpp: float) -> str | None:
    """Return why patches cannot be synthesized from a section, or None where they can.

    Parameters
    ----------
    section
        From `open_section`.
    patch_mpp
        Microns per pixel of the checkpoint's patches.
    """
    mpp, image = section.calibration.mpp, section.image
    if mpp is None:
        return section.calibration.detail
    expected = section.expression.kind != "none"
    if expected and (section.spots.counts.nnz == 0 or not section.spots.counts.data.any()):
        return f"none of its {len(section.spots)} spots has a single count; there is no expression to condition on"
    off = spots_off_slide(section)
    if off > len(section.spots) / 2:
        return (
            f"{off} of {len(section.spots)} spots lie off the slide image, so the positions belong to another image, or their rows and "
            "columns are swapped; give the image that Space Ranger was run on with --fullres IMAGE, or the positions that it wrote for this one"
        )
    needed = "give the slide image that Space Ranger was run on with --fullres IMAGE (its fullres_image_file)"
    limit = COARSEST_IMAGE * patch_mpp
    if image is not None and mpp * image.pixel_size <= limit:
        return None
    if mpp > limit:
        return (
            f"the full-resolution image is missing, and by the section's scale it has {mpp:.3g} um/px, coarser than the "
            f"{limit:.3g} um/px that this checkpoint ({patch_mpp:.3g} um/px) can use; cells cannot be seen in it. A microscope "
            "image of the section, aligned by Space Ranger and given as --fullres IMAGE (its fullres_image_file), is needed"
            if image is None or image.pixel_size > 1
            else f"its image has {mpp:.3g} um/px, coarser than the {limit:.3g} um/px that this checkpoint ({patch_mpp:.3g} um/px) "
            "can use; a finer slide image is needed"
        )
    if image is None:
        return f"it has no slide image; {section.image_fault or needed}"
    return (
        f"its finest image ({Path(image.source).name}) has {mpp * image.pixel_size:.3g} um/px, coarser than the {limit:.3g} um/px "
        f"that this checkpoint ({patch_mpp:.3g} um/px) can use, and the full-resolution image is missing; {section.image_fault or needed}"
    )


def spots_off_slide(section: Section) -> int:
    """Return the number of spots with their centre off the slide image."""
    image, yx = section.image, section.spots.yx
    if image is None or not len(yx):
        return 0
    height, width = (side * image.pixel_size for side in image.shape)
    return int(((yx < 0) | (yx > (height, width))).any(axis=1).sum())


def _in_store(path: Path) -> bool:
    """Return whether a path is a zarr store or an element in one, by its content, whatever its name."""
    return any((p / name).is_file() for p in (path, *path.parents[:2]) for name in ("zarr.json", ".zgroup", ".zattrs"))


def _about_file(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".cloupe"):
        hint = "Loupe files cannot be read; give the 'outs' folder that it lies in"
    elif name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".gz")):
        hint = "unpack it first and give the folder"
    elif name.endswith(".h5"):
        hint = "a counts file alone has no slide; give the folder that it lies in"
    elif name.endswith((".mrxs", ".vms", ".czi", ".isyntax", ".bif")):
        hint = "this format of scanners is not read; export the slide as OME-TIFF or a pyramidal TIFF"
    else:
        hint = "give a folder"
    return f"{path} is a file: {hint}. Expected {_EXPECTED}"


_SAMPLES = {"breast": "sample_section", "colon": "sample_colon"}
_DATA = Path(__file__).resolve().parent.parent / "data"


def sample_folder(tissue: str = "breast") -> Path:
    """Return the folder of a sample section."""
    return _DATA / _SAMPLES[tissue]


def open_sample_section(tissue: Literal["breast", "colon"] = "breast") -> Section:
    """Open a sample section that comes with the package: of breast, or of mouse colon. Everything in them is synthetic.

    Raises
    ------
    SectionError
        There is none of this tissue, or the installation lacks it.
    """
    if tissue not in _SAMPLES:
        raise SectionError(f"there is no sample section of {tissue!r}; give one of {', '.join(_SAMPLES)}")
    folder = sample_folder(tissue)
    if not folder.is_dir():
        raise SectionError(f"the sample section is not at {folder}; install the package again")
    return open_section(folder)
