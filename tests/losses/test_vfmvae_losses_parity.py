"""VFM-VAE's losses and its equivariance targets against the published ones, on inputs by the rule."""

import golden_rule
import pytest
import torch
from torch import Tensor

from vfmtok.layers.equivariance import Transformation
from vfmtok.losses.alignment import alignment_loss
from vfmtok.losses.kl import kl_loss
from vfmtok.losses.perceptual import LPIPS
from vfmtok.losses.reconstruction import small_image_loss
from vfmtok.losses.structural import ssim_loss

TOLERANCE = 1e-4  # of max |difference| to max |reference|


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("vfmvae/pieces.npz")


def noise(case: str, shape: tuple[int, ...]) -> Tensor:
    return 2 * golden_rule.tensor_for(f"token.noise.{case}", shape)


def assert_near(value: Tensor, reference) -> None:
    reference = torch.as_tensor(reference)
    assert value.shape == reference.shape
    assert (value.detach() - reference).abs().max() <= TOLERANCE * reference.abs().max()


def test_alignment(golden):
    z = noise("vf_z", (2, 24, 6, 6)).requires_grad_()
    features = noise("vf_aux", (2, 24, 6, 6)).requires_grad_()
    loss = alignment_loss(z, features)
    loss.backward()
    assert_near(loss, golden["vf"])
    assert_near(z.grad, golden["vf_grad"])
    assert features.grad is None  # they are what the latents shall become like
    settings = {"similarity_margin": 0.25, "cosine_margin": 0.5, "similarity_weight": 2, "cosine_weight": 3}
    assert_near(alignment_loss(z, features, **settings), golden["vf_margins"])


def test_kl(golden):
    moments = (3 * noise("kl", (2, 12, 5, 5))).requires_grad_()
    mean, logvar = moments.chunk(2, dim=1)
    loss = kl_loss(mean, logvar.clamp(-30, 20))
    loss.backward()
    assert_near(loss, golden["kl"])
    assert_near(moments.grad, golden["kl_grad"])


@pytest.fixture
def pair():
    target = golden_rule.image_for("vfmvae_ssim_a", 2, 48)
    return target, (target + 0.3 * golden_rule.image_for("vfmvae_ssim_b", 2, 48)).requires_grad_()


def test_ssim(golden, pair):
    target, images = pair
    loss = ssim_loss(images, target)
    loss.backward()
    assert_near(1 - loss, golden["ssim"])
    assert_near(-images.grad[:, :, ::5, ::5], golden["ssim_grad"])  # of SSIM, not of the loss


def test_lpips(golden, pair, tmp_path):
    """The lpips package's own heads are for torchvision's weights; here both are by the rule."""
    from torchvision.models import vgg16

    target, images = pair
    names = {name: value.shape for name, value in vgg16().state_dict().items() if name.startswith("features.")}
    file = tmp_path / "vgg16.pth"
    torch.save({name: golden_rule.tensor_for(f"vgg16.{name}", shape) for name, shape in names.items()}, file)
    lpips = LPIPS("vgg", file)
    network = lpips.model.network
    with torch.no_grad():
        for number, head in enumerate(network.lins):
            weight = head.model[1].weight
            weight.copy_(golden_rule.tensor_for(f"lpips.lin{number}.model.1.weight", weight.shape).abs())
    assert_near(network(images, target).flatten(), golden["lpips"])
    loss = lpips(images, target)
    loss.backward()
    assert_near(loss, golden["lpips"].mean())
    assert_near(images.grad[:, :, ::5, ::5], golden["lpips_grad"])


@pytest.mark.parametrize(("scale", "turns"), [(0.75, 1), (0.5, 2), (0.25, 3), (1.0, 1)])
def test_targets_of_transformations(golden, scale, turns):
    images = golden_rule.image_for("vfmvae_tiny", 2, 64)
    target = Transformation(latent_scale=scale, quarter_turns=turns).of_images(images)
    assert_near((target[:, :, ::3, ::3] + 1) / 2, golden[f"target_{100 * scale:.0f}_rot{turns}"])
    if not turns % 4 or scale < 1:
        latents = Transformation(latent_scale=scale, quarter_turns=turns).of_latents(noise("eq_z", (2, 3, 16, 16)))
        assert_near(latents, golden[f"latent_{100 * scale:.0f}_rot{turns}"])


def test_a_smaller_prior_shrinks_the_target_and_turns_nothing(golden):
    images = golden_rule.image_for("vfmvae_tiny", 2, 64)
    target = Transformation(prior_scale=0.5).of_images(images)
    turned = Transformation(latent_scale=0.5, quarter_turns=2).of_images(images)
    assert torch.equal(torch.rot90(target, 2, dims=(-1, -2)), turned)
    latents = torch.randn(2, 3, 8, 8)
    assert Transformation(prior_scale=0.5).of_latents(latents) is latents


@pytest.mark.parametrize("side", [32, 16, 8])
def test_smaller_images_are_compared_with_the_shrunk_target(golden, side):
    """A constant difference to the published target is the loss, whatever the target is."""
    images = golden_rule.image_for("vfmvae_tiny", 2, 64)
    published = torch.as_tensor(golden[f"target_scale{side}"]) * 2 - 1  # every second pixel
    small = torch.zeros(2, 3, side, side)
    small[:, :, ::2, ::2] = published
    loss = small_image_loss(small, images)
    rest = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    rest[:, :, ::2, ::2] = 0
    assert loss.item() == pytest.approx(rest.abs().mean().item(), rel=1e-5)
