"""Parts of models, losses, optimizers and networks of metrics on a fake CUDA device (see ``test_fake_cuda.py``)."""

from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda
from test_fake_cuda import assert_on_cuda, images

import vfmtok
from vfmtok.code import Ids, Segment
from vfmtok.discriminators.build import DISCRIMINATORS, build_discriminator
from vfmtok.evaluation.encoder_distance import encoder_features
from vfmtok.evaluation.inception import Inception
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.equivariance import Transformation
from vfmtok.losses import perceptual
from vfmtok.losses.adversarial import LeCam
from vfmtok.losses.alignment import alignment_loss
from vfmtok.losses.kl import kl_loss
from vfmtok.losses.reconstruction import small_image_loss
from vfmtok.losses.structural import ssim_loss
from vfmtok.quantizers import QUANTIZERS, build_quantizer
from vfmtok.quantizers.cosine import CosineConfig
from vfmtok.quantizers.finite_scalar import FiniteScalarConfig
from vfmtok.training.adversaries import Adversary, DiscriminatorPass, against
from vfmtok.training.codebook_care import CodebookCare
from vfmtok.training.ema import EMA
from vfmtok.training.health import LossBounds, Meter, SkippedSteps
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import AdversarialConfig, CodebookConfig, LossConfig, OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:the frozen encoder", "ignore:the DINO discriminator")


@pytest.fixture(params=[False, True], ids=["float32", "bf16"])
def bf16(request):
    return request.param


QUANTIZER_CASES = {"cosine": CosineConfig(codebook_size=64, code_dim=8), "fsq": FiniteScalarConfig((4, 4, 4))}


def test_every_quantizer_is_here():
    assert {type(config) for config in QUANTIZER_CASES.values()} == QUANTIZERS.keys()


# ---- parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", QUANTIZER_CASES)
def test_quantizer(case, training, bf16):
    config = QUANTIZER_CASES[case]
    quantizer = build_quantizer(config).train(training)
    with FakeCuda(bf16) as cuda:
        cuda.put(quantizer)
        out = quantizer(torch.empty(2, 5, config.code_dim, device="cuda"))
        assert out.codes.dtype == torch.float32 and out.codes.shape == (2, 5, config.code_dim)
        assert_on_cuda(out, out.losses, quantizer.lookup(out.ids))
    assert cuda.waits == []


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminator(kind, bf16):
    """Training and evaluation, and the balance between the two players."""
    with torch.device("meta"):
        discriminator = build_discriminator(kind, 256, "none")
    lecam = LeCam()
    with FakeCuda(bf16) as cuda:
        for module in (discriminator, lecam):
            cuda.put(module)
        for mode in (True, False):
            discriminator.train(mode)
            logits = discriminator(images(256, 9))
            maps = logits if isinstance(logits, list) else [logits]
            assert all(part.dtype == torch.float32 for part in maps)
            assert_on_cuda(maps, lecam(logits, logits))
        lecam.step()
    assert cuda.waits == []


def test_losses_of_continuous_tokenizers(bf16):
    """And DiffAugment, feature matching, and the bounds of losses."""
    config = AdversarialConfig("multiscale-patchgan", augment=True, feature_matching_weight=1.0)
    adversary = Adversary("", config, build_discriminator("multiscale-patchgan", 64))
    both = DiscriminatorPass(adversary)
    with FakeCuda(bf16) as cuda:
        cuda.put(both)
        draws = Draws(0, torch.empty(3, dtype=torch.int64, device="cuda"))
        real, fake, latents = images(64, 3), images(64, 3), torch.empty(3, 4, 8, 8, device="cuda")
        turned = Transformation(0.5, 1)
        terms = against(adversary, real, fake, draws) | adversary.terms(*both(real, fake, draws))
        terms |= {
            "ssim": ssim_loss(fake, real),
            "kl": kl_loss(latents, latents),
            "alignment": alignment_loss(latents, torch.empty(3, 4, 16, 16, device="cuda")),
            "small": small_image_loss(turned.of_images(fake), real),
        }
        bounds = LossBounds(("ssim", "kl"), torch.device("cuda"), factor=10.0)
        for _ in range(2):
            bounds.note(terms)
            accepted = bounds.accept(0)
        assert all(term.dtype == torch.float32 for term in terms.values())
        assert_on_cuda(terms, accepted, turned.of_latents(latents))
    assert cuda.waits == []


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("network", perceptual.BACKBONES)
def test_lpips(network, bf16, monkeypatch):
    monkeypatch.setattr(perceptual, "_read_backbone", lambda *_: {})  # no weights: nothing here has values
    monkeypatch.setattr(perceptual, "_load_backbone", lambda *_: None)
    with torch.device("meta"):
        distance = perceptual.LPIPS(network)
    with FakeCuda(bf16) as cuda:
        cuda.put(distance)
        found = distance(images(64), images(64))
        assert found.dtype == torch.float32
        assert_on_cuda(found)
    assert cuda.waits == []


