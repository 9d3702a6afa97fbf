"""The composition: round trips, every ablation, input checks."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from golden_rule import image_for

import vfmtok

pytestmark = pytest.mark.filterwarnings("ignore:the frozen encoder")


@pytest.mark.parametrize("overrides", [[], ["sampler.attention=windowed"], ["decoder.register_position=front"]])
def test_decode_ids_equals_eval_forward(tiny_tokenizer, overrides):
    tokenizer = tiny_tokenizer(*overrides).eval()
    images = image_for("round", 3, 32)
    with torch.no_grad():
        out, encoding = tokenizer(images), tokenizer.encode(images)
        assert torch.equal(tokenizer.decode_ids(out.ids), out.reconstruction)
    assert torch.equal(encoding.ids, out.ids)
    assert torch.equal(encoding.features[-1], out.feature_target)
    assert out.feature_reconstruction is None
    assert torch.equal(tokenizer.quantizer.lookup(encoding.ids), encoding.codes)


def test_images_do_not_mix_within_a_batch(tiny_tokenizer):
    tokenizer = tiny_tokenizer().eval()
    images = image_for("batch", 4, 32)
    with torch.no_grad():
        together = tokenizer(images)
        alone = [tokenizer(image[None]) for image in images]
    assert torch.equal(together.ids, torch.cat([out.ids for out in alone]))
    assert torch.allclose(together.reconstruction, torch.cat([out.reconstruction for out in alone]), atol=1e-5)


def test_decode_to_uint8(tiny_tokenizer):
    """Truncation, not rounding, of x * 127.5 + 128, after the resize of the unclamped image."""
    tokenizer = tiny_tokenizer().eval()
    with torch.no_grad():
        tokenizer.pixel_decoder.conv_out.weight *= 30  # beyond [-1,1]
        ids = tokenizer.encode(image_for("uint8", 1, 32)).ids
        images = tokenizer.decode_ids(ids)
    assert images.abs().max() > 1.2
    expected = (images[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).floor()
    assert torch.equal(tokenizer.decode_to_uint8(ids, size=32)[0].float(), expected)
    resized = F.interpolate(images, (24, 24), mode="bicubic", align_corners=False)
    expected = (resized[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).floor()
    assert torch.equal(tokenizer.decode_to_uint8(ids, size=24)[0].float(), expected)


ABLATIONS = {
    "as published": [],
    "one level": ["encoder.levels=[6]"],
    "windowed sampler": ["sampler.attention=windowed", "sampler.window=3"],
    "unshared ViT": ["decoder.shared=false"],
    "shared mask token": ["decoder.mask_tokens=shared"],
    "registers in front": ["decoder.register_position=front"],
    "no registers": ["decoder.registers=0"],
    "no feature reconstruction": ["decoder.reconstruct_features=false"],
    "entropy loss": ["quantizer.entropy_weight=0.1"],
    "36 tokens": ["sampler.num_tokens=36"],
    "121 tokens": ["sampler.num_tokens=121"],
    "576 tokens": ["sampler.num_tokens=576"],
    "smaller image": ["image_size=24"],
    "sincos positions": ["initial_positions=sincos"],
    "own position grid": ["decoder.position_grid=8"],
    "encoder from scratch": ["encoder.frozen=false"],
    "early levels only": ["encoder.levels=[1,3]", "encoder.frozen=false"],
    "pyramid": ["encoder.name=tf_efficientnet_lite0", "encoder.levels=[2,3,4,5]"],
    "pyramid, windowed": ["encoder.name=tf_efficientnet_lite0", "encoder.levels=[3,4]", "sampler.attention=windowed"],
    "pyramid from scratch": [
        "encoder.name=tf_efficientnet_lite0",
        "encoder.levels=[2,3,4]",
        "encoder.frozen=false",
        "sampler.points=1",
    ],
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_option_builds_and_trains(tiny_tokenizer, name):
    """All and only the trainable parameters get a gradient, and a few steps reduce the loss."""
    tokenizer = tiny_tokenizer(*ABLATIONS[name]).train()
    size = tokenizer.config.image_size
    images = image_for("train", 2, size)
    parameters = [p for p in tokenizer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    history = []
    for _ in range(6):
        out = tokenizer(images)
        loss = F.mse_loss(out.reconstruction, images) + sum(out.losses.values())
        if out.feature_reconstruction is not None:
            assert out.feature_reconstruction.shape == out.feature_target.shape
            loss = loss + (1 - F.cosine_similarity(out.feature_reconstruction, out.feature_target, dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0], history
    assert out.ids.shape == (2, tokenizer.config.sampler.num_tokens)
    assert out.reconstruction.shape == images.shape
    assert (out.feature_reconstruction is None) == (not tokenizer.config.decoder.reconstruct_features)
    assert tokenizer.encoder.training == (not tokenizer.config.encoder.frozen)
    frozen = set(tokenizer.parameters()) - set(parameters)
    assert all(p.grad is None for p in frozen)
    assert bool(frozen) == tokenizer.config.encoder.frozen


@pytest.mark.parametrize("image_size", [256, 336])
@pytest.mark.parametrize("num_tokens", [64, 256])
def test_paper_sizes(tiny_tokenizer, image_size, num_tokens):
    """256 and 336 px with the paper's pixel decoder depth: grids of 16 and 21, the encoder at 336 px."""
    tokenizer = tiny_tokenizer(
        f"image_size={image_size}",
        f"sampler.num_tokens={num_tokens}",
        "encoder.image_size=336",
        "pixel_decoder.multipliers=[1,1,1,1,1]",
    ).eval()
    assert tokenizer.decoder.image_grid == image_size // 16
    assert tokenizer.encoder.grids[-1] == (21, 21)
    with torch.no_grad():
        out = tokenizer(image_for("paper", 1, image_size))
    assert out.ids.shape == (1, num_tokens)
    assert out.reconstruction.shape == (1, 3, image_size, image_size)


