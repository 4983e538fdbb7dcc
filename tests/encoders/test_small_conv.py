import json

import numpy as np
import pytest
import torch

from napari_stmdit.encoders.small_conv import CLIP, FeatureTrunk, SmallConvEncoder
from napari_stmdit.errors import CheckpointError


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SmallConvEncoder(FeatureTrunk((8, 12)), torch.randn(46), torch.randn(46, 5) * 0.05)


@pytest.fixture
def patches():
    return np.random.default_rng(0).integers(0, 256, (18, 64, 64, 3), dtype=np.uint8)


def test_one_token_a_patch_whatever_the_batch(encoder, patches):
    codes = encoder.encode(patches)
    assert codes.shape == (18, 1, 5) and codes.dtype == np.float32
    np.testing.assert_allclose(encoder.encode(patches[17:]), codes[17:], atol=1e-4)
    assert encoder.encode(patches[:0]).shape == (0, 1, 5)


def test_turning_a_patch_by_whole_blocks_keeps_colour_statistics(encoder, patches):
    mirrored = encoder.statistics(np.ascontiguousarray(patches[:, ::-1]))
    np.testing.assert_allclose(mirrored[:, :6], encoder.statistics(patches)[:, :6], atol=1e-4)


def test_outliers_stay_in_the_trained_range(encoder, patches):
    encoder.projection *= 1000
    assert np.abs(encoder.encode(patches)).max() <= CLIP


def test_folder_round_trip(encoder, patches, tmp_path):
    encoder.save(tmp_path)
    np.testing.assert_allclose(SmallConvEncoder.load(tmp_path).encode(patches), encoder.encode(patches), atol=5e-3)


def test_a_folder_that_does_not_fit_is_refused(encoder, tmp_path):
    with pytest.raises(CheckpointError, match="no readable morphology encoder"):
        SmallConvEncoder.load(tmp_path)
    encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"widths": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="size mismatch"):
        SmallConvEncoder.load(tmp_path)


def test_windows_are_described_as_what_is_in_them():
    import torch

    from napari_stmdit.encoders.small_conv import FeatureTrunk, describe, describe_windows

    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    layers = FeatureTrunk((4, 6))(images)
    windows = describe_windows(images, layers, [(0, 0), (32, 16)], 32)
    cut = describe(images[..., 32:64, 16:48], (layers[0][..., 8:16, 4:12], layers[1][..., 4:8, 2:6]))
    assert windows.shape == (2, 2, 26) and torch.equal(windows[:, 1], cut)
    assert torch.equal(describe_windows(images, layers, [(0, 0)], 64)[:, 0], describe(images, layers))
