"""The published checkpoints: which file of which repository holds which part.

Their hashes are not known where this was written. The Hub states the SHA-256 of each file, and what was downloaded is
checked against it; a hash entered here is asked for besides, and pins the file for good.
"""

from dataclasses import dataclass

from vfmtok.config import closest_match
from vfmtok.encoders.vfm import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository, and what it must be."""

    file: str
    sha256: str | None = None


VFMTOK = "yexiguafu/VFMTok"

PUBLISHED: dict[str, dict[str, PublishedFile]] = {
    VFMTOK: {
        "tokenizer": PublishedFile("DINOv2/tokenizer/vfmtok-tokenizer.pt"),
        "GPT-B": PublishedFile("DINOv2/GPT-B/GPT-B-300e.pt"),
        "GPT-L": PublishedFile("DINOv2/GPT-L/GPT-L-300e.pt"),
        "GPT-XL": PublishedFile("DINOv2/GPT-XL/GPT-XL-200e.pt"),
        "GPT-XXL": PublishedFile("DINOv2/GPT-XXL/GPT-XXL-200e.pt"),
        "GPT-2B": PublishedFile("DINOv2/GPT-2B/GPT-2B-200e.pt"),
        "GPT-3B": PublishedFile("DINOv2/GPT-3B/GPT-3B-200e.pt"),
    },
}

# repository -> (its tokenizer's encoder: repository, file), as the Hub has it through timm
ENCODERS = {VFMTOK: ("timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors")}

# The published tokenizer comes without its encoder, DINOv2-L with registers.
PAPER_TOKENIZER = VFMTokConfig(encoder=EncoderConfig(weights="auto"))


def published_file(repository: str, part: str) -> PublishedFile:
    """Raises WeightsError naming the parts that there are."""
    parts = PUBLISHED[repository]
    if part not in parts:
        hint = closest_match(part, parts)
        raise WeightsError(f"{repository} has no part '{part}'{hint}: it has {', '.join(parts)}")
    return parts[part]
