"""Published flags of train_c2i.py: what each one sets, and what the data say where none does."""

import shlex
from dataclasses import fields

import pytest
from small_caches import write_cache, write_latent_cache

from vfmtok.code import Ids, Latents, Segment
from vfmtok.commands import generator_flags
from vfmtok.config import config_from_dict, save_config
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators import GENERATORS, generator_config
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.training.generator_recipe import GeneratorRecipe


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "train")


def parse(text: str) -> GeneratorRecipe:
    return generator_flags.generator_recipe(generator_flags.generator_parser().parse_args(shlex.split(text)))


def value_of(recipe: GeneratorRecipe, key: str):
    for section in key.split("."):
        recipe = getattr(recipe, section)
    return recipe


def test_the_cache_says_what_no_flag_does(cache):
    recipe = parse(f"--code-path {cache} --gpt-model GPT-L")
    assert (recipe.generator.vocab_size, recipe.generator.num_tokens, recipe.generator.num_classes) == (32, 16, 3)
    assert (recipe.generator.n_layer, recipe.generator.n_head, recipe.generator.dim) == (24, 16, 1024)


def test_defaults_are_the_published(cache):
    """DESIGN 6 and 7."""
    recipe = parse(f"--code-path {cache}")
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch, optimizer.betas) == ("adamw", 1e-4, 256, (0.9, 0.95))
    assert (optimizer.weight_decay, optimizer.max_grad_norm, optimizer.decay, optimizer.epochs) == (
        0.05,
        1.0,
        "constant",
        300,
    )
    assert (recipe.run.global_batch, recipe.ema.decay, recipe.run.precision) == (256, 0.9999, "auto")
    assert (recipe.generator.dropout_p, recipe.generator.token_dropout_p, recipe.generator.label_dropout_p) == (
        0.1,
        0.1,
        0.1,
    )
    assert parse(f"--code-path {cache} --gpt-model GPT-2B").optimizer.epochs == 200
    assert parse(f"--code-path {cache} --gpt-model GPT-2B --epochs 7").optimizer.epochs == 7


def test_the_published_command(cache):
    recipe = parse(
        f"--code-path {cache} --gpt-model GPT-B --gpt-type c2i --vocab-size 32 --latent-size 4 --image-size 32 "
        "--num-classes 3 --cls-token-num 1 --dropout-p 0.1 --token-dropout-p 0.2 --drop-path-rate 0.05 --ema "
        "--global-batch-size 512 --epochs 300 --mixed-precision bf16 --beta2 0.99"
    )
    assert (recipe.generator.num_tokens, recipe.generator.token_dropout_p, recipe.generator.drop_path_rate) == (
        16,
        0.2,
        0.05,
    )
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.optimizer.scaled_to(recipe.run.global_batch).lr == pytest.approx(2e-4)


VALUES = {int: "7", float: "0.5", str: "word"}
# What would be looked for at once has to be there.
ELSEWHERE = {"data.code_path", "data.path", "data.val_path", "data.vq_ckpt", "data.vq_config"}


@pytest.mark.parametrize(
    "flag", [flag for flag in generator_flags.GENERATOR_FLAGS if flag[1] not in ELSEWHERE], ids=lambda flag: flag[0]
)
def test_every_flag_reaches_its_field(flag, cache):
    """One by one, with a value that is not the default."""
    name, key, takes, _ = flag
    command = f"--code-path {cache}"
    if key.startswith("generator.") and key.split(".")[1] not in {field.name for field in fields(GPTConfig)}:
        latents = write_latent_cache(cache.parent / "latents")
        command = f"--code-path {latents} --set generator.kind=diffusion --set generator.align_dims=[8]"
        command += " --set generator.align_depth=1"
    default = value_of(parse(command), key)
    if isinstance(takes, tuple):
        value = next(choice for choice in takes if choice != default)
    elif takes is bool:
        value = not default
        name = f"--no-{name[2:]}" if default else name
    else:
        value = takes(VALUES[takes])
    if key == "generator.align_depth":
        command = command.removesuffix(" --set generator.align_depth=1")
    assert value_of(parse(f"{command} {name} {'' if takes is bool else value}"), key) == value


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "no training data: give --code-path"),
        ("--code-path {cache} --anno-file x --vq-ckpt y", "not both"),
        ("--anno-file x", "give --vq-ckpt"),
        ("--code-path {cache} --image-size 64", "--image-size 64 does not fit the tokenizer, whose image size is 32"),
        ("--code-path {cache} --finetune", "needs --gpt-ckpt"),
        ("--code-path nowhere", "no token cache at nowhere"),
        ("--code-path {cache} --num-workers -1", "data.num_workers must be a number from 0, got -1"),
        ("--code-path {cache} --set optimizer.lr_batch=0", "optimizer.lr_batch must be positive, got 0"),
        ("--code-path {cache} --set optimizer.lr=-1", "optimizer.lr must be a number from 0"),
        ("--code-path {cache} --set pictures.per_class=0", "pictures.per_class must be positive, got 0"),
        ("--code-path {cache} --set pictures.every=-1", "pictures.every must be a number from 0"),
        ("--code-path {cache} --set pictures.sampling=3", "pictures.sampling must be a section"),
        ("--code-path {cache} --set pictures.seed=-1", "pictures.seed must be in"),
    ],
)
def test_commands_that_cannot_be_meant(command, message, cache):
    with pytest.raises((ConfigError, DataError), match=message):
        parse(command.format(cache=cache))


