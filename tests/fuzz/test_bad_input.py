"""Broken and odd input: our own error with the message that was foreseen, or it works; nothing else, and nothing changed."""

from __future__ import annotations

import pytest
from fuzz.families import ALL, AT_EVERY_RUN

ROWS = [pytest.param(case, id=case.key, marks=() if case.key in AT_EVERY_RUN else pytest.mark.nightly) for case in ALL]


@pytest.mark.parametrize("case", ROWS)
def test_it_ends_as_foreseen(case, workshop):
    outcome = workshop.attempt(case)
    assert outcome.ours, f"{case.key} ended in {outcome.ended}: {outcome.message}"
    assert outcome.unchanged, f"{case.key} changed its input"
    assert outcome.as_expected, (
        f"{case.key} ended in {outcome.ended}: {outcome.message[:2000]}\nexpected {case.expected}"
    )


def test_there_are_at_least_300_and_each_is_named_once():
    assert len(ALL) >= 300
    keys = {case.key for case in ALL}
    assert len(keys) == len(ALL) and keys >= AT_EVERY_RUN
