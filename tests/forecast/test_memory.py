"""Memory of sharded training, against the slices that processes really hold."""

import dataclasses

import pytest
import ranks
import torch
from tiny_gpt import tiny_config
from torch import Tensor

from vfmtok.forecast.machines import GPUS, Machines, read_machines
from vfmtok.forecast.memory import HOST, Setting, copied, gathered, memory_of, states
from vfmtok.forecast.prediction import predict
from vfmtok.forecast.training_pass import training_pass
from vfmtok.generators import build_generator
from vfmtok.training import construction, sharding
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import OptimizerConfig, RunConfig
from vfmtok.training.state import RunState
from vfmtok.weights.host_copy import HostCopy

# Widths that no number of processes divides, as the vocabulary and the classes are.
CONFIG = tiny_config(n_layer=4, dim=80, num_classes=10, vocab_size=97)


def recipe(**run) -> GeneratorRecipe:
    run = RunConfig(**{"precision": "none", "global_batch": 64, **run})
    return GeneratorRecipe(generator=CONFIG, run=run, parallel="fsdp")


@pytest.fixture(scope="module")
def found():
    """The counted pass of this recipe."""
    return training_pass(recipe())


def held(rank: int) -> Tensor:
    """Bytes that this process holds after a step: parameters, gradients, moments, average, and of a copy."""
    chosen, cpu = recipe(), torch.device("cpu")
    torch.manual_seed(0)

    def shard(model) -> None:
        sharding.shard(model, model.layers, model.sharded_methods, "none")

    model = sharding.build_sharded(lambda: build_generator(CONFIG), shard, cpu)
    average = construction.average(model, chosen.ema)
    stepper = construction.stepper(model, [{"params": list(model.parameters())}], chosen.optimizer, chosen.run)
    code = torch.zeros(2, *CONFIG.code.shape, dtype=torch.int64)
    stepper.backward(sum(model.loss(code, torch.zeros(2, dtype=torch.int64)).values()))
    gradients = [parameter.grad for parameter in model.parameters()]
    found = [bytes_of(model.parameters()), bytes_of(gradients)]
    stepper.step(1e-4)
    moments = [value for state in stepper.optimizer.state.values() for value in state.values() if value.ndim]
    run = RunState(chosen, "generator", {"model": model}, {"model": stepper}, average, commit="")
    copy = [tensor for tensors in HostCopy().take(run.checkpoint()).parts.values() for tensor in tensors.values()]
    return torch.tensor([*found, bytes_of(moments), bytes_of(average.average.values()), bytes_of(copy)])


def bytes_of(tensors) -> int:
    local = [tensor.to_local() if sharding.is_sharded(tensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_states_are_those_of_the_fullest_process(tmp_path, processes, found):
    held_by = torch.stack(ranks.run(held, tmp_path, processes))  # (ranks,5)
    setting = Setting(processes, 2, recompute=False, fsdp=True, bf16=False, ema=True)
    predicted = [*list(states(found, setting).values())[:4], copied(found, setting)]
    assert predicted == pytest.approx(held_by.amax(dim=0).tolist(), rel=0.01)
    whole = sum(parameter.numel() for parameter in build_generator(CONFIG).parameters())
    assert sum(predicted[:4]) == pytest.approx(5 * 4 * whole / processes, rel=0.1)


def test_muon_keeps_one_moment_of_a_matrix(found):
    optimizer = OptimizerConfig(name="muon")
    model = build_generator(CONFIG)
    stepper = construction.stepper(model, [{"params": list(model.parameters())}], optimizer, recipe().run)
    code = torch.zeros(2, *CONFIG.code.shape, dtype=torch.int64)
    stepper.backward(sum(model.loss(code, torch.zeros(2, dtype=torch.int64)).values()))
    stepper.step(1e-4)
    moments = [value for state in stepper.optimizer.state.values() for value in state.values() if value.ndim]
    alone = Setting(1, 2, recompute=False, fsdp=False, bf16=False, ema=True, muon=True)
    assert states(found, alone)["the optimizer's moments"] == bytes_of(moments)
    two = dataclasses.replace(alone, muon=False)
    assert states(found, two)["the optimizer's moments"] > bytes_of(moments)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_copy_of_a_background_save_is_counted(found, parallel):
    hosts = []
    for saved in (False, True):
        chosen = dataclasses.replace(recipe(async_save=saved), parallel=parallel)
        hosts.append(predict(chosen, read_machines("h100x8"), found=found))
    (start, at_once), (same_start, background) = (list(host.memory.host.values()) for host in hosts)
    assert start == same_start
    whole = 4 * sum(parameter.numel() for parameter in build_generator(CONFIG).parameters())
    share = 8 if parallel == "fsdp" else 1
    assert background - HOST == pytest.approx(4 * whole / share, rel=0.1)  # weights, average, two moments
    assert at_once - HOST == pytest.approx((1 if parallel == "fsdp" else 2) * whole / share, rel=0.1)


def test_more_processes_need_less_each_and_the_gathered_layer_stays(found):
    memory = {
        count: memory_of(found, Setting(count, 1, recompute=True, fsdp=True, bf16=True, ema=True)) for count in (8, 64)
    }
    few, many = (sum(memory[count].states.values()) for count in (8, 64))
    assert 6 < few / many < 8  # uneven slices
    assert memory[8].passing == memory[64].passing
    layer, outside = gathered(found)
    model = build_generator(CONFIG)
    assert layer == sum(p.numel() for p in model.layers[0].parameters())
    assert layer * 4 + outside == sum(p.numel() for p in model.parameters())


def test_what_does_not_fit_gets_advice_that_makes_it_fit(found):
    chosen = dataclasses.replace(recipe(), parallel="ddp")
    gpu = GPUS["h100"]
    needs = predict(chosen, Machines(gpu, 8), found=found).memory.total
    smaller = Machines(dataclasses.replace(gpu, memory=needs - 1), 8)
    prediction = predict(chosen, smaller, found=found)
    assert not prediction.fits and prediction.advice
    ((text, total),) = prediction.advice
    assert total <= smaller.gpu.memory and "run.checkpoint_activations=true" in text
    changed = dataclasses.replace(chosen, run=dataclasses.replace(chosen.run, checkpoint_activations=True))
    last = predict(changed, smaller, found=found)
    assert last.fits and last.memory.total == pytest.approx(total)
    assert last.flops > prediction.flops and last.passes > prediction.passes


def test_twice_the_gpus_take_half_the_time_of_products(found):
    chosen = recipe()
    eight, four = (predict(chosen, read_machines(f"a100x{n}"), found=found) for n in (8, 4))
    assert eight.flops == four.flops and eight.plan == dataclasses.replace(four.plan, rank_batch=8, micro_batch=8)
    assert eight.passes < four.passes < 2.05 * eight.passes
    slower = predict(chosen, read_machines("a100x8"), utilisation=0.3, found=found)
    assert eight.passes < slower.passes <= 2 * eight.passes
