"""Published flags: what each one sets."""

import contextlib
import shlex

import pytest

from vfmtok.commands import tokenizer_flags as flags
from vfmtok.config import config_from_dict, config_to_dict, save_config, with_overrides
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError
from vfmtok.tokenizers import load_config, published_flags
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.training.recipe import Plan, TokenizerRecipe


def parse(text: str) -> TokenizerRecipe:
    return flags.tokenizer_recipe(flags.tokenizer_parser().parse_args(shlex.split(text)))


def test_the_published_command(root):
    """The README of the release, its DINO-discriminator run."""
    recipe = parse(
        "--image-size 336 --results-dir output --mixed-precision bf16 --codebook-embed-dim 8 --disc-type dinogan "
        "--data-path imagenet/lmdb/train_lmdb --global-batch-size 256 --num-workers 4 --ckpt-every 5000 --epochs 50 "
        "--log-every 1 --lr 1e-4 --ema --z-channels 512 --enable-vfm-recon "
        f"--transformer-config {root}/configs/vit_transformer.yaml --set tokenizer.encoder.weights=auto"
    )
    published = load_config(root / "configs/vit_transformer.yaml", ["encoder.weights=auto"])
    assert recipe.tokenizer == published
    assert (recipe.run.save_every, recipe.run.log_every, recipe.run.results_dir) == (5000, 1, "output")


def test_defaults_are_the_papers(root):
    """DESIGN 5 and 7."""
    recipe = parse("--data-path x")
    assert recipe.tokenizer == VFMTokConfig(encoder=EncoderConfig(weights="auto"))
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.betas) == ("adamw", 1e-4, (0.9, 0.95))
    assert (recipe.optimizer.weight_decay, recipe.optimizer.max_grad_norm, recipe.optimizer.epochs) == (0.05, 1.0, 50)
    assert (recipe.run.global_batch, recipe.ema.decay, recipe.run.precision) == (256, 0.9999, "auto")
    assert (recipe.loss.pixel_weight, recipe.loss.perceptual, recipe.adversarial.weight) == (2.0, "lpips-vgg", 0.5)
    assert (recipe.adversarial.discriminator, recipe.adversarial.start) == ("dinogan", 20000)
    assert (recipe.adversarial.loss, recipe.adversarial.generator_loss) == ("hinge", "non-saturating")
    assert not recipe.codebook.kmeans and not recipe.codebook.revive and not recipe.codebook.continuous_steps
    plan = Plan.of(recipe.optimizer, recipe.run, 1_281_167, 8)
    assert (plan.steps, plan.warmup_steps, plan.micro_batch) == (250_228, 20_018, 32)


@pytest.mark.parametrize(
    ("settings", "trains"),
    [
        ("", False),  # the model file leaves the encoder random until its weights are loaded
        ("--set tokenizer.encoder.weights=random", True),
        ("--set tokenizer.encoder.weights=/a/file.pth", True),
        ("--set tokenizer.encoder.frozen=false", True),  # it learns from scratch
    ],
)
def test_a_frozen_encoder_without_weights_does_not_train(root, settings, trains):
    command = f"--data-path x --transformer-config-file {root}/configs/vit_transformer.yaml {settings}"
    with contextlib.nullcontext() if trains else pytest.raises(ConfigError) as refused:
        parse(command)
    if not trains:
        words = str(refused.value)
        assert "\n" not in words and all(word in words for word in ("auto", "package", "path", "random"))


@pytest.mark.parametrize("kind", ["vfmtok", "vqgan"])
def test_of_every_family(kind):
    """A recipe file that says nothing about the weights, and an encoder deeper in it."""
    section = {"kind": kind, "encoder": {"kind": "vfm", "name": "dinov2_vitl14_reg"}}
    with pytest.raises(ConfigError, match="dinov2_vitl14_reg"):
        config_from_dict({"tokenizer": section}, TokenizerRecipe)
    section["encoder"]["weights"] = "random"
    assert config_from_dict({"tokenizer": section}, TokenizerRecipe).tokenizer.kind == kind


def test_what_version_0_1_wrote_trains_on():
    """There "none" was how random weights were asked for; nothing else of a saved recipe changes."""
    tree = config_to_dict(TokenizerRecipe())
    tree["tokenizer"]["encoder"]["weights"] = "none"
    saved = config_from_dict(tree, TokenizerRecipe, saved=True)
    assert saved == with_overrides(TokenizerRecipe(), ["tokenizer.encoder.weights=random"])


VALUES = {int: "7", float: "0.5", str: "word", bool: ""}


@pytest.mark.parametrize("flag", flags.TOKENIZER_FLAGS, ids=lambda flag: flag[0])
def test_every_flag_reaches_its_field(flag):
    """One by one, with a value that is not the default."""
    name, key, takes, _ = flag
    default = parse("--data-path x")
    for section in key.split("."):
        default = getattr(default, section)
    if isinstance(takes, tuple):
        value = next(choice for choice in takes if choice != default)
    elif takes is bool:
        value = not default
        name = f"--no-{name[2:]}" if default else name
    else:
        value = {"tokenizer.image_size": 160, "tokenizer.dim": 256}.get(key, takes(VALUES[takes]))
    recipe = parse(f"--data-path x {name} {'' if takes is bool else value}")
    for section in key.split("."):
        recipe = getattr(recipe, section)
    assert recipe == value


