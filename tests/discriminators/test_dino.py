"""The DINO discriminator's parts, beyond parity: crops, spectral norm, weights, what is trained and saved."""

import math
import warnings

import golden_rule
import pytest
import ranks
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from vfmtok.discriminators.build import build_discriminator
from vfmtok.discriminators.dino import Head, SpectralConv1d
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.losses.adversarial import discriminator_loss

pytestmark = pytest.mark.filterwarnings("ignore:the DINO discriminator's frozen backbone has RANDOM")


@pytest.fixture
def dino():
    torch.manual_seed(0)
    return build_discriminator("dinogan", 256, "none")


@pytest.fixture
def images():
    return golden_rule.image_for("crops", 2, 256)


def test_only_the_heads_are_trained_and_saved(dino, images):
    names = {name for name, _ in dino.named_parameters()}
    assert names and all(name.startswith("heads.") for name in names)
    assert all(name.startswith("heads.") for name in dino.state_dict())
    dino.train()
    vit = dino.backbone.network
    assert not any(module.training for module in vit.modules())
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    images.requires_grad_()
    dino(images).sum().backward()
    assert images.grad.abs().sum() > 0  # the generator learns through the frozen network
    assert all(p.grad is not None for p in dino.parameters())
    assert all(p.grad is None for p in vit.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())
    assert dino.double().backbone.network.pos_embed.dtype == torch.float64  # but it moves along


