"""The generator's loop: what it computes, however it is cut, shared, accumulated or killed."""

import json
import math
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from small_caches import recipe_file, small_recipe, write_cache
from torch._dynamo.utils import counters
from training_runs import assert_same, final, finish, killed_again_and_again, last_step, logged, start

import vfmtok
from vfmtok import cli, distributed
from vfmtok.data.code_cache import CodeCache
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.pretrained import loading as pretrained
from vfmtok.pretrained.saving import save_run
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))
REGULARISED = {"dropout_p": 0.1, "token_dropout_p": 0.1, "label_dropout_p": 0.1, "drop_path_rate": 0.1}


def trained(folder: Path, name: str = "run", **sections) -> Path:
    train_generator(small_recipe(folder, name, **sections), ALONE)
    return folder / name


def test_it_learns(tmp_path):
    """Each token is one of three: ln 3 nats at best, where knowing how frequent ids are leaves more than 3."""
    write_cache(tmp_path / "train", count=600)
    write_cache(tmp_path / "val", count=40, views=1, seed=1)
    settings = {"validate_every": 120, "log_every": 40, "save_every": 120, "global_batch": 16}
    folder = trained(tmp_path, optimizer={"steps": 120, "lr": 1e-2}, run=settings)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = next(line for line in lines if "validation/loss" in line)
    assert math.log(3) - 0.05 < found["validation/ema_loss"] < 1.4 < 3 < found["validation/unigram"]
    assert found["validation/uniform"] == pytest.approx(math.log(32))
    assert 0.25 < found["validation/accuracy"] < 0.5
    step = next(line for line in lines if "loss/token" in line)
    assert step.keys() >= {"lr", "images_per_second", "data_wait", "memory_gib", "grad_norm/model", "skipped_steps"}


def test_validation_is_the_mean_of_minus_log_p(caches):
    """Of the weights and of their average, in float64 and token by token, from the checkpoint."""
    folder = trained(caches)
    held_out, train = CodeCache(caches / "val"), CodeCache(caches / "train")
    saved = final(folder)
    for part, name in (("model", "validation/loss"), ("ema", "validation/ema_loss")):
        gpt = vfmtok.from_pretrained(folder, "generator").double()
        gpt.load_state_dict(saved.parts[part])
        losses, hits = [], []
        for row in range(len(held_out)):
            ids, label = held_out[row, 0]
            for token in range(16):
                p = gpt(torch.tensor([label]), ids[None, :token]).logits[0, token].softmax(0)
                losses.append(-math.log(p[ids[token]]))
                hits.append(int(p.argmax() == ids[token]))
        assert logged(folder, name)[12] == pytest.approx(np.mean(losses), abs=1e-5)
        assert logged(folder, name.replace("loss", "accuracy"))[12] == pytest.approx(np.mean(hits), abs=1e-9)
    counts = np.ones(32)
    for row in range(len(train)):
        np.add.at(counts, train[row, 0][0].numpy(), 1)
    expected = -np.mean([np.log(counts[held_out[row, 0][0]] / counts.sum()) for row in range(len(held_out))])
    assert logged(folder, "validation/unigram")[12] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow  # tests/training/test_exactness.py kills the same loop
def test_killed_runs_end_with_the_same_weights(caches):
    """Bit for bit, with everything that draws random numbers; the one process here has threads as the others have."""
    settings = {"gpt": REGULARISED, "run": {"save_every": 3, "validate_every": 9, "keep": 3}}
    endless = recipe_file(caches, "cut", optimizer={"steps": 100_000}, **settings)
    ends = killed_again_and_again(lambda: start(endless, script="train_c2i.py"), caches / "cut", kills=2, seed=0)
    assert ends == [-signal.SIGKILL, 0]
    steps = last_step(caches / "cut") + 20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("whole", "cut"):
            trained(caches, name, optimizer={"steps": steps}, **settings)
    finally:
        torch.set_num_threads(threads)
    assert final(caches / "whole", steps).parts.keys() == {"model", "model_optimizer", "ema"}
    assert_same(final(caches / "whole", steps), final(caches / "cut", steps))
    for name in ("loss/token", "validation/loss"):
        assert logged(caches / "whole", name) == logged(caches / "cut", name)


