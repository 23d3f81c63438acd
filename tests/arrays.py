"""Arrays for tests: some weights, and what it means that two are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whether arrays agree in dtype, shape and every bit."""
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and (
        np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    )


def put_together(shape: tuple[int, ...], dtype: Any, blocks: Iterator[tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    """Blocks, each an index and its values, as the array that they are of; each element must be there once."""
    whole = np.zeros(shape, dtype)
    n_elements = 0
    for index, values in blocks:
        whole[index] = values
        n_elements += values.size
    assert n_elements == whole.size  # each element once
    return whole
