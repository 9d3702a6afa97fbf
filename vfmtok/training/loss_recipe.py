"""What a tokenizer is trained by: the losses' sections of its recipe. The defaults are the published VFMTok's."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vfmtok.config import require, require_not_negative
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError


@dataclass(frozen=True)
class TermConfig:
    """A change of one row of the objective, or a further row: see ``objective.Term``. What is None stays as it is."""

    name: str = ""  # pixel, perceptual, feature, codebook, adversarial, or a loss of ``objective.TERMS``
    weight: float | None = None
    first_step: int | None = None  # from 0; both ends are included
    last_step: int | None = None
    first_image: int | None = None  # by the images that the run had seen before the step
    last_image: int | None = None

    def given(self) -> dict[str, Any]:
        """What the row is to become."""
        return {name: value for name, value in vars(self).items() if name != "name" and value is not None}


@dataclass(frozen=True)
class AlignmentConfig:
    """How the latents are drawn to the features of the frozen encoder: see ``losses.alignment``."""

    weight: float = 0.0  # 0 leaves it out
    adaptive: bool = True  # scale by the ratio of gradient norms at the layer that makes the latents
    similarity_weight: float = 1.0  # of the similarities between positions
    similarity_margin: float = 0.0
    cosine_weight: float = 1.0  # of the similarity of latent and feature
    cosine_margin: float = 0.0

    def __post_init__(self):
        names = ("weight", "similarity_weight", "similarity_margin", "cosine_weight", "cosine_margin")
        require_not_negative(self, "loss.alignment", *names)


@dataclass(frozen=True)
class LossConfig:
    """What the reconstruction is compared by. Every weight multiplies a mean."""

    pixel: Literal["l2", "l1"] = "l2"
    pixel_weight: float = 2.0  # the published code adds the mean squared error twice
    perceptual: Literal["lpips-vgg", "lpips-alex", "lpips-squeeze", "encoder", "none"] = "lpips-vgg"
    perceptual_weight: float = 1.0
    perceptual_encoder: EncoderConfig | None = None  # of "encoder": a frozen encoder of its own, not the tokenizer's
    perceptual_weights: str | None = None  # file of the LPIPS backbone, instead of torchvision's download
    codebook_weight: float = 1.0  # of the quantizer's losses, which carry their own weights besides
    feature_weight: float = 1.0  # of 1 - cos between the encoder's features and their reconstruction
    terms: tuple[TermConfig, ...] = ()  # further losses, and the steps or images from and to which a loss takes part
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    jump_factor: float | None = None  # a step whose image losses are so many times the last step's is skipped
    jump_from_image: int = 50_000  # not before the run has seen so many images

    def __post_init__(self):
        require_not_negative(self, "loss", "pixel_weight", "perceptual_weight", "codebook_weight", "feature_weight")
        require_not_negative(self, "loss", "jump_from_image")
        factor = self.jump_factor
        require(factor is None or factor > 1, "loss.jump_factor", "must be above 1", factor)
        if self.perceptual_encoder is not None:
            require(
                self.perceptual == "encoder",
                "loss.perceptual_encoder",
                "needs loss.perceptual encoder",
                self.perceptual,
            )
            require(self.perceptual_encoder.frozen, "loss.perceptual_encoder.frozen", "must be true", False)
        for term in self.terms:
            starts = term.first_step is not None or term.first_image is not None
            if term.name == "adversarial" and starts:  # the discriminator and the choice of the best go by it, too
                raise ConfigError("loss.terms: the first step of the adversarial loss is adversarial.start")


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator and its part in the losses."""

    discriminator: Literal["dinogan", "patchgan", "stylegan", "none", "dinogan-vfmvae", "multiscale-patchgan"] = (
        "dinogan"
    )
    weights: str = "hub"  # of dinogan's frozen DINO ViT-S/16: "hub", the path of a file, or "none" (random)
    loss: Literal["hinge", "vanilla", "non-saturating", "hinge-sum", "vanilla-sum", "least-squares"] = (
        "hinge"  # the discriminator's
    )
    generator_loss: Literal["hinge", "non-saturating", "least-squares"] = "non-saturating"  # the tokenizer's
    weight: float = 0.5
    start: int = 20_000  # the first step at which the tokenizer sees the discriminator
    update_start: int | None = None  # the first step at which the discriminator learns; None: ``start``
    adaptive_weight: bool = False  # scale by the ratio of gradient norms at the last layer (VQGAN)
    lecam_weight: float = 0.0  # LeCam regularisation of the discriminator; 0 leaves it out
    start_from: str | None = None  # the discriminator to begin with: of another run, or of one of its checkpoints
    resize: Literal["bilinear", "bicubic"] = "bilinear"  # of images to dinogan-vfmvae's 224 px
    augment: bool = False  # DiffAugment of what the discriminator sees
    feature_matching_weight: float = 0.0  # of its hidden maps of real and reconstructed images; multiscale-patchgan's
    max_loss: float | None = None  # steps of the discriminator with a larger loss are skipped

    def __post_init__(self):
        require_not_negative(self, "adversarial", "weight", "lecam_weight", "start", "feature_matching_weight")
        early = self.update_start is None or 0 <= self.update_start <= self.start
        unused = self.start_from is not None and self.discriminator == "none"
        require(not unused, "adversarial.start_from", "needs a discriminator", self.start_from)
        require(early, "adversarial.update_start", f"must be in [0, start = {self.start}]", self.update_start)

    @property
    def learns_from(self) -> int:
        """The first step at which the discriminator learns."""
        return self.start if self.update_start is None else self.update_start


@dataclass(frozen=True)
class EquivarianceConfig:
    """Transformations that what is decoded shall follow (``layers.equivariance``), one for all images of a step.

    Half the time (``latent_share``) the latents are resized to one of ``latent_scales`` and turned by 0 to 3 quarters;
    else, with ``prior_share``, the image is shrunk to one of ``prior_scales`` before it is encoded, or nothing happens.
    """

    enabled: bool = False
    latent_share: float = 0.5
    latent_scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    prior_share: float = 0.25
    prior_scales: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self):
        for name in ("latent_share", "prior_share"):
            require(0 <= getattr(self, name) <= 1, f"equivariance.{name}", "must be in [0,1]", getattr(self, name))
        for name in ("latent_scales", "prior_scales"):
            scales = getattr(self, name)
            fits = scales and all(0 < scale <= 1 for scale in scales)
            require(fits, f"equivariance.{name}", "must be numbers in (0,1]", scales)