def test_processes_passes_and_shards_agree(caches):
    """One process, two by DDP and by FSDP2, and two passes at the same global batch: losses within 1e-5, though a third
    of the labels is dropped."""
    chance = {"gpt": {"label_dropout_p": 0.3}}
    runs = {
        "ddp": start(recipe_file(caches, "ddp", **chance), processes=2, script="train_c2i.py"),
        "fsdp": start(recipe_file(caches, "fsdp", **chance), "--parallel", "fsdp", processes=2, script="train_c2i.py"),
        "passes": start(
            recipe_file(caches, "passes", **chance), "--gradient-accumulation-steps", "2", "--checkpoint-activations",
            script="train_c2i.py",
        ),
    }  # fmt: skip
    one = trained(caches, "one", **chance)
    without = logged(trained(caches, "without", optimizer={"steps": 6}), "loss/token")
    assert logged(one, "loss/token")[6] != pytest.approx(without[6], rel=1e-3)  # dropped labels are seen in the loss
    for name, process in runs.items():
        out = finish(process)
        assert ("FSDP2" in out) == (name == "fsdp")
        for value, tolerance in (("loss/token", 1e-5), ("grad_norm/model", 1e-4), ("validation/ema_loss", 1e-5)):
            expected = logged(one, value)
            assert logged(caches / name, value) == pytest.approx(expected, rel=tolerance) and len(expected) >= 2
        a, b = final(one), final(caches / name)
        for part, tensors in a.parts.items():
            assert tensors.keys() == b.parts[part].keys()
            for key, tensor in tensors.items():
                assert torch.allclose(tensor, b.parts[part][key], rtol=1e-3, atol=3e-5), (name, part, key)


def trained_by_two(file: str, rank: int) -> None:
    train_generator(vfmtok.load_config(file, kind=GeneratorRecipe), distributed.World(rank, 2, torch.device("cpu")))


@pytest.mark.slow
def test_parts_train_alike_when_sharded(caches):
    """``train`` names parts of a model whose tensors are spread: the others stay as they are, without moments."""
    settings = {"train": ["layers.1", "output"], "optimizer": {"steps": 4, "weight_decay": 0.5}}
    one = trained(caches, "one", **settings)
    ranks.run(partial(trained_by_two, str(recipe_file(caches, "two", parallel="fsdp", **settings))), caches)
    assert logged(caches / "two", "loss/token") == pytest.approx(logged(one, "loss/token"), rel=1e-5)
    first, second = final(one, 4).parts, final(caches / "two", 4).parts
    assert first["model_optimizer"].keys() == second["model_optimizer"].keys()
    trained_ones = {name.partition("/")[2] for name in first["model_optimizer"]}
    assert trained_ones and all(name.startswith(("layers.1.", "output")) for name in trained_ones)
    for name, tensor in first["model"].items():
        torch.testing.assert_close(second["model"][name], tensor, rtol=1e-3, atol=3e-5)
    fixed = [name for name in first["model"] if not name.startswith(("layers.1.", "output"))]
    begun = trained(caches, "begun", optimizer={"steps": 1, "lr": 0.0, "warmup_lr": 0.0})
    untouched = final(begun, 1).parts["model"]
    assert fixed and all(torch.equal(second["model"][name], untouched[name]) for name in fixed)


def test_a_sharded_run_goes_on_in_one_process(caches):
    """6 steps of FSDP2, then 6 in one process: the losses of 12 in one."""
    whole = logged(trained(caches, "whole"), "loss/token")
    file = recipe_file(caches, "mixed", optimizer={"steps": 6})
    finish(start(file, "--parallel", "fsdp", processes=2, script="train_c2i.py"))
    assert logged(trained(caches, "mixed"), "loss/token") == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_shards(caches):
    """The other way: 6 steps in one process, then 6 of FSDP2."""
    whole = logged(trained(caches, "whole"), "loss/token")
    trained(caches, "mixed", optimizer={"steps": 6})
    file = recipe_file(caches, "mixed")
    assert "continuing" in finish(start(file, "--parallel", "fsdp", processes=2, script="train_c2i.py"))
    assert logged(caches / "mixed", "loss/token") == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_a_compiled_run_is_the_plain_one(caches):
    """One graph trains and one validates, whatever the held-out rows leave over; checkpoints continue either way."""
    plain = trained(caches, "plain", run={"validate_every": 3})
    torch._dynamo.reset()
    counters.clear()
    for steps in (4, 8):
        trained(caches, "compiled", run={"validate_every": 3, "compile": True}, optimizer={"steps": steps})
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    trained(caches, "compiled", run={"validate_every": 3})
    for name in ("loss/token", "validation/loss", "validation/ema_loss"):
        found = logged(caches / "compiled", name)
        assert {step: found[step] for step in logged(plain, name)} == pytest.approx(logged(plain, name), rel=1e-5)
    assert final(plain).parts["model"].keys() == final(caches / "compiled").parts["model"].keys()


def test_sharding_needs_processes(caches):
    with pytest.raises(ConfigError, match=r"scripts/torchrun\.sh"):
        GeneratorRun(small_recipe(caches, parallel="fsdp"), ALONE)


def test_only_matrices_decay(caches):
    """Without a gradient, AdamW takes lr * decay of a matrix and nothing of a norm's weight."""
    run = GeneratorRun(small_recipe(caches, optimizer={"weight_decay": 0.5}), ALONE)
    before = {name: tensor.detach().clone() for name, tensor in run.generator.named_parameters()}
    for parameter in run.generator.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.state.steppers["model"].step(0.1)
    for name, tensor in run.generator.named_parameters():
        factor = 0.95 if tensor.ndim >= 2 else 1.0
        assert torch.allclose(tensor, before[name] * factor, rtol=1e-6), name
    assert any(tensor.ndim < 2 for tensor in before.values())


