"""Hita on golden data of the published code: its parts, and (slow) the whole tokenizers."""

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vfmtok
from vfmtok.layers.resize import resize_square
from vfmtok.losses.feature import feature_loss
from vfmtok.tokenizers.contract import to_pixels
from vfmtok.tokenizers.hita.fusion import FusionModule
from vfmtok.tokenizers.hita.holistic_encoder import HolisticEncoder
from vfmtok.tokenizers.hita.released import RELEASED
from vfmtok.weights.name_maps import rename

ROOT = golden_rule.GOLDEN.parents[1]


def close(found, expected, tolerance=1e-4):
    found, expected = np.asarray(found.detach()), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def load_part(module: nn.Module, part: str, published: str, keys: str, prefix: str) -> dict[str, nn.Parameter]:
    """Fill a part alone by the rule; its parameters by their published names within the part."""
    weights = golden_rule.weights(f"hita/{keys}.json", prefix)
    names = {rename(f"{part}.{name}", RELEASED.pairs).removeprefix(f"{published}."): name
             for name in module.state_dict()}  # fmt: skip
    assert names.keys() == weights.keys()
    module.load_state_dict({names[name]: tensor for name, tensor in weights.items()})
    own = dict(module.named_parameters())
    return {name: own[ours] for name, ours in names.items()}


def check_gradients(parameters, names, norms):
    largest = max(norms.tolist())
    for name, norm in zip(names.tolist(), norms.tolist(), strict=True):
        if not name.endswith("k_proj.bias"):  # 0 but for rounding
            assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7 * largest), name


@pytest.fixture(scope="module")
def parts():
    return golden_rule.load("hita/hita_parts.npz")


def tensor(array) -> torch.Tensor:
    return torch.as_tensor(array)


def test_fusion(parts):
    fusion = FusionModule(64, 3, 4, 256, 0.0, 10, 6, 4, 16, 1024)
    parameters = load_part(fusion, "fusion", "decode_transformer", "hita_fusion_keys", "hita_fusion.")
    z = tensor(parts["fusion_z"]).requires_grad_()
    holistic = tensor(parts["fusion_slots"]).requires_grad_()
    image_map, features = fusion(holistic, z), fusion.features(holistic)
    close(image_map, parts["fusion_map"], 1e-5)
    close(features[:, ::8, ::16], parts["fusion_features"], 1e-5)
    weights = golden_rule.tensor_for("hita_fusion.grad_features", (2, 256, 1024))
    ((image_map * tensor(parts["fusion_grad_map"])).sum() + (features * weights).sum()).backward()
    close(z.grad, parts["fusion_dz"])
    close(holistic.grad, parts["fusion_dslots"])
    check_gradients(parameters, parts["fusion_grad_norm_names"], parts["fusion_grad_norms"])
    close(fusion(holistic[:1], tensor(parts["fusion_z8"])), parts["fusion_map8"], 1e-5)


def test_holistic_encoder(parts):
    encoder = HolisticEncoder(64, 3, 4, 256, 0.0, 10, 6, 32)
    parameters = load_part(encoder, "holistic_encoder", "encode_transformer", "hita_holistic_keys", "hita_holistic.")
    patches = tensor(parts["holistic_h"]).requires_grad_()
    holistic, image_map = encoder(tensor(parts["holistic_features"]), patches)
    close(holistic, parts["holistic_slots"], 1e-5)
    close(image_map, parts["holistic_map"], 1e-5)
    weights = (tensor(parts["holistic_grad_slots"]), tensor(parts["holistic_grad_map"]))
    ((holistic * weights[0]).sum() + (image_map * weights[1]).sum()).backward()
    close(patches.grad, parts["holistic_dh"])
    check_gradients(parameters, parts["holistic_grad_norm_names"], parts["holistic_grad_norms"])


def test_the_published_resize():
    golden = golden_rule.load("hita/hita_resize.npz")
    for size in (256, 336, 700):
        found = resize_square(golden_rule.image_for("hita_resize", 1, size), 224, "blur")
        close(found[:, :, ::13, ::13], golden[f"resized{size}"], 1e-5)


