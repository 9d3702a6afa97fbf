"""The small GPT of the parity data, and others of its size."""

import golden_rule
import torch

import vfmtok


def tiny_config(**overrides):
    """3 layers, 4 heads, width 64, 96 ids, 16 tokens, 10 classes."""
    tiny = {"n_layer": 3, "n_head": 4, "dim": 64, "vocab_size": 96, "num_tokens": 16, "num_classes": 10}
    return vfmtok.gpt_config("GPT-B", **(tiny | overrides))


def published_tiny_gpt() -> vfmtok.GPT:
    """The model of gpt_tiny.npz."""
    gpt = vfmtok.GPT(tiny_config()).eval()
    shapes = {name: tensor.shape for name, tensor in vfmtok.to_released(gpt).items()}
    weights = {name: golden_rule.tensor_for(f"gpt_tiny.{name}", shape) for name, shape in shapes.items()}
    weights["output.weight"] *= 4
    return vfmtok.load_released(gpt, weights)


def random_gpt(**overrides) -> vfmtok.GPT:
    """Random weights, the output head's and the norms' too, so that every part matters."""
    torch.manual_seed(0)
    gpt = vfmtok.GPT(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            start = 1 if parameter.ndim == 1 else 0
            parameter.copy_(start + torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.15))
    return gpt


def random_inputs(gpt: vfmtok.GPT, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """labels (B,) and ids (B,K)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(gpt.config.num_classes + 1, (batch,), generator=generator)
    return labels, torch.randint(gpt.config.vocab_size, (batch, gpt.config.num_tokens), generator=generator)
