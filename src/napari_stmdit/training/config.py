"""The config of a training run: sections, sizes, schedules, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..errors import RequestError
from ..files import BadFile, read_yaml
from ..frozen import Frozen
from ..intent import Guidance
from ..tissue.open import Place, SectionSource

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = tuple[Share, Share, Share, Share]
"""Rectangle of an image: top, left, bottom, right as fractions of its height and width."""
Look = Literal["haematoxylin", "eosin", "nuclei", "blank"]
"""Measure of a crop that tells tissues apart: mean density of a stain, number of nuclei, share of empty pixels."""
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)


class _Settings(Frozen):
    """Base of the parts of a config."""


class TableSource(_Settings):
    """Section as a table of counts, a table of spots and an image, on a square lattice of known pitch."""

    kind: Literal["table"] = "table"
    name: str
    counts: Path
    spots: Path
    image: Path
    pitch_um: Annotated[float, Field(gt=0)] = 200.0
    spot_um: Annotated[float, Field(gt=0)] = 100.0
    part: Part = WHOLE
    """Part to use; spots and pixels outside are ignored, so that another part can be held out."""
    exclude: Path | None = None
    """GeoJSON polygons (x, y) in full-resolution pixels; spots inside are excluded."""
    exclude_classes: tuple[str, ...] = ()
    """Classes of ``exclude`` to apply; none: all."""


class FolderSource(SectionSource):
    """Section as `napari_stmdit.open_section` takes it; ``folder`` and ``image`` are the old names of ``path`` and ``fullres``."""

    kind: Literal["folder"] = "folder"
    name: str
    path: Place = Field(validation_alias=AliasChoices("path", "folder"))
    fullres: Place | None = Field(None, validation_alias=AliasChoices("fullres", "image"))
    part: Part = WHOLE
    """Part to use, as of a table."""


class SampleSource(_Settings):
    """Bundled synthetic section: a training on it shows how training works, and nothing about tissue."""

    kind: Literal["sample"] = "sample"
    name: str = "sample"


Source = Annotated[TableSource | FolderSource | SampleSource, Field(discriminator="kind")]


class _PictureSource(_Settings):
    """Base of pictures: a name, and the relative frequency of their crops."""

    name: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class ImageSource(_PictureSource):
    """Slide image without expression, or a ``part`` of it."""

    kind: Literal["image"] = "image"
    image: Path
    mpp: Annotated[float, Field(gt=0)]
    part: Part = WHOLE


class TilesSource(_PictureSource):
    """Tiles of many slides: a folder of files, and a table with the columns ``file``, ``mpp`` and one that names the ``slide``.

    ``only`` and ``without`` name slides; a slide is wholly in or wholly out.
    """

    kind: Literal["tiles"] = "tiles"
    table: Path
    folder: Path
    slide: str = "slide"
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


Picture = Annotated[ImageSource | TilesSource, Field(discriminator="kind")]


class AugmentationSettings(_Settings):
    """Augmentation of crops.

    ``stain`` is the standard deviation of the log gain of the optical density shared by all colour channels; each channel adds one of half that
    size. Pictures without expression use ``hed`` for the latter: the same for haematoxylin, eosin and the residual. ``mpp`` is the range
    of their scales; None: the patch's own.
    """

    stain: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    geometry: bool = True
    hed: Annotated[float, Field(ge=0, le=1)] = 0.0
    mpp: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    own_scale: Share = 0.3
    """Share of crops taken without resampling, where a picture's own scale is in the range. A discriminator that sees many resampled ones takes
    blur for real."""


class ExpressionSettings(_Settings):
    """Settings of the expression condition.

    ``neighbour_um`` is the standard deviation of the Gaussian that interpolates a crop's expression from the spots around it. A share
    ``plain_fraction`` of the crops takes the nearest spot alone, as inference does.
    """

    genes: Positive = 1000
    always: tuple[str, ...] = ()
    """Genes to include, however little they vary, where every section measured them: those that edits name."""
    regions: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tissue region -> marker genes of its profile; none: those of breast, see `REGION_MARKERS`."""
    looks: dict[str, dict[Look, tuple[Share, Share]]] | None = None
    """Region -> measure of a spot's crop -> lowest and highest share of the training spots that have less of it: a profile averages spots
    that have the markers and look like the region. None: those of breast, see `REGION_LOOKS`; ``{}``: none."""
    programs: Positive = 32
    neighbour_um: Annotated[float, Field(gt=0)] = 100.0
    plain_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    thinning: Annotated[float, Field(ge=1)] = 15.0
    """Maximum factor by which the counts of half the training profiles are thinned."""
    penalty: Annotated[float, Field(gt=0)] = 4.0
    """Ridge penalty per training profile of the regressions of program scores on single-spot profiles."""
    anew: bool = False
    """With ``start``: choose new genes and programs, for other tissue, species or panels. The transformer is kept and learns to read them."""
    refit: bool = False
    """With ``start``: refit the encoder's projections by depth level (`fit_programs`). Genes and programs are kept, but for the last program,
    which relative depth replaces."""


