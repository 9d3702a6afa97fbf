"""Stages: weights of another run to start from, parts that train; losses as rows; a stop within a validation."""

import json
import os
import signal
from functools import partial

import pytest
import ranks
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from training_runs import logged

import vfmtok
from vfmtok import distributed
from vfmtok.config import config_from_dict, config_to_dict
from vfmtok.tokenizers import build_tokenizer
from vfmtok.training import validation
from vfmtok.training.loss_recipe import AdversarialConfig, LossConfig, TermConfig
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.train_tokenizer import train_tokenizer
from vfmtok.weights.name_maps import own_tensors


def saved(folder, step: int, part: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"checkpoints/step_{step:07d}/{part}.safetensors")


@pytest.fixture
def stages(tiny_recipe, train):
    """Four steps of everything; then four of the pixel decoder alone, from those weights."""
    first = train(tiny_recipe("optimizer.steps=4", "ema.enabled=false", name="first"))
    settings = ("optimizer.steps=4", "ema.enabled=false", f"run.start_from={first}", "train=[pixel_decoder]")
    return first, train(tiny_recipe(*settings, name="second"))


def test_a_stage_trains_its_parts_and_keeps_the_others(stages):
    first, second = (saved(folder, 4, "model") for folder in stages)
    assert first.keys() == second.keys()  # a part that is not trained is in the checkpoint
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    parameters = {name for name in first if name.startswith("pixel_decoder.")}
    assert changed and changed <= parameters
    assert len(changed) > 0.8 * len(parameters)


def test_only_what_trains_has_moments(stages):
    moments = saved(stages[1], 4, "model_optimizer")
    assert moments and all("pixel_decoder." in name for name in moments)
    assert any("sampler." in name for name in saved(stages[0], 4, "model_optimizer"))


def test_a_stage_resumes_bit_for_bit(tiny_recipe, train):
    first = train(tiny_recipe("optimizer.steps=4", name="first"))
    settings = (f"run.start_from={first}", "train=[pixel_decoder,decoder]", "tokenizer.decoder.attention_dropout=0")
    whole = train(tiny_recipe("optimizer.steps=8", *settings, name="whole"))
    train(tiny_recipe("optimizer.steps=4", *settings, name="cut"))
    cut = train(tiny_recipe("optimizer.steps=8", *settings, name="cut"))
    assert_same(saved(whole, 8, "model"), saved(cut, 8, "model"))
    assert_same(saved(whole, 8, "ema"), saved(cut, 8, "ema"))