def test_random_backbone_is_the_same_in_every_run(dino):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    other = build_discriminator("dinogan", 256, "none")
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(dino.backbone.network.parameters(), other.backbone.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.warns(UserWarning, match="RANDOM weights"), warnings.catch_warnings():
        warnings.simplefilter("always")
        build_discriminator("dinogan", 256, "none")


# --------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------


def test_training_crops_half_the_time_and_repeatably(dino):
    dino.train()
    images = torch.arange(2 * 3 * 256 * 256.0).view(2, 3, 256, 256)  # every pixel says where it is
    torch.manual_seed(0)
    views = [dino._to_side(images) for _ in range(200)]
    shrunk = F.adaptive_avg_pool2d(images, 224)
    places = []
    for view in views:
        if not torch.equal(view, shrunk):
            top, left = divmod(int(view[0, 0, 0, 0]), 256)
            assert torch.equal(view, images[:, :, top : top + 224, left : left + 224])
            places.append((top, left))
    assert 70 <= len(places) <= 130  # half of 200, four deviations either way
    rows, columns = zip(*places, strict=True)
    assert min(rows) < 4 and 28 < max(rows) <= 32 and min(columns) < 4 and 28 < max(columns) <= 32

    torch.manual_seed(0)
    assert all(torch.equal(dino._to_side(images), view) for view in views)
    assert torch.equal(dino.eval()._to_side(images), shrunk)


@pytest.mark.parametrize("size", [64, 224, 320])
def test_any_size_gives_the_same_number_of_logits(dino, size):
    with torch.no_grad():
        logits = dino.eval()(golden_rule.image_for("size", 3, size))
    assert logits.shape == (3, 5 * 196)
    assert logits.std() > 0


@pytest.mark.parametrize("batch", [9, 11])
def test_a_batch_that_does_not_split_evenly(dino, batch):
    """Its groups are judged as if each were alone: here the first (B+1)/2 samples, then the rest."""
    images = golden_rule.image_for("odd", batch, 64)
    with torch.no_grad():
        logits = dino.eval()(images)
        apart = torch.cat([dino(part) for part in images.split([(batch + 1) // 2, batch // 2])])
    assert torch.allclose(logits, apart, atol=1e-4)


def test_autocast(dino):
    images = golden_rule.image_for("autocast", 4, 224)
    dino.eval()
    with torch.no_grad():
        exact = dino(images)
        with torch.autocast("cpu", torch.bfloat16):
            low = dino(images)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.1 * exact.norm()


def head_gradients(real: torch.Tensor, fake: torch.Tensor, wrap=lambda head: head) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = Head(48).double().train()
    wrapped = wrap(head)
    discriminator_loss(wrapped(real), wrapped(fake.clone().requires_grad_()), "vanilla").backward()
    return {**{name: p.grad for name, p in head.named_parameters()}, "u": head.circular.conv.u}


def readouts_of_all_ranks() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 16, 48, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()


def head_gradients_of_a_rank(rank: int) -> dict[str, torch.Tensor]:
    return head_gradients(*(x[rank * 8 : rank * 8 + 8] for x in readouts_of_all_ranks()), DistributedDataParallel)


def test_two_ranks_of_whole_groups_are_one_process(tmp_path):
    """In float64, where the biases that batch norm takes away leave no rounding to speak of."""
    whole = head_gradients(*readouts_of_all_ranks())
    for gradients in ranks.run(head_gradients_of_a_rank, tmp_path):
        for name, wanted in whole.items():
            assert (gradients[name] - wanted).norm() < 1e-12 + 1e-9 * wanted.norm(), name


# --------------------------------------------------------------------------------------
# Spectral norm
# --------------------------------------------------------------------------------------


def test_spectral_norm_by_hand():
    """Step by step what power iteration is, in float64; evaluation leaves the vectors alone."""
    torch.manual_seed(0)
    conv = SpectralConv1d(6, 4, 9)
    u = conv.u.double().clone()
    matrix = conv.weight.detach().double().flatten(1)
    x = torch.randn(2, 6, 20)
    for _ in range(3):
        y = conv(x)
        v = matrix.t() @ u / (matrix.t() @ u).norm()
        u = matrix @ v / (matrix @ v).norm()
        weight = conv.weight.detach().double() / (u @ matrix @ v)
        wanted = F.conv1d(torch.cat([x[..., -4:], x, x[..., :4]], -1).double(), weight, conv.bias.detach().double())
        assert torch.allclose(y.double(), wanted, atol=1e-5)
    vectors = conv.u.clone(), conv.v.clone()
    assert torch.allclose(conv.eval()(x), y, atol=1e-6)
    assert torch.equal(conv.u, vectors[0]) and torch.equal(conv.v, vectors[1])
    conv.train()
    for _ in range(200):
        conv(x)
    assert torch.linalg.matrix_norm(conv.normalised_weight().flatten(1), 2).item() == pytest.approx(1, rel=1e-4)


def test_spectral_norm_gradient_after_several_forwards():
    """Real and fake images go forward before one backward; each has the gradient of its own pass."""
    torch.manual_seed(0)
    conv, x = SpectralConv1d(3, 5, 1), torch.randn(2, 3, 8)
    start = conv.u.clone()
    (conv(x).square().sum() + conv(2 * x).sum()).backward()
    together = conv.weight.grad.clone()
    conv.weight.grad = None
    conv.u.copy_(start)
    conv(x).square().sum().backward()
    conv(2 * x).sum().backward()
    assert torch.allclose(conv.weight.grad, together, rtol=1e-5, atol=1e-6)
    # The weight's length is divided out, so the gradient is at right angles to it, but for u and v's lag.
    for _ in range(100):
        conv(x)
    conv.weight.grad = None
    conv(x).square().sum().backward()
    cosine = (conv.weight.grad * conv.weight).sum() / conv.weight.grad.norm() / conv.weight.norm()
    assert abs(cosine.item()) < 1e-4


def test_spectral_norm_is_float32_under_autocast():
    torch.manual_seed(0)
    conv = SpectralConv1d(64, 64, 1)
    exact = conv.eval().normalised_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.normalised_weight(), exact)
        assert conv(torch.randn(2, 64, 5).bfloat16()).dtype == torch.bfloat16


# --------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------


def test_weight_files(tmp_path):
    state_dict = golden_rule.weights("dino_s16_keys.json", "dino_s16.")
    save_file(state_dict, tmp_path / "dino.safetensors")
    model = build_discriminator("dinogan", 256, tmp_path / "dino.safetensors")
    loaded = model.backbone.network.state_dict()
    assert loaded.keys() == state_dict.keys()
    assert all(torch.equal(loaded[name], state_dict[name]) for name in loaded)

    del state_dict["blocks.3.attn.proj.bias"]
    save_file(state_dict, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"not those of DINO ViT-S/16: 1 missing: blocks\.3\.attn\.proj\.bias"):
        build_discriminator("dinogan", 256, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match="no weight file at"):
        build_discriminator("dinogan", 256, tmp_path / "nowhere.pth")


def test_hub_out_of_reach_is_said_in_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(WeightsError) as error:
        build_discriminator("dinogan", 256)
    assert "weights of 'dino_vits16' are neither in the Hub cache nor reachable at timm/vit_small" in str(error.value)
    assert str(error.value).endswith("set the discriminator's weights to the file")
    assert "\n" not in str(error.value)


def test_unknown_kind():
    with pytest.raises(ConfigError, match=r"must be one of dinogan, patchgan, stylegan, .*, got 'dino'"):
        build_discriminator("dino", 256)


def test_the_last_step_of_the_head_is_an_average_of_paths(dino):
    """(y + block(y)) / sqrt(2): with the second path silenced, the head is the rest of it by hand."""
    head = dino.heads[0].eval()
    x = torch.randn(4, 384, 196)
    with torch.no_grad():
        head.circular.norm.weight.zero_()
        head.circular.norm.bias.zero_()
        wanted = head.to_logit(head.pointwise(x) / math.sqrt(2)).squeeze(1)
        assert torch.allclose(head(x), wanted, atol=1e-6)
