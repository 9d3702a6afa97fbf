"""How the artefacts of version 0.1 in this folder were made: by the code of commit 1ec41f13f3ef, and by no other.

    git worktree add CHECKOUT 1ec41f13f3ef
    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python make.py FOLDER

FOLDER is this one: it holds the recipes (``*.yaml``) and receives

artefacts.tar.xz   what a user of version 0.1 has on the disk; all paths in it are relative to its top:
    data/                    by `vfmtok prepare`: 30 pictures of 3 classes, 24 of them for training
    init_models/             a frozen encoder of random signs: it compresses, and it is the same on every machine
    tokenizer_start/         the checkpoint of step 0 that the runs of tokenizer.yaml begin at
    tokenizer_run/           the run of tokenizer.yaml as a power cut after its step 3 leaves it
    codes/                   by `vfmtok codes`, with that tokenizer: train with 18 views, val with one
    generator_run/           the run of generator.yaml as a power cut after its step 3 leaves it
    pretrained/tokenizer/    `vfmtok export --kind pretrained` of tokenizer_run
    pretrained/gpt/          the same of a generator that made the 50 steps of generator_50.yaml
    fsq/                     `save_pretrained` of an untrained tokenizer with finite scalar quantization
expected.json      hashes, digests and sums of the tensors after step 6, losses of 50 steps, settings of `generate`
expected.npz       inputs, and what version 0.1 computes of them

The patchgan of tokenizer_start has SPARSE live channels in every layer and zeros elsewhere. Dead channels get no
gradient and stay as they are: so its weights and moments, 33 MB as a file, compress to nearly nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from vfmtok.hub.model_hash import tokenizer_hash
from vfmtok.training.checkpoint import CheckpointFolder

import vfmtok
from vfmtok import cli, distributed
from vfmtok.config import load_config
from vfmtok.data.code_cache import CodeCache
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.tokenizer_run import TokenizerRun

COMMIT = "1ec41f13f3efdea53f437bf6592f31ed11a17afa"
CHECKOUT = Path(vfmtok.__file__).resolve().parents[1]
CLASSES = ("bird", "cat", "Ωmega")
SPARSE = 4
GENERATE = {  # name -> settings of vfmtok.generate
    "greedy": {"greedy": True, "cfg_scale": 1.0},
    "guided": {"seed": 7, "cfg_scale": 2.0, "top_k": 12},
    "scheduled": {"seed": 8, "cfg_scale": 3.0, "cfg_schedule": "linear", "temperature": 0.9, "top_p": 0.9},
}


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    if head.stdout.strip() != COMMIT:
        raise SystemExit(f"{CHECKOUT} is not at commit {COMMIT}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        for recipe in folder.glob("*.yaml"):
            shutil.copy(recipe, work)
        os.chdir(work)
        make_data()
        make_encoder()
        make_tokenizer_start()
        expected = {"commit": COMMIT, "platform": platform(), **make_runs()}
        make_fsq()
        arrays, found = compute()
        expected |= found | {"tokenizer_losses": losses("tokenizer_50"), "generator_losses": losses("generator_50")}
        np.savez_compressed(folder / "expected.npz", **arrays)
        (folder / "expected.json").write_text(as_text(expected) + "\n", encoding="utf-8")
        pack(folder / "artefacts.tar.xz")
    loaded = {Path(module.__file__) for name, module in sys.modules.items() if name.startswith("vfmtok.")}
    if strangers := [path for path in loaded if CHECKOUT not in path.resolve().parents]:
        raise SystemExit(f"not of {CHECKOUT}, but of an editable install of another checkout: {strangers}")


def platform() -> dict[str, str]:
    """What decides how floats are rounded: on a machine where all of it is equal, results are equal bit for bit."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    facts = dict(map(str.strip, line.split(":", 1)) for line in cpu.partition("\n\n")[0].splitlines() if ":" in line)
    model = ", ".join(f"{name} {facts.get(name)}" for name in ("model name", "cpu family", "model"))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "timm": timm.__version__, "capability": capability, "cpu": model}


# --------------------------------------------------------------------------------------
# What a user has on the disk
# --------------------------------------------------------------------------------------


def vfmtok_command(*arguments: str) -> None:
    if cli.main(list(arguments)) != 0:
        raise SystemExit(f"vfmtok {' '.join(arguments)} failed")


