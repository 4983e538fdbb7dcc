"""Every case of the suite, and which of them run each time."""

from __future__ import annotations

import re

from fuzz import counts, images, intents, paths, positions, regions, scalefactors, settings, slides, stores
from fuzz.harness import Case, Refused

FAMILIES = (positions, counts, scalefactors, images, stores, regions, intents, paths, settings, slides)
ALL = [case for family in FAMILIES for case in family.CASES]


def _end(case: Case) -> tuple[object, ...]:
    """What a case starts from and how it must end: the class of error, and its words whatever the numbers in them."""
    wanted = case.expected
    error, says = (wanted.error, wanted.says) if isinstance(wanted, Refused) else ("", wanted.tells)
    texts = [says] if isinstance(says, str) else says
    return case.family, case.base, error, tuple(re.sub(r"[\d.,]+", "#", text) for text in texts)


# backwards, so that the first row of each end stays
AT_EVERY_RUN = set({_end(case): case.key for case in reversed(ALL)}.values())
"""Keys of the cases that run each time: for each family, one for each end that is foreseen in it. Nightly, all run."""
