"""Image files labelled as synthetic or edited, in words and in XMP for programs.

The machine-readable part is IPTC's digital source type, a property of XMP (ISO 16684-1): embedded in PNG as an iTXt chunk, in TIFF as
tag 700, in JPEG as an APP1 segment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd


_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
NEW_TYPE = _TYPES + "trainedAlgorithmicMedia"
EDITED_TYPE = _TYPES + "compositeWithTrainedAlgorithmicMedia"
TIFF_TAG = 700
_PNG_KEYWORD = "XML:com.adobe.xmp"
_JPEG_START = b"http://ns.adobe.com/xap/1.0/\x00"

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{title}</rdf:li></rdf:Alt></dc:title>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class Label:
    """Label of an image.

    Attributes
    ----------
    title
        Short name, for images and layers.
    statement
        A sentence or two.
    source
        IPTC's digital source type, an address; empty for a plain photograph, which gets no XMP.
    """

    title: str
    statement: str
    source: str

    @property
    def xmp(self) -> bytes:
        """The XMP packet, UTF-8."""
        words = {name: escape(getattr(self, name)) for name in ("source", "title")}
        return _PACKET.format(description=escape(self.statement), **words).encode()


NEW = Label("synthetic", "Synthetic image made by a generative model. Not for diagnosis.", NEW_TYPE)
EDITED = Label(
    "edited real tissue, synthetic",
    "Edited image of real tissue: a generative model made what differs from the slide. Not for diagnosis.",
    EDITED_TYPE,
)
EDITED_SYNTHETIC = Label(
    "edited tissue, synthetic",
    "Edited image of a synthetic section: a generative model made what differs from its slide, and the slide. Not for diagnosis.",
    EDITED_TYPE,
)
SLIDE = Label("slide", "Crop of the section's slide image, not synthesized.", "")
SYNTHETIC_SLIDE = Label(
    "synthetic slide", "Crop of the slide image of a synthetic section. Not for diagnosis.", NEW_TYPE
)


def label_of(edited: bool, synthetic_section: bool) -> Label:
    """Return the label of a run's images: new tissue, or edited tissue of the section."""
    if not edited:
        return NEW
    return EDITED_SYNTHETIC if synthetic_section else EDITED


def label_of_result(provenance: Mapping[str, Any]) -> Label:
    """Return the label of a result by its provenance; one written before tissue could be edited is new tissue."""
    section = provenance.get("section")
    synthetic = bool(section.get("synthetic")) if isinstance(section, Mapping) else False
    return label_of(bool(provenance.get("counterfactual", False)), synthetic)


def labelled(label: Label, path: str | Path = ".png", **texts: str) -> dict[str, Any]:
    """Return the options of Pillow's ``save`` that write a label into a PNG, JPEG or TIFF file, by its ending.

    ``texts`` are further texts of a PNG file, by keyword.
    """
    ending = Path("x" + str(path)).suffix.lower()
    if ending == ".png":
        from PIL.PngImagePlugin import PngInfo

        words = PngInfo()
        words.add_text("Description", label.statement)
        for keyword, text in texts.items():
            words.add_itxt(keyword, text)
        if label.source:
            words.add_itxt(_PNG_KEYWORD, label.xmp.decode())
        return {"pnginfo": words}
    if not label.source:
        return {}
    if ending in (".jpg", ".jpeg"):
        body = _JPEG_START + label.xmp
        return {"extra": b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body, "comment": label.statement.encode()}
    if ending in (".tif", ".tiff"):
        return {"tiffinfo": {TIFF_TAG: label.xmp}, "description": label.statement}
    raise ValueError(f"a label is written into PNG, JPEG and TIFF files, not into {ending or path!r}")


# Results into files for other programs: OME-Zarr, OME-TIFF, and patches with a table.


_CHUNK = 512


@dataclass(frozen=True)
class Placement:
    """Placement of an image on its slide: its corner (y, x) and pixel size, in microns from the slide's corner."""

    origin_um: tuple[float, float]
    pixel_um: float


