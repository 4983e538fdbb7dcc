"""Plain slides in the workbench: the scale is asked for, and results say that no measured expression was used. No Qt, no screen."""

import pytest
from napari.components import ViewerModel
from slides import tissue_picture, write_pyramid, write_table
from standins import CropModel, card_for
from tiny import TINY_GENES

from napari_stmdit.evaluation.evaluate import opened_with
from napari_stmdit.intent import Request
from napari_stmdit.tissue.open import SectionSource, open_section
from napari_stmdit.ui import layers, manifest
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.widgets.section import SectionPanel


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide that does not state its scale."""
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", tissue_picture())


@pytest.fixture
def presenter():
    viewer = ViewerModel()
    made = Presenter(viewer, start_inline)
    made.use_model(CropModel(card_for(TINY_GENES)))
    yield made
    made.close()


def test_the_scale_is_asked_for_and_then_the_slide_opens(presenter, slide):
    presenter.open(SectionSource(path=str(slide)))
    state = presenter.state
    assert state.section is None and state.scale_asked == str(slide)
    assert state.message.kind == "error" and "does not state how large" in state.message.text
    presenter.open(SectionSource(path=str(slide), mpp=0.5, grid_pitch=150.0))
    assert state.scale_asked == "" and state.section.kind == "image"
    assert any("150 um apart" in note for note in state.section.notes)
    assert presenter.section_fault() == "" and len(presenter.view.spots.data) == len(state.section.spots)


def test_another_fault_asks_for_no_scale(presenter, slide, tmp_path):
    presenter.open(SectionSource(path=str(tmp_path / "nothing.tif")))
    assert presenter.state.scale_asked == "" and presenter.state.message.kind == "error"


@pytest.mark.parametrize("stated", [False, True])
def test_a_run_on_a_slide_is_named_for_what_it_lacks(presenter, slide, stated):
    presenter.open(SectionSource(path=str(slide), mpp=0.5))
    state = presenter.state
    if stated:  # as of a result of another section, whose request was taken into the form
        state.request = Request(expression="own")
    presenter.select(state.section.spots.ids[:2].tolist())
    assert not state.faults and any("no measured expression" in note for note in state.notes)
    presenter.runs.run()
    (entry,) = state.results
    assert "synthetic" in entry.name and "no expression" in entry.name
    assert presenter.results.layer(entry.number).name == entry.name
    assert entry.provenance["section"]["expression"]["kind"] == "none"


def test_a_predicted_table_can_be_coloured_by_and_names_the_run(presenter, slide, tmp_path):
    table = write_table(tmp_path / "mine.h5ad", open_section(slide, mpp=0.5).spots.yx)
    presenter.open(SectionSource(path=str(slide), mpp=0.5, predicted_expression=str(table)))
    state = presenter.state
    assert presenter.gene_overlap() == (20, 20)
    presenter.select(state.section.spots.ids[:2].tolist())
    presenter.runs.run()
    assert "predicted expression" in state.results[0].name


def test_ordinary_images_are_left_to_others(slide):
    """Slides are opened from the dock; napari asks no question about a TIFF because this plugin is there."""
    from importlib.resources import files
    from pathlib import Path

    from npe2 import PluginManifest

    found = PluginManifest.from_file(Path(str(files("napari_stmdit").joinpath("napari.yaml"))))
    patterns = [pattern for reader in found.contributions.readers for pattern in reader.filename_patterns]
    assert patterns == ["*.zarr", "*.h5ad", "*.geojson", "stmdit://*"]
    assert manifest.get_reader(str(slide)) is None and manifest.get_reader(str(slide.with_suffix(".svs"))) is None


def test_a_stored_slides_layers_say_it(presenter, slide, tmp_path):
    presenter.open(SectionSource(path=str(slide), mpp=0.5))
    presenter.select(presenter.state.section.spots.ids[:1].tolist())
    presenter.runs.run()
    presenter.state.results[0].result.save(tmp_path / "out.zarr")
    tuples = manifest.read_section(str(tmp_path / "out.zarr"))
    names = [state["name"] for _, state, kind in tuples if kind == "image"]
    assert names[1] == "as measured, grid_001x003 (synthetic, no expression, stmdit_1)"
    assert all(layers.make(data) is not None for data in tuples)


def test_a_table_with_spots_is_read_and_any_other_left_alone(tmp_path):
    import h5py

    from napari_stmdit.ui.manifest import get_reader

    for name, groups in (("spots", ("uns/spatial", "obsm/spatial")), ("cells", ("uns",))):
        with h5py.File(tmp_path / f"{name}.h5ad", "w") as file:
            for group in groups:
                file.create_group(group)
    (tmp_path / "torn.h5ad").write_bytes(b"x")
    assert get_reader(str(tmp_path / "spots.h5ad")) is not None
    assert get_reader(str(tmp_path / "cells.h5ad")) is None and get_reader(str(tmp_path / "torn.h5ad")) is None


def test_factors_in_place_of_counts_are_named_where_a_section_is_opened(presenter, tiny_folder, tmp_path, qtbot):
    import pandas as pd

    ids = open_section(tiny_folder).spots.ids
    pd.DataFrame({"mucosa": range(len(ids)), "muscle": 5}, index=ids).to_csv(tmp_path / "factors.csv")
    panel = SectionPanel()
    qtbot.addWidget(panel)
    panel.path.setText(str(tiny_folder))
    panel.factors.setText(str(tmp_path / "factors.csv"))
    presenter.open(panel.value())
    section = presenter.state.section
    assert section.expression.kind == "factors" and section.spots.genes.symbols.tolist() == ["mucosa", "muscle"]
    panel.setValue(SectionSource(path="slide.tif"))
    assert panel.value().factors is None and not panel.factors.text()
    # what is learned from the section, and how it is opened again, keeps them
    assert opened_with(section)["--factors"] == str(tmp_path / "factors.csv")
    assert presenter.keeping._source_of(section).factors is not None
