"""The one door for sections: whatever is on disk comes out as a `Section`, or is refused with a reason."""

from __future__ import annotations

import dataclasses
import filecmp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SectionError
from ..files import BadFile, user_path
from ..types import PredictedUnits, Section
from .images import IMAGE_SUFFIXES
from .zarr_codecs import told_as_damage

if TYPE_CHECKING:
    from .slide import SlideOptions

COARSEST_IMAGE = 1.5
"""How many times coarser than the checkpoint's scale a slide image may be to be synthesized from."""

_EXPECTED = (
    "a Space Ranger folder (with 'spatial' and filtered_feature_bc_matrix.h5), a Visium HD folder (binned_outputs or one of its "
    "square_* folders), a SpatialData .zarr, or a plain H&E image"
)


@dataclass(frozen=True)
class SectionSource:
    """Where a section is and how it is to be opened, for those who open it for themselves: the arguments of `open_section`."""

    path: Path
    fullres: Path | str | None = None
    mpp: float | None = None
    grid_pitch: float | None = None
    tissue_fraction: float | None = None
    predicted_expression: Path | str | None = None
    predicted_units: PredictedUnits | None = None

    def open(self) -> Section:
        """Open the section."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return open_section(given.pop("path"), **given)

    def absolute(self) -> SectionSource:
        """Return it with the paths of its files absolute, for processes with a working directory of their own.

        A ``fullres`` that is no file here stays as it is: it may be the name of an image, or lie in the section's folder.
        """
        fullres, table = (
            None if p is None else Path(p).expanduser() for p in (self.fullres, self.predicted_expression)
        )
        return dataclasses.replace(
            self,
            path=Path(self.path).expanduser().absolute(),
            fullres=fullres.absolute() if fullres is not None and fullres.is_file() else self.fullres,
            predicted_expression=None if table is None else table.absolute(),
        )


def open_section(
    path: str | Path,
    fullres: str | Path | None = None,
    mpp: float | None = None,
    *,
    coordinate_system: str | None = None,
    grid_pitch: float | None = None,
    tissue_fraction: float | None = None,
    predicted_expression: str | Path | None = None,
    predicted_units: PredictedUnits | None = None,
) -> Section:
    """Open one tissue section.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder (versions 1 to 3), a Visium HD ``binned_outputs`` folder or one of its ``square_*``,
        a SpatialData .zarr with Visium spots, or a plain H&E image. Where a store holds several sets of spots,
        ``STORE.zarr/shapes/NAME``.
    fullres
        The full-resolution slide image. A relative path is looked for in the working directory and in ``path``. For a
        SpatialData store also the name of one of its images.
    mpp
        Microns per full-resolution pixel; overrides what the files say.
    coordinate_system
        Of a SpatialData store, where spots and slide are brought together; needed only if they lie differently in several.
    grid_pitch, tissue_fraction, predicted_expression, predicted_units
        Of a plain image: its virtual spots, and a table of expression that was predicted for them; see
        `napari_stmdit.tissue.slide.SlideOptions`.

    Returns
    -------
    Section
        With the finest image available, opened lazily, the spots on tissue, and the calibration with its source.

    Raises
    ------
    SectionError
        Where it cannot be read, or something would have to be guessed; `ScaleError` where that is the scale of a plain image.
    """
    from .slide import SlideOptions, open_slide

    try:
        path = user_path(path)
    except BadFile as error:
        raise SectionError(f"the section cannot be opened: {error}. Expected {_EXPECTED}") from error
    if not path.exists():
        raise SectionError(f"there is no file or folder {path}; expected {_EXPECTED}")
    options = SlideOptions(grid_pitch, tissue_fraction, predicted_expression, predicted_units)
    with told_as_damage(path, "a tissue section"):
        if not path.is_dir():
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                if fullres is not None:
                    raise SectionError(f"{path.name} is the slide image itself; leave --fullres (fullres=...) out")
                return open_slide(path, mpp, options)
            raise SectionError(_about_file(path))
        _refuse_slide_options(path, options)
        section = _read(path, fullres, mpp, coordinate_system)
        off = spots_off_slide(section)
    if not off:
        return section
    note = "1 spot lies" if off == 1 else f"{off} spots lie"
    return dataclasses.replace(section, notes=(*section.notes, f"{note} off the slide image"))


def _refuse_slide_options(path: Path, options: SlideOptions) -> None:
    """A section with spots of its own has no use for a virtual grid, and its expression is not replaced."""
    if options.given:
        raise SectionError(
            f"{path} has spots of its own: {', '.join(options.given)} is for plain H&E images; leave it out, or give the slide image alone"
        )


def _read(path: Path, fullres: str | Path | None, mpp: float | None, coordinate_system: str | None) -> Section:
    """Open a folder with the reader for its layout."""
    if _in_store(path):
        from .spatialdata_store import open_spatialdata

        return open_spatialdata(path, fullres, mpp, coordinate_system)
    given = None if fullres is None else resolve_fullres(fullres, path)
    if not (path / "spatial").is_dir() and any(
        (path / "outs" / inner).is_dir() for inner in ("spatial", "binned_outputs")
    ):
        path = path / "outs"
    if _is_visium_hd(path):
        from .spaceranger import open_visium_hd

        return open_visium_hd(path, given, mpp)
    if (path / "spatial").is_dir():
        from .spaceranger import open_spaceranger

        return open_spaceranger(path, given, mpp)
    raise SectionError(f"{path} is no tissue section that can be read; expected {_EXPECTED}")


def resolve_fullres(fullres: str | Path, section: Path) -> Path:
    """Find the full-resolution image in the working directory or in the section's folder.

    Raises
    ------
    SectionError
        Where it is in neither, or two different files are meant.
    """
    try:
        given = user_path(fullres)
    except BadFile as error:
        raise SectionError(f"--fullres {fullres!r} cannot be opened: {error}") from error
    if given.is_absolute():
        if not given.is_file():
            raise SectionError(f"there is no image file {given}")
        return given
    here, there = Path.cwd() / given, section / given
    if here.is_file() and there.is_file():
        if not here.samefile(there) and not filecmp.cmp(here, there, shallow=False):
            raise SectionError(
                f"--fullres {fullres} may mean {here} or {there}, and they differ; give the absolute path of the right one"
            )
        return there
    if here.is_file():
        return here
    if there.is_file():
        return there
    raise SectionError(f"--fullres {fullres} is neither {here} nor {there}; give the path of the image")


def synthesis_fault(section: Section, patch_mpp: float) -> str | None:
    """Say why patches cannot be synthesized from a section, or None where they can.

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
        f"that this checkpoint ({patch_mpp:.3g} um/px) can use, and the full-resolution image is missing; {needed}"
    )


