"""A store with two sections that have the same barcodes, as every two slides of a kind have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from standins import card_for, make_section

GENES = tuple(f"GENE{k}" for k in range(40))
CARD = card_for(GENES, patch_px=32, patch_mpp=2.0)


def one_of_two(name: str):
    """Return section A or B in memory: the same ids, other places, counts and slides."""
    section = make_section(seed=ord(name))
    spots = replace(section.spots, yx=section.spots.yx + (12.0 if name == "B" else 0.0))
    return replace(section, name=name, spots=spots, coordinate_systems={name: np.eye(3)})


def write_two(path: Path) -> Path:
    """Write both into one store that says nothing of where it comes from."""
    from spatialdata import SpatialData

    from napari_stmdit.tissue.elements import section_elements

    found: dict[str, dict] = {"images": {}, "shapes": {}, "tables": {}}
    for name in "AB":
        parts = section_elements(one_of_two(name), {"images": {}})
        found["images"] |= parts["images"]
        found["shapes"] |= parts["shapes"]
        found["tables"][f"{name}_counts"] = parts["tables"]["table"]
    SpatialData(**found).write(path)
    return path


def forget_sections(store: Path) -> None:
    """Make the records of a store's results what they were in earlier versions: without their section."""
    import zarr

    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    attrs = dict(root.attrs)
    for record in attrs["stmdit"].values():
        record["registration"].pop("section", None)
    root.attrs.put(attrs)
    zarr.consolidate_metadata(root.store)
    assert "fingerprint" not in json.dumps(attrs["stmdit"])
