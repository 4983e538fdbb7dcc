"""Image files say, in words and to programs, whether a model made them or changed tissue in them."""

from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_stmdit.tissue.export import (
    EDITED,
    EDITED_SYNTHETIC,
    NEW,
    SLIDE,
    TIFF_TAG,
    Placement,
    label_of_result,
    labelled,
    png_of,
    write_ome_tiff,
)

SOURCE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
PIXELS = np.full((8, 8, 3), 200, np.uint8)


def source_in(packet):
    return ElementTree.fromstring(packet).find(f".//{SOURCE}").text


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("label", [NEW, EDITED, replace(EDITED, statement="a < b & 'c'")])
def test_a_label_is_read_back_by_pillow(label, ending, tmp_path):
    path = tmp_path / f"image{ending}"
    Image.fromarray(PIXELS).save(path, **labelled(label, path))
    with Image.open(path) as image:
        image.load()
        packet = image.tag_v2[TIFF_TAG] if ending == ".tif" else image.info["xmp"]
    assert source_in(packet) == label.source
    words = ElementTree.fromstring(packet).find(".//{http://purl.org/dc/elements/1.1/}description")
    assert "".join(words.itertext()) == label.statement


def test_edited_and_new_tissue_have_the_types_of_iptc():
    assert NEW.source == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert EDITED.source == "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def test_the_provenance_says_what_a_result_is():
    assert label_of_result({}) is NEW  # of before tissue could be edited
    assert label_of_result({"counterfactual": True, "section": {"synthetic": False}}) is EDITED
    assert label_of_result({"counterfactual": True, "section": {"synthetic": True}}) is EDITED_SYNTHETIC


def test_an_ome_tiff_of_an_edit_says_so(tmp_path):
    rgba = np.full((600, 600, 4), 200, np.uint8)
    path = write_ome_tiff(tmp_path / "edit", rgba, Placement((0.0, 0.0), 0.5), "edit", {"counterfactual": True})
    with tifffile.TiffFile(path) as tif:
        assert source_in(tif.pages[0].tags[TIFF_TAG].value) == EDITED.source
        assert EDITED.statement in tif.ome_metadata and EDITED.title in tif.ome_metadata


def test_a_crop_of_a_real_slide_has_no_synthetic_source():
    with Image.open(BytesIO(png_of(PIXELS, 0.5, SLIDE))) as image:
        image.load()
        assert "xmp" not in image.info and image.text["Description"] == SLIDE.statement


def test_a_file_that_takes_no_label_is_refused():
    with pytest.raises(ValueError, match="into PNG, JPEG and TIFF"):
        labelled(NEW, "image.bmp")
