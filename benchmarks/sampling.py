"""Milliseconds a token of generation, beside what the machine allows, and beside plainer loops.

    python benchmarks/sampling.py  # GPT-B: fp32 and bf16, batch 1 and 8, CFG 1.0 and 1.5
    python benchmarks/sampling.py --precision bf16 --batch 8 --compile  # torch.compile beside it
    python benchmarks/sampling.py --gpt-model GPT-L --batch 1 --steps 0
    python benchmarks/sampling.py --gpt-model RAR-B  # any generator of ids that draws one token after the other

The bound of a step is the larger of (bytes of its linear layers' weights / bandwidth of reading an array larger than
the caches) and (their FLOPs / rate of a large matrix product of this precision), at the rows that a step has (batch,
twice that with guidance); both rates are measured in the same run. Of the first pass (RAR computes the modulations of
all slots there, once) every token has its share.

"ours" is ``vfmtok.generate`` for the whole of an image's tokens, everything included; "ours, plain" the same with
``F.linear`` for all layers (VFMTOK_SAMPLING_LINEARS=plain). They take turns, ``--repeat`` times, and the best of each
counts. What was chosen for the layers is printed at the end. On a GPU "ours" replays CUDA graphs, and "ours, growing
cache" (``kv_cache="growing"``) takes its turn instead of "plain". "the linear layers alone" are those of a step by
``F.linear``, with nothing between them: the mean of medians before and after.

Plainer loops: "concatenating cache" appends to growing keys and values (GPT only); "full forward" runs the whole
sequence for every token. They are timed at ``--steps`` lengths spread over the image, so that the benchmark ends,
without guidance's and the draw's small cost.
Weights are random: no timing depends on their values.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from machine import DTYPES, bound, print_header, print_machine, print_row, rates, seconds, timed
from torch import Tensor, nn

import vfmtok
from vfmtok.generators import generator_config
from vfmtok.generators.gpt.rotary import rotate
from vfmtok.generators.linear_kernels import VARIABLE, chosen
from vfmtok.layers.precision import allow_tf32


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    allow_tf32(False)  # fp32 means fp32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = generator_config(arguments.gpt_model, num_tokens=arguments.tokens)
    gpt = vfmtok.build_generator(config).to(device).eval()
    print_machine(device)
    for precision in arguments.precision:
        gpt = gpt.to(DTYPES[precision])
        print(f"\n{arguments.gpt_model}, {config.num_tokens} tokens, {precision}: {rates(device, DTYPES[precision])}")
        print_header("tokens/s")
        for batch in arguments.batch:
            for scale in arguments.cfg_scale:
                with torch.no_grad():
                    compare(gpt, batch, scale, arguments)
    for shape, rows, dtype, way, taken in chosen():
        times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in taken.items())
        print(f"layers {shape[0]}x{shape[1]}, {rows} rows, {str(dtype).removeprefix('torch.')}: {way} ({times})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-model", default="GPT-B")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an image, a square number")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cfg-scale", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=2, help="lengths at which the plainer loops run; 0: none")
    parser.add_argument("--repeat", type=int, default=1, help="images one after the other; the best counts")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    return parser.parse_args()


def compare(gpt, batch: int, scale: float, arguments) -> None:
    device, tokens = gpt.output.weight.device, gpt.config.num_tokens
    rows = batch if scale == 1 else 2 * batch
    labels = torch.arange(batch, device=device) % gpt.config.num_classes
    first, later = linear_layers(gpt, labels.repeat(rows // batch))
    least = (least_time(first) + (tokens - 1) * least_time(later)) / tokens
    linears = linears_time(first, later, tokens) / 2
    kinds = {"ours": ("auto", {})}
    if device.type == "cpu":
        kinds["ours, plain"] = ("plain", {})
    else:
        kinds["ours, growing cache"] = ("auto", {"kv_cache": "growing"})
    if arguments.compile:
        kinds["ours, compiled"] = ("auto", {"compile": True})
        vfmtok.generate(gpt, labels, cfg_scale=scale, compile=True)  # compile first
    steps = dict.fromkeys(kinds, float("inf"))
    for _ in range(arguments.repeat):
        for name, (way, settings) in kinds.items():
            with linears_by(way):
                taken = timed(lambda given=settings: vfmtok.generate(gpt, labels, cfg_scale=scale, **given), device)
            steps[name] = min(steps[name], taken / tokens)
    linears += linears_time(first, later, tokens) / 2
    steps = {"the linear layers alone": linears} | steps
    lengths = [int((index + 0.5) * tokens / arguments.steps) for index in range(arguments.steps)]
    if lengths:
        for name, (loop, repeat) in PLAINER_LOOPS[gpt.config.kind].items():
            calls = [loop(gpt, labels.repeat(rows // batch), length) for length in lengths]
            steps[name] = sum(seconds(call, device, repeat) for call in calls) / len(calls)
    for name, step in steps.items():  # the seconds in which every image of the batch gets a token
        print_row(f"batch {batch}, CFG {scale:g}: {name}", step, least, f"{batch / step:.1f}")


@contextlib.contextmanager
def linears_by(way: str) -> Iterator[None]:
    """Linear layers multiply as the user's environment says, or if it says nothing, in this way."""
    before = os.environ.get(VARIABLE)
    if way == "plain" or not before:
        os.environ[VARIABLE] = way
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


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


def least_time(calls: list[Call]) -> float:
    """Seconds in which this machine could read the weights and multiply, whichever takes longer."""
    weight = calls[0][0].weight
    read = sum(layer.weight.numel() * layer.weight.element_size() for layer, _ in calls)
    return bound(weight.device, weight.dtype, sum(2 * layer.weight.numel() * rows for layer, rows in calls), read)


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
