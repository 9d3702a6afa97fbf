"""What comes out of a run and goes into the next: tokenizers, released files, fine-tuning."""

import pytest
import torch

import vfmtok
from vfmtok import cli
from vfmtok.errors import WeightsError
from vfmtok.pretrained import loading as pretrained
from vfmtok.training.recipe import begun_at
from vfmtok.weights import checkpoint, reading
from vfmtok.weights.name_maps import load_released


@pytest.fixture
def run(tiny_recipe, train):
    return train(tiny_recipe("optimizer.steps=3", "adversarial.discriminator=patchgan", "adversarial.start=1"))


def decoded(tokenizer):
    ids = torch.arange(16)[None] % 64
    with torch.no_grad():
        return tokenizer.eval().decode_ids(ids)


def test_a_run_is_a_tokenizer(run):
    """Its average is what is loaded, from the run's folder and from the checkpoint's."""
    saved = checkpoint.load(run / "checkpoints/step_0000003")
    for path in (run, run / "checkpoints/step_0000003"):
        tokenizer = pretrained.load_tokenizer(path)
        assert torch.equal(tokenizer.to_latents.weight, saved.parts["ema"]["to_latents.weight"])
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path):
    for step in (9_999_999, 10_000_000):
        (tmp_path / f"checkpoints/step_{step:07d}").mkdir(parents=True)
    assert checkpoint.newest_checkpoint(tmp_path).name == "step_10000000"
    (tmp_path / "checkpoints/step_10000000.old").mkdir()
    assert checkpoint.newest_checkpoint(tmp_path).name == "step_10000000"
    (tmp_path / "checkpoints/step_10000000").rmdir()  # killed between making way and taking its name
    assert checkpoint.newest_checkpoint(tmp_path).name == "step_10000000.old"


def test_released_files(run, root, tmp_path):
    assert cli.main(["export", str(run), str(tmp_path / "inference.pt")]) == 0
    assert cli.main(["export", str(run), str(tmp_path / "full.pt"), "--kind", "full"]) == 0
    ours = pretrained.load_tokenizer(run)
    theirs = pretrained.load_tokenizer(tmp_path / "inference.pt", root / "configs/tiny.yaml")
    assert torch.equal(decoded(ours), decoded(theirs))
    assert reading.read(tmp_path / "inference.pt").keys() == vfmtok.to_released(ours).keys()
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    saved = checkpoint.load(run / "checkpoints/step_0000003")
    assert full.keys() == {"model", "ema", "discriminator", "steps"} and full["steps"] == 3
    for part in ("model", "ema"):
        assert torch.equal(full[part]["pre_slots_quant.weight"], saved.parts[part]["to_latents.weight"])
    from vfmtok.discriminators.patchgan import PatchGAN

    discriminator = PatchGAN(32)
    load_released(discriminator, full["discriminator"])
    assert all(torch.equal(t, saved.parts["discriminator"][n]) for n, t in discriminator.state_dict().items())


def test_a_run_as_a_pretrained_model(run, tmp_path):
    (tmp_path / "results.json").write_text('{"numbers": {"PSNR": {"value": 20.5, "protocol": "dB at 32 px"}}}')
    arguments = ["export", str(run), str(tmp_path / "model"), "--metrics", str(tmp_path / "results.json")]
    assert cli.main(arguments) == 2  # only a card has a place for them
    with pytest.warns(UserWarning, match="the frozen encoder is not saved"):
        assert cli.main([*arguments, "--kind", "pretrained"]) == 0
    ours, theirs = pretrained.load_tokenizer(run), vfmtok.from_pretrained(tmp_path / "model")
    assert torch.equal(decoded(ours), decoded(theirs))
    assert "| PSNR | 20.500 | dB at 32 px |" in (tmp_path / "model/README.md").read_text()


def test_a_run_that_trains_its_encoder_is_exported_whole_or_not_at_all(tiny_recipe, train, tmp_path, capsys):
    folder = train(tiny_recipe("tokenizer.encoder.frozen=false", "loss.perceptual=none", "optimizer.steps=2"))
    capsys.readouterr()
    for kind in ("inference", "full"):
        assert cli.main(["export", str(folder), str(tmp_path / "out.pt"), "--kind", kind]) == 2
        error = capsys.readouterr().err
        assert "does not hold the encoder of a VFMTok" in error and "--kind pretrained" in error
        assert error.count("\n") == 1 and not (tmp_path / "out.pt").exists()
    assert cli.main(["export", str(folder), str(tmp_path / "model"), "--kind", "pretrained"]) == 0
    found = vfmtok.from_pretrained(tmp_path / "model").encoder.state_dict()
    average = checkpoint.load(folder / "checkpoints/step_0000002").parts["ema"]
    assert found and all(torch.equal(tensor, average[f"encoder.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("released", [False, True])
def test_finetuning_says_what_is_new(run, released, tiny_recipe, train, capsys, tmp_path):
    source = run
    if released:
        source = tmp_path / "released.pt"
        cli.main(["export", str(run), str(source)])
    capsys.readouterr()
    recipe = tiny_recipe("optimizer.steps=1", "tokenizer.quantizer.codebook_size=32", name="tuned")
    train(begun_at(recipe, source, finetune=True))
    told = capsys.readouterr().out
    count = len(pretrained.read_weights(run).tensors)
    assert f"{count - 1} of {count} tensors loaded" in told
    assert (
        told.count("starts at random") == 1 and "quantizer.codebook (its shape is (32, 8), the file's (64, 8))" in told
    )
    unused = told.count("not used")
    assert unused == (1 if released else 0)  # the release's usage buffer
    weights = checkpoint.load(tmp_path / "tuned/checkpoints/step_0000001").parts["model"]
    start = pretrained.read_weights(run).tensors
    moved = (weights["to_latents.weight"] - start["to_latents.weight"]).abs().max()
    assert moved < 1e-3  # one step of warm-up away from where it began


def test_continuing_another_runs_checkpoint(run, tiny_recipe, train, capsys, tmp_path):
    settings = ("adversarial.discriminator=patchgan", "adversarial.start=1")
    train(tiny_recipe("optimizer.steps=6", *settings))  # the run itself continues
    newer = tiny_recipe("optimizer.steps=6", *settings, name="other")
    train(begun_at(newer, tmp_path / "run/checkpoints/step_0000006", finetune=False))
    assert "step 6 of 6" in capsys.readouterr().out


def test_what_is_no_tokenizer(tmp_path, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        pretrained.load_tokenizer(tmp_path / "empty")
    with pytest.raises(WeightsError, match="no weight file"):
        pretrained.load_tokenizer(tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match="mis-shaped: sampler"):
        pretrained.load_tokenizer(run, overrides=["sampler.num_tokens=25"])
    (tmp_path / "young/checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match="no finished checkpoint"):
        pretrained.load_tokenizer(tmp_path / "young")