@pytest.mark.parametrize("flags", ["--gpt-type t2i", "--cls-token-num 120", "--gpt-model GPT-C", "--latent-sise 4"])
def test_wrong_flags_are_one_line(flags, cache, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(f"--code-path {cache} {flags}")
    assert stopped.value.code == 2 and "train_c2i.py: error" in capsys.readouterr().err


def test_a_recipe_keeps_what_it_says(cache, tmp_path):
    """Keys of the file are not replaced by the data's; they are checked when the run begins."""
    (tmp_path / "recipe.yaml").write_text("gpt: {num_classes: 5, dim: 768}\noptimizer: {lr: 3e-4}\n")
    recipe = parse(f"--recipe {tmp_path}/recipe.yaml --code-path {cache} --set optimizer.lr=5e-4")
    assert (recipe.generator.num_classes, recipe.generator.vocab_size, recipe.optimizer.lr) == (5, 32, 5e-4)
    save_config(recipe, tmp_path / "again.yaml")
    assert parse(f"--recipe {tmp_path}/again.yaml") == recipe


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_family_takes_its_sizes_from_the_code(kind):
    """What a family says of a code is a configuration of just this code."""
    family, learned = GENERATORS[kind], []
    for code in (Ids((Segment(9, 50, (3, 3)),)), Latents((4, 8, 8))):
        try:
            fields = family.config.fields_of_code(code)
        except ConfigError as error:
            assert str(code) in str(error) and f"generator.kind {kind}" in str(error)
            continue
        learned.append(code)
        assert config_from_dict(fields, family.config).code == code
        for name in family.sizes:
            assert generator_config(name, **fields).code == code
    assert len(learned) == 1


def test_holistic_tokens_of_a_code_are_the_gpts_too():
    code = Ids((Segment(4, 32, None), Segment(9, 32, (3, 3))))
    assert config_from_dict(GPTConfig.fields_of_code(code), GPTConfig).code == code


def test_another_family_needs_only_its_name(cache, tmp_path):
    """By a named size, by a recipe and by --set, also where the recipe's section was of another family."""
    recipe = parse(f"--code-path {cache} --gpt-model RAR-B --epochs 7")
    assert (recipe.generator.kind, recipe.generator.dim, recipe.optimizer.epochs) == ("rar", 768, 7)
    assert (recipe.generator.vocab_size, recipe.generator.num_tokens, recipe.generator.num_classes) == (32, 16, 3)
    (tmp_path / "recipe.yaml").write_text("generator: {num_classes: 5, qk_norm: true}\n")
    command = f"--recipe {tmp_path}/recipe.yaml --code-path {cache}"
    changed = parse(f"{command} --set generator.kind=rar --set generator.n_layer=2")
    assert (changed.generator.kind, changed.generator.n_layer, changed.generator.num_classes) == ("rar", 2, 3)
    assert parse(command).generator.num_classes == 5


def test_a_size_without_a_published_run_has_the_defaults_and_says_so(cache, capsys):
    assert parse(f"--code-path {cache} --gpt-model GPT-1B").optimizer == GeneratorRecipe().optimizer
    assert "300 epochs" in capsys.readouterr().out
    assert parse(f"--code-path {cache} --gpt-model GPT-XL --lr 3e-4").optimizer.epochs == 200
    assert "200 epochs" in capsys.readouterr().out


def test_old_and_other_names(cache):
    """Version 0.1 called the section gpt; a flag of the published scripts has a name that all commands share."""
    old, new = "--set gpt.n_layer=3 --global-seed 4 --results-dir x", "--set generator.n_layer=3 --seed 4 --out x"
    assert parse(f"--code-path {cache} {old}") == parse(f"--code-path {cache} {new}")


def test_recipes_in_configs_are_valid(root, cache):
    recipe = parse(f"--recipe {root}/configs/vfmtok/emoji64_gpt.yaml --code-path {cache}")
    assert recipe.generator.vocab_size == 32 and recipe.optimizer.lr_batch is None


def test_the_encoder_that_reg_names(cache, tmp_path):
    latents = write_latent_cache(tmp_path / "latents")
    recipe = parse(f"--code-path {latents} --gpt-model REG-XL/1 --enc-type dinov2-vit-b")
    assert recipe.generator.align_encoder is not None
    with pytest.raises(ConfigError, match="--enc-type"):
        parse(f"--code-path {cache} --gpt-model GPT-B --enc-type dinov2-vit-b")


def test_a_size_s_published_run_is_shortened(tmp_path):
    latents = write_latent_cache(tmp_path / "latents")
    recipe = parse(f"--code-path {latents} --gpt-model REG-XL/1 --steps 1000")
    assert recipe.optimizer.steps == 1000  # of the 800,000 of its recipe
    with pytest.raises(ConfigError, match=r"this one makes 300 epochs \(--epochs\)"):
        parse(f"--code-path {write_cache(tmp_path / 'ids')} --gpt-model GPT-L --steps 1000")
