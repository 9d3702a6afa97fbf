"""The training of VFM-VAE on golden data of the published code: the rows of its stages, their weights and gradients.

Gradients are well conditioned but for one thing. Of the 1.5 million inputs of the DINO heads' LeakyReLUs, which are of
unit size and 3e-5 off in float32, a few lie within 1e-5 of 0, and a slope of 1 in place of 0.2 at one of them moves the
gradients of some parameters by 0.2%. Against float64 (stage 2) the published run has two slopes wrong and errs by up to
0.23%; so do we with two threads, and with one we have four wrong and err by up to 0.39%. ``decided_slopes`` therefore
takes the sign of such inputs from float64, but for the published run's two. All else is compared as it is, with the
tolerances of the golden data, and gradients are then within 4e-5 of the published ones with any number of threads.
"""

from contextlib import contextmanager, nullcontext

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from discriminators.test_discriminator_parity import dino_backbone_file
from tokenizers.vfm_vae.tiny import DISCRETE, FOLDER, GivenNoise, tiny
from torch import nn

import vfmtok
from vfmtok.discriminators.batch_norm import LocalBatchNorm
from vfmtok.discriminators.build import build_discriminator
from vfmtok.layers.equivariance import Transformation
from vfmtok.losses.adversarial import discriminator_loss
from vfmtok.losses.perceptual import LPIPS
from vfmtok.training.adversaries import Adversary
from vfmtok.training.loss_recipe import AdversarialConfig, AlignmentConfig, LossConfig, TermConfig
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.trained_parts import choose_trained
from vfmtok.weights.name_maps import load_released, name_map, rename

DINO = AdversarialConfig("dinogan-vfmvae", loss="hinge-sum", generator_loss="hinge", weight=1.0, start=0)
PATCHGAN = AdversarialConfig(
    "multiscale-patchgan",
    loss="least-squares",
    generator_loss="least-squares",
    weight=1.0,
    start=0,
    feature_matching_weight=10.0,
)
MULTI_RESOLUTION = tuple(
    TermConfig(f"multi-resolution-{side}", weight) for side, weight in ((32, 0.1), (16, 0.2), (8, 0.4))
)
STAGE0 = {"pixel": "l1", "pixel_weight": 1.0, "perceptual_weight": 10.0, "alignment": AlignmentConfig(5.0)}
TRANSFORMATIONS = {
    "plain": Transformation(),
    "latent_half_rot1": Transformation(latent_scale=0.5, quarter_turns=1),
    "latent_quarter_rot3": Transformation(latent_scale=0.25, quarter_turns=3),
    "prior_075": Transformation(prior_scale=0.75),
}

UNDECIDED = 1e-4  # inputs of LeakyReLUs nearer to 0 than this may have either sign in float32
PUBLISHED_ZERO = -1.5e-6  # inputs above this have the slope of positive ones in the published run


@pytest.fixture(scope="module")
def images():
    return golden_rule.image_for("vfmvae_tiny", 2, 64)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    discriminator = build_discriminator("dinogan-vfmvae", 64, dino_backbone_file(tmp_path_factory.mktemp("dino")))
    return load_released(discriminator, discriminator_weights("heads")).eval()


