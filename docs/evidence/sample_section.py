"""The bundled sample section: a designed tissue, its expression drawn from a checkpoint's profiles, its slide synthesized.

Everything in it is synthetic. It exists so that the plugin can be tried offline, at once, without anybody's data.
Run ``python docs/evidence/sample_section.py FOLDER`` to make it again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from napari_stmdit.assemble import Checkpoint, load_checkpoint
from napari_stmdit.expression.changes import Profile
from napari_stmdit.intent import Guidance, Request
from napari_stmdit.regions import Polygons
from napari_stmdit.storage.atomic import check_free
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.st_array import write_spaceranger_folder
from napari_stmdit.types import Calibration, Genes, Section, SlideImage, SpotTable

SIDE_PX = 2000
PITCH_UM = 100.0
MARGIN_UM = 60.0
SPOT_UM = 55.0
DEPTH = {"tumour": 7000, "stroma": 4000, "adipose": 1800, "immune": 5500}
"""Median counts per spot over the checkpoint's genes, in the order of size that 10x sections have."""
EXPRESSION_SCALE = 2.5
"""That of single patches in the bundled checkpoint."""
STEPS = 32
NOTE = (
    "synthetic: a designed layout, expression drawn from the bundled checkpoint's tissue profiles, slide image synthesized by the "
    "bundled checkpoint; no patient's data"
)


@dataclass(frozen=True)
class Layout:
    """Where each tissue is: weights (n, regions) of the regions at (n, 2) positions in microns."""

    regions: tuple[str, ...]
    weights: NDArray[np.float64]


def build_sample(folder: str | Path, checkpoint: Checkpoint, seed: int = 2026, side_px: int = SIDE_PX) -> None:
    """Make the sample section and write it as a Space Ranger 2 folder.

    Parameters
    ----------
    folder
        Where to write; must not exist, or be empty.
    checkpoint
        Its profiles give the expression, its network the slide.
    seed
        Of the counts and of the noise.
    side_px
        Side of the slide.
    """
    check_free(Path(folder), "give a new folder")
    rng = np.random.default_rng(seed)
    mpp = checkpoint.card.patch_mpp
    array_rc, yx_um = hex_spots(side_px * mpp)
    spreads = _spreads(checkpoint)
    spots = SpotTable(
        ids=np.array([f"SYN-{r:02d}x{c:02d}" for r, c in array_rc]),
        yx=yx_um / mpp,
        diameter=SPOT_UM / mpp,
        counts=draw_counts(layout(yx_um, side_px * mpp), checkpoint.profiles, spreads, rng),
        genes=Genes(np.array(checkpoint.card.genes)),
        array_rc=array_rc,
    )
    write_spaceranger_folder(
        Path(folder),
        image=_synthesize_slide(checkpoint, spots, side_px, seed),
        ids=spots.ids,
        yx=spots.yx,
        counts=spots.counts,
        genes=spots.genes,
        mpp=mpp,
        array_rc=array_rc,
        diameter=spots.diameter,
        synthetic_note=NOTE,
    )


def hex_spots(side_um: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return array indices (n, 2) and positions (n, 2) in microns of a Visium lattice that fills a square."""
    rows = int((side_um - 2 * MARGIN_UM) // (PITCH_UM * np.sqrt(3) / 2)) + 1
    columns = int((side_um - 2 * MARGIN_UM) // (PITCH_UM / 2)) + 1
    rc = np.array([(r, c) for r in range(rows) for c in range(r % 2, columns, 2)], dtype=np.int64)
    return rc, MARGIN_UM + rc * np.array([PITCH_UM * np.sqrt(3) / 2, PITCH_UM / 2])


def layout(yx_um: NDArray[np.float64], side_um: float) -> Layout:
    """Return the designed tissue: two tumour nests and an islet in stroma, fat in a corner, immune cells along a nest's rim."""
    y, x = (yx_um / side_um).T

    def blob(cy: float, cx: float, ry: float, rx: float) -> NDArray[np.float64]:
        inside: NDArray[np.float64] = 1.0 - np.hypot((y - cy) / ry, (x - cx) / rx)
        return inside

    nest = np.maximum.reduce([blob(0.34, 0.32, 0.27, 0.25), blob(0.72, 0.6, 0.2, 0.27), blob(0.2, 0.78, 0.12, 0.14)])
    fat = np.maximum(blob(0.93, 0.1, 0.34, 0.3), blob(0.55, 0.98, 0.2, 0.16))
    rim = 0.85 - np.abs(blob(0.34, 0.32, 0.27, 0.25) + 0.18) * 5 + (y - x - 0.1) * 0.8
    fields = {"tumour": 5 * nest, "stroma": np.full(len(y), 0.35), "adipose": 5 * fat, "immune": rim}
    logits = 3.0 * np.stack(list(fields.values()), axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Layout(tuple(fields), weights / weights.sum(axis=1, keepdims=True))


def draw_counts(
    tissue: Layout,
    profiles: Mapping[str, Profile],
    spreads: Mapping[str, NDArray[np.float32]],
    rng: np.random.Generator,
) -> csr_matrix:
    """Draw (n, g) counts: mixed profiles with half of each region's own spread, then Poisson at a drawn depth."""
    mean = tissue.weights @ np.stack([profiles[name].mean for name in tissue.regions])
    spread = tissue.weights @ np.stack([spreads[name] for name in tissue.regions])
    x = np.maximum(mean + 0.5 * spread * rng.normal(size=mean.shape), 0)
    share = np.expm1(x)
    share /= share.sum(axis=1, keepdims=True)
    median = tissue.weights @ np.array([DEPTH[name] for name in tissue.regions])
    depth = median * rng.lognormal(0, 0.25, len(median))
    return csr_matrix(rng.poisson(share * depth[:, None]).astype(np.float32))


def _spreads(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    return {name: profile.spread for name, profile in checkpoint.profiles.items() if profile.spread is not None}


def _synthesize_slide(checkpoint: Checkpoint, spots: SpotTable, side_px: int, seed: int) -> NDArray[np.uint8]:
    """Synthesize the whole slide from expression alone, in continuous mode, as a user would."""
    import dask.array as da

    mpp = checkpoint.card.patch_mpp
    blank = da.full((side_px, side_px, 3), 255, dtype=np.uint8, chunks=512)
    section = Section(
        name="sample",
        path=None,
        kind="spaceranger",
        spots=spots,
        image=SlideImage((blank,), 1.0, "a blank slide"),
        calibration=Calibration(mpp, "override", f"{mpp} um per pixel, as designed"),
        coordinate_systems={"global": np.eye(3)},
        synthetic=True,
    )
    corners = ((0.0, 0.0), (0.0, float(side_px)), (float(side_px), float(side_px)), (float(side_px), 0.0))
    request = Request(
        region=Polygons(rings=(corners,)),
        mode="continuous",
        morphology="null",
        guidance=Guidance(expression=EXPRESSION_SCALE, morphology=0.0, rule=checkpoint.card.guidance.rule),
        steps=STEPS,
        seed=seed,
    )
    result = synthesize(section, request, checkpoint)
    y, x = (round(-start) for start in result.plan.frame.origin)
    slide = np.asarray(result.rgba)[y : y + side_px, x : x + side_px]
    assert slide.shape[:2] == (side_px, side_px) and bool((slide[..., 3] == 255).all())  # spots lie everywhere
    return np.ascontiguousarray(slide[..., :3])


if __name__ == "__main__":
    build_sample(sys.argv[1], load_checkpoint("demo"))
