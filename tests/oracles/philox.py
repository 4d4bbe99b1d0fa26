"""Philox-4x32-10 on Python integers, one counter at a time, as the paper's figure 3 draws it."""


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    left, right, other_left, other_right = counter
    for round_ in range(10):
        keys = [(key[0] + round_ * 0x9E3779B9) % 2**32, (key[1] + round_ * 0xBB67AE85) % 2**32]
        high_0, low_0 = divmod(0xD2511F53 * left, 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * other_left, 2**32)
        left, right, other_left, other_right = high_1 ^ right ^ keys[0], low_1, high_0 ^ other_right ^ keys[1], low_0
    return left, right, other_left, other_right