def test_terms_of_the_tokenizer_s_loss(bf16, root):
    """With the perceptual distance in the encoder's features, and the discriminator as a fixed critic."""
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(root / "configs/tiny.yaml"))
    discriminator = build_discriminator("patchgan", 32)
    distance = perceptual.EncoderPerceptual(tokenizer.encoder)
    adversarial = AdversarialConfig()  # without the adaptive weight, which needs a backward pass
    with FakeCuda(bf16) as cuda:
        for module in (tokenizer, discriminator):
            cuda.put(module)
        objective = TokenizerObjective(LossConfig(), adversarial, tokenizer, distance, discriminator)
        real = images(32)
        terms = objective(real, tokenizer.train()(real), True)
        meter, skipped = Meter(), SkippedSteps(torch.device("cuda"))
        meter.add(terms)
        skipped.add(terms["pixel"])
        skipped.check(1, terms)
        assert {"pixel", "perceptual", "feature", "adversarial", "vq"} <= terms.keys()
        assert all(term.dtype == torch.float32 for term in terms.values())
        assert_on_cuda(terms)
        assert_on_cuda(distance(real, real))
    assert cuda.waits == []


# ---- training's other steps ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adam", "muon"])
def test_optimizer_step(name):
    """Clipping, the update that a non-finite gradient skips, and the average."""
    model = torch.nn.Linear(4, 4)
    with FakeCuda() as cuda:
        cuda.put(model)
        config = OptimizerConfig(name=name)
        optimizer = build_optimizer(config, model.parameters(), matrices=[model.weight])
        stepper = Stepper(optimizer, model.parameters(), config.max_grad_norm)
        ema = EMA(dict(model.named_parameters()), 0.999)
        for step in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            assert_on_cuda(stepper.step(1e-4))
            ema.update(step)
        assert_on_cuda(ema.average)
    assert cuda.waits == []


def test_counting_and_reviving_codes():
    """Within a window nothing waits; at its end the latents that revive codes are chosen on the host."""
    quantizer = build_quantizer(QUANTIZER_CASES["cosine"])
    code = Ids((Segment(5, quantizer.config.codebook_size),))
    with FakeCuda() as cuda:
        cuda.put(quantizer)
        optimizer = torch.optim.AdamW(quantizer.parameters(), fused=True)
        config = CodebookConfig(window=20, revive=True, continuous_steps=0)
        care = CodebookCare([quantizer], [[]], optimizer, config, 2, 0, torch.device("cuda"), code)
        ids, latents = torch.empty(2, 5, dtype=torch.int64, device="cuda"), torch.empty(2, 5, 8, device="cuda")
        out = SimpleNamespace(ids=ids, latents=latents)
        care.note(out)
        care.after_step(0)
        assert cuda.waits == []
        care.note(out)
        care.after_step(1)
    assert len(cuda.waits) <= 1


# ---- networks of metrics -------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["convolution", "activation"])
def test_inception(inception_weights, tap, bf16):
    network = Inception(inception_weights, tap)
    with FakeCuda(bf16) as cuda:
        cuda.put(network)
        features = network(torch.empty(2, 3, 64, 64, dtype=torch.uint8, device="cuda"))
        assert [tuple(part.shape) for part in features] == [(2, 2048), (2, 2023), (2, 1008)]
        assert {part.dtype for part in features} == {torch.float32}
        assert_on_cuda(features)
    assert cuda.waits == []


def test_encoder_features(bf16, root):
    encoder = vfmtok.build_tokenizer(vfmtok.load_config(root / "configs/tiny.yaml")).encoder
    with FakeCuda(bf16) as cuda:
        cuda.put(encoder)
        found = encoder_features(encoder, torch.empty(2, 3, 40, 40, dtype=torch.uint8, device="cuda"))
        assert found.dtype == torch.float32
        assert_on_cuda(found)
    assert cuda.waits == []
