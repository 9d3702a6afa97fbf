"""Losses of continuous tokenizers as rows of the objective, two discriminators, transformations, bounds of losses."""

import json
from functools import partial

import golden_rule
import pytest
import ranks
import safetensors.torch
import torch
import torch.nn.functional as F
from tiny_vae import FAMILIES, TinyVAE, TinyVAEConfig  # noqa: F401 (for the fixture families_of_this_file)
from training_runs import logged

import vfmtok
from vfmtok import cli, distributed
from vfmtok.config import config_from_dict, load_config
from vfmtok.discriminators.build import build_discriminator
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.equivariance import Transformation
from vfmtok.training.adversaries import Adversary, DiscriminatorPass
from vfmtok.training.equivariance import check_transformations, drawn_transformation
from vfmtok.training.health import LossBounds
from vfmtok.training.loss_recipe import AdversarialConfig, EquivarianceConfig, LossConfig
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import EMAConfig, TokenizerRecipe
from vfmtok.training.train_tokenizer import train_tokenizer

ROWS = [
    {"name": "pixel-l1", "weight": 0.5},
    {"name": "ssim"},
    {"name": "multi-resolution-16", "weight": 0.1, "last_image": 7},
    {"name": "kl", "weight": 1e-3},
]


def losses(**fields) -> LossConfig:
    return config_from_dict({"loss": fields}, TokenizerRecipe).loss


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return TinyVAE(TinyVAEConfig())


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def objective(tokenizer, loss, discriminator=None, adversarial=None, second=None):
    return TokenizerObjective(loss, adversarial or AdversarialConfig(), tokenizer, None, discriminator, second=second)


# ---- rows ----------------------------------------------------------------------------------


def test_rows_of_a_continuous_tokenizer(tokenizer, images):
    out = tokenizer(images)
    rows = objective(tokenizer, losses(terms=ROWS, alignment={"weight": 3.0}))
    values = rows(images, out, step=0, images_seen=7)
    assert list(values) == ["pixel", "pixel-l1", "ssim", "multi-resolution-16", "kl", "alignment"]
    assert "multi-resolution-16" not in rows(images, out, step=0, images_seen=8)

    mean, logvar = out.posterior.mean.double(), out.posterior.logvar.double()
    normal = torch.distributions.Normal(0.0, 1.0)
    own = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(own, normal).sum() / len(images)
    assert values["kl"].item() == pytest.approx(1e-3 * kl.item(), rel=1e-5)
    shrunk = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    assert values["multi-resolution-16"].item() == pytest.approx(
        0.1 * (out.pyramid[16] - shrunk).abs().mean().item(), rel=1e-5
    )

    compared = sum(values[name] for name in ("pixel", "pixel-l1", "ssim", "multi-resolution-16"))
    plain = objective(tokenizer, losses(terms=ROWS, alignment={"weight": 1.0, "adaptive": False}))(images, out)
    slopes = [
        torch.autograd.grad(loss, tokenizer.latent_layer, retain_graph=True)[0].norm()
        for loss in (compared, plain["alignment"])
    ]
    wanted = 3.0 * slopes[0] / (slopes[1] + 1e-4) * plain["alignment"]
    torch.testing.assert_close(
        values["alignment"], wanted
    )  # neither KL nor the discriminator takes part in the balance


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": [{"name": "kl"}]}, "'kl' compares posterior, which a vfmtok tokenizer"),
        ({"terms": [{"name": "multi-resolution-8"}]}, "'multi-resolution-8' compares pyramid"),
        ({"alignment": {"weight": 1.0}}, "loss.alignment: a vfmtok tokenizer has no latents to align"),
        ({"alignment": {"weight": 1.0, "adaptive": False}}, "'alignment' compares projected_latents and alignment_f"),
    ],
)
def test_losses_without_their_input_are_refused_before_the_first_step(tiny_recipe, train, fields, message):
    settings = [f"loss.{name}={json.dumps(value)}" for name, value in fields.items()]
    with pytest.raises(vfmtok.ConfigError, match=message):
        train(tiny_recipe(*settings))


def test_inputs_follow_the_configuration():
    tokenizer = TinyVAE(TinyVAEConfig(projects=False))
    objective(tokenizer, losses(terms=[{"name": "kl"}]))
    with pytest.raises(vfmtok.ConfigError, match="'alignment' compares projected_latents"):
        objective(tokenizer, losses(alignment={"weight": 1.0}))
    with pytest.raises(vfmtok.ConfigError, match=r"the tokenizer makes images of \(16,\) px"):
        objective(tokenizer, losses(terms=[{"name": "multi-resolution-8"}]))
    tokenizer = TinyVAE(TinyVAEConfig())
    tokenizer.to_moments.requires_grad_(False)
    with pytest.raises(vfmtok.ConfigError, match="not among the parts to train"):
        objective(tokenizer, losses(alignment={"weight": 1.0}))


