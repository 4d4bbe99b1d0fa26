"""Counter-based random numbers: every draw is a pure function of what it is for, so any epoch can be replayed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


NUM_VIEWS = 2**16
"""Views and occurrences of a sample are numbered below this."""


class Purpose(IntEnum):
    """What a stream of draws is for; streams of different purposes never share a counter."""

    AUGMENT = 0
    PERMUTATION = 1
    SPLIT = 2
    LIMIT = 3
    VALIDATION = 4
    LABELS = 5
    MIX = 6
    NOISE = 7
    BALANCE = 8
    SHARDS = 9
    BUFFER = 10
    PICTURE = 11
    EPISODE = 12


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int], *, rounds: int = 10) -> NDArray[np.uint32]:
    """Philox-4x32: four random words for each counter ``(..., 4)``, under a key of two words.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
    """
    first, second, third, fourth = (counter[..., word].astype(np.uint64) for word in range(4))
    key_0, key_1 = key
    for _ in range(rounds):
        product_0, product_1 = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second, third, fourth = (
            (product_1 >> _SHIFT_32) ^ second ^ np.uint64(key_0),
            product_1 & _LOW_32,
            (product_0 >> _SHIFT_32) ^ fourth ^ np.uint64(key_1),
            product_0 & _LOW_32,
        )
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (key_1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth], axis=-1).astype(np.uint32)


def random_words(
    seed: int,
    epoch: int,
    sample_id: NDArray[np.int64],
    view: int | NDArray[np.int64],
    num_draws: int,
    *,
    purpose: Purpose,
) -> NDArray[np.uint32]:
    """Random words ``(B, num_draws)`` for samples ``(B,)``; asking for more draws leaves the earlier ones as they are.

    The counter is (sample, low and high word; epoch; purpose, view and block of four draws), the key is the seed.
    A view is a number below 65,536, for all samples or for each ``(B,)``; a sample has up to 1,024 draws.
    """
    words = _words(seed, epoch, sample_id, view, np.arange((num_draws + 3) // 4, dtype=np.int64), purpose)
    return words.reshape(len(words), words.shape[1] * 4)[:, :num_draws]


def _words(
    seed: int,
    epoch: int,
    sample_id: NDArray[np.int64],
    view: int | NDArray[np.int64],
    blocks: NDArray[np.int64],
    purpose: Purpose,
) -> NDArray[np.uint32]:
    """The four words ``(B, len(blocks), 4)`` of some blocks of draws."""
    assert np.max(view, initial=0) < NUM_VIEWS  # a larger one would run into the purpose
    sample = np.asarray(sample_id, dtype=np.int64)[:, None]
    counter = np.empty((len(sample), len(blocks), 4), dtype=np.uint32)
    counter[..., 0] = sample & 0xFFFFFFFF
    counter[..., 1] = sample >> 32
    counter[..., 2] = epoch & 0xFFFFFFFF
    counter[..., 3] = purpose << 24 | np.atleast_1d(view)[:, None] << 8 | blocks
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))


def uniform(
    seed: int,
    epoch: int,
    sample_id: NDArray[np.int64],
    view: int | NDArray[np.int64],
    num_draws: int,
    *,
    purpose: Purpose = Purpose.AUGMENT,
) -> NDArray[np.float64]:
    """Uniform draws ``(B, num_draws)`` from [0, 1) in steps of 2^-32, for samples ``(B,)``."""
    return random_words(seed, epoch, sample_id, view, num_draws, purpose=purpose) * np.float64(2.0**-32)


def uniform_where(
    seed: int,
    epoch: int,
    sample_id: NDArray[np.int64],
    view: int | NDArray[np.int64],
    wanted: NDArray[np.bool_],
    *,
    purpose: Purpose = Purpose.AUGMENT,
) -> NDArray[np.float64]:
    """As :func:`uniform`, ``(B, len(wanted))``, where only some draws are wanted; the others may be NaN."""
    blocks = np.unique(np.flatnonzero(wanted) // 4)
    words = _words(seed, epoch, sample_id, view, blocks, purpose)
    draws = np.full((len(sample_id), -(-len(wanted) // 4), 4), np.nan)
    draws[:, blocks] = words * np.float64(2.0**-32)
    return draws.reshape(len(sample_id), draws.shape[1] * 4)[:, : len(wanted)]


def random_order(num_samples: int, *, seed: int, epoch: int = 0, purpose: Purpose) -> NDArray[np.int64]:
    """A random permutation ``(N,)``: the samples sorted by a 64-bit key each."""
    samples = np.arange(num_samples, dtype=np.int64)
    words = random_words(seed, epoch, samples, 0, 2, purpose=purpose).astype(np.uint64)
    return np.argsort(words[:, 0] << _SHIFT_32 | words[:, 1], kind="stable")
