"""What other plugins are given to work on: napari-spatialdata's keys, with objects that fit each other and the layer."""

import numpy as np
import pytest

from napari_stmdit.tissue.in_memory import link_elements
from napari_stmdit.tissue.open import open_section

KEYS = {
    *("sdata", "adata", "name", "region_key", "instance_key", "table_names", "indices"),
    *("_n_indices", "_columns_df", "_current_cs", "_active_in_cs"),
}


@pytest.mark.parametrize("kind", ["tiny_folder", "tiny_zarr"])
def test_elements_table_and_spots_belong_together(kind, request):
    section = open_section(request.getfixturevalue(kind))
    meta = link_elements(section).metadata()
    assert set(meta) == KEYS
    element, adata = meta["sdata"][meta["name"]], meta["adata"]
    assert adata.obs_names.tolist() == section.spots.ids.tolist()  # as the points of the layer lie
    assert set(adata.obs[meta["region_key"]]) == {meta["name"]}
    assert adata.obs[meta["instance_key"]].tolist() == meta["indices"]
    assert meta["_n_indices"] == len(element) == len(section.spots)
    circles = element.loc[meta["indices"]].geometry
    np.testing.assert_allclose(np.column_stack([circles.y, circles.x]), section.spots.yx, atol=1e-6)
    (table,) = meta["table_names"]
    assert meta["sdata"].tables[table].uns["spatialdata_attrs"]["region"] in (meta["name"], [meta["name"]])
    gene = section.spots.genes.symbols[3]
    np.testing.assert_array_equal(
        np.asarray(adata[:, gene].X.todense()).ravel(), section.spots.counts[:, 3].toarray().ravel()
    )
    assert meta["_current_cs"] in meta["_active_in_cs"]


def test_the_spots_layer_carries_them_with_and_without_the_dock(tiny_zarr, tiny_folder):
    from napari.components import ViewerModel

    from napari_stmdit.tissue.open import SectionSource
    from napari_stmdit.ui import layers, manifest
    from napari_stmdit.ui.jobs import start_inline
    from napari_stmdit.ui.presenter import Presenter

    *_, (_, state, _) = manifest.read_section(str(tiny_zarr))
    assert KEYS <= set(state["metadata"])
    viewer = ViewerModel()
    presenter = Presenter(viewer, start_inline)
    presenter.load_model = lambda choice: None  # no checkpoint is needed here
    presenter.open(SectionSource(path=str(tiny_folder)))
    spots = viewer.layers[-1]
    assert KEYS <= set(spots.metadata)
    assert layers.role_of(spots) == "spots"
    assert spots.metadata["adata"].n_obs == len(spots.data)
