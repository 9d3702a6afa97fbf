"""Float32 islands: what low precision would spoil is computed in float32, under autocast too. And which precision a
machine is made for."""

import contextlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by --mixed-precision and --precision


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 stay as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def linear_in_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32 (float64 if the layer is), whatever the dtypes of the layer, x and autocast."""
    weight = at_least_float32(layer.weight)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, layer.bias.to(weight.dtype))


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on GPUs round their inputs to TF32's 10 bits, or not.

    The only place that sets this for good. By PyTorch's older switches: torch.compile reads those, and they raise once
    TF32 was allowed by the newer ones (torch 2.14).
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Float32 products in float32: neither TF32 nor autocast, both as they were afterwards.

    By the newer switches where they are: those can be read, and so restored, whichever kind was set before.
    """
    backends = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        switches = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        name, exact = "fp32_precision", "ieee"
    else:
        switches, name, exact = [backends.cuda.matmul, backends.cudnn], "allow_tf32", False
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, exact)
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context of a pass in ``precision``: "bf16", "fp16" or "none" (float32)."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "none")


def computes_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16 products: CUDA devices from sm_80 on, x86 CPUs with AVX512_BF16 or AMX,
    ARM ones with BF16. Elsewhere such products are emulated, on CPUs up to a hundred times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Of the first core, in Linux's words; empty where the system does not tell."""
    if platform.system() != "Linux":
        return set()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((set(line.split()) for line in lines if line.lower().startswith(("flags", "features"))), set())


def bf16_slowdown(device: torch.device, size: int = 256) -> float:
    """Seconds of a bfloat16 product of two (size,size) matrices, in those of the float32 one. Measured now."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        matrix @ matrix  # the first call chooses a kernel
        times = []
        for _ in range(3):
            start = time.perf_counter()
            (matrix @ matrix).sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] / seconds[0]
