"""Short names for the vision models of the field: their timm model, the levels to read, how positions are resampled.

Position embeddings are resampled to another grid by one of these conventions:

- "size": bicubic, antialiased, to the wanted size (timm's, and Meta's for DINOv2 with registers);
- "scale": bicubic by the factor (grid + 0.1) / stored (Meta's for DINO and DINOv2 without registers);
- "plain": bicubic to the wanted size, not antialiased (VFM-VAE's, and that of transformers).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderFacts:
    """What a named encoder adds to timm's own record of the model (widths, mean, std)."""

    timm_name: str
    levels: tuple[int, ...]
    position_resampling: str = "size"


_12_BLOCKS = (3, 6, 9, 12)
_24_BLOCKS = (6, 12, 18, 24)
_27_BLOCKS = (7, 14, 20, 27)
_40_BLOCKS = (10, 20, 30, 40)

ENCODERS: dict[str, EncoderFacts] = {
    "dinov2_vits14": EncoderFacts("vit_small_patch14_dinov2.lvd142m", _12_BLOCKS, "scale"),
    "dinov2_vitb14": EncoderFacts("vit_base_patch14_dinov2.lvd142m", _12_BLOCKS, "scale"),
    "dinov2_vitl14": EncoderFacts("vit_large_patch14_dinov2.lvd142m", _24_BLOCKS, "scale"),
    "dinov2_vitg14": EncoderFacts("vit_giant_patch14_dinov2.lvd142m", _40_BLOCKS, "scale"),
    "dinov2_vits14_reg": EncoderFacts("vit_small_patch14_reg4_dinov2.lvd142m", _12_BLOCKS),
    "dinov2_vitb14_reg": EncoderFacts("vit_base_patch14_reg4_dinov2.lvd142m", _12_BLOCKS),
    "dinov2_vitl14_reg": EncoderFacts("vit_large_patch14_reg4_dinov2.lvd142m", _24_BLOCKS),
    "dinov2_vitg14_reg": EncoderFacts("vit_giant_patch14_reg4_dinov2.lvd142m", _40_BLOCKS),
    "dinov3_vits16": EncoderFacts("vit_small_patch16_dinov3.lvd1689m", _12_BLOCKS),
    "dinov3_vitb16": EncoderFacts("vit_base_patch16_dinov3.lvd1689m", _12_BLOCKS),
    "dinov3_vitl16": EncoderFacts("vit_large_patch16_dinov3.lvd1689m", _24_BLOCKS),
    "siglip_vitb16": EncoderFacts("vit_base_patch16_siglip_384.webli", _12_BLOCKS),
    "siglip_vitl16": EncoderFacts("vit_large_patch16_siglip_384.webli", _24_BLOCKS),
    "siglip_so400m14": EncoderFacts("vit_so400m_patch14_siglip_384.webli", _27_BLOCKS),
    "siglip2_vitb16": EncoderFacts("vit_base_patch16_siglip_384.v2_webli", _12_BLOCKS),
    "siglip2_vitl16": EncoderFacts("vit_large_patch16_siglip_384.v2_webli", _24_BLOCKS),
    "siglip2_vitl16_512": EncoderFacts("vit_large_patch16_siglip_512.v2_webli", _24_BLOCKS),
    "siglip2_so400m14": EncoderFacts("vit_so400m_patch14_siglip_378.v2_webli", _27_BLOCKS),
    "clip_vitb16": EncoderFacts("vit_base_patch16_clip_quickgelu_224.openai", _12_BLOCKS),
    "clip_vitl14": EncoderFacts("vit_large_patch14_clip_quickgelu_336.openai", _24_BLOCKS),
    "mae_vitb16": EncoderFacts("vit_base_patch16_224.mae", _12_BLOCKS),
    "mae_vitl16": EncoderFacts("vit_large_patch16_224.mae", _24_BLOCKS),
    "dino_vits16": EncoderFacts("vit_small_patch16_224.dino", _12_BLOCKS, "scale"),
    "dino_vitb16": EncoderFacts("vit_base_patch16_224.dino", _12_BLOCKS, "scale"),
    "tf_efficientnet_lite0": EncoderFacts("tf_efficientnet_lite0.in1k", (2, 3, 4, 5)),  # strides 4, 8, 16, 32
    "tf_efficientnet_lite1": EncoderFacts("tf_efficientnet_lite1.in1k", (2, 3, 4, 5)),
    "tf_efficientnet_lite2": EncoderFacts("tf_efficientnet_lite2.in1k", (2, 3, 4, 5)),
}
