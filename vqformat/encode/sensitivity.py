"""How finely each tensor of a network is to be coded: measured, or guessed from what the tensor is.

The guess needs no data and no run of the network. It has three rules; their constants were fitted on ten networks,
leaving out each in turn:

- A network minds errors of a tensor relative to its values, since what follows (a normalization, the next layer) takes
  the scale away. The scale is the mean magnitude, which few large values do not move. In part it minds them as they
  are: the more a layer amplifies, the nearer it drives what follows to where errors are amplified too.
- Errors of all tensors add up. A bit saves most on a large tensor, so that this may have more noise than a small one:
  by "reverse water-filling" in proportion to its share of the weights. The fit gave the power 0.8 of that.
- Errors add up from layer to layer: the noise that a tensor may have goes with the inverse of the depth. A recurrent
  layer is as deep as its sequences are long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..decode.tables import Floats
from .constant_tensors import is_filter_bank
from .methods.uniform import ROUNDING
from .report import energy

SAMPLE = 1 << 15
LARGEST_STEP: float = 8.0  # times a tensor's deviation: beyond it nearly everything becomes 0
_LARGEST_SHARE = 4.0  # times the step of the typical tensor, in deviations
_SIZE_POWER = 0.4  # of the number of values, with which the step goes
_LARGEST_SIZE = 1 << 22  # values: larger tensors, tables of words above all, are no coarser
# At low rates, where most values become 0 and what is left of a tensor are its large values, steps that are more nearly
# the same for all serve better: they go with this power of the norm. Relative steps from none of that to all of it
_NORM_POWER = 0.35
_LOW_RATES = (0.5, 2.0)
_GAIN_POWER = 0.5  # of what a layer amplifies noise by, with whose inverse the step goes
_GAINS = (2.0, 16.0)  # in between
_SEQUENCE_LENGTH = 64  # layers that a recurrent one stands for
_UNKNOWN_DEPTH = 64  # layers, where they come one at a time
_FILTER_BANK = 2.0**-4  # what networks hear through, in the first place: a factor of the step
# Factor of the typical tensor's step at which none of the ten networks loses 2 % of its answers; and what that step is
# never above, relative to the scale: networks of few layers bear more, but it is not worth the risk
_DEFAULT: float = 2.0**-7.4
_COARSEST_DEFAULT = 0.125
_NORMAL_MAGNITUDE = math.sqrt(2 / math.pi)  # mean magnitude of a normal variable of deviation 1

# How frameworks name kernels that are applied again and again along a sequence
_RECURRENT = re.compile(
    r"""
      weight_[hi]h(_l\d+(_reverse)?)?$                # PyTorch: RNN, LSTM, GRU and their cells
    | (lstm|gru|rnn)[^/]*/(.*/)?(recurrent_)?kernel(:0)?$  # Keras and TensorFlow
    | (^|[./])(recurrent_kernel|[hi][fginorz][./]kernel)$  # Keras; Flax
    | ^onnx::(lstm|gru|rnn)_\d+$                      # PyTorch's exporter to ONNX
    """,
    re.VERBOSE | re.IGNORECASE,
)


def has_recurrent_name(name: str) -> bool:
    """Whether a framework gives such a name to a kernel that is applied along a sequence, to its inputs or states."""
    return _RECURRENT.search(name) is not None


@dataclass(frozen=True)
class Statistics:
    """What a first pass notes of a tensor that a grid will code.

    Attributes:
        n_values: Of its elements, two for a complex one.
        deviation: Root of the mean square.
        scale: The mean magnitude, times what makes it the deviation of normal values.
        sample: ``(n,)`` values, evenly spread.
        sensitivity: What the model loses by a squared error of an element, as calibration measured it; 0 if unknown.
        is_recurrent: Whether it is applied again and again along a sequence.
        is_filter_bank: Whether it was designed, not trained.
    """

    n_values: int
    deviation: float
    scale: float
    sample: Floats
    sensitivity: float = 0.0
    is_recurrent: bool = False
    is_filter_bank: bool = False

    @classmethod
    def of(cls, values: Floats, sensitivity: float = 0.0, *, is_recurrent: bool = False) -> Statistics:
        """The statistics of a tensor, as reals."""
        flat = values.reshape(-1)
        stride = max(1, flat.size // SAMPLE) | 1  # odd, so that no column of an even number is favoured
        sample = flat[::stride].copy()
        deviation = root_mean_square(flat)
        scale = float(np.abs(sample).mean(dtype=np.float64)) / _NORMAL_MAGNITUDE if sample.any() else deviation
        return cls(flat.size, deviation, scale, sample, sensitivity, is_recurrent, is_filter_bank(values))

    @property
    def norm(self) -> float:
        return self.deviation * math.sqrt(self.n_values)

    @property
    def tolerance(self) -> float:
        """The step that the tensor may have, relative to its scale, up to a factor that is the same for all."""
        size = min(self.n_values, _LARGEST_SIZE)
        gain = self.deviation * math.pow(size, 0.25)  # by which a square matrix of independent values amplifies noise
        of_gain = math.pow(min(max(gain, _GAINS[0]), _GAINS[1]), _GAIN_POWER)
        return math.pow(size, _SIZE_POWER) / of_gain * (_FILTER_BANK if self.is_filter_bank else 1.0)

    def entropy_nbytes(self, step: float) -> float:
        """Estimate of the bytes that its codes take at a step: their entropy."""
        codes = np.floor(np.abs(self.sample) / np.float32(step) + np.float32(ROUNDING)) * np.sign(self.sample)
        _, counts = np.unique(codes, return_counts=True)
        share = counts / counts.sum()
        return float(-(share * np.log2(share)).sum()) * self.n_values / 8


def root_mean_square(values: Floats) -> float:
    """Of all values, in any order; squares beyond the range of float32 do no harm."""
    return math.sqrt(energy(values) / max(values.size, 1))


def _geometric_mean(statistics: Sequence[Statistics], values: Sequence[float]) -> float:
    """Over all weights of these tensors; 1 if there are none."""
    n_values = sum(s.n_values for s in statistics)
    logarithm = sum(s.n_values * math.log(value) for s, value in zip(statistics, values, strict=True))
    return math.exp(logarithm / n_values) if n_values else 1.0


class Steps:
    """The step of each tensor, from a relative one for all: that of the typical tensor, in its scale.

    Args:
        statistics: Of all tensors whose steps are to be chosen.
        by_deviation: Whether steps go with the deviation of each tensor alone, so that all have the same SQNR.
        is_part: Whether these are only some of the network's tensors.
    """

    def __init__(
        self, statistics: Sequence[Statistics], *, by_deviation: bool = False, is_part: bool = False
    ) -> None:
        self._statistics = statistics
        self._by_deviation = by_deviation
        some = [s for s in statistics if s.scale > 0]
        self._typical = _geometric_mean(some, [s.tolerance for s in some])  # its step is the relative one
        self._typical_size = _geometric_mean(some, [float(s.n_values) for s in some])
        self._typical_norm = _geometric_mean(some, [s.norm for s in some])
        self._typical_scale = _geometric_mean(some, [s.scale for s in some])
        # Where sensitivities are known the step goes with their inverse root, and is as large on average as without
        known = [s for s in some if s.sensitivity > 0]
        self._unit = _geometric_mean(known, [self._guess(s) * math.sqrt(s.sensitivity) for s in known])
        depth = sum(_SEQUENCE_LENGTH if s.is_recurrent else 1 for s in some)
        self._depth = max(depth, _UNKNOWN_DEPTH) if is_part else max(depth, 1)

    @property
    def is_empty(self) -> bool:
        """Whether no tensor has a step to choose."""
        return not self._statistics

    @property
    def default(self) -> float:
        """The relative step at which hardly any network loses something."""
        return min(self._harmless, _COARSEST_DEFAULT)

    @property
    def _harmless(self) -> float:
        return _DEFAULT * self._typical / math.sqrt(self._depth)

    def coarseness(self, relative: float) -> float:
        """How many times as coarse a relative step is as one at which hardly any network loses something."""
        return relative / self._harmless

    def step(self, statistics: Statistics, relative: float) -> float:
        """Step of a tensor."""
        if not statistics.deviation:
            return 1.0
        largest = LARGEST_STEP * statistics.deviation
        if self._by_deviation:
            return min(relative * statistics.deviation, largest)
        if statistics.sensitivity > 0:
            return min(relative * self._unit / math.sqrt(statistics.sensitivity), largest)
        most = _LARGEST_SHARE * relative * statistics.deviation
        return min(relative * self._guess(statistics, self._lowness(relative)), most, largest)

    def _guess(self, statistics: Statistics, lowness: float = 0.0) -> float:
        """Step of a tensor, relative to that of the typical one and in its scale.

        Args:
            lowness: 0 for the rules above, 1 for what takes their place at low rates.
        """
        fine = statistics.scale * statistics.tolerance / self._typical
        if not lowness:
            return fine
        coarse = self._typical_scale * math.pow(statistics.norm / self._typical_norm, _NORM_POWER)
        return math.pow(fine, 1 - lowness) * math.pow(coarse, lowness)

    @staticmethod
    def _lowness(relative: float) -> float:
        low, high = _LOW_RATES
        return min(max(math.log(relative / low) / math.log(high / low), 0.0), 1.0)

    def vector_step(self, values: Floats, relative: float, sensitivity: float = 0.0) -> float:
        """Step of a short tensor, relative to its root mean square.

        Its noise against its values may be as much less than that of the large tensors as it has fewer of them.
        """
        if sensitivity > 0:
            return relative * self._unit / (math.sqrt(sensitivity) * root_mean_square(values))
        return relative * math.sqrt(values.size / self._typical_size)

    def estimate(self, relative: float) -> float:
        """Bytes of all codes at this step."""
        return sum(s.entropy_nbytes(self.step(s, relative)) for s in self._statistics)
