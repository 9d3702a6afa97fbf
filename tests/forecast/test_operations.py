"""What is counted on fake tensors, against closed forms and against what autograd saves of real ones."""

import pytest
import torch
from tiny_gpt import tiny_config

from vfmtok.forecast.training_pass import training_pass
from vfmtok.generators import build_generator
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import RunConfig

FLOAT32 = RunConfig(precision="none")
DETERMINED = {"dropout_p": 0.0, "token_dropout_p": 0.0, "label_dropout_p": 0.0}


@pytest.fixture(scope="module")
def counted():
    return training_pass(GeneratorRecipe(generator=tiny_config(), run=FLOAT32)).counted


def test_flops_of_a_gpt_are_those_of_the_closed_form(counted):
    """Each weight of a product: 2 FLOPs a slot forward, 4 backward. Attention: two products over all pairs forward and,
    as the fused kernels make the weights again, five backward."""
    config = tiny_config()
    weights = sum(
        parameter.numel()
        for name, parameter in build_generator(config).named_parameters()
        if parameter.ndim == 2 and "embedding" not in name and "class" not in name
    )
    slots, layers = config.num_tokens, config.n_layer
    expected = 6 * slots * weights + layers * (2 + 5) * 2 * slots**2 * config.dim
    for batch in (1, 8):
        assert counted.flops(batch) == pytest.approx(batch * expected, rel=1e-6)


def kept_by_autograd(model, batch: int) -> int:
    """Bytes of distinct memory that a real forward pass saves, besides the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            saved[place] = tensor
        return tensor

    code = torch.zeros(batch, *model.code.shape, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = model.loss(code, torch.zeros(batch, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) if terms else 0


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_that_autograd_saves(recompute):
    """With recomputation the largest layer's, which come back one layer at a time, are left out of what is measured."""
    config = tiny_config(**DETERMINED)
    counted = training_pass(GeneratorRecipe(generator=config, run=FLOAT32)).counted
    model = build_generator(config).train()
    model.checkpoint_activations = recompute
    found, expected = counted.kept_bytes(7, recompute), kept_by_autograd(model, 7)
    if recompute:
        a_layer = (counted.kept_bytes(7) - kept_by_autograd(model, 7)) / config.n_layer
        expected += a_layer
        assert expected < 0.6 * counted.kept_bytes(7)
    assert found == pytest.approx(expected, rel=0.05)


def test_recomputing_costs_the_layers_forward_pass(counted):
    config = tiny_config()
    layers = build_generator(config).layers
    weights = sum(parameter.numel() for parameter in layers.parameters() if parameter.ndim == 2)
    slots = config.num_tokens
    forward = 2 * slots * weights + config.n_layer * 2 * 2 * slots**2 * config.dim
    assert counted.flops(3, recompute=True) - counted.flops(3) == pytest.approx(3 * forward, rel=1e-6)
