import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import plain_transformer, tiny_transformer
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError, NotFiniteError, SynthesisError
from napari_stmdit.model.autoencoder import StmditAutoencoder
from napari_stmdit.model.counterfactual import (
    MAX_RATIO,
    CanvasWindows,
    abduct,
    changed_items,
    counterfactual_fault,
    edited_pixels,
    mixed_noise,
    ode_path,
    predict,
    reached,
    restored,
)
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.progress import finish

FLOW = FlowMatchEulerDiscreteScheduler()
NOISE = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
SIDE = 8


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(count, seed=0, morphology=10, expression=8):
    return ConditionTensors(draw((count, 1, morphology), seed), draw((count, expression), seed + 1))


def edited(measured, *items, by=1.0):
    """The conditions with another expression of some items."""
    expression = measured.expression.clone()
    for item in items:
        expression[item] += by * draw(expression.shape[1:], 100 + item)
    return ConditionTensors(measured.morphology, expression, measured.expression_keep)


@pytest.fixture(scope="module")
def net():
    return tiny_transformer()


@pytest.fixture(scope="module")
def kept(net):
    return finish(abduct(net, FLOW, draw((3, 12, SIDE, SIDE), 5), conditions(3), steps=6))


class Counted:
    """A transformer without anything prepared, whose calls and items are counted."""

    def __init__(self, net):
        self.net, self.config, self.device, self.items = net, net.config, net.device, []

    def __call__(self, latents, times, **given):
        self.items.append(len(latents))
        return self.net(latents, times, **given)


# ------------------------------------------------------------------------------------------------- nothing from nothing


V = DDIMScheduler(prediction_type="v_prediction")
V_WITHOUT_END = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
NETWORKS = {
    "flow": (tiny_transformer, FLOW, (12, 8, 8)),
    "noise, learned sigma": (plain_transformer, NOISE, (4, 8, 8)),
    "v": (plain_transformer, V, (4, 8, 8)),
    "v, no signal at the end": (plain_transformer, V_WITHOUT_END, (4, 8, 8)),
}


def return_through_the_network(transformer, scheduler, latents, measured):
    """Give the abducted noise as if it were another one, so that nothing is left out as unchanged."""
    kept = finish(abduct(transformer, scheduler, latents, measured, steps=8))
    torch.testing.assert_close(kept.latents, latents, atol=1e-6, rtol=1e-5)
    assert kept.noise.shape == latents.shape and torch.isfinite(kept.noise).all()
    change = finish(predict(transformer, kept, measured, noise=kept.noise))
    assert change.abs().mean() <= 0.05  # random weights amplify the rounding of the noise, on some processors more
    assert not finish(predict(transformer, kept, measured)).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_under_unchanged_conditions_latents_return_through_the_network(name):
    make, scheduler, shape = NETWORKS[name]
    return_through_the_network(make(), scheduler, draw((2, *shape), 5), conditions(2))


@pytest.mark.parametrize("variant", ["adaln", "both", "xattn"])
def test_latents_return_through_the_reference_networks(golden, variant):
    transformer = load_transformer(golden / f"stmdit_tiny_{variant}.safetensors")
    return_through_the_network(transformer, NOISE, draw((2, 16, 16, 16), 5), conditions(2, 0, 1536, 256))


def test_a_scale_predicts_twice_only_what_differs(net, kept):
    other, counted, fractions = edited(kept.conditions, 0), Counted(net), []
    change = finish(predict(counted, kept, other, scale=2.0), on_step=lambda step: fractions.append(step.fraction))
    # at the noise nothing has changed, and the path says what is predicted under the measured conditions
    assert sum(counted.items) == 7 + 6 and fractions[-1] == 1
    counted = Counted(net)
    fresh = finish(predict(counted, kept, other, scale=2.0, noise=kept.noise))
    # other noise changes all three items, but without other conditions both predictions are one
    assert sum(counted.items) == 7 * 3 + 7
    torch.testing.assert_close(fresh[0], change[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 7.0])
def test_without_an_edit_nothing_is_computed_and_nothing_changes(net, kept, scale):
    counted = Counted(net)
    change = finish(predict(counted, kept, kept.conditions, scale=scale))
    assert change.shape == kept.latents.shape and not change.any() and not counted.items


