"""Diffusion generators on caches of latents, trained by the loop of all others."""

import json

import pytest
import torch
from small_caches import recipe_file, small_recipe, write_latent_cache
from training_runs import assert_same, final, finish, logged, start

import vfmtok
from vfmtok import distributed
from vfmtok.data.latent_cache import LatentCache
from vfmtok.errors import ConfigError
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))
SHAPE = {"in_channels": 4, "size": 4, "width": 32, "depth": 2, "heads": 2, "num_classes": 3, "label_dropout_p": 0.3}
GENERATORS = {
    "LightningDiT": {"kind": "diffusion", **SHAPE},
    "DiT-DH": {
        "kind": "diffusion", **SHAPE, "time_runs": "to_noise", "time_embedding": "fourier", "condition_silu": True,
        "init": "torch", "head_width": 48, "head_depth": 1, "head_heads": 2, "times": "uniform", "times_end": 0.999,
        "time_shift": 2.0, "cosine_weight": 0.0,
    },
}  # fmt: skip


@pytest.fixture
def latents(tmp_path):
    """A folder with a latent cache, train, and a held-out one, val."""
    write_latent_cache(tmp_path / "train")
    write_latent_cache(tmp_path / "val", count=11, seed=1)
    return tmp_path


@pytest.fixture(params=GENERATORS)
def kind(request):
    return request.param


def trained(folder, name="run", kind="LightningDiT", **sections):
    train_generator(small_recipe(folder, name, **{"generator": GENERATORS[kind], **sections}), ALONE)
    return folder / name


def test_it_learns_classes_in_the_tokenizer_s_units(tmp_path):
    write_latent_cache(tmp_path / "train", count=300)
    write_latent_cache(tmp_path / "val", count=40, seed=1)
    settings = {"validate_every": 150, "log_every": 50, "save_every": 150, "global_batch": 32}
    generator = {**GENERATORS["LightningDiT"], "label_dropout_p": 0.1}
    folder = trained(tmp_path, generator=generator, optimizer={"steps": 150, "lr": 5e-3}, run=settings)
    first, last = logged(folder)[50], logged(folder)[150]
    assert last < first < 3
    assert logged(folder, "latents/std")[150] == pytest.approx(1, abs=0.1)
    dit = vfmtok.from_pretrained(folder, "generator")
    statistics = LatentCache(tmp_path / "train").statistics
    assert torch.equal(dit.statistics.mean, statistics.mean.expand(4, 4, 4))
    labels = torch.arange(3).repeat_interleave(12)
    drawn = vfmtok.generate(dit, labels, steps=20, seed=1).mean((2, 3))  # (36,4)
    of_class = drawn[torch.arange(36), labels].mean()
    others = (drawn.sum(1) - drawn[torch.arange(36), labels]).mean() / 3
    assert of_class == pytest.approx(9, abs=1.5) and others == pytest.approx(3, abs=1)


def test_a_run_that_was_cut_continues_bit_for_bit(latents, kind):
    whole = trained(latents, "whole", kind)
    trained(latents, "cut", kind, optimizer={"steps": 6}, run={"save_every": 3})
    cut = trained(latents, "cut", kind)
    assert_same(final(whole), final(cut))
    assert logged(whole, "validation/loss")[12] == logged(cut, "validation/loss")[12]


def agree(one, other):
    for value, tolerance in (("loss/mse", 1e-5), ("grad_norm/model", 1e-4), ("validation/ema_loss", 1e-5)):
        expected = logged(one, value)
        assert logged(other, value) == pytest.approx(expected, rel=tolerance) and len(expected) >= 2


def test_passes_agree(latents, kind):
    """Two passes of half a batch draw the same times, noise and dropped labels: losses equal but for rounding."""
    one = trained(latents, "one", kind)
    agree(one, trained(latents, "passes", kind, run={"accumulation": 2, "checkpoint_activations": True}))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_agree(latents, kind, parallel):
    """Two processes, also with sharded weights, train as one process does."""
    file = recipe_file(latents, parallel, generator=GENERATORS[kind])
    both = start(file, "--parallel", parallel, processes=2, script="train_c2i.py")
    one = trained(latents, "one", kind)
    finish(both)
    agree(one, latents / parallel)
    a, b = final(one), final(latents / parallel)
    for key, tensor in a.parts["ema"].items():
        assert torch.allclose(tensor, b.parts["ema"][key], rtol=1e-3, atol=3e-5), key


