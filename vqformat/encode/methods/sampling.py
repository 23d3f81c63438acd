"""Random numbers and samples that are the same on every machine and with every NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Seed = int | Sequence[int]


def uniforms(seed: Seed, n: int) -> Doubles:
    """``(n,)`` uniform numbers in [0, 1).

    They are made of the raw output of PCG64, which NumPy guarantees to stay the same; the methods of Generator may
    change.
    """
    raw = np.asarray(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n), np.uint64)
    raw >>= np.uint64(11)
    found = raw.astype(np.float64)
    found *= 2.0**-53
    return found


def approximate_normals(seed: Seed, shape: tuple[int, ...]) -> Doubles:
    """Random numbers of mean 0 and variance 1/3 that are nearly normal: sums of four uniform numbers, minus 2."""
    found: Doubles = uniforms(seed, 4 * prod(shape)).reshape(4, *shape).sum(axis=0)
    found -= 2
    return found


def sample_indices(n: int, limit: int, seed: Seed) -> npt.NDArray[np.intp]:
    """``min(n, limit)`` ascending indices below n, one at random in each of as many equal intervals."""
    if n <= limit:
        return np.arange(n)
    edges = np.arange(limit) * (n / limit)
    return np.minimum((edges + uniforms(seed, limit) * (n / limit)).astype(np.intp), n - 1)