def test_only_items_whose_conditions_differ_are_computed_and_change(net, kept):
    counted = Counted(net)
    change = finish(predict(counted, kept, edited(kept.conditions, 1)))
    assert [bool(one.any()) for one in change] == [False, True, False]
    assert set(counted.items) == {1} and len(counted.items) == 7  # one call at each node


def test_morphology_is_a_condition_too(kept):
    moved = kept.conditions.morphology.clone()
    moved[2] += 0.5
    other = ConditionTensors(moved, kept.conditions.expression)
    assert changed_items(kept.conditions, other).tolist() == [False, False, True]
    assert changed_items(kept.conditions, ConditionTensors(None, kept.conditions.expression)).all()


# ------------------------------------------------------------------------------------------------- it is the ODE


def plain(net, latents, measured, other, steps):
    """Heun's method there under the measured conditions, and back under others."""
    x = latents
    for grid, given in ((torch.linspace(0, 1, steps + 1), measured), (torch.linspace(1, 0, steps + 1), other)):
        for s, t in itertools.pairwise(grid):

            def velocity(level, x, given=given):
                told = torch.full((len(x),), float(max(level, 1e-3)) * 1000)
                return net(x, told, given.morphology, given.expression)

            first = velocity(s, x)
            x = x + (t - s) / 2 * (first + velocity(t, x + (t - s) * first))
    return x


class Smooth(Counted):
    """A network that, as trained ones, changes little from one time to the next: random weights hear the finest of the sinusoids."""

    def __call__(self, latents, times, *given, **named):
        return self.net(latents, times / 100, *given, **named)


@torch.no_grad()
def test_the_change_is_that_of_the_ode_there_and_back(net):
    smooth, latents, measured = Smooth(net), draw((1, 12, SIDE, SIDE), 5), conditions(1)
    other = edited(measured, 0)
    errors = []
    wanted = plain(smooth, latents, measured, other, 48) - plain(smooth, latents, measured, measured, 48)
    for steps in (6, 12, 24):
        abduction = finish(abduct(smooth, FLOW, latents, measured, steps=steps))
        errors.append(float((finish(predict(smooth, abduction, other)) - wanted).norm() / wanted.norm()))
    assert errors[2] < 0.01
    assert errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 2.5  # a method of second order: a quarter each time


class AsNoise:
    """A flow network as one of noise or v prediction, by the exact change of variables."""

    def __init__(self, net, scheduler, kind):
        self.net, self.config, self.device, self.kind = net, net.config, net.device, kind
        self.kept = scheduler.alphas_cumprod.double()

    def __call__(self, latents, times, **given):
        level = self.kept[times.long()]
        a, s = (part.float()[:, None, None, None] for part in (level.sqrt(), (1 - level).sqrt()))
        x = latents / (a + s)
        told = (s / (a + s)).flatten().clamp_min(1e-3) * 1000
        velocity = self.net(x, told, **given)
        clean, noise = x - s / (a + s) * velocity, x + a / (a + s) * velocity
        return noise if self.kind == "epsilon" else a * noise - s * clean


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_v_prediction_give_what_the_same_network_gives_as_flow(net, kind):
    """Steps lie elsewhere in the time of the noise schedule, so both are taken fine."""
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    latents, measured = 0.5 * draw((1, 12, SIDE, SIDE), 5), conditions(1)
    other = edited(measured, 0, by=0.5)
    changes = []
    smooth = Smooth(net)
    for transformer, made in ((smooth, FLOW), (AsNoise(smooth, scheduler, kind), scheduler)):
        abduction = finish(abduct(transformer, made, latents, measured, steps=40))
        changes.append(finish(predict(transformer, abduction, other)))
    assert (changes[0] - changes[1]).norm() < 0.03 * changes[0].norm()


def test_only_what_a_scheduler_says_of_the_noise_matters(net):
    latents, measured = draw((1, 4, SIDE, SIDE), 5), conditions(1)
    transformer = plain_transformer()
    same = [
        NOISE,
        DDIMScheduler(beta_start=1e-4, beta_end=0.02),
        EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02),
    ]
    found = [finish(abduct(transformer, scheduler, latents, measured, steps=3)).noise for scheduler in same]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_a_schedule_without_any_signal_left_is_cut_off_where_float32_still_holds_the_data():
    path = ode_path(DDIMScheduler(rescale_betas_zero_snr=True), 5)
    assert path.tau[-1] <= MAX_RATIO and list(path.tau) == sorted(path.tau)


