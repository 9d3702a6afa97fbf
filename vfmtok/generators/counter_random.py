"""Random numbers that are a function of (seed, sample, step, token) and of nothing else.

A generator with a state hands out numbers in the order in which they are asked for, so what a sample
gets depends on the batch it is in. Here each number is computed from its own address by a counter-based
generator, Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Shapes: B batch, V vocabulary.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 7) -> Words:
    """Four 32-bit words (int64 tensors in [0,2^32), shapes that broadcast) -> four random ones.

    Seven rounds are the fewest with which the authors' generator passes all of BigCrush.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # int64 wraps: all 64 bits are right
        c0 = ((product1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = ((product0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = product1, product0  # only their lower 32 bits count from here on
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def exponentials(seed: int, samples: Tensor, step: Tensor, count: int) -> Tensor:
    """samples (B,), step (1,), int64 and not negative -> (B,count) float32, of the exponential distribution of mean 1.

    Never 0, and fine near it: in steps of 2^-32; never infinite, at most 24 ln 2. Any seed in [0,2^64) will do:
    different seeds give unrelated numbers.
    """
    blocks = torch.arange((count + 3) // 4, device=samples.device)[None]  # (1,V/4), four numbers each
    samples = samples[:, None]  # (B,1)
    counter = (blocks, step[None] & _MASK, samples & _MASK, samples >> 32)
    words = [word.float() for word in philox4x32(counter, (seed & _MASK, seed >> 32))]  # 4 x (B,V/4)
    uniform = torch.stack(words, dim=-1).flatten(1)[:, :count]  # (B,V)
    uniform = uniform.add_(0.5).mul_(2.0**-32)  # in (0,1]; in place, as memory costs more than arithmetic here
    uniform = uniform.clamp_(max=1 - 2.0**-24)  # float32 rounds the last 2^-25 of all words up to 1
    # -log1p(-u) by Kahan's way: log of the rounded 1 - u, times u over what the rounding left of it. PyTorch's own
    # log1p is not vectorised on CPUs, where it took a thirtieth of a GPT-B's step.
    rest = 1 - uniform
    return torch.where(rest == 1, uniform, rest.log().mul_(uniform / (rest - 1)))


def uniforms(seed: int, samples: Tensor, step: Tensor, count: int) -> Tensor:
    """samples (B,), step (1,), int64 and not negative -> (B,count) float32, uniform in [0,1), in steps of 2^-24."""
    blocks = torch.arange((count + 3) // 4, device=samples.device)[None]  # (1,count/4), four numbers each
    samples = samples[:, None]  # (B,1)
    counter = (blocks, step[None] & _MASK, samples & _MASK, samples >> 32)
    words = [(word >> 8).float() for word in philox4x32(counter, (seed & _MASK, seed >> 32))]  # 4 x (B,count/4)
    return torch.stack(words, dim=-1).flatten(1)[:, :count].mul_(2.0**-24)  # (B,count)


def normals(seed: int, samples: Tensor, step: Tensor, count: int) -> Tensor:
    """samples (B,), step (1,), int64 and not negative -> (B,count) float32, standard normal.

    By Box and Muller's method; element n is the same for any count.
    """
    blocks = torch.arange((count + 3) // 4, device=samples.device)[None]  # (1,count/4), two pairs each
    samples = samples[:, None]  # (B,1)
    counter = (blocks, step[None] & _MASK, samples & _MASK, samples >> 32)
    words = torch.stack(philox4x32(counter, (seed & _MASK, seed >> 32)), dim=-1)  # (B,count/4,4)
    words = words.unflatten(-1, (2, 2)).float()  # (B,count/4,2 pairs,2)
    radius = ((words[..., 0] + 0.5) * 2.0**-32).log().mul(-2).clamp_(min=0).sqrt()  # float32 rounds up to 1 at most
    angle = words[..., 1] * (2 * torch.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :count]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a training step: a function of (seed, sample, purpose), not of rank, batch or what else
    is drawn.

    Attributes:
        seed: of the run, in [0,2^64).
        samples: (B,) int64 on the device: each row's position in the run's endless sequence of samples, so the same
            image draws other numbers in every epoch.
    """

    seed: int
    samples: Tensor

    def uniform(self, purpose: str, count: int) -> Tensor:
        """(B,count) float32 in [0,1). Another ``purpose`` gives unrelated numbers."""
        return uniforms(self.seed, self.samples, self._stream(purpose), count)

    def normal(self, purpose: str, count: int) -> Tensor:
        """(B,count) float32 of the standard normal distribution."""
        return normals(self.seed, self.samples, self._stream(purpose), count)

    def _stream(self, purpose: str) -> Tensor:
        number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")
        return torch.full((1,), number, device=self.samples.device)  # int64, filled there: a copy would wait for it
