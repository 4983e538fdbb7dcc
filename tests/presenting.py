"""A presenter with napari's viewer model, whose jobs are driven by hand: no Qt, no screen."""

from models_for_ui import Tinted

from napari_stmdit.edits import Scale
from napari_stmdit.ui.presenter import Presenter

EDIT = Scale(genes=("ERBB2",), factor=5, name="more ERBB2")


def presenter_with(viewer, section, card, by_hand):
    made = Presenter(viewer, by_hand)
    made.show(section)
    made.use_model(Tinted(card))
    made.runs.live_preview = False
    return made


def run(presenter, by_hand, count=3, **request):
    presenter.select(presenter.state.section.spots.ids[:count].tolist())
    presenter.state.request = presenter.state.request.model_copy(
        update={"edits": (), "seed": 0, "steps": None, "morphology": "own", **request}
    )
    presenter.runs.run()
    by_hand.finish()
    return presenter.state.results[-1].number
