"""Training steps alone and beside one busy process, by how OpenMP's threads wait.

    python benchmarks/waiting.py                       # two minutes on two cores
    python benchmarks/waiting.py --threads 2 --steps 30 --busy 2

Every policy in a process of its own, by turns, since the runtime reads it when it is loaded; the busy process is
`python -c "while True: pass"`. A step is that of a small GPT, such as the quickstart's (width 256, 6 layers, 64 tokens,
batch 16). The bound of every row is the step with the default policy and nothing beside it.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from machine import print_header, print_machine, print_row

import vfmtok
from vfmtok.waiting import VARIABLES

POLICIES = {
    "default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=12, help="of every turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(step_seconds(arguments.steps))
        return
    print_machine(torch.device("cpu"))
    print(f"{arguments.threads} threads, best of {arguments.turns} turns of {arguments.steps} steps (medians)")
    found = {(name, busy): float("inf") for busy in (0, arguments.busy) for name in POLICIES}
    for _ in range(arguments.turns):
        for name, busy in found:
            with neighbours(busy):
                found[name, busy] = min(found[name, busy], measured(POLICIES[name], arguments))
    print_header("times as long as alone")
    for (name, busy), elapsed in found.items():
        beside = f"beside {busy} busy" if busy else "alone"
        print_row(f"{name}, {beside}", elapsed, found["default", 0], f"{elapsed / found[name, 0]:.2f}")


def measured(policy: dict[str, str], arguments: argparse.Namespace) -> float:
    """Seconds of a step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= policy | {"OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, "--measure", "--steps", str(arguments.steps)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_seconds(steps: int) -> float:
    """The median of training steps."""
    torch.manual_seed(0)
    config = vfmtok.gpt_config("GPT-B", n_layer=6, n_head=8, dim=256, vocab_size=512, num_tokens=64, num_classes=10)
    gpt = vfmtok.build_generator(config).train()
    optimizer = torch.optim.AdamW(gpt.parameters())
    ids, labels = torch.randint(512, (16, 64)), torch.randint(10, (16,))
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        sum(gpt.loss(ids, labels).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[steps // 2]


if __name__ == "__main__":
    main()