# ------------------------------------------------------------------------------------------------- w, samples


def test_the_change_grows_in_a_straight_line_with_a_small_scale(net, kept):
    other = edited(kept.conditions, 0, 1, 2)
    small, twice, one = (finish(predict(net, kept, other, scale=w)) for w in (0.01, 0.02, 1.0))
    assert (twice - 2 * small).norm() < 0.05 * twice.norm()
    torch.testing.assert_close(one, finish(predict(net, kept, other, scale=1.0 + 1e-7)), atol=1e-3, rtol=1e-3)


def test_mixed_noise_keeps_its_spread_and_changes_all(net, kept):
    fresh = draw(kept.noise.shape, 9)
    mixed = mixed_noise(draw(kept.noise.shape, 8), fresh, 0.4)
    assert mixed.std() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(mixed_noise(kept.noise, fresh, 0.0), kept.noise)
    change = finish(predict(net, kept, kept.conditions, noise=mixed_noise(kept.noise, fresh, 0.3)))
    assert all(one.any() for one in change)
    with pytest.raises(SynthesisError, match="share"):
        mixed_noise(kept.noise, fresh, 1.5)


# ------------------------------------------------------------------------------------------------- batches, stops, memory


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_an_item_does_not_depend_on_its_batch(net, kept, batch):
    alone = finish(abduct(net, FLOW, kept.latents[1:2], conditions_of(kept, [1]), steps=6))
    together = finish(abduct(net, FLOW, kept.latents, kept.conditions, steps=6, batch=batch))
    torch.testing.assert_close(together.noise[1:2], alone.noise, atol=1e-4, rtol=1e-4)
    other = edited(kept.conditions, 0, 1, 2)
    changes = finish(predict(net, together, other, batch=batch))
    own = ConditionTensors(other.morphology[1:2], other.expression[1:2])
    torch.testing.assert_close(changes[1:2], finish(predict(net, alone, own)), atol=1e-3, rtol=1e-3)


def conditions_of(kept, items):
    return ConditionTensors(kept.conditions.morphology[items], kept.conditions.expression[items])


def test_a_stop_is_asked_for_at_every_network_call(net, kept):
    for work, calls in (
        (lambda n: abduct(n, FLOW, kept.latents, kept.conditions, steps=6, batch=1), 21),
        (lambda n: predict(n, kept, edited(kept.conditions, 0, 2), batch=1), 14),
    ):
        counted = Counted(net)
        fractions = []
        finish(work(counted), on_step=lambda step, seen=fractions: seen.append(step.fraction))
        assert len(counted.items) == len(fractions) == calls
        assert fractions == sorted(fractions) and fractions[-1] == 1
        for wanted in (0, 1, 4):
            counted = Counted(net)
            steps = work(counted)
            for _ in range(wanted):
                next(steps)
            steps.close()
            assert len(counted.items) == wanted


def test_a_preview_shows_what_the_change_becomes(net, kept):
    seen = {}
    change = finish(predict(net, kept, edited(kept.conditions, 0), on_estimate=seen.__setitem__))
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert (seen[6] - change).norm() < 0.5 * change.norm()
    assert not seen[1][1].any()


def test_too_little_memory_halves_the_batch(net, kept):
    class Small(Counted):
        def __call__(self, latents, times, **given):
            if len(latents) > 1:
                raise MemoryError("out of memory")
            return super().__call__(latents, times, **given)

    found = finish(abduct(Small(net), FLOW, kept.latents, kept.conditions, steps=6))
    torch.testing.assert_close(found.noise, kept.noise, atol=1e-4, rtol=1e-4)


def test_an_abduction_is_kept_as_arrays_and_taken_up(net, kept, tmp_path):
    np.savez(tmp_path / "kept.npz", **kept.arrays())
    with np.load(tmp_path / "kept.npz", allow_pickle=False) as arrays:
        back = restored(FLOW, arrays, kept.conditions)
    assert back.path.tau == kept.path.tau and torch.equal(back.slopes, kept.slopes)
    other = edited(kept.conditions, 1)
    assert torch.equal(finish(predict(net, back, other)), finish(predict(net, kept, other)))
    with pytest.raises(SynthesisError, match="items"):
        restored(FLOW, kept.arrays(), conditions(2))


