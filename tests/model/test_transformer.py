import pytest
import torch
from checkpoints import TINY_OPTIONS, plain_transformer, tiny_transformer

from napari_stmdit.errors import SynthesisError
from napari_stmdit.model.inference import attention as plain_attention
from napari_stmdit.model.transformer import CrossAttention, STMDiTTransformer2D

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inputs(net, batch=2, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": draw(batch, net.config.in_channels, height, width),
        "timestep": torch.linspace(20, 900, batch),
        "morphology": draw(batch, net.config.morphology_dim),
        "expression": draw(batch, net.config.expression_dim),
    }


@pytest.mark.parametrize("build", [tiny_transformer, plain_transformer])
@torch.no_grad()
def test_every_input_matters_and_items_are_independent(build):
    net = build()
    given = inputs(net)
    output = net(**given)
    assert output.shape == (2, net.config.out_channels, 8, 8)
    for name, value in given.items():
        changed = net(**{**given, name: value + torch.tensor([0.0, 0.5]).view(-1, *[1] * (value.ndim - 1))})
        torch.testing.assert_close(changed[0], output[0], **CLOSE)
        assert (changed[1] - output[1]).abs().max() > 1e-4, name


@torch.no_grad()
def test_fractions_of_a_timestep_count():
    net = tiny_transformer()
    given = inputs(net)
    moved = net(**{**given, "timestep": given["timestep"] + 0.25})
    assert (moved - net(**given)).abs().max() > 1e-4


@torch.no_grad()
def test_null_mask_equals_no_condition():
    net = tiny_transformer()
    given = inputs(net)
    all_null = torch.ones(2, dtype=torch.bool)
    masked = net(**given, morphology_null=all_null, expression_null=all_null)
    absent = net(given["hidden_states"], given["timestep"])
    asked = net(given["hidden_states"], given["timestep"], None, None, all_null, all_null)
    torch.testing.assert_close(masked, absent, **CLOSE)
    torch.testing.assert_close(asked, absent, **CLOSE)
    assert (masked - net(**given)).abs().max() > 1e-4


@pytest.mark.parametrize("pooling", ["none", "pma"])
@torch.no_grad()
def test_a_set_of_expression_vectors_ignores_what_is_not_kept(pooling):
    net = tiny_transformer(expression_pooling=pooling, expression_pool_tokens=3 if pooling == "pma" else 0)
    given = inputs(net)
    vectors = torch.randn(2, 5, net.config.expression_dim, generator=torch.Generator().manual_seed(3))
    keep = torch.tensor([[True, True, False, False, True], [True] * 5])
    output = net(**{**given, "expression": vectors}, expression_keep=keep)
    other = torch.where(keep[..., None], vectors, vectors + 7)
    torch.testing.assert_close(net(**{**given, "expression": other}, expression_keep=keep), output, **CLOSE)
    assert (net(**{**given, "expression": vectors}) - output)[0].abs().max() > 1e-4
    swapped = vectors[:, [4, 3, 2, 1, 0]], keep[:, [4, 3, 2, 1, 0]]  # a set has no order
    again = net(**{**given, "expression": swapped[0]}, expression_keep=swapped[1])
    torch.testing.assert_close(again, output, **CLOSE)
    nothing_kept = torch.tensor([[False] * 5, [True] * 5])  # allowed where the item is null
    for kept in (keep, nothing_kept):
        null = net(**{**given, "expression": vectors}, expression_null=torch.tensor([True, True]), expression_keep=kept)
        torch.testing.assert_close(null, net(**{**given, "expression": None}), **CLOSE)


@pytest.mark.parametrize("build", [tiny_transformer, plain_transformer])
@torch.no_grad()
def test_latents_need_not_be_square(build):
    net = build()
    given = inputs(net, height=6, width=10)
    output = net(**given)
    assert output.shape[2:] == (6, 10)
    if net.position_table is not None:
        turned = net(**{**given, "hidden_states": given["hidden_states"].transpose(2, 3)})
        assert (turned.transpose(2, 3) - output).abs().max() > 1e-3  # rows and columns are not exchangeable


