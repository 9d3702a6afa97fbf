"""Where a generator's training step goes, from a token cache and from images through the frozen tokenizer.

    python benchmarks/train_gpt.py --recipe configs/emoji64_gpt.yaml --code-path CACHE [--data DATA --vq-ckpt RUN]

The bound is the time of the step's matrix products alone (the linear layers of all blocks and the head, forward and
backward, at the same rows and type), measured in the same run. A line's share is of the whole step.

Shapes: R rows (images times tokens of a pass).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

from vfmtok import distributed
from vfmtok.config import load_config, with_overrides
from vfmtok.training import passes
from vfmtok.training.gpt_recipe import GPTRecipe
from vfmtok.training.gpt_run import GPTRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--code-path", required=True)
    parser.add_argument("--data", help="images, to encode at every step")
    parser.add_argument("--vq-ckpt", help="the tokenizer that made the cache")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    world = distributed.start()
    base = load_config(args.recipe, args.set, kind=GPTRecipe)
    sources = {"token cache": {"data.code_path": args.code_path}}
    if args.data and args.vq_ckpt:
        sources["images"] = {"data.path": args.data, "data.vq_ckpt": args.vq_ckpt}
    with tempfile.TemporaryDirectory() as folder:
        for source, values in sources.items():
            recipe = with_overrides(base, (), {**values, "run.results_dir": folder})
            run = GPTRun(recipe, world)
            split = time_steps(run, args.steps)
            total = sum(split.values())
            bound = time_products(run)
            batch, tokens = recipe.run.global_batch, recipe.gpt.num_tokens
            print(f"{source}: {run.parameters / 1e6:.1f} M parameters, batch {batch} x {tokens} tokens, {world.device}")
            print(f"  step {1e3 * total:8.1f} ms, {batch / total:.0f} images/s, median of {args.steps}")
            for name, seconds in split.items():
                print(f"    {name:10s} {1e3 * seconds:8.1f} ms  {seconds / total:6.1%}")
            print(f"  matrix products alone {1e3 * bound:.1f} ms: the step reaches {bound / total:.0%} of this bound")


def time_steps(run: GPTRun, steps: int) -> dict[str, float]:
    """Medians of the parts of a step, in seconds."""
    tokens, stepper, device = run.tokens(), run.state.steppers["model"], run.world.device
    times: dict[str, list[float]] = {name: [] for name in ("data", "forward", "backward", "update")}
    for step in range(steps + 2):
        marks = [_now(device)]
        batch = next(tokens)
        ids, labels = batch.ids.to(device), batch.labels.to(device)
        marks.append(_now(device))
        with run.autocast():
            loss = run.model(labels, ids[:, :-1], targets=ids).loss
        marks.append(_now(device))
        stepper.backward(loss)
        marks.append(_now(device))
        stepper.step(run.optimizer_config.lr)
        if run.state.ema is not None:
            run.state.ema.update(step)
        marks.append(_now(device))
        for name, before, after in zip(times, marks, marks[1:], strict=False):
            times[name].append(after - before)
    tokens.close()
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def time_products(run: GPTRun, repeat: int = 5) -> float:
    """Seconds of all linear layers, forward and backward, each by itself."""
    device, rows = run.world.device, run.plan.rank_batch * run.recipe.gpt.num_tokens
    dtype = torch.bfloat16 if run.recipe.run.precision == "bf16" else torch.float32
    total = 0.0
    with passes.autocast("none", device):
        for linear in (module for module in run.gpt.modules() if isinstance(module, nn.Linear)):
            weight = linear.weight.detach().to(dtype)
            x = torch.randn(rows, weight.shape[1], device=device, dtype=dtype)  # (R,in)
            gradient = torch.randn(rows, weight.shape[0], device=device, dtype=dtype)  # (R,out)
            total += _median(lambda x=x, w=weight, g=gradient: (x @ w.T, g @ w, g.T @ x), device, repeat)
    return total


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
