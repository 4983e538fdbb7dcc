"""Layers of the workbench, built, found and protected from napari's tools; identified by metadata, not by name."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray

from ..errors import StoreError
from ..intent import Request
from ..synthesis.result import spots_of
from ..synthesis.stored import StoredResult, read_stored
from ..text import counted, some_of
from ..tissue.geometry import compose, napari_affine, scaling, translation, uniform_scale, world_affine
from ..tissue.pseudo_spots import level_sizes
from ..types import CanvasFrame, PatchResult, Section
from .spot_colours import DIVERGING, RING, SpotPaint, colormap_of
from .strokes import describe

Role = Literal["slide", "spots", "outlines", "result", "stored", "context", "preview", "live", "seam", "change"]
KEY = "stmdit"
"""Our key in ``layer.metadata``."""
MAX_SINGLE_PX = 2_500_000
"""Maximum size of an image that is shown without a pyramid; of a pyramid napari reads and sends only what is in view."""
LayerTuple = tuple[Any, dict[str, Any], str]
IMAGE: Mapping[str, Any] = {"rgb": True, "cache": False}
"""State of our images. napari's cache is one for all of dask: while a layer with it is drawn, work in other threads fails at random."""


def ours(layer: Any) -> Mapping[str, Any]:
    """Return our metadata of a layer; empty for layers of others."""
    found = layer.metadata.get(KEY)
    return found if isinstance(found, Mapping) else {}


def role_of(layer: Any) -> str | None:
    """Return the role of a layer of ours, or None."""
    return ours(layer).get("role")


def is_synthetic(layer: Any) -> bool:
    """Return whether a layer of ours shows synthetic pixels, or what they change."""
    return role_of(layer) in ("result", "stored", "preview", "live", "change")


def keep_label(layer: Any) -> None:
    """Complete a layer's name, now and whenever somebody changes it, with what it has to say: that it is synthetic, and edited."""
    section, record = section_of(layer), dict(ours(layer).get("provenance") or {})
    edited = role_of(layer) in ("live", "change") or bool(record.get("counterfactual"))
    synthetic = is_synthetic(layer) or (role_of(layer) == "slide" and section is not None and section.synthetic)

    def complete(event: Any = None) -> None:
        layer.name = completed(layer.name, edited)

    if synthetic:
        layer.events.name.connect(complete, position="last")
        complete()


def completed(name: str, edited: bool) -> str:
    """Return a name that says that what it names is synthetic, and edited."""
    needed = ("edited", "synthetic") if edited else ("synthetic",)
    return name if all(word in name.lower() for word in needed) else f"{name} ({synthetic_words(edited)})"


def claim(layer: Any) -> None:
    """Take our record from a layer that napari copied from one of ours: it is the user's own, and keeps only the name."""
    record = layer.metadata.get(KEY)
    if isinstance(record, dict) and record.setdefault("layer", layer.unique_id) != layer.unique_id:
        keep_label(layer)
        del layer.metadata[KEY]


def section_of(layer: Any) -> Section | None:
    """Return the section a layer shows, or None."""
    section = ours(layer).get("section")
    return section if isinstance(section, Section) else None


def expression_words(section: Section) -> str:
    """Return the part of a result's name about expression, after a comma; empty where it was measured."""
    words = {"none": ", no expression", "predicted": ", predicted expression", "factors": ", factors"}
    return words.get(section.expression.kind, "")


def synthetic_words(counterfactual: bool) -> str:
    """Return the beginning of a result's name."""
    return "edited real tissue, synthetic" if counterfactual else "synthetic"


def result_words(
    request: Request, spots: Sequence[str], section: Section, counterfactual: bool, number: int | str
) -> str:
    """Return the name of a result: the change, where, and that it is synthetic."""
    edits = [edit.name or describe(edit) for edit in request.edits if edit.enabled]
    what = some_of(edits, 2, "; ") if edits else "as measured"
    where = str(spots[0]) if len(spots) == 1 else counted(len(spots), "spot")
    seamless = "seamless, " if request.mode == "continuous" else ""
    by_embeddings = section.expression.kind == "none" and request.expression != "null"
    expression = ", expression by embeddings" if by_embeddings else expression_words(section)
    return f"{what}, {seamless}{where} ({synthetic_words(counterfactual)}{expression}, {number})"


