import pytest
import torch

from napari_stmdit.errors import SynthesisError
from napari_stmdit.model.guidance import Branch, branches, by_level, combine

RULES = ("nested_morphology_first", "nested_expression_first", "additive")


@pytest.fixture
def predictions():
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {(False, False): drawn[0], (True, False): drawn[1], (False, True): drawn[2], (True, True): drawn[3]}


def guided(plan, predictions):
    return combine([predictions[branch.morphology, branch.expression] for branch in plan], plan)


def test_equations(predictions):
    e00, em, eg, emg = (predictions[key] for key in ((False, False), (True, False), (False, True), (True, True)))
    expected = {
        "nested_morphology_first": e00 + 1.7 * (em - e00) + 2.9 * (emg - em),
        "nested_expression_first": e00 + 2.9 * (eg - e00) + 1.7 * (emg - eg),
        "additive": e00 + 1.7 * (em - e00) + 2.9 * (eg - e00),
    }
    for rule in RULES:
        torch.testing.assert_close(guided(branches(rule, 1.7, 2.9), predictions), expected[rule])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scales", [(0, 0), (1, 1), (2, 2), (0, 3), (3, 0), (1, 0), (0, 1), (1.5, 4)])
def test_coefficients_sum_to_one_and_none_is_zero(rule, scales):
    plan = branches(rule, *scales)
    assert sum(branch.coefficient for branch in plan) == pytest.approx(1)
    assert all(abs(branch.coefficient) > 0 for branch in plan)
    assert len({(branch.morphology, branch.expression) for branch in plan}) == len(plan)


@pytest.mark.parametrize("rule", RULES[:2])
def test_nested_identities(rule, predictions):
    assert [(b.morphology, b.expression, b.coefficient) for b in branches(rule, 1, 1)] == [(True, True, 1)]
    ordinary = branches(rule, 2.5, 2.5)
    assert [(b.morphology, b.expression) for b in ordinary] == [(False, False), (True, True)]
    e00, emg = predictions[False, False], predictions[True, True]
    torch.testing.assert_close(guided(ordinary, predictions), e00 + 2.5 * (emg - e00))


def test_scale_zero_leaves_a_condition_out():
    plan = branches("nested_morphology_first", 3, 0)
    assert [(b.morphology, b.expression, b.coefficient) for b in plan] == [(False, False, -2), (True, False, 3)]
    assert [(b.morphology, b.expression) for b in branches("additive", 0, 0)] == [(False, False)]


@pytest.mark.parametrize("rule", RULES)
def test_a_condition_of_scale_zero_is_seen_by_no_prediction_under_any_rule(rule, predictions):
    e00, em, eg = (predictions[key] for key in ((False, False), (True, False), (False, True)))
    without = branches(rule, 0, 2.5)
    assert not any(b.morphology for b in without)
    torch.testing.assert_close(guided(without, predictions), e00 + 2.5 * (eg - e00))
    assert without == branches(rule, 2.5, 2.5, has_morphology=False)
    without = branches(rule, 2.5, 0)
    assert not any(b.expression for b in without)
    torch.testing.assert_close(guided(without, predictions), e00 + 2.5 * (em - e00))
    assert branches(rule, 0, 0) == (Branch(False, False, 1),)


def test_below_the_interval_a_condition_of_scale_zero_stays_left_out():
    assert by_level(branches("nested_morphology_first", 0, 2), [0.1], 0.5) == [(Branch(False, True, 1.0),)]
    assert by_level(branches("nested_expression_first", 2, 0), [0.1], 0.5) == [(Branch(True, False, 1.0),)]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_computed_twice_when_a_condition_is_null(rule):
    only_morphology = branches(rule, 3, 2, has_expression=False)
    assert [(b.morphology, b.expression) for b in only_morphology] == [(False, False), (True, False)]
    assert [b.coefficient for b in only_morphology] == pytest.approx([-2, 3])
    only_expression = branches(rule, 3, 2, has_morphology=False)
    assert [(b.morphology, b.expression) for b in only_expression] == [(False, False), (False, True)]
    assert [b.coefficient for b in only_expression] == pytest.approx([-1, 2])
    assert [b.coefficient for b in branches(rule, 3, 2, has_morphology=False, has_expression=False)] == pytest.approx(
        [1]
    )
    assert len(branches(rule, 1, 0.1, has_expression=False)) == 1  # 1 - wm cancels only up to rounding


def test_unknown_rule():
    with pytest.raises(SynthesisError, match="nested_morphology_first"):
        branches("multiplicative", 1, 1)


def test_below_the_interval_one_conditional_prediction_is_left():
    guided = branches("nested_morphology_first", 1.5, 2.0)
    steps = by_level(guided, [1.0, 0.5, 0.49, 0.0], 0.5)
    assert steps[:2] == [guided, guided] and steps[2] == steps[3] == (Branch(True, True, 1.0),)
    assert by_level(guided, [1.0, 0.0], 0.0) == [guided, guided]
    null = branches("nested_morphology_first", 1.5, 2.0, has_morphology=False)
    assert by_level(null, [0.1], 0.5) == [(Branch(False, True, 1.0),)]
