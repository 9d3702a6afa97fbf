"""The full-size tokenizer against the published one: about a minute and 6 GB on two cores."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F

import vfmtok
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import AdversarialConfig, LossConfig


def relative(value, reference) -> float:
    """max |value - reference| / max |reference|."""
    reference = torch.as_tensor(reference)
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("tokenizer_full.npz")


@pytest.fixture(scope="module")
def images():
    return golden_rule.image_for("tokenizer_full", 2, 336)


@pytest.fixture(scope="module")
def tokenizer(root):
    config = vfmtok.load_config(root / "configs/vit_transformer.yaml", ["decoder.attention_dropout=0"])
    tokenizer = vfmtok.VFMTok(config)
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    return vfmtok.load_released(tokenizer, golden_rule.tokenizer_weights())


def test_encode(tokenizer, golden, images):
    with torch.no_grad():
        encoding = tokenizer.eval().encode(images)
    assert len(encoding.features) == 4
    for level, features in enumerate(encoding.features):
        reference = torch.as_tensor(golden[f"feature_level{level}"])
        assert (features[:, ::48, ::64] - reference).abs().max() < 1e-5
    assert relative(encoding.region_tokens[:, ::8, ::16], golden["region_tokens"]) < 1e-4
    assert relative(encoding.latents, golden["prequant"]) < 1e-4
    assert (encoding.ids == torch.as_tensor(golden["codes"])).float().mean() >= 0.995
    assert torch.allclose(encoding.codes.norm(dim=-1), torch.ones(2, 256))


def test_decode(tokenizer, golden):
    ids = torch.as_tensor(golden["codes"]).long()
    with torch.no_grad():
        images = tokenizer.eval().decode_ids(ids)
    assert relative(F.avg_pool2d(images, 12), golden["recon_pooled"]) < 1e-4
    assert relative(images[:, :, ::97], golden["recon_rows"]) < 1e-4
    pixels = tokenizer.decode_to_uint8(ids)
    assert pixels.shape == (2, 256, 256, 3)
    difference = pixels[:, ::37].int() - torch.as_tensor(golden["decoded_uint8_rows"]).int()
    assert difference.abs().max() <= 1


def test_training_step(tokenizer, golden, images):
    """The training loop's own objective, with the mean squared error counted once as in the golden data."""
    loss = LossConfig(pixel_weight=1.0, perceptual="none")
    objective = TokenizerObjective(loss, AdversarialConfig(), tokenizer, perceptual=None, discriminator=None)
    out = tokenizer.train()(images)
    terms = objective(images, out, with_discriminator=False)
    total = sum(terms.values())
    published = {"vq": "vq_loss", "commit": "commit_loss", "pixel": "mse", "feature": "feature_loss"}
    assert terms.keys() == published.keys() | {"entropy"} and terms["entropy"] == 0
    for name, value in {**terms, "total": total}.items():
        if name != "entropy":
            reference = float(golden[f"train_{published.get(name, name)}"])
            assert value.item() == pytest.approx(reference, abs=1e-5), name
    assert relative(out.feature_reconstruction[:, ::48, ::64], golden["feature_recon"]) < 1e-4

    total.backward()
    parameters = {p.data_ptr(): p for p in tokenizer.parameters()}
    published = vfmtok.to_released(tokenizer)
    for name, norm in zip(golden["grad_norm_names"], golden["grad_norms"], strict=True):
        gradient = parameters[published[name].data_ptr()].grad
        assert gradient.norm().item() == pytest.approx(float(norm), rel=1e-4, abs=1e-12), name
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    assert all(p.grad is not None for p in tokenizer.parameters() if p.requires_grad)


def test_size(tokenizer):
    """DESIGN 5: 73.35 M parameters without the encoder, the release's usage buffer included."""
    published = vfmtok.to_released(tokenizer)
    assert {name: list(tensor.shape) for name, tensor in published.items()} == golden_rule.shapes("tokenizer_keys.json")
    assert sum(tensor.numel() for tensor in published.values()) == 73_352_367
