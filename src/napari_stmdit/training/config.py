"""The config of a training run: sections, sizes, schedules, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator, model_validator

from ..errors import RequestError
from ..files import BadFile, read_yaml
from ..intent import Guidance, Intent
from ..tissue.open import Place, SectionSource

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = tuple[Share, Share, Share, Share]
"""A rectangle of an image: top, left, bottom, right as shares of its height and width."""
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)


class _Settings(Intent):
    """Base of the parts of a config."""


class TableSource(_Settings):
    """A section as a table of counts, a table of spots and an image, on a square lattice of known pitch."""

    kind: Literal["table"] = "table"
    name: str
    counts: Path
    spots: Path
    image: Path
    pitch_um: Annotated[float, Field(gt=0)] = 200.0
    spot_um: Annotated[float, Field(gt=0)] = 100.0
    part: Part = WHOLE
    """What of it is taken: spots and pixels outside are not seen, so that another part can be held out."""
    exclude: Path | None = None
    """GeoJSON polygons (x, y) in full-resolution pixels: spots inside are used for nothing."""
    exclude_classes: tuple[str, ...] = ()
    """Which of its classes are meant; none: all."""


class FolderSource(SectionSource):
    """A section as a user would open it; ``folder`` and ``image`` are read as ``path`` and ``fullres``, as earlier versions called them."""

    kind: Literal["folder"] = "folder"
    name: str
    path: Place = Field(validation_alias=AliasChoices("path", "folder"))
    fullres: Place | None = Field(None, validation_alias=AliasChoices("fullres", "image"))
    part: Part = WHOLE
    """As of a table."""


class SampleSource(_Settings):
    """The section that comes with the package. It is synthetic: a training on it shows how training works, and nothing about tissue."""

    kind: Literal["sample"] = "sample"
    name: str = "sample"


Source = Annotated[TableSource | FolderSource | SampleSource, Field(discriminator="kind")]


class _PictureSource(_Settings):
    """What pictures share: a name, and how often crops are drawn from one relative to the others."""

    name: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class ImageSource(_PictureSource):
    """A slide image without expression, or a ``part`` of it."""

    kind: Literal["image"] = "image"
    image: Path
    mpp: Annotated[float, Field(gt=0)]
    part: Part = WHOLE


class TilesSource(_PictureSource):
    """Tiles of many slides: a table with the columns ``file`` and ``mpp`` and one that names the ``slide``, and the folder of the files.

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
    """How a crop is varied.

    ``stain`` is the spread (standard deviation) of the gains of the optical density, one shared by the three colour channels
    and, at half that size, one for each. Of pictures without expression, ``hed`` is the spread of the gains of haematoxylin, eosin and the
    residual, each its own, in place of the latter; and ``mpp`` the lowest and the highest microns per pixel of a crop, None: the patch's own.
    """

    stain: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    geometry: bool = True
    hed: Annotated[float, Field(ge=0, le=1)] = 0.0
    mpp: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None


class ExpressionSettings(_Settings):
    """The expression condition.

    ``neighbour_um`` is the standard deviation of the Gaussian with which a crop's expression is interpolated from the spots
    around it. ``plain_fraction`` of the crops take the nearest spot alone, as inference does.
    """

    genes: Positive = 1000
    always: tuple[str, ...] = ()
    """Genes that are among them wherever every section has measured them, however little they vary: those that edits name."""
    regions: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tissue region -> its marker genes, of which profiles are made; none: those of breast, see `REGION_MARKERS`."""
    programs: Positive = 32
    neighbour_um: Annotated[float, Field(gt=0)] = 100.0
    plain_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    thinning: Annotated[float, Field(ge=1)] = 15.0
    """Counts of half the training profiles are thinned, by up to this factor."""
    penalty: Annotated[float, Field(gt=0)] = 4.0
    """Ridge penalty per training profile of the regressions of program scores on a single spot's profile, at each level of depth."""
    anew: bool = False
    """With ``start``: choose genes and programs here in place of those of its encoder, for other tissue, species or panels. Its transformer
    keeps what it knows and learns to read them."""
    refit: bool = False
    """With ``start``: read the programs of its encoder anew, by depth level, see `fit_programs`. Its genes are kept, and so are its
    programs but the last one, which relative depth takes the place of."""


class AutoencoderSettings(_Settings):
    """The autoencoder stage: all of it first, then the decoder against a discriminator with the encoder frozen."""

    latent_channels: Positive = 12
    encoder_widths: tuple[Positive, Positive] = (64, 96)
    decoder_widths: tuple[Positive, Positive, Positive] = (128, 64, 32)
    crop_px: Positive = 128
    batch: Positive = 8
    """Crops per step and worker."""
    steps: Positive = 2500
    decoder_steps: Annotated[int, Field(ge=0)] = 1500
    refine: bool = False
    """With ``start``: train the decoder of its autoencoder further, against a new discriminator. What latents mean stays the same."""
    refined_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the way from the initial to the fine-tuned decoder weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). Full
    fine-tuning sharpens real slides but degrades synthesized latents."""
    rate: float = 1e-3
    decoder_rate: float = 4e-4
    adversarial: float = 0.03
    feature_matching: float = 0.2
    noise: float = 0.2
    validate_every: Positive = 500
    """Steps from one validation on the held-out pictures to the next."""


class LatentSettings(_Settings):
    """The cache of encoded crops that the diffusion stage learns from."""

    crops: Positive = 8000
    pictures: tuple[str, ...] = ()
    """Names of the ``pictures`` that crops are drawn from here and learned from by the transformer; none: all of them."""
    held_out_spots: Positive | None = None
    """Spots of each held-out section that validation and samples look at, drawn at random; None: all."""
    morphology_components: Positive = 32
    scale_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Normalised channels keep a standard deviation proportional to (their effect on the pixels) to this power."""


