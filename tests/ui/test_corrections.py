"""Spots that lie the wrong way round are offered to be laid right, and spots are excluded: nothing happens unasked. No Qt."""

import json
from dataclasses import replace

import pytest
from napari.components import ViewerModel

from napari_stmdit.tissue.alignment import oriented
from napari_stmdit.tissue.open import open_sample_section, open_section
from napari_stmdit.tissue.selections import write_selections
from napari_stmdit.ui import manifest
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import known_presenter, presenter_of


@pytest.fixture(scope="module")
def sample():
    return open_sample_section()


@pytest.fixture
def presenter(viewer, monkeypatch):
    made = presenter_of(viewer, start_inline)
    monkeypatch.setattr(made, "load_model", lambda choice: None)
    return made


def test_right_spots_are_said_to_lie_right_and_are_shown_when_asked(presenter, sample):
    presenter.show(sample)
    assert presenter.state.alignment.verdict == "fits" and presenter.state.check_pictures == ()
    presenter.corrections.look(True)
    assert len(presenter.state.check_pictures) == 1
    presenter.corrections.look(False)
    assert presenter.state.check_pictures == ()
    presenter.corrections.orient()
    assert presenter.state.section is sample


def test_mirrored_spots_are_shown_beside_the_better_way_and_laid_so_when_asked(presenter, sample):
    mirrored = oriented(sample, "mirror-y")
    presenter.show(mirrored)
    state = presenter.state
    assert state.alignment.best == "mirror-y" and len(state.check_pictures) == 2
    assert state.section is mirrored  # nothing was changed
    presenter.corrections.orient()
    assert state.section.spots.yx == pytest.approx(sample.spots.yx)
    assert state.alignment.verdict == "fits" and state.check_pictures == ()
    assert "mirrored top to bottom" in state.message.text


def test_a_selection_is_excluded_under_a_name_and_included_again(presenter, sample, tmp_path):
    presenter.show(sample)
    state, corrections = presenter.state, presenter.corrections
    corrections.exclude("fold")
    assert state.message.kind == "warning" and state.section is sample
    chosen = sample.spots.ids[:9].tolist()
    presenter.select(sample.spots.ids[5:20].tolist())
    presenter.choosing.save("kept")
    presenter.select(chosen)
    corrections.exclude("fold")
    assert len(state.section.spots) == len(sample.spots) - 9 and not set(chosen) & set(state.section.spots.ids.tolist())
    assert "fold 9" in state.message.text and state.selected == ()
    presenter.choosing.recall("kept", "replace")
    assert len(state.selected) == 11  # four of them are excluded now
    corrections.export(str(tmp_path / "excluded.geojson"))
    corrections.include()
    assert len(state.section.spots) == len(sample.spots) and state.section.excluded is None
    corrections.exclude_file(str(tmp_path / "excluded.geojson"))
    assert state.section.excluded.regions == {"fold": tuple(chosen)}
    again = open_section(sample.path, exclude=tmp_path / "excluded.geojson")
    assert again.excluded.regions == state.section.excluded.regions


def test_a_file_that_excludes_nothing_is_an_error_and_changes_nothing(presenter, sample, tmp_path):
    presenter.show(sample)
    (tmp_path / "far.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [[[-9, -9], [-8, -9], [-8, -8], [-9, -9]]]})
    )
    presenter.corrections.exclude_file(str(tmp_path / "far.geojson"))
    assert presenter.state.message.kind == "error" and "none of this section's" in presenter.state.message.text
    assert presenter.state.section is sample


def test_annotations_that_are_dropped_become_selections(presenter, viewer, sample, tmp_path, monkeypatch):
    import napari
    from napari.utils import notifications

    said = []
    monkeypatch.setattr(notifications, "show_warning", said.append)
    monkeypatch.setattr(napari, "current_viewer", lambda: viewer)
    file = tmp_path / "annotations.geojson"
    write_selections(sample.spots, {"Tumour": sample.spots.ids[:5].tolist()}, file)
    read = manifest.get_reader(str(file))
    assert read(str(file)) == [(None,)] and "open a section in the dock" in said[0]
    presenter.show(sample)
    layers = len(viewer.layers)
    assert read(str(file)) == [(None,)] and len(viewer.layers) == layers
    assert presenter.state.named == {"Tumour": tuple(sample.spots.ids[:5].tolist())}


def test_what_looks_changed_over_or_empty_is_said(presenter, sample, tmp_path):
    presenter.show(sample)
    spots = sample.spots
    strip = replace(spots, yx=spots.yx[:, ::-1])  # written as (y, x)
    write_selections(
        strip, {"all": spots.ids[spots.yx[:, 0] < spots.yx[:, 0].mean() / 2].tolist()}, tmp_path / "s.geojson"
    )
    content = json.loads((tmp_path / "s.geojson").read_text())
    far = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[-9, -9], [-8, -9], [-8, -8], [-9, -9]]]},
    }
    content["features"].append({**far, "properties": {"classification": {"name": "Necrosis"}}})
    (tmp_path / "s.geojson").write_text(json.dumps(content))
    presenter.choosing.load(str(tmp_path / "s.geojson"))
    assert (
        presenter.state.message.kind == "warning"
        and "No spot lies in Necrosis; left out." in presenter.state.message.text
    )


def test_only_a_workbench_that_was_opened_is_known(presenter, viewer):
    assert known_presenter(viewer) is presenter
    assert known_presenter(ViewerModel()) is None and known_presenter(None) is None


def test_a_selection_is_compared_and_made_like_another_with_one_click(presenter, sample, tmp_path):
    presenter.show(sample)
    state, ids = presenter.state, sample.spots.ids.tolist()
    presenter.groups.compare(None)
    assert state.message.kind == "warning"
    presenter.select(ids[40:60])
    presenter.choosing.save("rim")
    presenter.select(ids[:20])
    presenter.groups.compare("nowhere")
    assert "no selection called nowhere" in state.message.text
    presenter.groups.compare("rim")
    assert state.groups.names == ("selection", "rim") and len(state.groups.table)
    presenter.groups.export(str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_text().startswith("# selection (20 spots) against rim (20)")
    presenter.groups.make_alike()
    (edit,) = state.request.edits
    assert edit.operation == "towards" and edit.target_spots == tuple(ids[40:60]) and set(edit.spots) == set(ids[:20])
    assert edit.name == "selection like rim"
    presenter.painting.undo()
    assert state.request.edits == ()
    presenter.groups.compare(None)
    assert len(state.groups.ids[1]) == len(ids) - 20


def test_an_adaptation_learns_from_the_section_as_it_was_corrected(sample, tmp_path, monkeypatch):
    from napari_stmdit.tissue.excluded import exclude
    from napari_stmdit.ui.checkpoints import Adaptations

    monkeypatch.setenv("STMDIT_HOME", str(tmp_path))
    started = []
    monkeypatch.setattr(Adaptations, "_start", lambda self, request: started.append(request))
    gone = sample.spots.ids[:4].tolist()
    corrected = exclude(oriented(sample, "mirror-y"), {"fold": gone})
    for section in (corrected, sample):
        Adaptations().begin(section, "mine", 1.0, "none")
    request, plain = started
    again = open_section(sample.path, exclude=request.exclude, orientation=request.orientation)
    assert again.excluded.regions == {"fold": tuple(gone)}
    assert again.spots.yx == pytest.approx(corrected.spots.yx)
    assert plain.exclude is None and plain.orientation == "as-given"
