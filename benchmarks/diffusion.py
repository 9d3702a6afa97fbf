"""Training and sampling steps of a diffusion generator, beside the time of their matrix products alone.

    python benchmarks/diffusion.py  # LightningDiT-B/1, batch 4, fp32
    python benchmarks/diffusion.py --gpt-model DiTDH-S --precision bf16 --batch 32

A training step is the loss, its gradients, clipping and AdamW. A sampling step is one of Euler with guidance, so with
twice the rows. "products" are the linear layers of the network on 2-D inputs of the rows that they have there, and
both products of attention, forward alone or forward and backward; nothing else. Best of all repetitions, the steps and
their products by turns: whatever else the machine does slows both down. Weights are random: no timing depends on them.
"""

import argparse
from collections import Counter
from collections.abc import Callable

import torch
from machine import DTYPES, print_header, print_machine, print_row, timed
from torch import Tensor, nn

import vfmtok
from vfmtok.generators import generator_config
from vfmtok.generators.diffusion.guidance import guided_velocity
from vfmtok.layers.precision import allow_tf32, autocast
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import OptimizerConfig


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    allow_tf32(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dit = vfmtok.build_generator(generator_config(arguments.gpt_model)).to(device)
    shape = " x ".join(map(str, dit.code.shape))
    print_machine(device)
    print(f"{arguments.gpt_model}, latents {shape}, {arguments.precision}; bound: its products alone")
    print_header("images/s")
    for batch in arguments.batch:
        for kind in ("training", "sampling"):
            compare(dit, batch, kind, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-model", default="LightningDiT-B/1")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def compare(dit: vfmtok.DiT, batch: int, kind: str, arguments: argparse.Namespace) -> None:
    device, trains = dit.patches.weight.device, kind == "training"
    step = training_step(dit, batch) if trains else sampling_step(dit, batch)
    precision = "bf16" if arguments.precision == "bf16" else "none"
    with autocast(precision, device):
        shapes = product_shapes(dit, batch if trains else 2 * batch)
        dtype = DTYPES[arguments.precision]
        alone = products(shapes, device, dtype, trains)
        step()
        alone()
        best = [float("inf"), float("inf")]
        for _ in range(arguments.repeat):
            for index, call in enumerate((step, alone)):
                best[index] = min(best[index], timed(call, device))
    print_row(f"{kind} step, batch {batch}", *best, f"{batch / best[0]:.2f}")


def training_step(dit: vfmtok.DiT, batch: int) -> Callable[[], None]:
    device = dit.patches.weight.device
    code = torch.randn(batch, *dit.code.shape, device=device)
    labels = torch.arange(batch, device=device)
    learned = [parameter for parameter in dit.parameters() if parameter.requires_grad]
    stepper = Stepper(build_optimizer(OptimizerConfig(), learned), learned, 1.0)

    def step() -> None:
        dit.train()
        stepper.backward(sum(dit.loss(code, labels).values()))
        stepper.step(1e-4)

    return step


def sampling_step(dit: vfmtok.DiT, batch: int) -> Callable[[], None]:
    device = dit.patches.weight.device
    x = torch.randn(batch, *dit.code.shape, device=device, dtype=torch.float64)
    labels, guidance = torch.arange(batch, device=device), vfmtok.FlowGuidance(2.0)

    def step() -> None:
        dit.eval()
        x.add_(guided_velocity(dit, x, 0.5, labels, guidance)[0], alpha=-1e-3)

    return step


# --------------------------------------------------------------------------------------
# The products alone
# --------------------------------------------------------------------------------------


Product = tuple[tuple[int, ...], tuple[int, ...]]  # shapes of both factors


@torch.no_grad()
def product_shapes(dit: vfmtok.DiT, rows: int) -> Counter[Product]:
    """How often each product occurs in a forward pass of ``rows`` latents."""
    found: Counter[Product] = Counter()

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count = inputs[0].numel() // layer.in_features
        found[(count, layer.in_features), (layer.in_features, layer.out_features)] += 1

    hooks = [layer.register_forward_hook(note) for layer in dit.modules() if isinstance(layer, nn.Linear)]
    device = dit.patches.weight.device
    dit.eval()(torch.randn(rows, *dit.code.shape, device=device), torch.full((rows,), 0.5, device=device),
               torch.zeros(rows, dtype=torch.int64, device=device))  # fmt: skip
    for hook in hooks:
        hook.remove()
    tokens = dit.config.side**2
    for block in dit.layers:
        heads, width = block.attention.heads, block.attention.proj.in_features // block.attention.heads
        found[(rows * heads, tokens, width), (rows * heads, width, tokens)] += 1  # q k^T
        found[(rows * heads, tokens, tokens), (rows * heads, tokens, width)] += 1  # p v
    return found


def products(shapes: Counter[Product], device: torch.device, dtype: torch.dtype, backward: bool) -> Callable[[], None]:
    """All of them, one after the other; ``backward`` adds the two of each that give the gradients of its factors."""
    factors = [(torch.randn(a, device=device, dtype=dtype), torch.randn(b, device=device, dtype=dtype), count)
               for (a, b), count in shapes.items()]  # fmt: skip

    @torch.no_grad()
    def run() -> None:
        for a, b, count in factors:
            for _ in range(count):
                c = a @ b
                if backward:
                    c @ b.mT
                    a.mT @ c

    return run


if __name__ == "__main__":
    main()
