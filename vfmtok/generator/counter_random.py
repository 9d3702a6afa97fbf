"""Random numbers that are a function of (seed, sample, step) and of nothing else.

A generator with a state hands out numbers in the order in which they are asked for, so what a sample
gets depends on the batch it is in. Here each number is computed from its own address by a counter-based
generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words (int64 tensors in [0,2^32), any shapes that broadcast) -> four random ones."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, by halves of the factor: int64 never overflows."""
    upper, lower = word * (factor >> 16), word * (factor & 0xFFFF)  # below 2^48
    high = (upper + (lower >> 16)) >> 16
    low = (lower + ((upper & 0xFFFF) << 16)) & _MASK
    return high, low


def uniforms(seed: int, samples: Tensor, steps: Tensor) -> Tensor:
    """samples (B,) and steps (S,), int64 and not negative -> (B,S) float64, uniform on [0,1) in steps of 2^-53.

    Any seed in [0,2^64) will do: different seeds give unrelated numbers.
    """
    samples, steps = samples[:, None], steps[None]  # (B,1), (1,S)
    counter = (steps & _MASK, steps >> 32, samples & _MASK, samples >> 32)
    first, second, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32))  # 2 x (B,S)
    # MPS lacks float64; float32 keeps 24 bits, rounded towards 0 so that 1 can't come out.
    if samples.device.type == "mps":
        return (first >> 8).float() * 2.0**-24
    return (((first >> 5) << 26) + (second >> 6)).double() * 2.0**-53
