"""Windows and tiles of continuous mode, and noise that belongs to a place on the slide, not to a region."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ..errors import RequestError, SynthesisError
from ..intent import CheckpointCard, Request
from ..regions import Polygons
from ..tissue.geometry import spots_in_polygons
from ..types import CanvasFrame, Patch, Plan, Section, Windows
from .canvas import box_at
from .models import known_by_spot

BLOCK = 32
"""Side, in latent cells, of the blocks that noise is drawn in."""


def field_noise(seed: int, channels: int, corner: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return standard normal noise (channels, height, width) float32 of a part of the plane.

    A cell's noise depends only on the seed and its position: two regions that share a place start from the same noise there.

    Parameters
    ----------
    seed
        Of the run.
    channels
        Latent channels.
    corner
        (y, x) of the part, in latent cells from the slide's corner; may be negative.
    shape
        (height, width) in latent cells.
    """
    (y0, x0), (height, width) = corner, shape
    noise = np.empty((channels, height, width), dtype=np.float32)
    for by in range(y0 // BLOCK, -(-(y0 + height) // BLOCK)):
        for bx in range(x0 // BLOCK, -(-(x0 + width) // BLOCK)):
            block = _block(seed, channels, by, bx)
            top, left = max(by * BLOCK, y0), max(bx * BLOCK, x0)
            bottom, right = min((by + 1) * BLOCK, y0 + height), min((bx + 1) * BLOCK, x0 + width)
            noise[:, top - y0 : bottom - y0, left - x0 : right - x0] = block[
                :, top - by * BLOCK : bottom - by * BLOCK, left - bx * BLOCK : right - bx * BLOCK
            ]
    return noise


def _block(seed: int, channels: int, by: int, bx: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{seed}/{channels}/{by}/{bx}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    return generator.standard_normal((channels, BLOCK, BLOCK), dtype=np.float32)


# From a region to windows and tiles: the layout of continuous mode.


CELL = 8
"""Side in canvas pixels of the cells of a region."""
TILE = 512
"""Side of a tile in canvas pixels, rounded to a whole number of strides."""
NEAREST = 6
WIDTH_UM = 40.0
REACH_UM = 200.0
GAP = 0.75
"""Maximum distance from a spot, in spot distances: the middle of four spots lies at 0.71, of three at 0.58."""
_AVERAGED = (
    f"averaged over the {NEAREST} nearest spots with the weight exp(-d^2 / (2 s^2)), d in microns from the window's middle, "
    f"s = {WIDTH_UM:g} um"
)


def sides(card: CheckpointCard, counterfactual: bool = False) -> tuple[int, int]:
    """Return (stride, tile) in canvas pixels of a checkpoint's windows."""
    quarter = card.patch_px // 4
    # new tissue is joined where windows overlap, by half; edited windows lie on one slide, which joins them: a quarter
    # blends their changes, at half the calls of the network
    stride = 3 * quarter if counterfactual and quarter % CELL == 0 else card.patch_px // 2
    return stride, max(1, TILE // stride) * stride


def windows_fault(card: CheckpointCard) -> str | None:
    """Return why a checkpoint cannot be used in continuous mode, or None."""
    if card.patch_px % (2 * CELL):
        return f"continuous mode needs patches of a multiple of {2 * CELL} px, checkpoint {card.name!r} has {card.patch_px}"
    return None


def place_windows(
    section: Section, request: Request, card: CheckpointCard, rows: NDArray[np.int64], counterfactual: bool = False
) -> tuple[Windows, tuple[Patch, ...], CanvasFrame, tuple[str, ...]]:
    """Lay windows and tiles over a region.

    Parameters
    ----------
    section, request, card
        As for `napari_stmdit.plan`; the section is calibrated.
    rows
        Rows of the region's spots. The region is the tissue nearest to them, or the polygons where given.
    counterfactual
        Whether real tissue is edited: windows then overlap less.

    Returns
    -------
    tuple
        The windows, the tiles, the canvas's frame, and notes for the user.

    Raises
    ------
    RequestError
        Nothing of the region lies near a spot.
    """
    pixel_size = card.patch_mpp / section.mpp
    stride, tile = sides(card, counterfactual)
    cells, corner, notes = _region(section, request, card, rows, pixel_size, tile)
    frame = CanvasFrame(
        (cells.shape[0] * CELL, cells.shape[1] * CELL), (corner[0] * pixel_size, corner[1] * pixel_size), pixel_size
    )
    places = _window_places(cells, stride, card.patch_px)  # in strides from the frame's corner
    first, last = places.min(axis=0), places.max(axis=0)
    origin = (int(first[0]) * stride, int(first[1]) * stride)
    height, width = ((last - first) * stride + card.patch_px).tolist()
    absolute = (corner[0] + origin[0], corner[1] + origin[1])
    boxes = [box_at((int(y), int(x)), card.patch_px, pixel_size).source for y, x in places * stride + corner]
    source_boxes = np.array(boxes, dtype=np.float64)
    neighbours, weights = nearest_spots((source_boxes[:, :2] + source_boxes[:, 2:]) / 2, section)
    windows = Windows(
        side=card.patch_px,
        stride=stride,
        tile=tile,
        size=(height, width),
        origin=origin,
        absolute=absolute,
        corners=(places - first) * stride,
        source_boxes=source_boxes,
        rows=neighbours,
        weights=weights,
        cells=cells,
        cell=CELL,
    )
    return windows, _tiles(cells, corner, tile, pixel_size, section, request), frame, notes


class LatentWindows(NamedTuple):
    """Windows on a canvas of latents: pixels per cell, side of a window, corners (n, 2), shape (c, h, w), and weights (side, side)."""

    factor: int
    side: int
    corners: NDArray[np.int64]
    shape: tuple[int, int, int]
    weight: NDArray[np.float32]


def in_latents(windows: Windows, latent_grid: tuple[int, int]) -> LatentWindows:
    """Convert windows to the latents of a checkpoint, by its channels and pixels per cell.

    Raises
    ------
    SynthesisError
        A window does not start or end at a cell.
    """
    channels, factor = latent_grid
    if any(n % factor for n in (windows.side, windows.stride, windows.tile, *windows.absolute)):
        raise SynthesisError(
            f"windows of {windows.side} px every {windows.stride} px do not fit latents of {factor} px"
        )
    side = windows.side // factor
    bump = np.sin(np.pi * (np.arange(side) + 0.5) / side).astype(np.float32) ** 2
    weight = np.maximum(bump[:, None] * bump[None], np.float32(1e-3))
    shape = (channels, windows.size[0] // factor, windows.size[1] // factor)
    return LatentWindows(factor, side, windows.corners // factor, shape, weight)


def nearest_spots(centres: NDArray[np.float64], section: Section) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return rows (n, k) of the spots nearest to (n, 2) places in full-resolution pixels, and their weights (n, k).

    The weight is a Gaussian of the distance in microns; the weights of a place sum to one.
    """
    spots = section.spots
    count = min(NEAREST, len(spots))
    distance, rows = cKDTree(spots.yx).query(centres, k=count)
    um = np.asarray(distance, dtype=np.float64).reshape(-1, count) * section.mpp
    weights = np.exp((um.min(axis=1, keepdims=True) ** 2 - um**2) / (2 * WIDTH_UM**2))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(rows, dtype=np.int64).reshape(-1, count), weights.astype(np.float32)


def mixing(rows: NDArray[np.int64], weights: NDArray[np.float32], count: int) -> csr_matrix:
    """Return the (n, count) matrix that mixes ``count`` spots into n places, from the (n, k) rows and weights of `nearest_spots`."""
    return csr_matrix(
        (weights.ravel(), rows.ravel(), np.arange(0, rows.size + 1, rows.shape[1])), shape=(len(rows), count)
    )


def rule_of(plan: Plan, provenance: Mapping[str, Any]) -> str:
    """Return a sentence on how the windows of a continuous plan get their conditions, with a checkpoint of that provenance."""
    assert plan.windows is not None
    parts = []
    if plan.request.morphology == "own" and known_by_spot(provenance, "morphology"):
        parts.append("morphology of a window: the embedding of its nearest spot")
    if not plan.has_expression:
        parts.append("expression of a window: null")
    elif known_by_spot(provenance, "expression"):
        parts.append("expression of a window: the embedding of its nearest spot")
    else:
        parts.append(f"expression of a window: shares of counts and totals, each {_AVERAGED}, after the edits")
    return "; ".join([*parts, f"windows of {plan.windows.side} px every {plan.windows.stride} px"])


# ------------------------------------------------------------------------------------------------- the region


def _region(
    section: Section,
    request: Request,
    card: CheckpointCard,
    rows: NDArray[np.int64],
    pixel_size: float,
    tile: int,
) -> tuple[NDArray[np.bool_], tuple[int, int], tuple[str, ...]]:
    """Return the region's cells over the tiles it touches, the corner of these tiles, and notes."""
    if isinstance(request.region, Polygons):
        cells, corner, notes = _polygon_cells(section, request.region, pixel_size, tile)
    else:
        cells, corner = _spot_cells(section, rows, card, pixel_size, tile)
        notes = ()
    per_tile = tile // CELL
    tiles = np.argwhere(_any_in_blocks(cells, per_tile))
    (ty0, tx0), (ty1, tx1) = tiles.min(axis=0), tiles.max(axis=0) + 1
    cells = cells[ty0 * per_tile : ty1 * per_tile, tx0 * per_tile : tx1 * per_tile]
    return cells, (corner[0] + int(ty0) * tile, corner[1] + int(tx0) * tile), notes


def _aligned(low: Sequence[float], high: Sequence[float], tile: int) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return empty cells over the tiles that a box in absolute canvas pixels touches, and the corner of these tiles."""
    y0, x0 = (int(np.floor(v / tile)) * tile for v in low)
    y1, x1 = (int(np.ceil(v / tile)) * tile for v in high)
    shape = (max(y1 - y0, tile) // CELL, max(x1 - x0, tile) // CELL)
    return np.zeros(shape, dtype=bool), (y0, x0)


def _spot_cells(
    section: Section, rows: NDArray[np.int64], card: CheckpointCard, pixel_size: float, tile: int
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the tissue nearer to a chosen spot than to any other, excluded ones too, within `spot_radius_um`."""
    radius = spot_radius_um(section, card) / section.mpp / pixel_size
    yx, left_out = _with_excluded(section)
    centres = yx / pixel_size
    chosen = np.zeros(len(centres), dtype=bool)
    chosen[np.flatnonzero(~left_out)[rows]] = True
    low, high = centres[chosen].min(axis=0) - radius, centres[chosen].max(axis=0) + radius
    cells, corner = _aligned(low, high, tile)
    nearest = np.full(cells.shape, np.float32((radius / CELL) ** 2), dtype=np.float32)
    around = ((centres > low - radius) & (centres < high + radius)).all(axis=1)
    reach = int(radius / CELL) + 1
    for at, own in zip((centres[around] - corner) / CELL - 0.5, chosen[around], strict=True):
        y0, x0 = (max(int(v) - reach, 0) for v in at)
        y1, x1 = (max(int(v) + reach + 2, 0) for v in at)
        part = nearest[y0:y1, x0:x1]
        dy, dx = (np.arange(first, first + n) - v for first, n, v in zip((y0, x0), part.shape, at, strict=True))
        distance = (dy[:, None] ** 2 + dx[None] ** 2).astype(np.float32)
        closer: Any = distance < part
        part[closer] = distance[closer]
        cells[y0:y1, x0:x1][closer] = own
    slide = _slide_size(section, pixel_size)
    middles = [first + (np.arange(n) + 0.5) * CELL for first, n in zip(corner, cells.shape, strict=True)]
    within = [(middle > 0) & (middle < size) for middle, size in zip(middles, slide, strict=True)]
    on_slide = np.outer(*within).astype(bool)
    return cells & on_slide, corner


def _with_excluded(section: Section) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the places (n, 2) of all spots of a section, those of the table in its order, and which of them (n,) are excluded."""
    whole = section.whole.spots
    left_out = np.zeros(len(whole), dtype=bool)
    if section.excluded is not None:
        left_out[whole.rows(list(section.excluded.ids))] = True
    return whole.yx, left_out


def _slide_size(section: Section, pixel_size: float) -> NDArray[np.float64]:
    size: NDArray[np.float64] = np.array(section.slide.shape) * section.slide.pixel_size / pixel_size
    return size


def spot_radius_um(section: Section, card: CheckpointCard) -> float:
    """Return the radius of a spot's tissue: half a patch, or what closes the gaps of the section's own lattice."""
    yx = section.spots.yx
    if len(yx) < 2:
        return card.patch_um / 2
    distance, _ = cKDTree(yx).query(yx, k=2)
    pitch = float(np.median(distance[:, 1])) * section.mpp
    return max(card.patch_um / 2, GAP * pitch)


def _polygon_cells(
    section: Section, polygons: Polygons, pixel_size: float, tile: int
) -> tuple[NDArray[np.bool_], tuple[int, int], tuple[str, ...]]:
    """Return the cells of the slide inside polygons, as far as spots are near and the nearest is not excluded."""
    vertices = np.array([vertex for ring in polygons.rings for vertex in ring], dtype=np.float64) / pixel_size
    slide = _slide_size(section, pixel_size)
    low, high = np.clip(vertices.min(axis=0), 0, slide), np.clip(vertices.max(axis=0), 0, slide)
    cells, corner = _aligned(low, high, tile)
    yx, left_out = _with_excluded(section)
    near, left_out = cKDTree(yx), np.append(left_out, True)  # the last: no spot is near
    reach = REACH_UM / section.mpp
    columns = corner[1] + (np.arange(cells.shape[1]) + 0.5) * CELL
    far = 0
    for row in range(cells.shape[0]):  # row by row: the positions of all cells of a slide would take gigabytes
        y = corner[0] + (row + 0.5) * CELL
        at = np.stack([np.full(len(columns), y), columns], axis=1)
        on_slide = (at > 0).all(axis=1) & (at < slide).all(axis=1)
        inside = np.flatnonzero(on_slide & spots_in_polygons(at * pixel_size, polygons))
        distance, nearest = near.query(at[inside] * pixel_size, distance_upper_bound=reach)
        cells[row, inside[~left_out[nearest]]] = True
        far += int(np.isinf(distance).sum())
    if not cells.any():
        reason = f"nothing of it lies on the slide within {REACH_UM:g} um of a spot with counts"
        reason += "" if section.excluded is None else " and nearest to one that is not excluded"
        raise RequestError([("region.rings", reason)])
    share = far / (far + int(cells.sum()))
    note = f"{share:.0%} of the region lies farther than {REACH_UM:g} um from every spot and is left out"
    return cells, corner, (note,) if share >= 0.005 else ()


# ------------------------------------------------------------------------------------------------- windows and tiles


def _any_in_blocks(cells: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    height, width = (n // side for n in cells.shape)
    found: Any = cells.reshape(height, side, width, side).any(axis=(1, 3))
    return np.asarray(found, dtype=bool)


def _window_places(cells: NDArray[np.bool_], stride: int, side: int) -> NDArray[np.int64]:
    """Return the places (n, 2), in strides from the canvas's corner, of all windows that touch the region; a side is one to two strides."""
    block = math.gcd(stride, side)
    step, span = stride // block, side // block
    touched = np.pad(_any_in_blocks(cells, block // CELL), (step, span))
    windows = np.lib.stride_tricks.sliding_window_view(touched, (span, span))[::step, ::step]
    places = np.argwhere(windows.any(axis=(2, 3))) - 1
    return places.astype(np.int64)


def _tiles(
    cells: NDArray[np.bool_],
    corner: tuple[int, int],
    tile: int,
    pixel_size: float,
    section: Section,
    request: Request,
) -> tuple[Patch, ...]:
    places = np.argwhere(_any_in_blocks(cells, tile // CELL)) * tile
    boxes = [box_at((int(y) + corner[0], int(x) + corner[1]), tile, pixel_size) for y, x in places]
    middles = (places + corner + tile / 2) * pixel_size
    _, rows = cKDTree(section.spots.yx).query(middles)
    return tuple(
        Patch(
            index,
            str(section.spots.ids[row]),
            int(row),
            box.source,
            (int(y), int(x), int(y) + tile, int(x) + tile),
            request.seed,
        )
        for index, (row, box, (y, x)) in enumerate(zip(rows, boxes, places, strict=True))
    )
