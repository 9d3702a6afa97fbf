"""Generators that train on permuted orders, by the loop of all others: RAR, and the GPT with ``permuted``."""

import pytest
import ranks
import torch
from small_caches import recipe_file, small_recipe
from training_runs import assert_same, final, finish, logged, start

import vfmtok
from vfmtok import cli, distributed
from vfmtok.errors import ConfigError
from vfmtok.generators.drawing import draw_codes
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.sharding import build_sharded, shard
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))
SHAPE = {"n_layer": 2, "n_head": 2, "dim": 32, "ffn_hidden": 64, "vocab_size": 32, "num_tokens": 16, "num_classes": 3}
ANNEALED = {"anneal_start": 2, "anneal_end": 6, "label_dropout_p": 0.3}
GENERATORS = {
    "rar": {"kind": "rar", **SHAPE, **ANNEALED},
    "gpt": {"kind": "gpt", "permuted": True, **SHAPE, **ANNEALED},
}
WITHOUT_MASKS = {
    "rar": {"dropout_p": 0.0, "attention_dropout_p": 0.0},
    "gpt": {"dropout_p": 0.0, "token_dropout_p": 0.0},
}


@pytest.fixture(params=GENERATORS)
def kind(request):
    return request.param


def trained(folder, name, **sections):
    train_generator(small_recipe(folder, name, **sections), ALONE)
    return folder / name


def test_a_run_that_was_cut_continues_bit_for_bit(caches, kind):
    """In the midst of the annealing, with all that draws random numbers."""
    whole = trained(caches, "whole", generator=GENERATORS[kind])
    trained(caches, "cut", generator=GENERATORS[kind], optimizer={"steps": 6}, run={"save_every": 3})
    cut = trained(caches, "cut", generator=GENERATORS[kind])
    assert_same(final(whole), final(cut))
    assert logged(whole, "validation/loss")[12] == logged(cut, "validation/loss")[12]


def agree(one, other):
    for value, tolerance in (("loss/token", 1e-5), ("grad_norm/model", 1e-4), ("validation/ema_loss", 1e-5)):
        expected = logged(one, value)
        assert logged(other, value) == pytest.approx(expected, rel=tolerance) and len(expected) >= 2


def test_passes_agree(caches, kind):
    """Two passes of half a batch draw the same orders and drop the same labels: losses equal but for rounding."""
    generator = {**GENERATORS[kind], **WITHOUT_MASKS[kind]}
    one = trained(caches, "one", generator=generator)
    halves = {"accumulation": 2, "checkpoint_activations": True}
    agree(one, trained(caches, "passes", generator=generator, run=halves))
    raster = trained(caches, "raster", generator={**generator, "anneal_start": 0, "anneal_end": 0})
    assert logged(one, "loss/token")[6] != pytest.approx(logged(raster, "loss/token")[6], rel=1e-3)  # orders matter


@pytest.mark.slow
def test_shards_agree(caches, kind):
    """Two processes by FSDP2 train as one process does."""
    generator = {**GENERATORS[kind], **WITHOUT_MASKS[kind]}
    file = recipe_file(caches, "fsdp", generator=generator)
    sharded = start(file, "--parallel", "fsdp", processes=2, script="train_c2i.py")
    one = trained(caches, "one", generator=generator)
    assert "FSDP2" in finish(sharded)
    agree(one, caches / "fsdp")
    a, b = final(one), final(caches / "fsdp")
    for key, tensor in a.parts["ema"].items():
        assert torch.allclose(tensor, b.parts["ema"][key], rtol=1e-3, atol=3e-5), key


def test_validation_is_of_the_raster_order(caches, kind):
    """From the checkpoint, token by token: the mean of -log p in the order in which images are drawn."""
    folder = trained(caches, "run", generator=GENERATORS[kind])
    generator = vfmtok.from_pretrained(folder, "generator").double()
    held_out = GeneratorRun(small_recipe(caches, "run", generator=GENERATORS[kind]), ALONE).held_out
    losses = []
    with torch.no_grad():
        for code, label in zip(held_out.code, held_out.labels, strict=True):
            for token in range(16):
                _, logits = generator.begin(label[None], code[None, :token], None)
                losses.append(-logits.log_softmax(-1)[0, code[token]].item())
    assert logged(folder, "validation/ema_loss")[12] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_relative_annealing_follows_the_run(caches, kind):
    """Null is half and three quarters: of 12 steps, 6 and 9."""
    relative = {**GENERATORS[kind], "anneal_start": None, "anneal_end": None}
    a = trained(caches, "relative", generator=relative)
    b = trained(caches, "given", generator={**relative, "anneal_start": 6, "anneal_end": 9})
    assert logged(a, "loss/token") == logged(b, "loss/token")


