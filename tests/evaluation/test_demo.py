"""What the demo asks for."""

import numpy as np

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.evaluation.demo import END_UM, PALE_SPOTS, demo_request
from napari_stmdit.evaluation.measures import crops_at, haematoxylin_density
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.tissue.open import open_sample_section


def test_the_demo_asks_for_an_edit_of_this_tissue_with_its_brush_in_the_region():
    section, model = open_sample_section(), load_checkpoint("demo", device="cpu")
    request, centre = demo_request(section, model.profiles, model.card)
    assert plan(section, request, model.card).counterfactual
    weights = request.edits[0].spots
    away = np.linalg.norm(section.spots.yx[section.spots.rows(list(weights))] - centre, axis=1)
    assert away.max() * section.calibration.mpp < END_UM < 260 and max(weights.values()) == 1
    haematoxylin = [haematoxylin_density(crop) for crop in crops_at(section, section.spots.yx, model.card)]
    assert list(request.edits[0].target_spots) == section.spots.ids[np.argsort(haematoxylin)[:PALE_SPOTS]].tolist()
