"""Drafts of a planned tensor: how many bits it takes, from a sample of its codes, without encoding it.

A draft does what an encoding does, with all states of the trellis. At low rates it depends on the neighbours of a value
whether it becomes 0: a path stays in states where zeros are cheap for as long as values are small. So there a sample
has long runs of neighbouring values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ..methods import packing
from ..methods.assemble import BLOCK_ELEMENTS
from ..methods.sampling import Doubles, sample_indices
from . import error_feedback, error_weights, tiles, trellis
from .bands import Grouped, Rows, size_of
from .contexts import PER_OCTAVE, Contexts
from .decorrelate import PRICE
from .small import Planned

FINER_BY = 2.0 ** (0.5 / PER_OCTAVE)  # a step finer by this factor has the same classes, each the next one
_MOST = 1 << 17  # values of a sample
# Values of the part of it that is coded: this share of all values, at least, at most
_SHARE, _FEWEST_CODED, _MOST_CODED = 1 / 16, 1 << 14, 1 << 17
_FURTHEST = 1 << 11  # in steps; values beyond it count as equal, since large tables take time
_LONG_RUNS_BELOW = 1.5  # bits of a code
_LONG_RUN, _SHORT_RUN = 256, 16  # neighbouring values in a sample
_STEPS = 1024  # of a sequence of a sample
_STATE_BITS = 25  # the state of a sequence, and what rounding its codes to bits adds

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Drafted:
    """What a draft tells of a tensor.

    Attributes:
        bits, finer_bits: Bits for each value, with all sections of the tensor, at its step and at ``step / FINER_BY``.
        n_entries: About the entries of frequency tables that are not 0.
    """

    bits: float
    finer_bits: float
    n_entries: float


def draft(planned: Planned) -> Drafted:
    """Make a draft of a tensor."""
    plan, shape = planned.plan, planned.source.shape
    n = size_of(planned.source)
    places = _places(n, plan.contexts.expected_bits)
    whole = None
    if plan.components and not planned.has_factors:  # first, while the source holds its matrix
        unit_rows = 1 if plan.transform is None else plan.transform.size
        whole = _picked(replace(plan, components=()).points(planned.source, planned.unit, is_held=False), unit_rows,
                        places)  # fmt: skip
    values = plan.points(planned.source, planned.unit, is_held=True)[np.divmod(places, shape[1])]
    side_bits = plan.side_bits + _STATE_BITS * _n_sequences(planned)
    for classes in (plan.contexts.rows, plan.contexts.columns):
        if classes is not None:
            side_bits += 8 * packing.quick_nbytes(classes.tobytes())
    bits, n_entries = _bits_of_code(planned, plan.contexts, places, values, whole)
    next_contexts = replace(plan.contexts, exponent=plan.contexts.exponent + 1)
    finer_bits, _ = _bits_of_code(planned, next_contexts, places, values * np.float32(FINER_BY), whole)
    return Drafted(bits + side_bits / n, finer_bits + side_bits / n, n_entries)


def _places(n: int, bits: float) -> Places:
    """Numbers of the values of a sample: runs of neighbours, ``(n_runs, n_of_run)``.

    Args:
        n: Number of all values.
        bits: Expected bits of a code.
    """
    run = min(n, _LONG_RUN if bits < _LONG_RUNS_BELOW else _SHORT_RUN)
    return sample_indices(n // run, max(1, _MOST // run), 0)[:, None] * run + np.arange(run)


def _picked(matrix: Rows, height: int, places: Places) -> Floats:
    """Elements of a matrix that is not in memory.

    Args:
        height: Rows that are made together.
    """
    found: Floats = Grouped(matrix.shape, height, lambda rows: matrix[rows])[np.divmod(places, matrix.shape[1])]
    return found


def _bits_of_code(
    planned: Planned, contexts: Contexts, places: Places, values: Floats, whole: Floats | None
) -> tuple[float, float]:
    """Bits of a code, and entries of frequency tables that are not 0.

    Args:
        values, whole: The values of the sample, and what they were without components; as ``places``.
    """
    n = size_of(planned.source)
    power = 0.0 if planned.has_factors else error_weights.power_at(contexts.expected_bits)
    weights = None
    if power:
        weights = error_weights.ErrorWeights(whole, values, power).of_rows(slice(None), values)
    n_coded = min(max(int(_SHARE * n), _FEWEST_CODED), _MOST_CODED)
    coded = sample_indices(len(places), max(1, n_coded // places.shape[1]), 1)
    places, values = _in_sequences(places[coded]), np.clip(_in_sequences(values[coded]), -_FURTHEST, _FURTHEST)
    of_sample = contexts.at_places(places, planned.source.shape[1]).astype(np.uint8)
    of_errors = np.ones((1, 1), np.float32) if weights is None else _in_sequences(weights[coded])
    sample = trellis.Sample.coded(values, of_sample, of_errors, contexts, price=PRICE, n_states=planned.n_states)
    counts, halves = sample.counts(), [sample.counts(slice(i, None, 2)) for i in range(2)]
    bits, of_halves = _entropies(counts), _entropies(halves[0]) + _entropies(halves[1])
    # The entropy of n values is too small by about a constant / n. Those of halves tell the constant
    bits += (1 - values.size / n) * np.maximum(bits - of_halves, 0)
    seen = counts.reshape(contexts.n_contexts, -1).sum(axis=1)
    shares = _shares(contexts) * (seen > 0)
    of_contexts = bits.reshape(-1, 2).sum(axis=1) / np.maximum(seen, 1)
    n_entries = np.count_nonzero(counts)
    further = n_entries - sum(map(np.count_nonzero, halves)) / 2  # in a sample of twice the size
    return float(of_contexts @ shares / shares.sum()), n_entries + further * math.log2(n / values.size)


def _in_sequences(runs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Runs as sequences of a trellis, ``(n_steps, n_sequences)``."""
    n_steps = min(runs.size, _STEPS)
    return runs.reshape(-1)[: runs.size // n_steps * n_steps].reshape(-1, n_steps).T


def _entropies(counts: npt.NDArray[np.integer[Any]]) -> Doubles:
    """Bits of all codes of each table, ``(n_tables,)``."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found: Doubles = -(counts * np.log2(np.where(counts > 0, counts, 1) / totals)).sum(axis=1)
    return found


def _shares(contexts: Contexts) -> Doubles:
    """For each context its share of all values."""
    counts = np.ones(1)
    for classes in (contexts.rows, contexts.columns):
        if classes is not None:
            counts = np.convolve(counts, np.bincount(classes))
    shares: Doubles = counts / counts.sum()
    return shares


def _n_sequences(planned: Planned) -> int:
    """About the number of sequences of the trellis."""
    n_rows, n_columns = planned.source.shape
    width = tiles.band_width(n_columns, error_feedback.TILE_COLUMNS) if planned.has_factors else None
    rows, columns = min(n_rows, max(1, BLOCK_ELEMENTS // n_columns)), min(n_columns, BLOCK_ELEMENTS)
    height, width = tiles.choose_tile(rows, columns, planned.plan.contexts.expected_bits, width)
    return -(-n_rows // height) * -(-n_columns // width)