def assert_same(first, second):
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("part", "message"), [("pixel_decodr", "pixel_decoder"), ("encoder", "nothing to train")])
def test_parts_that_cannot_train_are_named(tiny_recipe, train, part, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        train(tiny_recipe(f"train=[{part}]"))


def test_rows_of_the_objective(root):
    """A row has a weight and the steps or images within which it takes part; a further one needs no other change."""
    loss = config_from_dict(
        {"loss": {"terms": [
            {"name": "pixel-l1", "weight": 0.5, "first_step": 2, "last_step": 3},
            {"name": "feature", "weight": 3.0},
            {"name": "codebook", "first_image": 10},
        ]}},
        TokenizerRecipe,
    ).loss  # fmt: skip
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vfmtok.load_config(root / "configs/tiny.yaml"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    rows = TokenizerObjective(loss, AdversarialConfig(), tokenizer, None, None)
    plain = TokenizerObjective(LossConfig(), AdversarialConfig(), tokenizer, None, None)(images, out)
    names = {
        (step, seen): set(rows(images, out, step=step, images_seen=seen))
        for step in (1, 2, 3, 4) for seen in (9, 10)
    }  # fmt: skip
    assert {key for key, found in names.items() if "pixel-l1" in found} == {(s, n) for s in (2, 3) for n in (9, 10)}
    assert {key for key, found in names.items() if "vq" in found} == {(s, 10) for s in (1, 2, 3, 4)}
    values = rows(images, out, step=2, images_seen=10)
    expected = 0.5 * (out.reconstruction - images).abs().mean()
    torch.testing.assert_close(values["pixel-l1"], expected)
    torch.testing.assert_close(values["feature"], 3 * plain["feature"])
    assert torch.equal(values["pixel"], plain["pixel"])
    with pytest.raises(vfmtok.ConfigError, match="closest match: 'pixel-l1'"):
        changed = config_from_dict({"loss": {"terms": [{"name": "pixel-l1x"}]}}, TokenizerRecipe).loss
        TokenizerObjective(changed, AdversarialConfig(), tokenizer, None, None)


def test_a_stage_begins_with_the_discriminator_of_the_one_before(tiny_recipe, train, capsys):
    settings = ("adversarial.discriminator=patchgan", "adversarial.start=2", "adversarial.update_start=0")
    first = train(tiny_recipe(*settings, "optimizer.steps=4", "adversarial.lecam_weight=0.1", name="first"))
    still = ("optimizer.lr=0", "optimizer.warmup_lr=0", "optimizer.steps=1", f"run.start_from={first}")
    begun = train(tiny_recipe(*settings, *still, f"adversarial.start_from={first}", name="second"))
    before, after = saved(first, 4, "discriminator"), saved(begun, 1, "discriminator")
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert learned and all(torch.equal(before[name], after[name]) for name in learned)
    assert "discriminator of" in capsys.readouterr().out
    train(tiny_recipe(*settings, *still, "adversarial.start_from=gone", name="second"))  # it has its own by now
    for wrong, message in (
        (f"{first}/nothing", "holds no discriminator"),
        (first, "another model|fit|unexpected|missing"),
    ):
        kind = "adversarial.discriminator=stylegan"
        with pytest.raises(vfmtok.WeightsError, match=message):
            train(tiny_recipe(*settings, *still, kind, f"adversarial.start_from={wrong}", name="third"))


LIMITED = [
    {"name": "feature", "first_step": 2},
    {"name": "codebook", "last_step": 1},
    {"name": "adversarial", "weight": 0.3},  # there is none
    {"name": "perceptual", "first_step": 1, "last_step": 2},
]


def trained_by_two(file: str, rank: int) -> None:
    train_tokenizer(vfmtok.load_config(file, kind=TokenizerRecipe), distributed.World(rank, 2, torch.device("cpu")))


@pytest.mark.slow
def test_losses_of_some_steps_train_alike_in_two_processes(recipe_file, train, tmp_path):
    """Parts without a gradient in a step (here the codebook, and the feature branch) stay as they are in both."""
    settings = (f"loss.terms={json.dumps(LIMITED)}", "optimizer.steps=4", "run.validate_every=4")
    one = train(vfmtok.load_config(recipe_file(*settings, name="one"), kind=TokenizerRecipe))
    ranks.run(partial(trained_by_two, str(recipe_file(*settings, name="two"))), tmp_path)
    assert set(logged(one, "loss/feature")) == {3, 4} and set(logged(one, "loss/vq")) == {1, 2}
    for name in ("loss/total", "loss/feature", "loss/perceptual", "grad_norm/model"):
        assert logged(tmp_path / "two", name) == pytest.approx(logged(one, name), rel=1e-4)
    first, second = (saved(tmp_path / name, 4, "model_optimizer") for name in ("one", "two"))
    updates = {name: float(value) for name, value in first.items() if name.startswith("step/")}
    assert updates == {name: float(second[name]) for name in updates}
    assert updates["step/quantizer.codebook"] == 2 and updates["step/pixel_decoder.conv_out.weight"] == 4


def test_the_adaptive_weight_balances_with_the_losses_there_are(root):
    """Without the pixel loss it is |d other| / |d adversarial|; without any that compares images, one line."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vfmtok.load_config(root / "configs/tiny.yaml"))
    discriminator = nn.Conv2d(3, 1, 4, stride=4)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    adversarial = AdversarialConfig(adaptive_weight=True, weight=2.0, start=0)
    terms = (TermConfig("pixel", first_step=1), TermConfig("pixel-l1", weight=3.0, last_step=0))
    objective = TokenizerObjective(LossConfig(terms=terms), adversarial, tokenizer, None, discriminator)
    values = objective(images, out, step=0)

    def slope(loss):
        return torch.autograd.grad(loss, tokenizer.last_layer, retain_graph=True)[0].norm()

    judged = F.softplus(-discriminator(out.reconstruction)).mean()
    ratio = slope(3 * (out.reconstruction - images).abs().mean()) / (slope(judged) + 1e-4)
    torch.testing.assert_close(values["adversarial"], 2 * ratio * judged)
    with pytest.raises(vfmtok.VFMTokError, match="adaptive_weight"):
        bare = TokenizerObjective(LossConfig(terms=terms[:1]), adversarial, tokenizer, None, discriminator)
        bare(images, out, step=0)


def test_a_step_without_a_loss_for_what_trains_is_one_line(tiny_recipe, train):
    rows = [{"name": name, "last_step": 1} for name in ("pixel", "perceptual")]
    with pytest.raises(vfmtok.VFMTokError, match="step 2 has no loss for what trains"):
        train(tiny_recipe(f"loss.terms={json.dumps(rows)}", "train=[pixel_decoder]"))


def test_the_adversarial_loss_begins_with_its_section():
    with pytest.raises(vfmtok.ConfigError, match=r"adversarial\.start"):
        LossConfig(terms=(TermConfig("adversarial", first_step=5),))


def test_a_stop_ends_a_validation_which_is_made_up(tiny_recipe, train, monkeypatch):
    """SIGTERM comes while held-out images are measured: the run ends before the next batch, saved and unmeasured."""
    settings = ("run.validate_every=4", "run.save_every=100", "optimizer.steps=8", "run.validation_images=8")
    measured, measure = [], validation.HeldOut.measure

    def interrupted(self, *arguments, **options):
        measured.append(len(measured))
        if len(measured) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, *arguments, **options)

    monkeypatch.setattr(validation.HeldOut, "measure", interrupted)
    folder = train(tiny_recipe(*settings))
    lines = (folder / "log.jsonl").read_text()
    assert "validation/psnr" not in lines and not (folder / "finished").exists()
    assert (folder / "checkpoints/step_0000004").is_dir()
    train(tiny_recipe(*settings))
    lines = (folder / "log.jsonl").read_text()
    assert lines.count("validation/psnr") == 2 and (folder / "finished").exists()


def test_the_recipe_of_a_stage_is_saved(stages):
    recipe = vfmtok.load_config(stages[1] / "recipe.yaml", kind=TokenizerRecipe)
    assert recipe.train == ("pixel_decoder",) and config_to_dict(recipe)["run"]["start_from"] == str(stages[0])
    assert own_tensors(build_tokenizer(recipe.tokenizer)).keys() == saved(stages[1], 4, "model").keys()
