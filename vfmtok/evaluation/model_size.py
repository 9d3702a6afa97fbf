"""Parameters, FLOPs and memory of a model, from its configuration alone: no weight is read, drawn or given memory.

A model is built on the meta device; its FLOPs are those of a pass over fake tensors, which have shapes and no content.
So the largest generator is looked at in seconds on a laptop. FLOPs are counted as the field does: two per multiply and
add of every matrix product and convolution, attention over all pairs (a causal mask is not counted as a saving), and
the deformable sampling's weighted sums; norms, activations and softmax are left out.

Shapes: B batch, S image side, K tokens of an image, V vocabulary.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vfmtok.errors import WeightsError
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.generators.gpt.model import GPT
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.tokenizers.vfmtok.model import VFMTok
from vfmtok.weights.name_maps import to_released

BYTES = {"fp32": 4, "bf16": 2}  # of a value


@dataclass(frozen=True)
class Part:
    """A part of a model: its parameters, how many of them are trained, and FLOPs for one image."""

    name: str
    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True)
class TokenizerSize:
    """What a tokenizer needs. FLOPs are for one image."""

    config: VFMTokConfig  # resolved: with what the encoder fills in
    grids: tuple[tuple[int, int], ...]  # (height, width) in cells of every level that is read
    widths: tuple[int, ...]  # channels of every level
    parts: list[Part]
    training_flops: int  # of a forward pass in training, with the feature branch
    released_values: int | None  # in a file under the published names; None: a part was never published

    @property
    def bits(self) -> float:
        """Of one image's ids, as they are: K log2(V)."""
        return self.config.code.bits


@dataclass(frozen=True)
class GPTSize:
    """What a generator needs. FLOPs are for one image: all its tokens in one pass."""

    config: GPTConfig
    parts: list[Part]

    def cache_values(self) -> int:
        """Values of the key-value cache of one image: 2 x layers x (1 + K) slots x width. Guidance takes two."""
        return 2 * self.config.n_layer * (1 + self.config.num_tokens) * self.config.dim


def tokenizer_size(config: VFMTokConfig) -> TokenizerSize:
    """Raises ConfigError if such a tokenizer can't be built."""
    encoder = dataclasses.replace(config.encoder, weights="none", weights_sha256=None)
    bare = dataclasses.replace(config, encoder=encoder)
    with torch.device("meta"):
        tokenizer = VFMTok(bare)
    resolved = dataclasses.replace(
        tokenizer.config,
        encoder=dataclasses.replace(
            tokenizer.encoder.config, weights=config.encoder.weights, weights_sha256=config.encoder.weights_sha256
        ),
    )
    try:
        released = sum(tensor.numel() for tensor in to_released(tokenizer).values())
    except WeightsError:
        released = None
    grids, widths = tokenizer.encoder.grids, tokenizer.encoder.widths
    size = config.image_size
    flops = count_flops(tokenizer.eval(), lambda: (torch.empty(1, 3, size, size),))
    # The projection to the latents is a bare product outside its own module: it counts with the quantizer.
    flops["quantizer"] = flops.pop("") + flops.get("quantizer", 0)
    modules = {
        "encoder": [tokenizer.encoder],
        "sampler": [tokenizer.sampler],
        "quantizer": [tokenizer.to_latents, tokenizer.quantizer],
        "decoder": [tokenizer.decoder],
        "pixel_decoder": [tokenizer.pixel_decoder],
    }
    parts = [_part(name, found, flops.get(name, 0)) for name, found in modules.items()]
    training = count_flops(tokenizer.train(), lambda: (torch.empty(1, 3, size, size),))
    return TokenizerSize(resolved, grids, widths, parts, sum(training.values()), released)


def gpt_size(config: GPTConfig) -> GPTSize:
    with torch.device("meta"):
        gpt = GPT(config).eval()
    flops = count_flops(
        gpt, lambda: (torch.zeros(1, dtype=torch.int64), torch.zeros(1, config.num_tokens - 1, dtype=torch.int64))
    )
    layers = sum(count for name, count in flops.items() if name != "output")  # a ModuleList makes no pass of its own
    parts = [
        _part("embeddings", [gpt.class_embedding, gpt.token_embedding], 0),
        _part("layers", [gpt.layers, gpt.norm], layers),
        _part("output head", [gpt.output], flops["output"]),
    ]
    return GPTSize(config, parts)


def count_flops(model: nn.Module, inputs: Callable[[], tuple[Tensor, ...]]) -> dict[str, int]:
    """FLOPs of ``model(*inputs())`` by direct child of the model, "" for what lies outside them.

    Args:
        model: on the meta device.
    """
    model = copy.deepcopy(model)  # whose tensors become fake for good
    kinds = {torch.ops.vfmtok.weighted_row_sum: _flops_of_weighted_row_sum}
    counter = FlopCounterMode(display=False, custom_mapping=kinds)
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")  # weights that are not there are random to the encoder
        # On the fake CPU, since autocast, which the float32 islands switch off, knows no meta device.
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        # The plain attention: the fused kernels of the CPU are not in the counter's table.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs())
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    root = type(model).__name__
    children = {
        name: count for name, _ in model.named_children() if (count := counts.get(f"{root}.{name}")) is not None
    }
    return {**children, "": counts.get("Global", 0) - sum(children.values())}


def _flops_of_weighted_row_sum(table, rows, weights, *, out_shape=None, **_) -> int:
    """Shapes: rows (N,J) of a table (R,C): J multiplies and adds for each of the N x C results."""
    return 2 * math.prod(rows) * table[1]


def _part(name: str, modules: list[nn.Module], flops: int) -> Part:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Part(name, sum(parameter.numel() for parameter in parameters), trained, flops)


# --------------------------------------------------------------------------------------
# Memory of training
# --------------------------------------------------------------------------------------

# (what is kept, values per parameter, of which parameters): N are all parameters, T those that are trained.
TRAINING_STATES = (
    ("weights", 1, "N"),
    ("gradients", 1, "T"),
    ("AdamW's two moments", 2, "T"),
    ("average of the weights (EMA)", 1, "T"),
)


def training_memory(parts: list[Part], precision: str) -> dict[str, int]:
    """Bytes of every state of training, without activations: values per parameter x parameters x bytes of a value."""
    counts = {"N": sum(part.parameters for part in parts), "T": sum(part.trained for part in parts)}
    return {name: values * counts[of] * BYTES[precision] for name, values, of in TRAINING_STATES}
