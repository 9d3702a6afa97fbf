"""Tokens per second of generation, beside what the machine allows, and beside plainer loops.

    python benchmarks/sampling.py  # GPT-B: fp32 and bf16, batch 1 and 8, CFG 1.0 and 1.5
    python benchmarks/sampling.py --precision bf16 --batch 8 --compile  # torch.compile beside it
    python benchmarks/sampling.py --gpt-model GPT-L --batch 1 --steps 0
    python benchmarks/sampling.py --gpt-model RAR-B  # any generator of ids that draws one token after the other

Two bounds, both measured in the same run, at the rows that a step has (batch, twice that with guidance):

- "linears": the time of the linear layers that a step runs, alone, on 2-D inputs of that many rows; and, shared among
  the tokens, of those of the first pass (RAR's modulations of all slots are computed there, once);
- "roofline": the larger of (bytes of their weights / bandwidth of reading an array larger than the caches)
  and (their FLOPs / rate of a large matrix product of this precision).

Three loops for the whole of an image's tokens: "ours" is ``vfmtok.generate``, everything included; "concatenating
cache" appends to growing keys and values (GPT only); "full forward" runs the whole sequence for every token. The
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
from vfmtok.generators import generator_config
from vfmtok.generators.gpt.rotary import rotate
from vfmtok.layers.precision import allow_tf32


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    allow_tf32(False)  # fp32 means fp32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    config = generator_config(arguments.gpt_model, num_tokens=arguments.tokens)
    gpt = vfmtok.build_generator(config).to(device).eval()
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
    first, later = linear_layers(gpt, labels.repeat(rows // batch))
    roofline = (least_time(first, bandwidth, rate) + (tokens - 1) * least_time(later, bandwidth, rate)) / tokens
    bound = linears_time(first, later, tokens) / 2
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
    bound += linears_time(first, later, tokens) / 2
    print(row(batch, scale, "bound: linears", bound, bound, roofline))
    lengths = [int((index + 0.5) * tokens / arguments.steps) for index in range(arguments.steps)]
    if lengths:
        for name, (loop, repeat) in PLAINER_LOOPS[gpt.config.kind].items():
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


Call = tuple[nn.Linear, int]  # a linear layer and the rows of its input


def linear_layers(gpt, labels: Tensor) -> tuple[list[Call], list[Call]]:
    """The linear layers that the first pass of a batch runs, and those of every step after it."""
    calls: list[Call] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, inputs[0].numel() // layer.in_features))

    hooks = [layer.register_forward_hook(note) for layer in gpt.modules() if isinstance(layer, nn.Linear)]
    state, logits = gpt.begin(labels, labels.new_empty(len(labels), 0), None)
    of_first, slot = len(calls), gpt.first_token_slot
    state.reserve(slot + 1)
    gpt.decode_step(logits.argmax(-1), torch.tensor([slot], device=labels.device), state)
    for hook in hooks:
        hook.remove()
    return calls[:of_first], calls[of_first:]


def linears_time(first: list[Call], later: list[Call], tokens: int) -> float:
    """Seconds a token of the layers with nothing between them, one first pass and then steps."""
    device = first[0][0].weight.device
    once, step = (seconds(running(calls), device, 7) for calls in (first, later))
    return (once + (tokens - 1) * step) / tokens


def running(calls: list[Call]) -> Callable[[], None]:
    weight = calls[0][0].weight
    inputs = {shape: torch.randn(*shape).to(weight) for shape in {(rows, layer.in_features) for layer, rows in calls}}

    def run() -> None:
        for layer, rows in calls:
            layer(inputs[rows, layer.in_features])

    return run


def least_time(calls: list[Call], bandwidth: float, rate: float) -> float:
    """Seconds in which this machine could read the weights and multiply, whichever takes longer."""
    read = sum(layer.weight.numel() * layer.weight.element_size() for layer, _ in calls)
    return max(read / bandwidth, sum(2 * layer.weight.numel() * rows for layer, rows in calls) / rate)


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


def whole_forward_step(gpt, labels: Tensor, length: int) -> Callable[[], Tensor]:
    """The same of a model whose passes are over all tokens of an image, whatever the length."""
    ids = torch.zeros(len(labels), gpt.config.num_tokens, dtype=torch.int64, device=labels.device)
    return lambda: gpt(labels, ids).logits[:, length - 1]


PLAINER_LOOPS = {  # kind -> name -> (loop, how often it is timed)
    "gpt": {"concatenating cache": (concatenating_step, 3), "full forward": (full_forward_step, 1)},
    "rar": {"full forward": (whole_forward_step, 1)},
}


if __name__ == "__main__":
    main()
