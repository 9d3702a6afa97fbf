"""What version 0.1 left on a disk still opens, continues and computes the same.

golden/v0_1/make.py says what is there and how it was made. On the platform it was made on, all numbers are equal bit
for bit; elsewhere floats are rounded otherwise, and are compared with tolerances.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import vfmtok
from vfmtok import cli
from vfmtok.data.code_cache import CodeCache

GOLDEN = Path(__file__).parent / "golden/v0_1"
ROOT = Path(vfmtok.__file__).parents[1]


def platform() -> dict[str, str]:
    """What decides how floats are rounded, as make.py noted it."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    facts = dict(map(str.strip, line.split(":", 1)) for line in cpu.partition("\n\n")[0].splitlines() if ":" in line)
    model = ", ".join(f"{name} {facts.get(name)}" for name in ("model name", "cpu family", "model"))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "timm": timm.__version__, "capability": capability, "cpu": model}


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def same_platform(expected) -> bool:
    return platform() == expected["platform"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The artefacts as version 0.1 left them, and its recipes. No test changes them."""
    folder = tmp_path_factory.mktemp("v0_1")
    with tarfile.open(GOLDEN / "artefacts.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for recipe in GOLDEN.glob("*.yaml"):
        shutil.copy(recipe, folder)
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    """Where init_models/ is; and one thread, with which everything was computed."""
    monkeypatch.chdir(place)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer_hash():
    """Where this checkout has it. Trying the import would find an editable install of another checkout, too."""
    moved = (ROOT / "vfmtok/weights/hashing.py").is_file()
    return import_module("vfmtok.weights.hashing" if moved else "vfmtok.hub.model_hash").tokenizer_hash


def train(script: str, recipe: str, results: Path, *arguments: str) -> Path:
    """In a process of its own. Returns the folder of the run."""
    command = [sys.executable, ROOT / script, "--recipe", recipe, "--results-dir", results, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return results


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()


def state(run: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    """(part, name) -> tensor of all that a checkpoint holds."""
    files = sorted(run.glob(f"checkpoints/step_{step:07d}/*.safetensors"))
    return {(file.stem, name): tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}


def assert_same(a: dict[tuple[str, str], torch.Tensor], b: dict[tuple[str, str], torch.Tensor]) -> None:
    assert a.keys() == b.keys() and a
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def assert_as_expected(found: dict[tuple[str, str], torch.Tensor], expected: dict, same_platform: bool) -> None:
    """Equal to the tensors that version 0.1 had; elsewhere their mean squares are, and their means.

    But for tensors whose gradient is zero but for rounding: what the optimizer makes of that is different anywhere.
    """
    flat = {(part, name): facts for part, tensors in expected.items() for name, facts in tensors.items()}
    assert found.keys() == flat.keys()
    if same_platform:
        assert not [key for key, (sha256, _, _) in flat.items() if digest(found[key]) != sha256]
    first_moments = {name.removeprefix("exp_avg/"): facts for (_, name), facts in flat.items() if "exp_avg/" in name}
    noise = {name for name, (_, _, square) in first_moments.items() if square < 1e-15}
    assert len(noise) <= 10
    for key, (_, mean, square) in flat.items():
        if key[1].rpartition("/")[2] not in noise:
            tensor = found[key].double()
            assert float(tensor.square().mean()) == pytest.approx(square, rel=1e-4, abs=0), key
            assert float(tensor.mean()) == pytest.approx(mean, abs=1e-4 * square**0.5), key


def assert_goes_on(old: Path, resumed: Path, whole: Path, expected: dict, same_platform: bool) -> None:
    """``resumed`` went on from step 3 of ``old``; ``whole`` was trained by the code of today from the beginning."""
    kept = (old / "log.jsonl").read_text()
    assert kept and (resumed / "log.jsonl").read_text().startswith(kept)  # times included: it did not begin anew
    assert_as_expected(state(resumed, 6), expected, same_platform)
    assert_as_expected(state(whole, 6), expected, same_platform)
    before, today = state(old, 3), state(whole, 3)
    assert before.keys() == today.keys()
    if same_platform or all(torch.equal(before[key], today[key]) for key in before):
        assert_same(before, today)
        assert_same(state(resumed, 6), state(whole, 6))


def assert_losses(run: Path, expected: dict[str, list], same_platform: bool, magnified_from: int = 50) -> None:
    """Of 50 steps, every term, where a step has it.

    Args:
        magnified_from: the step from which another rounding grows: a discriminator learns, codes change hands.
    """
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "lr" in line]  # not validation's
    assert len(lines) == 50
    for name, values in expected.items():
        found = [line.get(name) for line in lines]
        assert [value is None for value in found] == [value is None for value in values], name
        assert found == values or not same_platform, name
        for step, (value, wanted) in enumerate(zip(found, values, strict=True)):
            relative, absolute = (1e-5, 1e-7) if step < magnified_from else (0.1, 1e-3)
            assert value is None or value == pytest.approx(wanted, rel=relative, abs=absolute), f"{name} at {step}"


# --------------------------------------------------------------------------------------
# Data, models, tokens
# --------------------------------------------------------------------------------------


def test_the_data_set_is_whole(tmp_path):
    shutil.copytree("data", tmp_path / "data")
    assert cli.main(["prepare", "--verify", str(tmp_path / "data"), "--workers", "1"]) == 0
    assert cli.main(["prepare", "--export", "data/val_lmdb", str(tmp_path / "pictures")]) == 0
    names = sorted(path.relative_to(tmp_path / "pictures").as_posix() for path in tmp_path.glob("pictures/**/*.png"))
    assert names == [f"val/{name}/{number:03d}.png" for name in ("bird", "cat", "Ωmega") for number in range(2)]


@pytest.mark.parametrize(
    ("name", "of"), [("tokenizer_run", "tokenizer_run"), ("pretrained", "tokenizer_run"), ("fsq", "fsq")]
)
def test_a_tokenizer_encodes_and_decodes(name, of, expected, arrays, same_platform, tokenizer_hash):
    tokenizer = vfmtok.from_pretrained(name)
    assert tokenizer_hash(tokenizer) == expected["tokenizer_hash"][of]
    ids = tokenizer.encode(torch.from_numpy(arrays["images"]).float() / 127.5 - 1).ids
    assert np.array_equal(ids, arrays[f"{of}/ids"])
    pixels = tokenizer.decode_to_uint8(ids, 48)
    np.testing.assert_allclose(pixels.int(), arrays[f"{of}/pixels"].astype(int), atol=1)
    if same_platform:
        assert digest(pixels) == expected["digests"][f"{of}/pixels"]


@pytest.mark.parametrize(("name", "of"), [("generator_run", "generator_run"), ("pretrained", "pretrained/gpt")])
def test_a_generator_computes(name, of, expected, arrays, same_platform):
    gpt = vfmtok.from_pretrained(name, "gpt")
    ids, labels = torch.from_numpy(arrays["gpt_ids"]), torch.from_numpy(arrays["gpt_labels"])
    logits = gpt(labels, ids[:, :-1]).logits
    torch.testing.assert_close(logits, torch.from_numpy(arrays[f"{of}/logits"]), rtol=1e-4, atol=1e-5)
    if same_platform:
        assert digest(logits) == expected["digests"][f"{of}/logits"]


def test_a_generator_generates(expected, arrays):
    gpt, labels = vfmtok.from_pretrained("pretrained/gpt", "gpt"), torch.from_numpy(arrays["gpt_labels"])
    for kind, settings in expected["generate"].items():
        assert np.array_equal(vfmtok.generate(gpt, labels, **settings), arrays[f"generated/{kind}"]), kind


def test_a_generator_and_its_tokenizer_know_each_other_and_the_classes(tmp_path):
    models = ["--gpt", "pretrained/gpt", "--vq-ckpt", "tokenizer_run"]
    assert (
        cli.main(["sample", *models, "--classes", "Ωmega,bird", "--n", "2", "--out", str(tmp_path / "grid.png")]) == 0
    )
    assert (tmp_path / "grid.png").is_file()


def test_a_token_cache_opens_and_is_known_again(expected, arrays):
    cache = CodeCache("codes/train")
    assert (len(cache), cache.num_views, cache.num_tokens, cache.codebook_size) == (24, 18, 16, 32)
    assert cache.classes == ["bird", "cat", "Ωmega"]
    assert cache.metadata["tokenizer_hash"] == expected["tokenizer_hash"]["tokenizer_run"]
    held_out = CodeCache("codes/val")
    assert np.array_equal(torch.stack([held_out[row, 0][0] for row in range(6)]), arrays["gpt_ids"])
    before = {path: path.read_bytes() for path in Path("codes").rglob("*") if path.is_file()}
    for split, views in (("train", "shift"), ("val", "center")):
        arguments = ["codes", f"data/{split}_lmdb", f"codes/{split}", "--vq-ckpt", "tokenizer_run", "--views", views]
        assert cli.main(arguments) == 0  # it would be an error for another tokenizer, data set or version
    assert {path: path.read_bytes() for path in Path("codes").rglob("*") if path.is_file()} == before


def test_the_tokens_are_computed_again(tmp_path):
    arguments = ["--vq-ckpt", "pretrained/tokenizer", "--views", "shift", "--batch-size", "8", "--num-workers", "0"]
    assert cli.main(["codes", "data/train_lmdb", str(tmp_path / "codes"), *arguments]) == 0
    for file in ("ids.npy", "labels.npy"):
        assert (tmp_path / "codes" / file).read_bytes() == Path("codes/train", file).read_bytes()


def test_a_run_is_exported_under_the_released_names(expected, tmp_path):
    assert cli.main(["export", "tokenizer_run", str(tmp_path / "exported.pt"), "--kind", "full"]) == 0
    content = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert content.pop("steps") == 3
    found = {f"{part}/{name}": digest(tensor) for part in content for name, tensor in content[part].items()}
    assert found == expected["exported"]


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def test_a_run_of_a_tokenizer_continues(place, tmp_path, expected, same_platform):
    data = ("--data-path", str(place / "data"))
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    shutil.copytree("tokenizer_run", resumed)
    train("vq_train.py", "tokenizer_run/recipe.yaml", resumed, *data)
    train("vq_train.py", "tokenizer.yaml", whole, *data, "--vq-ckpt", str(place / "tokenizer_start"))
    assert_goes_on(place / "tokenizer_run", resumed, whole, expected["tokenizer_step_6"], same_platform)


def test_a_tokenizer_learns_as_it_did(place, tmp_path, expected, same_platform):
    run = train("vq_train.py", "tokenizer_50.yaml", tmp_path / "run", "--data-path", str(place / "data"))
    assert_losses(run, expected["tokenizer_losses"], same_platform, magnified_from=11)


def test_a_generator_learns_as_it_did_and_its_run_goes_on(place, tmp_path, expected, same_platform):
    """The run of 50 steps, which keeps all its checkpoints, is the one that was trained from the beginning."""
    inputs = ("--code-path", str(place / "codes/train"), "--vq-ckpt", str(place / "tokenizer_run"))
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    shutil.copytree("generator_run", resumed)
    train("train_c2i.py", "generator_run/recipe.yaml", resumed, *inputs)
    train("train_c2i.py", "generator_50.yaml", whole, *inputs)
    assert_goes_on(place / "generator_run", resumed, whole, expected["generator_step_6"], same_platform)
    assert_losses(whole, expected["generator_losses"], same_platform)
