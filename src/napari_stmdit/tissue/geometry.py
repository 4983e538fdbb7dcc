"""Transforms, in this module only: axis order, affines, the half-pixel rule, calibration and polygons.

Everything inside the package is (y, x) in full-resolution pixels of the slide image, measured from the image's corner, so
that the centre of pixel (0, 0) lies at (0.5, 0.5). SpatialData measures in the same way. napari puts the centre of a pixel at
the integer, so a raster's layer affine is ``A @ translate(0.5)``; points need no shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SectionError
from ..files import BadFile, is_number, read_json
from ..regions import Polygons
from ..text import shorten
from ..types import Calibration, Section

Affine = NDArray[np.float64]
"""Affine (3, 3), acting on columns (y, x, 1)."""

VISIUM_PITCH_UM = 100.0
"""Distance between spot centres on a Visium slide, as 10x Genomics states it."""
_VISIUM_STEP_UM = (VISIUM_PITCH_UM * math.sqrt(3) / 2, VISIUM_PITCH_UM / 2)
"""Microns per step of the array row and of the array column on that lattice; columns count half pitches."""
IMAGE_SCALE = "image_scale"
"""Key beside the scalefactors: microns per pixel of the microscope image, which Space Ranger 4 can be given."""
_PLAUSIBLE_MPP = (0.02, 50.0)
MAX_PX = 1e7
"""Maximum side of a slide image: a position beyond it is a mistake."""


# ------------------------------------------------------------------------------------------------- affines


def swap_axes(points: ArrayLike) -> NDArray[np.float64]:
    """Convert (n, 2) points from (x, y) to (y, x) or back."""
    return np.ascontiguousarray(np.asarray(points, dtype=np.float64)[..., ::-1])


def translation(y: float, x: float) -> Affine:
    """Return the affine that adds (y, x)."""
    return np.array([[1, 0, y], [0, 1, x], [0, 0, 1]], dtype=np.float64)


def scaling(y: float, x: float | None = None) -> Affine:
    """Return the affine that multiplies by (y, x); one number scales both axes."""
    return np.diag([y, y if x is None else x, 1.0]).astype(np.float64)


def compose(*affines: ArrayLike) -> Affine:
    """Return the affine that applies the last one first: ``compose(a, b)(p) = a(b(p))``."""
    result: Affine = np.eye(3)
    for affine in affines:
        result = result @ np.asarray(affine, dtype=np.float64)
    return result


def apply(affine: ArrayLike, yx: ArrayLike) -> NDArray[np.float64]:
    """Apply a (3, 3) affine to (n, 2) points."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(np.asarray(yx, dtype=np.float64) @ matrix[:2, :2].T + matrix[:2, 2])


def uniform_scale(affine: ArrayLike, tolerance: float = 1e-3) -> float | None:
    """Return the scale of an affine that only scales, equally along both axes and without a shift; else None.

    ``tolerance`` is relative for the scale and in units of the target for the shift.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    sy, sx = matrix[0, 0], matrix[1, 1]
    if sy <= 0 or abs(sy - sx) > tolerance * sy or np.abs(matrix[[0, 1], [1, 0]]).max() > 1e-9 * sy:
        return None
    return float((sy + sx) / 2) if np.abs(matrix[:2, 2]).max() <= tolerance else None


def mean_scale(affine: ArrayLike) -> float:
    """Return the square root of an affine's area scale."""
    return float(math.sqrt(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:2, :2]))))


def sides_of_unit(affine: ArrayLike) -> tuple[float, float]:
    """Return the longer and the shorter side of a transformed unit square; equal for a similarity."""
    longer, shorter = np.linalg.svd(np.asarray(affine, dtype=np.float64)[:2, :2], compute_uv=False)
    return float(longer), float(shorter)


def world_affine(section: Section) -> Affine:
    """Return the affine from full-resolution pixels to the viewer's world: microns if calibrated, else pixels."""
    return scaling(section.calibration.mpp or 1.0)


def napari_affine(pixel_to_fullres: ArrayLike, mpp: float | None) -> Affine:
    """Return the layer affine of a raster.

    Parameters
    ----------
    pixel_to_fullres
        (3, 3) affine from the raster's pixels to full-resolution pixels, both measured from their corners.
    mpp
        Microns per full-resolution pixel; None keeps the world in full-resolution pixels.

    Returns
    -------
    ndarray
        (3, 3) affine from napari's data coordinates, where a pixel's centre is the integer, to the world.
    """
    return compose(scaling(mpp or 1.0), pixel_to_fullres, translation(0.5, 0.5))


# ------------------------------------------------------------------------------------------------- calibration


