"""GPUs that people train on: a table of what their makers say they do, and what renting one costs.

Rates are for dense matrices, with float32 sums. Prices are an assumption, since they differ by provider and month:
say yours with ``--price``.
"""

import re
from dataclasses import dataclass

from vfmtok.config import closest_match
from vfmtok.errors import ConfigError

GIB, TERA, GIGA = 2**30, 1e12, 1e9


@dataclass(frozen=True)
class GPU:
    """
    Attributes:
        memory: bytes that the driver shows.
        bf16, tf32, fp32: FLOP/s of matrix products in these.
        bandwidth: of its memory, bytes/s, read and written together.
        link: bytes/s that it sends to the others of its node (and receives at the same time).
        network: the same to other nodes.
        price: dollars an hour.
    """

    name: str
    memory: float
    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    link: float
    network: float
    price: float


def _gpu(name, memory, bf16, tf32, fp32, bandwidth, link, network, price) -> GPU:
    return GPU(
        name, memory * GIB, bf16 * TERA, tf32 * TERA, fp32 * TERA, bandwidth * GIGA, link * GIGA, network * GIGA, price
    )


#        name       GiB    bf16   tf32   fp32  GB/s  link network  $/h     (TFLOP/s; link and network in GB/s)
GPUS: dict[str, GPU] = {
    gpu.name: gpu
    for gpu in (
        _gpu("rtx3090", 24.0, 71.0, 35.6, 35.6, 936, 12, 3, 0.25),
        _gpu("rtx4090", 24.0, 165.2, 82.6, 82.6, 1008, 25, 3, 0.40),
        _gpu("rtx5090", 31.8, 209.5, 104.8, 104.8, 1792, 50, 3, 0.70),
        _gpu("l40s", 45.0, 362.0, 183.0, 91.6, 864, 25, 12, 0.90),
        _gpu("a100-40", 40.0, 312.0, 156.0, 19.5, 1555, 300, 25, 1.30),
        _gpu("a100", 80.0, 312.0, 156.0, 19.5, 2039, 300, 25, 1.80),
        _gpu("h800", 79.6, 989.0, 494.0, 67.0, 3350, 200, 50, 2.50),
        _gpu("h100", 79.6, 989.0, 494.0, 67.0, 3350, 450, 50, 2.50),
        _gpu("h200", 140.4, 989.0, 494.0, 67.0, 4800, 450, 50, 3.00),
        _gpu("b200", 179.1, 2250.0, 1100.0, 75.0, 8000, 900, 50, 5.00),
    )
}
NODE = 8  # GPUs of a node


@dataclass(frozen=True)
class Machines:
    """So many GPUs of a kind, in nodes of eight."""

    gpu: GPU
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu.name}"

    @property
    def link(self) -> float:
        """bytes/s at which each can send to the next of a ring through all of them."""
        return self.gpu.link if self.count <= NODE else min(self.gpu.link, self.gpu.network)


def read_machines(text: str) -> Machines:
    """ "h100x8", "h100" -> what that is. Raises ConfigError with the table's names."""
    name, count = text.strip().lower(), 1
    match = re.fullmatch(r"(.+)x(\d+)", name)
    if name not in GPUS and match:  # a name may end like a count: rtx4090
        name, count = match[1], int(match[2])
    if name not in GPUS or count < 1:
        hint = closest_match(name, GPUS)
        raise ConfigError(f"--on takes a GPU and how many, as h100x8, got '{text}'{hint}; GPUs: {', '.join(GPUS)}")
    return Machines(GPUS[name], count)
