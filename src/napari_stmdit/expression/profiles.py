"""Expression profiles of a region: measured in one section, used as the target of an edit in another."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..errors import GeneError
from ..files import BadFile, read_json, read_text
from ..intent import SpotProfile
from ..storage.atomic import write_text
from ..types import SpotTable
from .changes import Measured, Profile
from .normalise import PER

DECIMALS = 4
"""Decimal places of a mean: the same number is shown, written and applied."""
MAX_MB = 50
DEPTH = "# mean depth relative to its section (natural logarithm): "


def measure_profile(spots: SpotTable, ids: Sequence[str], source: str = "") -> SpotProfile:
    """Return the mean log(1 + counts per 10,000) of some spots.

    Genes that no spot of the section has are left out: the section says nothing about them, and an edit leaves them alone.
    Columns that share a symbol count as one gene.

    Raises
    ------
    GeneError
        No spot was given, or one that the section lacks.
    """
    known = set(spots.ids.tolist())
    strangers = [spot for spot in ids if spot not in known]
    if not ids or strangers:
        raise GeneError(f"a profile needs spots of this section; got {', '.join(strangers[:5]) or 'none'}")
    measured = Measured.of(spots)
    symbols, place = np.unique(spots.genes.symbols, return_inverse=True)
    rows = measured.rows(ids)
    share = measured.counts[rows].multiply(PER / measured.totals[rows, None]).tocoo()
    summed = np.zeros((len(rows), len(symbols)), dtype=np.float32)
    np.add.at(summed, (share.row, place[share.col]), share.data)
    detected = np.zeros(len(symbols), dtype=bool)
    detected[place[np.unique(spots.counts.indices[spots.counts.data > 0])]] = True
    logs = np.log1p(summed)
    means, spreads = (np.round(of(axis=0, dtype=np.float64), DECIMALS) for of in (logs.mean, logs.std))
    values, spread = (
        {str(symbols[k]): float(found[k]) for k in np.flatnonzero(detected)} for found in (means, spreads)
    )
    depth = round(float(spots.relative_depth[rows].mean()), DECIMALS)
    return SpotProfile(source=source, values=values, spreads=spread, depth=depth)


def as_profiles(own: Mapping[str, SpotProfile]) -> dict[str, Profile]:
    """Return the request's profiles as edits use them."""
    return {
        name: Profile(
            tuple(profile.values),
            np.array(list(profile.values.values()), dtype=np.float32),
            np.array([profile.spreads[gene] for gene in profile.values], dtype=np.float32)
            if set(profile.values) <= set(profile.spreads)
            else None,
            profile.depth,
        )
        for name, profile in own.items()
    }


def write_profile(profile: SpotProfile, path: str | Path) -> None:
    """Write a profile as JSON, or as columns (gene, mean, spread) where the name ends in .tsv."""
    path = Path(path)
    if path.suffix == ".tsv":
        spread = profile.spreads
        depth = [] if profile.depth is None else [f"{DEPTH}{profile.depth:g}"]
        lines = [
            f"# {profile.source}",
            *depth,
            "gene\tmean_log1p_cp10k" + ("\tspread" if spread else ""),
            *(f"{g}\t{v:g}" + (f"\t{spread[g]:g}" if g in spread else "") for g, v in profile.values.items()),
        ]
        write_text(path, "\n".join(lines) + "\n")
    else:
        write_text(path, profile.model_dump_json(indent=1))


def read_profile(path: str | Path) -> SpotProfile:
    """Read a profile that `write_profile` wrote, or a table of two or three columns made elsewhere.

    Raises
    ------
    GeneError
        The file cannot be read, or does not hold mean log(1 + counts per 10,000) per gene.
    """
    path = Path(path)
    try:
        content = _table(read_text(path, MAX_MB)) if path.suffix in (".tsv", ".txt") else read_json(path, MAX_MB)
    except BadFile as error:
        raise GeneError(f"{path} cannot be read as a profile: {error}. {_EXPECTED}") from None
    except ValueError as error:
        raise GeneError(f"{path.name} is no profile: {error}. {_EXPECTED}") from None
    try:
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        return SpotProfile(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise GeneError(f"{path.name} is no profile: {where}: {first['msg']}. {_EXPECTED}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise GeneError(f"{path.name} is no profile: {error}. {_EXPECTED}") from None


_EXPECTED = "Expected for each gene its mean log(1 + counts per 10,000), between 0 and 9.21"


def _table(text: str) -> dict[str, object]:
    lines = text.splitlines()
    source = lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""
    values: dict[str, float] = {}
    spreads: dict[str, float] = {}
    depth = next((float(line.removeprefix(DEPTH)) for line in lines if line.startswith(DEPTH)), None)
    for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
        if not row or row[0].startswith("#") or (not values and row[0].lower() == "gene"):
            continue
        if len(row) not in (2, 3):
            raise ValueError(
                f"line {number} has {len(row)} columns instead of 2 or 3: gene, mean and, where known, spread"
            )
        if row[0] in values:
            raise ValueError(f"line {number} names {row[0]!r} a second time")
        values[row[0]] = float(row[1])
        if len(row) == 3:
            spreads[row[0]] = float(row[2])
    return {"source": source, "values": values, "spreads": spreads, "depth": depth}
