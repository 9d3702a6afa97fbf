"""The loop as a whole, with every loss, discriminator and ablation."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from training_runs import finish, logged, start

from vfmtok import distributed
from vfmtok.discriminators.build import DISCRIMINATORS
from vfmtok.discriminators.patchgan import PatchGAN
from vfmtok.errors import ConfigError
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import AdversarialConfig, LossConfig
from vfmtok.training.tokenizer_passes import checkpoint_activations
from vfmtok.training.tokenizer_run import TokenizerRun
from vfmtok.weights import checkpoint


def test_what_a_run_leaves(tiny_recipe, train):
    folder = train(
        tiny_recipe(
            "optimizer.steps=10", "run.save_every=2", "run.validate_every=4", "run.validation_images=9",
            "run.tensorboard=true", "run.keep=2",
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    step = next(line for line in lines if "loss/total" in line)
    terms = {"pixel", "perceptual", "feature", "vq", "commit", "entropy"}
    assert sum(step[f"loss/{name}"] for name in terms) == pytest.approx(step["loss/total"], rel=1e-5)
    assert step.keys() >= {"lr", "images_per_second", "data_wait", "memory_gib", "grad_norm/model", "skipped_steps"}
    validations = [line for line in lines if "validation/psnr" in line]
    assert [line["step"] for line in validations] == [4, 8, 10]
    assert validations[0].keys() >= {"validation/ema_psnr", "validation/perceptual"}
    picture = Image.open(folder / "pictures/reconstruction_0000010.png")
    assert picture.size[0] >= 3 * 128 and len(picture.getcolors(1 << 24)) > 50
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "recipe.yaml").exists()
    kept = checkpoint.CheckpointFolder(folder / "checkpoints", best="psnr")
    scores = {step: checkpoint.load(kept.path(step)).numbers["metrics"].get("psnr") for step in kept.steps()}
    assert set(kept.steps()) >= {8, 10} and len(kept.steps()) <= 3 and kept.best_step() in scores


def save(folder: checkpoint.CheckpointFolder, step: int, metrics: dict[str, float]) -> None:
    folder.save(checkpoint.Checkpoint(step, {"model": {"w": torch.ones(1)}}, {"metrics": metrics}))


def test_the_best_checkpoint_stays(tmp_path):
    folder = checkpoint.CheckpointFolder(tmp_path, keep=2, best="psnr")
    for step, psnr in enumerate([10.0, 15.0, 12.0, 13.0, 11.0], start=1):
        save(folder, step, {"psnr": psnr, "step": step})
    assert folder.steps() == [2, 4, 5] and folder.best_step() == 2


def test_the_best_checkpoint_is_the_one_that_was_measured(tmp_path):
    """Checkpoints until the next validation carry its metrics, but later weights."""
    folder = checkpoint.CheckpointFolder(tmp_path, keep=1, best="psnr")
    for step, measured in enumerate([1, 2, 2, 2, 5], start=1):
        save(folder, step, {"psnr": {1: 10.0, 2: 15.0, 5: 11.0}[measured], "step": measured})
    assert folder.steps() == [2, 5] and folder.best_step() == 2
    shutil.rmtree(folder.path(2))  # gone by hand: 3 is then not the best in its place
    save(folder, 6, {"psnr": 15.0, "step": 2})
    assert folder.steps() == [5, 6] and folder.best_step() == 5


def test_the_best_of_a_run_with_a_discriminator_has_seen_it(tiny_recipe, train):
    """PSNR is highest before; what is kept is the best perceptual distance of the validations after the start."""
    settings = ("adversarial.discriminator=patchgan", "adversarial.start=4", "adversarial.weight=5", "run.keep=1")
    folder = train(tiny_recipe(*settings, "run.validate_every=2", "run.save_every=2", "optimizer.steps=10"))
    distances = logged(folder, "validation/ema_perceptual")
    best = min((step for step in distances if step > 4), key=lambda step: distances[step])
    kept = checkpoint.CheckpointFolder(folder / "checkpoints", best="quality")
    assert kept.best_step() == best and set(kept.steps()) == {best, 10}


@pytest.mark.parametrize("psnr", [math.nan, math.inf])
def test_what_is_not_finite_is_not_the_best(tmp_path, psnr):
    """NaN compares with nothing: it would stay for good."""
    folder = checkpoint.CheckpointFolder(tmp_path, keep=1, best="psnr")
    for step, value in enumerate([psnr, 10.0, 9.0], start=1):
        save(folder, step, {"psnr": value, "step": step})
    assert folder.steps() == [2, 3] and folder.best_step() == 2


def test_psnr_of_validation_is_what_the_tokenizer_gives(tiny_recipe, train):
    """Reloaded from its checkpoint, the tokenizer reconstructs the held-out images as well as the log says."""
    from skimage.metrics import peak_signal_noise_ratio

    from vfmtok.data.dataset_folder import open_splits
    from vfmtok.data.transforms import EvaluationCrop
    from vfmtok.pretrained.loading import load_tokenizer

    recipe = tiny_recipe("run.validation_images=3")
    folder = train(recipe)
    tokenizer = load_tokenizer(folder)
    records = open_splits(Path(recipe.data.path))["val"]
    values = []
    for index in (0, round((len(records) - 1) / 2), len(records) - 1):
        image = EvaluationCrop(32)(records[index].image)
        ids = tokenizer.encode(image[None] / 127.5 - 1).ids
        pixels = tokenizer.decode_to_uint8(ids, size=32)[0].numpy()
        values.append(peak_signal_noise_ratio(image.permute(1, 2, 0).numpy(), pixels, data_range=255))
    assert logged(folder, "validation/ema_psnr")[12] == pytest.approx(sum(values) / 3, abs=0.05)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "patchgan" else pytest.mark.slow) for kind in DISCRIMINATORS]
)
def test_discriminators_take_part_when_they_should(tiny_recipe, train, kind):
    folder = train(
        tiny_recipe(
            f"adversarial.discriminator={kind}", "adversarial.weights=none", "adversarial.start=4",
            "adversarial.update_start=2", "run.save_every=1", "run.keep=9", "optimizer.steps=6",
            "adversarial.lecam_weight=0.01", "adversarial.adaptive_weight=true",
            "tokenizer.image_size=64",
        )
    )  # fmt: skip
    weights = [checkpoint.load(folder / f"checkpoints/step_{step:07d}").parts["discriminator"] for step in range(1, 7)]
    trained = [name for name in weights[0] if name.endswith("weight")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in trained)
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in trained)
    assert set(logged(folder, "loss/discriminator")) == {3, 4, 5, 6}
    assert set(logged(folder, "loss/adversarial")) == {5, 6}
    assert not any("backbone" in name for name in weights[0])


def test_a_discriminator_that_the_run_never_reaches_is_told(tiny_recipe, train, capfd):
    train(tiny_recipe("adversarial.discriminator=patchgan", "optimizer.steps=2"))
    told = capfd.readouterr()
    assert "no patchgan discriminator: it would learn from step 20000, the run has 2" in told.out + told.err


def test_the_discriminator_costs_nothing_before_its_start(tiny_recipe, train, monkeypatch):
    calls = []
    honest = PatchGAN.forward
    monkeypatch.setattr(PatchGAN, "forward", lambda self, images: calls.append(1) or honest(self, images))
    settings = ("adversarial.discriminator=patchgan", "adversarial.start=3", "optimizer.steps=5")
    train(tiny_recipe(*settings))
    assert len(calls) == 2 * 3  # two steps: judging, then real and fake


def test_the_discriminator_gets_no_gradient_from_the_tokenizers_step(tiny_tokenizer):
    tokenizer, judge = tiny_tokenizer().train(), PatchGAN(32)
    adversarial = AdversarialConfig(discriminator="patchgan")
    objective = TokenizerObjective(LossConfig(perceptual="none"), adversarial, tokenizer, None, judge)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    terms = objective(images, out, with_discriminator=True)
    (gradient,) = torch.autograd.grad(terms["adversarial"], out.reconstruction, retain_graph=True)
    assert gradient.abs().sum() > 0
    sum(terms.values()).backward()
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


ABLATIONS = (
    "tokenizer.sampler.attention=windowed",
    "tokenizer.decoder.shared=false",
    "tokenizer.decoder.mask_tokens=shared",
    "tokenizer.decoder.register_position=front",
    "tokenizer.decoder.registers=0",
    "tokenizer.decoder.reconstruct_features=false",
    "tokenizer.encoder.levels=[6]",
    "tokenizer.encoder.frozen=false loss.perceptual=none",
    "tokenizer.quantizer.entropy_weight=0.1",
    "tokenizer.initial_positions=sincos",
    "tokenizer.quantizer.kind=fsq tokenizer.quantizer.levels=[4,4,4] tokenizer.quantizer.code_dim=3 codebook.window=64",
    "tokenizer.encoder.name=test_efficientnet tokenizer.encoder.levels=[2,3,4]",
    "loss.pixel=l1 optimizer.name=adam ema.enabled=false data.crop=center data.flip=false",
    "run.precision=bf16 run.checkpoint_activations=true",
    "codebook.continuous_steps=1 codebook.kmeans=true codebook.revive=true codebook.window=64",
)


@pytest.mark.slow
def test_every_ablation_trains_in_two_processes(recipe_file):
    """DDP fails if a parameter gets no gradient: every one of them takes part in every variant."""
    settings = ("optimizer.steps=2", "run.validate_every=2", "adversarial.discriminator=none")
    file = recipe_file(*settings)
    program = file.with_name("program.py")
    program.write_text(
        "import sys\nfrom vfmtok import distributed\nfrom vfmtok.config import load_config\n"
        "from vfmtok.training.recipe import TokenizerRecipe\n"
        "from vfmtok.training.train_tokenizer import train_tokenizer\n"
        f"with distributed.program('ablations') as world:\n    for n, change in enumerate({ABLATIONS!r}):\n"
        "        changes = [*change.split(), f'run.results_dir={sys.argv[2]}/{n}']\n"
        "        train_tokenizer(load_config(sys.argv[2] + '.yaml', changes, kind=TokenizerRecipe), world)\n"
    )
    finish(start(file.with_suffix(""), processes=2, script=str(program)))
    for number, ablation in enumerate(ABLATIONS):
        losses = logged(file.with_suffix("") / str(number))
        assert len(losses) == 2 and all(0 < loss < 20 for loss in losses.values()), ablation


def test_recomputed_activations_change_nothing(tiny_tokenizer):
    from vfmtok.decoders.vqgan import ResBlock
    from vfmtok.layers.region_sampler import SamplerLayer
    from vfmtok.tokenizers.vfmtok.vit_decoder import DecoderLayer

    gradients = []
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for recompute in (False, True):
        tokenizer = tiny_tokenizer("decoder.attention_dropout=0.1").train()
        if recompute:
            assert checkpoint_activations(tokenizer, (ResBlock, SamplerLayer, DecoderLayer)) == 9
        torch.manual_seed(1)  # of the dropout
        out = tokenizer(images)
        (out.reconstruction.square().mean() + out.feature_reconstruction.square().mean()).backward()
        gradients.append({name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.slow
def test_compiled_training_is_the_same(tiny_recipe, train):
    plain = logged(train(tiny_recipe("optimizer.steps=4", name="plain")))
    compiled = logged(train(tiny_recipe("optimizer.steps=4", "run.compile=true", name="compiled")))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_wandb_that_is_not_installed(tiny_recipe, train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python looks at first: importing it fails
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(tiny_recipe("run.wandb=project"))


def test_wandb_that_cannot_begin(tiny_recipe, train, monkeypatch, capsys):
    """Without a key or a network the run goes on, as it would without TensorBoard."""

    def init(**_):
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb login")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    folder = train(tiny_recipe("run.wandb=project", "optimizer.steps=1"))
    told = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert told == ["wandb can't be used (api_key not configured (no-tty)): the run continues without it"]
    assert logged(folder)[1] > 0


def test_global_batches_that_do_not_divide(tiny_recipe):
    with pytest.raises(ConfigError, match="not divisible by 3 processes"):
        TokenizerRun(tiny_recipe(), distributed.World(0, 3, torch.device("cpu")))