def test_bf16_autocast_keeps_the_islands_in_float32(tiny_tokenizer):
    """Latents, codes, losses and sampling points stay float32; latents and gradients stay close to float32's."""
    tokenizer = tiny_tokenizer().train()
    images = image_for("autocast", 2, 32)
    reference = tokenizer.encode(images)
    tokenizer.quantizer(reference.latents).losses["commit"].backward()
    gradients = {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}
    tokenizer.zero_grad()
    attention = tokenizer.sampler.layers[0].cross_attention
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoding = tokenizer.encode(images)
        points = attention.sampling_points(tokenizer.sampler.queries, tokenizer.sampler.references, [(4, 4)] * 3)
        assert tokenizer.sampler.layers[0].mlp(encoding.region_tokens).dtype == torch.bfloat16, "autocast is on"
    assert encoding.latents.dtype == encoding.codes.dtype == points[0].dtype == points[1].dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in encoding.losses.values())
    assert F.cosine_similarity(encoding.latents, reference.latents, dim=-1).min() > 0.99
    encoding.losses["commit"].backward()
    for name, gradient in gradients.items():
        low = dict(tokenizer.named_parameters())[name].grad
        assert low.dtype == torch.float32
        if gradient.norm() > 1e-6:
            assert F.cosine_similarity(low.flatten(), gradient.flatten(), dim=0) > 0.9, name


def test_bf16_module_keeps_the_islands_in_float32(tiny_tokenizer):
    tokenizer = tiny_tokenizer().bfloat16().eval()
    images = image_for("module", 2, 32)
    with torch.no_grad():
        out, encoding = tokenizer(images), tokenizer.encode(images)
    assert encoding.latents.dtype == encoding.codes.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())
    assert out.reconstruction.dtype == torch.bfloat16
    assert tokenizer.decode_to_uint8(out.ids, 32).dtype == torch.uint8


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32).byte()],
    ids=["no batch", "grey", "uint8"],
)
def test_wrong_images_are_named(tiny_tokenizer, images):
    with pytest.raises(ValueError, match=r"images must be a float tensor \(B,3,H,W\) in \[-1,1\], got"):
        tiny_tokenizer().encode(images)


def test_forward_wants_the_configured_size(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"\(B,3,32,32\)"):
        tiny_tokenizer()(torch.zeros(1, 3, 64, 64))


def test_encode_takes_any_size(tiny_tokenizer):
    tokenizer = tiny_tokenizer().eval()
    images = image_for("sizes", 2, 100)[:, :, :70]
    square = F.interpolate(images, (64, 64), mode="bicubic", align_corners=True, antialias=True)
    assert torch.equal(tokenizer.encode(images).ids, tokenizer.encode(square).ids)


@pytest.mark.parametrize("bad", [-1, 64])
def test_ids_outside_the_codebook(tiny_tokenizer, bad):
    with pytest.raises(ValueError, match=r"ids must be in \[0,64\)"):
        tiny_tokenizer().decode_ids(torch.full((1, 16), bad))


def test_nan_comes_out_as_nan(tiny_tokenizer):
    """A non-finite step must reach the loss, where training can skip it, and not crash on the way."""
    tokenizer = tiny_tokenizer().train()
    images = image_for("nan", 2, 32)
    images[0, 0, 0, 0] = float("nan")
    out = tokenizer(images)
    assert out.losses["commit"].isnan()
    out.losses["commit"].backward()


def test_copies_and_pickles_are_equal(tiny_tokenizer):
    """EMA copies the model; worker processes pickle it."""
    tokenizer = tiny_tokenizer().eval()
    images = image_for("copies", 1, 32)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.config == tokenizer.config
        assert torch.equal(other(images).reconstruction, tokenizer(images).reconstruction)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in tokenizer.parameters()}


def test_compiles_in_eval_without_graph_breaks(tiny_tokenizer):
    tokenizer = tiny_tokenizer().eval()
    images = image_for("compile", 1, 32)
    with torch.no_grad():
        expected = tokenizer(images)  # also says the warning, which can't be traced
        out = torch.compile(tokenizer, backend="aot_eager", fullgraph=True)(images)
    assert torch.equal(out.ids, expected.ids)
    assert torch.allclose(out.reconstruction, expected.reconstruction, atol=1e-5)


def test_wrong_number_of_ids(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"ids must be \(B,16\), got \(1, 9\)"):
        tiny_tokenizer().decode_ids(torch.zeros(1, 9, dtype=torch.long))


def test_resolved_config_rebuilds_the_tokenizer(tiny_tokenizer, tmp_path):
    tokenizer = tiny_tokenizer()
    vfmtok.save_config(tokenizer.config, tmp_path / "resolved.yaml")
    again = vfmtok.VFMTok(vfmtok.load_config(tmp_path / "resolved.yaml"))
    assert again.config == tokenizer.config
    again.load_state_dict(tokenizer.state_dict())
    images = image_for("resolved", 1, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(images).reconstruction, tokenizer.eval()(images).reconstruction)
