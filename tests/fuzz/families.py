"""Every case of the suite."""

from __future__ import annotations

from fuzz import counts, images, intents, paths, positions, regions, scalefactors, settings, slides, stores

FAMILIES = (positions, counts, scalefactors, images, stores, regions, intents, paths, settings, slides)
ALL = [case for family in FAMILIES for case in family.CASES]
