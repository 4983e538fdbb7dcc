import numpy as np

from napari_stmdit.evaluation.measures import (
    STAINS,
    blank_fraction,
    count_nuclei,
    eosin_density,
    haematoxylin_density,
    high_frequency,
    measure,
)


def stained(haematoxylin, eosin, side=64):
    """A patch with these densities (scalars or (side, side))."""
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = np.broadcast_to(haematoxylin, (side, side))[..., None] * unit[0] + eosin * unit[1]
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


def test_densities_are_unmixed():
    patch = stained(0.8, 0.3)
    assert abs(haematoxylin_density(patch) - 0.8) < 0.02
    assert abs(eosin_density(patch) - 0.3) < 0.02


def test_white_is_blank_and_has_no_stain():
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    assert blank_fraction(white) == 1
    assert haematoxylin_density(white) == 0
    half = white.copy()
    half[:16] = 100
    assert blank_fraction(half) == 0.5


def test_nuclei_are_counted_where_they_are():
    y, x = np.mgrid[:64, :64]
    density = np.full((64, 64), 0.1)
    for cy, cx in ((12, 12), (12, 40), (44, 20), (50, 50)):
        density += 2.0 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 3.0**2))
    assert count_nuclei(stained(density, 0.1), 0.7) == 4
    assert count_nuclei(stained(0.1, 0.1), 0.7) == 0


def test_nuclei_are_the_same_at_every_scale():
    """Of one size in microns, so that checkpoints of other scales are measured alike."""
    y, x = np.mgrid[:128, :128]
    density = np.full((128, 128), 0.1)
    rng = np.random.default_rng(0)
    for cy, cx in rng.uniform(8, 120, (12, 2)):
        # clumped chromatin: two maxima 3 um apart are one nucleus
        for off in (-1.5, 1.5):
            density += 1.5 * np.exp(-((y - cy) ** 2 + (x - cx - off / 0.7) ** 2) / (2 * 2.0**2))
    coarse = stained(density, 0.1, 128)
    fine = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)
    (at_coarse,), (at_fine,) = (measure(p[None], mpp).nuclei for p, mpp in ((coarse, 0.7), (fine, 0.35)))
    assert at_coarse == at_fine > 5


def test_blur_lowers_high_frequencies():
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert high_frequency(gaussian_filter(noise, (2, 2, 0))) < 0.2 * high_frequency(noise)


def test_measure_stacks():
    both = measure(np.stack([stained(0.8, 0.3), stained(0.2, 0.3)]), 0.7)
    assert both.haematoxylin.shape == (2,)
    assert both.haematoxylin[0] > both.haematoxylin[1]
