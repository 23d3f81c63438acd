"""Hypothesis strategies for what the format can hold. Each bound cites the SPEC rule behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqformat.format.dtypes import DTYPES, DType


def dtypes(*, arithmetic: bool | None = None) -> st.SearchStrategy[DType]:
    """Dtypes of SPEC 7.1."""
    return st.sampled_from([d for d in DTYPES if arithmetic is None or d.arithmetic == arithmetic])


def shapes(max_side: int = 9) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes: scalars, empty ones, odd ones (TEN-003)."""
    return hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=max_side)


@st.composite
def arrays(draw: st.DrawFn, dtype: DType | None = None) -> np.ndarray[Any, Any]:
    """Arrays of any dtype with any bits: NaN payloads, infinities, -0, subnormals."""
    dtype = dtype or draw(dtypes())
    shape = draw(shapes())
    n = int(np.prod(shape))
    if dtype.name == "bool":  # DTY-001
        return np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool).reshape(shape)
    if dtype.bits == 4:
        nibbles = np.array(draw(st.lists(st.integers(0, 15), min_size=n, max_size=n)), np.uint8)
        signed = (nibbles ^ 8) - np.uint8(8) if dtype.name == "i4" else nibbles
        return signed.view(dtype.numpy).reshape(shape)
    data = draw(st.binary(min_size=n * dtype.bits // 8, max_size=n * dtype.bits // 8))
    return np.frombuffer(data, dtype.numpy).reshape(shape)


def names() -> st.SearchStrategy[str]:
    """Names: Unicode, dots, slashes; not empty, no U+0000, at most 1,024 bytes (TEN-001)."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(characters | st.sampled_from("./"), min_size=1, max_size=30)


def models(max_tensors: int = 5) -> st.SearchStrategy[dict[str, np.ndarray[Any, Any]]]:
    """Tensors by name."""
    return st.dictionaries(names(), arrays(), max_size=max_tensors)


def metadata_values() -> st.SearchStrategy[Any]:
    """What user metadata can hold (MET-001), not too deep (MET-006)."""
    integers = st.integers(-(1 << 63), (1 << 64) - 1)
    scalars = st.none() | st.booleans() | integers | st.text(max_size=40) | st.binary(max_size=300)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
        max_leaves=30,
    )


def matrices(max_side: int = 40) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Finite float32 matrices as weights are: of any size and scale, some constant."""
    return st.builds(
        lambda rows, columns, seed, scale: (
            np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**scale
        ).astype(np.float32),
        st.integers(1, max_side),
        st.integers(1, max_side),
        st.integers(0, 99),
        st.integers(-6, 6),
    )