def test_ddp_hears_of_parts_whose_loss_is_left_out(tokenizer):
    """The layers that make smaller images and project latents have a gradient from their losses alone."""
    everything = [{"name": "kl"}, {"name": "multi-resolution-16"}]
    assert not objective(tokenizer, losses(terms=everything, alignment={"weight": 1.0})).may_leave_parts_out
    assert objective(tokenizer, losses(terms=everything)).may_leave_parts_out
    assert objective(tokenizer, losses(terms=everything[:1], alignment={"weight": 1.0})).may_leave_parts_out


# ---- discriminators ------------------------------------------------------------------------


def test_two_discriminators_and_feature_matching(tokenizer, images):
    torch.manual_seed(1)
    first = build_discriminator("patchgan", 32).eval()
    config = AdversarialConfig(
        "multiscale-patchgan", generator_loss="least-squares", weight=2.0, feature_matching_weight=10.0, start=0
    )
    second = Adversary("second_", config, build_discriminator("multiscale-patchgan", 32))
    out = tokenizer(images)
    rows = objective(tokenizer, losses(), first, AdversarialConfig("patchgan", generator_loss="hinge"), second)
    values = rows(images, out)
    assert list(values) == ["pixel", "adversarial", "second_adversarial", "second_feature_matching"]
    with torch.no_grad():
        assert values["adversarial"].item() == pytest.approx(-0.5 * first(out.reconstruction).mean().item(), rel=1e-5)
        real, fake = (second.discriminator.read(x) for x in (images, out.reconstruction))
    wanted = 2 * sum(((scale.logits - 1) ** 2).mean().item() for scale in fake) / 3
    assert values["second_adversarial"].item() == pytest.approx(wanted, rel=1e-5)
    matched = sum(
        (a - b).abs().mean().item() for r, f in zip(real, fake, strict=True)
        for a, b in zip(r.features, f.features, strict=True)
    )  # fmt: skip
    assert values["second_feature_matching"].item() == pytest.approx(10 * matched / 3, rel=1e-5)
    sum(values.values()).backward()
    assert all(p.grad is None for p in [*first.parameters(), *second.discriminator.parameters()])
    with pytest.raises(vfmtok.ConfigError, match="needs a discriminator whose hidden maps are read"):
        objective(tokenizer, losses(), first, AdversarialConfig("patchgan", feature_matching_weight=1.0))


def test_augmentation_is_a_matter_of_the_sample(tokenizer, images):
    """The logits of an image do not depend on the batch it is in; real and fake images draw apart, as do seeds."""
    adversary = Adversary("", AdversarialConfig("patchgan", augment=True), build_discriminator("patchgan", 32).eval())
    both = DiscriminatorPass(adversary)
    samples = torch.arange(100, 104)
    with torch.no_grad():
        whole = both(images, images, Draws(7, samples))
        parts = [both(images[rows], images[rows], Draws(7, samples[rows])) for rows in (slice(0, 1), slice(1, 4))]
        other = both(images, images, Draws(8, samples))
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([part[side] for part in parts]), whole[side])
        assert (other[side] != whole[side]).any()
    assert (whole[0] != whole[1]).any()


# ---- transformations -----------------------------------------------------------------------


def test_transformations_are_drawn_as_published():
    config = EquivarianceConfig(enabled=True)
    drawn = [drawn_transformation(config, 5, step) for step in range(2000)]
    assert drawn[:50] == [drawn_transformation(config, 5, step) for step in range(50)]
    assert drawn[:50] != [drawn_transformation(config, 6, step) for step in range(50)]
    assert drawn_transformation(EquivarianceConfig(), 5, 0) is None
    counts = {found: drawn.count(found) / len(drawn) for found in set(drawn)}
    wanted = {Transformation(latent_scale=s, quarter_turns=k): 1 / 32 for s in (0.25, 0.5, 0.75, 1.0) for k in range(4)}
    wanted |= {Transformation(prior_scale=s): 1 / 24 for s in (0.25, 0.5, 0.75)}
    wanted[Transformation()] += 3 / 8
    assert counts.keys() == wanted.keys()
    assert all(abs(counts[found] - share) < 0.03 for found, share in wanted.items())


