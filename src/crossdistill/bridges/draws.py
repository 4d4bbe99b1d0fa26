"""Random numbers that belong to a sample, wherever it is computed: no process, order or batch changes them."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def uniform_by_id(sample_id: Tensor, seed: Tensor) -> Tensor:
    """Uniform draws from [0, 1), float32 ``(B,)``: a function of id ``(B,)`` and seed alone, on their device.

    Source: the finaliser of SplitMix64, Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014, of ``(id + 1) * golden + mixed(seed)``.
    """
    mixed = _mixed((sample_id.long() + 1) * _signed(_GOLDEN) + _mixed(seed.long()))
    # 24 bits are all that float32 can hold below 1.
    return ((mixed >> 40) & (2**24 - 1)).float() * 2.0**-24


def _mixed(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of ``x``; products wrap around, as int64 does."""
    for factor, shift in zip((*_FACTORS, None), _SHIFTS, strict=True):
        x = x ^ ((x >> shift) & (2 ** (64 - shift) - 1))  # the shift of int64 brings the sign in, which must go
        x = x if factor is None else x * _signed(factor)
    return x


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word


def new_seed() -> Tensor:
    """A seed drawn from the current generator, which whoever builds a method has seeded."""
    return torch.randint(2**62, ())
