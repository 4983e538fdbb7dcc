"""What a user can ask for stays valid, also where it is changed."""

import pytest
from pydantic import ValidationError

from napari_stmdit.edits import KnockOut, Scale
from napari_stmdit.intent import Guidance, Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.requests import read_request
from napari_stmdit.training.config import DiffusionSettings


@pytest.mark.parametrize(
    ("original", "change"),
    [
        (Request(), {"steps": 0}),
        (Request(), {"mode": "seamless"}),
        (Request(), {"stepz": 3}),
        (Request(), {"region": {"kind": "spots", "ids": ()}}),
        (Guidance(), {"expression": -1}),
        (Scale(genes=("A",), factor=2), {"strength": 1.5}),
        (Scale(genes=("A",), factor=2), {"spots": {"s": -0.1}}),
        (KnockOut(genes=("A",)), {"genes": ()}),
        (DiffusionSettings(), {"share_both": 2.0}),
    ],
)
def test_a_changed_copy_is_as_valid_as_a_new_one(original, change):
    with pytest.raises(ValidationError):
        original.model_copy(update=change)


def test_a_changed_copy_keeps_what_was_left_open():
    copy = Request(seed=3).model_copy(update={"region": SpotList(ids=("a",))})
    assert copy == Request(seed=3, region=SpotList(ids=("a",)))
    assert copy.model_fields_set == {"seed", "region"}  # that nobody asked for expression is something a plan goes by
    assert Request(seed=3).model_copy() == Request(seed=3)
    assert Request(seed=3).model_copy().model_fields_set == {"seed"}


def test_on_and_off_may_be_written_as_yaml_reads_them(tmp_path):
    file = tmp_path / "request.yaml"
    for word in ("on", "off", "auto", "'on'"):
        file.write_text(f"counterfactual: {word}")
        assert read_request(file).counterfactual == word.strip("'")