def write_ome_zarr(
    path: str | Path, rgba: NDArray[np.uint8], place: Placement, name: str, provenance: Mapping[str, Any]
) -> Path:
    """Write an image as an OME-Zarr multiscale of its own.

    Parameters
    ----------
    path
        New folder; ``.zarr`` is added where it is missing.
    rgba
        (h, w, 4) uint8; alpha 0 where nothing was synthesized.
    place
        Its place, as scale and translation of every level in microns. Viewers put a pixel's centre at its coordinate, so the
        translation is that of the first pixel's centre.
    name
        Name of the image.
    provenance
        Kept in the group's attributes under ``stmdit``; JSON types only.

    Raises
    ------
    StoreError
        The path is taken or cannot be written.
    """
    import zarr
    from ome_zarr.writer import write_multiscales_metadata

    levels = [np.moveaxis(level, -1, 0) for level in _pyramid(rgba)]
    datasets = []
    for halvings in range(len(levels)):
        pixel = place.pixel_um * 2**halvings
        corner = [0.0, *(origin + pixel / 2 for origin in place.origin_um)]
        scale = {"type": "scale", "scale": [1.0, pixel, pixel]}
        shift = {"type": "translation", "translation": corner}
        datasets.append({"path": str(halvings), "coordinateTransformations": [scale, shift]})
    axes = [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]

    def write(scratch: Path) -> None:
        group = zarr.open_group(scratch, mode="w")
        # not write_multiscale: that of ome-zarr 0.21 drops the units, and is about to lose the translation
        for dataset, level in zip(datasets, levels, strict=True):
            chunks, names = (4, _CHUNK, _CHUNK), ("c", "y", "x")
            group.create_array(dataset["path"], data=level, chunks=chunks, dimension_names=names)
        write_multiscales_metadata(group, datasets, axes=axes, name=name)
        group.attrs["stmdit"] = json.loads(json.dumps(dict(provenance)))

    return _written(path, ".zarr", write)


def write_ome_tiff(
    path: str | Path, rgba: NDArray[np.uint8], place: Placement, name: str, provenance: Mapping[str, Any]
) -> Path:
    """Write an image as a tiled, pyramidal OME-TIFF with physical size, place and provenance.

    Transparent pixels are white: QuPath and others drop alpha, and would take black for stain.

    Parameters
    ----------
    path
        New file; ``.ome.tif`` is added where it is missing.
    rgba, place, name
        As for `write_ome_zarr`; the place goes into ``PositionX`` and ``PositionY`` (of the image's corner).
    provenance
        Written as JSON in the OME description and in an annotation; JSON types only.

    Raises
    ------
    StoreError
        The path is taken or cannot be written.
    """
    import tifffile

    record = json.dumps(dict(provenance))
    label = label_of_result(provenance)
    levels = [_white_where_clear(level) for level in _pyramid(rgba)]
    metadata = {
        "axes": "YXS",
        "Name": name,
        "Description": f"{label.statement}\n{record}",
        "PhysicalSizeX": place.pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": place.pixel_um,
        "PhysicalSizeYUnit": "µm",
        "Plane": {
            "PositionY": [place.origin_um[0]],
            "PositionYUnit": ["µm"],
            "PositionX": [place.origin_um[1]],
            "PositionXUnit": ["µm"],
        },
        "MapAnnotation": {
            "Namespace": "napari-stmdit",
            "synthetic": "true",
            "label": label.title,
            "statement": label.statement,
            "provenance": record,
        },
    }
    options = {
        "photometric": "rgb",
        "extrasamples": ["unassalpha"],
        "tile": (256, 256),
        "compression": "zlib",
        "resolutionunit": "CENTIMETER",
    }
    xmp = [(TIFF_TAG, "B", len(label.xmp), label.xmp, True)]

    def write(scratch: Path) -> None:
        with tifffile.TiffWriter(scratch, bigtiff=rgba.nbytes > 2**31, ome=True) as tif:
            for k, level in enumerate(levels):
                per_cm = 1e4 / (place.pixel_um * 2**k)
                own: dict[str, Any] = (
                    {"metadata": metadata, "subifds": len(levels) - 1, "extratags": xmp}
                    if k == 0
                    else {"subfiletype": 1}
                )
                tif.write(level, resolution=(per_cm, per_cm), **own, **options)

    return _written(path, ".ome.tif", write)


