"""How work is numbered and queued: nothing that leaves a file behind is silenced by what comes after it."""

from models_for_ui import ByHand
from napari.components import ViewerModel

from napari_stmdit.errors import StoreError
from napari_stmdit.ui import checkpoints
from napari_stmdit.ui.jobs import Handlers, Job, Series
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.state import Fetching, WorkbenchState


def job(title, *values, error=None):
    def generate(_):
        yield from values
        if error is not None:
            raise error

    return Job(title, generate, lambda fault: StoreError(str(fault)))


def listening(heard, name):
    return Handlers(
        lambda value: heard.append((name, value)),
        lambda error: heard.append((name, str(error))),
        lambda: heard.append((name, "end")),
    )


def test_a_series_does_all_in_order_and_each_says_how_it_ended():
    by_hand, heard, begun = ByHand(), [], []
    series = Series(by_hand)
    for name, error in (("one", StoreError("full")), ("two", None), ("three", None)):
        series.submit(job(name, 1, error=error), listening(heard, name), lambda name=name: begun.append(name))
    assert begun == ["one"] and len(by_hand.open) == 1
    for _ in range(3):
        by_hand.finish()
    assert heard == [
        *(("one", 1), ("one", "full"), ("one", "end")),
        *(("two", 1), ("two", "end"), ("three", 1), ("three", "end")),
    ]
    assert not series.busy


def test_what_waits_is_begun_at_once_where_nobody_will_be_there_later():
    by_hand, heard = ByHand(), []
    series = Series(by_hand)
    for name in ("one", "two", "three"):
        series.submit(job(name, 1), listening(heard, name))
    series.finish()
    assert len(by_hand.open) == 3
    for number in range(3):
        by_hand.finish(number)
    assert [entry for entry in heard if entry[1] == "end"] == [(name, "end") for name in ("one", "two", "three")]


def test_a_conversion_is_not_silenced_by_a_look_at_another_file(monkeypatch, tmp_path):
    by_hand, told, loaded = ByHand(), [], []
    monkeypatch.setattr(checkpoints, "_converting", lambda intent: job("convert", tmp_path / "made"))
    desk = checkpoints.Acquisition(WorkbenchState(), by_hand, loaded.append, lambda source: None)
    desk.state.events.message.connect(lambda message: told.append(message.text))
    desk.convert(checkpoints.ConvertIntent("x", 0.5, "made"))
    desk.choose(str(tmp_path / "other.safetensors"))
    assert desk.state.converting
    by_hand.finish(0)
    assert not desk.state.converting and len(loaded) == 1 and "was converted" in told[-1]


def test_two_downloads_wait_for_each_other(monkeypatch):
    by_hand, told = ByHand(), []
    monkeypatch.setattr(checkpoints, "_downloading", lambda name, folder: job(name, Fetching(name, 0.5), f"/{name}"))
    desk = checkpoints.Acquisition(WorkbenchState(), by_hand, lambda choice: None, lambda source: None)
    desk.state.events.message.connect(lambda message: told.append(message.text))
    desk.download("one")
    desk.download("two")
    assert desk.state.fetching.name == "one"
    by_hand.finish()
    assert desk.state.fetching.name == "two"
    by_hand.finish()
    assert [text.split(" is on")[0] for text in told if "is on this" in text] == ["one", "two"]
    assert desk.state.fetching is None


def test_a_closed_desk_downloads_no_more(monkeypatch):
    by_hand, told = ByHand(), []
    monkeypatch.setattr(checkpoints, "_downloading", lambda name, folder: job(name, f"/{name}"))
    desk = checkpoints.Acquisition(WorkbenchState(), by_hand, lambda choice: None, lambda source: None)
    desk.state.events.message.connect(lambda message: told.append(message.text))
    desk.download("one")
    desk.download("two")
    desk.close()
    told.clear()
    by_hand.finish()
    assert len(by_hand.open) == 1 and not told


def test_a_closed_desk_may_be_opened_again(monkeypatch):
    by_hand, told = ByHand(), []
    monkeypatch.setattr(checkpoints, "_downloading", lambda name, folder: job(name, Fetching(name, 0.5), f"/{name}"))
    desk = checkpoints.Acquisition(WorkbenchState(), by_hand, lambda choice: None, lambda source: None)
    desk.state.events.message.connect(lambda message: told.append(message.text))
    desk.download("one")
    desk.close()
    desk.download("two")
    by_hand.finish_all()
    assert told == ["two is on this computer: /two"] and desk.state.fetching is None


def test_the_viewers_lanes_hold_nothing_that_leaves_something_behind():
    assert set(Presenter(ViewerModel(), ByHand())._lanes) == {
        "section",
        "model",
        "stored",
        "spot",
        "link",
        "example",
        "ahead",
        "outlines",
    }