@pytest.mark.parametrize("keys", [1, 2, 7])
@torch.no_grad()
def test_projections_carried_to_few_keys_give_the_same(keys):
    torch.manual_seed(0)
    attention = CrossAttention(32, 4)
    x, context = torch.randn(2, 40, 32), torch.randn(2, keys, 32)
    keep = torch.rand(2, keys) > 0.4
    keep[:, 0] = True
    if keys == 1:
        keep[:] = True
    k, v = attention.kv(context).chunk(2, dim=-1)
    direct = attention.proj(plain_attention(attention.q(x), k, v, 4, keep[:, None, None]))
    torch.testing.assert_close(attention(x, context, keep).expand_as(direct), direct, **CLOSE)


def test_a_fresh_transformer_starts_at_zero_and_every_parameter_learns():
    torch.manual_seed(0)
    net = STMDiTTransformer2D(**TINY_OPTIONS)
    given = inputs(net, batch=4)
    assert float(net(**given).detach().abs().max()) == 0
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    moved = dict.fromkeys(dict(net.named_parameters()), 0.0)
    nulls = torch.tensor([False, True, False, True]), torch.tensor([False, False, True, True])
    target = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(9))
    losses = []
    for _ in range(4):  # gates open after the first step, so gradients reach the depth one step after another
        optimiser.zero_grad()
        loss = (net(**given, morphology_null=nulls[0], expression_null=nulls[1]) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
        for name, parameter in net.named_parameters():
            moved[name] += float(parameter.grad.abs().sum()) if parameter.grad is not None else 0.0
    assert [name for name, total in moved.items() if total == 0] == []
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(2, 5, 8, 8)}, r"hidden_states has shape \(2, 5, 8, 8\)"),
        ({"hidden_states": torch.zeros(2, 12, 7, 8)}, "multiples of 2"),
        ({"hidden_states": torch.zeros(12, 8, 8)}, "hidden_states"),
        ({"timestep": torch.zeros(3)}, "timestep"),
        ({"timestep": torch.tensor(3.0)}, "timestep"),
        ({"morphology": torch.zeros(2, 9)}, r"morphology has shape \(2, 9\).*\(2, 1, 10\)"),
        ({"morphology": torch.zeros(2, 2, 10)}, "morphology"),
        ({"morphology": torch.zeros(1, 10)}, "morphology"),
        ({"expression": torch.zeros(2, 7)}, "expression"),
        ({"expression": torch.zeros(2, 3, 7)}, "expression"),
        ({"expression": torch.zeros(3, 8)}, "expression"),
        ({"morphology_null": torch.zeros(2)}, "morphology_null"),
        ({"morphology_null": torch.zeros(3, dtype=torch.bool)}, "morphology_null"),
        ({"morphology": None, "morphology_null": torch.tensor([True, False])}, "for 1 of 2 items"),
        ({"expression": None, "expression_null": torch.tensor([False, False])}, "for 2 of 2 items"),
        (
            {"expression": torch.zeros(2, 3, 8), "expression_keep": torch.ones(2, 4, dtype=torch.bool)},
            "expression_keep",
        ),
        (
            {"expression": torch.zeros(2, 3, 8), "expression_keep": torch.zeros(2, 3, dtype=torch.bool)},
            "without any vector",
        ),
    ],
)
def test_wrong_shapes_are_told_at_once(change, message):
    net = tiny_transformer()
    with pytest.raises(SynthesisError, match=message):
        net(**{**inputs(net), **change})


def test_a_transformer_without_expression_takes_none():
    net = plain_transformer(expression_dim=None, expression_adaln=False, expression_cross_attention=False)
    given = {"hidden_states": torch.zeros(1, 4, 8, 8), "timestep": torch.zeros(1), "morphology": torch.zeros(1, 10)}
    assert net(**given, expression_null=torch.tensor([True])).shape == (1, 8, 8, 8)
    with pytest.raises(SynthesisError, match="no expression condition"):
        net(**given, expression=torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 24}, "out_channels is 24, expected 12"),
        ({"learn_sigma": True}, "out_channels is 12, expected 24"),
        ({"expression_dim": None}, "expression_dim needs"),
        ({"expression_pooling": "pma"}, "pma"),
        ({"morphology_tokens": 3, "morphology_position": True}, "square number"),
        ({"position_embedding": "learned"}, "sincos"),
        ({"sample_size": 9}, "sample_size"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(SynthesisError, match=message):
        STMDiTTransformer2D(**{**TINY_OPTIONS, **options})
