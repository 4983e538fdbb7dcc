"""Checks of edits of real tissue, with models at either end: one that does nothing, one that pastes the other spot's tissue."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_study import CARD, Described, telling_section
from hypothesis import given
from hypothesis import strategies as some
from typer.testing import CliRunner

import napari_stmdit as st
from napari_stmdit.cli import app
from napari_stmdit.encoders.morphology_map import fit_morphology_map
from napari_stmdit.errors import RequestError, StmditError, StoreError
from napari_stmdit.evaluation.counterfactual import CounterfactualCheck
from napari_stmdit.evaluation.effects import (
    PaintedCrop,
    agreement,
    ceiling,
    crop_given,
    feature_locality,
    locality,
    monotony,
    ms_ssim,
    new_nuclei,
    painted_crop,
    ridge_change,
    swap_coefficient,
)
from napari_stmdit.evaluation.evaluate import evaluate
from napari_stmdit.evaluation.measures import STAINS, crops_at, haematoxylin_density
from napari_stmdit.evaluation.report import interval_text, number
from napari_stmdit.evaluation.spaces import RandomConvolutions
from napari_stmdit.evaluation.work import STACKS
from napari_stmdit.expression.regression import evenly_spaced
from napari_stmdit.progress import CancelToken
from napari_stmdit.synthesis.counterfactual import follows_of
from napari_stmdit.synthesis.windows import CELL

EDITS = CARD.model_copy(update={"edits_tissue": True})
REQUEST = st.EvaluationRequest(pairs=24, steps=2, draws=200, parts=("counterfactual",))


class Still(Described):
    """Returns the real crop, whatever was edited; edits of a canvas change nothing."""

    latent_grid = (1, 8)
    editor = property(lambda self: self)

    def solver(self, *_, **__):
        raise AssertionError("no new tissue is made here")

    decode = solver

    def images(self, batch):
        return batch.crops

    def encode(self, image):
        return np.zeros((1, image.shape[0] // 8, image.shape[1] // 8), np.float32)

    def edit_canvas(self, latents, morphology, expression, edited, corners, weight, steps, batches):
        yield 0.5
        return np.zeros_like(latents)

    def decode_change(self, latents, change):
        return np.repeat(change.repeat(8, axis=1).repeat(8, axis=2)[0][..., None], 3, axis=2)


class Pasting(Still):
    """Returns the real crop of the spot whose expression is given, and paints a canvas dark all over."""

    def __init__(self, card, section):
        super().__init__(card)
        self.crops = crops_at(section, section.spots.yx, card)
        self.rows = self.encode_expression(section.spots.counts, section.spots.genes)

    def images(self, batch):
        away = np.abs(self.rows[None] - batch.edited.expression[:, None]).sum(axis=2)
        return self.crops[away.argmin(axis=1)]

    def edit_canvas(self, latents, morphology, expression, edited, corners, weight, steps, batches):
        yield 0.5
        return np.full_like(latents, -30)


class Staining(Pasting):
    """Makes a canvas of one colour: as much haematoxylin as the crop shows whose expression all of its windows are given."""

    latent_grid = (192, 8)

    def encode(self, image):
        height, width = (n // 8 for n in image.shape[:2])
        blocks = image.reshape(height, 8, width, 8, 3).transpose(1, 3, 4, 0, 2)
        return blocks.reshape(192, height, width).astype(np.float32)

    def edit_canvas(self, latents, morphology, expression, edited, corners, weight, steps, batches):
        yield 0.5
        shares, known = (rows / rows.sum(axis=1, keepdims=True) for rows in (edited.expression, self.rows))
        nearest = np.abs(known[None] - shares[:, None]).sum(axis=2).argmin(axis=1)
        self.given = set(nearest.tolist())
        self.off = float(np.abs(known[nearest] - shares).max())
        return np.full_like(latents, 1.0 + nearest[0])

    def decode_change(self, latents, change):
        height, width = latents.shape[1:]
        image = latents.reshape(8, 8, 3, height, width).transpose(3, 0, 4, 1, 2).reshape(8 * height, 8 * width, 3)
        stain = STAINS[0] / np.linalg.norm(STAINS[0])
        density = haematoxylin_density(self.crops[round(float(change.max())) - 1])
        return np.float32(256 * np.exp(-density * stain) - 1) - image


def checked(model, section, folder, **changes):
    return finished(CounterfactualCheck(section, model, REQUEST.model_copy(update=changes), folder, 8).run())


def finished(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def section():
    return telling_section()


@pytest.fixture(scope="module")
def still(section, tmp_path_factory):
    return checked(Still(EDITS), section, tmp_path_factory.mktemp("still"), pairs=8)


@pytest.fixture(scope="module")
def pasting(section, tmp_path_factory):
    return checked(Pasting(EDITS, section), section, tmp_path_factory.mktemp("pasting"))


# ------------------------------------------------------------------------------------------------- either end


def test_a_model_that_does_nothing_moves_nothing(still):
    for part in ("swap", "swap_control"):
        for one in still[part].values():
            assert one["coefficient"] == one["low"] == one["high"] == pytest.approx(0, abs=1e-9)
    assert still["identity"]["pixels"] == 0
    assert still["dose"]["monotone"] is None and still["dose"]["moved"] == 0
    assert still["locality"]["outside_grey_levels"] == 0 and still["locality"]["ratio"] is None
    assert still["invention"]["inside"] == 0 and still["invention"]["outside_nuclei"] in (0, None)
    assert all(space["inside"] == 0 for space in still["locality"]["features"].values())


def test_a_model_that_pastes_the_other_spot_moves_all_the_way_and_its_control_does_not(pasting):
    for one in pasting["swap"].values():
        assert one["coefficient"] == pytest.approx(1, abs=1e-6) and one["low"] > 0.99
    for one in pasting["swap_control"].values():
        assert one["low"] < 0 < one["high"] and abs(one["coefficient"]) < 0.6
    for most in ("ceiling", "ridge"):
        assert pasting["swap"]["haematoxylin"][most] > 0.5  # expression tells this tissue's density
    assert pasting["identity"]["pixels"] == 0
    assert pasting["locality"]["inside_haematoxylin"] > 0.05
    assert pasting["locality"]["outside_grey_levels"] == 0 and pasting["locality"]["outside_pixels"] > 0
    assert pasting["invention"]["outside_nuclei"] == 0
    for space in pasting["locality"]["features"].values():
        assert space["inside"] > 0.1 and space["outside"] == 0


def test_pairs_are_those_that_the_seed_draws(section, tmp_path):
    check = CounterfactualCheck(section, Still(EDITS), REQUEST, tmp_path, 8)
    rng = np.random.default_rng(0)
    for found in (check.a, check.b):
        assert found.tolist() == rng.permutation(len(section.spots))[:24].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_control_is_never_given_the_spot_that_it_is_compared_with(section, tmp_path, seed):
    check = CounterfactualCheck(
        section, Still(EDITS), REQUEST.model_copy(update={"seed": seed, "pairs": 48}), tmp_path, 8
    )
    assert not (check.third == check.b).any()


def test_a_section_with_fewer_spots_than_pairs_gives_all_it_has_and_says_how_many(section, tmp_path):
    assert (
        CounterfactualCheck(section, Still(EDITS), REQUEST.model_copy(update={"pairs": 500}), tmp_path, 8).pairs == 48
    )


# ------------------------------------------------------------------------------------------------- painted regions


@pytest.fixture(scope="module")
def painted(section, tmp_path_factory):
    return checked(Staining(EDITS, section), section, tmp_path_factory.mktemp("painted"), mode="continuous", pairs=12)


def test_a_painted_crop_takes_on_the_other_spots_stain_and_its_control_does_not(painted, pasting):
    assert painted["mode"] == "continuous" and pasting["mode"] == "spots"
    stain, flat = painted["swap"]["haematoxylin"], painted["swap"]["nuclei"]
    assert stain["coefficient"] == pytest.approx(1, abs=0.03) and stain["low"] > 0.9
    assert flat["coefficient"] == pytest.approx(0, abs=1e-6)  # one colour has no nuclei, whatever the other spot has
    control = painted["swap_control"]["haematoxylin"]
    assert control["low"] < 0 < control["high"]
    assert stain["ceiling"] == pasting["swap"]["haematoxylin"]["ceiling"]


def test_painted_crops_that_do_not_change_are_the_slide(section, tmp_path):
    found = checked(Still(EDITS), section, tmp_path, mode="continuous", pairs=8)
    for part in ("swap", "swap_control"):
        for one in found[part].values():
            assert one["coefficient"] == one["low"] == one["high"] == pytest.approx(0, abs=1e-9)


def test_a_painted_region_is_the_whole_crop_and_all_its_windows_are_edited_alike(section):
    made = crop_given(section, EDITS, 20, 3, 2)
    model = Staining(EDITS, section)
    crop = finished(painted_crop(made, section, model, 20, batch=8, cancel=CancelToken()))
    assert len(made.windows) > 1 and model.given == {3} and model.off < 1e-5
    assert np.abs(crop.before.astype(int) - crops_at(section, section.spots.yx[[20]], EDITS)[0]).max() <= 1
    assert crop.after.reshape(-1, 3).std(axis=0).max() == 0  # every pixel was painted
    apart = haematoxylin_density(crop.after) - haematoxylin_density(crops_at(section, section.spots.yx[[3]], EDITS)[0])
    assert abs(apart) < 0.02


@pytest.mark.parametrize("corner", ["first", "last"])
def test_a_painted_crop_at_the_slides_corner_keeps_the_glass_beyond(section, corner):
    from dataclasses import replace

    yx, size = section.spots.yx.copy(), np.array(section.image.shape)
    yx[0] = (10, 10) if corner == "first" else size - 10
    moved = replace(section, spots=replace(section.spots, yx=yx))
    model = Staining(EDITS, section)
    crop = finished(painted_crop(crop_given(moved, EDITS, 0, 3, 2), moved, model, 0, batch=8, cancel=CancelToken()))
    if corner == "last":
        crop = PaintedCrop(crop.before[::-1, ::-1], crop.after[::-1, ::-1])
    away = (
        np.minimum(*np.indices((64, 64))) - 22
    )  # pixels from the slide's edge inwards; the region ends at whole cells
    assert (crop.after[away < -CELL] == crop.before[away < -CELL]).all()
    assert crop.after[away >= CELL].std(axis=0).max() == 0


# ------------------------------------------------------------------------------------------------- measures


@given(some.floats(-2, 2), some.integers(0, 100))
def test_a_swap_coefficient_is_the_share_of_the_way(share, seed):
    own, other = np.random.default_rng(seed).normal(size=(2, 30))
    found = swap_coefficient(share * other - 0.7 * own + 3, own, other, 20)
    assert found.value == pytest.approx(share, abs=1e-6)


def test_the_ceiling_is_high_where_expression_tells_and_not_above_zero_where_it_does_not():
    rng = np.random.default_rng(0)
    e, yx = rng.normal(size=(200, 6)), rng.uniform(size=(200, 2))
    assert ceiling(e, e @ np.arange(6.0), yx) > 0.95
    assert ceiling(e, rng.normal(size=200), yx) < 0.05


def test_what_expression_allows_on_the_same_pairs_is_read_without_their_blocks():
    rng = np.random.default_rng(0)
    e, yx = rng.normal(size=(200, 6)), rng.uniform(size=(200, 2))
    rows, given = rng.permutation(200)[:60], rng.permutation(200)[:60]
    told, none = e @ np.arange(6.0), rng.normal(size=200)
    assert np.allclose(ridge_change(e, told, yx, rows, given), told[given] - told[rows], atol=0.1)
    # a spot's own value is not known to the fit, however it is encoded
    known = np.eye(200)
    for values, x in ((none, e), (none, known)):
        found = swap_coefficient(ridge_change(x, values, yx, rows, given), values[rows], values[given], 20)
        assert abs(found.value) < 0.1
    assert not ridge_change(e, told, yx, rows, rows).any()


def test_images_are_like_themselves_and_less_so_when_they_are_blurred():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert ms_ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image, np.full_like(image, 128)) < 0.5


def test_a_dose_goes_one_way_or_it_does_not():
    found = monotony(np.array([[1, 1.1, 1.2], [1, 0.9, 0.8], [1, 1.2, 1.1], [1, 1, 1.001]]))
    assert found == {"monotone": pytest.approx(2 / 3, abs=1e-4), "moved": 3, "n": 4}


def test_effects_that_follow_the_trend_agree_and_none_at_all_cannot_be_told():
    trend = np.array([-0.1, 0.0, 0.1, 0.3, 0.2])
    found = agreement(trend, trend / 2, 100)
    assert found["correlation"] == 1 and found["slope"] == 0.5 and found["low"] == 1
    assert agreement(trend, np.zeros(5), 100)["correlation"] is None


def test_a_change_beyond_the_reach_and_a_new_nucleus_are_seen():
    real = np.full((64, 64, 3), 230, np.uint8)
    edited = real.copy()
    edited[40:50, 40:50] = (60, 30, 110)
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    found = locality(real, edited, ~left, left, ~left)
    assert found["outside_grey_levels"] == 200 and found["outside_pixels"] == 2048 and found["ratio"] is None
    new = new_nuclei(real, edited, 1.0, left, ~left, left)
    assert new["inside"] == 0 and new["around"] > 0 and new["outside_nuclei"] == 0
    assert new_nuclei(real, edited, 1.0, left, left, ~left)["outside_nuclei"] == 1
    assert new_nuclei(real, edited, 1.0, left, left, np.zeros_like(left))["outside_nuclei"] is None


def test_features_tell_where_crops_change():
    rng = np.random.default_rng(0)
    real, reference = rng.integers(100, 200, (96, 128, 3), np.uint8), rng.integers(0, 255, (6, 32, 32, 3), np.uint8)
    areas = {name: np.zeros((96, 128), bool) for name in ("around", "outside")}
    areas["around"][:, 64:96] = areas["outside"][:, 96:] = True

    def found(edited):
        facts = feature_locality(real, edited, (48, 32), 32, areas, [RandomConvolutions()], reference)
        (space,) = facts["features"].values()
        assert facts["ratio_features"] == space["ratio"]
        return space

    edited = real.copy()
    edited[32:64, 16:48] //= 2
    assert found(real) == {"inside": 0, "around": 0, "outside": 0, "ratio": None}
    only = found(edited)
    assert only["inside"] > 0.1 and only["around"] == only["outside"] == 0 and only["ratio"] is None
    edited[:, 64:96] //= 2
    more = found(edited)
    assert more["inside"] == only["inside"] and more["outside"] == 0
    assert more["ratio"] == round(more["inside"] / more["around"], 2) != 1
    edited[90:, 120:] = 0  # in the last crop of those beyond
    assert found(edited)["outside"] > 0
    areas["outside"][:] = False
    assert found(edited)["outside"] is None


# ------------------------------------------------------------------------------------------------- command and report


@pytest.fixture(scope="module")
def printed(tiny_checkpoint, tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("command") / "report"
    words = ["evaluate", tiny_checkpoint, tiny_folder, "--parts", "counterfactual", "--pairs", 8, "--seed", 0]
    words += ["--steps", 2, "--draws", 100, "--device", "cpu", "--output", out, "--json"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), words, out


def test_the_command_prints_one_object_with_every_figure(printed):
    found = printed[0]["counterfactual"]
    assert {"latents", "pixels", "ms_ssim"} <= set(found["identity"])
    assert found["identity"]["latents"] == 0 and found["identity"]["pixels"] == 0
    assert found["identity"]["ms_ssim"] == pytest.approx(found["identity"]["autoencoder_ms_ssim"], abs=0.02)
    for part in ("swap", "swap_control"):
        for measure in ("haematoxylin", "nuclei"):
            assert {"coefficient", "low", "high", "ridge", "ceiling"} <= set(found[part][measure])
    assert {"correlation", "slope", "low", "high"} <= set(found["programs"])
    assert "monotone" in found["dose"] and "ratio" in found["locality"]
    assert found["locality"]["outside_grey_levels"] == 0
    spaces = found["locality"]["features"]
    assert [name.split()[0] for name in spaces] == ["encoder", "random"]  # those of every evaluation
    assert "ratio_features" in found["locality"] and "outside_nuclei" in found["invention"]
    assert all(space["inside"] > 0 for space in spaces.values())
    assert isinstance(found["morphology_explained"], float)


def test_the_report_tells_it_in_words(printed):
    page = (printed[2] / "report.html").read_text()
    assert "Counterfactual: edits of real tissue" in page and "control: given a third spot" in page
    assert "Does the true condition beat its controls?" not in page
    assert "features, in spreads: random convolutions" in page
    assert "edit reaches all of the section" in page or "</b> nuclei are there that the slide does not have" in page
    facts = json.loads((printed[2] / "report.json").read_text())
    assert facts["counterfactual"] == printed[0]["counterfactual"]
    assert any("association, not cause" in text for text in facts["caveats"])


def test_numbers_of_the_page_have_no_negative_zero():
    assert [number(v) for v in (-0.0004, 0.0, -0.0006, None)] == ["0.000", "0.000", "-0.001", "cannot be told"]
    assert interval_text({"r": 0.25, "low": -1e-9, "high": 0.5}, "r") == "0.250 [0.000, 0.500]"


def test_all_parts_are_one_report_and_one_count_of_progress(tiny_checkpoint, tiny_folder, tmp_path):
    wanted = st.EvaluationRequest(
        parts=("conditions", "counterfactual"), spots=8, seeds=1, steps=2, pairs=8, draws=100, genes=10
    )
    seen = []
    found = evaluate(tiny_checkpoint, tiny_folder, wanted, output=tmp_path / "o", device="cpu", on_progress=seen.append)
    assert found.complete and found.report.claims and "swap" in found.report.facts["counterfactual"]
    page = found.report.html.read_text()
    assert "Does the true condition beat its controls?" in page and "Counterfactual: edits of real tissue" in page
    counts = [one.patches_done for one in seen]
    assert {one.patches_total for one in seen} == {found.total} and counts == sorted(counts)
    assert counts[0] == 0 and counts[-1] == found.done == found.total


def test_a_folder_that_holds_an_evaluation_is_refused_and_with_resume_nothing_is_edited_anew(printed):
    _, words, out = printed
    again = CliRunner().invoke(app, list(map(str, words)))
    assert again.exit_code != 0 and isinstance(again.exception, StoreError)
    before = {path.name: path.stat().st_mtime_ns for path in (out / STACKS).iterdir()}
    more = CliRunner().invoke(app, [*map(str, words), "--resume"])
    assert more.exit_code == 0, more.output
    assert {path.name: path.stat().st_mtime_ns for path in (out / STACKS).iterdir()} == before
    assert json.loads(more.stdout)["counterfactual"] == printed[0]["counterfactual"]


def test_the_command_paints_crops_and_swap_and_control_share_their_noise(
    tiny_checkpoint, tiny_folder, tmp_path, printed, monkeypatch
):
    from napari_stmdit.editing import TissueEditor

    asked, found = [], []
    path, keys = TissueEditor._canvas_path, []

    def counting(self, key, *rest):
        before = self.abducted
        keys.append(key)
        result = yield from path(self, key, *rest)
        (found if self.abducted == before else asked).append(key)
        return result

    monkeypatch.setattr(TissueEditor, "_canvas_path", counting)
    words = [str(tmp_path / "report") if word == printed[2] else word for word in printed[1]]
    done = CliRunner().invoke(app, [*map(str, words), "--mode", "continuous"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["counterfactual"]
    assert facts["mode"] == "continuous" and printed[0]["counterfactual"]["mode"] == "spots"
    assert set(facts) == set(printed[0]["counterfactual"])
    for part in ("swap", "swap_control"):
        assert set(facts[part]["nuclei"]) == set(printed[0]["counterfactual"][part]["nuclei"])
    assert facts["swap"] != printed[0]["counterfactual"]["swap"]
    assert keys[:16:2] == keys[1:16:2] and set(keys[1:16:2]) <= set(found)
    assert "painted as a region in continuous mode" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mode", "continuous"), "--mode is for the part counterfactual"),
        (("--parts", "counterfactual", "--mode", "sideways"), "mode"),
        (("--parts", "counterfactual", "--spots", "9"), "--spots is for the part conditions"),
        (("--pairs", "9"), "--pairs is for the part counterfactual"),
        (("--parts", "sideways"), "expected conditions, counterfactual or all"),
    ],
)
def test_options_that_a_part_does_not_heed_are_refused(tiny_checkpoint, tiny_folder, options, says):
    done = CliRunner().invoke(app, ["evaluate", str(tiny_checkpoint), str(tiny_folder), *options])
    assert isinstance(done.exception, StmditError) and says in str(done.exception)


@pytest.fixture(scope="module")
def many_spots(tmp_path_factory):
    """A check on a section whose spots suffice for a map, with a model that has a map which moves nothing."""
    section, model = telling_section(rows=15, columns=12), Still(EDITS)
    rng = np.random.default_rng(0)
    expression = model.encode_expression(section.spots.counts, section.spots.genes)
    nothing = rng.normal(size=(len(expression), 1, 6)).astype(np.float32)
    still = fit_morphology_map(expression, nothing, yx=section.spots.yx)
    model.morphology_map = replace(still, weights=still.weights * 0)
    check = CounterfactualCheck(section, model, REQUEST, tmp_path_factory.mktemp("many"), 8, checks=())
    return check, finished(check.run())


def test_a_checkpoints_map_is_fitted_further_on_the_section_and_the_report_says_so(many_spots):
    check, found = many_spots
    assert found["map_from"] == "the checkpoint, fitted further on the section"
    assert found["map"]["spots"] == 180 and found["morphology_explained"] > 0.3
    assert follows_of(check.section, check.model.card, check.model) is check.follows
    alone = CounterfactualCheck(telling_section(rows=9), check.model, REQUEST, check.folder, 8, checks=())
    assert finished(alone.run())["map_from"] == "the checkpoint"  # 54 spots are too few


def test_reading_all_spots_is_told_and_may_be_stopped(tmp_path):
    model, cancel, told = Still(EDITS), CancelToken(), []
    section = telling_section(rows=15, columns=12)
    check = CounterfactualCheck(section, model, REQUEST, tmp_path, 8, cancel, checks=())
    for progress in check.run():
        told.append(progress.doing)
        if len(told) == 3:
            cancel.cancel()
    assert told == ["", *(f"Reading the tissue of this section: {n} of 180 spots" for n in (0, 16))]


def test_a_spot_is_edited_by_what_was_fitted_without_it(many_spots):
    check, _ = many_spots
    before = check._follows_without(3, 40)
    assert check._follows_without(40, 3) is before
    known = check.all.morphology
    changed = known.copy()
    changed[[3, 40]] += 100
    try:
        check.all.morphology = changed
        check.without.clear()
        after = check._follows_without(3, 40)
        np.testing.assert_array_equal(after.map.weights, before.map.weights)
        np.testing.assert_array_equal(after.trend.loadings, before.trend.loadings)
        other = next(row for row in range(180) if check.folds[row] not in check.folds[[3, 40]])
        after = check._follows_without(other)
        assert not np.array_equal(after.map.weights, before.map.weights)
        assert not np.array_equal(after.trend.loadings, before.trend.loadings)
    finally:
        check.all.morphology = known


def test_a_check_that_was_stopped_goes_on(section, tmp_path):
    class Stopping(Pasting):
        def images(self, batch):
            if len(self.batches) == 3:
                cancel.cancel()
            return super().images(batch)

    cancel = CancelToken()
    found = evaluate(Stopping(EDITS, section), section, REQUEST, output=tmp_path / "o", cancel=cancel)
    assert not found.complete and found.done < found.total
    whole = evaluate(Pasting(EDITS, section), section, REQUEST, output=tmp_path / "o", resume=True)
    assert whole.complete and whole.report.facts["counterfactual"]["swap"]["nuclei"]["coefficient"] > 0.99


def test_a_checkpoint_that_cannot_edit_and_several_sections_are_refused(section, tmp_path):
    with pytest.raises(RequestError, match="has no encoder"):
        evaluate(Still(CARD), section, REQUEST, output=tmp_path / "a")
    with pytest.raises(RequestError, match="one section, got 2"):
        evaluate(Still(EDITS), [section, telling_section(1, "b")], REQUEST, output=tmp_path / "b")


def test_an_evaluation_of_before_is_still_the_same_work():
    from napari_stmdit.evaluation.report import _work_of

    request = st.EvaluationRequest().model_dump(mode="json")
    older = {name: value for name, value in request.items() if name not in ("parts", "pairs", "mode")}
    about = {"kind": "checkpoint", "sections": []}
    assert _work_of({**about, "request": request}) == _work_of({**about, "request": older})


def test_new_nuclei_are_as_many_at_every_scale():
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    real = np.full((200, 200, 3), 235, np.uint8)
    edited = real.copy()
    yy, xx = np.mgrid[:200, :200]
    for y, x in [(20 + 40 * k, 20 + 40 * j) for k in range(5) for j in range(5)]:
        edited[(yy - y) ** 2 + (xx - x) ** 2 < 36] = (60, 30, 90)
    edited = np.clip(edited + rng.normal(0, 4, edited.shape), 0, 255).astype(np.uint8)
    found = []
    for factor in (1, 2.5):
        a, b = (zoom(one, (factor, factor, 1), order=1) for one in (real, edited))
        everywhere = np.ones(a.shape[:2], dtype=bool)
        found.append(new_nuclei(a, b, 0.7 / factor, everywhere, everywhere, ~everywhere)["inside"])
    assert found[0] == pytest.approx(25 / (200 * 0.7 / 1000) ** 2, rel=0.01) and found[1] == pytest.approx(
        found[0], rel=0.1
    )


def test_the_check_reads_as_many_spots_for_the_map_as_a_run_does(many_spots, monkeypatch):
    from napari_stmdit.synthesis import counterfactual

    check, _ = many_spots
    check.without.clear()
    monkeypatch.setattr(counterfactual, "MAX_FURTHER_SPOTS", 150)
    kept = ~np.isin(check.folds[evenly_spaced(len(check.section.spots), 150)], check.folds[[3, 40]])
    assert check._follows_without(3, 40).map.spots == kept.sum() < 150
    check.without.clear()
