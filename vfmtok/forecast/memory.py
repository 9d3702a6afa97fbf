"""Memory of one process of a training: on its GPU, and of its host.

Of a sharded model (FSDP2) the first process is counted, whose slices are the largest: dimension 0 of every parameter is
cut into equal slices, rounded up. States have four bytes a value, whatever the precision of the run.

N are all parameters, T those that are trained.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from vfmtok.forecast.machines import GIB
from vfmtok.forecast.training_pass import TrainingPass
from vfmtok.training.muon import hidden_matrices
from vfmtok.weights.name_maps import own_tensors
from vfmtok.weights.sharded import FILE_BYTES

VALUE = 4  # bytes of a state's value
# Assumptions: what CUDA, its libraries and NCCL take, and what the allocator can't use between tensors.
CONTEXT, UNUSABLE = 1.5 * GIB, 0.05
HOST = 3.0 * GIB  # a process with PyTorch and CUDA's libraries in it; loader processes are not counted


@dataclass(frozen=True)
class Setting:
    """How a training is carried out, as far as memory is concerned.

    Attributes:
        processes: one for each GPU.
        batch: images of a forward pass.
        recompute: activations in the backward pass.
        fsdp: weights and states are spread over the processes.
        bf16: products in bfloat16 under autocast.
        ema: there is an average of the weights.
        muon: has one moment of the hidden matrices, where AdamW has two.
        async_save: checkpoints are written from a copy in host memory.
    """

    processes: int
    batch: int
    recompute: bool
    fsdp: bool
    bf16: bool
    ema: bool
    muon: bool = False
    async_save: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, of the process that needs most."""

    states: dict[str, float]  # parameters, gradients, moments, average: kept from step to step
    passing: dict[str, float]  # what a step needs besides
    host: dict[str, float]  # at the start, and while a checkpoint is written or from the first one on

    @property
    def total(self) -> float:
        return (sum(self.states.values()) + sum(self.passing.values())) * (1 + UNUSABLE) + CONTEXT


def memory_of(found: TrainingPass, setting: Setting) -> Memory:
    return Memory(states(found, setting), _passing(found, setting), _host(found, setting))


def states(found: TrainingPass, setting: Setting) -> dict[str, float]:
    """Bytes of what the process keeps from step to step."""
    modules = (found.model, *found.beside)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    matrices = hidden_matrices(found.model) if setting.muon else ()
    averaged = own_tensors(found.model).values() if setting.ema else ()

    def share(tensors: Iterable[Tensor]) -> float:
        return sum(VALUE * _slice(tensor, setting) for tensor in tensors)

    return {
        "parameters": share(parameters),
        "gradients": share(trained),
        "the optimizer's moments": 2 * share(trained) - share(m for m in matrices if m.requires_grad),
        "average of the weights (EMA)": share(averaged),
        "buffers and frozen networks": sum(b.numel() * b.element_size() for b in buffers) + found.frozen_bytes,
    }


def _slice(tensor: Tensor, setting: Setting) -> int:
    """Values of a tensor that the first process keeps. Buffers are whole everywhere."""
    if not setting.fsdp or not isinstance(tensor, nn.Parameter) or not tensor.ndim:
        return tensor.numel()
    return math.ceil(tensor.shape[0] / setting.processes) * math.prod(tensor.shape[1:])


def _passing(found: TrainingPass, setting: Setting) -> dict[str, float]:
    counted, batch = found.counted, setting.batch
    recompute = setting.recompute and found.recomputes
    copies, activations = (counted.kept_recomputing if recompute else counted.kept) if batch else (0.0, 0.0)
    largest = max((_result_bytes(op, batch) for op in counted.operations), default=0.0)
    passing = {
        f"activations of {batch} image(s)" + (", recomputed in part" if recompute else ""): activations * batch,
        "the largest operation's tensors": largest,
    }
    if not setting.fsdp:
        return {**passing, "copies of weights in bf16": max(0.0, copies)}
    block, outside = gathered(found)
    width = 2 if setting.bf16 else VALUE
    return {
        **passing,
        "two gathered layers (this and the next)": 2 * block * width,
        "a layer's whole gradient, and the sums that are sent": block * (width + VALUE),
        "weights outside the layers and their gradient": 2 * outside * VALUE,
    }


def _result_bytes(operation, batch: int) -> float:
    return operation.bytes[1] * batch


def gathered(found: TrainingPass) -> tuple[int, int]:
    """Values of the largest layer, and of the parameters outside the layers, which stay gathered within a step."""
    in_layers = {id(parameter) for layer in found.layers for parameter in layer.parameters()}
    blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in found.layers]
    outside = sum(parameter.numel() for parameter in found.model.parameters() if id(parameter) not in in_layers)
    return max(blocks, default=0), outside


def copied(found: TrainingPass, setting: Setting) -> float:
    """Bytes of a checkpoint's tensors that the process has: what ``weights/host_copy.py`` keeps of them."""
    own = [tensor for module in (found.model, *found.beside) for tensor in own_tensors(module).values()]
    kept = states(found, setting)
    moments, average = kept["the optimizer's moments"], kept["average of the weights (EMA)"]
    return sum(VALUE * _slice(tensor, setting) for tensor in own) + moments + average


def _host(found: TrainingPass, setting: Setting) -> dict[str, float]:
    """Of a process, with what is there anyway."""
    copy = copied(found, setting) if setting.async_save else 0.0
    saving = "from the first save on, with the copy of run.async_save" if copy else "while it saves"
    parameters = [VALUE * parameter.numel() for parameter in found.model.parameters()]
    if setting.fsdp:  # one tensor after the other is drawn; one file after the other comes from the GPU
        share = sum(VALUE * _slice(parameter, setting) for parameter in found.model.parameters())
        largest = max((VALUE * _slice(parameter, setting) for parameter in found.model.parameters()), default=0)
        file = min(share, max(FILE_BYTES, largest))
        return {"at the start": HOST + max(parameters, default=0), saving: HOST + (copy or file)}
    trained = sum(VALUE * parameter.numel() for parameter in found.model.parameters() if parameter.requires_grad)
    return {
        "at the start": HOST + sum(parameters),
        f"{saving} (the first process)": HOST + (copy or 2 * trained),  # the moments are one file
    }