class DiffusionSettings(_Settings):
    """The diffusion stage: rectified flow, or what the checkpoint to start from predicts; small crops first and whole patches at the end."""

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
    """Odds of a noise level are multiplied by this: conditions decide the coarse content of an image, which forms near pure noise.
    For flow alone; a checkpoint that predicts noise goes on with all its times equally often."""
    shifted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the levels that are shifted when whole patches are learned; the others go to detail. On small crops all are."""
    coarse_weight: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the errors of local and overall means, see `prediction_losses`; 0: none."""
    condition_noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on whitened morphology; of another encoder's, a share of its spread."""
    expression_noise: Annotated[float, Field(ge=0)] = 0.35
    """The same on program scores, whose first has a spread of one: with little noise every spot is known by its scores, and the
    images of few sections are learned by heart rather than what expression says."""
    share_both: Annotated[float, Field(ge=0, le=1)] = 0.30
    share_expression: Annotated[float, Field(ge=0, le=1)] = 0.45
    share_morphology: Annotated[float, Field(ge=0, le=1)] = 0.13
    validate_every: Positive = 400
    sample_every: Annotated[int, Field(ge=0)] = 1000
    """Steps from one sheet of samples to the next; the last step has one, too. 0: none."""
    samples: Positive = 4
    """Places on a sheet of samples."""
    compile: bool = False
    """Compile the blocks: pays on long runs only, a shape costs a minute or more."""

    @model_validator(mode="after")
    def _shares_fit(self) -> DiffusionSettings:
        if self.share_both + self.share_expression + self.share_morphology > 1:
            raise ValueError("the shares of the conditions add up to more than 1")
        return self


class CardSettings(BaseModel):
    """Fields of a config's ``card`` that are checked."""

    guidance: Guidance | None = None
    steps: Positive | None = None
    solver: Literal["dpm", "euler"] = "dpm"
    shift: Annotated[float, Field(gt=0)] = 1.0
    training_data: str = ""
    licence: str = ""
    limits: str = ""
    hardware: str = ""


class TrainingConfig(_Settings):
    """A whole training run; relative paths are taken from ``root``, and ``root`` from the config file's folder."""

    name: str
    root: Path = Path()
    output: Path
    """Folder of the work files: checkpoints, caches, logs."""
    export: Path | None = None
    """Folder of the finished checkpoint; None: ``checkpoint`` inside ``output``."""
    vae_of: str | None = None
    """Name of a checkpoint's folder in the package's data that holds the same autoencoder: the exported checkpoint refers to it in place of
    a copy. None: it has its own."""
    start: str | None = None
    """Name or folder of a checkpoint to go on from: its autoencoder, encoders and scheduler are kept as they are (but for
    ``expression.refit`` and ``autoencoder.refine``), its transformer is trained further. One that is conditioned on morphology alone, as
    a training on ``pictures`` makes it, learns expression here. A folder is taken from the config file's
    folder. None: everything is trained from the beginning."""
    allow_gene_mismatch: bool = False
    """Go on where a section has too few of the genes of the checkpoint to start from; those it lacks count as their mean."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of the networks' products (mixed precision); weights stay in float32."""
    workers: Positive = 2
    """On a CPU: processes, one thread each. On GPUs their number is that of ``accelerate launch``."""
    tensorboard: bool = True
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    patch_px: Positive = 256
    patch_mpp: Annotated[float, Field(gt=0)] = 0.688
    train: tuple[Source, ...] = ()
    held_out: tuple[Source, ...] = ()
    pictures: tuple[Picture, ...] = ()
    """Images without expression to learn from, in place of sections: an autoencoder, and a transformer conditioned on morphology alone."""
    held_out_pictures: tuple[Picture, ...] = ()
    """What the autoencoder is validated on while it learns, and never trained on."""
    augmentation: AugmentationSettings = AugmentationSettings()
    expression: ExpressionSettings = ExpressionSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    latents: LatentSettings = LatentSettings()
    transformer: dict[str, Any] = Field(default_factory=dict)
    """Settings of the transformer class that differ from the defaults of this training."""
    diffusion: DiffusionSettings = DiffusionSettings()
    card: dict[str, Any] = Field(default_factory=dict)
    """Of the exported checkpoint: guidance, steps, training_data, licence, limits, hardware; solver and shift of its scheduler. With
    ``start``, what is not given is taken from that checkpoint."""

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
        if self.pictures and self.start is not None:
            raise ValueError(
                "images without expression under 'pictures' are learned from the beginning; leave out 'start'"
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

    def source_path(self, path: Path) -> Path:
        """Return a data path, taken from the root where it is relative."""
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
