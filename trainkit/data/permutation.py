"""A pseudo-random permutation, computed for the places asked for: no memory, no start-up."""

import math
from collections.abc import Sequence

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))
HALF = np.uint64(32)


class Permutation:
    """A permutation of the numbers below n, which follows from keys alone.

    A number is written with two digits, (left, right), of bases a and b, both near the root of n.
    Each round shifts one digit, modulo its base, by a hash of a key and the other digit, so that
    it can be undone: a generalised Feistel network over the a b >= n numbers. What it takes out
    of range goes through it again until it is below n (cycle walking); as a b < n + a, that is
    one of a thousand where n is a million.

    Args:
        num_items: n, from 1 to 2^62.
        keys: one a round, below 2^64; twelve leave pairs of numbers as evenly spread as the
            hash is random, down to n of 2.

    Source:
        Black and Rogaway, 2002, Ciphers with Arbitrary Finite Domains, sections 4 and 5; the
        hash is splitmix64 (Steele et al., 2014, Fast Splittable Pseudorandom Number Generators).
    """

    def __init__(self, num_items: int, keys: Sequence[int]):
        assert 1 <= num_items <= 2**62
        self.num_items = np.uint64(num_items)
        left = math.isqrt(num_items - 1) + 1
        right = -(-num_items // left)
        self._bases = (np.uint64(left), np.uint64(right))
        self._rounds = [(number % 2, np.uint64(key)) for number, key in enumerate(keys)]

    def at(self, places: np.ndarray) -> np.ndarray:
        """The numbers at `places`, int64 of the same shape (P,)."""
        return self._walked(places, self._forward)

    def places_of(self, numbers: np.ndarray) -> np.ndarray:
        """The places where `numbers` are: the inverse of `at`."""
        return self._walked(numbers, self._backward)

    def _walked(self, values: np.ndarray, step) -> np.ndarray:
        found = step(values.astype(np.uint64))
        outside = np.flatnonzero(found >= self.num_items)
        while len(outside):
            found[outside] = step(found[outside])
            outside = outside[found[outside] >= self.num_items]
        return found.astype(np.int64)

    def _forward(self, values: np.ndarray) -> np.ndarray:
        digits = list(np.divmod(values, self._bases[1]))
        for side, key in self._rounds:
            base = self._bases[side]
            moved = digits[side] + _below(base, key, digits[1 - side])
            digits[side] = np.where(moved >= base, moved - base, moved)
        return digits[0] * self._bases[1] + digits[1]

    def _backward(self, values: np.ndarray) -> np.ndarray:
        digits = list(np.divmod(values, self._bases[1]))
        for side, key in reversed(self._rounds):
            base = self._bases[side]
            moved = digits[side] + base - _below(base, key, digits[1 - side])
            digits[side] = np.where(moved >= base, moved - base, moved)
        return digits[0] * self._bases[1] + digits[1]


def _below(base: np.uint64, key: np.uint64, digits: np.ndarray) -> np.ndarray:
    """A hash of key and digit, evenly below `base`, which is at most 2^31."""
    state = hashed(digits, key)
    state >>= HALF
    state *= base
    state >>= HALF
    return state


def hashed(values: np.ndarray, key: int | np.uint64) -> np.ndarray:
    """A hash of a key and each value: uint64 of the same shape."""
    state = (values ^ np.uint64(key)) + GOLDEN
    for shift, factor in zip(SHIFTS, FACTORS):
        state ^= state >> shift
        state *= factor
    state ^= state >> SHIFTS[-1]
    return state
