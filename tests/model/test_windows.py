import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from napari_stmdit.errors import SynthesisError
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.sampler import ConditionTensors, denoise, noise_for
from napari_stmdit.model.transformer import STMDiTTransformer2D
from napari_stmdit.model.windows import WindowConditions, _Windows, window_starts


def tiny_transformer() -> STMDiTTransformer2D:
    torch.manual_seed(0)
    net = STMDiTTransformer2D(
        in_channels=4, out_channels=4, sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        morphology_dim=6, expression_dim=5, expression_adaln=True, expression_cross_attention=True,
    )  # fmt: skip
    for parameter in net.parameters():  # the zero start of training would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def test_windows_cover_the_canvas_and_end_at_its_border():
    starts = window_starts((100, 64), 32, 16)
    covered = np.zeros((100, 64), dtype=int)
    for y, x in starts:
        covered[y : y + 32, x : x + 32] += 1
    assert covered.min() >= 1
    assert starts.max(axis=0).tolist() == [68, 32]
    with pytest.raises(SynthesisError, match="do not cover"):
        window_starts((20, 64), 32, 16)


def test_one_window_is_the_plain_transformer():
    net = tiny_transformer()
    expression = np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32)
    canvas = _Windows(net, window_starts((8, 8), 8, 4), 8, WindowConditions(None, expression), batch=4)
    noise = noise_for([3], (4, 8, 8))
    plan = branches("nested_morphology_first", 0.0, 2.0, has_morphology=False)
    scheduler = FlowMatchEulerDiscreteScheduler()
    whole = [z for _, z in denoise(canvas, scheduler, noise, ConditionTensors(), plan, 3)][-1]
    given = ConditionTensors(expression=torch.from_numpy(expression))
    plain = [z for _, z in denoise(net, scheduler, noise, given, plan, 3)][-1]
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=1e-5)


def test_each_window_follows_its_own_expression_and_the_batch_does_not_matter():
    net = tiny_transformer()
    starts = window_starts((8, 24), 8, 4)
    rows = np.random.default_rng(1).normal(size=(len(starts), 5)).astype(np.float32)
    plan = branches("nested_morphology_first", 0.0, 1.0, has_morphology=False)
    noise = noise_for([5], (4, 8, 24))

    def final(conditions: np.ndarray, batch: int) -> torch.Tensor:
        canvas = _Windows(net, starts, 8, WindowConditions(None, conditions), batch)
        return [z for _, z in denoise(canvas, FlowMatchEulerDiscreteScheduler(), noise, ConditionTensors(), plan, 2)][
            -1
        ]

    before = final(rows, 2)
    torch.testing.assert_close(before, final(rows, 5), atol=1e-5, rtol=1e-5)
    changed = rows.copy()
    changed[-1] += 3.0  # the right-most window, columns 16 to 24
    difference = (final(changed, 2) - before).abs().amax(dim=(0, 1, 2))
    assert difference[20:].min() > 1e-3
    assert difference[:4].max() < 1e-6
