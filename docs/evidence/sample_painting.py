"""Paintings of designed tissue, which a network then makes real: breast with a tumour, and colon of a mouse. No image was traced.

Sizes are in microns. Breast: nests of tumour with septa between them in stroma with fibres, two lobules of fat, a lymphoid aggregate and a
vessel. Colon: layers of muscle, submucosa and mucosa with crypts, as in a Swiss roll, and a lymphoid follicle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

Places = NDArray[np.float64]
Field = NDArray[np.float64]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Painter:
    """Square of ``side`` pixels of ``mpp`` microns, and the generator of all that is drawn."""

    side: int
    mpp: float
    rng: np.random.Generator

    def px(self, um: float) -> float:
        """Return pixels."""
        return um / self.mpp

    def grid(self) -> tuple[Field, Field]:
        """Return rows and columns (n, n) of the pixels."""
        y, x = np.mgrid[0 : self.side, 0 : self.side].astype(float)
        return y, x

    def waves(self, um: float) -> Field:
        """Return smooth noise (n, n) of a wavelength, of mean 0 and standard deviation 1."""
        step = max(1, int(self.px(um) / 4))
        coarse = gaussian_filter(self.rng.standard_normal((self.side // step + 9, self.side // step + 9)), 4)
        place = np.arange(self.side) / step + 2
        found: Field = map_coordinates(coarse, np.meshgrid(place, place, indexing="ij"), order=1)
        return (found - coarse.mean()) / coarse.std()

    def scattered(self, mask: Mask | None, spacing_um: float, share: float = 1.0) -> Places:
        """Return places (m, 2) inside a mask, or anywhere, about a spacing apart, or a share of them: a triangular lattice, shaken."""
        spacing = self.px(spacing_um)
        y, x = np.mgrid[0 : self.side : spacing, 0 : self.side : 0.87 * spacing]
        y = y + (np.arange(y.shape[1]) % 2) * spacing / 2
        shaken = self.rng.uniform(-0.36 * spacing, 0.36 * spacing, (y.size, 2))
        places = np.column_stack([y.ravel(), x.ravel()]) + shaken
        rows, columns = np.round(places).astype(int).T
        inside = (rows >= 0) & (rows < self.side) & (columns >= 0) & (columns < self.side)
        if mask is not None:
            inside[inside] = mask[rows[inside], columns[inside]]
        return places[inside & (self.rng.random(len(places)) < share)]

    def strands(self, around: Field) -> tuple[Field, Field]:
        """Return noise (n, n) smeared along the lines of a field, and the angle of these lines from the y axis.

        Line integral convolution: Cabral and Leedom 1993, SIGGRAPH, 263-270.
        """
        dy, dx = np.gradient(around)
        length = np.hypot(dy, dx) + 1e-6
        along_y, along_x = -dx / length, dy / length
        grain, found = self.rng.standard_normal((self.side, self.side)), np.zeros((self.side, self.side))
        for way in (2, -2):
            y, x = self.grid()
            for _ in range(14):
                row, column = y.clip(0, self.side - 1).astype(int), x.clip(0, self.side - 1).astype(int)
                found += grain[row, column]
                y, x = y + way * along_y[row, column], x + way * along_x[row, column]
        found = gaussian_filter(found, 1.2)
        return found / found.std(), np.arctan2(along_x, along_y)

    def ellipses(
        self,
        picture: Field,
        places: Places,
        long_um: tuple[float, float],
        short_um: tuple[float, float],
        angle: Field | None,
        colour: Colour,
    ) -> None:
        """Draw ellipses of half axes in a range, with soft rims, the long one at an angle (n, n) from the y axis, or at any."""
        turns = self.rng.uniform(0, np.pi, len(places)) if angle is None else at(angle, places)
        sizes = [self.px(1) * self.rng.uniform(*of, len(places)) for of in (long_um, short_um)]
        for (y, x), long, short, turn in zip(places, *sizes, turns, strict=True):
            reach = int(1.4 * max(long, short)) + 2
            rows = slice(max(0, int(y) - reach), min(self.side, int(y) + reach + 1))
            columns = slice(max(0, int(x) - reach), min(self.side, int(x) + reach + 1))
            dy, dx = np.arange(rows.start, rows.stop)[:, None] - y, np.arange(columns.start, columns.stop) - x
            along, across = dy * np.cos(turn) + dx * np.sin(turn), dx * np.cos(turn) - dy * np.sin(turn)
            cover = 0.95 * np.clip(4 * (1 - np.hypot(along / long, across / short)) + 0.5, 0, 1)[..., None]
            shade = np.array(colour) + self.rng.normal(0, 15)
            picture[rows, columns] = (1 - cover) * picture[rows, columns] + cover * shade

    def finished(self, picture: Field) -> NDArray[np.uint8]:
        """Return the picture as a camera sees it: a little soft, with some noise."""
        seen = gaussian_filter(picture, (0.7, 0.7, 0)) + self.rng.normal(0, 3, picture.shape)
        return np.clip(seen, 0, 255).astype(np.uint8)


def at(values: Field, places: Places) -> Field:
    """Return the values at places."""
    rows, columns = places.astype(int).T
    return values[rows, columns]


def borders(places: Places, y: Field, x: Field) -> Field:
    """Return the distance in pixels of each point (y, x) from the border of its cell around the nearest of some places."""
    near, _ = cKDTree(places).query(np.column_stack([y.ravel(), x.ravel()]), k=2)
    distance: Field = ((near[:, 1] - near[:, 0]) / 2).reshape(y.shape)
    return distance


# ------------------------------------------------------------------------------------------------- breast


NUCLEUS, LYMPHOCYTE = (44, 48, 112), (38, 42, 100)


@dataclass(frozen=True)
class Breast:
    """Regions (n, n) of the design; the distance (n, n) from the vessel's middle in pixels, and its outside and lumen."""

    regions: dict[str, Mask]
    from_vessel: Field
    vessel: Mask
    lumen: Mask


