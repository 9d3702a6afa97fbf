"""Time and memory of the tokenizer, part by part, beside the time its FLOPs would take as matrix products.

    python benchmarks/tokenizer.py                                  # the paper's model, fp32 and bf16
    python benchmarks/tokenizer.py --only sampling                  # the deformable sampling core against grid_sample
    python benchmarks/tokenizer.py --config configs/tiny.yaml --repeat 20

The bound of a part is its FLOP count (PyTorch's counter: linear layers, convolutions, attention
products) divided by the rate of a large matrix product in the same precision, measured in the same
run. Weights are random: no timing depends on their values. Memory is the peak that a part
adds to what the process held before it.
"""

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import DTYPES, bound, peak_memory, print_header, print_machine, print_row, product_rate, seconds
from torch.utils.flop_counter import FlopCounterMode

import vfmtok
from vfmtok.layers.deformable_attention import deformable_sampling
from vfmtok.layers.precision import allow_tf32


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore", message="the frozen encoder")
    torch.manual_seed(0)
    allow_tf32(False)  # fp32 means fp32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print_machine(device)
    print(f"median of {arguments.repeat} runs")
    if arguments.only != "sampling":
        config = vfmtok.load_config(arguments.config, arguments.set)
        tokenizer = vfmtok.VFMTok(config).to(device)
        images = torch.rand(arguments.batch, 3, config.image_size, config.image_size, device=device) * 2 - 1
        for precision in arguments.precision:
            rate = product_rate(device, DTYPES[precision])
            print(f"\n{precision}, batch {arguments.batch}: matrix products run at {rate / 1e9:.0f} GFLOP/s")
            measure_tokenizer(tokenizer, images, precision, arguments)
    if arguments.only != "parts":
        compare_sampling(device, arguments.repeat)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent.parent
    parser.add_argument("--config", default=root / "configs/vit_transformer.yaml", help="a tokenizer configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field; repeatable")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=["parts", "sampling"], help="leave the other half out")
    return parser.parse_args()


# --------------------------------------------------------------------------------------
# The parts
# --------------------------------------------------------------------------------------


def measure_tokenizer(tokenizer, images, precision: str, arguments) -> None:
    device, dtype = images.device, DTYPES[precision]
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        with torch.no_grad():
            tokenizer.eval()
            features = tokenizer.encoder(images)
            region_tokens = tokenizer.sampler(features)
            codes = tokenizer.quantize(region_tokens)[1].codes
            image_map, _ = tokenizer.decoder(codes)
            parts = {
                "encoder (frozen)": lambda: tokenizer.encoder(images),
                "region sampler": lambda: tokenizer.sampler(features),
                "quantizer": lambda: tokenizer.quantize(region_tokens),
                "ViT decoder": lambda: tokenizer.decoder(codes),
                "pixel decoder": lambda: tokenizer.pixel_decoder(image_map),
            }
            print("\nencode and decode (eval, no gradient)")
            print_header(*COLUMNS)
            rows = [measure_part(name, part, dtype, device, arguments.repeat) for name, part in parts.items()]
            print_sum("ours, all but the encoder", rows[1:], dtype, device)

        tokenizer.train()
        leaf = {name: x.detach().float().requires_grad_() for name, x in
                (("tokens", region_tokens), ("codes", codes), ("map", image_map))}  # fmt: skip
        parts = {
            "encoder (frozen, forward)": lambda: no_grad(tokenizer.encoder, images),
            "region sampler": lambda: backward(tokenizer.sampler(features)),
            "quantizer": lambda: backward(tokenizer.quantize(leaf["tokens"])[1].codes),
            "ViT decoder, two branches": lambda: backward(*tokenizer.decoder(leaf["codes"], with_features=True)),
            "pixel decoder": lambda: backward(tokenizer.pixel_decoder(leaf["map"])),
        }
        print("\nforward and backward (train)")
        print_header(*COLUMNS)
        rows = [measure_part(name, part, dtype, device, arguments.repeat) for name, part in parts.items()]
        print_sum("ours, all but the encoder", rows[1:], dtype, device)
        measure_part("whole tokenizer", lambda: whole_step(tokenizer, images), dtype, device, arguments.repeat)
        tokenizer.zero_grad(set_to_none=True)


