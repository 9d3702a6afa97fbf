"""PatchGAN and the StyleGAN discriminator at other sizes, under autocast, at the start; published names both ways."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F

from vfmtok.discriminators.build import build_discriminator
from vfmtok.discriminators.stylegan import Blur
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.weights.name_maps import load_released, to_released


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "kind, size, shape",
    [
        ("patchgan", 24, (2, 1, 1, 1)),
        ("patchgan", 64, (2, 1, 6, 6)),
        ("patchgan", 336, (2, 1, 40, 40)),
        ("stylegan", 8, (2, 1)),
        ("stylegan", 64, (2, 1)),
        ("stylegan", 84, (2, 1)),
    ],
)
def test_other_sizes_train(kind, size, shape):
    model = build_discriminator(kind, size)
    images = golden_rule.image_for(kind, 2, size).requires_grad_()
    logits = model(images)
    assert logits.shape == shape
    logits.square().mean().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind, size", [("patchgan", 23), ("stylegan", 7)])
def test_images_that_are_too_small_are_refused(kind, size):
    with pytest.raises(ConfigError, match=f"the {kind} discriminator needs images of .* px or more, got {size}"):
        build_discriminator(kind, size)


@pytest.mark.parametrize("kind", ["patchgan", "stylegan"])
def test_autocast(kind):
    model = build_discriminator(kind, 64).eval()
    images = golden_rule.image_for(kind, 2, 64)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_patchgan_starts_as_described():
    model = build_discriminator("patchgan", 64)
    weights = torch.cat([p.flatten() for name, p in model.named_parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([layer.weight for layer in model.layers if isinstance(layer, torch.nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.01) and scales.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("size, blocks, side", [(8, 1, 4), (64, 4, 4), (84, 4, 6), (256, 6, 4), (336, 6, 6)])
def test_stylegan_halves_the_map_to_4_or_a_little_more(size, blocks, side):
    with torch.device("meta"):
        model = build_discriminator("stylegan", size)
    assert len(model.blocks) == 2 + blocks
    assert model.to_logit[0].in_features == model.last_conv.out_channels * side**2


def test_stylegan_refuses_another_size():
    with pytest.raises(ValueError, match=r"images must be \(B,3,64,64\)"):
        build_discriminator("stylegan", 64)(torch.zeros(1, 3, 32, 32))


def test_blur_by_hand():
    blur = Blur()
    blur.filter.copy_(torch.tensor([0.5, -2.0, 1.0]))  # any filter, negative ones by the sum of their sizes
    x = torch.randn(2, 3, 6, 5)
    kernel = torch.outer(blur.filter, blur.filter).double()
    kernel = kernel / kernel.abs().sum()
    padded = F.pad(x.double(), (1, 1, 1, 1), mode="reflect")
    wanted = torch.zeros(2, 3, 6, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            wanted += kernel[i, j] * padded[..., i : i + 6, j : j + 5]
    assert torch.allclose(blur(x).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["patchgan", "stylegan"])
def test_published_names_round_trip(kind):
    published = {name: tensor.clone() for name, tensor in to_released(build_discriminator(kind, 64)).items()}
    torch.manual_seed(1)
    model = load_released(build_discriminator(kind, 64), published)
    back = to_released(model)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in back)

    name, before = next(iter(published)), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=f"1 missing: {name}; 1 unexpected: extra"):
        load_released(model, {k: v + 1 for k, v in published.items() if k != name} | {"extra": back[name]})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_something_else_has_no_published_names():
    with pytest.raises(WeightsError, match="nothing like a Linear was published"):
        to_released(torch.nn.Linear(2, 2))