def design_breast(painter: Painter) -> Breast:
    """Lay the tissue out."""
    side, px = painter.side, painter.px
    wy, wx = (part / side + 0.03 * painter.waves(300) + 0.009 * painter.waves(90) for part in painter.grid())

    def blob(cy: float, cx: float, ry: float, rx: float) -> Field:
        inside: Field = 1 - np.hypot((wy - cy) / ry, (wx - cx) / rx)
        return inside

    field = np.maximum.reduce(
        [blob(0.33, 0.30, 0.27, 0.27), blob(0.73, 0.60, 0.22, 0.30), blob(0.20, 0.80, 0.15, 0.16)]
    )
    gap = borders(painter.scattered(None, 215), wy * side, wx * side)
    gap = gap + px(8) * painter.waves(60) + px(2.5) * painter.waves(18)
    adipose = np.maximum(blob(0.98, 0.08, 0.36, 0.33), blob(0.50, 1.02, 0.20, 0.17)) > 0
    immune = (blob(0.52, 0.18, 0.085, 0.10) > 0) & ~adipose
    from_vessel = np.hypot(wy - 0.86, wx - 0.50) * side
    tumour = (field > 0.02) & (gap > px(17)) & ~adipose & ~immune & (from_vessel > px(92))
    regions = {"tumour": tumour, "stroma": ~(tumour | adipose | immune), "adipose": adipose, "immune": immune}
    return Breast(regions, from_vessel, from_vessel < px(66), from_vessel < px(42))


def paint_breast(painter: Painter, tissue: Breast) -> NDArray[np.uint8]:
    """Paint the tissue, (n, n, 3): flat areas, fibres around the nests, and nuclei."""
    px, masks = painter.px, tissue.regions
    tumour, stroma, adipose, immune = (masks[name] for name in ("tumour", "stroma", "adipose", "immune"))
    around = gaussian_filter(distance_transform_edt(~tumour), px(17)) + px(40) * painter.waves(200)
    strands, angle = painter.strands(around)
    picture = np.zeros((painter.side, painter.side, 3)) + (196, 172, 208)
    picture += (9 * strands + 7 * painter.waves(80))[..., None] * (1, 1.1, 0.7)
    strong = (strands > 1.1) & stroma
    picture[strong] = 0.3 * picture[strong] + 0.7 * np.array((178, 142, 188))
    cells = painter.scattered(stroma & ~tissue.vessel, 18.5, 0.62)
    painter.ellipses(picture, cells, (4.1, 6.9), (1.4, 2.1), angle, NUCLEUS)

    picture[tumour] = np.array((152, 138, 190)) + 8 * painter.waves(17)[tumour][:, None]
    cells = painter.scattered(distance_transform_edt(tumour) > px(3), 11.2)
    painter.ellipses(picture, cells, (3.2, 4.8), (2.7, 3.9), None, NUCLEUS)

    picture[adipose] = (233, 224, 237)
    wall = adipose & (borders(painter.scattered(None, 72), *painter.grid()) < px(2.2))
    picture[wall] = (190, 158, 198)
    painter.ellipses(picture, painter.scattered(wall, 42), (4, 4), (1.8, 1.8), None, NUCLEUS)

    picture[immune] = (160, 150, 196)
    rim = (distance_transform_edt(~immune) < px(50)) & stroma
    cells = np.concatenate([painter.scattered(immune, 7.6), painter.scattered(rim, 12, 0.5)])
    painter.ellipses(picture, cells, (2.5, 3.2), (2.4, 3.0), None, LYMPHOCYTE)

    wall = tissue.vessel & ~tissue.lumen
    rings = np.sin(0.9 * painter.mpp * tissue.from_vessel / 0.688 + 3 * painter.waves(28))
    picture[wall] = np.array((182, 140, 186)) + 10 * rings[wall][:, None]
    picture[tissue.lumen] = (236, 228, 240)
    dy, dx = np.gradient(tissue.from_vessel)
    painter.ellipses(picture, painter.scattered(wall, 15), (5.5, 5.5), (1.7, 1.7), np.arctan2(-dy, dx), NUCLEUS)
    return painter.finished(picture)


