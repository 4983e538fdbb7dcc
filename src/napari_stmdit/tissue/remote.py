"""SpatialData stores at ``https://`` or ``s3://``: small parts are fetched whole, pixels of the slide lazily.

A store lists all its arrays in one file, its consolidated metadata, so the server need not list anything. Metadata, tables and shapes
go into a temporary folder and are read, and refused, like any store; then the blank pixels of its images are replaced by those of the
server.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import SectionError, StmditError
from ..files import is_offline
from ..text import shorten
from ..types import Section
from .spaceranger import section_label
from .spatialdata_store import SECTION_ATTRS, read_store, section_of
from .zarr_codecs import damage_as_section_error, refuse_pickles

_URL = re.compile(r"^(https?|s3|gs|gcs|az|abfs):/+(?=[^/])")
_ELEMENT = re.compile(r"/(shapes|tables)/([^/]+)/?$")
_CONSOLIDATED = ("zarr.json", ".zmetadata", "zmetadata")
_METADATA = (*_CONSOLIDATED, ".zgroup", ".zattrs")
_SECONDS = 60
"""Timeout of the server for one answer."""
_AT_ONCE = 500
MAX_FILES = 100_000
"""Maximum number of files of tables and shapes; a section has some hundreds."""
_INSTALL = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def url_of(path: object) -> str | None:
    """Return the address that a path is, or None; a ``Path`` of one has lost a slash, which is restored."""
    text = str(path)
    return _URL.sub(r"\1://", text) if _URL.match(text) else None


def open_remote(
    url: str, fullres: str | Path | None = None, mpp: float | None = None, coordinate_system: str | None = None
) -> Section:
    """Open a SpatialData store by its address.

    Parameters
    ----------
    url
        Of the store, or of one of its elements (``URL/shapes/NAME``, ``URL/tables/NAME``), of which only the table is fetched.
    fullres, mpp, coordinate_system
        As for `spatialdata_store.open_spatialdata`.

    Raises
    ------
    SectionError
        It cannot be reached, does not exist, is no SpatialData, or cannot be read.
    """
    if is_offline():
        raise SectionError(
            f"{url} is on another computer, and offline mode (STMDIT_OFFLINE or HF_HUB_OFFLINE) forbids to fetch it; switch that off, or download the store"
        )
    found = _ELEMENT.search(url)
    kind, chosen = (found[1], found[2]) if found else (None, None)
    root = (url[: found.start()] if found else url).rstrip("/")
    with _as_unreachable(root), TemporaryDirectory(prefix="stmdit-remote-") as place:
        local = Path(place) / "store.zarr"
        system, inside = _file_system(root)
        try:
            arrays = _fetch_metadata(system, inside, root, local, kind, chosen)
            _fetch_parts(system, inside, local, arrays)
            sdata = read_store(local)
            _exchange_pixels(sdata, root, local)
            sdata.path = None
            section = section_of(sdata, None, fullres, mpp, coordinate_system, kind, chosen)
        except SectionError as error:
            raise SectionError(str(error).replace(str(local), root)) from error
    note = f"read from {root}: tables and shapes whole, pixels of the slide as they are looked at"
    name = section.name if SECTION_ATTRS in sdata.attrs else section_label(Path(root).stem)
    return replace(section, name=name, notes=(note, *section.notes))


@contextmanager
def _as_unreachable(root: str) -> Iterator[None]:
    """Convert errors of the connection into one sentence."""
    try:
        yield
    except StmditError:
        raise
    except ImportError as error:
        package = _INSTALL.get(root.partition(":")[0], "aiohttp")
        raise SectionError(
            f"{root} cannot be read without the package {package}: pip install {package} ({error})"
        ) from None
    except PermissionError:
        raise SectionError(
            f"{root} may not be read from here: the server refuses access; check the address and your credentials"
        ) from None
    except Exception as error:  # clients of each kind of server fail with anything
        raise SectionError(
            f"{root} cannot be reached: {shorten(str(error)) or type(error).__name__}. Check the address and the connection, or download the store"
        ) from error


def _file_system(root: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it; S3 is read anonymously where there are no credentials."""
    import fsspec

    system, inside = fsspec.core.url_to_fs(root, **_options(root))
    return system, str(inside).rstrip("/")


def _options(root: str) -> dict[str, Any]:
    if root.startswith("http"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=_SECONDS, connect=_SECONDS / 4)}}
    if root.startswith("s3"):
        import botocore.session

        return {"anon": botocore.session.get_session().get_credentials() is None}
    return {}


def _fetch(system: Any, inside: str, names: list[str], local: Path, optional: bool = False) -> set[str]:
    """Fetch files of a store into the folder and return those that exist; if ``optional``, a refusal may mean that one does not."""
    there = set()
    for start in range(0, len(names), _AT_ONCE):
        wanted = {f"{inside}/{name}": name for name in names[start : start + _AT_ONCE]}
        for place, content in system.cat(list(wanted), on_error="return").items():
            if isinstance(content, FileNotFoundError) or (optional and isinstance(content, PermissionError)):
                continue
            if isinstance(content, Exception):
                raise content
            file = local / wanted[place]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            there.add(wanted[place])
    return there


