"""What a batch holds, and what its losses ask for."""

import pytest
import torch

from napari_stmdit.training.batches import Batches, morphology_vectors
from napari_stmdit.training.config import DiffusionSettings
from napari_stmdit.training.latents import window_corners
from napari_stmdit.training.objective import prediction_losses

CELLS, SMALL = 32, 16


@pytest.fixture
def cache():
    """Two crops whose latents name their row and column, and whose morphology names crop and window."""
    rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    latents = torch.stack([torch.stack([rows, columns, torch.full_like(rows, k)]) for k in range(2)]).half()
    windows = 1 + len(window_corners(CELLS, SMALL))
    morphology = torch.stack([torch.stack([torch.full((windows,), k), torch.arange(windows)], dim=1) for k in range(2)])
    return {
        "latents": latents,
        "mean": torch.zeros(3),
        "std": torch.ones(3),
        "morphology": morphology.float(),
        "expression": torch.zeros(2, 4, 5),
    }


def test_a_small_crop_comes_with_the_morphology_of_its_own_window(cache):
    corners = window_corners(CELLS, SMALL)
    batch = Batches(cache, DiffusionSettings(condition_noise=0.0, expression_noise=0.0), seed=0).draw(64, small=True)
    assert batch.latents.shape == (64, 3, SMALL, SMALL)
    for latents, (crop, window) in zip(batch.latents, batch.morphology[:, 0], strict=True):
        top, left, own = latents[:, 0, 0].tolist()
        assert own == crop and corners[int(window) - 1] == (top, left)
    assert len({tuple(pair) for pair in batch.morphology[:, 0].tolist()}) > 20


def test_a_whole_crop_comes_with_the_morphology_of_the_whole(cache):
    batch = Batches(cache, DiffusionSettings(condition_noise=0.0, expression_noise=0.0), seed=0).draw(8, small=False)
    assert batch.latents.shape[-1] == CELLS and bool((batch.morphology[:, 0, 1] == 0).all())


def test_morphology_of_many_tokens_comes_as_it_is_and_one_vector_a_window_as_one_token():
    assert morphology_vectors(torch.zeros(2, 1, 16, 8)).shape == (2, 1, 16, 8)
    assert morphology_vectors(torch.zeros(2, 10, 8)).shape == (2, 10, 1, 8)


def test_every_variant_of_a_crops_expression_comes_as_often(cache):
    crops, variants = torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij")
    cache["expression"] = torch.stack([crops, variants], dim=-1).float()
    batch = Batches(cache, DiffusionSettings(condition_noise=0.0, expression_noise=0.0), seed=0).draw(4000, small=False)
    assert torch.equal(batch.expression[:, 0], batch.morphology[:, 0, 0])
    shares = batch.expression[:, 1].long().bincount(minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_each_kind_of_row_comes_as_often_as_its_share_says(cache):
    settings = DiffusionSettings(share_both=0.4, share_expression=0.3, share_morphology=0.2)
    batch = Batches(cache, settings, seed=0).draw(20000, small=False)
    expression_only = batch.morphology_null & ~batch.expression_null
    morphology_only = ~batch.morphology_null & batch.expression_null
    neither = batch.morphology_null & batch.expression_null
    both = ~batch.morphology_null & ~batch.expression_null
    for kind, share in ((both, 0.4), (expression_only, 0.3), (morphology_only, 0.2), (neither, 0.1)):
        assert kind.float().mean() == pytest.approx(share, abs=0.015)


def test_shifted_levels_visit_nearly_pure_noise_more_often(cache):
    plain, shifted = (Batches(cache, DiffusionSettings(level_shift=s), seed=0).levels(20000, True) for s in (1.0, 3.0))
    # P(level > 0.95) of a logit-normal is P(z > 2.944 - ln shift): 0.0016 and 0.033
    assert (plain > 0.95).float().mean() == pytest.approx(0.0016, abs=0.001)
    assert (shifted > 0.95).float().mean() == pytest.approx(0.033, abs=0.004)
    some = Batches(cache, DiffusionSettings(shifted_share=0.5), seed=0).levels(20000, False)
    assert (some > 0.95).float().mean() == pytest.approx((0.0016 + 0.033) / 2, abs=0.003)


class Offset(torch.nn.Module):
    """Predicts the right velocity plus an error of its own."""

    def __init__(self, velocity, error):
        super().__init__()
        self.velocity, self.error = velocity, error

    def forward(self, mixture, time, **conditions):
        return self.velocity + self.error


def test_a_wrong_mean_costs_more_than_the_same_error_in_detail():
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(2, 3, 16, 16, generator=rng)
    level = torch.tensor([0.3, 0.9])
    exact = prediction_losses(Offset(noise - x, 0.0), x, noise, level)
    assert exact.total(1.0) == 0
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    detail = prediction_losses(Offset(noise - x, 0.1 * checks), x, noise, level)
    mean = prediction_losses(Offset(noise - x, 0.1), x, noise, level)
    assert detail.flow == pytest.approx(0.01, rel=1e-3) and mean.flow == pytest.approx(0.01, rel=1e-3)
    assert detail.local == pytest.approx(0, abs=1e-6) and detail.overall == pytest.approx(0, abs=1e-6)
    assert mean.local == pytest.approx(0.16, rel=1e-3) and mean.overall == pytest.approx(2.56, rel=1e-3)
    assert mean.total(0.5) == pytest.approx(0.01 + 0.5 * (0.16 + 2.56), rel=1e-3)


def test_means_that_are_wrong_in_opposite_ways_in_two_crops_count():
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(2, 3, 16, 16, generator=rng)
    opposite = torch.tensor([0.1, -0.1])[:, None, None, None]
    losses = prediction_losses(Offset(noise - x, opposite), x, noise, torch.tensor([0.3, 0.9]))
    assert losses.overall == pytest.approx(2.56, rel=1e-3)


def test_what_a_transformer_says_of_its_variance_does_not_count():
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(2, 3, 16, 16, generator=rng)
    both = Offset(torch.cat([noise - x, torch.full_like(x, 9.0)], dim=1), 0.0)
    assert prediction_losses(both, x, noise, torch.tensor([0.3, 0.9])).total(1.0) == 0


def test_a_mean_that_is_wrong_in_one_channel_and_right_over_all_of_them_counts():
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 16, 16, generator=rng), torch.randn(2, 2, 16, 16, generator=rng)
    opposite = torch.tensor([0.1, -0.1])[:, None, None]
    losses = prediction_losses(Offset(noise - x, opposite), x, noise, torch.tensor([0.3, 0.9]))
    assert losses.overall == pytest.approx(2.56, rel=1e-3) and losses.local == pytest.approx(0.16, rel=1e-3)


def test_the_noise_on_conditions_is_relative_to_their_spread_which_is_one_where_it_is_not_known(cache):
    settings = DiffusionSettings(condition_noise=0.5, expression_noise=0.25)
    cache["morphology"] = torch.zeros_like(cache["morphology"])
    known = {"morphology_spread": torch.tensor(2.0), "expression_spread": torch.tensor(3.0)}
    for spreads, factor, other in (({}, 1.0, 1.0), (known, 3.0, 2.0)):
        batch = Batches({**cache, **spreads}, settings, seed=0).draw(4000, small=False)
        assert batch.expression.std() == pytest.approx(0.25 * factor, rel=0.03)
        assert batch.morphology.std() == pytest.approx(0.5 * other, rel=0.03)
