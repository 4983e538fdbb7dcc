"""Programs: named gene sets with weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

Programs = Mapping[str, Mapping[str, float]]


@cache
def bundled_programs() -> Programs:
    """Return the programs that come with the package: name -> {gene symbol: weight}, human symbols.

    They are short lists of marker genes in common use, meant for painting edits, not for scoring cell types.
    """
    text = files("napari_stmdit").joinpath("data/programs.yaml").read_text(encoding="utf-8")
    return {name: dict.fromkeys(genes, 1.0) for name, genes in yaml.safe_load(text).items()}