def _fetch_metadata(
    system: Any, inside: str, root: str, local: Path, kind: str | None, chosen: str | None
) -> list[str]:
    """Fetch the metadata of the parts to read; return the paths of the arrays of tables and shapes."""
    there = _fetch(system, inside, [*_METADATA], local, optional=True)
    if not there:
        raise SectionError(
            f"there is no zarr store at {root}; expected the address of a SpatialData store, which has a file zarr.json or .zgroup"
        )
    for name in sorted(there & {*_CONSOLIDATED}):
        content = _json(local / name, root)
        listing = content.get("consolidated_metadata") if name == "zarr.json" else content
        nodes = listing.get("metadata") if isinstance(listing, dict) else None
        if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
            continue
        kept = {path: node for path, node in nodes.items() if _is_read(path, nodes, kind, chosen)}
        nodes.clear()
        nodes.update(kept)
        (local / name).write_text(json.dumps(content))
        for path, node in kept.items():
            file = local / (f"{path}/zarr.json" if name == "zarr.json" else path)
            if not file.resolve().is_relative_to(local.resolve()):
                raise SectionError(f"{root} is refused: its metadata name a place outside of it, {shorten(path)}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({key: value for key, value in node.items() if key != "consolidated_metadata"}))
        arrays = {
            path.removesuffix("/.zarray")
            for path, node in kept.items()
            if path.endswith("/.zarray") or node.get("node_type") == "array"
        }
        return sorted(path for path in arrays if not path.startswith("images/"))
    raise SectionError(
        f"{root} has no consolidated metadata, without which its elements cannot be found from afar; write them with SpatialData's "
        "write_consolidated_metadata(), or download the store"
    )


def _json(file: Path, root: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise SectionError(
            f"{root} cannot be read as SpatialData: its {file.name} is no JSON ({shorten(str(error))})"
        ) from None
    return content if isinstance(content, dict) else {}


def _is_read(path: str, nodes: Mapping[str, Any], kind: str | None, chosen: str | None) -> bool:
    """Return whether a node is of an image, or of a chosen table or shapes; all, where none was chosen."""
    top, _, rest = path.partition("/")
    name = rest.partition("/")[0]
    if top in ("labels", "points"):
        return False
    if chosen is None or top not in ("shapes", "tables") or name in ("", ".zgroup", ".zattrs"):
        return True
    if top == kind:
        return name == chosen
    annotates = {table: _regions(table, nodes) for table in _names("tables", nodes)}
    if top == "tables":
        return chosen in annotates[name]
    return name in annotates.get(chosen, ()) or not annotates.get(chosen, set()) & _names("shapes", nodes)


def _names(kind: str, nodes: Mapping[str, Any]) -> set[str]:
    return {path.split("/")[1] for path in nodes if path.startswith(f"{kind}/")} - {".zgroup", ".zattrs"}


def _regions(table: str, nodes: Mapping[str, Any]) -> set[str]:
    attrs = nodes.get(f"tables/{table}", {}).get("attributes") or nodes.get(f"tables/{table}/.zattrs") or {}
    region = attrs.get("region")
    return {region} if isinstance(region, str) else set(region or ())


def _fetch_parts(system: Any, inside: str, local: Path, arrays: list[str]) -> None:
    """Fetch the chunks of arrays, and Parquet files of shapes, into the folder. A missing chunk is blank."""
    import zarr

    shapes = local / "shapes"
    names = (
        [f"shapes/{folder.name}/shapes.parquet" for folder in shapes.iterdir() if folder.is_dir()]
        if shapes.is_dir()
        else []
    )
    refuse_pickles(local)
    with damage_as_section_error(local, "SpatialData"):
        for path in arrays:
            array = zarr.open_array(local / path, mode="r")
            grid = [
                range(-(-size // side)) for size, side in zip(array.shape, array.shards or array.chunks, strict=True)
            ]
            if len(names) + math.prod(map(len, grid)) > MAX_FILES:
                raise SectionError(
                    f"tables and shapes of {local} are more than {MAX_FILES:,} files, too many to be fetched one by one; choose a set of spots by "
                    "its address, .../tables/NAME, or download the store"
                )
            names += [f"{path}/{array.metadata.encode_chunk_key(at)}" for at in itertools.product(*grid)]
    _fetch(system, inside, names, local)


def _exchange_pixels(sdata: Any, root: str, local: Path) -> None:
    """Replace the pixels of a store's images by lazy ones of the server."""
    import dask.array as da
    import zarr

    remote = zarr.open_group(
        zarr.storage.FsspecStore.from_url(root, read_only=True, storage_options=_options(root)), mode="r"
    )
    for name, element in sdata.images.items():
        attrs = zarr.open_group(local / "images" / name, mode="r").attrs.asdict()
        (scales, *_) = attrs.get("ome", attrs)["multiscales"]
        levels = [da.from_zarr(remote[f"images/{name}/{dataset['path']}"]) for dataset in scales["datasets"]]
        nodes = (
            [next(iter(node.data_vars.values())) for node in element.children.values()]
            if hasattr(element, "children")
            else [element]
        )
        for node, level in zip(nodes, levels, strict=True):
            node.data = level
