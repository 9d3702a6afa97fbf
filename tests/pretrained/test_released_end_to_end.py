"""From a Hub to pictures and numbers: every published system by its released names, through the commands a user types.

The files are small and drawn by rule; ``--set`` says their shape. At full size: test_llamagen_at_full_size.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import golden_rule
import numpy as np
import pytest
import releases
import safetensors.torch
import timm
import tiny_models
import torch
from PIL import Image
from releases import HITA, LLAMAGEN, VFMTOK
from saved_models import assert_same, torch_file

import vfmtok
from vfmtok import cli
from vfmtok.commands import evaluation_flags as flags
from vfmtok.commands.evaluation_scripts import measure_generator, measure_tokenizer
from vfmtok.config import config_to_dict, dump_config, read_tree
from vfmtok.pretrained.published import PUBLISHED
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder
from vfmtok.weights.name_maps import own_tensors

HITA_SHAPE = (
    "image_size=32", "dim=64", "num_holistic=6", "depth=1", "heads=2", "mlp_dim=64",
    "encoder.name=test_vit", "encoder.image_size=64", "encoder.levels=[6]",
    "patch_encoder.channels=32", "patch_encoder.multipliers=[1,1,1]", "patch_encoder.res_blocks=1",
    "holistic_quantizer.codebook_size=48", "patch_quantizer.codebook_size=48",
    "pixel_decoder.channels=32", "pixel_decoder.multipliers=[1,1,1]", "pixel_decoder.res_blocks=1",
)  # fmt: skip


def _flat(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        found += (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}={json.dumps(value)}"]
        )
    return found


VFMTOK_SHAPE = tuple(text for text in _flat(read_tree(tiny_models.CONFIG)) if "weights" not in text)
GPT = ("n_layer=2", "n_head=4", "dim=32", "vocab_size=48", "num_tokens=64")
SYSTEMS = {  # tokenizer's part and shape, generator's part and shape, manifests
    "llamagen": (LLAMAGEN, "vq_ds16_c2i", releases.VQGAN, "c2i_B_256", GPT, ("tokenizer-vq16-256", "gpt-b-256-cfg")),
    "hita": (
        HITA, "ultra/tokenizer", HITA_SHAPE, "ultra/GPT-B-250e", (*GPT, "num_holistic=6"),
        ("tokenizer-u", "u-gpt-b-250e-cfg"),
    ),
    "rar": (VFMTOK, "tokenizer", VFMTOK_SHAPE, "RAR-L", releases.RAR, (None, "l-no-cfg")),
}  # fmt: skip


@pytest.fixture(params=SYSTEMS)
def system(request, hub, tmp_path):
    """(name, repository, parts, their models, settings of the tokenizer and of the generator) of a served system."""
    repository, first, shape, second, generator_shape, _ = SYSTEMS[request.param]
    if PUBLISHED[repository].encoder is not None:
        torch.manual_seed(1)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "encoder.pt")
        shape = (*shape, f"encoder.weights={tmp_path / 'encoder.pt'}")
    models = [releases.model_of(repository, part, s) for part, s in ((first, shape), (second, generator_shape))]
    hub.repositories[repository] = {}
    for part, model in zip((first, second), models, strict=True):
        row = PUBLISHED[repository].parts[part]
        content = releases.training_checkpoint(model, row.prefer)
        if row.file.endswith(".safetensors"):
            content = safetensors.torch.save({n: t.contiguous() for n, t in vfmtok.to_released(model).items()})
        hub.repositories[repository][row.file] = content
    changes = [f"tokenizer.{s}" for s in shape], [f"generator.{s}" for s in generator_shape]
    return request.param, repository, (first, second), models, [[w for c in s for w in ("--set", c)] for s in changes]


@pytest.mark.parametrize("system", ["llamagen", "rar", pytest.param("hita", marks=pytest.mark.slow)], indirect=True)
def test_sampled_measured_and_reproduced(system, tmp_path, capsys, one_thread):
    name, repository, (first, second), (tokenizer, generator), (of_tokenizer, of_generator) = system
    data, settings = tiny_models.write_dataset(tmp_path / "data"), [*of_tokenizer, *of_generator]
    # A picture, of the generator alone: it knows its tokenizer.
    out = tmp_path / "grid.png"
    words = ["--classes", "0,2", "--n", "1", "--image-size", "32", "--out", str(out)]
    assert cli.main(["sample", "--gpt", f"{repository}:{second}", *words, *settings]) == 0
    assert np.asarray(Image.open(out)).std() > 0
    # test_net.py: the samples are those of the models.
    arguments = [
        "--gpt-ckpt",
        f"{repository}:{second}",
        "--num-fid-samples",
        "4",
        "--image-size-eval",
        "32",
        "--no-fid",
    ]
    parsed = flags.generation_parser().parse_args(
        [*arguments, "--cfg-scale", "2", "--sample-dir", str(tmp_path / "samples"), *settings]
    )
    measure_generator(parsed, tiny_models.WORLD)
    (folder,) = (tmp_path / "samples").iterdir()
    assert folder.name.startswith(Path(PUBLISHED[repository].parts[second].file).stem)
    pixels, labels = tiny_models.samples_in(folder)
    settings_of_family = dataclasses.asdict(generator.sampling(cfg_scale=2.0))
    ids = vfmtok.generate(generator, torch.from_numpy(labels).long(), seed=0, **settings_of_family)
    assert np.array_equal(tokenizer.decode_to_uint8(ids, 32).numpy(), pixels)
    # vqgan_test.py.
    parsed = flags.reconstruction_parser().parse_args(
        ["--vq-ckpt", f"{repository}:{first}", "--anno-file", str(data.path), "--no-fid", "--no-lpips",
         "--output_dir", str(tmp_path / "recons"), "--image-size-eval", "32", "--num_workers", "0", *of_tokenizer]
    )  # fmt: skip
    numbers = tiny_models.values(measure_tokenizer(parsed, tiny_models.WORLD))
    assert np.isfinite(numbers["PSNR"])
    capsys.readouterr()
    # `vfmtok reproduce`, of both.
    for task, manifest in zip(("tokenizer", "generator"), SYSTEMS[name][-1], strict=True):
        if manifest is None:
            continue
        words = [f"{name}-{manifest}", "--num", "4", "--no-fid", "--results-dir", str(tmp_path / "results")]
        words += ["--data", str(data.path), *of_tokenizer] if task == "tokenizer" else settings
        assert cli.main(["reproduce", *words]) == 0
        said = capsys.readouterr().out
        assert "nothing is passed or failed: 4 images instead of the published 50,000" in said
        if task == "generator":
            made = sorted(path.name for path in (tmp_path / f"results/{name}-{manifest}-4").iterdir())
            assert len(made) == (2 if name == "hita" else 1)  # both boundaries
            assert ("embedded as in training, which decides nothing" in said) == (name == "hita")


def test_reproduced_where_the_hub_is_not_reached(system, tmp_path, monkeypatch, capsys, one_thread):
    """By a copy of the cache that another machine filled; and without a frozen encoder, which decoding does not use."""
    name, repository, (first, second), _, (of_tokenizer, of_generator) = system
    assert cli.main(["download", repository, first, second, "--cache-dir", str(tmp_path / "there")]) == 0
    shutil.copytree(tmp_path / "there", tmp_path / "copied", symlinks=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    manifest = f"{name}-{SYSTEMS[name][-1][1]}"
    words = ["reproduce", manifest, "--num", "4", "--no-fid", "--offline", *of_tokenizer, *of_generator]
    assert cli.main([*words, "--results-dir", str(tmp_path / "none")]) == 2
    assert "is not in the cache" in capsys.readouterr().err
    words += ["--cache-dir", str(tmp_path / "copied")]
    encoders = {"own": [], "random": ["--set", "tokenizer.encoder.weights=random"]}
    pixels = []
    for which in encoders if PUBLISHED[repository].encoder else ("own",):
        assert cli.main([*words, *encoders[which], "--results-dir", str(tmp_path / which)]) == 0
        folders = sorted((tmp_path / which / f"{manifest}-4").iterdir())  # of Hita, both boundaries
        pixels.append([tiny_models.samples_in(folder)[0] for folder in folders])
    assert all(np.array_equal(pixels[0], other) for other in pixels)


def test_what_was_trained_is_exported_under_the_released_names(system, tmp_path):
    """The file of `vfmtok export` is opened by the part's own name, and is what the publisher's would be."""
    _, repository, parts, models, settings = system
    for part, model in zip(parts, models, strict=True):
        row = PUBLISHED[repository].parts[part]
        config = config_to_dict(model.config)
        recipe = TokenizerRecipe(tokenizer=model.config)
        if row.section == "generator":
            recipe = GeneratorRecipe(generator=model.config)
        tensors = {name: tensor.detach().contiguous() for name, tensor in own_tensors(model).items()}
        saved = Checkpoint(3, {"model": tensors}, {"recipe": {row.section: config}}, dump_config(recipe))
        CheckpointFolder(tmp_path / row.section / "checkpoints").save(saved)
        out = tmp_path / f"{row.section}.pt"
        assert cli.main(["export", str(tmp_path / row.section), str(out)]) == 0
        content = torch.load(out, weights_only=True)["model"]
        released = vfmtok.to_released(model)
        assert content.keys() == released.keys()
        assert all(torch.equal(tensor, released[name]) for name, tensor in content.items())
        laid = tmp_path / "laid" / row.file
        laid.parent.mkdir(parents=True, exist_ok=True)
        if row.file.endswith(".safetensors"):
            safetensors.torch.save_file(content, laid)
        else:
            out.rename(laid)
        changes = [word.partition(".")[2] for word in settings[row.section == "generator"] if word != "--set"]
        assert_same(vfmtok.from_pretrained(tmp_path / "laid", part, overrides=changes), model)


@pytest.mark.slow
def test_llamagen_at_full_size(hub, tmp_path, capsys):
    """`vq_ds16_c2i.pt` and `c2i_B_256.pt` by rule: every published name and shape."""
    tokenizer = golden_rule.weights("llamagen/vq16_keys.json")
    tokenizer["quantize.codebook_used"].zero_()
    hub.repositories[LLAMAGEN] = {
        "vq_ds16_c2i.pt": torch_file({"model": tokenizer, "steps": 1}),
        "c2i_B_256.pt": torch_file({"model": golden_rule.weights("gpt_b_keys.json"), "steps": 1}),
    }
    out = tmp_path / "grid.png"
    assert (
        cli.main(["sample", "--gpt", f"{LLAMAGEN}:c2i_B_256", "--classes", "207", "--n", "1", "--out", str(out)]) == 0
    )
    assert np.asarray(Image.open(out)).std() > 0
    data = tiny_models.write_dataset(tmp_path / "data").path
    common = ["--num", "2", "--no-fid", "--results-dir", str(tmp_path / "results")]
    assert cli.main(["reproduce", "llamagen-tokenizer-vq16-256", "--data", str(data), *common]) == 0
    assert cli.main(["reproduce", "llamagen-gpt-b-256-cfg", *common]) == 0
    assert "2 images instead of the published 50,000" in capsys.readouterr().out
