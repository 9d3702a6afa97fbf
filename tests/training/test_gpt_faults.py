"""Data that a generator can't learn from: told in one line, before the first step where that is possible."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from small_caches import recipe_file, small_recipe, write_cache
from training_runs import start

from vfmtok import distributed
from vfmtok.errors import ConfigError, DataError, SharedError
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"gpt": {"vocab_size": 33}}, "makes 16 tokens of 33 codes, the token cache .* has 16 tokens of 32 codes"),
        ({"gpt": {"num_tokens": 25}}, "makes 25 tokens of 32 codes, the token cache .* has 16 tokens of 32 codes"),
        ({"gpt": {"num_classes": 4}}, "--num-classes.* is 4, the data have 3 classes"),
        ({"data": {"val_code_path": "other"}}, "made by another tokenizer"),
        ({"data": {"code_path": "nowhere"}}, "no token cache at nowhere"),
        ({"run": {"global_batch": 9, "accumulation": 2}}, "not divisible"),
    ],
)
def test_what_does_not_fit_is_refused(caches, sections, message, monkeypatch):
    monkeypatch.chdir(caches)
    write_cache(caches / "other", made_by="cd" * 32)
    with pytest.raises((ConfigError, DataError), match=message):
        GeneratorRun(small_recipe(caches, **sections), ALONE)


def test_a_run_does_not_go_on_with_tokens_of_another_tokenizer(caches, tmp_path_factory):
    train_generator(small_recipe(caches), ALONE)
    other = tmp_path_factory.mktemp("other")
    write_cache(other / "train", made_by="cd" * 32)
    with pytest.raises(DataError, match="trained on the codes of another tokenizer"):
        GeneratorRun(small_recipe(caches, data={"code_path": str(other / "train")}), ALONE)


def damage(cache: Path, name: str, value: int) -> None:
    array = np.load(cache / name, mmap_mode="r+")
    array[-1] = value
    array.flush()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("ids.npy", 32, "val is damaged: it holds the id 32, and there are 32 codes"), ("labels.npy", 3, "labels 0 to 3")],
)
def test_damaged_held_out_ids_are_found_before_the_first_step(caches, name, value, message):
    damage(caches / "val", name, value)
    with pytest.raises(DataError, match=message):
        GeneratorRun(small_recipe(caches), ALONE)


def test_a_damaged_training_cache_is_one_line(caches):
    """The counted rows leave out the last of 40 here: it is met on the way."""
    run = GeneratorRun(small_recipe(caches), ALONE)
    damage(caches / "train", "ids.npy", 32)
    tokens = run.codes()
    with pytest.raises(DataError, match="train is damaged: it holds the id 32"):
        for _ in range(5):
            next(tokens)


def _refused(recipes: list[GeneratorRecipe], rank: int) -> torch.Tensor:
    with pytest.raises(SharedError) as caught:
        GeneratorRun(recipes[rank], distributed.World(rank, 2, torch.device("cpu")))
    return torch.tensor(list(str(caught.value).encode()))


def all_say(folder: Path, other: dict, both: dict | None = None) -> str:
    """What two processes say, the second of which has ``other`` sections in its recipe."""
    recipes = [small_recipe(folder, **(both or {})), small_recipe(folder, **other)]
    program = partial(_refused, recipes)
    told = [bytes(text.tolist()).decode() for text in ranks.run(program, folder)]
    assert told[0] == told[1]
    return told[0]


def test_what_one_process_finds_wrong_all_say(caches):
    """A node without the cache, say."""
    assert "no token cache at" in all_say(caches, {"data": {"code_path": str(caches / "elsewhere")}})


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_processes_begin_at_the_same_place(caches, parallel):
    """They do not where the run's folder is each machine's own."""
    train_generator(small_recipe(caches, optimizer={"steps": 4}), ALONE)
    told = all_say(caches, {"run": {"results_dir": str(caches / "own")}, "parallel": parallel})
    assert told.startswith("process 0 would begin at step 4, 32 samples seen of a dataset of 40 ")
    assert ", process 1 at step 0, 0 samples seen" in told


def test_all_processes_have_the_same_data(caches):
    write_cache(caches / "shorter", count=39)
    told = all_say(caches, {"data": {"code_path": str(caches / "shorter"), "val_code_path": str(caches / "val")}})
    assert "of a dataset of 40 (fingerprint 0), process 1 at step 0, 0 samples seen of a dataset of 39" in told


def test_a_checkpoint_that_one_process_lacks(caches):
    """It is told before the others spread theirs."""
    train_generator(small_recipe(caches, "first", optimizer={"steps": 4}), ALONE)
    first, second = ({"run": {"continue_from": str(caches / f"first/checkpoints/step_000000{n}")}} for n in (4, 5))
    assert "step_0000005 is no checkpoint to continue from" in all_say(caches, second, first)


def test_two_processes_tell_one_line(caches):
    file = recipe_file(caches, "run", data={"code_path": "nowhere"})
    process = start(file, processes=2, script="train_c2i.py")
    _, err = process.communicate(timeout=120)
    told = [line for line in err.splitlines() if line.startswith("train_c2i.py: error")]
    assert process.returncode != 0 and len(told) == 1 and "no token cache at nowhere" in told[0]
