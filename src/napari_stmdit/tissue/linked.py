"""A section as the SpatialData and AnnData objects that other plugins work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Section
from .spatialdata_store import quiet, read_store


@dataclass(frozen=True)
class LinkedElements:
    """What a plugin needs to know of the spots it sees in a layer.

    Attributes
    ----------
    sdata
        A ``SpatialData``: the store that the section was opened from, lazily, or one in memory with its spots and their table.
    adata
        The rows of its table that the spots are, in the order of the section's table.
    spots
        Name of the circles' element.
    table
        Name of the table.
    region_key, instance_key
        Columns of the table that name a row's element and its index there.
    indices
        Index of each spot in the element.
    system
        Coordinate system to begin with.
    systems
        All coordinate systems of the circles.
    """

    sdata: Any
    adata: Any
    spots: str
    table: str
    region_key: str
    instance_key: str
    indices: list[Any]
    system: str
    systems: frozenset[str]

    def metadata(self) -> dict[str, Any]:
        """Return them under the keys of ``layer.metadata`` by which napari-spatialdata knows a layer."""
        return {
            "sdata": self.sdata,
            "adata": self.adata,
            "name": self.spots,
            "region_key": self.region_key,
            "instance_key": self.instance_key,
            "table_names": [self.table],
            "indices": self.indices,
            "_n_indices": len(self.indices),
            "_columns_df": None,
            "_current_cs": self.system,
            "_active_in_cs": set(self.systems),
        }


def link_elements(section: Section) -> LinkedElements | None:
    """Return a section's elements; None where its store no longer holds its spots.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    """
    if section.kind == "spatialdata" and section.path is not None:
        return _of_store(section, section.path)
    return _in_memory(section)


def _of_store(section: Section, path: Path) -> LinkedElements | None:
    store = next((p for p in (path, *path.parents) if p.suffix == ".zarr"), path)
    sdata = read_store(store)
    ids = section.spots.ids.tolist()
    for name, table in sdata.tables.items():
        if not set(ids) <= set(table.obs_names.tolist()):
            continue
        attrs = table.uns.get("spatialdata_attrs") or {}
        rows = table[ids]
        regions = set(rows.obs[attrs["region_key"]].astype(str)) & set(sdata.shapes)
        if len(regions) == 1:
            return _linked(section, sdata, rows, regions.pop(), str(name), attrs)
    return None


def _in_memory(section: Section) -> LinkedElements:
    from dataclasses import replace

    from spatialdata import SpatialData

    from .elements import section_elements

    elements = section_elements(replace(section, image=None), {"images": {}})
    with quiet():
        sdata = SpatialData(**{kind: dict(group) for kind, group in elements.items()})
    ((label, _),) = elements["shapes"].items()
    table = sdata.tables["table"]
    return _linked(section, sdata, table, label, "table", table.uns["spatialdata_attrs"])


def _linked(section: Section, sdata: Any, rows: Any, spots: str, table: str, attrs: Any) -> LinkedElements:
    instances = np.asarray(rows.obs[attrs["instance_key"]]).tolist()
    systems = tuple(section.coordinate_systems)
    return LinkedElements(
        sdata,
        rows,
        spots,
        table,
        str(attrs["region_key"]),
        str(attrs["instance_key"]),
        instances,
        systems[0] if systems else "global",
        frozenset(systems),
    )