# ------------------------------------------------------------------------------------------------- one canvas


def windows(rows, columns, stride=4):
    corners = np.array([(y * stride, x * stride) for y in range(rows) for x in range(columns)])
    bump = np.sin(np.pi * (np.arange(SIDE) + 0.5) / SIDE) ** 2
    size = ((rows - 1) * stride + SIDE, (columns - 1) * stride + SIDE)
    return CanvasWindows(corners, np.maximum(np.outer(bump, bump), 1e-3).astype(np.float32), size)


@pytest.fixture(scope="module")
def canvas(net):
    layout = windows(2, 7)
    latents = draw((12, *layout.size), 6)
    return finish(abduct(net, FLOW, latents, conditions(14), layout=layout, steps=4))


def test_one_window_is_an_item_of_its_own(net):
    layout, latents, measured = windows(1, 1), draw((12, SIDE, SIDE), 6), conditions(1)
    one = finish(abduct(net, FLOW, latents, measured, layout=layout, steps=4))
    item = finish(abduct(net, FLOW, latents[None], measured, steps=4))
    torch.testing.assert_close(one.noise, item.noise[0], atol=1e-5, rtol=1e-5)
    other = edited(measured, 0)
    torch.testing.assert_close(
        finish(predict(net, one, other)), finish(predict(net, item, other))[0], atol=1e-4, rtol=1e-4
    )


def test_the_slope_of_a_canvas_is_the_mean_of_its_windows(canvas):
    layout = canvas.layout
    items = torch.arange(14)
    joined = layout.join(layout.cut(canvas.latents, items), items, canvas.latents)
    torch.testing.assert_close(joined, canvas.latents, atol=1e-5, rtol=1e-5)


def test_windows_that_overlap_no_changed_one_are_not_computed_and_do_not_change(net, canvas):
    other = edited(canvas.conditions, 0)  # the corner: it and its three neighbours share cells
    near = reached(canvas, other)
    assert np.flatnonzero(near).tolist() == [0, 1, 7, 8]
    counted = Counted(net)
    change = finish(predict(counted, canvas, other))
    assert set(counted.items) == {4}
    moved = change.abs().amax(dim=0).numpy() > 0
    covered = canvas.layout.covered(near)
    assert not moved[~covered].any() and moved[:SIDE, :SIDE].all()
    assert covered[:, :12].all() and not covered[:, 12:].any()


def test_a_canvas_without_an_edit_stays_whatever_the_scale(net, canvas):
    assert not finish(predict(net, canvas, canvas.conditions, scale=3.0)).any()
    back = finish(predict(net, canvas, canvas.conditions, noise=canvas.noise))
    assert back.abs().max() <= 0.01