def test_transformations_that_cannot_be_are_refused(tokenizer, tiny_recipe, train):
    enabled = EquivarianceConfig(enabled=True)
    check_transformations(enabled, tokenizer)
    with pytest.raises(vfmtok.ConfigError, match=r"images of 3\.2 px are no whole patches"):
        check_transformations(EquivarianceConfig(enabled=True, prior_scales=(0.1,)), tokenizer)
    with pytest.raises(vfmtok.ConfigError, match="perceptual_encoder"):
        tiny_recipe("equivariance.enabled=true")
    with pytest.raises(vfmtok.ConfigError, match="a vfmtok tokenizer can't decode transformed latents"):
        train(tiny_recipe("equivariance.enabled=true", "loss.perceptual=none"))


# ---- runs ----------------------------------------------------------------------------------


@pytest.fixture
def vae_recipe(sample_set, tmp_path):
    """Everything at once: transformations, all rows, two discriminators, an average by images."""
    gan = {"start": 1, "update_start": 0, "loss": "hinge-sum", "generator_loss": "hinge", "augment": True}
    second = {"discriminator": "multiscale-patchgan", "start": 0, "loss": "least-squares",
              "generator_loss": "least-squares", "weight": 0.01, "feature_matching_weight": 1.0}  # fmt: skip
    tree = {
        "tokenizer": {"kind": "tiny_vae"},
        "data": {"path": str(sample_set), "num_workers": 0},
        "loss": {"perceptual": "none", "terms": ROWS, "alignment": {"weight": 0.5}, "jump_factor": 10.0},
        "adversarial": {"discriminator": "patchgan", "weight": 0.1, **gan},
        "second_adversarial": second,
        "equivariance": {"enabled": True, "latent_scales": [0.75, 1.0], "prior_scales": [0.75]},
        "optimizer": {"name": "adam", "lr": 1e-3, "steps": 6, "warmup_steps": 0, "weight_decay": 0.0},
        "ema": {"half_life_images": 100, "ramp": 0.5},
        "run": {"global_batch": 4, "precision": "none", "log_every": 1, "save_every": 3, "validate_every": 100,
                "validation_images": 4, "tensorboard": False},
    }  # fmt: skip

    def build(name: str, *overrides: str) -> TokenizerRecipe:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(tree))
        return load_config(file, [f"run.results_dir={tmp_path / name}", *overrides], kind=TokenizerRecipe)

    return build


def parts(folder, step: int) -> dict[str, torch.Tensor]:
    files = sorted((folder / f"checkpoints/step_{step:07d}").glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in safetensors.torch.load_file(file).items()}


def test_a_run_with_everything_resumes_bit_for_bit(vae_recipe, train):
    lighter = ("second_adversarial.discriminator=patchgan", "second_adversarial.feature_matching_weight=0")
    whole = train(vae_recipe("whole", *lighter))
    train(vae_recipe("cut", *lighter, "optimizer.steps=3"))
    cut = train(vae_recipe("cut", *lighter))
    first, second = parts(whole, 6), parts(cut, 6)
    assert {name.split("/")[0] for name in first} >= {"model", "ema", "discriminator", "second_discriminator"}
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for name in ("kl", "ssim", "alignment", "adversarial", "second_adversarial"):
        assert len(logged(whole, f"loss/{name}")) >= 5
    assert set(logged(whole, "loss/multi-resolution-16")) == {1, 2}  # of the first eight images


def trained(recipe: TokenizerRecipe, rank: int) -> None:
    train_tokenizer(recipe, distributed.World(rank, 2, torch.device("cpu")))


@pytest.mark.slow
def test_a_run_with_everything_in_two_processes(vae_recipe, train):
    """The posterior's noise, augmentations and transformations are those of one process. Multi-scale PatchGAN's groups
    of samples are a process's own, so it is left out; of PatchGAN Adam's first steps are compared, in which gradients
    near zero have not yet moved weights by whole rates in either direction."""
    settings = ("second_adversarial=null", "optimizer.steps=3")
    one = train(vae_recipe("one", *settings))
    two = vae_recipe("two", *settings)
    ranks.run(partial(trained, two), one.parent)
    for name in ("total", "pixel", "ssim", "kl", "alignment"):
        assert logged(one.parent / "two", f"loss/{name}") == pytest.approx(logged(one, f"loss/{name}"), rel=2e-5)
    found, wanted = (logged(folder, "loss/discriminator") for folder in (one.parent / "two", one))
    assert [found[step] for step in (1, 2)] == pytest.approx([wanted[step] for step in (1, 2)], rel=1e-4)


