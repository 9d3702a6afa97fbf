"""The copy of a checkpoint that is written while the training goes on."""

import torch

from vfmtok.weights import host_copy
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder, load
from vfmtok.weights.host_copy import HostCopy


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    tensors = {
        "matrix": torch.randn(17, 5),
        "transposed": torch.randn(6, 7).t(),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "counts": torch.arange(9),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(11)),
    }
    return Checkpoint(3, {"model": tensors, "more": {"matrix": torch.randn(4)}}, {"metrics": {"loss": [1.0]}})


def test_it_is_written_as_the_tensors_themselves(tmp_path, monkeypatch):
    """Byte for byte, though they lie beside each other in few blocks, one tensor larger than a block among them."""
    monkeypatch.setattr(host_copy, "BLOCK", 300)
    CheckpointFolder(tmp_path / "itself").save(checkpoint())
    CheckpointFolder(tmp_path / "copy").save(HostCopy().take(checkpoint()))
    for file in ("model.safetensors", "more.safetensors"):
        itself, copied = (tmp_path / name / "step_0000003" / file for name in ("itself", "copy"))
        assert itself.read_bytes() == copied.read_bytes()


def test_what_changes_afterwards_does_not_reach_it(tmp_path):
    run, expected = checkpoint(), checkpoint()
    copied = HostCopy().take(run)
    with torch.no_grad():
        for tensor in run.parts["model"].values():
            tensor.zero_()
    run.numbers["metrics"]["loss"].append(2.0)
    CheckpointFolder(tmp_path).save(copied)
    found = load(tmp_path / "step_0000003")
    assert all(torch.equal(found.parts["model"][name], tensor) for name, tensor in expected.parts["model"].items())
    assert found.numbers == expected.numbers


def test_the_next_copy_has_the_same_room():
    """But for a tensor that has another shape by then."""
    room, run = HostCopy(), checkpoint()
    first = {name: tensor.data_ptr() for name, tensor in room.take(run).parts["model"].items()}
    run.parts["model"]["matrix"] = torch.ones(18, 5)
    second = room.take(run).parts["model"]
    assert torch.equal(second["matrix"], torch.ones(18, 5))
    assert all(second[name].data_ptr() == place for name, place in first.items() if name != "matrix")