# ------------------------------------------------------------------------------------------------- colon


LAYER_UM = 490.0
"""From one layer of muscle of the roll to the next."""
MUSCLE_UM, SUBMUCOSA_UM, CRYPTS_UM = 75.0, 125.0, 400.0
"""Where muscle, submucosa and crypts end, from the outside of a layer; the lumen follows."""
CRYPT_UM = 46.0
"""From the middle of one crypt to that of the next."""


@dataclass(frozen=True)
class Colon:
    """Regions (n, n) of the design; depth below the outside of the layer and distance from the middle of the crypt, in microns; crypts and lumen."""

    regions: dict[str, Mask]
    depth: Field
    away: Field
    crypts: Mask
    lumen: Mask


def design_colon(painter: Painter) -> Colon:
    """Lay the tissue out."""
    y, x = (part * painter.mpp for part in painter.grid())
    bend = 50 * painter.waves(1500) + 14 * painter.waves(400) + 190 * np.sin(2.4 * x / x.max())
    depth = np.mod(y + bend + 120, LAYER_UM)
    number = np.floor((y + bend + 120) / LAYER_UM)
    along = x + 9 * painter.waves(160) + 13.7 * number + 6 * np.sin(depth / 60)
    away = np.abs(np.mod(along, CRYPT_UM) - CRYPT_UM / 2)
    muscle, submucosa = depth < MUSCLE_UM, (depth >= MUSCLE_UM) & (depth < SUBMUCOSA_UM)
    top = CRYPTS_UM + 16 * painter.waves(140) + 10 * np.cos(2 * np.pi * along / CRYPT_UM)
    mucosa = (depth >= SUBMUCOSA_UM) & (depth < top)
    from_follicle = np.hypot((depth - 215) / 150, (x - 0.6 * x.max()) / 270) + 0.07 * painter.waves(120)
    follicle = (from_follicle < 1) & (number == 2) & (depth >= MUSCLE_UM) & (depth < top)
    crypts = mucosa & ~follicle & (away < 17.5) & (depth > SUBMUCOSA_UM + 14)
    regions = {
        "epithelial": mucosa & ~follicle,
        "smooth_muscle": muscle,
        "stromal": (submucosa | (depth >= top)) & ~follicle,
        "b_plasma": follicle,
    }
    return Colon(regions, depth, away, crypts, (depth >= top) & ~follicle & ~muscle)


def paint_colon(painter: Painter, tissue: Colon) -> NDArray[np.uint8]:
    """Paint the tissue, (n, n, 3): bundles of muscle, loose submucosa, crypts with goblet cells and nuclei at their base, a follicle."""
    strands, angle = painter.strands(tissue.depth + 4 * painter.waves(90))
    muscle, follicle = tissue.regions["smooth_muscle"], tissue.regions["b_plasma"]
    picture = np.zeros((painter.side, painter.side, 3)) + (226, 196, 216)  # submucosa, and what lies between crypts
    picture += (7 * strands + 5 * painter.waves(60))[..., None] * (0.8, 1.2, 0.8)
    between = tissue.regions["epithelial"] & ~tissue.crypts
    picture[between] -= (20, 34, 22)
    painter.ellipses(picture, painter.scattered(between, 11, 0.8), (2.6, 4.2), (1.8, 2.6), None, (98, 66, 128))
    picture[muscle] = np.array((222, 150, 190)) + (11 * strands)[muscle][:, None]
    painter.ellipses(picture, painter.scattered(muscle, 17, 0.6), (5, 8), (1.3, 2.0), angle, (110, 66, 132))
    loose = tissue.regions["stromal"] & ~tissue.lumen
    painter.ellipses(picture, painter.scattered(loose, 20, 0.5), (4, 6), (1.4, 2.0), angle, (112, 76, 136))

    wall = tissue.crypts
    picture[wall] = np.array((206, 156, 196)) + 6 * painter.waves(12)[wall][:, None]
    goblets = painter.scattered(wall & (tissue.away > 4) & (tissue.away < 12), 11.5, 0.75)
    painter.ellipses(picture, goblets, (3.4, 5.0), (3.0, 4.2), None, (232, 214, 232))
    base = wall & ((tissue.away > 13) | (tissue.depth < SUBMUCOSA_UM + 22))
    painter.ellipses(picture, painter.scattered(base, 6.4), (2.9, 3.9), (2.0, 2.6), None, (92, 52, 122))
    picture[wall & (tissue.away < 2.2) & (tissue.depth > SUBMUCOSA_UM + 30)] = (238, 226, 238)

    picture[follicle] = (176, 140, 184)
    painter.ellipses(picture, painter.scattered(follicle, 7.4), (2.5, 3.2), (2.4, 3.0), None, (84, 52, 124))
    picture[tissue.lumen] = (240, 232, 240)
    return painter.finished(picture)