def calibrate(
    scalefactors: Mapping[str, Any],
    yx: NDArray[np.float64],
    array_rc: NDArray[np.int64] | None,
    override: float | None = None,
    bin_um: float | None = None,
) -> Calibration:
    """Find the microns per full-resolution pixel, by rule and never by guess.

    In order: the user's override; ``microns_per_pixel`` of the scalefactors; the image's scale as Space Ranger was given it; a lattice fitted to
    the spots' array indices (Visium: 100 um centre to centre; HD bins: their size). ``spot_diameter_fullres`` is never used: in real files it
    means anything from 55 to 65 um.

    Parameters
    ----------
    scalefactors
        Contents of ``scalefactors_json.json``; may be empty.
    yx
        (n, 2) positions in full-resolution pixels, on and off tissue; NaN is ignored.
    array_rc
        (n, 2) array rows and columns of the same spots, or None.
    override
        Microns per full-resolution pixel, as the user states it.
    bin_um
        Size of a Visium HD bin; None for spots.

    Raises
    ------
    SectionError
        The override is no plausible pixel size.
    """
    usable = (np.abs(yx) < MAX_PX).all(axis=1)  # nan is not
    fitted = None if array_rc is None else fit_lattice(array_rc[usable], yx[usable], bin_um)
    if override is not None:
        check_mpp(override)
        return Calibration(float(override), "override", f"{override:.4g} um/px, as given{_against(override, fitted)}")
    stated = scalefactors.get("microns_per_pixel")
    for value, words in (
        (stated, "microns_per_pixel of the scalefactors"),
        (scalefactors.get(IMAGE_SCALE), "the image_scale that Space Ranger was given"),
    ):
        if value is not None and is_plausible_mpp(value):
            detail = f"{value:.4g} um/px, {words}{_against(float(value), fitted)}"
            return Calibration(float(value), "scalefactors", detail)
    unusable = "" if stated is None else f" (microns_per_pixel is {shorten(repr(stated))}, which is no pixel size)"
    if fitted is not None:
        lattice = f"{bin_um:g} um bins" if bin_um else "the Visium lattice, 100 um centre to centre"
        return Calibration(fitted, "lattice", f"{fitted:.4g} um/px, fitted to {lattice}{unusable}")
    return Calibration(
        None,
        "unknown",
        f"the section states no microns per pixel{'' if array_rc is None else ' and its spots lie on no Visium lattice'}"
        f"{unusable}; give the size of a full-resolution pixel with --mpp (mpp=...)",
    )


def fit_lattice(array_rc: NDArray[np.int64], yx: NDArray[np.float64], bin_um: float | None = None) -> float | None:
    """Fit a Visium lattice to pixel positions and return microns per pixel; None where it is no such lattice.

    A similarity is fitted by least squares. It counts only if rows and columns have the parity of a hexagonal lattice (not required of HD
    bins), and if an unconstrained affine fit has the lattice's proportions and right angle, with residuals small against the pitch.
    (Residuals of the similarity would say little: real slides are stretched by up to 0.5 % along one axis, which adds up.)

    Parameters
    ----------
    array_rc
        (n, 2) array rows and columns.
    yx
        (n, 2) positions in pixels.
    bin_um
        Size of a Visium HD bin (square lattice); None for the hexagonal lattice of Visium.
    """
    rc = np.asarray(array_rc, dtype=np.int64)
    if len(rc) < 7 or np.ptp(rc[:, 0]) < 2 or np.ptp(rc[:, 1]) < 2:
        return None
    if bin_um is None and len(np.unique(rc.sum(axis=1) % 2)) != 1:
        return None
    microns = rc * np.array(_VISIUM_STEP_UM if bin_um is None else (bin_um, bin_um))
    source = microns - microns.mean(axis=0)
    target = yx - yx.mean(axis=0)
    free, _, rank, _ = np.linalg.lstsq(source, target, rcond=None)
    if rank < 2:
        return None
    # singular values of the free fit: both equal to the scale where proportions and angle are the lattice's
    major, minor = np.linalg.svd(free, compute_uv=False)
    if minor <= 0 or major / minor > 1.03:
        return None
    residual = np.sqrt(((target - source @ free) ** 2).sum(axis=1).mean())
    scale = float(np.linalg.svd(source.T @ target, compute_uv=False).sum() / (source**2).sum())
    pitch = (VISIUM_PITCH_UM if bin_um is None else bin_um) * scale
    if residual > max(0.05 * pitch, 0.5):  # half a pixel is what rounded positions may lose
        return None
    return 1.0 / scale if is_plausible_mpp(1.0 / scale) else None


def _against(mpp: float, fitted: float | None) -> str:
    if fitted is None or abs(fitted / mpp - 1) < 0.05:
        return ""
    return f"; the spots' lattice would give {fitted:.4g} um/px"


def is_plausible_mpp(mpp: object) -> TypeGuard[int | float]:
    """Return whether a value can be the microns per pixel of a slide."""
    return is_number(mpp) and _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1]


def mpp_fault(mpp: object) -> str:
    """Return why a value that is not plausible cannot be microns per pixel."""
    low, high = _PLAUSIBLE_MPP
    return f"mpp is {shorten(repr(mpp))}; expected microns per full-resolution pixel, between {low} and {high}"