def test_a_run_that_would_end_on_random_orders_is_refused(caches, kind, capsys):
    generator = {**GENERATORS[kind], "anneal_start": 10, "anneal_end": 13}
    with pytest.raises(ConfigError, match="anneal_end 13 lies beyond the run's 12 steps"):
        GeneratorRun(small_recipe(caches, generator=generator), ALONE)
    flags = ["--code-path", str(caches / "train"), "--results-dir", str(caches / "run"), "--gpt-model", "RAR-B"]
    with pytest.raises(ConfigError, match="anneal_start and anneal_end to null"):
        train(flags, "optimizer.steps=3", "generator.n_layer=1", "generator.dim=32", "generator.n_head=2")


def train(flags, *settings):
    """As train_c2i.py reads its command line."""
    from vfmtok.commands.generator_flags import generator_parser, generator_recipe

    arguments = [*flags, *(part for setting in settings for part in ("--set", setting)), "--global-batch-size", "8"]
    train_generator(generator_recipe(generator_parser().parse_args(arguments)), ALONE)


def test_decay_is_for_what_the_recipe_says(caches):
    """Without a gradient, AdamW takes lr * decay of what decays: of the cls token too, not of the head's modulation."""
    run = GeneratorRun(small_recipe(caches, generator=GENERATORS["rar"], optimizer={"weight_decay": 0.5}), ALONE)
    with torch.no_grad():
        for parameter in run.generator.parameters():
            parameter.add_(1.0)
    before = {name: tensor.detach().clone() for name, tensor in run.generator.named_parameters()}
    for parameter in run.generator.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.state.steppers["model"].step(0.1)
    shrunk = set()
    for name, tensor in run.generator.named_parameters():
        if not torch.allclose(tensor, before[name]):
            assert torch.allclose(tensor, before[name] * 0.95, rtol=1e-6), name
            shrunk.add(name)
    assert shrunk == run.generator.decayed()
    assert "cls_token" in shrunk and "head_modulation.weight" not in shrunk and "embeddings.weight" not in shrunk


def build(kind):
    generator = vfmtok.build_generator(small_recipe_config(kind))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return generator


def small_recipe_config(kind):
    from vfmtok.config import config_from_dict
    from vfmtok.generators import AnyGeneratorConfig

    return config_from_dict(GENERATORS[kind], AnyGeneratorConfig)


LABELS = torch.arange(7) % 3
SETTINGS = {"cfg_scale": 3.0, "cfg_schedule": "power-cosine", "cfg_power": 1.5, "seed": 7}


def spread_out(generator):
    shard(generator, generator.layers, generator.sharded_methods, "none")


def _draw(rank):
    """By two processes: whole models, and sharded ones."""
    world, found = distributed.World(rank, 2, torch.device("cpu")), []
    for kind in GENERATORS:
        torch.manual_seed(0)
        found.append(draw_codes(build(kind), LABELS, 2, world, **SETTINGS))
        torch.manual_seed(0)
        spread = build_sharded(lambda kind=kind: build(kind), spread_out, world.device)
        found.append(draw_codes(spread, LABELS, 2, world, **SETTINGS))
    return torch.stack(found)


@pytest.mark.slow
def test_samples_do_not_depend_on_processes_batches_or_shards(tmp_path):
    expected = []
    for kind in GENERATORS:
        torch.manual_seed(0)
        generator = build(kind)
        whole = vfmtok.generate(generator, LABELS, **SETTINGS)
        assert torch.equal(draw_codes(generator, LABELS, 3, ALONE, **SETTINGS), whole)
        expected += [whole, whole]
    for found in ranks.run(_draw, tmp_path):
        assert torch.equal(found, torch.stack(expected))


def test_it_is_exported_and_read_again(caches, tmp_path, kind, capsys):
    """RAR has published names for everything; the permuted GPT's target positions have none, and it says so."""
    folder = trained(caches, "run", generator=GENERATORS[kind], optimizer={"steps": 6})
    code = cli.main(["export", str(folder), str(tmp_path / "weights.pt")])
    if kind == "gpt":
        said = capsys.readouterr().err
        assert code == 2 and "'target_positions.weight' has no name" in said and "--kind pretrained" in said
        return
    content = torch.load(tmp_path / "weights.pt", weights_only=True)
    again = vfmtok.load_released(vfmtok.RAR(small_recipe_config(kind)), content["model"])
    for name, tensor in final(folder, 6).parts["ema"].items():
        assert torch.equal(again.state_dict()[name], tensor)
