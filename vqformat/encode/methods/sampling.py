"""Random numbers and samples that are the same on every machine and with every NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Seed = int | Sequence[int]


def uniforms(seed: Seed, n: int) -> Doubles:
    """``(n,)`` numbers in [0, 1). Raw PCG64 output, whose stream NumPy guarantees, unlike Generator's methods."""
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def approximate_normals(seed: Seed, shape: tuple[int, ...]) -> Doubles:
    """Numbers that are as good as normal ones, of variance 1/3: sums of four uniforms, less 2."""
    found: Doubles = uniforms(seed, 4 * prod(shape)).reshape(4, *shape).sum(axis=0)
    found -= 2
    return found


def sample_indices(n: int, limit: int, seed: Seed) -> npt.NDArray[np.intp]:
    """``min(n, limit)`` ascending indices below n, one at random from each of as many equal stretches."""
    if n <= limit:
        return np.arange(n)
    edges = np.arange(limit) * (n / limit)
    return np.minimum((edges + uniforms(seed, limit) * (n / limit)).astype(np.intp), n - 1)
