"""How alike a synthetic patch is to the real one of its spot, pixel by pixel and in a feature space. Weak where many images are right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PSNR_MOST = 100.0
"""Identical patches have no finite ratio; they count as so many decibels."""
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


@dataclass(frozen=True)
class PairedMeasure:
    """A measure of likeness: its key, its name with unit, and whether more is better."""

    key: str
    name: str
    more_is_better: bool = True


SSIM = PairedMeasure("ssim", "SSIM")
PSNR = PairedMeasure("psnr", "PSNR (dB)")
LPIPS = PairedMeasure("lpips", "LPIPS (AlexNet)", more_is_better=False)
COSINE = PairedMeasure("cosine", "embedding cosine")
MEASURES = (SSIM, PSNR, LPIPS, COSINE)


def structural_similarity(made: NDArray[np.uint8], real: NDArray[np.uint8]) -> NDArray[np.float64]:
    """SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13:600-612) of n pairs of (n, h, w, 3) patches, (n,)."""
    from skimage.metrics import structural_similarity as ssim

    return np.array([ssim(a, b, channel_axis=-1, data_range=255) for a, b in zip(made, real, strict=True)])


def peak_signal_to_noise(made: NDArray[np.uint8], real: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of n pairs of patches in decibels, (n,), at most `PSNR_MOST`."""
    error = ((made.astype(np.float64) - real) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(PSNR_MOST, 10 * np.log10(255.0**2 / error)))


def embedding_cosine(
    made: NDArray[np.float64], real: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cosine between the features of n pairs (n, d), each feature standardised by the reference set (m, d); (n,).

    Without that all patches would look alike: most features are positive, and their common mean dominates the angle.
    """
    mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    a, b = (made - mean) / spread, (real - mean) / spread
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-12))


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), where the package and its backbone are on this computer.

    Raises
    ------
    LookupError
        They are not; the message says what to do. Nothing is downloaded.
    """

    def __init__(self) -> None:
        import torch

        try:
            import lpips
        except ImportError:
            raise LookupError('LPIPS is not installed: pip install "napari-stmdit[metrics]"') from None
        except RuntimeError as error:  # a torchvision that was built for another torch
            raise LookupError(f"LPIPS cannot be used ({error}); install a torchvision that fits torch") from None
        backbone = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
        if not backbone.is_file():
            raise LookupError(
                f"the weights of LPIPS's backbone are not in {backbone.parent}; fetch them once with: "
                "python -c \"import lpips; lpips.LPIPS(net='alex')\""
            )
        self._network: Any = lpips.LPIPS(net="alex", verbose=False).eval()

    def __call__(self, made: NDArray[np.uint8], real: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, h, w, 3) twice -> (n,)."""
        import torch

        def tensor(patch: NDArray[np.uint8]) -> Any:
            return torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1).float()[None] / 127.5 - 1

        with torch.inference_mode():
            return np.array(
                [float(self._network(tensor(a), tensor(b))) for a, b in zip(made, real, strict=True)], dtype=np.float64
            )


def find_lpips() -> tuple[Lpips | None, str]:
    """Return LPIPS where it can be had without a download, else None and why not."""
    try:
        return Lpips(), ""
    except LookupError as reason:
        return None, f"LPIPS was not measured: {reason}"


def mean_of_k(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) values of k seeds -> (n,) their mean."""
    return np.asarray(values.mean(axis=1))


def best_of_k(values: NDArray[np.float64], more_is_better: bool) -> NDArray[np.float64]:
    """(n, k) values of k seeds -> (n,) the best; it grows with k, for noise too, so compare equal k alone."""
    return np.asarray(values.max(axis=1) if more_is_better else values.min(axis=1))