# ---- the average ---------------------------------------------------------------------------


def test_average_by_images():
    config = EMAConfig(half_life_images=160_000, ramp=0.05)
    golden = golden_rule.load("vfmvae/pieces.npz")
    found = [config.decay_by_images(int(seen), 512) for seen in golden["ema_nimg"]]
    assert found == pytest.approx(golden["ema_decay"].tolist(), rel=1e-6)
    assert config.decay_by_images(0, 512) == 0
    assert EMAConfig().decay_by_images(512, 512) is None
    assert EMAConfig(half_life_images=1000).decay_by_images(0, 500) == pytest.approx(2**-0.5)


# ---- bounds --------------------------------------------------------------------------------


def accepted(bounds: LossBounds, value: float, seen: int = 0) -> bool:
    bounds.note({"pixel": torch.tensor(value), "total": torch.tensor(torch.nan)})
    return bool(bounds.accept(seen))


def test_bounds_of_losses():
    bounds = LossBounds(("pixel", "ssim"), torch.device("cpu"), factor=10.0, first_image=4)
    assert accepted(bounds, 1.0) and accepted(bounds, 20.0, seen=3)  # the factor does not count yet
    assert accepted(bounds, 199.0, seen=4)
    assert not accepted(bounds, 1991.0, seen=4)
    assert not accepted(bounds, 2000.0, seen=4)  # compared with what was accepted, not with what came last
    assert accepted(bounds, 1989.0, seen=4)
    assert not accepted(bounds, float("nan"))  # at any time
    copy = LossBounds(("pixel", "ssim"), torch.device("cpu"), factor=10.0, first_image=4)
    copy.load_state_dict(json.loads(json.dumps(bounds.state_dict())))
    assert not accepted(copy, 19891.0, seen=4) and accepted(copy, 1e-8, seen=4)
    assert accepted(copy, 1.0, seen=4)  # below 1e-6 there is nothing to compare with
    assert bool(bounds.accept(4))  # of no loss
    most = LossBounds(("pixel",), torch.device("cpu"), most=2.0)
    most.note({"pixel": torch.tensor(1.0)})
    most.note({"pixel": torch.tensor(3.0)})
    assert bool(most.accept(0)) and not accepted(most, 2.1)  # the mean of a step's passes


def test_a_run_gives_up_on_losses_that_stay_too_large(vae_recipe, train):
    """No step is like the best of those before it, at a rate of zero: ten in a row end the run."""
    settings = ("optimizer.lr=0", "optimizer.steps=60", "loss.jump_factor=1.000001", "loss.jump_from_image=0")
    settings += ("adversarial.discriminator=none", "second_adversarial=null")
    with pytest.raises(vfmtok.VFMTokError, match="the model's gradient was not finite or its losses out of bounds"):
        train(vae_recipe("jumps", *settings))


def test_a_discriminator_whose_loss_is_too_large_does_not_learn(vae_recipe, train):
    folder = train(vae_recipe("bounded", "adversarial.max_loss=0.01", "optimizer.steps=3"))
    assert len(logged(folder, "loss/second_feature_matching")) == 3
    learned = parts(folder, 3)
    assert not [name for name in learned if name.startswith("discriminator_optimizer/exp_avg/")] or all(
        not learned[name].any() for name in learned if name.startswith("discriminator_optimizer/exp_avg/")
    )
    assert any(learned[name].any() for name in learned if name.startswith("second_discriminator_optimizer/exp_avg/"))
    assert logged(folder, "skipped_steps")[3] == 3


def test_both_discriminators_are_exported(tiny_recipe, train, tmp_path):
    """Under the names that they were published with, their tensors those of the checkpoint."""
    second = {"discriminator": "multiscale-patchgan", "start": 0, "loss": "least-squares"}
    folder = train(
        tiny_recipe(
            "adversarial.discriminator=patchgan", "adversarial.start=0", f"second_adversarial={json.dumps(second)}",
            "optimizer.steps=1",
        )
    )  # fmt: skip
    assert cli.main(["export", str(folder), str(tmp_path / "full.pt"), "--kind", "full"]) == 0
    content = torch.load(tmp_path / "full.pt", weights_only=True)
    saved = parts(folder, 1)
    for part, theirs, ours in (
        ("discriminator", "main.0.weight", "layers.0.weight"),
        ("second_discriminator", "patchgan_discriminator.scale2_layer1.0.weight", "scales.2.1.conv.weight"),
    ):
        assert torch.equal(content[part][theirs], saved[f"{part}/{ours}"])
