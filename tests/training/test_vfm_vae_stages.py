"""The stages of VFM-VAE as recipes: what each trains, and (slow) the small ones, each started from the one before."""

import shutil

import pytest
import safetensors.torch
import torch
from training_runs import logged

import vfmtok
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.trained_parts import choose_trained

EVERYTHING = {"fusion", "expand", "style", "decoder", "to_features"}
LOSSES = {
    0: ("alignment", "kl", "multi-resolution-8"),
    1: ("alignment", "kl"),
    2: ("ssim",),
    3: ("adversarial", "feature_matching", "discriminator"),
}
DECODING = {"expand", "style", "decoder"}


def read_all(checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Every file of tensors of a checkpoint: models, their averages, optimizers."""
    return {path.name: safetensors.torch.load_file(path) for path in checkpoint.rglob("*.safetensors")}


def recipe_of(root, name: str, *overrides: str) -> TokenizerRecipe:
    return vfmtok.load_config(root / f"configs/vfm_vae/{name}.yaml", overrides, kind=TokenizerRecipe)


@pytest.mark.parametrize(
    ("stage", "parts", "millions"),
    [(0, EVERYTHING, 139.7), (1, EVERYTHING, 139.7), (2, DECODING, 128.1), (3, {"decoder"}, 32.1)],
)
def test_what_a_published_stage_trains(root, stage, parts, millions):
    """The sum of the published sizes of its parts, in millions: 0.5 of it is style, 1.9 expansion, 11.6 fusion."""
    recipe = recipe_of(root, f"stage{stage}")
    with torch.device("meta"):
        tokenizer = vfmtok.build_tokenizer(recipe.tokenizer)
    choose_trained(tokenizer, recipe.train)
    trained = {name: p.numel() for name, p in tokenizer.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trained} == parts
    assert sum(trained.values()) / 1e6 == pytest.approx(millions, abs=0.15)
    if stage == 3:
        places = {".".join(name.split(".")[:3]) for name in trained}
        assert places == {"decoder.blocks.3", "decoder.blocks.4", "decoder.blocks.5", "decoder.injections.3"}
    assert recipe.run.start_from == (f"results/vfm_vae_stage{stage - 1}" if stage else None)
    assert recipe.adversarial.start_from == recipe.run.start_from
    for scale in recipe.equivariance.latent_scales:
        tokenizer.check_scale(scale)


def test_an_average_by_images(root):
    """The published decay at batch 512: the ramp ends at 3.2 million images, which later stages are beyond."""
    first, later = (recipe_of(root, f"stage{stage}").ema for stage in (0, 1))
    assert first.decay_by_images(0, 512) == 0
    assert first.decay_by_images(100_000, 512) == pytest.approx(0.5 ** (512 / 5_000))
    assert first.decay_by_images(20_000_000, 512) == later.decay_by_images(0, 512) == 0.5 ** (512 / 160_000)


@pytest.mark.slow
def test_the_small_stages_in_short(root, sample_set, train, tmp_path):
    """Each starts from the average of the one before, trains its parts alone, and resumes bit for bit."""
    before = None
    for stage in range(4):
        settings = [f"data.path={sample_set}", f"run.results_dir={tmp_path}/stage{stage}", "optimizer.steps=3",
                    "run.save_every=2", "run.validate_every=3", "run.validation_images=8", "run.log_every=1",
                    "data.num_workers=0", "run.tensorboard=false"]  # fmt: skip
        if stage:
            settings.append(f"run.start_from={tmp_path}/stage{stage - 1}")
        recipe = recipe_of(root, f"emoji64_stage{stage}", *settings)
        train(recipe)
        folder = tmp_path / f"stage{stage}/checkpoints/step_0000003"
        after, files = safetensors.torch.load_file(folder / "model.safetensors"), read_all(folder)
        shutil.rmtree(folder)  # as if it had been killed in the third step
        (tmp_path / f"stage{stage}/finished").unlink()
        train(recipe)
        resumed = read_all(folder)
        assert files.keys() == resumed.keys() and len(files) >= 3
        for name, tensors in files.items():
            assert all(torch.equal(tensor, resumed[name][key]) for key, tensor in tensors.items()), (stage, name)
        if before is not None:
            changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
            assert changed and (not recipe.train or all(name.startswith(recipe.train) for name in changed))
            assert any(name.startswith("fusion.") for name in changed) == (stage == 1)
        before = safetensors.torch.load_file(folder / "ema.safetensors")
        for name in LOSSES[stage]:
            assert logged(tmp_path / f"stage{stage}", f"loss/{name}")
