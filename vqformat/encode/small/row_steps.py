"""Steps of the rows of a matrix, relative to the step of the matrix: rows whose errors cost more get finer steps.

If an error in row i costs ``c[i]`` times its square, the loss at a given rate is least with steps proportional to
``1 / sqrt(c[i])``. Compared with one step for all rows, this saves ``log2(mean(c) / geometric_mean(c)) / 2`` bits for
each weight.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ..methods.scales import encode_scales

_FURTHEST = 4.0  # largest ratio of a step to the geometric mean
_STORED_BITS = 6.0  # of a step
_SECTION_BITS = 8 * 40  # overhead of the section of steps

Costs = npt.NDArray[np.float64]


def relative_steps(costs: Costs, per_octave: int) -> Floats:
    """Steps of rows for given costs of their errors.

    Args:
        costs: ``(rows,)``, positive.
        per_octave: Number of different steps in an octave.

    Returns:
        ``(rows,)``, the stored values. Their geometric mean is about 1, and they differ from it by a factor of at most
        4.
    """
    root = np.sqrt(costs)
    relative = np.exp(np.log(root).mean()) / root
    octaves = np.rint(per_octave * np.log2(np.clip(relative, 1 / _FURTHEST, _FURTHEST))) / per_octave
    return encode_scales(np.exp2(octaves))[2]


def are_worth_it(costs: Costs, steps: Floats, n_columns: int) -> bool:
    """Whether steps of rows save more bits than it takes to store them."""
    ratio = float(costs.mean()) / float((costs * np.square(steps.astype(np.float64))).mean())
    return 0.5 * math.log2(ratio) * costs.size * n_columns > _STORED_BITS * costs.size + _SECTION_BITS