def train(script: str, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(CHECKOUT / script), *arguments], env=environment, check=True)


def make_data() -> None:
    """Smooth PNGs, whose pixels are the same with every decoder, of several sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(CLASSES):
            Path(f"pictures/{split}/{name}").mkdir(parents=True)
            for number in range(count):
                coarse = random.integers(0, 160, (4, 4, 3), dtype=np.uint8)
                coarse[..., label] += 90
                size = [(32, 32), (40, 34), (33, 48)][number % 3]
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.quantize(64).convert("RGB").save(f"pictures/{split}/{name}/{number:03d}.png")
    vfmtok_command("prepare", "pictures", "data", "--workers", "1")
    shutil.rmtree("pictures")


def make_encoder() -> None:
    """Matrices of random signs at the scale that keeps variances, norms as they are born."""
    random = np.random.default_rng(1)
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    for tensor in weights.values():
        if tensor.ndim > 1:
            signs = random.integers(0, 2, tensor.shape) * 2.0 - 1.0
            tensor.copy_(torch.from_numpy(signs / np.sqrt(np.prod(tensor.shape[1:]))))
        else:
            tensor.fill_(float((tensor != 0).all()))
    Path("init_models").mkdir()
    safetensors.torch.save_file(weights, "init_models/test_vit.safetensors")


@torch.no_grad()
def make_tokenizer_start() -> None:
    """The first weights of the recipe's seed, shortened to bfloat16, and a sparse patchgan, as a checkpoint."""
    run = TokenizerRun(
        load_config("tokenizer.yaml", kind=TokenizerRecipe), distributed.World(0, 1, torch.device("cpu"))
    )
    for name, tensor in run.tokenizer.named_parameters():
        tensor.copy_(tensor.bfloat16())
        if tensor.requires_grad:
            run.state.ema.average[name].copy_(tensor)
    layers = list(run.discriminator.layers)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight[SPARSE if layer is not layers[-1] else 1 :] = 0
            layer.weight[:, SPARSE if layer is not layers[0] else 3 :] = 0
        if hasattr(layer, "bias") and layer.bias is not None:
            layer.bias[SPARSE if layer is not layers[-1] else 1 :] = 0
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight[SPARSE:] = 0
    CheckpointFolder(Path("tokenizer_start/checkpoints")).save(run.state.checkpoint())


def make_runs() -> dict:
    """The runs, in one go, and the same from step 3 on, which must end alike; then they lose all after step 3."""
    train("vq_train.py", "--recipe", "tokenizer.yaml", "--vq-ckpt", "tokenizer_start")
    found = {"tokenizer_step_6": cut_after_step_3("vq_train.py", "tokenizer.yaml", "tokenizer_run")}
    train("vq_train.py", "--recipe", "tokenizer_50.yaml")
    vfmtok_command("export", "tokenizer_run", "pretrained/tokenizer", "--kind", "pretrained")
    for split, views in (("train", "shift"), ("val", "center")):
        arguments = ("--vq-ckpt", "tokenizer_run", "--views", views, "--batch-size", "8", "--num-workers", "0")
        vfmtok_command("codes", f"data/{split}_lmdb", f"codes/{split}", *arguments)
    train("train_c2i.py", "--recipe", "generator.yaml")
    found["generator_step_6"] = cut_after_step_3("train_c2i.py", "generator.yaml", "generator_run")
    train("train_c2i.py", "--recipe", "generator_50.yaml")
    vfmtok_command("export", "generator_50", "pretrained/gpt", "--kind", "pretrained")
    vfmtok_command("export", "tokenizer_run", "exported.pt", "--kind", "full")
    exported = torch.load("exported.pt", weights_only=True)
    tensors = {
        f"{part}/{name}": tensor
        for part in ("model", "ema", "discriminator")
        for name, tensor in exported[part].items()
    }
    return found | {"exported": {name: digest(tensor) for name, tensor in tensors.items()}}


def cut_after_step_3(script: str, recipe: str, run: str) -> dict:
    """Digests of step 6, of which the run then knows nothing more."""
    whole = Path(run).rename(f"{run}_whole")
    shutil.copytree(whole, run)
    forget_after_step_3(Path(run))
    train(script, "--recipe", recipe)
    found, resumed = step_6(whole), step_6(Path(run))
    if found != resumed:
        raise SystemExit(f"{run}: resumed at step 3 it does not end with the tensors of the run in one go")
    print(f"{run}: resumed at step 3 it ends with the {sum(map(len, found.values()))} tensors of the run in one go")
    shutil.rmtree(run)
    shutil.copytree(whole, run)
    forget_after_step_3(Path(run))
    return found


