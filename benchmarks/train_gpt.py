"""Where a generator's training step goes, from a token cache and from images through the frozen tokenizer.

    python benchmarks/train_gpt.py --recipe configs/vfmtok/emoji64_gpt.yaml --code-path CACHE
        [--anno-file DATA --vq-ckpt RUN]

Other flags are those of train_c2i.py. A step is cut as the training loop cuts it: reading (what the loop waits for),
encoding (images only), forward, backward, and update (clipping, optimizer, average). The bound is the time of the
step's matrix products alone (the linear layers of all blocks and the head, forward and backward, at the same rows and
type), measured in the same run.

Shapes: R rows (images times tokens of a pass).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from machine import milliseconds, print_header, print_machine, print_row
from torch import nn

from vfmtok import distributed
from vfmtok.commands import generator_flags
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.precision import autocast
from vfmtok.training import passes
from vfmtok.training.generator_run import GeneratorRun

PARTS = ("reading", "encoding", "forward", "backward", "update")
WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code-path", required=True, help="a token cache")
    parser.add_argument("--anno-file", help="images, to encode at every step by the tokenizer (--vq-ckpt)")
    parser.add_argument("--steps", type=int, default=20)
    args, others = parser.parse_known_args()
    sources = {"token cache": ["--code-path", args.code_path]}
    if args.anno_file:
        sources["images"] = ["--anno-file", args.anno_file]
    with distributed.program("benchmarks/train_gpt.py") as world:
        if world.is_main:
            print_machine(world.device)
        totals = {source: measure(source, [*flags, *others], args.steps, world) for source, flags in sources.items()}
        if len(totals) == 2 and world.is_main:
            print(f"a step from images takes {totals['images'] / totals['token cache']:.2f} times one from the cache")


def measure(source: str, flags: list[str], steps: int, world: distributed.World) -> float:
    """Print the split of a step from this source; returns its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--results-dir", folder, "--set", "run.validation_images=1"]  # none is measured here
        args = generator_flags.generator_parser().parse_args(flags)
        run = GeneratorRun(generator_flags.generator_recipe(args), world)
    times = time_steps(run, steps)
    split = {name: statistics.median(values) for name, values in times.items()}
    total = statistics.median(map(sum, zip(*times.values(), strict=True)))
    bound = time_products(run)
    batch, tokens = run.recipe.run.global_batch, run.generator.code.num_tokens
    if world.is_main:
        print(f"{source}: {run.parameters / 1e6:.1f} M parameters, batch {batch} x {tokens} tokens, "
              f"{run.recipe.run.precision}, median of {steps}; bound: its matrix products alone")  # fmt: skip
        print_header("images/s", "of the step")
        print_row(f"step from {source}", total, bound, f"{batch / total:.0f}", milliseconds(total))
        for name, seconds in split.items():
            if seconds:
                print_row(name, seconds, None, "", f"{seconds / total:.1%}")
    return total


def time_steps(run: GeneratorRun, steps: int) -> dict[str, list[float]]:
    """Seconds of every part of every step but the first ones."""
    tokens, stepper, device = run.codes(), run.state.steppers["model"], run.world.device
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for step in range(WARM_UP + steps):
        spent = dict.fromkeys(PARTS, 0.0)
        start = _now(device)
        tokens.reset_timing()
        batch = next(tokens)
        spent["reading"] = _now(device) - start
        if hasattr(tokens, "loader"):  # what was not waited for went into encoding
            spent["encoding"] = spent["reading"] - tokens.loader.wait_seconds
            spent["reading"] = tokens.loader.wait_seconds
        parts = passes.micro_batches(run.plan.micro_batch, batch.code, batch.labels, batch.positions)
        for last, (code, labels, positions) in parts:
            start = _now(device)
            with passes.synced(run.model, last):
                with run.autocast():
                    draws = Draws(run.recipe.run.seed, positions.to(device))
                    loss = sum(run.model(code.to(device), labels.to(device), draws).values())
                between = _now(device)
                stepper.backward(loss / run.recipe.run.accumulation)
            spent["forward"] += between - start
            spent["backward"] += _now(device) - between
        start = _now(device)
        stepper.step(run.optimizer_config.lr)
        if run.state.ema is not None:
            run.state.ema.update(step)
        spent["update"] = _now(device) - start
        for name, seconds in spent.items():
            times[name].append(seconds)
    tokens.close()
    return {name: values[WARM_UP:] for name, values in times.items()}


def time_products(run: GeneratorRun, repeat: int = 5) -> float:
    """Seconds of all linear layers in all passes of a step, forward and backward, each by itself."""
    device, rows = run.world.device, run.plan.micro_batch * run.generator.code.num_tokens
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.recipe.run.precision, torch.float32)
    total = 0.0
    with autocast("none", device):
        for linear in (module for module in run.generator.modules() if isinstance(module, nn.Linear)):
            weight = linear.weight.detach().to(dtype)
            x = torch.randn(rows, weight.shape[1], device=device, dtype=dtype)  # (R,in)
            gradient = torch.randn(rows, weight.shape[0], device=device, dtype=dtype)  # (R,out)
            total += _median(lambda x=x, w=weight, g=gradient: (x @ w.T, g @ w, g.T @ x), device, repeat)
    return total * run.recipe.run.accumulation


def _median(function: Callable[[], object], device: torch.device, repeat: int) -> float:
    times = []
    for _ in range(repeat + 1):
        start = _now(device)
        function()
        times.append(_now(device) - start)
    return statistics.median(times[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
