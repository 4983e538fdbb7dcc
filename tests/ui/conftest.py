import pytest
from models_for_ui import ByHand
from napari.components import ViewerModel
from presenting import presenter_with
from standins import CropModel, card_for
from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401


@pytest.fixture
def card(tiny_section):
    return card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)


@pytest.fixture
def crop_model(card):
    return CropModel(card)


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def by_hand():
    return ByHand()


@pytest.fixture
def presenter(viewer, tiny_section, card, by_hand):
    return presenter_with(viewer, tiny_section, card, by_hand)
