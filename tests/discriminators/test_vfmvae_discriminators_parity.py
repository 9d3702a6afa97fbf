"""VFM-VAE's discriminators against the published ones, on weights and images by the rule."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F
from test_discriminator_parity import TOLERANCE, dino_backbone_file, relative
from torch import Tensor

from vfmtok.discriminators.augment import Augmentation, augment
from vfmtok.discriminators.build import build_discriminator
from vfmtok.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from vfmtok.weights.name_maps import load_released, to_released


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("vfmvae/disc.npz")


def weights(part: str) -> dict[str, Tensor]:
    """Of "heads" or "patchgan_discriminator", by the rule; the vectors of spectral norms have unit length."""
    state_dict = golden_rule.weights("vfmvae/disc_keys.json", "vfmvae_disc.")
    state_dict = {name: tensor for name, tensor in state_dict.items() if name.startswith(part)}
    return {name: F.normalize(t, dim=0) if name.endswith(("_u", "_v")) else t for name, t in state_dict.items()}


# --------------------------------------------------------------------------------------
# DINO
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    return dino_backbone_file(tmp_path_factory.mktemp("dino"))


@pytest.fixture
def dino(dino_file):
    return load_released(build_discriminator("dinogan-vfmvae", 256, dino_file), weights("heads"))


@pytest.mark.parametrize("side", [64, 224, 256])
def test_dino(golden, dino, side):
    images = golden_rule.image_for(f"vfmvae_disc{side}", 3, side).requires_grad_()
    logits = dino.eval()(images)
    assert relative(logits[:, ::37], golden[f"dino_{side}"]) < TOLERANCE
    assert logits.mean().item() == pytest.approx(float(golden[f"dino_{side}_mean"]), rel=TOLERANCE)
    logits.mean().backward()
    assert images.grad.norm().item() == pytest.approx(float(golden[f"dino_{side}_input_grad_norm"]), rel=TOLERANCE)


def test_dino_in_training(golden, dino):
    with torch.no_grad():
        logits = dino.train()(golden_rule.image_for("vfmvae_disc224", 3, 224))
    assert relative(logits[:, ::37], golden["dino_224_train"]) < TOLERANCE


def test_bicubic_is_for_this_one_alone(dino_file):
    """The published resizing for encoders other than SigLIP."""
    images, found = golden_rule.image_for("vfmvae_disc256", 1, 256), {}
    for how in ("bilinear", "bicubic"):
        found[how] = build_discriminator("dinogan-vfmvae", 256, dino_file, how).eval()._to_side(images)
    for how, wanted in found.items():
        assert torch.equal(wanted, F.interpolate(images, (224, 224), mode=how, antialias=True))
    assert not torch.equal(*found.values())


# --------------------------------------------------------------------------------------
# PatchGAN
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patchgan():
    return load_released(build_discriminator("multiscale-patchgan", 64), weights("patchgan_discriminator"))


@pytest.fixture(scope="module")
def read(patchgan):
    with torch.no_grad():
        return [patchgan.read(golden_rule.image_for(f"vfmvae_patch_{kind}", 3, 64)) for kind in ("real", "fake")]


def test_patchgan(golden, read):
    for scale, found in enumerate(read[0]):
        assert relative(found.logits, golden[f"patch_logits{scale}"]) < TOLERANCE
        assert len(found.features) == 4
        for layer, maps in enumerate(found.features):
            assert relative(maps[:, ::16, ::5, ::5], golden[f"patch_feature{scale}_{layer}"]) < TOLERANCE


@pytest.mark.parametrize(
    ("published", "kind", "generators"),
    [
        ("mse", "least-squares", "least-squares"),
        ("hinge", "hinge-sum", "hinge"),
        ("bce", "vanilla-sum", "non-saturating"),
    ],
)
def test_patchgan_losses(golden, read, published, kind, generators):
    real, fake = ([found.logits for found in side] for side in read)
    both = sum(float(golden[f"patch_{published}_{side}"]) for side in ("real", "fake"))
    assert discriminator_loss(real, fake, kind).item() == pytest.approx(both, rel=TOLERANCE)
    wanted = float(golden[f"patch_{published}_generator"])
    assert generator_loss(fake, generators).item() == pytest.approx(wanted, rel=TOLERANCE)


def test_feature_matching(golden, read):
    real, fake = ([found.features for found in side] for side in read)
    assert feature_matching_loss(real, fake).item() == pytest.approx(float(golden["patch_feature_matching"]), rel=1e-4)
    whole = [[maps.clone().requires_grad_() for maps in scale] for scale in fake]
    targets = [[maps.clone().requires_grad_() for maps in scale] for scale in real]
    feature_matching_loss(targets, whole).backward()
    assert all(maps.grad.abs().sum() > 0 for scale in whole for maps in scale)
    assert all(maps.grad is None for scale in targets for maps in scale)


@pytest.mark.filterwarnings("ignore:the DINO discriminator")
def test_published_names():
    published = {}
    for kind in ("dinogan-vfmvae", "multiscale-patchgan"):
        published |= to_released(build_discriminator(kind, 256, "none"))
    shapes = {name: list(tensor.shape) for name, tensor in published.items()}
    assert shapes == golden_rule.shapes("vfmvae/disc_keys.json")


# --------------------------------------------------------------------------------------
# DiffAugment
# --------------------------------------------------------------------------------------


def test_augmentation(golden):
    def drawn(name: str) -> Tensor:
        return torch.as_tensor(golden[f"augment_{name}"])

    shift = torch.stack([drawn("shift_rows"), drawn("shift_cols")], dim=1)
    cut = torch.stack([drawn("cut_row"), drawn("cut_col")], dim=1)
    colours = [drawn(f"{name}_u") for name in ("brightness", "saturation", "contrast")]
    images = golden_rule.image_for("vfmvae_augment", 4, 48)
    augmented = augment(images, Augmentation(*colours, shift, cut))
    assert relative(augmented[:, :, ::3, ::3], golden["augmented"]) < TOLERANCE
    assert relative(augmented.double().sum(dim=(2, 3)), golden["augmented_sum"]) < TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(48, 48), (50, 21)])
def test_what_is_drawn(height, width):
    """Every shift and place in its range, and no other; a square of odd side has its middle inside."""
    uniform = torch.rand(20_000, 7, generator=torch.Generator().manual_seed(0))
    uniform[0], uniform[1] = 0, 1 - 2**-24
    found = Augmentation.of(uniform, height, width)
    for axis, side in enumerate((height, width)):
        reach, square = int(side / 8 + 0.5), int(side * 0.2 + 0.5)
        assert set(found.shift[:, axis].tolist()) == set(range(-reach, reach + 1))
        assert set(found.cut[:, axis].tolist()) == set(range(side - square % 2 + 1))
    assert torch.equal(torch.stack([found.brightness, found.saturation, found.contrast], dim=1), uniform[:, :3])


def test_gradients_flow_through_augmentation():
    images = golden_rule.image_for("vfmvae_augment", 2, 24).double().requires_grad_()
    drawn = Augmentation.of(torch.rand(2, 7, generator=torch.Generator().manual_seed(1)).double(), 24, 24)
    augment(images, drawn).square().sum().backward()
    step = torch.zeros_like(images)
    step[1, 2, 11, 7] = 1e-4
    with torch.no_grad():
        slope = sum(sign * augment(images + sign * step, drawn).square().sum() for sign in (1, -1)) / 2e-4
    assert images.grad[1, 2, 11, 7].item() == pytest.approx(slope.item(), rel=1e-6)
