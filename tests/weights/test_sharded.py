"""Sharded checkpoints: each process writes and reads its share, anybody reads what anybody wrote."""

import json
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest
import ranks
import safetensors
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import vfmtok
from vfmtok import distributed
from vfmtok.config import dump_config
from vfmtok.errors import WeightsError
from vfmtok.pretrained import loading
from vfmtok.training import sharding
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.weights import saved, shard_writer, sharded
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder, load, open_together
from vfmtok.weights.host_copy import HostCopy

SHAPE = {
    "n_layer": 2,
    "n_head": 2,
    "dim": 16,
    "vocab_size": 33,
    "num_tokens": 4,
    "num_classes": 3,
}  # odd: uneven shares


def config(**fields: int) -> vfmtok.GPTConfig:
    return vfmtok.gpt_config("GPT-B", **{**SHAPE, **fields})


def whole_gpt(**fields: int) -> vfmtok.GPT:
    torch.manual_seed(3)
    gpt = vfmtok.GPT(config(**fields))
    nn.init.normal_(gpt.output.weight)
    return gpt


def sharded_gpt(**fields: int) -> vfmtok.GPT:
    """The same, but for the head, which is 0."""
    torch.manual_seed(3)
    return sharding.build_sharded(
        lambda: vfmtok.GPT(config(**fields)),
        lambda gpt: sharding.shard(gpt, gpt.layers, (), "none"),
        torch.device("cpu"),
    )


def checkpoint_of(model: nn.Module, step: int = 3, value: float = 0.0) -> Checkpoint:
    """With moments, among them scalars that all processes have whole."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    moments = {f"exp_avg/{name}": tensor + value for name, tensor in tensors.items()}
    moments |= {f"step/{name}": torch.tensor(7.0) for name in tensors}
    recipe = GeneratorRecipe(generator=model.config)
    facts = {"tokens": {"classes": ["a", "b", "c"], "tokenizer_hash": "ab" * 32}}
    return Checkpoint(step, {"model": tensors, "model_optimizer": moments}, {"parts": facts}, dump_config(recipe))


# --------------------------------------------------------------------------------------
# Who reads what
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """alone/: the checkpoint of one process; written/: the same of two; many/: of two, in many files each."""
    folder = tmp_path_factory.mktemp("sharded")
    CheckpointFolder(folder / "alone").save(checkpoint_of(whole_gpt()))
    for rank, found in enumerate(ranks.run(partial(_write_and_read, folder), folder)):
        torch.save(found, folder / f"found{rank}.pt")
    return folder


def _write_and_read(folder: Path, rank: int) -> dict[str, Tensor]:
    gpt = sharded_gpt()
    sharding.keep_slice(gpt.output.weight, whole_gpt().output.weight)
    CheckpointFolder(folder / "written").save(checkpoint_of(gpt))
    sharded.FILE_BYTES = 2000
    CheckpointFolder(folder / "many").save(checkpoint_of(gpt))
    found = {}
    for name in ("written", "many", "alone"):
        read = open_together(folder / name / "step_0000003")
        for part, tensors in checkpoint_of(gpt).parts.items():
            into = {key: torch.zeros_like(value) for key, value in tensors.items()}
            read.parts[part].read_into(into)
            found |= {f"{name}/{part}/{key}": sharding.whole(value) for key, value in into.items()}
    return found


@pytest.mark.parametrize("name", ["written", "many", "alone"])
def test_two_processes_read_what_one_or_two_wrote(place, name):
    for rank in range(2):
        found = torch.load(place / f"found{rank}.pt", weights_only=True)
        for part, tensors in checkpoint_of(whole_gpt()).parts.items():
            for key, tensor in tensors.items():
                assert torch.equal(found[f"{name}/{part}/{key}"], tensor), (part, key)


def _read_weights(folder: Path, rank: int) -> dict[str, Tensor]:
    gpt = sharded_gpt()
    open_together(folder).parts["model"].read_into(gpt.state_dict())
    return {name: sharding.whole(tensor).detach() for name, tensor in gpt.state_dict().items()}


@pytest.mark.slow
def test_three_processes_read_what_two_wrote(place, tmp_path):
    expected = whole_gpt().state_dict()
    for found in ranks.run(partial(_read_weights, place / "many/step_0000003"), tmp_path, size=3):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("name", "files"), [("written", 2), ("many", 20)])
def test_one_process_reads_what_two_wrote(place, name, files):
    folder, expected = place / name / "step_0000003", checkpoint_of(whole_gpt())
    assert len(list((folder / "model").iterdir())) >= files
    both = load(folder)
    assert both.parts.keys() == expected.parts.keys() and both.numbers == expected.numbers
    for part, tensors in expected.parts.items():
        assert both.parts[part].keys() == tensors.keys()
        assert all(torch.equal(both.parts[part][key], tensor) for key, tensor in tensors.items())
    gpt = vfmtok.from_pretrained(folder, "generator")
    assert all(torch.equal(tensor, expected.parts["model"][key]) for key, tensor in gpt.state_dict().items())
    assert loading.read_weights(folder).classes == ["a", "b", "c"]
    with pytest.raises(WeightsError, match="vfmtok export"):
        vfmtok.from_pretrained(folder, "generator", sha256="0" * 64)


def test_the_files_are_those_of_pytorchs_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "FILE_BYTES", 2000)
    tensors = {name: tensor.detach() for name, tensor in whole_gpt().state_dict().items()}
    files = sharded._files_of(tensors)
    writers = {
        "ours": shard_writer.ShardWriter(tmp_path / "ours", files),
        "pytorchs": dcp.HuggingFaceStorageWriter(str(tmp_path / "pytorchs"), files, save_distributed=True),
    }
    for writer in writers.values():
        dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
    ours, pytorchs = ({path.name: path for path in (tmp_path / name).iterdir()} for name in writers)
    assert ours.keys() == pytorchs.keys() and len(ours) > 5
    for name, path in ours.items():
        with safetensors.safe_open(path, "pt") as a, safetensors.safe_open(pytorchs[name], "pt") as b:
            slices, others = (json.loads(file.metadata().pop("DCP_SHARDING_INFO")) for file in (a, b))
            assert slices == others and a.metadata()["DCP_VERSION"] == b.metadata()["DCP_VERSION"]
            assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in slices)
            assert set(a.keys()) == set(b.keys()) == slices.keys()


def test_every_file_is_hashed_and_none_is_a_pickle(place):
    folder = place / "many/step_0000003"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml"}
    listed = json.loads((folder / "state.json").read_text())["files"]
    assert listed.keys() == {str(path.relative_to(folder)) for path in files} - {"state.json"}


def test_a_damaged_file(place, tmp_path):
    folder = shutil.copytree(place / "many/step_0000003", tmp_path / "step_0000003")
    file = sorted((folder / "model").iterdir())[3]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for damage in (lambda: None, file.unlink):
        damage()
        for read in (load, lambda path: vfmtok.from_pretrained(path, "generator")):
            with pytest.raises(WeightsError, match=f"{file.name} is missing, cut or changed"):
                read(folder)
    assert saved.read_part(folder, "model_optimizer")  # that one is whole


# --------------------------------------------------------------------------------------
# What goes wrong
# --------------------------------------------------------------------------------------


def _fail_and_fall_back(place: Path, rank: int) -> dict[str, Tensor]:
    """One process can't write its second part; then the file of one is damaged in a newer checkpoint."""
    folder, gpt = CheckpointFolder(place), sharded_gpt()
    folder.save(checkpoint_of(gpt))
    write = sharded.write

    def failing(part: Path, tensors: dict[str, Tensor], group=None) -> None:
        if rank == 1 and part.name == "model_optimizer":
            (part / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)  # opening it fails
        write(part, tensors, group)

    sharded.write = failing
    text = ""
    try:
        folder.save(checkpoint_of(gpt, step=3, value=1.0))
    except OSError as error:
        text = str(error)
    sharded.write = write
    left = sorted(path.name for path in place.iterdir() if path.name.startswith("step"))
    norm = folder.open_newest().parts["model_optimizer"].read()["exp_avg/norm.weight"]
    folder.save(checkpoint_of(gpt, step=6))
    if rank == 0:
        (file,) = sharded.own_files(folder.path(6) / "model", 0)
        file.write_bytes(file.read_bytes()[:-4])
    distributed.barrier()
    return {
        "failed in process 1": torch.tensor("process 1" in text),
        "nothing is left of it": torch.tensor(left == ["step_0000003"]),
        "the last one stays": norm == 1,  # without the value added
        "all fall back": torch.tensor(folder.open_newest().step == 3),
    }