class AutoencoderSettings(_Settings):
    """Settings of the autoencoder stage: the whole of it first, then the decoder against a discriminator with the encoder frozen."""

    latent_channels: Positive = 12
    encoder_widths: tuple[Positive, Positive] = (64, 96)
    decoder_widths: tuple[Positive, Positive, Positive] = (128, 64, 32)
    crop_px: Positive = 128
    batch: Positive = 8
    """Crops per step and worker."""
    steps: Positive = 2500
    decoder_steps: Annotated[int, Field(ge=0)] = 1500
    refine: bool = False
    """With ``start``: fine-tune its decoder against a new discriminator. The latent space stays the same."""
    refined_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the way from the initial to the fine-tuned decoder weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). Full
    fine-tuning sharpens real slides but degrades synthesized latents."""
    rate: float = 1e-3
    decoder_rate: float = 4e-4
    adversarial: float = 0.03
    feature_matching: float = 0.2
    texture: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the energies of fine detail in the decoder phase: the errors of pixels alone make detail that cannot be known pale."""
    noise: float = 0.2
    validate_every: Positive = 500
    """Steps between validations on the held-out pictures."""


class LatentSettings(_Settings):
    """Settings of the cache of encoded crops that the diffusion stage trains on."""

    crops: Positive = 8000
    pictures: tuple[str, ...] = ()
    """Names of the ``pictures`` to encode and train the transformer on; none: all."""
    held_out_spots: Positive | None = None
    """Number of spots of each held-out section to validate on, drawn at random; None: all."""
    morphology_components: Positive = 32
    scale_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Exponent p: normalised channels keep a standard deviation proportional to (effect on the pixels)^p."""


class DiffusionSettings(_Settings):
    """Settings of the diffusion stage: small crops first, whole patches at the end."""

    steps: Positive = 6000
    small_fraction: Annotated[float, Field(ge=0, le=1)] = 0.6
    small_cells: Positive = 16
    """Side of a small crop, in latent cells."""
    small_batch: Positive = 24
    batch: Positive = 6
    """Whole patches per step and worker."""
    rate: float = 1e-3
    matrix_rate: float = 1.5e-3
    warmup: Positive = 40
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.998
    level_shift: Annotated[float, Field(gt=0)] = 3.0
    """Factor of the odds of a noise level: conditions decide the coarse content, which forms near pure noise. For flow only; a checkpoint
    that predicts noise draws its timesteps uniformly."""
    shifted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of shifted noise levels on whole patches; on small crops all are shifted."""
    coarse_weight: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the errors of local and overall means (`prediction_losses`); 0: none."""
    condition_noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on whitened morphology; of another encoder's, relative to its spread."""
    expression_noise: Annotated[float, Field(ge=0)] = 0.35
    """The same on program scores. With little noise each spot is identified by its scores, and images of few sections are memorised."""
    share_both: Annotated[float, Field(ge=0, le=1)] = 0.30
    share_expression: Annotated[float, Field(ge=0, le=1)] = 0.45
    share_morphology: Annotated[float, Field(ge=0, le=1)] = 0.13
    validate_every: Positive = 400
    sample_every: Annotated[int, Field(ge=0)] = 1000
    """Steps between sample sheets; the last step always has one. 0: none."""
    samples: Positive = 4
    """Number of places on a sample sheet."""
    compile: bool = False
    """Whether to compile the blocks: pays on long runs only, as a shape costs a minute or more."""

    @model_validator(mode="after")
    def _shares_fit(self) -> DiffusionSettings:
        if self.share_both + self.share_expression + self.share_morphology > 1:
            raise ValueError("the shares of the conditions add up to more than 1")
        return self


class CardSettings(BaseModel):
    """Validated fields of a config's ``card``."""

    guidance: Guidance | None = None
    steps: Positive | None = None
    solver: Literal["dpm", "euler"] = "dpm"
    shift: Annotated[float, Field(gt=0)] = 1.0
    training_data: str = ""
    licence: str = ""
    limits: str = ""
    hardware: str = ""


