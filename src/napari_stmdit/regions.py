"""Regions of a request: which spots to synthesize."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .frozen import Finite, Frozen


class SpotList(Frozen):
    """Spots by their ids."""

    kind: Literal["spots"] = "spots"
    ids: Annotated[tuple[str, ...], Field(min_length=1)]


class Polygons(Frozen):
    """Spots whose centre lies in one of the rings; vertices are (y, x) in full-resolution pixels."""

    kind: Literal["polygons"] = "polygons"
    rings: Annotated[tuple[tuple[tuple[Finite, Finite], ...], ...], Field(min_length=1)]


class SampleOfSpots(Frozen):
    """A number of spots, drawn with the request's seed."""

    kind: Literal["sample"] = "sample"
    count: Annotated[int, Field(gt=0)]


class AllSpots(Frozen):
    """All spots of the section that lie on tissue and have counts."""

    kind: Literal["all"] = "all"


Region = Annotated[SpotList | Polygons | SampleOfSpots | AllSpots, Field(discriminator="kind")]
