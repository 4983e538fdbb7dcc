"""What all tests share: a private home, the shared data where it is at hand, and a tiny section that is made on the spot."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from tiny import TINY_GENES, TINY_MPP, analytic_image, tiny_arrays

# before napari, Qt or a hub client is imported: nothing of the user's settings may leak into a test, nor out of it
_HOME = Path(tempfile.mkdtemp(prefix="stmdit-tests-"))
for _name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
    os.environ[_name] = str(_HOME / _name.lower())
    Path(os.environ[_name]).mkdir()
os.environ["NAPARI_CONFIG"] = ""  # settings of a viewer are in memory alone
os.environ["HF_HUB_OFFLINE"] = "1"

# the same few examples at every run, so that a failure belongs to the change it is seen with; nightly draws a hundred new ones
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=12)
settings.register_profile("random", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("STMDIT_EXAMPLES", "repeatable"))

POSIX_ALONE = (
    "fuzz/test_bad_input.py",
    "e2e/test_resume.py",
    "e2e/test_workers.py",
    "scale/test_cluster.py",
    "two_processes_save_into_one_store",
    "a_writer_that_is_killed",
    "an_interrupt_keeps_what_is_done",
    "a_killed_export_goes_on",
    "image_above_the_bins",
    "links_and_relative_paths",
    "again_by_a_link",
    "workers_leave_when_the_process",
    "what_is_in_the_way_is_refused",
)
"""Parts of the names of tests that send POSIX signals, or make links, pipes and modes that Windows has not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows leave out what only a POSIX system can do; the product's own code is the same."""
    for item in items if sys.platform == "win32" else ():
        if any(part in item.nodeid for part in POSIX_ALONE):
            item.add_marker(pytest.mark.skip(reason="needs POSIX signals, links, pipes or file modes"))


# looking for garbage takes a quarter of the time of imports, and of stores and viewers, which are many small objects
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage now and then, and pass over what is imported: it stays."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session")
def plugins_found() -> Iterator[None]:
    """Look for napari's plugins once: else each viewer does, and finds nothing new."""
    from npe2 import PluginManager

    PluginManager.instance().discover(include_npe1=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PluginManager, "discover", lambda *_, **__: 0)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real sections; they are not part of the repository."""
    data = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"../shared is not here: {data}")
    return data


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numeric fixtures made with the reference implementations; they are not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"../shared is not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """The tiny section as a Space Ranger 2 folder. Do not write in it."""
    return make_tiny_folder(tmp_path_factory.mktemp("tiny"))


def make_tiny_folder(place: Path) -> Path:
    """Write the tiny section as a Space Ranger 2 folder."""
    from napari_stmdit.tissue.st_array import write_spaceranger_folder
    from napari_stmdit.types import Genes

    folder = place / "tiny_section"
    write_spaceranger_folder(
        folder,
        image=analytic_image(),
        genes=Genes(np.array(TINY_GENES)),
        mpp=TINY_MPP,
        slide_name="slide.png",
        **tiny_arrays(),
    )
    return folder


@pytest.fixture(scope="session")
def tiny_zarr(tmp_path_factory) -> Path:
    """The tiny section as a SpatialData store, written with SpatialData itself. Do not write in it."""
    return make_tiny_zarr(tmp_path_factory.mktemp("tiny"))


def make_tiny_zarr(place: Path) -> Path:
    """Write the tiny section with SpatialData."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    arrays = tiny_arrays()
    n = len(arrays["ids"])
    slide = Image2DModel.parse(
        analytic_image(),
        dims=("y", "x", "c"),
        c_coords=["r", "g", "b"],
        scale_factors=[2],
        transformations={"tiny": Identity()},
    )
    spots = ShapesModel.parse(
        arrays["yx"][:, ::-1], geometry=0, radius=arrays["diameter"] / 2, transformations={"tiny": Identity()}
    )
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["spots"] * n),
            "instance": np.arange(n),
            "array_row": arrays["array_rc"][:, 0],
            "array_col": arrays["array_rc"][:, 1],
        },
        index=arrays["ids"],
    )
    adata = anndata.AnnData(arrays["counts"], obs=obs, var=pd.DataFrame(index=list(TINY_GENES)))
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    path = place / "tiny.zarr"
    SpatialData(images={"slide": slide}, shapes={"spots": spots}, tables={"table": table}).write(path)
    return path


@pytest.fixture(scope="session")
def opened_once(tiny_folder):
    """The tiny section; at the end it is what it was."""
    from napari_stmdit.tissue.open import open_section

    section = open_section(tiny_folder)
    yield section
    spots, again = section.spots, open_section(tiny_folder).spots
    np.testing.assert_array_equal(spots.yx, again.yx)
    np.testing.assert_array_equal(spots.counts.toarray(), again.counts.toarray())
    assert spots.ids.tolist() == again.ids.tolist()


@pytest.fixture
def tiny_section(opened_once):
    """The tiny section, opened from its folder: 30 spots, 20 genes, a smooth slide of 860 x 860 px at 0.7 um/px. Do not write in its arrays."""
    return replace(opened_once, spots=replace(opened_once.spots))