def write_patches(
    path: str | Path,
    patches: Iterable[NDArray[np.uint8]],
    names: Sequence[str],
    table: pd.DataFrame,
    pixel_um: float,
    provenance: Mapping[str, Any],
) -> Path:
    """Write labelled patches as PNG files into a new folder, with a table as CSV and Parquet and the provenance as JSON.

    Parameters
    ----------
    path
        New folder; it gets ``patches/*.png``, ``patches.csv``, ``patches.parquet`` and ``provenance.json``.
    patches
        n images (h, w, 3) uint8, taken one by one.
    names
        n names for the files; characters that files may not have are replaced.
    table
        n rows; columns ``file``, ``synthetic`` and ``label`` are added.
    pixel_um
        Microns per pixel, written into the PNG files as their resolution.
    provenance
        JSON types only.

    Raises
    ------
    StoreError
        The path is taken or cannot be written.
    """
    files, label = _file_names(names), label_of_result(provenance)

    def write(scratch: Path) -> None:
        (scratch / "patches").mkdir(parents=True)
        for pixels, file in zip(patches, files, strict=True):
            (scratch / file).write_bytes(png_of(pixels, pixel_um, label))
        whole = table.assign(file=files, synthetic=True, label=label.title)
        whole.to_csv(scratch / "patches.csv", index=False)
        whole.to_parquet(scratch / "patches.parquet", index=False)
        (scratch / "provenance.json").write_text(json.dumps(dict(provenance), indent=2), encoding="utf-8")

    return _written(path, "", write)


def png_of(pixels: NDArray[np.uint8], pixel_um: float, label: Label = NEW) -> bytes:
    """Return an image (h, w, 3) uint8 as a PNG file with its label and resolution."""
    from PIL import Image

    dpi, file = 25400 / pixel_um, BytesIO()
    Image.fromarray(pixels).save(file, format="png", dpi=(dpi, dpi), **labelled(label))
    return file.getvalue()


def _file_names(names: Sequence[str]) -> list[str]:
    """Return one file name a patch; names that differ only in case get a number."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"[^0-9A-Za-z_.-]", "_", name) or "patch"
        number, free = 1, stem
        while free.lower() in taken:
            number += 1
            free = f"{stem}_{number}"
        taken.add(free.lower())
        found.append(f"patches/{free}.png")
    return found


def _pyramid(rgba: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return the image and its halvings, with colours weighted by alpha."""
    from .crops import computed
    from .elements import halved_rgba
    from .images import MIN_LEVEL_PX

    levels = [*computed(rgba)]
    while max(levels[-1].shape[:2]) > MIN_LEVEL_PX and min(levels[-1].shape[:2]) > 1:
        levels.append(np.ascontiguousarray(np.moveaxis(halved_rgba(np.moveaxis(levels[-1], -1, 0)), 0, -1)))
    return levels


def _white_where_clear(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    clear = rgba[..., 3:] == 0
    return np.where(clear & np.array([True, True, True, False]), np.uint8(255), rgba)


def _written(path: str | Path, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write beside a path and move into place; refuse a path that is taken."""
    path = Path(path).expanduser()
    if suffix and not path.name.lower().endswith((suffix, suffix.replace(".tif", ".tiff"))):
        path = path.with_name(path.name + suffix)
    if os.path.lexists(path):
        raise StoreError(f"{path} is already there; nothing is overwritten, give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, new=True) as draft:
            write(draft)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be written: {error}; nothing was left behind") from error
    return path
