"""The ending that is put to a name is asked about like the name itself."""

import pytest
from qtpy.QtWidgets import QFileDialog

from napari_stmdit.ui.widgets.edits import EditsPanel


@pytest.mark.parametrize("again", ["other.yaml", ""])
def test_a_file_that_the_ending_leads_to_is_asked_about(qtbot, tmp_path, monkeypatch, again):
    panel = EditsPanel()
    qtbot.addWidget(panel)
    (tmp_path / "edits.yaml").write_text("mine")
    answers = [str(tmp_path / "edits"), again and str(tmp_path / again)]
    asked, said = [], []
    monkeypatch.setattr(
        QFileDialog, "getSaveFileName", lambda _, title, place, kinds: (asked.append(place), (answers.pop(0), ""))[1]
    )
    panel.write("Save edits", "YAML (*.yaml)", said.append)
    assert asked == ["", str(tmp_path / "edits.yaml")]
    assert said == ([str(tmp_path / again)] if again else [])


def test_a_name_with_its_ending_or_a_free_one_is_asked_about_once(qtbot, tmp_path, monkeypatch):
    panel = EditsPanel()
    qtbot.addWidget(panel)
    answers = [str(tmp_path / "edits.yaml"), str(tmp_path / "new")]
    said = []
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (answers.pop(0), ""))
    for _ in range(2):
        panel.write("Save edits", "YAML (*.yaml)", said.append)
    assert said == [str(tmp_path / "edits.yaml"), str(tmp_path / "new.yaml")]
