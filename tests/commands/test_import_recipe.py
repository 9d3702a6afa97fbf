"""LightningDiT's configurations as recipes: the published one, what each key becomes, what is refused."""

import pytest
import yaml

import vfmtok
from vfmtok import cli
from vfmtok.commands.import_recipe import recipe_of
from vfmtok.config import config_from_dict, read_tree
from vfmtok.errors import ConfigError
from vfmtok.generators.diffusion.config import FlowSampling
from vfmtok.generators.diffusion.sampling import time_grid
from vfmtok.training.generator_recipe import GeneratorRecipe

PUBLISHED = """
ckpt_path: ''
data: {data_path: x, fid_reference_file: y, image_size: 256, num_classes: 1000, num_workers: 8, latent_norm: true,
  latent_multiplier: 1.0}
vae: {model_name: vavae_f16d32, downsample_ratio: 16}
model: {model_type: LightningDiT-XL/1, use_qknorm: false, use_swiglu: true, use_rope: true, use_rmsnorm: true,
  wo_shift: false, in_chans: 32}
train: {max_steps: 80000, global_batch_size: 1024, global_seed: 0, output_dir: output, exp_name: x, ckpt: null,
  log_every: 100, ckpt_every: 20000}
optimizer: {lr: 0.0002, beta2: 0.95}
transport: {path_type: Linear, prediction: velocity, loss_weight: null, sample_eps: null, train_eps: null,
  use_cosine_loss: true, use_lognorm: true}
sample: {mode: ODE, sampling_method: euler, atol: 0.000001, rtol: 0.001, reverse: false, likelihood: false,
  num_sampling_steps: 250, cfg_scale: 10.0, per_proc_batch_size: 4, fid_num: 50000, cfg_interval_start: 0.10,
  timestep_shift: 0.3}
"""


def changed(section: str, **values) -> dict:
    tree = yaml.safe_load(PUBLISHED)
    tree[section] |= values
    return tree


def test_the_published_file(tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(PUBLISHED)
    command = ["import-recipe", str(tmp_path / "theirs.yaml"), str(tmp_path / "ours.yaml")]
    assert cli.main(command) == 0
    recipe = config_from_dict(read_tree(tmp_path / "ours.yaml"), GeneratorRecipe)
    assert recipe.generator == vfmtok.dit_config("LightningDiT-XL/1")
    assert (recipe.optimizer.steps, recipe.optimizer.lr, recipe.optimizer.betas) == (80_000, 2e-4, (0.9, 0.95))
    assert (recipe.run.global_batch, recipe.run.save_every, recipe.optimizer.max_grad_norm) == (1024, 20_000, 0)
    assert recipe.optimizer.scaled_to(1024).lr == 2e-4
    sampling = config_from_dict(recipe.pictures.sampling, FlowSampling)
    assert sampling == FlowSampling(cfg_scale=10.0, steps=249, shift=1 / 0.3, cfg_high=0.9, cfg_channels=3)
    assert len(time_grid(sampling.method, sampling.steps, sampling.shift)) == 250
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err


def test_what_keys_become():
    recipe = recipe_of(changed("model", use_qknorm=True, use_swiglu=False, use_rmsnorm=False, wo_shift=True), "x")
    generator = recipe.generator
    assert (generator.qk_norm, generator.mlp, generator.norm, generator.shift) == (True, "gelu", "layer", False)
    assert recipe_of(changed("transport", use_lognorm=False, use_cosine_loss=False), "x").generator.times == "uniform"
    sampling = recipe_of(changed("sample", mode="SDE", cfg_scale=1.0, timestep_shift=0), "x").pictures.sampling
    assert sampling == {"method": "sde", "steps": 250, "shift": 1.0}
    tree = changed("data", image_size=512, latent_multiplier=0.5)
    assert (recipe_of(tree, "x").generator.size, recipe_of(tree, "x").generator.multiplier) == (32, 0.5)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"model_type": "LightningDiT-XXL/1"}, "closest match: 'LightningDiT-XL/1'"),
        ("model", {"use_qk": True}, "unknown key 'model.use_qk'"),
        ("transport", {"path_type": "GVP"}, "path_type is GVP"),
        ("sample", {"sampling_method": "dopri5"}, "dopri5"),
        ("data", {"latent_norm": False}, "latent_norm is False"),
    ],
)
def test_what_ours_does_not_have_is_refused(section, values, message):
    with pytest.raises(ConfigError, match=message):
        recipe_of(changed(section, **values), "x")