class TrainingConfig(_Settings):
    """Training run; relative paths start at ``root``, and ``root`` at the config file's folder."""

    name: str
    root: Path = Path()
    output: Path
    """Folder of the work files: checkpoints, caches, logs."""
    export: Path | None = None
    """Folder of the finished checkpoint; None: ``checkpoint`` inside ``output``."""
    vae_of: str | None = None
    """Name of a bundled checkpoint with the same autoencoder, to refer to in place of a copy; None: a copy."""
    start: str | None = None
    """Name or folder (relative to the config file) of the checkpoint to start from. Autoencoder, encoders and scheduler are kept (but for
    ``expression.refit`` and ``autoencoder.refine``); the transformer is trained further. One conditioned on morphology alone, as of a
    training on ``pictures``, learns expression here. None: everything is trained from scratch."""
    allow_gene_mismatch: bool = False
    """Accept sections that lack many genes of the checkpoint to start from; missing ones count as their mean."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)
    ] = "auto"
    """Mixed precision of the networks, "no" for float32 (YAML reads a bare no as false); weights stay float32."""
    workers: Positive = 2
    """Number of one-thread processes on a CPU; on GPUs ``accelerate launch`` decides."""
    tensorboard: bool = True
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    patch_px: Positive = 256
    patch_mpp: Annotated[float, Field(gt=0)] = 0.688
    train: tuple[Source, ...] = ()
    held_out: tuple[Source, ...] = ()
    pictures: tuple[Picture, ...] = ()
    """Images without expression to train an autoencoder and a transformer conditioned on morphology alone, in place of sections. With ``start``
    and ``autoencoder.refine`` its decoder alone is trained on them, and all else is kept."""
    held_out_pictures: tuple[Picture, ...] = ()
    """Pictures to validate the autoencoder on; never trained on."""
    augmentation: AugmentationSettings = AugmentationSettings()
    expression: ExpressionSettings = ExpressionSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    latents: LatentSettings = LatentSettings()
    transformer: dict[str, Any] = Field(default_factory=dict)
    """Options of the transformer class that differ from this training's defaults."""
    diffusion: DiffusionSettings = DiffusionSettings()
    card: dict[str, Any] = Field(default_factory=dict)
    """Card of the exported checkpoint: guidance, steps, training_data, licence, limits, hardware; solver and shift of its scheduler. With
    ``start``, missing fields are taken from that checkpoint."""

    @field_validator("card")
    @classmethod
    def _card_makes_sense(cls, card: dict[str, Any]) -> dict[str, Any]:
        try:
            CardSettings.model_validate(card)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError("; ".join(faults)) from None
        return card

    @model_validator(mode="after")
    def _held_out_is_held_out(self) -> TrainingConfig:
        trained, kept = (*self.train, *self.pictures), (*self.held_out, *self.held_out_pictures)
        names = [s.name for s in (*trained, *kept)]
        both = {s.name for s in trained} & {s.name for s in kept}
        if both:
            raise ValueError(f"sections {sorted(both)} are both trained on and held out")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several sections are called {', '.join(twice)}; give each a name of its own")
        return self

    @model_validator(mode="after")
    def _learns_from_something(self) -> TrainingConfig:
        if bool(self.train) == bool(self.pictures):
            raise ValueError("give either sections under 'train' or images without expression under 'pictures'")
        if self.pictures and self.start is not None and not self.autoencoder.refine:
            raise ValueError(
                "images without expression under 'pictures' are learned from the beginning, or refine a decoder alone: leave out 'start', or set "
                "'autoencoder.refine'"
            )
        if self.expression.anew and (self.start is None or self.expression.refit):
            raise ValueError(
                "'expression.anew' replaces the programs of the checkpoint to start from: give 'start', and leave 'expression.refit' out"
            )
        if self.vae_of is not None and self.start is None:
            raise ValueError(
                "'vae_of' shares the autoencoder of the checkpoint to start from; give 'start', or leave 'vae_of' out"
            )
        unknown = sorted(set(self.latents.pictures) - {picture.name for picture in self.pictures})
        if unknown:
            raise ValueError(f"latents.pictures names {', '.join(unknown)}, which 'pictures' does not have")
        return self

    @property
    def trains_decoder_alone(self) -> bool:
        """Whether only the decoder of the checkpoint to start from is trained: on pictures."""
        return bool(self.pictures) and self.start is not None

    def source_path(self, path: Path) -> Path:
        """Return a data path, relative to the root."""
        return path if path.is_absolute() else self.root / path


def load_config(path: Path, root: Path | None = None, output: Path | None = None) -> TrainingConfig:
    """Read a training config.

    Parameters
    ----------
    path
        YAML file.
    root
        Folder of the data in place of the config's own.
    output
        Folder of the work files in place of the config's own.

    Raises
    ------
    RequestError
        The file is no valid config; names every fault with its place.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(
            [("config", f"{path} is not a file; give a training config in YAML; `stmdit train --template` prints one")]
        )
    try:
        content = read_yaml(path)
    except BadFile as error:
        raise RequestError([("config", f"{path} cannot be read: {error}")]) from None
    try:
        config = TrainingConfig.model_validate(content)
    except ValidationError as error:
        faults = [(".".join(map(str, e["loc"])) or "config", e["msg"]) for e in error.errors()]
        raise RequestError(faults) from error
    folder = path.resolve().parent
    paths = {"root": root or folder / config.root, "output": output or folder / config.output}
    if config.export is not None:
        paths["export"] = folder / config.export
    update: dict[str, Any] = {key: Path(value).resolve() for key, value in paths.items()}
    if config.start is not None and (folder / config.start / "model_index.json").is_file():
        update["start"] = str((folder / config.start).resolve())
    return config.model_copy(update=update)
