"""Contributions named in napari.yaml besides the widget: reader and sample data. Imports nothing heavy until called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .layers import LayerTuple

Reader = Callable[[Any], "list[LayerTuple]"]
PLUGIN, DOCK = "napari-stmdit", "Visium tissue what-if"
"""The plugin, and the dock's name in the menu, as the manifest has them."""
PUBLIC = "stmdit://"
"""Prefix of the sample menu's addresses of public sections."""


def get_reader(path: str | Sequence[str] | None = None) -> Reader | None:
    """Return a reader for a SpatialData store, a Space Ranger folder, a .h5ad with spots or annotations, or None.

    napari asks it for every folder, so it decides from file names and one small JSON file; a store or a table of another kind is left to other
    plugins. Without a path, as the command palette calls it, the dock is opened.
    """
    if path is None:
        open_dock()
        return None
    if not isinstance(path, str):
        if len(path) != 1:
            return None
        path = path[0]
    if path.startswith(PUBLIC):
        return read_public
    if path.lower().endswith(".geojson"):
        return read_annotations
    from ..tissue.spatialdata_store import is_spatialdata

    folder = Path(path)
    return read_section if is_spatialdata(folder) or is_space_ranger(folder) or is_spatial_table(folder) else None


def is_spatial_table(file: Path) -> bool:
    """Return whether a .h5ad states where its spots lie on which images."""
    if file.suffix.lower() != ".h5ad" or not file.is_file():
        return False
    import h5py

    try:
        with h5py.File(file, "r") as root:
            return "uns/spatial" in root and "obsm/spatial" in root
    except OSError:
        return False


def is_space_ranger(folder: Path) -> bool:
    """Return whether a folder is the output of a pipeline of 10x Genomics: Space Ranger with spots, bins or cells, or Xenium."""
    inside = ("", "outs", "segmented_outputs", "outs/segmented_outputs")
    if any((folder / inner / "spatial" / "scalefactors_json.json").is_file() for inner in inside):
        return True
    if any((folder / inner / "experiment.xenium").is_file() for inner in ("", "outs")):
        return True
    return any(
        next(folder.glob(f"{inner}square_*/spatial"), None) is not None
        for inner in ("", "binned_outputs/", "outs/binned_outputs/")
    )


def read_section(path: Any) -> list[LayerTuple]:
    """Return the layers of a section: slide, stored results, and spots."""
    from napari.utils.notifications import show_warning

    from ..tissue.in_memory import link_elements
    from ..tissue.open import open_section
    from .layers import section_layers, stored_layers

    section = open_section(path if isinstance(path, (str, Path)) else path[0])
    *below, spots = section_layers(section)
    linked = link_elements(section)
    if linked is not None:
        spots[1]["metadata"].update(linked.metadata())
    stored, notes = stored_layers(section)
    if notes:
        show_warning("\n".join(notes))
    open_dock()
    return [*below, *stored, spots]


def read_public(path: Any) -> list[Any]:
    """Open a public section of the sample menu through the dock, which shows size and licence before a download.

    Without a window it is read at once, and must be on this computer.
    """
    import napari

    from .presenter import known_presenter

    name = str(path if isinstance(path, (str, Path)) else path[0]).removeprefix(PUBLIC)
    open_dock()
    presenter = known_presenter(napari.current_viewer())
    if presenter is None:
        return read_section(name)
    presenter.acquisition.offer_section(name)
    return [(None,)]


def open_dock() -> None:
    """Open the dock in the present viewer, if it has a window: without the dock a section can only be viewed."""
    from napari import current_viewer

    window = getattr(current_viewer(), "window", None)
    if window is not None:
        window.add_plugin_dock_widget(PLUGIN, DOCK)  # the one that is there, where there is one


def read_annotations(path: Any) -> list[Any]:
    """Add the annotations of a GeoJSON file to the open section as named selections; no layer is made."""
    import napari
    from napari.utils.notifications import show_warning

    from .presenter import known_presenter

    file = path if isinstance(path, (str, Path)) else path[0]
    presenter = known_presenter(napari.current_viewer())
    if presenter is None or presenter.state.section is None:
        show_warning(
            f"{Path(file).name} holds regions of a section; open a section in the dock {DOCK!r} first, and drop it again."
        )
    else:
        presenter.choosing.load(str(file))
    return [(None,)]


def view_store(path: str | Path) -> None:
    """Open napari on a store, with the workbench; returns when its window is closed."""
    import napari

    viewer = napari.Viewer(title=DOCK)
    for data, state, kind in read_section(str(path)):
        getattr(viewer, f"add_{kind}")(data, **state)
    viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    napari.run()


def sample_section() -> list[LayerTuple]:
    """Return the layers of the bundled section of breast."""
    return _sample("breast")


def sample_colon() -> list[LayerTuple]:
    """Return the layers of the bundled section of colon."""
    return _sample("colon")


def _sample(tissue: Literal["breast", "colon"]) -> list[LayerTuple]:
    from ..tissue.open import open_sample_section
    from .layers import section_layers

    found = section_layers(open_sample_section(tissue))
    open_dock()
    return found
