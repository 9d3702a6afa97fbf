"""The names of the tokenizer's tensors in published files (see ``weights/name_maps.py``).

The file also holds the frozen model, under transformers' names, with a pooling head that nothing here uses. Variants:
stages 2 and 3 have no alignment projection, and the published weights have noise maps.
"""

from collections.abc import Iterable

from vfmtok.encoders.released import SIGLIP, SIGLIP_VIEWS, siglip_head_shapes
from vfmtok.quantizers.multi_codebook import MultiCodebookConfig
from vfmtok.tokenizers.vfm_vae.config import VFMVAEConfig
from vfmtok.weights.name_maps import NameMap, Names, View, below

TOWER = "vfm_encoder.encoder.vision_model.vision_model"
ALIGNMENT = "ldm_adapter.linear_proj.weight"
FIRST_NOISE = "synthesis.blocks.0.conv0.noise_const"

_BLOCK: Names = (
    ("attention_norm", "norm1"),
    ("attention.qkv", "attn.qkv"),
    ("attention.q_bias", "attn.q_bias"),
    ("attention.k_bias", "attn.zero_k_bias"),
    ("attention.v_bias", "attn.v_bias"),
    ("attention.out", "attn.proj"),
    ("project_norm", "norm3"),
    ("project", "proj"),
    ("mlp_norm", "norm2"),
    ("mlp", "mlp"),
)
_LAYER: Names = (
    ("depthwise", "dwconv"),
    ("norm", "norm"),
    ("scales", "affine_pw1.proj"),
    ("widen", "pwconv1"),
    ("narrow", "pwconv2"),
    ("gamma", "gamma"),
    ("noise", "noise_const"),
    ("noise_strength", "noise_strength"),
)
_UPSAMPLE: Names = (
    ("blur", "blur_weight"),
    ("norm", "norm"),
    ("depthwise", "depthwise"),
    ("pointwise", "pointwise"),
)
_ATTENTION: Names = (
    ("attention_norm.gain", "attn.norm.gamma"),
    ("to_q", "attn.to_q"),
    ("to_k", "attn.to_k"),
    ("to_v", "attn.to_v"),
    ("to_out", "attn.to_out"),
    ("null_token", "attn.null_kv"),
    ("mlp_norm.gain", "ff.0.gamma"),
    ("mlp_in", "ff.1"),
    ("mlp_out", "ff.3"),
)


def released_names(config: VFMVAEConfig, width: int, hidden: int) -> NameMap:
    """The map of a model with this configuration.

    Args:
        width, hidden: channels of the frozen model and of its MLPs, where it is a SigLIP: 0 of any other, which the
            file then leaves out.
    """
    buffers = {}
    if isinstance(config.bottleneck, MultiCodebookConfig):  # counts the use of codes in training
        rows = (config.bottleneck.codebook_size,)
        buffers = {f"ldm_adapter.quantizer.codebooks.{i}.vocab_usage": rows for i in range(config.bottleneck.codebooks)}
    if width:
        buffers |= {f"{TOWER}.{name}": shape for name, shape in siglip_head_shapes(width, hidden).items()}
    return NameMap(
        (
            *below("encoder.backbone", TOWER, SIGLIP),
            *_projection("fusion.levels.*", "ldm_adapter.patch_quants.*.0"),
            *_projection("fusion.final", "ldm_adapter.final_quant"),
            *_projection("expand", "ldm_adapter.post_quant"),
            ("quantizer.codebooks.*.codebook", "ldm_adapter.quantizer.codebooks.*.codebook.weight"),
            ("to_features", "ldm_adapter.linear_proj"),
            ("style.weight_in", "mapping.mlp.fc0.weight"),
            ("style.bias_in", "mapping.mlp.fc0.bias"),
            ("style.weight_out", "mapping.mlp.fc1.weight"),
            ("style.bias_out", "mapping.mlp.fc1.bias"),
            ("style.mean_style", "mapping.x_avg"),
            *_injections(config),
            *below("decoder.blocks.*.upsample", "synthesis.blocks.*.seperate_upsample_conv", _UPSAMPLE),
            *below("decoder.blocks.*.upsample_sum", "synthesis.blocks.*.last_upsample_conv", _UPSAMPLE),
            *_layers(max(config.decoder.layers)),
            *below("decoder.blocks.*.attentions.*", "synthesis.blocks.*.self_attns.*", _ATTENTION),
            ("decoder.blocks.*.to_rgb.scales", "synthesis.blocks.*.torgb.affine.proj"),
            ("decoder.blocks.*.to_rgb", "synthesis.blocks.*.torgb"),
        ),
        buffers=buffers,
        left_out=() if width else ("encoder",),
        views=tuple(
            View(f"encoder.backbone.{v.ours}", tuple(f"{TOWER}.{name}" for name in v.theirs), v.cut)
            for v in SIGLIP_VIEWS
        ),
    )


def _projection(ours: str, theirs: str) -> Names:
    """Of attention blocks, or of a convolution."""
    return (*below(f"{ours}.blocks.*", f"{theirs}.blocks.*", _BLOCK), (ours, theirs))


def _layers(count: int) -> Names:
    """The first modulated layer of a block has a name of its own."""
    names = below("decoder.blocks.*.layers.0", "synthesis.blocks.*.conv0", _LAYER)
    for index in range(1, count):
        names += below(f"decoder.blocks.*.layers.{index}", f"synthesis.blocks.*.convs1.{index - 1}", _LAYER)
    return names


def _injections(config: VFMVAEConfig) -> Iterable[tuple[str, str]]:
    """They are numbered with the shuffles, which have no weights."""
    for index in range(len(config.decoder.injected)):
        side = config.image_size // config.decoder.smallest_share * 2**index
        mix = int(side < config.latent_size)
        project = mix + 1 + int(side > config.latent_size)
        ours, theirs = f"decoder.injections.{index}", f"synthesis.z_convs.{index}"
        yield f"{ours}.depthwise", f"{theirs}.{mix}.0"
        yield f"{ours}.pointwise", f"{theirs}.{mix}.1"
        yield f"{ours}.norm", f"{theirs}.{mix}.2"
        yield f"{ours}.project", f"{theirs}.{project}.0"
        yield f"{ours}.project_norm", f"{theirs}.{project}.1"