def test_the_rate_is_that_of_a_batch_of_256(caches):
    folder = trained(caches, optimizer={"lr": 1e-2, "lr_batch": 256, "warmup_steps": 0, "steps": 2})
    assert logged(folder, "lr")[1] == pytest.approx(1e-2 * 8 / 256)


def test_a_run_is_a_generator_under_both_names(caches, tmp_path):
    """Its average is loaded, with what it knows; released names lead to the same model; fine-tuning begins there."""
    folder = trained(caches)
    weights = pretrained.read_weights(folder, "generator")
    assert weights.classes == ["cat", "dog", "Ωmega"] and weights.tokenizer_hash == "ab" * 32
    gpt = vfmtok.from_pretrained(folder, "generator")
    assert torch.equal(gpt.output.weight, final(folder).parts["ema"]["output.weight"])
    torch.save(vfmtok.to_released(gpt), tmp_path / "released.pt")
    again = vfmtok.from_pretrained(tmp_path / "released.pt", "generator", config=gpt.config)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in gpt.state_dict().items())
    with pytest.raises(ConfigError, match="does not say which size it is"):
        vfmtok.from_pretrained(tmp_path / "released.pt", "generator")
    weights = pretrained.read_weights(save_run(folder, tmp_path / "model"), "generator")
    assert weights.classes == ["cat", "dog", "Ωmega"] and weights.tokenizer_hash == "ab" * 32
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in gpt.state_dict().items())
    tuned = GeneratorRun(small_recipe(caches, "tuned", run={"start_from": str(tmp_path / "released.pt")}), ALONE)
    assert torch.equal(tuned.generator.output.weight, gpt.output.weight)
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        pretrained.load_tokenizer(folder)


def test_a_run_leaves_as_one_file(caches, tmp_path, capsys):
    """`vfmtok export`: the average, as test_net.py's --gpt-ckpt and load_released read it; or everything."""
    folder = trained(caches)
    assert cli.main(["export", str(folder), str(tmp_path / "gpt.pt")]) == 0
    assert cli.main(["export", str(folder), str(tmp_path / "full.pt"), "--kind", "full"]) == 0
    assert "full checkpoint" in capsys.readouterr().out
    ours = vfmtok.from_pretrained(folder, "generator")
    size = {"n_layer": 2, "n_head": 2, "dim": 32, "ffn_hidden": 64, "num_tokens": 16}
    weights = pretrained.read_weights(tmp_path / "gpt.pt", "generator")
    theirs = pretrained.build(weights, pretrained.generator_config(weights, "GPT-B", size))
    content = torch.load(tmp_path / "gpt.pt", weights_only=True)
    loaded = vfmtok.load_released(vfmtok.GPT(ours.config), content["model"])
    for name, tensor in final(folder).parts["ema"].items():
        for gpt in (ours, theirs, loaded):
            assert torch.equal(gpt.state_dict()[name], tensor), name
    with pytest.raises(ConfigError, match="has num_classes 3, not 4"):  # --num-classes of test_net.py, for a run
        pretrained.generator_config(pretrained.read_weights(folder, "generator"), None, {"num_classes": 4})
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    assert full.keys() == {"model", "ema", "steps"} and full["steps"] == 12
    assert full["ema"].keys() == full["model"].keys() == content["model"].keys() == vfmtok.to_released(ours).keys()
    assert torch.equal(full["model"]["tok_embeddings.weight"], final(folder).parts["model"]["token_embedding.weight"])


def test_a_part_that_was_never_published_is_not_exported(caches, tmp_path, capsys):
    folder = trained(caches, gpt={"qk_norm": True}, optimizer={"steps": 1})
    capsys.readouterr()
    assert cli.main(["export", str(folder), str(tmp_path / "gpt.pt")]) == 2
    error = capsys.readouterr().err
    assert "'layers.0.attention.q_norm.weight' has no name" in error and error.count("\n") == 1


def test_without_held_out_ids_it_says_so(caches, capsys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    write_cache(folder / "train")
    trained(folder, optimizer={"steps": 1})
    told = capsys.readouterr().out
    assert (
        "there are no held-out codes: validation looks at training codes" in told
        and "no pictures: they need the tokenizer" in told
    )


def test_a_run_that_goes_on_knows_its_best(caches):
    trained(caches, optimizer={"steps": 6})
    run = GeneratorRun(small_recipe(caches), ALONE)
    best = -run.state.metrics["log_likelihood"]
    (line,) = run.alarms.check(best + 0.1, math.inf, warmed_up=True)
    assert "0.100 above its best" in line
