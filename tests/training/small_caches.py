"""Token caches with something to learn, and generators that learn it in seconds."""

from pathlib import Path

import numpy as np

from vfmtok.config import config_from_dict, save_config
from vfmtok.data import code_cache
from vfmtok.data.latent_cache import write_statistics
from vfmtok.training.generator_recipe import GeneratorRecipe

CLASSES = ["cat", "dog", "Ωmega"]


def write_cache(
    path: Path, count: int = 40, views: int = 2, seed: int = 0, made_by: str = "ab" * 32, codes: int = 32
) -> Path:
    """16 tokens: a ramp that begins where the class says, one of three codes everywhere."""
    random = np.random.default_rng(seed)
    metadata = {
        "tokenizer_hash": made_by, "dataset": "drawn", "dataset_fingerprint": str(seed), "num_samples": count,
        "classes": CLASSES, "views": [str(view) for view in range(views)], "seed": None, "image_size": 32,
        "num_tokens": 16, "grid": 4, "codebook_size": codes, "precision": "fp32",
    }  # fmt: skip
    code_cache.begin(path, metadata)
    labels = np.arange(count) % len(CLASSES)
    ids = (labels[:, None, None] * 9 + np.arange(16) + random.integers(0, 3, (count, views, 16))) % 32
    writer = code_cache.CodeCacheWriter(path)
    writer.write(0, ids, labels, np.zeros(count, bool))
    writer.finish()
    writer.close()
    return path


def write_latent_cache(path: Path, count: int = 40, seed: int = 0, per: str = "channel") -> Path:
    """Latents (4,4,4): a bump where the class says, mean 3, two views."""
    random = np.random.default_rng(seed)
    metadata = {
        "tokenizer_hash": "cd" * 32, "dataset": "drawn", "dataset_fingerprint": str(seed), "num_samples": count,
        "classes": CLASSES, "views": ["centre", "centre flipped"], "seed": None, "image_size": 32, "precision": "fp32",
        "code": {"latents": [4, 4, 4]}, "posterior": None, "latent_dtype": "float32",
    }  # fmt: skip
    code_cache.begin(path, metadata)
    labels = np.arange(count) % len(CLASSES)
    latents = 3 + random.normal(size=(count, 2, 1, 4, 4, 4))
    latents[np.arange(count), :, :, labels] += 6
    writer = code_cache.CodeCacheWriter(path)
    writer.write(0, latents, labels, np.zeros(count, bool))
    writer.finish(statistics=write_statistics(path, writer.written_rows(), per))
    writer.close()
    return path


def small_recipe(folder: Path, name: str = "run", **sections: dict) -> GeneratorRecipe:
    """``small_recipe(folder, optimizer={"steps": 5})``: 2 layers of width 32 on the caches in ``folder``, 12 steps.

    A GPT, unless a section ``generator`` says what else.
    """
    tree = {
        "gpt": {
            "n_layer": 2, "n_head": 2, "dim": 32, "ffn_hidden": 64, "vocab_size": 32, "num_tokens": 16,
            "num_classes": 3, "dropout_p": 0.0, "token_dropout_p": 0.0, "label_dropout_p": 0.0,
        },
        "data": {"code_path": str(folder / "train"), "num_workers": 0},
        "optimizer": {"lr": 3e-3, "lr_batch": None, "steps": 12, "warmup_steps": 2},
        "ema": {"decay": 0.9},
        "run": {
            "results_dir": str(folder / name), "global_batch": 8, "precision": "none", "log_every": 1,
            "save_every": 4, "validate_every": 6, "tensorboard": False,
        },
    }  # fmt: skip
    if "generator" in sections:
        del tree["gpt"]
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return config_from_dict(tree, GeneratorRecipe)


def recipe_file(folder: Path, name: str, **sections: dict) -> Path:
    """The same as a file, for runs in other processes."""
    file = folder / f"{name}.yaml"
    save_config(small_recipe(folder, name, **sections), file)
    return file
