"""The discriminators against the published ones, on weights and images by the rule."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.discriminators.build import build_discriminator
from vfmtok.discriminators.released import load_released_discriminator, to_released_discriminator

TOLERANCE = 1e-4  # of max |difference| to max |reference|


def relative(value: Tensor, reference) -> float:
    reference = torch.as_tensor(reference)
    assert value.shape == reference.shape
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


def dino_backbone_file(folder) -> str:
    """Meta's file of DINO ViT-S/16, by the rule, with the key biases zeroed (they change no attention)."""
    state_dict = golden_rule.weights("dino_s16_keys.json", "dino_s16.")
    for name, tensor in state_dict.items():
        if name.endswith("attn.qkv.bias"):
            tensor[384:768] = 0
    torch.save(state_dict, folder / "dino_deitsmall16_pretrain.pth")
    return str(folder / "dino_deitsmall16_pretrain.pth")


def dino_heads() -> dict[str, Tensor]:
    state_dict = golden_rule.weights("disc_dino_keys.json", "disc.")
    vectors = ("_u", "_v")
    return {name: F.normalize(t, dim=0) if name.endswith(vectors) else t for name, t in state_dict.items()}


def patchgan_state() -> dict[str, Tensor]:
    state_dict = golden_rule.weights("disc_patchgan_keys.json", "disc_patch.")
    for name, tensor in state_dict.items():
        if name.endswith("running_var"):
            tensor.copy_(tensor.abs() + 0.5)
        elif name.endswith("num_batches_tracked"):
            state_dict[name] = torch.tensor(0)
    return state_dict


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    model = build_discriminator("dinogan", 336, dino_backbone_file(tmp_path_factory.mktemp("dino")))
    return load_released_discriminator(model, dino_heads()).eval()


def test_dino(dino):
    golden = golden_rule.load("disc_dino.npz")
    images = golden_rule.image_for("shareddisc", 4, 224).requires_grad_()
    logits = dino(images)
    assert logits.shape == tuple(golden["shape"])
    assert relative(logits[:, ::37], golden["logits"]) < TOLERANCE
    assert logits.mean().item() == pytest.approx(float(golden["logits_mean"]), rel=TOLERANCE)
    logits.mean().backward()
    assert images.grad.norm().item() == pytest.approx(float(golden["grad_x_norm"]), rel=TOLERANCE)


@pytest.mark.parametrize(
    "case, image, batch, size",
    [
        ("batch12", "shareddisc12", 12, 224),
        ("area336", "shareddiscarea", 4, 336),
        ("small112", "shareddiscsmall", 4, 112),
    ],
)
def test_dino_other_batches_and_sizes(dino, case, image, batch, size):
    golden = golden_rule.load("disc_dino_more.npz")
    with torch.no_grad():
        logits = dino(golden_rule.image_for(image, batch, size))
    assert relative(logits[:, ::37], golden[case]) < TOLERANCE


def test_patchgan():
    golden = golden_rule.load("disc_patchgan.npz")
    model = load_released_discriminator(build_discriminator("patchgan", 224), patchgan_state()).eval()
    with torch.no_grad():
        logits = model(golden_rule.image_for("shareddisc", 4, 224))
    assert relative(logits, golden["logits"]) < TOLERANCE


def test_stylegan():
    golden = golden_rule.load("disc_stylegan.npz")
    state_dict = golden_rule.weights("disc_stylegan_keys.json", "disc_style.")
    model = load_released_discriminator(build_discriminator("stylegan", 256), state_dict).eval()
    with torch.no_grad():
        logits = model(golden_rule.image_for("sharedstyle", 4, 256))
    assert relative(logits, golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("kind, file", [("dinogan", "dino"), ("patchgan", "patchgan"), ("stylegan", "stylegan")])
@pytest.mark.filterwarnings("ignore:the DINO discriminator")
def test_published_names(kind, file):
    published = to_released_discriminator(build_discriminator(kind, 256, "none"))
    shapes = {name: list(tensor.shape) for name, tensor in published.items()}
    assert shapes == golden_rule.shapes(f"disc_{file}_keys.json")
