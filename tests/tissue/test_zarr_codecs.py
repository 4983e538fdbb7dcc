"""A store that names a codec which unpickles is refused by its metadata: nothing of it is decoded, whatever the codec's version does."""

from __future__ import annotations

import json
import shutil

import pytest

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.zarr_codecs import refuse_pickles

PICKLED = {"id": "pickle", "protocol": 5}


@pytest.fixture
def store(tiny_zarr, tmp_path):
    """The tiny section in zarr 2, with its consolidated metadata."""
    import spatialdata
    from spatialdata._io.format import SpatialDataContainerFormatV01

    spatialdata.read_zarr(tiny_zarr).write(tmp_path / "s.zarr", sdata_formats=SpatialDataContainerFormatV01())
    return tmp_path / "s.zarr"


def make_pickled(store, key="filters", value=None):
    """Let the names of the table's rows be pickled, and the chunk hold a pickle that leaves a file behind."""
    import pickle

    class Trap:
        def __reduce__(self):
            return open, (str(store.parent / "ran"), "w")

    place = store / "tables/table/obs/_index"
    if not (place / ".zarray").exists():
        place /= "values"  # of AnnData 0.13, beside a mask
    content = json.loads((place / ".zarray").read_text())
    content[key] = [PICKLED] if value is None else value
    content["compressor"] = content["compressor"] if key == "compressor" else None
    (place / ".zarray").write_text(json.dumps(content))
    for chunk in place.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Trap()))
    for name in (".zmetadata", "zmetadata"):
        (store / name).unlink(missing_ok=True)


def test_a_pickled_array_is_refused_and_never_decoded(store, monkeypatch):
    import numcodecs

    def decode(*_):
        (store.parent / "ran").write_text("")

    monkeypatch.setattr(numcodecs.Pickle, "decode", decode)  # as versions before 0.16 would
    make_pickled(store)
    with pytest.raises(
        SectionError, match="tables/table/obs/_index(/values)?/.zarray an array of it is pickled.*Nothing was run"
    ):
        open_section(store)
    assert not (store.parent / "ran").exists()


def test_a_pickle_that_consolidated_metadata_alone_name_is_seen(store):
    (store / ".zmetadata").write_text(
        json.dumps({"metadata": {"tables/table/obs/_index/.zarray": {"dtype": "|O", "filters": [PICKLED]}}})
    )
    with pytest.raises(SectionError, match="pickled"):
        open_section(store)


def test_a_pickle_in_zarr_3_is_seen(tiny_zarr, tmp_path):
    store = shutil.copytree(tiny_zarr, tmp_path / "s.zarr")
    file = store / "tables/table/obs/_index/zarr.json"
    content = json.loads(file.read_text())
    content["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    file.write_text(json.dumps(content))
    with pytest.raises(SectionError, match="pickled"):
        open_section(store)


def test_metadata_that_cannot_be_read_are_not_passed_over(tiny_zarr, tmp_path):
    store = shutil.copytree(tiny_zarr, tmp_path / "s.zarr")
    with (store / "tables/table/zarr.json").open("ab") as file:
        file.write(b" " * 65_000_000)
    with pytest.raises(SectionError, match="more than 64 are not expected"):
        open_section(store)


def test_a_pickle_of_an_array_called_as_metadata_are_is_seen(store):
    node = {"attributes": {"zarr_format": 2, "dtype": "|O", "filters": [PICKLED]}}
    (store / "zmetadata").write_text(json.dumps({"metadata": node}))
    with pytest.raises(SectionError, match="pickled"):
        refuse_pickles(store)


def test_codecs_that_only_pack_are_taken_and_words_of_the_user_are_none(store):
    attrs = store / "tables/table/uns/.zattrs"
    attrs.write_text(json.dumps(json.loads(attrs.read_text()) | {"attributes": {"name": "pickled cucumbers"}}))
    (store / "zmetadata").write_text(json.dumps({"metadata": {"images/.zattrs": {"name": "pickle"}}}))
    refuse_pickles(store)
    (store / "zmetadata").unlink()
    assert open_section(store).spots.ids[0] == "SPOT00-1"


def test_links_in_a_circle_are_followed_once(store):
    (store / "tables/table/again").symlink_to(store / "tables")
    refuse_pickles(store)