@pytest.fixture(scope="module")
def patchgan():
    return load_released(
        build_discriminator("multiscale-patchgan", 64), discriminator_weights("patchgan_discriminator")
    )


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory):
    """LPIPS whose backbone and heads are by the rule."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        names = {name: value.shape for name, value in vgg16().state_dict().items() if name.startswith("features.")}
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({name: golden_rule.tensor_for(f"vgg16.{name}", shape) for name, shape in names.items()}, file)
    lpips = LPIPS("vgg", file)
    with torch.no_grad():
        for number, head in enumerate(lpips.model.network.lins):
            weight = head.model[1].weight
            weight.copy_(golden_rule.tensor_for(f"lpips.lin{number}.model.1.weight", weight.shape).abs())
    return lpips


@pytest.fixture(scope="module")
def exact_inputs(images, dino):
    """Of the LeakyReLUs of the DINO heads, on the reconstruction without a transformation: float64, by layer."""
    tokenizer = tiny().double().train()
    with torch.no_grad():
        fake = tokenizer(images.double(), Transformation(), GivenNoise("train_plain")).reconstruction
        found = {}
        hooks = [
            layer.register_forward_hook(lambda layer, inputs, output, name=name: found.update({name: output}))
            for name, layer in batch_norms(dino)
        ]
        dino.double()(fake)
    for hook in hooks:
        hook.remove()
    dino.float()
    assert len(found) == 10
    assert sum((values.abs() < UNDECIDED).sum() for values in found.values()) < 200  # of 1.5 million
    return found


def batch_norms(dino: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in dino.named_modules() if isinstance(layer, LocalBatchNorm)]


@contextmanager
def decided_slopes(dino: nn.Module, exact_inputs: dict[str, torch.Tensor]):
    """Inside, inputs of the heads' LeakyReLUs whose sign float32 does not decide have the published run's."""

    def decide(name: str, values: torch.Tensor) -> torch.Tensor:
        exact = exact_inputs[name]
        assert (values - exact).abs().max() < UNDECIDED
        decided = (exact - PUBLISHED_ZERO).to(values.dtype)
        return values + torch.where(exact.abs() < UNDECIDED, decided - values, 0).detach()

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: decide(name, output))
        for name, layer in batch_norms(dino)
    ]
    yield
    for hook in hooks:
        hook.remove()


def discriminator_weights(part: str) -> dict[str, torch.Tensor]:
    """By the rule; the vectors of spectral norms have unit length."""
    weights = golden_rule.weights(f"{FOLDER}/disc_keys.json", "vfmvae_disc.")
    weights = {name: tensor for name, tensor in weights.items() if name.startswith(part)}
    return {n: F.normalize(t, dim=0) if n.endswith(("_u", "_v")) else t for n, t in weights.items()}


def near(value, reference, tolerance: float = 1e-4) -> None:
    assert float(value.detach()) == pytest.approx(float(reference), rel=tolerance)


def check_gradients(model: nn.Module, names: np.ndarray, norms: np.ndarray) -> None:
    """Under the published names; parameters that got none have zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients, largest = vfmtok.to_released(model), norms.max()
    wrong = []
    for name, norm in zip(names.tolist(), norms.tolist(), strict=True):
        found = gradients[name].norm().item()
        tolerance = 5e-2 * norm if name.endswith("noise_strength") else 1e-3 * (norm + 1e-3 * largest)
        if abs(found - norm) > tolerance:
            wrong.append((name, found, norm))
    assert not wrong


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By their published names."""
    names = name_map(model).pairs
    return {rename(name, names): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_pass(tokenizer, objective, images, golden, prefix, transformation, draws) -> tuple[dict, torch.Tensor]:
    """The rows of a pass, unweighted, and their sum; returns the rows and the reconstruction."""
    out = tokenizer.train()(images, transformation, draws)
    terms = objective(transformation.of_images(images), out)
    weights = {term.name: term.weight for term in objective.terms}
    golden = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    names = {"l1": "pixel", "perceptual": "perceptual", "dino_generator": "adversarial", "kl": "kl", "ssim": "ssim"}
    names |= {f"multiscale_l1_{i}": f"multi-resolution-{side}" for i, side in enumerate((32, 16, 8))}
    checked = 0
    for published, ours in names.items():
        if published in golden and ours in terms:
            near(terms[ours] / weights[ours], golden[published])
            checked += 1
    assert checked == len([name for name in golden if name in names])
    if "vf" in golden:
        near(terms["alignment"] / float(golden["vf_weight"]), golden["vf"], 1e-3)
    near(sum(terms.values()), golden["total"], 1e-3)
    return terms, out.reconstruction


@pytest.mark.slow
@pytest.mark.parametrize("tag", TRANSFORMATIONS)
def test_stage_0(images, dino, perceptual, exact_inputs, tag):
    golden = golden_rule.load(f"{FOLDER}/tiny_train.npz")
    tokenizer = tiny()
    loss = LossConfig(**STAGE0, terms=(TermConfig("kl", 1e-6), *MULTI_RESOLUTION))
    objective = TokenizerObjective(loss, DINO, tokenizer, perceptual, dino)
    draws = GivenNoise(f"train_{tag}")
    with decided_slopes(dino, exact_inputs) if tag == "plain" else nullcontext():
        terms, fake = check_pass(tokenizer, objective, images, golden, f"{tag}_", TRANSFORMATIONS[tag], draws)
    if f"{tag}_grad_names" in golden:
        sum(terms.values()).backward()
        check_gradients(tokenizer, golden[f"{tag}_grad_names"], golden[f"{tag}_grad_norms"])
    if tag == "plain":
        dino.zero_grad()
        real, fake = dino(images), dino(fake.detach())
        near(torch.relu(1 - real).mean(), golden["disc_dino_real"])
        near(torch.relu(1 + fake).mean(), golden["disc_dino_fake"])
        total = discriminator_loss(real, fake, "hinge-sum")
        near(total, golden["disc_total"])
        total.backward()
        found = {name: p.grad.norm().item() for name, p in trained_parameters(dino).items()}
        for name, norm in zip(golden["disc_grad_names"].tolist(), golden["disc_grad_norms"].tolist(), strict=True):
            assert abs(found[name] - norm) <= 1e-3 * (norm + 1e-3 * golden["disc_grad_norms"].max()), name


@pytest.mark.slow
def test_the_discrete_model(images, dino, perceptual):
    """The published weights of the quantizer's losses stand in the tokenizer's configuration."""
    golden = golden_rule.load(f"{FOLDER}/discrete.npz")
    tokenizer = tiny(*DISCRETE, keys="tiny_discrete_keys")
    objective = TokenizerObjective(LossConfig(**STAGE0, terms=MULTI_RESOLUTION), DINO, tokenizer, perceptual, dino)
    terms, _ = check_pass(tokenizer, objective, images, golden, "model_", Transformation(), None)
    near(terms["vq"] + terms["commit"], golden["model_vq"])
    near(terms["entropy"], 0.1 * golden["model_entropy"])
    sum(terms.values()).backward()
    check_gradients(tokenizer, golden["model_grad_names"], golden["model_grad_norms"])


@pytest.mark.slow
def test_stage_2(images, dino, perceptual, exact_inputs):
    golden = golden_rule.load(f"{FOLDER}/tiny_stages.npz")
    tokenizer = tiny()
    choose_trained(tokenizer, ("expand", "style", "decoder"))
    trained = set(trained_parameters(tokenizer))
    assert trained == set(golden["stage2_trainable"].tolist())
    loss = LossConfig(pixel="l1", pixel_weight=1.0, perceptual_weight=2.0, terms=(TermConfig("ssim", 1.0),))
    objective = TokenizerObjective(loss, DINO, tokenizer, perceptual, dino)
    draws = GivenNoise("train_plain")
    with decided_slopes(dino, exact_inputs):
        terms, _ = check_pass(tokenizer, objective, images, golden, "stage2_", Transformation(), draws)
    sum(terms.values()).backward()
    check_gradients(tokenizer, golden["stage2_grad_names"], golden["stage2_grad_norms"])


@pytest.mark.slow
def test_stage_3(images, dino, patchgan, exact_inputs):
    golden = golden_rule.load(f"{FOLDER}/tiny_stages.npz")
    tokenizer = tiny()
    choose_trained(tokenizer, ("decoder.blocks.2", "decoder.blocks.3", "decoder.injections.3"))
    trained = set(trained_parameters(tokenizer))
    assert trained == set(golden["stage3_grad_names"].tolist())
    second = Adversary("second_", PATCHGAN, patchgan)
    loss = LossConfig(pixel_weight=0.0, perceptual="none")
    objective = TokenizerObjective(loss, DINO, tokenizer, None, dino, 1.0, second)
    draws = GivenNoise("train_plain")
    with decided_slopes(dino, exact_inputs):
        terms, fake = check_pass(tokenizer, objective, images, golden, "stage3_", Transformation(), draws)
    near(terms["second_adversarial"], golden["stage3_patchgan_generator"])
    near(terms["second_feature_matching"] / 10, golden["stage3_feature_matching"])
    sum(terms.values()).backward()
    check_gradients(tokenizer, golden["stage3_grad_names"], golden["stage3_grad_norms"])
    for discriminator in (dino, patchgan):
        discriminator.zero_grad()
    losses = {
        name: discriminator_loss(network(images), network(fake.detach()), kind)
        for name, network, kind in (("dino", dino, "hinge-sum"), ("patchgan", patchgan, "least-squares"))
    }
    for name, value in losses.items():
        near(value, golden[f"stage3_disc_{name}_real"] + golden[f"stage3_disc_{name}_fake"])
    sum(losses.values()).backward()
    found = trained_parameters(dino) | trained_parameters(patchgan)
    norms = golden["stage3_disc_grad_norms"]
    for name, norm in zip(golden["stage3_disc_grad_names"].tolist(), norms.tolist(), strict=True):
        assert abs(found[name].grad.norm().item() - norm) <= 1e-3 * (norm + 1e-3 * norms.max()), name
