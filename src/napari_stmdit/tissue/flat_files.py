"""Sections in flat files with a prefix, as on GEO (``GSMxxx_name_tissue_positions_list.csv.gz``), several in one folder.

Small files are unpacked into a temporary Space Ranger folder; slides stay where they are.
"""

from __future__ import annotations

import gzip
import re
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import SectionError
from ..files import is_packed
from ..text import shorten, some_of
from ..types import Section
from .counts import is_like_counts, lacks_counts
from .spaceranger import open_spaceranger, section_label

_MATRIX = "filtered_feature_bc_matrix"
_PLACES = {
    r"tissue_positions(_list)?\.(csv|parquet)": "spatial/{0}",
    r"scalefactors_json\.json": "spatial/{0}",
    r"tissue_(hires|lowres)_image\.png": "spatial/{0}",
    r"(filtered|raw)_feature_bc_matrix\.h5": "{0}",
    r"matrix\.mtx": f"{_MATRIX}/matrix.mtx",
    r"barcodes\.tsv": f"{_MATRIX}/barcodes.tsv",
    r"(features|genes)\.tsv": f"{_MATRIX}/features.tsv",
}
"""Names without prefix and ``.gz`` -> path in a Space Ranger folder."""
_NAME = re.compile(rf"^(?P<prefix>.*?)[_.-]?(?P<name>{'|'.join(_PLACES)})(?P<packed>\.gz)?$", re.IGNORECASE)
_NEEDED = ("tissue_positions", "scalefactors_json")
_KEPT: list[TemporaryDirectory[str]] = []
"""Folders of unpacked files; they stay until the process ends, as pictures in them are read lazily."""


def flat_samples(folder: Path) -> dict[str, dict[str, Path]]:
    """Return prefix -> name -> file of the samples with positions and scalefactors in a folder."""
    samples: dict[str, dict[str, Path]] = {}
    if not folder.is_dir():
        return {}
    for file in sorted(folder.iterdir()):
        found = _NAME.match(file.name)
        if found is None or not file.is_file():
            continue
        files = samples.setdefault(found["prefix"], {})
        name = found["name"].lower()
        if name in files:
            raise SectionError(
                f"{folder} holds {files[name].name} and {file.name}, which are the same file of one sample; keep one"
            )
        files[name] = file
    return {
        prefix: files
        for prefix, files in samples.items()
        if all(any(name.startswith(needed) for name in files) for needed in _NEEDED)
    }


def is_flat_sample(path: Path) -> bool:
    """Return whether a path, FOLDER/PREFIX, names a sample of a folder of flat files."""
    return not path.exists() and path.name in flat_samples(path.parent)


def open_flat(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open a sample of flat files.

    Parameters
    ----------
    path
        The folder, if it holds one sample, or FOLDER/PREFIX.
    fullres, mpp
        As for `spaceranger.open_spaceranger`; a slide with the sample's prefix is found by its size and appearance.

    Raises
    ------
    SectionError
        The folder holds several samples, or a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    samples = flat_samples(folder)
    prefix = next(iter(samples)) if path.is_dir() else path.name
    if path.is_dir() and len(samples) > 1:
        raise SectionError(
            f"{folder} holds files of {len(samples)} samples ({shorten(', '.join(samples))}); choose one by its prefix, {folder / prefix}"
        )
    place = TemporaryDirectory(prefix="stmdit-flat-")
    _KEPT.append(place)
    outs = Path(place.name) / "outs"
    (outs / "spatial").mkdir(parents=True)
    for name, file in samples[prefix].items():
        where = next(to for pattern, to in _PLACES.items() if re.fullmatch(pattern, name))
        _place(file, outs / where.format(name))
    if lacks_counts(outs):
        claimed = {file for files in samples.values() for file in files.values()}
        like = [file.name for file in sorted(folder.iterdir()) if file not in claimed and is_like_counts(file)]
        if like:
            raise SectionError(
                f"{folder} has no counts under the name of {prefix or 'its positions'}, but {some_of(like)}; if that are its counts, name them "
                f"{prefix}filtered_feature_bc_matrix.h5, else keep them elsewhere"
            )
    given, shown = str(outs), str(folder / prefix)
    try:
        section = open_spaceranger(outs, fullres, mpp, folder)
    except SectionError as error:
        raise SectionError(str(error).replace(given, shown)) from error
    name = section_label(prefix or folder.name)
    return replace(
        section,
        name=name,
        path=path,
        coordinate_systems={k.replace(section.name, name, 1): v for k, v in section.coordinate_systems.items()},
        notes=(f"files of {prefix or folder.name}", *(note.replace(given, shown) for note in section.notes)),
    )


def _place(file: Path, target: Path) -> None:
    """Put a file where Space Ranger has it, unpacked if it is packed, whatever its name says."""
    target.parent.mkdir(exist_ok=True)
    try:
        with gzip.open(file, "rb") if is_packed(file) else file.open("rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (OSError, EOFError) as error:
        raise SectionError(f"{file} cannot be unpacked: {error}") from error
