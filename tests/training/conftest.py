"""Token caches, a tokenizer recipe that trains in seconds on the sample set, and runs of it."""

from pathlib import Path

import pytest
import torch
import training_runs
from image_place import ALONE, GPT, Place
from small_caches import small_recipe, write_cache

from vfmtok import distributed
from vfmtok.config import load_config, save_config
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.train_generator import train_generator
from vfmtok.training.train_tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    training_runs.end_all()


@pytest.fixture
def caches(tmp_path) -> Path:
    """A folder with a token cache, train, and a held-out one, val."""
    write_cache(tmp_path / "train")
    write_cache(tmp_path / "val", count=11, views=1, seed=1)
    return tmp_path


@pytest.fixture
def tiny_recipe(root, sample_set, tmp_path):
    """``tiny_recipe("optimizer.steps=5", ...)``: 16 tokens of 32 px images, 12 steps, one image a pass."""

    def build(*overrides: str, name: str = "run") -> TokenizerRecipe:
        tokenizer = (root / "configs/tiny.yaml").read_text().splitlines()
        file = tmp_path / "recipe.yaml"
        file.write_text("tokenizer:\n" + "\n".join(f"  {line}" for line in tokenizer if not line.startswith("#")))
        settings = [
            f"data.path={sample_set}",
            "data.num_workers=0",
            "loss.perceptual=encoder",
            "adversarial.discriminator=none",
            "optimizer.lr=1e-3",
            "optimizer.steps=12",
            "optimizer.warmup_steps=3",
            f"run.results_dir={tmp_path / name}",
            "run.global_batch=4",
            "run.precision=none",
            "run.log_every=1",
            "run.save_every=4",
            "run.validate_every=100",
            "run.validation_images=4",
            "run.tensorboard=false",
        ]
        return load_config(file, [*settings, *overrides], kind=TokenizerRecipe)

    return build


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    """The same as a file, for runs in other processes."""

    def write(*overrides: str, name: str = "run") -> Path:
        file = tmp_path / f"{name}.yaml"
        save_config(tiny_recipe(*overrides, name=name), file)
        return file

    return write


@pytest.fixture
def train():
    """Train in this process and return the run's folder."""

    def run(recipe: TokenizerRecipe, **options) -> Path:
        train_tokenizer(recipe, distributed.World(0, 1, torch.device("cpu")), **options)
        return Path(recipe.run.results_dir)

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    """Tests that train there have a name each for their run."""
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def run(place) -> Path:
    """Of a generator, 3 steps, with pictures."""
    pictures = {"every": 3, "classes": 2, "per_class": 3}
    recipe = small_recipe(place.folder, gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": 3})
    train_generator(recipe, ALONE)
    return place.folder / "run"
