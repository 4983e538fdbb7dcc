import pytest
import torch
import torch.nn.functional as F
from torch import nn

from napari_stmdit.model.inference import add_product, attention, linear_gelu

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("keys", [40, 7])
def test_the_forms_of_inference_are_those_of_training(kind, keys):
    torch.manual_seed(0)
    layer = nn.Linear(24, 48)
    x, k, v = torch.randn(2, 40, 24), torch.randn(2, keys, 24), torch.randn(2, keys, 24)
    expected = F.gelu(layer(x), approximate="tanh").detach()
    heads = [y.view(2, -1, 4, 6).transpose(1, 2) for y in (x, k, v)]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    close = {"rtol": 0, "atol": TOLERANCE.get(kind, 3e-2)}
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            layer.to(kind)
            cast = [y.to(kind) for y in (x, k, v)]
            torch.testing.assert_close(linear_gelu(layer, cast[0]).float(), expected, **close)
            torch.testing.assert_close(attention(*cast, 4).float(), attended, **close)
            mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
            torch.testing.assert_close(attention(*cast, 4, mask).float(), attended, **close)
    assert (expected - F.relu(layer.float()(x))).abs().max() > 0.1  # the activation is seen


def test_gradients_pass_through_the_fused_map():
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    linear_gelu(layer, x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None


def test_adding_a_product_keeps_the_precision_of_the_sum_under_autocast():
    x, a, b = torch.randn(2, 5, 6), torch.randn(2, 5, 3), torch.randn(2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(add_product(x, a, b), x + a @ b)
        with torch.autocast("cpu", torch.bfloat16):
            assert add_product(x, a, b).dtype == torch.float32
