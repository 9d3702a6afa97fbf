"""A model that is built in parts has the weights of one that is built at once."""

import math

import pytest
import ranks
import torch
from torch import Tensor, nn

from vfmtok.config import config_from_dict
from vfmtok.generators import AnyGeneratorConfig, build_generator
from vfmtok.training import sharding
from vfmtok.training.first_weights import Noted, build_in_parts

TINY = {
    "gpt": {"n_layer": 2, "n_head": 2, "dim": 16, "vocab_size": 33, "num_tokens": 4, "num_classes": 3},
    "rar": {"kind": "rar", "n_layer": 2, "n_head": 2, "dim": 16, "ffn_hidden": 32, "vocab_size": 33, "num_tokens": 4},
}
SHARDED_LAYERS = {"gpt": "layers", "rar": "blocks"}


def build(kind: str) -> nn.Module:
    return build_generator(config_from_dict(TINY[kind], AnyGeneratorConfig))


class Initialised(nn.Module):
    """What constructors do: views, data, truncated normals, constants, buffers, numbers drawn in between."""

    def __init__(self, repeatable: bool = True):
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.conv = nn.Conv2d(3, 4, 2)
        nn.init.xavier_uniform_(self.conv.weight.view(4, -1))
        self.position = nn.Parameter(torch.randn(1, 9, 5))
        self.scale = nn.Parameter(torch.full((5,), 0.5))
        self.table = nn.Parameter(torch.zeros(6, 5), requires_grad=False)
        self.table.data.copy_(torch.arange(30.0, device="cpu").reshape(6, 5))
        self.cut = nn.Parameter(torch.empty(40, 3))
        nn.init.trunc_normal_(self.cut, std=0.02)
        self.cut.data[:20].mul_(3)
        self.register_buffer("grid", torch.linspace(0, 1, 5), persistent=False)
        torch.rand(3)  # thrown away, but drawn
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 5)
        if not repeatable:
            self.product = nn.Parameter(torch.randn(5) / math.sqrt(5))


def as_plain(into: Tensor, value: Tensor) -> None:
    into.copy_(value)


@pytest.mark.parametrize("make", [lambda: build("gpt"), lambda: build("rar"), Initialised, lambda: Initialised(False)])
def test_the_weights_and_the_random_numbers_after_them_are_the_same(make):
    torch.manual_seed(3)
    expected, after = make(), torch.rand(4)
    torch.manual_seed(3)
    found = build_in_parts(make, lambda model: None, as_plain, torch.device("cpu"))
    assert torch.equal(torch.rand(4), after)
    ours, theirs = (dict(model.named_parameters()) | dict(model.named_buffers()) for model in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) and ours[name].requires_grad == tensor.requires_grad, name
    assert len({tensor.data_ptr() for tensor in ours.values()}) == len(ours)


@pytest.mark.parametrize("kind", TINY)
def test_our_generators_need_not_be_built_whole(kind):
    noted = Noted()
    with torch.device("meta"), noted:
        model = build(kind)
    assert not [name for name, tensor in model.named_parameters() if noted.way_to(tensor) is None]


def _sharded(rank: int) -> dict[str, Tensor]:
    found = {}
    for kind, layers in SHARDED_LAYERS.items():
        torch.manual_seed(3)
        model = sharding.build_sharded(
            lambda kind=kind: build(kind),
            lambda model, layers=layers: sharding.shard(model, getattr(model, layers), (), "none"),
            torch.device("cpu"),
        )
        for name, tensor in model.state_dict().items():
            assert sharding.is_sharded(tensor)
            found[f"{kind} {name}"] = sharding.whole(tensor)
    return found


def test_processes_draw_together_what_one_draws(tmp_path):
    for found in ranks.run(_sharded, tmp_path):
        for kind in SHARDED_LAYERS:
            torch.manual_seed(3)
            for name, tensor in build(kind).state_dict().items():
                assert torch.equal(found[f"{kind} {name}"], tensor), (kind, name)
