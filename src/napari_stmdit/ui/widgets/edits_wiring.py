"""Connects the forms of colouring, choosing and painting with the presenter: forms say what is wanted, the state what is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...expression.programs import bundled_notes, known_programs

if TYPE_CHECKING:
    from .dock import Workbench


def wire_edits(bench: Workbench) -> list[tuple[Any, Any]]:
    """Connect both ways; return the (signal, slot) pairs by which the state is listened to, to be undone at the end."""
    _forms_to_presenter(bench)
    return _state_to_forms(bench)


def _forms_to_presenter(bench: Workbench) -> None:
    presenter, panel, select = bench.presenter, bench.edits, bench.select
    painting, choosing, files, state = presenter.painting, presenter.choosing, presenter.edit_files, presenter.state
    select.growRequested.connect(choosing.grow)
    select.categoryRequested.connect(lambda name: choosing.by_category(state.colouring.obs or "", name, state.combine))
    select.valuesRequested.connect(lambda low, high: choosing.by_values(state.colouring, low, high, state.combine))
    select.saveRequested.connect(choosing.save)
    select.recallRequested.connect(choosing.recall)
    select.deleteRequested.connect(choosing.delete)
    bench.colour.categoryChosen.connect(lambda column, name: choosing.by_category(column, name, state.combine))
    panel.form.valueChanged.connect(painting.take_draft)
    panel.form.profileRequested.connect(files.import_profile)
    panel.brush.valueChanged.connect(presenter.set_brush)
    panel.brushToggled.connect(lambda on: presenter.use_tool("brush" if on else "click"))
    panel.addRequested.connect(lambda everywhere: painting.add(None if everywhere else state.selected))
    panel.newRequested.connect(lambda: painting.choose(None))
    panel.spotsRequested.connect(lambda: _select_chosen(presenter))
    panel.list.picked.connect(lambda number: None if number == state.chosen_edit else painting.choose(number))
    panel.list.enabledChanged.connect(painting.set_enabled)
    panel.list.renamed.connect(painting.rename)
    panel.list.strengthChanged.connect(painting.set_strength)
    panel.undoRequested.connect(painting.undo)
    panel.redoRequested.connect(painting.redo)
    panel.moveRequested.connect(lambda by: _with_chosen(state, lambda number: painting.move(number, by)))
    panel.deleteRequested.connect(lambda: _with_chosen(state, painting.delete))
    panel.loadRequested.connect(files.load)
    panel.saveRequested.connect(files.save)
    panel.setsRequested.connect(files.import_gmt)
    panel.moversSaveRequested.connect(files.export_movers)
    panel.profileSaveRequested.connect(files.export_profile)


def _with_chosen(state: Any, do: Any) -> None:
    if state.chosen_edit is not None:
        do(state.chosen_edit)


def _select_chosen(presenter: Any) -> None:
    edit = presenter.painting.chosen
    if edit is not None and edit.spots is None and edit.operation != "swap":
        presenter.select_all()
    else:
        presenter.select(sorted(presenter.painting.outlined()))


def _state_to_forms(bench: Workbench) -> list[tuple[Any, Any]]:
    state, panel, painting = bench.state, bench.edits, bench.presenter.painting

    def show_section() -> None:
        section = state.section
        panel.form.show_section(section)
        panel.brush.show_unit(section is None or section.calibration.mpp is not None)
        panel.setEnabled(section is not None)

    def show_programs() -> None:
        programs, view = known_programs(state.request.programs), bench.presenter.view
        if shown.get("programs") != (tuple(programs), state.section, state.checkpoint):
            shown["programs"] = (tuple(programs), state.section, state.checkpoint)
            notes = {name: note for name, note in bundled_notes().items() if name not in state.request.programs}
            panel.form.show_programs(tuple(programs), notes, painting.program_reaches())
            columns = () if view is None else view.values.columns()
            bench.colour.show_section(state.section, columns, programs)

    def show_groups() -> None:
        panel.form.show_groups(state.selected, state.named, painting.profile_names())

    def show_movers() -> None:
        if panel.moving.unfolded:
            panel.show_movers(painting.movers())

    panel.moving.unfolded_changed.connect(lambda on: show_movers())
    shown: dict[str, Any] = {}
    connections = []
    for names, show in (
        (("section",), show_section),
        (("section", "request", "checkpoint"), show_programs),
        (("section", "request", "checkpoint"), show_movers),
        (("section", "request", "checkpoint", "selected", "named"), show_groups),
        (
            ("request", "chosen_edit", "checkpoint", "section"),
            lambda: panel.show_edits(painting.edits, state.chosen_edit, painting.reaches()),
        ),
        (("draft",), lambda: panel.form.setValue(state.draft)),
        (("draft_faults",), lambda: panel.form.show_faults(state.draft_faults)),
        (("brush",), lambda: panel.brush.setValue(state.brush)),
        (("undoable",), lambda: panel.show_undoable(state.undoable)),
        (("selected", "draft"), lambda: panel.show_selected(len(state.selected), state.draft)),
        (("tool",), lambda: panel.show_brushing(state.tool == "brush")),
        (("colour_scale",), lambda: bench.select.show_scale(state.colour_scale)),
        (("named",), lambda: bench.select.show_named(state.named)),
    ):
        for name in names:
            signal = getattr(state.events, name)
            signal.connect(show, max_args=0)
            connections.append((signal, show))
        show()
    return connections