def test_flags_of_several_fields():
    recipe = parse("--data-path x --beta2 0.99 --reconstruction-weight 3 --vq-model VQ-8 --image-size 168")
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.loss.pixel_weight == 6
    assert recipe.tokenizer.pixel_decoder.multipliers == (4, 2, 2, 1) and recipe.tokenizer.stride == 8


def test_order_of_precedence(root, tmp_path):
    """recipe < tokenizer's configuration < flags < --set."""
    command = f"--recipe {root}/configs/vfmtok/emoji64.yaml --transformer-config {root}/configs/tiny.yaml --data-path x"
    recipe = parse(f"{command} --codebook-size 128 --lr 3e-4 --set tokenizer.dim=96 --set optimizer.lr=5e-4")
    assert recipe.tokenizer.encoder.name == "test_vit" and recipe.tokenizer.quantizer.codebook_size == 128
    assert recipe.tokenizer.dim == 96 and recipe.optimizer.lr == 5e-4 and recipe.codebook.kmeans
    save_config(recipe, tmp_path / "recipe.yaml")
    assert load_config(tmp_path / "recipe.yaml", kind=TokenizerRecipe) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("loss.perceptual=encoder tokenizer.encoder.frozen=false", "needs encoder.frozen"),
        ("codebook.kmeans=true", "needs codebook.continuous_steps"),
        ("adversarial.update_start=30000", r"must be in \[0, start"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("run.log_every=0", "must be positive"),
        ("loss.pixel=l3", "must be one of l2, l1"),
    ],
)
def test_impossible_recipes(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse("--data-path x " + " ".join(f"--set {setting}" for setting in settings.split()))


FILES = {
    "vfmtok": "vit_transformer.yaml", "hita": "hita_vqgan.yaml", "vqgan": "vqgan/vq16.yaml", "vfmae": "vfmae/vfmae.yaml"
}  # fmt: skip
VALUE_OF = {
    "--image-size": "672", "--z-channels": "64", "--vq-model": "VQ-8", "--ae-model": "AE-16", "--enable-vfm-recon": ""
}  # fmt: skip
CONTINUOUS = {"--embed-dim", "--ae-model"}
DISCRETE = {
    "--codebook-size", "--codebook-slots-embed-dim", "--codebook-embed-dim", "--num-slots", "--entropy-loss-ratio",
    "--commit-loss-beta", "--vq-model",
}  # fmt: skip
REFUSED = {
    "vqgan": {"--codebook-slots-embed-dim", "--num-slots", "--enable-vfm-recon"} | CONTINUOUS,
    "vfmtok": {"--num-slots"} | CONTINUOUS, "hita": CONTINUOUS, "vfmae": DISCRETE,
}  # fmt: skip


def of_family(root, kind: str, arguments: str = ""):
    file = f"{root}/configs/{FILES[kind]}"
    encoder = "" if kind == "vqgan" else "--set tokenizer.encoder.weights=random"
    return parse(f"--data-path x --transformer-config-file {file} {encoder} {arguments}").tokenizer


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("flag", [flag for flag, *_ in flags.MODEL_FLAGS])
def test_flags_of_the_tokenizer_mean_what_its_family_says(root, kind, flag):
    """Each sets its fields and no other, or is refused by name: none is parsed and forgotten."""
    given = f"{flag} {VALUE_OF.get(flag, '7' if flag != '--dropout-p' else '0.5')}"
    if flag in REFUSED.get(kind, ()) or (kind, flag) == ("hita", "--enable-vfm-recon"):
        with pytest.raises(ConfigError, match=flag) as refused:
            of_family(root, kind, given)
        assert "\n" not in str(refused.value)
        return
    if kind in ("vfmtok", "vfmae") and flag == "--enable-vfm-recon":
        given = "--no-enable-vfm-recon"
    if (kind, flag) == ("vfmae", "--ae-model"):
        pytest.skip("its only value is the default: see test_the_published_command_of_vfmae")
    before, after = (leaves(config_to_dict(of_family(root, kind, text))) for text in ("", given))
    fields = type(of_family(root, kind)).PUBLISHED_FLAGS[flag]
    assert {name for name in before if before[name] != after[name]} == set(fields)
    assert fields or (kind, flag) == ("vfmtok", "--codebook-embed-dim")


def leaves(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_published_commands_of_hita(root):
    """The two of its release: the model files are what its flags say."""
    common = (
        "--image-size 336 --codebook-embed-dim 8 --z-channels 512 --global-batch-size 256 --epochs 50 --lr 1e-4 --ema "
        "--mixed-precision bf16 --data-path x --set tokenizer.encoder.weights=random --transformer-config"
    )
    for name, more in (("hita_vqgan", "--disc-type patchgan"), ("hita_vqgan_ultra", "--enable-vfm-recon")):
        file = f"{root}/configs/{name}.yaml"
        assert parse(f"{common} {file} {more}").tokenizer == load_config(file, ["encoder.weights=random"])
    recipe = parse(f"{common} {file} --codebook-slots-embed-dim 6 --vq-model VQ-8 --dropout-p 0.5")
    config = recipe.tokenizer
    assert (config.holistic_quantizer.code_dim, config.patch_quantizer.code_dim, config.stride) == (6, 8, 8)
    assert config.patch_encoder.multipliers == (1, 2, 2, 4) and config.patch_encoder.dropout == 0.5


def test_the_published_command_of_vfmae(root, tmp_path):
    """`ae_train.py`'s flags make the release of a model file that says otherwise."""
    published = load_config(f"{root}/configs/vfmae/vfmae.yaml", ["encoder.weights=random"])
    other = ("image_size=64", "latent_channels=16", "dim=256", "decoder.reconstruct_features=false")
    save_config(
        with_overrides(published, [*other, "pixel_decoder.multipliers=[4,2,1]", "pixel_decoder.dropout=0.5"]),
        tmp_path / "model.yaml",
    )
    recipe = parse(
        "--image-size 256 --ae-model AE-16 --embed-dim 32 --z-channels 512 --dropout-p 0 --enable-vfm-recon "
        f"--mixed-precision none --ae-ckpt run --data-path x --transformer-config-file {tmp_path}/model.yaml"
    )
    assert recipe.tokenizer == published and recipe.run.precision == "none"


def test_a_continuous_tokenizer_has_no_codebook_to_care_for(root):
    for setting in ("continuous_steps=9", "kmeans=true", "revive=true", "window=9"):
        with pytest.raises(ConfigError, match=r"codebook: .* continuous"):
            of_family(root, "vfmae", f"--set codebook.{setting}")


def test_llamagens_flags(root):
    recipe = parse(
        f"--recipe {root}/configs/vqgan/vq16.yaml --data-path x --codebook-embed-dim 32 --codebook-size 64 "
        "--entropy-loss-ratio 0.1 --commit-loss-beta 0.5"
    )
    quantizer = recipe.tokenizer.quantizer
    assert (quantizer.code_dim, quantizer.codebook_size) == (32, 64)
    assert (quantizer.entropy_weight, quantizer.commit_weight) == (0.1, 0.5)


def test_care_for_codebooks_needs_learned_ones(root):
    settings = "--set codebook.kmeans=true --set codebook.continuous_steps=9"
    assert of_family(root, "hita", settings).kind == "hita"
    fsq = "{kind: fsq, levels: [4, 4, 4], codebook_size: 64, code_dim: 3}"
    with pytest.raises(ConfigError, match="kind cosine"):
        of_family(root, "hita", f"{settings} --set 'tokenizer.patch_quantizer={fsq}'")


def test_a_family_without_published_flags_has_none():
    """A family of one's own, whose configuration says nothing of them: one line, and no flag without effect."""

    class Plain:
        kind = "plain"

    assert published_flags.without_effect(Plain(), {"--image-size": 64}) == []
    with pytest.raises(ConfigError, match="--image-size does not fit a tokenizer of kind 'plain'"):
        published_flags.fields_of_flags(Plain(), {"--image-size": 64})


def test_a_recipe_is_shortened_as_a_whole(root):
    """What it counts in steps shrinks with its length; what --set says stays."""
    command = f"--recipe {root}/configs/vfmtok/emoji64.yaml --data-path x"
    full, short = parse(command), parse(f"{command} --steps 240")
    assert (full.optimizer.steps, full.optimizer.warmup_steps, full.codebook.continuous_steps) == (2400, 100, 300)
    assert (short.optimizer.steps, short.optimizer.warmup_steps, short.codebook.continuous_steps) == (240, 10, 30)
    assert parse(f"{command} --steps 240 --set optimizer.warmup_steps=7").optimizer.warmup_steps == 7
    assert parse(f"{command} --steps 2400") == full


def test_steps_shorten_what_set_leaves(root):
    """Rows of losses that --set takes away have no times, and --set optimizer.steps is another word for the length."""
    command = f"--recipe {root}/configs/vfm_vae/emoji64_stage0.yaml --data-path x --steps 120"
    assert [term.last_image for term in parse(command).loss.terms] == [None, 319, 319, 319]
    assert parse(f"{command} --set 'loss={{perceptual: none}}'").loss.terms == ()
    rows = [f"{{name: kl, weight: 1.0, last_image: {images}}}" for images in (99, 98, 97, 96, 95)]
    given = parse(f"{command} --set 'loss.terms=[{','.join(rows)}]'").loss.terms  # more than the recipe has
    assert [term.last_image for term in given] == [99, 98, 97, 96, 95]
    with pytest.raises(ConfigError, match="give one of them"):
        parse(f"{command} --set optimizer.steps=60")


def test_steps_shorten_only_what_counts_steps(root):
    with pytest.raises(ConfigError, match=r"this one makes 50 epochs \(--epochs\)"):
        parse("--data-path x --steps 10")
    with pytest.raises(ConfigError, match="the recipe has 2400"):
        parse(f"--recipe {root}/configs/vfmtok/emoji64.yaml --data-path x --steps 2401")
