"""The published checkpoints: which file of which repository holds which part, and how that model is configured.

A repository is a row of ``PUBLISHED``, at the end. A part is named by ``REPOSITORY:PART`` wherever weights are named,
such as ``FoundationVision/LlamaGen:c2i_B_256``. Hashes are not known where this was written. The Hub states the SHA-256
of each file, and what was downloaded is checked against it; a hash entered here is asked for besides, and pins the file
for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vfmtok.config import closest_match
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.cnn import CNNEncoderConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.generators import generator_config
from vfmtok.tokenizers.hita.config import HitaConfig
from vfmtok.tokenizers.vfm_vae.config import VFMVAEConfig
from vfmtok.tokenizers.vfmae.config import VFMAEConfig
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.tokenizers.vqgan.config import VQGANConfig
from vfmtok.weights.reading import Preference

Section = Literal["tokenizer", "generator"]  # what a model is, and where recipes and saved models keep its settings


@dataclass(frozen=True)
class PublishedFile:
    """A part of a repository.

    Attributes:
        file: its path there.
        section: what it is.
        config: the model's configuration, which published files do not bring.
        sha256: what the file must have, where that is known.
        size: of a generator, the name of its size.
        tokenizer: of a generator, the part of the same repository whose code it learned.
        tokenizer_settings: of a generator, "field=value" changes of that tokenizer's configuration, such as the image
            size that it learned at.
        statistics: of a generator of latents, (repository, file) of their mean and standard deviation.
        prefer: which weights its publishers sampled with, where the file holds their average and the last ones.
    """

    file: str
    section: Section
    config: Any
    sha256: str | None = None
    size: str | None = None
    tokenizer: str | None = None
    tokenizer_settings: tuple[str, ...] = ()
    statistics: tuple[str, str] | None = None
    prefer: Preference = "ema"


@dataclass(frozen=True)
class Repository:
    """
    Attributes:
        system: whose it is, for people.
        parts: name -> file.
        encoder: (repository, file) of the frozen encoder on the Hub, where the tokenizers have one.
    """

    system: str
    parts: Mapping[str, PublishedFile] = field(default_factory=dict)
    encoder: tuple[str, str] | None = None


# --------------------------------------------------------------------------------------
# Looking up
# --------------------------------------------------------------------------------------


def split_name(name: str | Path) -> tuple[str, str | None] | None:
    """The repository, and the part if one is named, of ``REPOSITORY`` or ``REPOSITORY:PART``.

    None for a name that is not published, or that exists here as a file or folder.
    """
    repository, _, part = str(name).partition(":")
    return (repository, part or None) if repository in PUBLISHED and not Path(name).exists() else None


def published_file(repository: str, part: str | None, section: Section | None = None) -> PublishedFile:
    """A part of a published repository by its name or its file (with the path, or without that and the ending); or the
    only one of a size or a section, where ``part`` or ``section`` names that.

    Raises WeightsError naming the parts that there are.
    """
    return PUBLISHED[repository].parts[part_name(repository, part, section)]


def part_name(repository: str, part: str | None, section: Section | None = None) -> str:
    """The name of what ``published_file`` returns. Raises WeightsError."""
    parts, asked = PUBLISHED[repository].parts, part or section
    if asked in parts:
        return asked
    found = [name for name, row in parts.items() if asked in (row.file, Path(row.file).stem, row.size, row.section)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(
            f"{repository} holds {len(found)} parts that are '{asked}': name one, such as {repository}:{found[0]} "
            f"({', '.join(found)})"
        )
    raise WeightsError(f"{repository} has no part '{asked}'{closest_match(asked, parts)}: it has {', '.join(parts)}")


def laid_out(folder: Path, part: str) -> PublishedFile | None:
    """The row of a part whose file lies in ``folder`` where its repository has it, or None."""
    rows = (repository.parts[part] for repository in PUBLISHED.values() if part in repository.parts)
    return next((row for row in rows if (folder / row.file).is_file()), None)


# --------------------------------------------------------------------------------------
# The repositories
# --------------------------------------------------------------------------------------

_DINOV2 = ("timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors")


def _generator(file: str, size: str, tokenizer: str, fields: Mapping[str, Any] | None = None, **facts) -> PublishedFile:
    config = generator_config(size, **(fields or {}))
    return PublishedFile(file, "generator", config, size=size, tokenizer=tokenizer, **facts)


VFMTOK = "yexiguafu/VFMTok"
# It comes without its frozen encoder, DINOv2-L with registers.
VFMTOK_CONFIG = VFMTokConfig(encoder=EncoderConfig(weights="auto"))
_VFMAE_CONFIG = VFMAEConfig(encoder=EncoderConfig(image_size=224, resize="blur", weights="auto"))
_VFMTOK_EPOCHS = {"GPT-B": 300, "GPT-L": 300, "GPT-XL": 200, "GPT-XXL": 200, "GPT-2B": 200, "GPT-3B": 200}
_RAR_FILES = {
    "RAR-L": "RAR-vanilla/vfmtok-rar-l.safetensors",
    "RAR-XL": "RAR-vanilla/vfmtok-rar-xl.safetensors",
    "RAR-XXL": "RAR-vanilla/vfmtok-rar-xxl.safetensors",
    "RAR-L-ultra": "RAR-L-ultra/model.safetensors",
}

LLAMAGEN = "FoundationVision/LlamaGen"
_VQ8 = VQGANConfig(
    encoder=CNNEncoderConfig(multipliers=(1, 2, 2, 4)),
    pixel_decoder=PixelDecoderConfig(multipliers=(4, 2, 2, 1), res_blocks=3, coarse_attention=True),
)
# Pixels -> the sizes that were released for them.
_LLAMAGEN_SIZES = {256: ("B", "L"), 384: ("B", "L", "XL", "XXL", "3B")}


def _llamagen_generator(size: str, pixels: int) -> PublishedFile:
    return _generator(
        f"c2i_{size}_{pixels}.pt",
        f"GPT-{size}",
        "vq_ds16_c2i",
        {"num_tokens": (pixels // VQGANConfig().stride) ** 2},
        tokenizer_settings=(f"image_size={pixels}",),
        prefer="model",
    )


HITA = "yexiguafu/hita-gen"
_HITA_ENCODER = EncoderConfig(image_size=224, levels=(24,), resize="blur", weights="auto")
_HITA_V = HitaConfig(encoder=_HITA_ENCODER)
_HITA_U = HitaConfig(encoder=_HITA_ENCODER, reconstruct_features=True)
_HITA_EPOCHS = {
    "vanilla": {"B": (50, 300), "L": (50, 300), "XL": (50,), "XXL": (50,), "2B": (50,)},
    "ultra": {"B": (50, 250), "L": (50, 250), "XL": (50, 100), "XXL": (50, 100), "2B": (50, 100)},
}


def _hita_generator(kind: str, size: str, epochs: int) -> PublishedFile:
    holistic, patches = _HITA_V.code.segments
    fields = {"num_holistic": holistic.count, "num_tokens": patches.count}
    return _generator(f"{kind}/GPT-{size}/GPT-{size}-{epochs}e.pt", f"GPT-{size}", f"{kind}/tokenizer", fields)


VFMVAE = "tiancibi/VFM-VAE"  # its files hold the frozen encoder, too
_VFMVAE_FILE = "vfm_vae_f16d32_siglip2_44m_after_stage_3_patchgan_fine_tuning_legacy.pth"

PUBLISHED: dict[str, Repository] = {
    VFMTOK: Repository(
        "VFMTok, RAR on its tokens, VFMAE, and DiT-DH on its latents",
        {
            "tokenizer": PublishedFile("DINOv2/tokenizer/vfmtok-tokenizer.pt", "tokenizer", VFMTOK_CONFIG),
            "vfmae": PublishedFile("tokenizer/vfmae-tokenizer.pt", "tokenizer", _VFMAE_CONFIG),
            **{
                size: _generator(f"DINOv2/{size}/{size}-{epochs}e.pt", size, "tokenizer")
                for size, epochs in _VFMTOK_EPOCHS.items()
            },
            **{
                name: _generator(f"VFMTok-RAR/{file}", name.removesuffix("-ultra"), "tokenizer")
                for name, file in _RAR_FILES.items()
            },
            **{
                f"DiTDH-XL-{epochs}e": _generator(f"DiTDH-XL/DiTDH-XL_{epochs}e.pt", "DiTDH-XL", "vfmae")
                for epochs in (80, 800)
            },
        },
        encoder=_DINOV2,
    ),
    LLAMAGEN: Repository(
        "LlamaGen",
        {
            "vq_ds16_c2i": PublishedFile("vq_ds16_c2i.pt", "tokenizer", VQGANConfig(), prefer="model"),
            "vq_ds8_c2i": PublishedFile("vq_ds8_c2i.pt", "tokenizer", _VQ8, prefer="model"),
            **{
                f"c2i_{size}_{pixels}": _llamagen_generator(size, pixels)
                for pixels, sizes in _LLAMAGEN_SIZES.items()
                for size in sizes
            },
        },
    ),
    HITA: Repository(
        "Hita",
        {
            "vanilla/tokenizer": PublishedFile("vanilla/tokenizer/hita-tok.pt", "tokenizer", _HITA_V),
            "ultra/tokenizer": PublishedFile("ultra/tokenizer/hita-ultra.pt", "tokenizer", _HITA_U),
            **{
                f"{kind}/GPT-{size}-{epochs}e": _hita_generator(kind, size, epochs)
                for kind, sizes in _HITA_EPOCHS.items()
                for size, runs in sizes.items()
                for epochs in runs
            },
        },
        encoder=_DINOV2,
    ),
    VFMVAE: Repository(
        "VFM-VAE",
        {
            "tokenizer": PublishedFile(
                f"checkpoints_imagenet256/vfm_vae/{_VFMVAE_FILE}", "tokenizer", VFMVAEConfig(), prefer="ema"
            )
        },
    ),
}
