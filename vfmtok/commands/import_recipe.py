"""`vfmtok import-recipe CONFIG.yaml OUT.yaml`: a configuration of LightningDiT's program as a recipe of ours.

Its conventions end here: it counts points of a grid where ours counts steps, and time from noise to data where ours is
the noise level.
"""

import argparse
from pathlib import Path
from typing import Any

from vfmtok.config import closest_match, config_from_dict, read_tree, save_config
from vfmtok.errors import ConfigError
from vfmtok.generators.diffusion.config import DIT_SIZES
from vfmtok.training.generator_recipe import GeneratorRecipe

MODEL = {  # key of its section ``model``: our field, and its value by theirs
    "in_chans": ("in_channels", int),
    "use_qknorm": ("qk_norm", bool),
    "use_swiglu": ("mlp", {True: "swiglu", False: "gelu"}.__getitem__),
    "use_rope": ("rope", bool),
    "use_rmsnorm": ("norm", {True: "rms", False: "layer"}.__getitem__),
    "wo_shift": ("shift", lambda without: not without),
    "class_dropout_prob": ("label_dropout_p", float),
}
# What says where files are, how often something is printed, or what ours has otherwise.
PASSED_OVER = {
    "": {"ckpt_path", "vae", "scheduler", "wandb"},
    "data": {
        "data_path", "fid_reference_file", "image_size", "num_workers", "sample", "raw_val_dir", "raw_data_dir",
    },
    "model": {"model_type"},
    "train": {"output_dir", "exp_name", "ckpt", "weight_init", "valid_path", "resume", "use_checkpoint"},
    "optimizer": set(),
    "transport": {"loss_weight", "sample_eps", "train_eps", "path_type", "prediction"},
    "sample": {
        "mode", "sampling_method", "num_sampling_steps", "cfg_scale", "cfg_interval_start", "timestep_shift",
        "atol", "rtol", "reverse", "likelihood", "per_proc_batch_size", "fid_num",
    },
}  # fmt: skip
FIXED = {  # what the program offers besides, and ours does not
    "data.latent_norm": (True, "latents are always normalised"),
    "model.learn_sigma": (False, "velocities alone are learned"),
    "transport.path_type": ("Linear", "the straight path is what there is"),
    "transport.prediction": ("velocity", "velocities alone are learned"),
    "transport.loss_weight": (None, "the loss has no weights over time"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write LightningDiT's configuration (its configs/*.yaml) as a recipe for train_c2i.py. Points become steps, "
        "data time becomes the noise level; what ours does not have is refused, where files lie is left out."
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of LightningDiT's program")
    parser.add_argument("out", metavar="OUT", help="the recipe to write; one that is there is not overwritten")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    out = Path(args.out).expanduser()
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another name")
    path = Path(args.config).expanduser()
    recipe = recipe_of(read_tree(path), str(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_config(recipe, out)
    print(f"{out}: train_c2i.py --recipe {out} --code-path CODES")


def recipe_of(tree: dict[str, Any], source: str) -> GeneratorRecipe:
    """The recipe of a file's keys and values. Raises ConfigError for what it can't mean here."""
    _check(tree, source)
    model, train, transport = (tree.get(name) or {} for name in ("model", "train", "transport"))
    optimizer, data = tree.get("optimizer") or {}, tree.get("data") or {}
    size = model.get("model_type")
    if size not in DIT_SIZES:
        hint = closest_match(str(size), DIT_SIZES)
        raise ConfigError(f"{source}: model.model_type is '{size}'{hint}; there are {', '.join(DIT_SIZES)}")
    generator: dict[str, Any] = {"kind": "diffusion", **DIT_SIZES[size]}
    generator |= {field: convert(model[key]) for key, (field, convert) in MODEL.items() if key in model}
    ratio = (tree.get("vae") or {}).get("downsample_ratio", 16)
    generator |= {"size": data.get("image_size", 256) // ratio, "num_classes": data.get("num_classes", 1000)}
    generator |= {
        "multiplier": float(data.get("latent_multiplier", 1.0)),
        "times": "logit-normal" if transport.get("use_lognorm", False) else "uniform",
        "cosine_weight": 1.0 if transport.get("use_cosine_loss", False) else 0.0,
    }
    made = {
        "generator": generator,
        "optimizer": {
            "lr": optimizer.get("lr", 2e-4),
            "betas": [optimizer.get("beta1", 0.9), optimizer.get("beta2", 0.95)],
            "lr_batch": None,
            "weight_decay": optimizer.get("weight_decay", 0.0),
            "max_grad_norm": optimizer.get("max_grad_norm", 0.0),
            "warmup_epochs": 0,
        },
        "ema": {"decay": train.get("ema_decay", 0.9999)},
        "pictures": {"sampling": sampling_of(tree.get("sample") or {}, source)},
        "run": {},
    }
    for key, (section, field) in {
        "max_steps": ("optimizer", "steps"),
        "global_batch_size": ("run", "global_batch"),
        "global_seed": ("run", "seed"),
        "log_every": ("run", "log_every"),
        "ckpt_every": ("run", "save_every"),
    }.items():
        if key in train:
            made[section][field] = train[key]
    return config_from_dict(made, GeneratorRecipe, source)


def sampling_of(sample: dict[str, Any], source: str) -> dict[str, Any]:
    """Its section ``sample`` as settings of ours. Raises ConfigError."""
    mode, points = str(sample.get("mode", "ODE")).upper(), sample.get("num_sampling_steps", 250)
    method = "sde" if mode == "SDE" else sample.get("sampling_method", "euler")
    if method not in ("euler", "heun", "sde"):
        raise ConfigError(f"{source}: sample.sampling_method is {method}: there are euler and heun")
    found: dict[str, Any] = {"method": method, "steps": points if method == "sde" else points - 1}
    shift = sample.get("timestep_shift") or 0
    found["shift"] = 1 / shift if shift > 0 else 1.0
    scale = float(sample.get("cfg_scale", 1.0))
    if scale > 1:
        found |= {"cfg_scale": scale, "cfg_channels": 3}  # its program guides the first three channels
        if start := sample.get("cfg_interval_start") or 0:
            found["cfg_high"] = 1 - start
    return found


def _check(tree: dict[str, Any], source: str) -> None:
    """Raise ConfigError for an unknown key, or a value that ours does not have."""
    read: dict[str, set[str]] = {
        "data": {"num_classes", "latent_norm", "latent_multiplier"},
        "model": {*MODEL, "learn_sigma"},
        "train": {"max_steps", "global_batch_size", "global_seed", "log_every", "ckpt_every", "ema_decay"},
        "optimizer": {"lr", "beta1", "beta2", "weight_decay", "max_grad_norm"},
        "transport": {"use_cosine_loss", "use_lognorm"},
        "sample": set(),
    }
    for section, values in tree.items():
        if section in PASSED_OVER[""]:
            continue
        if section not in read:
            raise ConfigError(f"{source}: unknown section '{section}'{closest_match(section, read)}")
        known = read[section] | PASSED_OVER[section]
        for key, value in (values or {}).items():
            if key not in known:
                raise ConfigError(f"{source}: unknown key '{section}.{key}'{closest_match(key, known)}")
            wanted, why = FIXED.get(f"{section}.{key}", (value, ""))
            if value != wanted:
                raise ConfigError(f"{source}: {section}.{key} is {value}: {why}")