def test_what_fails_in_one_process_fails_in_all_and_the_last_one_stays(tmp_path):
    for found in ranks.run(partial(_fail_and_fall_back, tmp_path), tmp_path):
        for what, happened in found.items():
            assert happened.all(), what


# --------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------

LARGE = {"n_layer": 18, "dim": 512, "n_head": 8, "vocab_size": 2048}  # 236 MB in float32, the largest tensor 4 MB


def peak() -> int:
    """The most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure(place: Path, rank: int) -> dict[str, Tensor]:
    """Peaks beyond the start, in bytes."""
    sharded.FILE_BYTES = 1 << 23
    small = sharded_gpt()  # loads what PyTorch needs for it
    CheckpointFolder(place / "small").save(checkpoint_of(small))
    open_together(place / "small/step_0000003").parts["model"].read_into(small.state_dict())
    start, peaks = peak(), {}
    gpt = sharded_gpt(**LARGE)
    peaks["building"] = peak()
    tensors = {name: tensor.detach() for name, tensor in gpt.state_dict().items()}
    folder = CheckpointFolder(place / "large")
    folder.save(Checkpoint(3, {"model": tensors}, {}))
    peaks["saving"] = peak()
    folder.open_newest().parts["model"].read_into(tensors)
    peaks["reading"] = peak()
    folder.save(HostCopy().take(Checkpoint(6, {"model": tensors}, {})))
    peaks["saving a copy"] = peak()
    return {name: torch.tensor(value - start) for name, value in peaks.items()}


@pytest.mark.slow
def test_a_process_holds_its_share(tmp_path, record_property):
    """Half of the model, and of a copy; beside it one tensor, or one file, of which the page cache counts what is
    read."""
    with torch.device("meta"):
        whole = sum(tensor.nbytes for tensor in vfmtok.GPT(config(**LARGE)).state_dict().values())
    for rank, found in enumerate(ranks.run(partial(_measure, tmp_path), tmp_path)):
        shares = {name: value.item() / whole for name, value in found.items()}
        record_property(f"process {rank}, share of {whole / 1e6:.0f} MB", shares)
        print(shares, whole)
        assert shares["building"] < 0.65
        assert shares["saving"] < 0.6
        assert shares["reading"] < 0.8
        assert shares["saving a copy"] < 0.5 + 0.6
    shutil.rmtree(tmp_path / "large")
