"""LPIPS against float64 by hand and against the package itself; the encoder's perceptual distance by hand."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import lpips
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from vfmtok.encoders.vfm import Encoder, EncoderConfig
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.losses.perceptual import LPIPS, EncoderPerceptual, backbone_url

READ_AFTER = {  # layers of torchvision's `features` whose outputs are compared
    "vgg": (3, 8, 15, 22, 29),
    "alex": (1, 4, 7, 9, 11),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
BUILD = {
    "vgg": torchvision.models.vgg16,
    "alex": torchvision.models.alexnet,
    "squeeze": torchvision.models.squeezenet1_1,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """``backbone(network)`` -> torchvision's network with random weights, and its file under torchvision's names."""
    made = {}

    def build(network: str):
        if network not in made:
            torch.manual_seed(0)
            model = BUILD[network](weights=None).features.eval()
            path = tmp_path_factory.mktemp("weights") / f"{network}.pth"
            classifier = {"classifier.1.weight": torch.zeros(2)}  # as in the real files: not needed, left out
            torch.save({f"features.{k}": v for k, v in model.state_dict().items()} | classifier, path)
            made[network] = model, path
        return made[network]

    return build


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 48, 48, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


def lpips_by_hand(features: torch.nn.Module, network: str, a: Tensor, b: Tensor) -> Tensor:
    heads = torch.load(Path(lpips.__file__).parent / f"weights/v0.1/{network}.pth", "cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    x = torch.cat([a, b]).double()
    x = (x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
    total, level = 0.0, 0
    for number, layer in enumerate(features.double()[: READ_AFTER[network][-1] + 1]):
        x = layer(x)
        if number in READ_AFTER[network]:
            p, q = F.normalize(x, dim=1).chunk(2)
            head = heads[f"lin{level}.model.1.weight"].double().flatten()
            total = total + torch.einsum("bchw,c->b", (p - q) ** 2, head) / p[0, 0].numel()
            level += 1
    features.float()
    assert level == len(READ_AFTER[network])
    return total.mean()


@pytest.mark.parametrize("network", READ_AFTER)
def test_lpips_by_hand(backbone, images, network):
    features, path = backbone(network)
    with torch.no_grad():
        value = LPIPS(network, path)(*images)
        assert value.item() == pytest.approx(lpips_by_hand(features, network, *images).item(), rel=1e-4)
    assert value.dtype == torch.float32 and value.shape == ()


def test_lpips_gradient_survives_cells_where_all_is_off(backbone, images):
    """Behind a ReLU a cell of zeros has no direction, and the root of its square length no slope."""
    loss = LPIPS("squeeze", backbone("squeeze")[1])
    with torch.no_grad():
        loss.model.network.net.slice1[0].bias.fill_(-1.0)
    a = images[0].clone()
    a[:, :, :24] = 0
    a.requires_grad_()
    loss(a, images[1]).backward()
    assert a.grad.isfinite().all() and a.grad.abs().sum() > 0


def test_lpips_gradient(backbone, images):
    loss = LPIPS("squeeze", backbone("squeeze")[1])
    a = images[0].clone().requires_grad_()
    loss(a, images[1]).backward()
    with torch.no_grad():  # along the gradient the loss changes by its square
        step = 1e-2 * a.grad / a.grad.norm()
        change = loss(a + step, images[1]) - loss(a - step, images[1])
    assert change.item() == pytest.approx(2e-2 * a.grad.norm().item(), rel=2e-2)


def test_lpips_is_frozen_and_left_out_of_what_is_saved(backbone):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loss = LPIPS("squeeze", backbone("squeeze")[1]).train()
    assert torch.equal(torch.get_rng_state(), state)  # building it costs the run no random numbers
    assert not list(loss.parameters()) and not loss.state_dict()
    assert not any(module.training for module in loss.model.network.modules())
    assert not any(p.requires_grad for p in loss.model.network.parameters())
    assert loss.double().model.network.lins[0].model[1].weight.dtype == torch.float64  # but it moves along


def test_lpips_is_float32_under_autocast(backbone, images):
    loss = LPIPS("squeeze", backbone("squeeze")[1])
    a = images[0].bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        value = loss(a, images[1])
    assert value.item() == loss(a.float(), images[1]).item()


def test_targets_out_of_range_are_refused(backbone, images):
    for loss in (LPIPS("squeeze", backbone("squeeze")[1]), EncoderPerceptual(small_encoder("vit"))):
        with pytest.raises(ValueError, match=r"must be in \[-1,1\], got values from .* to 25"):
            loss(images[0], images[1] * 127.5 + 127.5)
        assert loss(3 * images[0], images[1]).isfinite()  # a reconstruction may be anywhere
        assert loss(images[0], images[1] * torch.nan).isnan()  # for the training loop to see and skip


def test_another_network_s_weights_are_refused(backbone, tmp_path):
    with pytest.raises(WeightsError, match=r"not those of torchvision's network for LPIPS 'squeeze': .* missing"):
        LPIPS("squeeze", backbone("alex")[1])
    with pytest.raises(WeightsError, match="no weight file at"):
        LPIPS("vgg", tmp_path / "vgg.pth")
    with pytest.raises(ConfigError, match="LPIPS knows the networks vgg, alex, squeeze, got 'resnet'"):
        LPIPS("resnet")


def test_torch_hub_cache_is_used(backbone, images, tmp_path, monkeypatch):
    path = backbone("squeeze")[1]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints" / Path(backbone_url("squeeze")).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(path.read_bytes())
    with torch.no_grad():
        assert LPIPS("squeeze")(*images).item() == LPIPS("squeeze", path)(*images).item()


def test_weights_out_of_reach_are_said_in_one_line(tmp_path):
    program = (
        "from vfmtok.errors import WeightsError\nfrom vfmtok.losses.perceptual import LPIPS\n"
        "try:\n    LPIPS('vgg')\nexcept WeightsError as error:\n    print(error)"
    )
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "TORCH_HOME": str(tmp_path), "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    line = done.stdout.splitlines()[-1]  # torch hub says first what it tries
    assert f"neither in torch hub's cache ({tmp_path}/hub/checkpoints/vgg16-397923af.pth)" in line
    assert line.endswith("put the file there, name it in the configuration, or use perceptual: encoder")


# --------------------------------------------------------------------------------------
# The frozen encoder
# --------------------------------------------------------------------------------------


def small_encoder(kind: str, **options) -> Encoder:
    name, levels = ("test_vit", (2, 4, 6)) if kind == "vit" else ("test_efficientnet", (2, 3, 4))
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(name=name, image_size=64, levels=levels, **options))
    encoder._has_weights = True  # random ones will do here, without the warning
    return encoder


@pytest.mark.parametrize("kind", ["vit", "pyramid"])
def test_encoder_distance_by_hand(images, kind):
    encoder = small_encoder(kind)
    value = EncoderPerceptual(encoder)(*images)
    levels = []
    for a, b in zip(encoder(images[0]), encoder(images[1]), strict=True):
        cosine = F.cosine_similarity(a.double(), b.double(), dim=-1)  # |a/|a| - b/|b||^2 = 2 - 2 cos
        levels.append((2 - 2 * cosine).mean())
    assert value.item() == pytest.approx(sum(levels).item() / 3, rel=1e-4)
    assert EncoderPerceptual(encoder)(images[1], images[1]).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["vit", "pyramid"])
def test_encoder_distance_has_a_gradient_to_the_reconstruction_alone(images, kind):
    encoder = small_encoder(kind)
    loss = EncoderPerceptual(encoder)
    a = (0.9 * images[0]).requires_grad_()
    features = encoder(images[1])
    value = loss(a, images[1], features)
    assert value.item() == loss(a, images[1]).item()  # the features given are those it would compute
    value.backward()
    assert a.grad.isfinite().all() and a.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())
    with torch.no_grad():
        assert loss(a - 0.05 * a.grad / a.grad.norm(), images[1], features) < value
    assert not encoder(a)[0].requires_grad  # forward itself still builds no graph


def test_encoder_is_not_registered_twice_and_must_be_frozen():
    loss = EncoderPerceptual(small_encoder("vit")).train()
    assert not list(loss.parameters()) and not loss.state_dict() and not list(loss.children())
    with pytest.raises(ConfigError, match="needs a frozen encoder"):
        EncoderPerceptual(small_encoder("vit", frozen=False))


def test_encoder_distance_is_float32_under_autocast(images):
    loss = EncoderPerceptual(small_encoder("vit"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = loss(*images)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(*images).item(), rel=0.05)


def test_lpips_building_is_quiet(backbone, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LPIPS("squeeze", backbone("squeeze")[1])
    assert capsys.readouterr().out == ""
