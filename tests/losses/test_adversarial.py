"""GAN losses against the published ones and against float64; LeCam and the adaptive weight by hand."""

import golden_rule
import numpy as np
import pytest
import ranks
import torch
from torch import nn

from vfmtok.errors import ConfigError
from vfmtok.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("gan_losses.npz")


@pytest.mark.parametrize(
    "side, kind, published",
    [
        ("discriminator", "hinge", "d_hinge"),
        ("discriminator", "vanilla", "d_vanilla"),
        ("generator", "hinge", "g_hinge"),
        ("generator", "softplus", "g_softplus"),
        ("generator", "non-saturating", "g_softplus"),
    ],
)
def test_published_losses(golden, side, kind, published):
    real, fake = torch.as_tensor(golden["real"]), torch.as_tensor(golden["fake"])
    loss = discriminator_loss(real, fake, kind) if side == "discriminator" else generator_loss(fake, kind)
    assert loss.item() == pytest.approx(float(golden[published]), rel=1e-6)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


BY_HAND = {
    "hinge": lambda r, f: 0.5 * np.maximum(1 - r, 0).mean() + 0.5 * np.maximum(1 + f, 0).mean(),
    "vanilla": lambda r, f: 0.5 * softplus(-r).mean() + 0.5 * softplus(f).mean(),
    "non-saturating": lambda r, f: -0.5 * np.log(sigmoid(r)).mean() - 0.5 * np.log(1 - sigmoid(f)).mean(),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_discriminator_losses_by_hand(kind):
    real, fake = 3 * torch.randn(4, 11), 3 * torch.randn(6, 11)  # sizes may differ
    loss = discriminator_loss(real, fake, kind)
    assert loss.item() == pytest.approx(BY_HAND[kind](real.double().numpy(), fake.double().numpy()), rel=1e-5)


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_directions(kind):
    """The discriminator raises real logits and lowers fake ones; the generator raises fake ones, hopeless ones too."""
    real, fake = torch.tensor([-60.0, 0.3], requires_grad=True), torch.tensor([-60.0, 0.3], requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    assert fake.grad[0] >= 0 and fake.grad[1] > 0
    fake.grad = None
    generator_loss(fake, "hinge" if kind == "hinge" else "non-saturating").backward()
    assert fake.grad[0].item() == pytest.approx(-0.5)
    assert fake.grad[1] < 0


def test_float32_whatever_the_logits():
    real, fake = torch.randn(8, 4).bfloat16(), torch.randn(8, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = [discriminator_loss(real, fake, "vanilla"), generator_loss(fake, "softplus"), LeCam()(real, fake)]
    assert {value.dtype for value in values} == {torch.float32}
    assert values[0].item() == discriminator_loss(real.float(), fake.float(), "vanilla").item()


def test_unknown_kinds_are_named():
    with pytest.raises(ConfigError, match=r"the discriminator's loss must be one of hinge, vanilla, .* got 'hing'"):
        discriminator_loss(torch.zeros(1), torch.zeros(1), "hing")
    with pytest.raises(ConfigError, match="the generator's loss must be one of"):
        generator_loss(torch.zeros(1), "vanilla")


# --------------------------------------------------------------------------------------
# LeCam
# --------------------------------------------------------------------------------------


def lecam_logits(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, generator=generator) + step, torch.randn(8, 5, generator=generator) - step


def test_lecam_by_hand():
    lecam = LeCam(decay=0.9)
    anchors = None
    for step in range(5):
        real, fake = (x.double().numpy() for x in lecam_logits(step))
        wanted = 0.0
        if anchors is not None:
            wanted = (np.maximum(real - anchors[1], 0) ** 2).mean() + (np.maximum(anchors[0] - fake, 0) ** 2).mean()
        assert lecam(*lecam_logits(step)).item() == pytest.approx(wanted, rel=1e-5)
        lecam.step()
        means = np.array([real.mean(), fake.mean()])
        anchors = means if anchors is None else 0.9 * anchors + 0.1 * means
    assert np.allclose(lecam.anchors.numpy(), anchors, rtol=1e-5)


def test_lecam_pulls_logits_together_and_restores():
    lecam = LeCam()
    lecam(*lecam_logits(1))
    lecam.step()
    real, fake = (x.requires_grad_() for x in lecam_logits(2))
    term = lecam(real, fake)
    lecam.step()  # moving the anchors does not disturb the backward pass
    term.backward()
    assert (real.grad >= 0).all() and real.grad.sum() > 0  # descent lowers real logits
    assert (fake.grad <= 0).all() and fake.grad.sum() < 0

    restored = LeCam()
    restored.load_state_dict(lecam.state_dict())
    assert restored(*lecam_logits(3)).item() == lecam(*lecam_logits(3)).item() > 0


def test_lecam_ignores_what_is_not_finite():
    lecam = LeCam()
    lecam(*lecam_logits(1))
    lecam.step()
    before = lecam.anchors.clone()
    lecam(torch.full((2,), torch.nan), torch.zeros(2))
    lecam.step()
    lecam.step()  # nothing noted since
    assert torch.equal(lecam.anchors, before)


def lecam_of_a_rank(rank: int) -> torch.Tensor:
    lecam = LeCam(decay=0.5)
    for step in range(3):
        real, fake = (x[rank * 4 : rank * 4 + 4] for x in lecam_logits(step))
        for micro_batch in range(2):
            lecam(real[micro_batch::2], fake[micro_batch::2])
        lecam.step()
    return lecam.anchors


def test_lecam_depends_on_the_global_batch_alone(tmp_path):
    whole = LeCam(decay=0.5)
    for step in range(3):
        whole(*lecam_logits(step))
        whole.step()
    for anchors in ranks.run(lecam_of_a_rank, tmp_path):
        assert torch.allclose(anchors, whole.anchors, rtol=1e-6)


# --------------------------------------------------------------------------------------
# Adaptive weight
# --------------------------------------------------------------------------------------


def losses_of(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, nn.Parameter]:
    torch.manual_seed(0)
    last = nn.Conv2d(4, 3, 3)
    out = last(images)
    return out.square().mean(), out.mean() * 0.1, last.weight


def test_adaptive_weight_by_hand():
    images = torch.randn(4, 4, 6, 6)
    reconstruction, generator, weight = losses_of(images)
    value = adaptive_weight(reconstruction, generator, weight)
    assert not value.requires_grad and weight.grad is None
    (reconstruction + value * generator).backward()  # the graph is still there
    assert weight.grad is not None

    x = nn.functional.unfold(images.double(), 3).transpose(1, 2)  # (B,L,36)
    out = x @ weight.detach().double().flatten(1).t() + losses_bias()  # (B,L,3)
    d_reconstruction = torch.einsum("blo,blk->ok", 2 * out / out.numel(), x)
    d_generator = torch.einsum("blo,blk->ok", torch.full_like(out, 0.1 / out.numel()), x)
    assert value.item() == pytest.approx((d_reconstruction.norm() / (d_generator.norm() + 1e-4)).item(), rel=1e-4)


def losses_bias() -> torch.Tensor:
    torch.manual_seed(0)
    return nn.Conv2d(4, 3, 3).bias.detach().double()


def test_adaptive_weight_is_bounded():
    weight = nn.Parameter(torch.ones(3))
    assert adaptive_weight((1e9 * weight).sum(), (0 * weight).sum(), weight).item() == 1e4
    assert adaptive_weight((0 * weight).sum(), weight.sum(), weight).item() == 0


def test_adaptive_weight_under_fp16():
    """Gradients of 1e-7 are rounded away in float16; scaled and divided again they give the ratio of float32."""
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(32, 64)

    def weight(precision: torch.dtype | None, scale: float) -> float:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            out = layer(x)
        return adaptive_weight(
            1e-4 * out.float().square().mean(), 1e-5 * out.float().mean(), layer.weight, scale
        ).item()

    exact = weight(None, 1.0)
    assert weight(torch.float16, 2.0**10) == pytest.approx(exact, rel=0.02)
    assert weight(torch.float16, 1.0) != pytest.approx(exact, rel=0.02)


def adaptive_weight_of_a_rank(rank: int) -> torch.Tensor:
    images = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(5))
    return adaptive_weight(*losses_of(images[rank * 2 : rank * 2 + 2]))


def test_adaptive_weight_is_that_of_the_global_batch(tmp_path):
    images = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(5))
    whole = adaptive_weight(*losses_of(images)).item()
    first, second = ranks.run(adaptive_weight_of_a_rank, tmp_path)
    assert first.item() == second.item() == pytest.approx(whole, rel=1e-5)
