"""Tokens per second of generation, beside what the machine allows, and beside plainer loops.

    python benchmarks/sampling.py  # GPT-B: fp32 and bf16, batch 1 and 8, CFG 1.0 and 1.5
    python benchmarks/sampling.py --precision bf16 --batch 8 --compile  # torch.compile beside it
    python benchmarks/sampling.py --gpt-model GPT-L --batch 1 --steps 0

Two bounds, both measured in the same run, at the rows that a step has (batch, twice that with guidance):

- "linears": the time of the model's linear layers alone, on 2-D inputs of that many rows;
- "roofline": the larger of (bytes of their weights / bandwidth of reading an array larger than the caches)
  and (their FLOPs / rate of a large matrix product of this precision).

Three loops for the whole of an image's tokens: "ours" is ``vfmtok.generate``, everything included; "concatenating
cache" appends to growing keys and values; "full forward" runs the whole sequence for every token. The
last two are timed at ``--steps`` lengths spread over the image, so that the benchmark ends, without guidance's
and the draw's small cost. The bound by the linears is the mean of medians before and after: whatever else the
machine does slows it down as well.
Weights are random: no timing depends on their values.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tokenizer import matrix_rate, seconds, synchronise
from torch import Tensor, nn

import vfmtok
from vfmtok.generators.gpt.rotary import rotate
from vfmtok.layers.precision import allow_tf32


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    allow_tf32(False)  # fp32 means fp32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    config = vfmtok.gpt_config(arguments.gpt_model, num_tokens=arguments.tokens)
    gpt = vfmtok.GPT(config).to(device).eval()
    print(f"torch {torch.__version__} on {name}; {arguments.gpt_model}, {config.num_tokens} tokens")
    for precision in arguments.precision:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        gpt = gpt.to(dtype)
        rate, bandwidth = matrix_rate(device, precision), read_bandwidth(device)
        print(f"\n{precision}: matrix products {rate / 1e9:.0f} GFLOP/s, reading {bandwidth / 1e9:.1f} GB/s")
        print(f"{'batch':>5}{'CFG':>5} {'loop':22}{'tokens/s':>10}{'ms/step':>9}{'of linears':>12}{'of roofline':>13}")
        for batch in arguments.batch:
            for scale in arguments.cfg_scale:
                with torch.no_grad():
                    compare(gpt, batch, scale, rate, bandwidth, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-model", default="GPT-B")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an image, a square number")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cfg-scale", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=2, help="lengths at which the plainer loops run; 0: none")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    return parser.parse_args()


def compare(gpt, batch: int, scale: float, rate: float, bandwidth: float, arguments) -> None:
    device, tokens = gpt.output.weight.device, gpt.config.num_tokens
    rows = batch if scale == 1 else 2 * batch
    labels = torch.arange(batch, device=device) % gpt.config.num_classes
    linears = linear_layers(gpt, rows)
    weights = sum(layer.weight.numel() for layer in gpt.modules() if isinstance(layer, nn.Linear))
    roofline = max(weights * gpt.output.weight.element_size() / bandwidth, 2 * weights * rows / rate)
    bound = seconds(linears, device, 15) / 2
    generate = {"ours": {}} | ({"ours, compiled": {"compile": True}} if arguments.compile else {})
    steps = {}
    for name, options in generate.items():
        if options:  # compile first
            vfmtok.generate(gpt, labels, cfg_scale=scale, **options)
        synchronise(device)
        start = time.perf_counter()
        vfmtok.generate(gpt, labels, cfg_scale=scale, **options)
        synchronise(device)
        steps[name] = (time.perf_counter() - start) / tokens
    bound += seconds(linears, device, 15) / 2
    print(row(batch, scale, "bound: linears", bound, bound, roofline))
    lengths = [int((index + 0.5) * tokens / arguments.steps) for index in range(arguments.steps)]
    if lengths:
        loops = {"concatenating cache": (concatenating_step, 3), "full forward": (full_forward_step, 1)}
        for name, (loop, repeat) in loops.items():
            calls = [loop(gpt, labels.repeat(rows // batch), length) for length in lengths]
            steps[name] = sum(seconds(call, device, repeat) for call in calls) / len(calls)
    for name, step in steps.items():
        print(row(batch, scale, name, step, bound, roofline))


def row(batch: int, scale: float, name: str, step: float, bound: float, roofline: float) -> str:
    """``step`` is the seconds in which every image of the batch gets a token."""
    speed = f"{batch / step:10.1f}{step * 1e3:9.1f}"
    return f"{batch:5}{scale:5.1f} {name:22}{speed}{bound / step:12.0%}{roofline / step:13.0%}"


# --------------------------------------------------------------------------------------
# Bounds
# --------------------------------------------------------------------------------------


def linear_layers(gpt, rows: int) -> Callable[[], None]:
    """All linear layers of one step, with nothing between them."""
    layers = [layer for layer in gpt.modules() if isinstance(layer, nn.Linear)]
    weight = gpt.output.weight
    inputs = {layer.in_features: None for layer in layers}
    inputs = {width: torch.randn(rows, width).to(weight) for width in inputs}

    def run() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    return run


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of summing an array of 512 MiB."""
    array = torch.ones(2**27, device=device)
    return array.numel() * 4 / seconds(array.sum, device, 5)


# --------------------------------------------------------------------------------------
# Plainer loops: one step at a given length
# --------------------------------------------------------------------------------------


def full_forward_step(gpt, labels: Tensor, length: int) -> Callable[[], Tensor]:
    """The logits after ``length`` tokens, from a pass over all of them."""
    ids = torch.zeros(len(labels), length - 1, dtype=torch.int64, device=labels.device)
    return lambda: gpt(labels, ids).logits[:, -1]


def concatenating_step(gpt, labels: Tensor, length: int) -> Callable[[], Tensor]:
    """The same from one new slot, whose keys and values are appended to those of ``length`` - 1 others."""
    config, weight = gpt.config, gpt.output.weight
    shape = (len(labels), config.n_head, length - 1, config.head_dim)
    cached = [(torch.randn(shape).to(weight), torch.randn(shape).to(weight)) for _ in gpt.layers]
    ids = torch.zeros(len(labels), 1, dtype=torch.int64, device=labels.device)

    def step() -> Tensor:
        x = gpt.token_embedding(ids)  # (B,1,D)
        for layer, (keys, values) in zip(gpt.layers, cached, strict=True):
            qkv = layer.attention.wqkv(layer.attention_norm(x)).unflatten(-1, (3, config.n_head, -1))  # (B,1,3,H,E)
            q, k = rotate(qkv[:, :, :2], gpt.rotary[:, length - 1 : length]).to(weight.dtype).transpose(1, 3).unbind(2)
            keys = torch.cat([keys, k], dim=2)  # (B,H,n,E)
            values = torch.cat([values, qkv[:, :, 2].transpose(1, 2)], dim=2)
            out = F.scaled_dot_product_attention(q, keys, values)  # (B,H,1,E)
            x = x + layer.attention.wo(out.transpose(1, 2).flatten(2))
            x = x + layer.feed_forward(layer.ffn_norm(x))
        return gpt.output(gpt.norm(x))[:, -1].float()

    return step


if __name__ == "__main__":
    main()
