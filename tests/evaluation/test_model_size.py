import math

import golden_rule
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import random_gpt, tiny_config
from tiny_models import tokenizer
from torch.overrides import TorchFunctionMode

import vfmtok
from vfmtok.evaluation.model_size import generator_size, tokenizer_size, training_memory


class CountedByShapes(TorchFunctionMode):
    """FLOPs of the functions that real tensors go through, whatever kernels they end in."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is F.linear or function is torch.nn.functional.linear:
            self.flops += 2 * out.numel() * args[1].shape[1]
        elif function is torch.conv2d or function is F.conv2d:
            self.flops += 2 * out.numel() * math.prod(args[1].shape[1:])
        elif function is torch.Tensor.__matmul__ or function is torch.Tensor.matmul:
            self.flops += 2 * out.numel() * args[0].shape[-1]
        elif function is F.scaled_dot_product_attention:
            self.flops += 4 * args[0].numel() * args[1].shape[-2]
        return out


@pytest.mark.parametrize("overrides", [(), ("sampler.attention=windowed",), ("decoder.shared=false",)])
def test_flops_of_a_tokenizer_are_those_of_a_real_pass(tiny_config, overrides):
    model, config = tokenizer(*overrides), tiny_config(*overrides)
    size = tokenizer_size(config)
    flops = {part.name: part.flops for part in size.parts}
    sampler = config.sampler
    sums = 2 * sampler.num_tokens * 4 * len(size.grids) * sampler.points * config.dim  # 4 cells each point
    sampled = sampler.depth * sums if sampler.attention == "deformable" else 0
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad():
        with CountedByShapes() as encoder:
            features = model.encoder(images)
        with CountedByShapes() as whole:
            model(images)
        with CountedByShapes() as decoding:
            codes = model.quantizer.lookup(torch.zeros(1, sampler.num_tokens, dtype=torch.int64))
            image_map, _ = model.decoder(codes)
        with CountedByShapes() as pixels:
            model.pixel_decoder(image_map)
        with CountedByShapes() as training:
            model.sampler(features)
            model.quantize(torch.zeros(1, sampler.num_tokens, config.dim))
            model.decoder.train()(codes, with_features=True)
    assert flops["encoder"] == encoder.flops > 0
    assert flops["decoder"] == decoding.flops > 0
    assert flops["pixel_decoder"] == pixels.flops > 0
    assert sum(flops.values()) == whole.flops + sampled
    assert size.training_flops == encoder.flops + training.flops + sampled + pixels.flops


def test_flops_of_a_gpt_are_those_of_a_real_pass_and_of_the_formula():
    gpt = random_gpt()
    of = gpt.config
    with torch.no_grad(), CountedByShapes() as counted:
        gpt(torch.zeros(1, dtype=torch.int64), torch.zeros(1, of.num_tokens - 1, dtype=torch.int64))
    flops = sum(part.flops for part in generator_size(of).parts)
    weights = of.n_layer * (4 * of.dim**2 + 3 * of.dim * of.hidden) + of.dim * of.vocab_size
    by_formula = 2 * of.num_tokens * weights + of.n_layer * 4 * of.num_tokens**2 * of.dim
    assert flops == counted.flops == by_formula


def test_published_sizes(root):
    for name, facts in golden_rule.shapes("gpt_sizes.json").items():
        assert sum(part.parameters for part in generator_size(vfmtok.gpt_config(name)).parts) == facts["params"]
    size = tokenizer_size(vfmtok.load_config(root / "configs/vit_transformer.yaml"))
    assert size.released_values == 73_352_367  # DESIGN 5, the release's usage buffer of 65,536 included
    assert sum(part.parameters for part in size.parts if part.name != "encoder") == 73_352_367 - 65_536
    assert size.bits == 256 * 14 and size.grids == ((24, 24),) * 4


def test_parts_are_all_of_a_model_and_frozen_ones_are_not_trained(tiny_config):
    for overrides in ((), ("encoder.frozen=false",)):
        model = tokenizer(*overrides)
        for parameter in model.parameters():  # the fixture froze all
            parameter.requires_grad_(True)
        frozen = sum(p.numel() for part in model.frozen_parts for p in getattr(model, part).parameters())
        everything = sum(p.numel() for p in model.parameters())
        parts = tokenizer_size(tiny_config(*overrides)).parts
        assert sum(part.parameters for part in parts) == everything
        assert sum(part.trained for part in parts) == everything - frozen
        assert (frozen > 0) == (not overrides)


def test_weights_are_not_looked_for(tiny_config):
    size = tokenizer_size(tiny_config("encoder.weights=/no/such/file.pth"))
    assert size.config.encoder.weights == "/no/such/file.pth"


def test_memory_is_what_pytorch_keeps():
    gpt = random_gpt().requires_grad_(True)
    optimizer = torch.optim.AdamW(gpt.parameters())
    gpt(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 15, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    size = generator_size(gpt.config)
    memory = training_memory(size.parts, "fp32")
    kept = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    assert memory["weights"] == sum(p.numel() * p.element_size() for p in gpt.parameters())
    assert memory["gradients"] == sum(p.grad.numel() * p.grad.element_size() for p in gpt.parameters())
    assert memory["AdamW's two moments"] == sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert training_memory(size.parts, "bf16") == {name: count // 2 for name, count in memory.items()}
    state, _ = gpt.begin(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64))
    assert size.cache_values() == sum(keys.numel() + values.numel() for keys, values in state.cache._memory)


def test_the_output_head_is_counted_apart():
    small, large = (generator_size(tiny_config(vocab_size=vocab)).parts for vocab in (96, 192))
    assert small[1] == large[1] and 2 * small[2].flops == large[2].flops
