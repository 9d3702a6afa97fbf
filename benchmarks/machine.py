"""The machine that a benchmark runs on: what it is, what bounds a computation on it, and the table all scripts print.

Rates are measured in the run that uses them, once each. ``bound`` is the time below which a computation can't be done
here: the larger of (bytes it has to read / bandwidth) and (FLOPs / rate of a large product of its precision).
"""

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by --precision
PRODUCT_SECONDS = 8.0  # what measuring the rate of one precision may take
REPEAT = 9
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


# --------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------


def print_machine(device: torch.device) -> None:
    """One line: the processor, as the system calls it, threads, load and PyTorch's version."""
    print(f"machine: {machine_line(device)}", flush=True)


def machine_line(device: torch.device) -> str:
    name, cpus, flags = processor()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cpu = f"{name}{flags}, {cpus} CPUs, {torch.get_num_threads()} threads{load}"
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return f"{gpu}{cpu}; torch {torch.__version__}"


def processor() -> tuple[str, str, str]:
    """Its model, how many CPUs there are, and which instructions for products it has, by ``lscpu`` where that is."""
    try:
        said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine(), str(os.cpu_count()), ""
    facts = dict(line.split(":", 1) for line in said.stdout.splitlines() if ":" in line)
    flags = [flag for flag in TELLING_FLAGS if flag in facts.get("Flags", "").split()]
    name = facts.get("Model name", platform.machine()).strip()
    return name, facts.get("CPU(s)", str(os.cpu_count())).strip(), f" ({' '.join(flags)})" if flags else ""


def print_header(*more: str) -> None:
    """The head of a table of ``print_row``; ``more``: names of columns that this script adds."""
    columns = ("what", "time", "bound", "of bound", *more)
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def print_row(what: str, elapsed: float, least: float | None, *more: str) -> None:
    """A row: seconds taken, the bound in seconds (None: it has none), and their ratio."""
    bound, share = ("", "") if least is None else (milliseconds(least), f"{least / elapsed:.0%}")
    print(f"| {' | '.join((what, milliseconds(elapsed), bound, share, *more))} |", flush=True)


def milliseconds(elapsed: float) -> str:
    digits = 3 if elapsed < 1e-3 else 1 if elapsed < 1 else 0
    return f"{1e3 * elapsed:,.{digits}f} ms"


# --------------------------------------------------------------------------------------
# Bounds
# --------------------------------------------------------------------------------------


def bound(device: torch.device, dtype: torch.dtype, flops: float, read: float = 0.0) -> float:
    """Seconds below which this machine can't compute so many FLOPs in ``dtype`` on so many bytes read."""
    return max(flops / product_rate(device, dtype), read / read_bandwidth(device) if read else 0.0)


@cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, by whichever library is faster here.

    On CPUs PyTorch sends ``a @ b`` and a 1x1 convolution, the same product, to different libraries (MKL, oneDNN), whose
    rates can differ twofold. Where bfloat16 is emulated a product of 2048 takes half a minute, so the size follows a
    short probe.
    """
    size, kinds = 8192, 1 if dtype == torch.float64 else 2
    if device.type == "cpu":
        size = probed_size(dtype, PRODUCT_SECONDS / (kinds * (REPEAT + 1)))
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    image, kernel = a.t().reshape(1, size, 64, -1), b[:, :, None, None]
    times = [seconds(lambda: a @ b, device, REPEAT)]
    if kinds == 2:
        times.append(seconds(lambda: F.conv2d(image, kernel), device, REPEAT))
    return 2 * size**3 / min(times)


def probed_size(dtype: torch.dtype, limit: float, probe: int = 256) -> int:
    """The side of the largest square product on this CPU that takes less than ``limit`` seconds; at least 256."""
    a, b = torch.randn(2, probe, probe).to(dtype)
    taken = seconds(lambda: a @ b, torch.device("cpu"), 3)
    return next((side for side in (2048, 1024, 512) if taken * (side / probe) ** 3 < limit), 256)


@cache
def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of summing an array of 512 MiB."""
    array = torch.ones(2**27, device=device)
    return array.numel() * 4 / seconds(array.sum, device, 5)


def rates(device: torch.device, dtype: torch.dtype) -> str:
    """Both, in words."""
    product, reading = product_rate(device, dtype), read_bandwidth(device)
    return f"matrix products {product / 1e9:,.0f} GFLOP/s, reading {reading / 1e9:,.1f} GB/s"


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Median wall time after one warm-up run."""
    function()
    return sorted(timed(function, device) for _ in range(repeat))[repeat // 2]


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Bytes that one call adds at its peak; NaN where the system does not tell (CPU, other than Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return float("nan")
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, or the peak would reuse it unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident_bytes("VmRSS")
    function()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> float:
    """ "VmRSS", what this process holds now, or "VmHWM", the peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return float("nan")
