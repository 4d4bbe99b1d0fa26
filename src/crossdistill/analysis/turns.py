"""In which order things that are compared take turns."""

from __future__ import annotations

import numpy as np


def order_of(number: int, num_passes: int) -> list[int]:
    """The order of one round: drawn anew for every two rounds, and in the second of them reversed.

    So of two passes each is first in every other round, and none always follows the same other one.

    >>> order_of(0, 4) == order_of(1, 4)[::-1]
    True
    """
    pair, is_second = divmod(number, 2)
    drawn: list[int] = np.random.default_rng(pair).permutation(num_passes).tolist()
    return drawn[::-1] if is_second else drawn