def test_validation_has_the_same_times_and_noise_every_time(latents):
    run = GeneratorRun(small_recipe(latents, generator=GENERATORS["LightningDiT"]), ALONE)
    run.generator.eval()
    values = [run.held_out.measure(run.generator, run.autocast)["loss"] for _ in range(2)]
    assert values[0] == values[1]
    run.held_out.batch = 3
    assert run.held_out.measure(run.generator, run.autocast)["loss"] == pytest.approx(values[0], rel=1e-5)


def test_latents_of_other_statistics_raise_an_alarm(latents):
    """Once, though every batch is outside of 0.5 to 2; and none where they fit."""
    fitting = trained(latents, "fitting", optimizer={"steps": 3})
    write_latent_cache(latents / "other", seed=5)
    (latents / "train/stats.safetensors").write_bytes(b"")
    statistics = LatentCache(latents / "other").statistics
    type(statistics)(statistics.mean, statistics.std / 5, statistics.count).save(latents / "train/stats.safetensors")
    wrong = trained(latents, "wrong", optimizer={"steps": 3})
    alarms = []
    for folder in (fitting, wrong):
        lines = (folder / "log.jsonl").read_text().splitlines()
        alarms.append([json.loads(line)["alarm"] for line in lines if "normalised latents" in line])
    assert alarms[0] == [] and len(alarms[1]) == 1 and "standard deviation 4" in alarms[1][0]


def test_statistics_per_position_are_asked_for(latents):
    generator = {**GENERATORS["DiT-DH"], "normalised": "position"}
    with pytest.raises(ConfigError, match="wants them per position"):
        trained(latents, generator=generator)
    write_latent_cache(latents / "placed/train", per="position")
    data = {"code_path": str(latents / "placed/train")}
    folder = trained(latents, generator=generator, data=data, optimizer={"steps": 1})
    mean = vfmtok.from_pretrained(folder, "generator").statistics.mean
    assert not torch.equal(mean, mean[:, :1, :1].expand_as(mean))


def test_a_multiplier_alone_normalises(latents):
    """SD-VAE's way: mean 0, deviation 1, a multiplier; no alarm where it makes the latents what they should be."""
    spread = 1 / LatentCache(latents / "train").statistics.std.mean().item()
    generator = {**GENERATORS["LightningDiT"], "normalised": "none", "multiplier": spread}
    folder = trained(latents, generator=generator, optimizer={"steps": 3})
    dit = vfmtok.from_pretrained(folder, "generator")
    mean, std = dit.latent_statistics
    assert not mean.any() and std.mean().item() == pytest.approx(1 / spread)
    assert "normalised latents" not in (folder / "log.jsonl").read_text()


def test_statistics_and_multiplier_are_the_new_run_s_where_weights_are_another_s(latents):
    """Fine-tuning: of published weights nothing is said of statistics, which no file has."""
    first = trained(latents, "first", optimizer={"steps": 2})
    torch.save(vfmtok.to_released(vfmtok.from_pretrained(first, "generator")), latents / "dit.pt")
    write_latent_cache(latents / "other/train", seed=7)
    expected = LatentCache(latents / "other/train").statistics.mean.expand(4, 4, 4)
    for weights in (first, latents / "dit.pt"):
        run = {"start_from": str(weights)}
        generator = {**GENERATORS["LightningDiT"], "multiplier": 0.5}
        data = {"code_path": str(latents / "other/train")}
        recipe = small_recipe(latents, f"from-{weights.stem}", generator=generator, data=data, run=run)
        built = GeneratorRun(recipe, ALONE)
        assert built.generator.statistics.multiplier == 0.5
        assert torch.equal(built.generator.statistics.mean, expected)
        assert not [line for line in built.notes if "at random: statistics" in line]
