"""What an image file says of itself: a model made it, or changed tissue in it. In words, and in XMP for programs that read it.

The machine-readable part is IPTC's digital source type, a property of XMP (ISO 16684-1): embedded in PNG as an iTXt chunk, in TIFF as
tag 700, in JPEG as an APP1 segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

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
    """What an image is.

    Attributes
    ----------
    title
        In a few words, for names of images and layers.
    statement
        In a sentence or two.
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
    """Return the label of what a run makes: new tissue, or an edit of a section's own."""
    if not edited:
        return NEW
    return EDITED_SYNTHETIC if synthetic_section else EDITED


def label_of_result(provenance: Mapping[str, Any]) -> Label:
    """Return the label of a result by its provenance; one written before tissue could be edited is new tissue."""
    section = provenance.get("section")
    synthetic = bool(section.get("synthetic")) if isinstance(section, Mapping) else False
    return label_of(bool(provenance.get("counterfactual", False)), synthetic)


def labelled(label: Label, path: str | Path = ".png", **texts: str) -> dict[str, Any]:
    """Return the options with which Pillow's ``save`` writes a label into a PNG, JPEG or TIFF file, known by its ending.

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