def check_mpp(mpp: object) -> None:
    """Raise SectionError where a user's value cannot be microns per pixel."""
    if not is_plausible_mpp(mpp):
        raise SectionError(mpp_fault(mpp))


def check_positions(points: NDArray[np.float64], names: NDArray[np.str_], whose: str, axes: str) -> None:
    """Raise SectionError where one of (n, 2) positions is not finite, or farther away than any slide is large."""
    wrong = ~(np.abs(points) < MAX_PX).all(axis=1)  # nan is not
    if wrong.any():
        raise SectionError(
            f"the position of {shorten(str(names[wrong][0]))} is {points[wrong][0].tolist()} {axes}, which is no finite number or farther than any "
            f"slide is large; {int(wrong.sum())} {whose} have such a position"
        )


# ------------------------------------------------------------------------------------------------- polygons


def spots_in_polygons(yx: NDArray[np.float64], polygons: Polygons) -> NDArray[np.bool_]:
    """Return which positions lie in a region.

    Parameters
    ----------
    yx
        (n, 2) positions in full-resolution pixels.
    polygons
        Rings in the same pixels; the region is their union, and a ring may cross itself, as lassos do.

    Returns
    -------
    ndarray
        (n,) bool.
    """
    import shapely

    inside = np.zeros(len(yx), dtype=bool)
    for ring in polygons.rings:
        if len(ring) < 3:
            continue
        # a prepared polygon counts crossings of a ray, which needs no valid polygon and is as fast for the wildest lasso
        shape = shapely.Polygon(ring)
        shapely.prepare(shape)
        inside |= shapely.contains_xy(shape, np.asarray(yx)[:, 0], np.asarray(yx)[:, 1])
    return inside


def polygons_from_geojson(source: str | Path | Mapping[str, Any]) -> Polygons:
    """Read a region from GeoJSON, whose points are (x, y) in full-resolution pixels, as QuPath exports them.

    Parameters
    ----------
    source
        A file, or the parsed object: Feature, FeatureCollection, GeometryCollection, Polygon or MultiPolygon.

    Raises
    ------
    SectionError
        It cannot be read, holds no polygon, or has holes, which a region cannot have.
    """
    name = "the GeoJSON object"
    if not isinstance(source, Mapping):
        name = str(source)
        try:
            source = read_json(source)
        except BadFile as error:
            raise SectionError(f"{name} cannot be read as GeoJSON: {error}") from error
    rings = [ring for _, geometry in geojson_features(source) for ring in _rings(geometry, name)]
    if not rings:
        raise SectionError(f"{name} holds no polygon; expected GeoJSON with Polygon or MultiPolygon geometries")
    return Polygons(rings=tuple(rings))


def geojson_features(content: Any, nested: bool = False) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield class or name, else *region*, and geometry of each feature, in order; ``nested``: also of QuPath's objects inside others."""
    waiting = [("region", content)]  # a stack, as a file may be nested deeper than the recursion limit
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, list):  # QuPath also writes a bare list of features
            waiting += [(name, item) for item in reversed(node)]
        elif isinstance(node, Mapping):
            properties = node.get("properties")
            if isinstance(properties, Mapping):
                if nested:
                    waiting.append(("region", properties.get("childObjects")))
                own = _class_of(properties.get("classification")) or properties.get("name")
                name = own if isinstance(own, str) else name
            inner = next((key for key in ("features", "geometries", "geometry") if key in node), None)
            if inner is None:
                yield name, node
            else:
                waiting.append((name, node[inner]))


def _class_of(kind: Any) -> Any:
    """Return the name of a class; QuPath writes the parts of a derived one, *Artefact: Fold*, as a list."""
    if not isinstance(kind, Mapping):
        return kind
    parts = kind.get("names")
    return kind.get("name") or (": ".join(map(str, parts)) if isinstance(parts, list) else None)


def _rings(geometry: Mapping[str, Any], name: str) -> list[tuple[tuple[float, float], ...]]:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    polygons = [coordinates] if kind == "Polygon" else coordinates
    return [_outer_ring(polygon, name) for polygon in _list(polygons, name)]


def _outer_ring(polygon: Any, name: str) -> tuple[tuple[float, float], ...]:
    rings = _list(polygon, name)
    if len(rings) != 1:
        raise SectionError(f"{name}: a polygon has {len(rings)} rings; expected one outer ring and no hole")
    points = [_list(point, name) for point in _list(rings[0], name)]
    if any(len(p) < 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in p) for p in points):
        raise SectionError(f"{name}: a ring is no list of (x, y) points: each is two numbers")
    if len(points) < 3 or not all(is_number(v) for point in points for v in point[:2]):
        raise SectionError(
            f"{name}: a ring has {len(points)} points or a point that is no number; expected three or more"
        )
    return tuple((float(point[1]), float(point[0])) for point in points)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple | None):
        raise SectionError(
            f"{name}: a ring is no list of (x, y) points: it holds {str(value)[:40]!r} in the place of a list"
        )
    return list(value or ())
