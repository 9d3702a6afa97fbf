"""Batch norms over groups of samples and over ranks."""

import numpy as np
import pytest
import ranks
import torch
from torch import Tensor, nn

from vfmtok.discriminators.batch_norm import GlobalBatchNorm2d, LocalBatchNorm
from vfmtok.discriminators.build import build_discriminator
from vfmtok.errors import ConfigError


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def groups_by_hand(x: np.ndarray) -> np.ndarray:
    """Normalised in ceil(B/8) contiguous groups, float64, one channel of one group at a time."""
    y = np.empty_like(x)
    for rows in np.array_split(np.arange(len(x)), -(-len(x) // 8)):
        for channel in range(x.shape[1]):
            part = x[rows, channel]
            y[rows, channel] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return y


@pytest.mark.parametrize("batch", [1, 4, 8, 9, 12, 16, 17, 23])
def test_local_batch_norm_by_hand(batch):
    norm = LocalBatchNorm(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (5 + 2 * torch.randn(batch, 3, 7)).requires_grad_()
    y = norm(x)
    wanted = groups_by_hand(x.detach().double().numpy())
    wanted = wanted * norm.weight.detach().numpy()[:, None] + norm.bias.detach().numpy()[:, None]
    assert np.allclose(y.detach().numpy(), wanted, atol=1e-5)
    y.square().sum().backward()
    assert x.grad.sum(dim=(0, 2)).abs().max() < 1e-2  # a shift of a channel changes nothing
    assert torch.equal(norm.eval()(x), y)


def test_local_batch_norm_is_float32_under_autocast():
    norm, x = LocalBatchNorm(3), (100 + torch.randn(9, 3, 50)).bfloat16()  # bfloat16 would lose the variance
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())


def test_global_batch_norm_alone_is_torch_s():
    ours, theirs = GlobalBatchNorm2d(4), nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(2, 4, 5, 5)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="one value of each channel"):
        ours(x[:1, :, :1, :1])
    assert ours.eval()(x[:1, :, :1, :1]).isfinite().all()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(build_discriminator("patchgan", 64))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in converted.layers) == 3


def step(images: Tensor, shares: list[int], rank: int) -> dict[str, Tensor]:
    """Two passes of a PatchGAN over this rank's share of the images: logits, gradients, state."""
    torch.manual_seed(0)
    model = build_discriminator("patchgan", 32)
    images = images.split(shares)[rank].clone().requires_grad_()
    model(images.detach() + 0.5)
    logits = model(images)
    weight = len(shares) * len(images) / sum(shares)  # DDP averages over ranks; shares may differ
    (logits.mul(3).sin().mean() * weight).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach(), "images": images.grad, **gradients, **model.state_dict()}


def images_of_all_ranks() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def share_of_a_rank(rank: int) -> dict[str, Tensor]:
    return step(images_of_all_ranks(), [2, 4], rank)


def test_two_ranks_of_unequal_batches_are_one_process(tmp_path):
    whole = step(images_of_all_ranks(), [6], 0)
    parts = ranks.run(share_of_a_rank, tmp_path)
    last_bias = [name for name in whole if name.startswith("gradient") and name.endswith(".bias")][-1]
    for name, wanted in whole.items():
        if name == "logits":
            found = torch.cat([part[name] for part in parts])
        elif name == "images":  # a rank's gradient is of the sum over ranks, not of the mean
            found = torch.cat([part[name] for part in parts]) / 2
        elif name.startswith("gradient"):
            found = (parts[0][name] + parts[1][name]) / 2
        else:
            assert torch.equal(parts[0][name], parts[1][name]), name  # statistics do not drift apart
            found = parts[0][name]
        scale = wanted.abs().max().clamp_min(1e-30)
        if name == last_bias:  # a sum of the logits' gradients, of both signs: it rounds as they do
            terms = 3 * whole["logits"].mul(3).cos().abs().mean()
            assert scale < 0.1 * terms
            scale = terms
        assert (found - wanted).abs().max() <= 2e-5 * scale or scale < 1e-7, name
