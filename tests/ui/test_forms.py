"""Forms of parameters are made from the model that checks them; panels let go of what they listen to."""

import pytest
from psygnal import Signal

from napari_stmdit.intent import Request
from napari_stmdit.ui.widgets.common import connect_state, form_of, in_dock


def test_a_form_has_the_range_the_default_and_the_name_of_a_field(qtbot):
    form = form_of(
        Request,
        edit_scale=("Edit scale", "how much", {"step": 0.25}),
        seed=("Seed", "same seed, same pixels", {"step": 1}),
        mode=("Kind", "patches or tissue", {"choices": [("Patches", "spots"), ("Tissue", "continuous")]}),
        allow_gene_mismatch=("Mismatch", "run all the same", {"text": "Run"}),
    )
    for widget in form.values():
        qtbot.addWidget(widget.native)
    assert (form["edit_scale"].min, form["edit_scale"].max, form["edit_scale"].value) == (0, 30, 1.0)
    assert (form["seed"].min, form["seed"].max) == (0, 2**32 - 1)
    assert {name: widget.value for name, widget in form.items() if name in ("mode", "allow_gene_mismatch")} == {
        "mode": "spots",
        "allow_gene_mismatch": False,
    }
    assert form["seed"].native.accessibleName() == "Seed" and form["seed"].native.toolTip() == "same seed, same pixels"
    form["seed"].native.setValue(2**32 - 1)
    assert Request(**{name: widget.value for name, widget in form.items()}).seed == 2**32 - 1


def test_fields_are_shown_at_once_and_until_the_connections_are_closed():
    class Events:
        one, other = Signal(int), Signal(int)

    events, shown = Events(), []
    connections = connect_state(
        events, ("one other", lambda: shown.append("both")), ("one", lambda: shown.append("one"))
    )
    assert shown == ["both", "one"] and len(connections) == 3
    events.other.emit(1)
    events.one.emit(1)
    assert shown[2:] == ["both", "both", "one"]
    connections.close()
    events.one.emit(2)
    assert len(shown) == 5 and not connections


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "a.svs does not state how large its pixels are; give the microns per pixel with --mpp (mpp=...), as the scanner's settings have them",
            "a.svs does not state how large its pixels are; give the microns per pixel under 'µm per pixel', as the scanner's settings have them",
        ),
        (
            "give the slide image that Space Ranger was run on with --fullres IMAGE (its fullres_image_file)",
            "give the slide image that Space Ranger was run on under 'Slide image'",
        ),
        (
            "use another checkpoint, or --allow-gene-mismatch (allow_gene_mismatch=True) to go on",
            "use another checkpoint, or switch on 'Run although genes are missing' to go on",
        ),
        ("use spots in place of a region (--mode spots, mode='spots')", "use spots in place of a region"),
        (
            "the morphology cannot follow, or make new tissue with --no-counterfactual",
            "the morphology cannot follow, or make new tissue",
        ),
        (
            "Run `stmdit download uni2-h --from FOLDER`.",
            "Run `stmdit download uni2-h --from FOLDER`.",
        ),  # a whole command
        ("0 -- 3 (a note), 20 % (n = 5)", "0 -- 3 (a note), 20 % (n = 5)"),
    ],
)
def test_messages_name_the_docks_controls(message, shown):
    assert in_dock(message) == shown
