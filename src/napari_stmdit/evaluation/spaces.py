"""Feature spaces to compare sets of patches in. Distances of two spaces are not comparable and are never mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RequestError, SectionError, StmditError, first_line
from ..synthesis.models import PatchModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..encoders.small_conv import SmallConvEncoder

AT_ONCE = 16
DEFAULT = ("encoder", "random")
KNOWN = "encoder, random, uni2h, uni2h=FILE or timm:NAME=FILE.safetensors"
COMPONENTS = 32
RIDGE = 1e-4
"""Ridge on the diagonal of a covariance, against singularity with few samples."""

Array = NDArray[np.float64]


class FeatureSpace(Protocol):
    """Feature extractor for patches."""

    @property
    def name(self) -> str:
        """Name in reports; spaces of one name are the same."""
        ...

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, d) for patches (n, h, w, 3) uint8."""
        ...


class EncoderStatistics:
    """Means and spreads of a checkpoint's small convolutional encoder, before whitening.

    A checkpoint that is conditioned on its own encoder is favoured in this space: compare with another.
    """

    def __init__(self, encoder: SmallConvEncoder, name: str) -> None:
        self.encoder = encoder
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, d) for patches (n, h, w, 3) uint8, sides divisible by 8."""
        return _in_batches(patches, lambda some: self.encoder.statistics(some).numpy()).astype(np.float64)


class RandomConvolutions:
    """Means of three layers of random, rectified convolutions: a space that no model was trained in or conditioned on.

    Random weights separate texture statistics well enough to serve as a control (compare Ustyuzhaninov et al. 2017, "What does it
    take to generate natural textures?", ICLR).
    """

    def __init__(self, seed: int = 123) -> None:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._layers = nn.Sequential(
                nn.Conv2d(3, 48, 7, stride=2, padding=3),
                nn.ReLU(),
                nn.Conv2d(48, 64, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(64, 96, 3, stride=2, padding=1),
                nn.ReLU(),
            )
        self.name = f"random convolutions, seed {seed}"

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, 96) for patches (n, h, w, 3) uint8."""
        import torch

        def means(some: NDArray[np.uint8]) -> NDArray[Any]:
            images = torch.from_numpy(np.ascontiguousarray(some)).permute(0, 3, 1, 2)
            found: NDArray[Any] = self._layers(images.float() / 127.5 - 1).mean((2, 3)).numpy()
            return found

        with torch.inference_mode():
            return _in_batches(patches, means).astype(np.float64)


class EncoderVectors:
    """Vectors of a checkpoint's morphology encoder, the mean over its tokens."""

    def __init__(self, model: PatchModel, name: str) -> None:
        self.model = model
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, d) for patches (n, side, side, 3) uint8."""
        try:
            vectors = _in_batches(patches, self.model.encode_morphology)
        except SectionError as error:
            raise SectionError(
                f"the checkpoint's morphology comes from embeddings that were computed elsewhere, so synthetic patches cannot be "
                f"described with it ({first_line(error)}); choose other spaces with --feature-space ({KNOWN})"
            ) from error
        return np.asarray(vectors.mean(axis=1, dtype=np.float64))


class Uni2hVectors:
    """Class token of a `napari_stmdit.encoders.uni2h.Uni2hEncoder`, the mean over a patch's tiles."""

    def __init__(self, encoder: Any, name: str = "UNI2-h") -> None:
        self.encoder = encoder
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, 1536) for patches (n, side, side, 3) uint8, side a multiple of 256."""
        return np.asarray(self.encoder.encode(patches).mean(axis=1, dtype=np.float64))


class TorchSpace:
    """Feature space of any torch network.

    Parameters
    ----------
    network
        Takes (B, 3, image_px, image_px) float32 and returns (B, d), or (B, d, h, w), which is averaged over (h, w).
    name
        Name of the space: the network, its weights and their version.
    image_px
        Side of the network's images, to which patches are resized by Pillow's bicubic filter.
    mean, std
        Of red, green and blue in 0 to 1, with which the network was trained.
    """

    def __init__(
        self,
        network: Any,
        name: str,
        image_px: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.image_px, self.mean, self.std = image_px, tuple(mean), tuple(std)

    def features(self, patches: NDArray[np.uint8]) -> Array:
        """Return (n, d) for patches (n, h, w, 3) uint8."""
        import torch

        def vectors(some: NDArray[np.uint8]) -> NDArray[Any]:
            found = self.network(self._images(some)).float()
            means: NDArray[Any] = (found if found.ndim == 2 else found.flatten(2).mean(2)).cpu().numpy()
            return means

        with torch.inference_mode():
            return _in_batches(patches, vectors).astype(np.float64)

    def _images(self, patches: NDArray[np.uint8]) -> Any:
        import torch
        from PIL import Image

        size = (self.image_px, self.image_px)
        resized = [np.asarray(Image.fromarray(patch).resize(size, Image.Resampling.BICUBIC)) for patch in patches]
        images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        parameter = next(self.network.parameters(), None)
        return (images - mean).div(std).to("cpu" if parameter is None else parameter.device)


def _in_batches(patches: NDArray[np.uint8], of: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([of(patches[start : start + AT_ONCE]) for start in range(0, len(patches), AT_ONCE)])


# ------------------------------------------------------------------------------------------------- spaces by name


def open_spaces(names: Sequence[str], model: PatchModel | None) -> tuple[FeatureSpace, ...]:
    """Open feature spaces by name.

    Parameters
    ----------
    names
        ``encoder`` (the checkpoint's own), ``random``, ``uni2h`` (as `stmdit download uni2-h` left it), ``uni2h=FILE``, or
        ``timm:NAME=FILE.safetensors``.
    model
        The checkpoint; None where a stored result is evaluated without one.

    Raises
    ------
    RequestError
        With every name that is unknown, repeated, or cannot be opened, and why.
    """
    spaces: list[FeatureSpace] = []
    faults = []
    for name in names:
        try:
            spaces.append(_open(name, model))
        except StmditError as error:
            faults.append((f"feature space {name!r}", str(error)))
    called = [space.name for space in spaces]
    faults += [("feature spaces", f"{name!r} is given twice") for name in sorted(set(called)) if called.count(name) > 1]
    if not names:
        faults.append(("feature spaces", f"none was given; choose from {KNOWN}"))
    if faults:
        raise RequestError(faults)
    return tuple(spaces)


def _open(name: str, model: PatchModel | None) -> FeatureSpace:
    kind, _, rest = name.partition("=")
    if name == "random":
        return RandomConvolutions()
    if name == "encoder":
        return _own(model)
    if kind == "uni2h":
        return _uni2h(rest)
    if kind.startswith("timm:") and rest:
        return _timm(kind.removeprefix("timm:"), Path(rest))
    raise CheckpointError(f"it is unknown; choose from {KNOWN}")


def _own(model: PatchModel | None) -> FeatureSpace:
    from ..encoders.small_conv import SmallConvEncoder

    if model is None:
        raise CheckpointError(
            "no checkpoint is at hand; give the folder of the one that made the result with --checkpoint"
        )
    lacking: Mapping[str, StmditError] = getattr(model, "lacking", {})
    if "morphology_encoder" in lacking:
        raise lacking["morphology_encoder"]
    if "morphology" not in model.card.conditions:
        raise CheckpointError(f"checkpoint {model.card.name!r} has no morphology encoder; choose another space")
    name = f"encoder of {model.card.name} ({str(model.provenance.get('sha256', ''))[:8]})"
    encoder = getattr(model, "morphology", None)
    return EncoderStatistics(encoder, name) if isinstance(encoder, SmallConvEncoder) else EncoderVectors(model, name)


def _uni2h(given: str) -> FeatureSpace:
    from ..encoders.uni2h import Uni2hEncoder
    from ..model.reading import read_settings, read_weights
    from ..model.zoo import reference_of, resolve_reference, zoo_entry

    if given:
        file = Path(given).expanduser()
        if not file.is_file():
            raise CheckpointError(f"there is no file {file}; expected the weights of UNI2-h")
    else:
        reference = reference_of(zoo_entry("uni2-h"))
        folder = resolve_reference(reference, "morphology_encoder")
        file = folder / next(name for name in reference.files if not name.endswith(".json"))
    beside = file.parent / "config.json"
    config = read_settings(beside) if beside.is_file() else {}
    encoder = Uni2hEncoder.from_tensors(read_weights(file), config, str(file))
    return Uni2hVectors(encoder, f"UNI2-h, {file.name}" if given else "UNI2-h")


def _timm(name: str, file: Path) -> FeatureSpace:
    try:
        import timm
    except ImportError:
        raise CheckpointError('timm is not installed: pip install "napari-stmdit[metrics]"') from None
    except RuntimeError as error:  # a torchvision that was built for another torch
        raise CheckpointError(
            f"timm cannot be used: {first_line(error)}; install a torchvision that fits torch"
        ) from error
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file() or file.suffix != ".safetensors":
        raise CheckpointError(f"{file} is no .safetensors file; expected the weights of timm's {name}")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0)
        lacking, left = network.load_state_dict(load_file(file), strict=False)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file} does not fit timm's {name}: {first_line(error)}") from error
    head = tuple(f"{part}." for part in ("head", "fc", "classifier"))
    strange = [*lacking, *(key for key in left if not key.startswith(head))]
    if strange:
        raise CheckpointError(f"{file} does not fit timm's {name}: {', '.join(strange[:5])} are missing or unknown")
    config = timm.data.resolve_model_data_config(network)
    called = f"timm {name}, {file.name}"
    return TorchSpace(network, called, int(config["input_size"][-1]), config["mean"], config["std"])


# ------------------------------------------------------------------------------------------------- distances between sets


@dataclass(frozen=True)
class Frame:
    """Standardised principal components of a reference set: ``mean`` (d,) and ``axes`` (d, k)."""

    mean: Array
    axes: Array

    @classmethod
    def of(cls, reference: Array, components: int = COMPONENTS) -> Frame:
        """Fit to reference features (n, d): each feature divided by its spread, then the leading principal axes."""
        mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
        _, _, axes = np.linalg.svd((reference - mean) / spread, full_matrices=False)
        return cls(mean, axes[:components].T / spread[:, None])

    def project(self, features: Array) -> Array:
        """Return the coordinates (n, k) of features (n, d)."""
        return (features - self.mean) @ self.axes


def frechet_distance(a: Array, b: Array) -> float:
    """Return the squared Frechet distance between normal distributions fitted to two sets (n, k) and (m, k).

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)); Dowson & Landau 1982, J. Multivar. Anal. 12:450-455, as used for images by
    Heusel et al. 2017, arXiv 1706.08500. It grows as samples get fewer: compare equal numbers only.

    Raises
    ------
    ValueError
        The sets have different widths, or fewer than two samples.
    """
    _check_sets(a, b, False)
    ridge = RIDGE * np.eye(a.shape[1])
    first, second = np.atleast_2d(np.cov(a.T)) + ridge, np.atleast_2d(np.cov(b.T)) + ridge
    # the eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2): no complex square root is needed
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(max(0.0, shift @ shift + np.trace(first) + np.trace(second) - 2 * overlap))


def polynomial_kernel(a: Array, b: Array) -> Array:
    """Return (a b / d + 1)^3 of (n, d) and (m, d), (n, m): the kernel of the Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401)."""
    kernel: Array = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def kernel_distance(a: Array, b: Array, paired: bool = False) -> float:
    """Return the unbiased squared maximum mean discrepancy of sets (n, d) and (m, d) under the polynomial kernel; it may be below 0.

    Gretton et al. 2012, J. Mach. Learn. Res. 13:723-773, lemma 6. ``paired``: row i of both belongs to one spot. The two are then not
    independent, and pairs of a spot with itself are left out (equation 4); a set compared with itself gives exactly 0. Sets of different
    shape raise ValueError.
    """
    _check_sets(a, b, paired)
    ones = np.ones((1, len(a))), np.ones((1, len(b)))
    return float(_kernel_distances(a, b, ones[0], ones[1], paired)[0])


def kernel_distance_draws(a: Array, b: Array, weights: Array) -> Array:
    """Return `kernel_distance` of every bootstrap sample of the spots, (draws,), both sets drawn together.

    A spot is never compared with its own copy in a sample, so that repeats do not make a set look alike.
    """
    _check_sets(a, b, True)
    return _kernel_distances(a, b, weights, weights, True)


def _check_sets(a: Array, b: Array, paired: bool) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets (n, d) of at least 2 samples and one width were expected, got {a.shape}, {b.shape}")
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets have one row a spot, got {len(a)} and {len(b)} rows")


def _kernel_distances(a: Array, b: Array, u: Array, v: Array, paired: bool) -> Array:
    """Return the mean kernel within both sets minus twice that across, under each row of weights u (draws, n) and v (draws, m)."""

    def mean(kernel: Array, p: Array, q: Array, without_diagonal: bool) -> Any:
        total, norm = ((p @ kernel) * q).sum(axis=1), p.sum(axis=1) * q.sum(axis=1)
        if without_diagonal:
            total, norm = total - (p * q) @ np.diag(kernel), norm - (p * q).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / norm

    within = mean(polynomial_kernel(a, a), u, u, True) + mean(polynomial_kernel(b, b), v, v, True)
    found: Array = within - 2 * mean(polynomial_kernel(a, b), u, v, paired)
    return found
