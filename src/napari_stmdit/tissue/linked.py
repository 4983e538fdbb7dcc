"""SpatialData and AnnData objects of a section, for other plugins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import Section, StoreElements
from .spatialdata_store import quiet, read_store
from .tables import rows_of


@dataclass(frozen=True)
class LinkedElements:
    """Elements of the spots in a layer, for other plugins.

    Attributes
    ----------
    sdata
        A ``SpatialData``: the store that the section was opened from, lazily, or one in memory with its spots and their table.
    adata
        The spots' rows of its table, in the order of the section's table.
    spots
        Name of the circles' element.
    table
        Name of the table.
    region_key, instance_key
        Columns of the table that name a row's element and its index there.
    indices
        Index of each spot in the element.
    system
        First coordinate system.
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
    return _in_memory(section) if section.store is None else _of_store(section, section.store)


def _of_store(section: Section, elements: StoreElements) -> LinkedElements | None:
    sdata = read_store(elements.root)
    if elements.table not in sdata.tables or elements.spots not in sdata.shapes:
        return None
    table = sdata.tables[elements.table]
    rows, ids = rows_of(table, elements.spots), section.spots.ids.tolist()
    if not set(ids) <= set(rows.obs_names.tolist()):
        return None
    return _linked(section, sdata, rows[ids], elements.spots, elements.table, table.uns["spatialdata_attrs"])


def _in_memory(section: Section) -> LinkedElements:
    from dataclasses import replace

    from spatialdata import SpatialData

    from .elements import section_elements

    elements = section_elements(replace(section, image=None, excluded=None), {"images": {}})
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