def stored_name(stored: StoredResult) -> str:
    """Return the name that a stored result was saved under, else one by what was asked for."""
    edited = bool(stored.provenance.get("counterfactual"))
    if name := stored.provenance.get("name"):
        return completed(str(name), edited)
    try:
        spots, _ = spots_of(stored.section, stored.request, stored.provenance)
        return result_words(stored.request, spots, stored.section, edited, stored.element)
    except StoreError:
        return f"{synthetic_words(edited)} ({stored.element}{expression_words(stored.section)})"


def placing(section: Section, affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return the placement shared by a section's layers.

    A pure scaling is given as ``scale``: napari multiplies the size of points with it, but not with ``affine``, and spots would be drawn
    larger or smaller than they are. Units are microns if the section is calibrated, else left out: one layer with other units
    makes napari drop units for the whole viewer.
    """
    factor = uniform_scale(affine)
    place = {"affine": affine} if factor is None or affine[:2, 2].any() else {"scale": (factor, factor)}
    placed: dict[str, Any] = {**place, "axis_labels": ("y", "x")}
    if section.calibration.mpp is not None:
        placed["units"] = ("um", "um")
    return placed


def metadata(role: Role, section: Section, **more: Any) -> dict[str, Any]:
    """Return a layer's metadata: ours, and the keys by which napari-spatialdata knows an element's name and system."""
    meta: dict[str, Any] = {KEY: {"role": role, "section": section, **more}}
    if section.kind == "spatialdata" and section.coordinate_systems:
        meta["_current_cs"] = next(iter(section.coordinate_systems))
        meta["_active_in_cs"] = set(section.coordinate_systems)
    return meta


def section_layers(section: Section) -> list[LayerTuple]:
    """Return the layers of a section: slide, outlines of cells if any, and spots as one Points layer, true to size."""
    found = [] if section.image is None else [slide_layer(section)]
    found += [] if section.outlines is None else [outlines_layer(section)]
    return [*found, spots_layer(section)]


def slide_layer(section: Section, role: Role = "slide", name: str = "") -> LayerTuple:
    """Return the lazy multiscale slide image."""
    image = section.image
    assert image is not None
    levels = list(image.levels)
    state = {
        "name": name or f"{section.name} H&E" + (" (synthetic)" if section.synthetic else ""),
        **IMAGE,
        "multiscale": len(levels) > 1,
        "metadata": metadata(role, section),
        **placing(section, napari_affine(scaling(image.pixel_size), section.calibration.mpp)),
    }
    return (levels if len(levels) > 1 else levels[0]), state, "image"


def outlines_layer(section: Section) -> LayerTuple:
    """Return a hidden layer for the outlines of cells, blank until they are read: see `jobs.outlining`."""
    levels = [np.broadcast_to(np.uint8(0), (*size, 4)) for size in level_sizes(outlines_size(section))]
    state = {
        "name": f"{section.name} cell outlines",
        **IMAGE,
        "multiscale": len(levels) > 1,
        "visible": False,
        "metadata": metadata("outlines", section),
        **placing(section, napari_affine(np.eye(3), section.calibration.mpp)),
    }
    return (levels if len(levels) > 1 else levels[0]), state, "image"


def outlines_size(section: Section) -> tuple[int, int]:
    """Return height and width of the picture of the outlines in full-resolution pixels: those of the slide, or somewhat more than the spots'."""
    spots = section.spots
    size = spots.yx.max(axis=0) + 10 * spots.diameter
    if section.image is not None:
        size = np.array(section.image.shape) * section.image.pixel_size
    height, width = np.ceil(size).astype(int).tolist()
    return height, width


def spots_layer(section: Section) -> LayerTuple:
    """Return the spots as one Points layer. Its data are full-resolution pixels, which need no half-pixel shift."""
    spots = section.spots
    state = {
        "name": f"{section.name} spots",
        "size": spots.diameter,
        "symbol": "disc",
        "face_color": "transparent",
        "border_color": np.array([RING]),
        "border_width": 0.07,
        "features": {"spot": spots.ids},
        "metadata": metadata("spots", section),
        **placing(section, world_affine(section)),
    }
    return spots.yx.copy(), state, "points"  # napari moves points in place


def result_layer(
    rgba: NDArray[np.uint8], frame: CanvasFrame, section: Section, name: str, run: Mapping[str, Any]
) -> LayerTuple:
    """Return the RGBA image layer of a run.

    ``rgba`` (h, w, 4) uint8 is not copied, so that later patches appear on refresh; ``name`` must say that it is synthetic;
    ``run``, its identity and provenance, is kept in the layer's metadata.
    """
    state = {
        "name": name,
        **IMAGE,
        "metadata": metadata("result", section, **run),
        **placing(section, napari_affine(frame.affine, section.calibration.mpp)),
    }
    return rgba, state, "image"


def stored_layers(section: Section) -> tuple[list[LayerTuple], tuple[str, ...]]:
    """Return the results in a section's SpatialData store as layers, and notes about those left out."""
    found = read_stored(section)
    return [stored_layer(stored) for stored in found.results], found.notes


def stored_layer(stored: StoredResult) -> LayerTuple:
    """Return the layer of a stored result, its pixels and halvings lazy."""
    section = stored.section
    height, width = stored.rgba.shape[:2]
    levels = list(stored.levels) if height * width > MAX_SINGLE_PX else [stored.rgba]
    more = {"element": stored.element, "provenance": dict(stored.provenance), "stored": stored}
    state = {
        "name": stored_name(stored),
        **IMAGE,
        "multiscale": len(levels) > 1,
        "metadata": metadata("stored", section, **more) | {"name": stored.element},
        **placing(section, napari_affine(stored.pixel_to_fullres, section.calibration.mpp)),
    }
    return (levels if len(levels) > 1 else levels[0]), state, "image"


def preview_layer(patch: PatchResult, frame: CanvasFrame, section: Section) -> LayerTuple:
    """Return a small layer with the preview of a patch, at the patch's place."""
    state = {
        "name": "synthetic, being denoised",
        **IMAGE,
        "metadata": metadata("preview", section),
        **placing(section, patch_affine(patch, frame, section)),
    }
    return patch.pixels.copy(), state, "image"  # the layer's own: `redraw` writes into it


def live_layer(rgba: NDArray[np.uint8], frame: CanvasFrame, section: Section) -> LayerTuple:
    """Return the layer of the live preview; ``rgba`` (h, w, 4) uint8."""
    state = {
        "name": "Live preview: edited real tissue, synthetic (Run makes the result)",
        **IMAGE,
        "metadata": metadata("live", section),
        **placing(section, napari_affine(frame.affine, section.calibration.mpp)),
    }
    return rgba.copy(), state, "image"  # the layer's own: `redraw` writes into it


def redraw(layer: Any, pixels: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """Show other pixels, at their place, in a layer that owns its pixels.

    Pixels of the same size are written in place: new data make napari measure all layers and redraw its list.
    """
    if not np.array_equal(layer.affine.affine_matrix, affine):
        layer.affine = affine
    if layer.data.shape != pixels.shape:
        layer.data = pixels.copy()
        return
    layer.data[:] = pixels
    send(layer)


def send(layer: Any) -> None:
    """Send a layer's pixels to the screen only; napari's own refresh redraws its list of layers."""
    with layer.events.loaded.blocker():
        layer.refresh(extent=False, thumbnail=False, highlight=False)


def patch_affine(patch: PatchResult, frame: CanvasFrame, section: Section) -> NDArray[np.float64]:
    """Return the layer affine of a patch's own pixels."""
    y0, x0 = patch.patch.canvas_box[:2]
    return napari_affine(compose(frame.affine, translation(y0, x0)), section.calibration.mpp)


def change_layer(
    levels: list[NDArray[np.float32]], limit: float, below: Any, section: Section, number: int
) -> LayerTuple:
    """Return the layer of an edit's change of haematoxylin, over the layer ``below`` of its result; NaN is transparent."""
    state = {
        "name": f"Change {number}: haematoxylin, OD (ln), edited minus slide (synthetic)",
        "rgb": False,
        "multiscale": len(levels) > 1,
        "colormap": colormap_of(DIVERGING),
        "contrast_limits": (-limit, limit),
        "metadata": metadata("change", section, run=number),
        "scale": below.scale,
        "translate": below.translate,
        "affine": below.affine,
        "axis_labels": below.axis_labels,
        "units": below.units,
    }
    return (levels if len(levels) > 1 else levels[0]), state, "image"


def seam_layer(section: Section, line: NDArray[np.float64], width: float) -> LayerTuple:
    """Return the line between the two sides of a swipe, (2, 2) in world coordinates."""
    state = {
        "name": "swipe (drag the line)",
        "vector_style": "line",
        "edge_color": "white",
        "edge_width": width,
        "metadata": metadata("seam", section),
        **placing(section, np.eye(3)),
    }
    return seam_data(line), state, "vectors"


def seam_data(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a line (2, 2) as napari's vectors: start and displacement."""
    return np.stack([line[0], line[1] - line[0]])[None]


def make(data: LayerTuple) -> Any:
    """Return the napari layer of a tuple."""
    values, state, kind = data
    return Layer.create(values, state, kind)


def insert(viewer: Any, data: LayerTuple, above: Any = None) -> Any:
    """Add a layer without changing the selection; ``above`` is the layer to put it on."""
    active = viewer.layers.selection.active
    layer = viewer.add_layer(make(data))
    protect(layer)
    if above is not None and above in viewer.layers:
        viewer.layers.move(viewer.layers.index(layer), viewer.layers.index(above) + 1)
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def remove(viewer: Any, layer: Any) -> None:
    """Remove a layer from a viewer, if both are still there.

    At each removal napari searches all objects for garbage, which drivers on Windows need and which takes 0.4 s once torch is loaded.
    Elsewhere what is there already is left to Python's own search.
    """
    if viewer is None or layer is None or layer not in viewer.layers:
        return
    if platform.system() == "Windows":
        viewer.layers.remove(layer)
        return
    gc.freeze()
    try:
        viewer.layers.remove(layer)
    finally:
        gc.unfreeze()


def draw_spots(layer: Any, look: SpotPaint, selected: NDArray[np.int64] | None = None) -> None:
    """Set colours and outlines of the spots, and napari's selection to the rows in ``selected``.

    napari sends all points to the screen for each property that is set. Its events are blocked here, and the colours, which do not, are set
    last and send everything.
    """
    refaced = not np.array_equal(layer.face_color, look.face)
    recoloured = refaced or not np.array_equal(layer.border_color, look.border)
    rewidened = not np.array_equal(layer.border_width, look.width)
    with layer.events.blocker_all():
        if rewidened:
            layer.border_width[:] = look.width  # in place: to set it slices and highlights anew
            if not np.array_equal(layer.border_width, look.width):  # not its own array, after all
                layer.border_width = look.width
        if selected is not None and layer.selected_data != (rows := set(selected.tolist())):
            layer.selected_data = rows
        if refaced:
            layer.face_color = look.face
        layer.border_color = look.border
    if rewidened and not recoloured:
        layer.events.border_width(value=look.width)
    layer.events.highlight()


def restore_spots(layer: Any, section: Section) -> None:
    """Restore the points of a layer of spots from the section's table; their colours have to be drawn again."""
    yx, state, _ = spots_layer(section)
    layer.data = yx
    layer.size, layer.symbol, layer.shown = state["size"], state["symbol"], True


def draw_faces(layer: Any, face: NDArray[np.float32]) -> None:
    """Set the colours of spots without their outlines: quick enough to follow a brush."""
    with layer.events.face_color.blocker():  # the colours' own event already sends them to the screen
        layer.face_color = face


KEYS = ("Delete", "Backspace", "1", "2", "3", "4", "5", "Control-C", "Control-V", "Control-D")
"""Keys by which napari removes, adds, moves and pastes, or selects a tool to do so."""
CHOOSING = ("A", "Shift-A", "Control-A")
"""Keys by which napari selects points."""


def _nothing() -> None:
    pass


def protect(layer: Any, refused: Callable[[], None] = _nothing, choose_all: Callable[[], None] = _nothing) -> None:
    """Disable napari's tools, keys and hints on a layer, and keep what its name has to say.

    Parameters
    ----------
    layer
        Of ours.
    refused
        Called when a key was pressed that would have changed it.
    choose_all
        Called when a key was pressed that selects everything.
    """

    # what cannot be edited has no mode but to pan and zoom; napari allows editing anew with each change of data or dimensions
    def keep(event: Any = None) -> None:
        if layer.editable:
            layer.editable = False
        if layer.help:  # it offers the modes
            layer.help = ""

    keep_label(layer)
    layer.events.editable.connect(keep, position="last")
    layer.events.help.connect(keep, position="last")
    for keys in KEYS:
        layer.bind_key(keys, lambda _: refused(), overwrite=True)
    for keys in CHOOSING:
        layer.bind_key(keys, lambda _: choose_all(), overwrite=True)
    keep()
