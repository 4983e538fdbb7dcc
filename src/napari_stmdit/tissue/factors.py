"""Factors in the place of counts: values of each spot such as factors of NMF, topics or proportions of cell types, from a table beside a section.

What is linear in tissue stays so: each factor is taken as its part of ten thousand of the spot's sum, and an encoder that is fitted to factors
takes no logarithm of it. What such values are called stands where genes do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from ..embeddings import read_embeddings
from ..errors import SectionError
from ..expression.normalise import PER
from ..text import some_of
from ..types import ExpressionSource, Genes, Section
from .counts import note_empty


def with_factors(section: Section, place: str | Path) -> Section:
    """Return a section whose expression is factors.

    Parameters
    ----------
    section
        Any section; counts that it has are not used.
    place
        ``FILE.h5ad::NAME`` of an array or a table in ``obsm``, ``FILE.csv``, or what else `read_embeddings` takes. Ids match exactly. Columns of
        a table give their names; those of an array are called by its name and a number.

    Raises
    ------
    SectionError
        The table cannot be read, lacks spots of the section, or holds negative values.
    """
    found = read_embeddings(place)
    spots, name = section.spots, Path(str(place)).name
    values = found.rows(spots.ids)
    if values.shape[1] != 1:
        raise SectionError(f"{name} holds {values.shape[1]} vectors a spot; expected one, with a value for each factor")
    weights = values[:, 0].astype(np.float64)
    if (weights < 0).any():
        raise SectionError(
            f"{name} holds negative values, down to {weights.min():.3g}; expected parts of a whole, such as factors of NMF, topics or cell types. Other "
            "vectors are embeddings: give them with --expression-embeddings to a checkpoint that was trained with them"
        )
    stem = name.partition("::")[2] or name.partition(".")[0]
    symbols = np.array(found.columns or [f"{stem}_{k + 1}" for k in range(weights.shape[1])], dtype=np.str_)
    unique, times = np.unique(symbols, return_counts=True)
    if (times > 1).any():
        raise SectionError(f"{name} has several columns called {some_of(unique[times > 1].tolist())}; rename them")
    parts = csr_matrix((PER * weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32))
    source = ExpressionSource("factors", name, found.sha256, place=str(Path(place).expanduser().absolute()))
    told = tuple(note for note in section.notes if note != section.expression.statement)
    return replace(
        section,
        spots=replace(spots, counts=parts, genes=Genes(symbols)),
        expression=source,
        notes=(source.statement, *told, *note_empty(parts)),
    )
