"""Models as files, and whether two are the same."""

import io

import torch


def torch_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Bit for bit, every tensor, frozen ones too."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
