"""The preset ``fast``: codes of fixed width, so that a file opens nearly as fast as memory can be copied."""

from __future__ import annotations

import math

import numpy as np

from ..chunkwriter import EncodedTensor
from ..codecs.tables import Floats
from ..records import Layout, make_view
from .assemble import assemble
from .report import energy
from .vector import CodebookOptions, quantize_codebook

WIDTHS = (1, 2, 4, 8)  # bits of a code that a byte holds several of, or one
# At the step S of a grid, noise falls by so many S**2 for a further bit: what a bit costs at that quality
_PRICE = 2 * math.log(2) / 12
_SAMPLE = 1 << 16


def choose_width(values: Floats, step: float, *, seed: int = 0) -> int:
    """Bits of a code that are worth their noise at the quality of a grid of this step."""
    flat = values.reshape(-1)
    sample = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLE) | 1]).reshape(1, -1)
    view = make_view(sample.shape, False, Layout(n_row_axes=1))

    def cost(width: int) -> float:
        stage = quantize_codebook(sample, CodebookOptions(1, 1 << width, iterations=50), seed=[seed, width])
        noise = float(np.square(stage.values(view) - sample, dtype=np.float64).mean())
        return noise / step**2 + _PRICE * width

    return min(WIDTHS, key=cost)


def encode(
    name: str, dtype: str, shape: tuple[int, ...], values: Floats, step: float, *, seed: int = 0
) -> tuple[EncodedTensor, float, float]:
    """A tensor by scalar k-means with codes of fixed width.

    Args:
        values: The tensor as reals, see ``orient.reals``; at least one axis, finite.
        step: Of a grid of about the same quality.

    Returns:
        The encoded tensor, and the sums of squares of its values and of the errors.

    Raises:
        EncodeError: A limit of SPEC section 14 would be exceeded.
    """
    layout = Layout(n_row_axes=1 if values.ndim > 1 else 0)
    matrix = values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
    width = choose_width(values, step, seed=seed)
    stage = quantize_codebook(matrix, CodebookOptions(1, 1 << width, iterations=300), seed=[seed])
    encoded = assemble(name, dtype, shape, layout, [stage], compress=False)
    error = stage.values(encoded.record.view()) - matrix
    return encoded, energy(matrix), energy(error)
