"""Feature spaces by name: a checkpoint's own encoder, random convolutions, UNI2-h, or a network that the user has.

Nothing is downloaded and no code is taken from a file. Distances of two spaces are never mixed: every figure carries its space's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RequestError, SectionError, StmditError, first_line
from ..synthesis.models import PatchModel
from .features import AT_ONCE, EncoderStatistics, FeatureSpace, RandomConvolutions

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT = ("encoder", "random")
KNOWN = "encoder, random, uni2h, uni2h=FILE or timm:NAME=FILE.safetensors"


class EncoderVectors:
    """What a checkpoint's morphology encoder gives, the mean over its tokens.

    Parameters
    ----------
    model
        The checkpoint.
    name
        Name of the space.
    """

    def __init__(self, model: PatchModel, name: str) -> None:
        self.model = model
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, side, side, 3) uint8 -> (n, d)."""
        try:
            parts = [
                self.model.encode_morphology(patches[start : start + AT_ONCE])
                for start in range(0, len(patches), AT_ONCE)
            ]
        except SectionError as error:
            raise SectionError(
                f"the checkpoint's morphology comes from embeddings that were computed elsewhere, so synthetic patches cannot be "
                f"described with it ({first_line(error)}); choose other spaces with --feature-space ({KNOWN})"
            ) from error
        return np.asarray(np.concatenate(parts).mean(axis=1, dtype=np.float64))


class Uni2hVectors:
    """The class token of UNI2-h, the mean over a patch's tiles.

    Parameters
    ----------
    encoder
        A `napari_stmdit.encoders.uni2h.Uni2hEncoder`.
    name
        Name of the space.
    """

    def __init__(self, encoder: Any, name: str = "UNI2-h") -> None:
        self.encoder = encoder
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, side, side, 3) uint8, side a multiple of 256 -> (n, 1536)."""
        return np.asarray(self.encoder.encode(patches).mean(axis=1, dtype=np.float64))


class TorchSpace:
    """Any torch network that the user has built.

    Parameters
    ----------
    network
        Takes (B, 3, image_px, image_px) float32 and returns (B, d) or (B, d, h, w), of which the mean over places is taken.
    name
        Name of the space; say the network, its weights and their version.
    image_px
        Side of the network's images; the whole patch is resized to it by Pillow's bicubic filter.
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

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, h, w, 3) uint8 -> (n, d)."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(patches), AT_ONCE):
                found = self.network(self._images(patches[start : start + AT_ONCE])).float()
                parts.append((found if found.ndim == 2 else found.flatten(2).mean(2)).cpu().numpy())
        return np.concatenate(parts).astype(np.float64)

    def _images(self, patches: NDArray[np.uint8]) -> Any:
        import torch
        from PIL import Image

        size = (self.image_px, self.image_px)
        resized = [np.asarray(Image.fromarray(patch).resize(size, Image.Resampling.BICUBIC)) for patch in patches]
        images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        parameter = next(self.network.parameters(), None)
        return (images - mean).div(std).to("cpu" if parameter is None else parameter.device)


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
        With every name that is unknown, twice, or cannot be opened, and why.
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
    from ..model.references import resolve_reference
    from ..model.zoo import reference_of, zoo_entry

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
