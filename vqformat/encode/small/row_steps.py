"""Steps of the rows of a matrix, relative to that of the whole: rows whose errors cost more have finer ones.

Where an error of row i costs ``c[i]`` times its square, the loss at a given rate is least with steps in proportion to
``1 / sqrt(c[i])``. They save ``log2(mean(c) / geometric_mean(c)) / 2`` bits a weight against one step for all rows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ..methods.scales import encode_scales

_FURTHEST = 4.0  # from the middle: steps of rows
_STORED_BITS = 6.0  # of a step
_SECTION_BITS = 8 * 40

Costs = npt.NDArray[np.float64]


def relative_steps(costs: Costs, per_octave: int) -> Floats:
    """Steps of rows by what errors of each cost, as they are stored.

    Args:
        costs: ``(rows,)``, positive.
        per_octave: So many different steps in an octave.

    Returns:
        ``(rows,)``, about 1 in the geometric mean, at most a factor of 4 from it.
    """
    root = np.sqrt(costs)
    relative = np.exp(np.log(root).mean()) / root
    octaves = np.rint(per_octave * np.log2(np.clip(relative, 1 / _FURTHEST, _FURTHEST))) / per_octave
    return encode_scales(np.exp2(octaves))[2]


def are_worth_it(costs: Costs, steps: Floats, n_columns: int) -> bool:
    """Whether steps of rows save more bits than they take."""
    ratio = float(costs.mean()) / float((costs * np.square(steps.astype(np.float64))).mean())
    return 0.5 * math.log2(ratio) * costs.size * n_columns > _STORED_BITS * costs.size + _SECTION_BITS
