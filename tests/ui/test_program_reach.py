"""The form says how much of a program the checkpoint reads, and greys programs without effect."""

from qtpy.QtCore import Qt

from napari_stmdit.expression.following import ProgramReach
from napari_stmdit.ui.state import EditDraft
from napari_stmdit.ui.widgets.edits import DraftForm


def test_a_program_without_effect_is_greyed_with_the_reason(qtbot, tiny_section):
    form = DraftForm()
    qtbot.addWidget(form)
    form.show_section(tiny_section)
    reaches = {"read": ProgramReach(8, 6, 2, 40, 90), "unread": ProgramReach(5, 5, 0, 0, 90)}
    form.show_programs(("read", "unread"), {}, reaches)
    names = form.what.names
    flags = {names.data(at, Qt.ItemDataRole.DisplayRole): names.flags(at) for at in map(names.index, range(2))}
    assert flags["read (program)"] & Qt.ItemFlag.ItemIsEnabled
    assert not flags["unread (program)"] & Qt.ItemFlag.ItemIsEnabled
    reason = names.data(names.index(1), Qt.ItemDataRole.ToolTipRole)
    assert "reads none of its 5 genes" in reason and "no edit of it has an effect" in reason
    form.setValue(EditDraft(programs=("read",)))
    assert "reads 2 of its 8 genes, and 40 of 90 other genes follow it here" in form.about.plain()


def test_the_form_offers_that_others_follow_for_edits_of_genes_alone(qtbot):
    form = DraftForm()
    qtbot.addWidget(form)
    changes = []
    form.valueChanged.connect(changes.append)
    assert form.follow.isChecked()
    form.follow.click()
    assert changes[-1].follow == "none"
    form.setValue(EditDraft(operation="swap"))
    assert form.follow.isHidden()