@pytest.mark.parametrize(
    ("name", "file", "count"), [("hita_v", "hita_vqgan", 501), ("hita_u", "hita_vqgan_ultra", 506)]
)
def test_names_and_sizes(name, file, count):
    with torch.device("meta"):
        tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(ROOT / f"configs/{file}.yaml"))
    published = {key: list(t.shape) for key, t in vfmtok.to_released(tokenizer).items()}
    assert published == golden_rule.shapes(f"hita/{name}_keys.json") and len(published) == count
    own = sum(p.numel() for key, p in tokenizer.named_parameters() if not key.startswith("encoder."))
    assert own == {"hita_v": 104_240_839, "hita_u": 104_767_687}[name]
    assert [segment.count for segment in tokenizer.code.segments] == [128, 441]


@pytest.mark.slow
def test_the_whole_tokenizer():
    golden = golden_rule.load("hita/hita_v.npz")
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(ROOT / "configs/hita_vqgan.yaml")).eval()
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    weights = golden_rule.weights("hita/hita_v_keys.json")
    for name in ("quantize.codebook_used", "slot_quantize.codebook_used"):
        weights[name].zero_()
    vfmtok.load_released(tokenizer, weights)
    images = golden_rule.image_for("hita_v", 2, 336)
    with torch.no_grad():
        found = tokenizer.encode(images)
        close(found.features[0][:, ::32, ::64], golden["features"], 1e-5)
        close(found.holistic_latents, golden["holistic_latents"])
        close(found.patch_latents.transpose(1, 2).unflatten(2, (21, 21)), golden["patch_latents"])
        expected = np.concatenate([golden["holistic_ids"], golden["patch_ids"]], axis=1)
        assert (found.ids.numpy() == expected).mean() >= 0.995
        decoded = tokenizer.decode_ids(tensor(expected).long())
        close(F.avg_pool2d(decoded, 12), golden["recon_pooled"])
        close(decoded[:, :, ::97], golden["recon_rows"])
        difference = to_pixels(decoded, 256)[:, ::37].numpy().astype(int) - golden["decoded_uint8_rows"]
        assert np.abs(difference).max() <= 1
        mixed = torch.cat([tensor(golden["holistic_ids"]), tensor(golden["patch_ids"]).flip(0)], dim=1).long()
        close(F.avg_pool2d(tokenizer.decode_ids(mixed), 12), golden["mixed_recon_pooled"])
        small = tokenizer.encode(golden_rule.image_for("hita_256", 1, 256)).ids
        assert (small[:, :128].numpy() == golden["size256_holistic_ids"]).mean() >= 0.995
        assert (small[:, 128:].numpy() == golden["size256_patch_ids"]).mean() >= 0.995
        close(F.avg_pool2d(tokenizer.decode_ids(small), 8), golden["size256_recon_pooled"])


@pytest.mark.slow
def test_the_training_of_hita_u():
    """Losses and gradients of a pass without dropout, one image at a time: every loss is a mean over images."""
    golden = golden_rule.load("hita/hita_u.npz")
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(ROOT / "configs/hita_vqgan_ultra.yaml", ["dropout=0.0"]))
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    weights = golden_rule.weights("hita/hita_u_keys.json")
    for name in ("quantize.codebook_used", "slot_quantize.codebook_used"):
        weights[name].zero_()
    vfmtok.load_released(tokenizer, weights)
    tokenizer.train()
    found = dict.fromkeys(("vq", "commit", "mse", "feature", "total"), 0.0)
    features = []
    for image in golden_rule.image_for("hita_u", 2, 336).split(1):
        out = tokenizer(image)
        terms = {"vq": out.losses["vq"], "commit": out.losses["commit"], "mse": F.mse_loss(out.reconstruction, image)}
        terms["feature"] = feature_loss(out.feature_reconstruction, out.feature_target)
        terms["total"] = sum(terms.values())
        (terms["total"] / 2).backward()
        found = {name: value + terms[name].item() / 2 for name, value in found.items()}
        features.append(out.feature_reconstruction.detach())
        del out, terms
    close(torch.cat(features)[:, ::32, ::64], golden["feature_recon"])
    for name, value in found.items():
        assert value == pytest.approx(float(golden[f"train_{name}"]), rel=1e-4), name
    with torch.no_grad():  # gradients under their released names
        for parameter in tokenizer.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients, largest = vfmtok.to_released(tokenizer), golden["grad_norms"].max()
    for name, norm in zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist(), strict=True):
        if not name.endswith("k_proj.bias") and not name.endswith(".k.bias"):
            assert abs(gradients[name].norm().item() - norm) <= 1e-3 * max(norm, 1e-7 * largest), name