def spots_off_slide(section: Section) -> int:
    """Return how many spots have their centre off the slide image."""
    image, yx = section.image, section.spots.yx
    if image is None or not len(yx):
        return 0
    height, width = (side * image.pixel_size for side in image.shape)
    return int(((yx < 0) | (yx > (height, width))).any(axis=1).sum())


def _in_store(path: Path) -> bool:
    """Whether the path is a zarr store or an element in one; a folder is what it holds, not what it is called."""
    return any((p / name).is_file() for p in (path, *path.parents[:2]) for name in ("zarr.json", ".zgroup", ".zattrs"))


def _is_visium_hd(path: Path) -> bool:
    """Whether a folder holds bins, or folders of bins; beside these ``outs`` has a ``spatial`` of images alone."""
    if (path / "spatial").is_dir() and path.name.startswith("square_"):
        return True
    if (path / "spatial" / "tissue_positions.parquet").is_file():
        return True
    return any((p / "spatial").is_dir() for p in [*path.glob("square_*"), *path.glob("binned_outputs/square_*")])


def _about_file(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".cloupe"):
        hint = "Loupe files cannot be read; give the 'outs' folder that it lies in"
    elif name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".gz")):
        hint = "unpack it first and give the folder"
    elif name.endswith((".h5", ".h5ad")):
        hint = "a counts file alone has no slide; give the folder that it lies in"
    elif name.endswith((".mrxs", ".vms", ".czi", ".isyntax", ".bif")):
        hint = "this format of scanners is not read; export the slide as OME-TIFF or a pyramidal TIFF"
    else:
        hint = "give a folder"
    return f"{path} is a file: {hint}. Expected {_EXPECTED}"