def forget_after_step_3(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step_0000006")
    for picture in run.glob("pictures/*_0000006.png"):
        picture.unlink()
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))


def make_fsq() -> None:
    quantizer = ["kind=fsq", "levels=[4,4,2]", "code_dim=3"]
    changes = ["codebook.kmeans=false", "codebook.revive=false", *(f"tokenizer.quantizer.{part}" for part in quantizer)]
    torch.manual_seed(2)
    tokenizer = vfmtok.VFMTok(load_config("tokenizer.yaml", changes, TokenizerRecipe).tokenizer)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(parameter.bfloat16())  # it compresses
    vfmtok.save_pretrained(tokenizer, "fsq")


# --------------------------------------------------------------------------------------
# What is expected of it
# --------------------------------------------------------------------------------------


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()


def step_6(run: Path) -> dict[str, dict[str, list]]:
    """part -> name of a tensor -> its digest, and mean and mean square for machines that round otherwise."""
    found = {}
    for file in sorted(run.glob("checkpoints/step_0000006/*.safetensors")):
        tensors = safetensors.torch.load_file(file)
        found[file.stem] = {
            name: [digest(tensor), float(tensor.double().mean()), float(tensor.double().square().mean())]
            for name, tensor in sorted(tensors.items())
        }
    return found


def losses(run: str) -> dict[str, list[float]]:
    """name -> of every step, None where the step had no such term."""
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "lr" in line]  # not validation's
    if len(lines) != 50:
        raise SystemExit(f"{run} logged {len(lines)} steps")
    names = sorted({name for line in lines for name in line if name.startswith("loss/")})
    return {name: [line.get(name) for line in lines] for name in names}


def compute() -> tuple[dict[str, np.ndarray], dict]:
    """Inputs and outputs, and the digests of those that are floats or rounded from floats."""
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    arrays, hashes, digests = {"images": images}, {}, {}
    batch = torch.from_numpy(images).float() / 127.5 - 1
    for name in ("tokenizer_run", "fsq"):
        tokenizer = vfmtok.from_pretrained(name)
        hashes[name] = tokenizer_hash(tokenizer)
        ids = tokenizer.encode(batch).ids
        pixels = tokenizer.decode_to_uint8(ids, 48)
        arrays |= {f"{name}/ids": ids.numpy(), f"{name}/pixels": pixels.numpy()}
        digests[f"{name}/pixels"] = digest(pixels)
    cache = CodeCache("codes/val")
    ids, labels = torch.stack([cache[i, 0][0] for i in range(len(cache))]), cache.labels
    arrays |= {"gpt_ids": ids.numpy(), "gpt_labels": labels.numpy()}
    for name in ("generator_run", "pretrained/gpt"):
        gpt = vfmtok.from_pretrained(name, "gpt")
        logits = gpt(labels, ids[:, :-1]).logits
        arrays[f"{name}/logits"], digests[f"{name}/logits"] = logits.numpy(), digest(logits)
    for kind, settings in GENERATE.items():
        arrays[f"generated/{kind}"] = vfmtok.generate(gpt, labels, **settings).numpy()
    return arrays, {"tokenizer_hash": hashes, "digests": digests, "generate": GENERATE}


def as_text(value, indent: str = "") -> str:
    """JSON with a line for every list."""
    if not isinstance(value, dict):
        return json.dumps(value)
    lines = [f"{indent} {json.dumps(key)}: {as_text(item, indent + ' ')}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def pack(file: Path) -> None:
    """Without pictures and locks, and without what tells machine and user."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return None if entry.name.endswith(("run.lock", "lock.mdb", ".png")) else entry

    with tarfile.open(file, "w:xz", preset=9) as archive:
        for name in (
            "data",
            "init_models",
            "tokenizer_start",
            "tokenizer_run",
            "codes",
            "generator_run",
            "pretrained",
            "fsq",
        ):
            archive.add(name, filter=anonymous)


if __name__ == "__main__":
    main()