def no_grad(function: Callable, *inputs):
    with torch.no_grad():
        return function(*inputs)


def backward(*outputs) -> None:
    sum(output.float().square().mean() for output in outputs if output is not None).backward()


def whole_step(tokenizer, images) -> None:
    out = tokenizer(images)
    backward(out.reconstruction - images, out.feature_reconstruction, *out.losses.values())


# --------------------------------------------------------------------------------------
# The sampling core
# --------------------------------------------------------------------------------------


def compare_sampling(device: torch.device, repeat: int) -> None:
    """Batch 4, 256 queries, 8 heads of 64 channels, 4 levels of 24x24, 4 points."""
    batch, queries, heads, channels, points, grids = 4, 256, 8, 64, 4, [(24, 24)] * 4
    value = torch.randn(batch, sum(h * w for h, w in grids), heads, channels, device=device, requires_grad=True)
    shape = (batch, queries, heads, len(grids), points)
    locations = torch.rand(*shape, 2, device=device, requires_grad=True)
    weights = torch.rand(shape, device=device, requires_grad=True)
    grad = torch.randn(batch, queries, heads * channels, device=device)

    print("\ndeformable sampling, batch 4, 256 queries, 8 heads x 64, 4 levels of 24x24, 4 points, fp32")
    print(f"{'':34}{'forward':>12}{'forward + backward':>22}")
    times = {}
    for name, function in (
        ("grid_sample, level by level", grid_sample_loop),
        ("deformable_sampling", deformable_sampling),
    ):
        forward = seconds(lambda f=function: no_grad(f, value, grids, locations, weights), device, repeat)
        both = seconds(
            lambda f=function: torch.autograd.grad(
                f(value, grids, locations, weights), (value, locations, weights), grad
            ),
            device,
            repeat,
        )
        times[name] = (forward, both)
        print(f"{name:34}{forward * 1e3:9.1f} ms{both * 1e3:19.1f} ms")
    loop, ours = times.values()
    print(f"{'ratio':34}{loop[0] / ours[0]:10.1f} x{loop[1] / ours[1]:20.1f} x")


def grid_sample_loop(value, grids, locations, weights):
    """The usual formulation in PyTorch: one grid_sample a level, stacked, weighted, summed."""
    batch, _, heads, channels = value.shape
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in grids], dim=1)):
        feature_map = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *grids[level])
        points = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples.append(F.grid_sample(feature_map, points, mode="bilinear", align_corners=False))
    share = weights.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    out = (torch.stack(samples, dim=-2).flatten(-2) * share).sum(-1)
    return out.view(batch, heads * channels, -1).transpose(1, 2)


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


COLUMNS = ("GFLOP", "GFLOP/s", "memory")


def measure_part(name: str, part: Callable, dtype: torch.dtype, device, repeat: int) -> tuple[float, float]:
    """Measure, print and return (FLOPs, seconds)."""
    with FlopCounterMode(display=False) as counter:
        part()
    flops = counter.get_total_flops()
    memory = peak_memory(part, device)
    elapsed = seconds(part, device, repeat)
    print_part(name, flops, elapsed, dtype, device, f"{memory / 2**20:.0f} MiB")
    return flops, elapsed


def print_sum(name: str, rows: list[tuple[float, float]], dtype: torch.dtype, device) -> None:
    flops, elapsed = (sum(column) for column in zip(*rows, strict=True))
    print_part(name, flops, elapsed, dtype, device, "")


def print_part(name: str, flops: float, elapsed: float, dtype: torch.dtype, device, memory: str) -> None:
    rates = f"{flops / 1e9:.1f}", f"{flops / elapsed / 1e9:.0f}"
    print_row(name, elapsed, bound(device, dtype, flops), *rates, memory)


if __name__ == "__main__":
    main()