def test_a_canvas_does_not_depend_on_the_batch_nor_on_the_order_of_its_windows(net, canvas):
    other = edited(canvas.conditions, 3, 4)
    wanted = finish(predict(net, canvas, other))
    order = np.random.default_rng(0).permutation(14)
    shuffled = [ConditionTensors(c.morphology[order], c.expression[order]) for c in (canvas.conditions, other)]
    layout = CanvasWindows(canvas.layout.corners[order], canvas.layout.weight.numpy(), canvas.layout.size)
    found = finish(abduct(net, FLOW, canvas.latents, shuffled[0], layout=layout, steps=4, batch=3))
    torch.testing.assert_close(found.noise, canvas.noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(finish(predict(net, found, shuffled[1], batch=5)), wanted, atol=2e-3, rtol=2e-3)


def test_cells_without_a_window_stay(net):
    layout = CanvasWindows(np.array([[0, 0]]), np.ones((SIDE, SIDE), np.float32), (SIDE, 12))
    latents = draw((12, SIDE, 12), 6)
    found = finish(abduct(net, FLOW, latents, conditions(1), layout=layout, steps=3))
    assert torch.equal(found.noise[:, :, SIDE:], latents[:, :, SIDE:])
    assert not finish(predict(net, found, edited(found.conditions, 0)))[:, :, SIDE:].any()


# ------------------------------------------------------------------------------------------------- pixels


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return StmditAutoencoder(latent_channels=12, encoder_widths=(8, 8), decoder_widths=(8, 8, 8)).eval()


def test_without_a_change_the_result_is_the_slide_pixel_by_pixel(vae, kept):
    real = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    change = torch.zeros_like(kept.latents)
    assert np.array_equal(edited_pixels(vae, real, kept.latents, change), real)
    change[1] = 0.5
    result = edited_pixels(vae, real, kept.latents, change)
    assert np.array_equal(result[[0, 2]], real[[0, 2]]) and (result[1] != real[1]).any()


def test_the_result_is_the_real_pixels_plus_the_decoded_difference(vae, kept):
    real = np.full((3, 64, 64, 3), 128, np.uint8)
    change = 0.2 * draw(kept.latents.shape, 3)
    with torch.inference_mode():
        before, after = (vae.decode_latents(x).clamp(-1, 1) for x in (kept.latents, kept.latents + change))
    wanted = 128 + ((after - before) * 127.5).permute(0, 2, 3, 1).numpy()
    result = edited_pixels(vae, real, kept.latents, change)
    assert np.abs(result - np.clip(wanted, 0, 255)).max() <= 0.5 + 1e-3


# ------------------------------------------------------------------------------------------------- what cannot be done


def pipeline(transformer=None, vae=None, scheduler=FLOW):
    autoencoder = vae or StmditAutoencoder(latent_channels=12, encoder_widths=(8, 8), decoder_widths=(8, 8, 8))
    return SimpleNamespace(transformer=transformer or tiny_transformer(), vae=autoencoder, scheduler=scheduler)


def test_a_checkpoint_that_can_has_no_fault(net):
    assert counterfactual_fault(pipeline(net)) is None
    assert counterfactual_fault(pipeline(net, scheduler=NOISE)) is None


def test_a_checkpoint_without_expression_is_refused_in_one_sentence(golden):
    pixcell = load_transformer(golden / "pixcell_tiny_original.safetensors")
    assert "takes no gene expression" in (counterfactual_fault(pipeline(pixcell, scheduler=NOISE)) or "")


def test_a_checkpoint_that_cannot_says_why_in_one_sentence(net):
    without_genes = tiny_transformer(expression_dim=None, expression_adaln=False, expression_cross_attention=False)
    faults = {
        "no gene expression": counterfactual_fault(pipeline(without_genes)),
        "takes no morphology": counterfactual_fault(pipeline(net), ("expression",)),
        "no encoder": counterfactual_fault(pipeline(net, vae=AutoencoderTiny())),
        "morphology_encoder is not there": counterfactual_fault(pipeline(net), lacking=("morphology_encoder",)),
        "EDMEulerScheduler": counterfactual_fault(pipeline(net, scheduler=EDMEulerScheduler())),
    }
    for words, fault in faults.items():
        assert fault is not None and words in fault, (words, fault)
        assert fault.startswith("This checkpoint cannot edit real tissue") and "\n" not in fault and fault.endswith(".")


def test_what_does_not_fit_is_refused(net, kept, canvas):
    with pytest.raises(SynthesisError, match="steps"):
        finish(abduct(net, FLOW, kept.latents, kept.conditions, steps=0))
    with pytest.raises(CheckpointError, match="draw noise"):
        ode_path(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), 4)
    with pytest.raises(SynthesisError, match="for 2 items"):
        finish(abduct(net, FLOW, kept.latents, conditions(2)))
    with pytest.raises(SynthesisError, match="one for each item"):
        finish(abduct(net, FLOW, kept.latents, ConditionTensors()))
    with pytest.raises(SynthesisError, match="a canvas"):
        finish(abduct(net, FLOW, kept.latents, conditions(14), layout=canvas.layout))
    with pytest.raises(SynthesisError, match="noise has shape"):
        finish(predict(net, kept, kept.conditions, noise=kept.noise[:1]))
    with pytest.raises(SynthesisError, match="must lie on the"):
        CanvasWindows(np.array([[0, 5]]), np.ones((SIDE, SIDE), np.float32), (SIDE, 12))


def test_items_that_are_not_finite_are_named(net, kept):
    bad = ConditionTensors(kept.conditions.morphology, kept.conditions.expression.clone())
    bad.expression[1] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        finish(predict(net, kept, bad))
    assert caught.value.items == (1,)
