"""How finely each tensor of a network is coded, by its sensitivity: measured, or estimated from the tensor itself.

The estimate needs no data and no run of the network. It has three rules. Their constants were fitted on ten networks,
with each network left out in turn:

- The effect of errors depends on their size relative to the values, because later layers (a normalization, for example)
  remove the scale. The scale is the mean magnitude, on which few large values have little influence. In part the
  absolute size matters: the more a layer amplifies, the more it drives later layers into ranges that amplify errors.
- The errors of all tensors add up. A bit for each weight saves most in a large tensor, so a large tensor should have
  more noise than a small one: by "reverse water-filling" in proportion to its share of all weights. The fit gave the
  power 0.8 of this share.
- Errors add up from layer to layer, so the allowed noise is inversely proportional to the depth. A recurrent layer
  counts as many layers as its sequences have steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from ..decode.tables import Floats
from .constant_tensors import is_designed
from .methods.layout import ShortFloats
from .methods.uniform import ROUNDING
from .sums import energy

SAMPLE = 1 << 15  # values
_MOST_CODES = 1 << 16  # if codes span more, they are sorted rather than counted one by one
LARGEST_STEP: float = 8.0  # largest step, in deviations of the tensor: with larger ones nearly all values become 0
_LARGEST_SHARE = 4.0  # largest step in deviations, relative to the relative step
_SIZE_POWER = 0.4  # the step is proportional to this power of the number of values
_LARGEST_SIZE = 1 << 22  # larger tensors (mostly tables of words) get no larger steps
# At low rates most values become 0, and only large values remain. Then steps that differ less between tensors are
# better: they are proportional to this power of the norm. Between these relative steps the rules are blended
_NORM_POWER = 0.35
_LOW_RATES = (0.5, 2.0)
_GAIN_POWER = 0.5  # the step is proportional to the inverse of this power of the gain, the amplification of noise
_GAINS = (2.0, 16.0)  # the range to which the gain is clipped
_SEQUENCE_LENGTH = 64  # number of layers for which a recurrent layer counts
_UNKNOWN_DEPTH = 64  # number of layers that is assumed if layers come one at a time
# Factor of the step of what was designed: filters through which all input of a network passes, tables of waves
_DESIGNED = 2.0**-4
# _DEFAULT: factor of the typical tensor's step with which none of the ten networks loses 2 % of its answers.
# _COARSEST_DEFAULT: upper limit of the default step, relative to the scale. Networks of few layers would bear more
_DEFAULT: float = 2.0**-7.4
_COARSEST_DEFAULT = 0.125
_NORMAL_MAGNITUDE = math.sqrt(2 / math.pi)  # mean magnitude of a standard normal variable

# The names that frameworks give to kernels of recurrent layers
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
    """Whether the name of a tensor is one that frameworks give to a kernel of a recurrent layer."""
    return _RECURRENT.search(name) is not None


@dataclass(frozen=True)
class Statistics:
    """Statistics of a tensor that will be quantized to a grid.

    Attributes:
        n_values: Number of reals; a complex element has two.
        deviation: Root mean square.
        scale: Mean magnitude, divided by that of standard normal values; equal to the deviation for normal values.
        sample: ``(n,)`` values, evenly spread.
        sensitivity: Loss by a squared error of an element, as a calibration has measured it; 0 if unknown.
        is_recurrent: Whether it is the kernel of a recurrent layer.
        is_designed: Whether it was designed, not trained.
    """

    n_values: int
    deviation: float
    scale: float
    sample: Floats
    sensitivity: float = 0.0
    is_recurrent: bool = False
    is_designed: bool = False

    @classmethod
    def of(cls, values: ShortFloats, sensitivity: float = 0.0, *, is_recurrent: bool = False) -> Statistics:
        """Statistics of a tensor.

        Args:
            values: The tensor as reals, see ``layout.short_reals``.
        """
        flat = values.reshape(-1)
        stride = max(1, flat.size // SAMPLE) | 1  # odd, so that the sample is not from few columns
        sample = flat[::stride].astype(np.float32)
        deviation = root_mean_square(flat)
        scale = float(np.abs(sample).mean(dtype=np.float64)) / _NORMAL_MAGNITUDE if sample.any() else deviation
        return cls(flat.size, deviation, scale, sample, sensitivity, is_recurrent, is_designed(values))

    @property
    def norm(self) -> float:
        return self.deviation * math.sqrt(self.n_values)

    @property
    def tolerance(self) -> float:
        """The step that the tensor may have, relative to its scale, up to a factor that is the same for all tensors."""
        size = min(self.n_values, _LARGEST_SIZE)
        gain = self.deviation * math.pow(size, 0.25)  # amplification of noise by a square matrix of independent values
        of_gain = math.pow(min(max(gain, _GAINS[0]), _GAINS[1]), _GAIN_POWER)
        return math.pow(size, _SIZE_POWER) / of_gain * (_DESIGNED if self.is_designed else 1.0)

    def entropy_nbytes(self, step: float) -> float:
        """Estimate of the bytes of its codes with a step: their entropy."""
        codes = np.floor(np.abs(self.sample) / np.float32(step) + np.float32(ROUNDING)) * np.sign(self.sample)
        first = codes.min(initial=0)
        if codes.max(initial=0) - first < _MOST_CODES:
            counts = np.bincount((codes - first).astype(np.intp))
            counts = counts[counts > 0]
        else:
            _, counts = np.unique(codes, return_counts=True)
        share = counts / counts.sum()
        return float(-(share * np.log2(share)).sum()) * self.n_values / 8


def root_mean_square(values: ShortFloats) -> float:
    """Root mean square of the values, computed in float64."""
    return math.sqrt(energy(values) / max(values.size, 1))


def _geometric_mean(statistics: Sequence[Statistics], values: Sequence[float]) -> float:
    """Geometric mean of a value of each tensor, weighted by the number of its values; 1 if there are none."""
    n_values = sum(s.n_values for s in statistics)
    logarithm = sum(s.n_values * math.log(value) for s, value in zip(statistics, values, strict=True))
    return math.exp(logarithm / n_values) if n_values else 1.0


class Steps:
    """The steps of all tensors as functions of one relative step: that of the typical tensor, in units of its scale.

    Args:
        statistics: Statistics of all tensors whose steps are to be chosen.
        by_deviation: Whether each step is proportional to the deviation of its tensor, so that all have the same SQNR.
        is_part: Whether these are only some of the network's tensors.
    """

    def __init__(
        self, statistics: Sequence[Statistics], *, by_deviation: bool = False, is_part: bool = False
    ) -> None:
        self._statistics = statistics
        self._by_deviation = by_deviation
        some = [s for s in statistics if s.scale > 0]
        self._typical = _geometric_mean(some, [s.tolerance for s in some])  # tolerance of the typical tensor
        self._typical_size = _geometric_mean(some, [float(s.n_values) for s in some])
        self._typical_norm = _geometric_mean(some, [s.norm for s in some])
        self._typical_scale = _geometric_mean(some, [s.scale for s in some])
        # With known sensitivities, steps are proportional to their inverse square root; their mean stays the same
        known = [s for s in some if s.sensitivity > 0]
        self._unit = _geometric_mean(known, [self._guess(s) * math.sqrt(s.sensitivity) for s in known])
        depth = sum(_SEQUENCE_LENGTH if s.is_recurrent else 1 for s in some)
        self._depth = max(depth, _UNKNOWN_DEPTH) if is_part else max(depth, 1)

    def without_samples(self) -> Steps:
        """Steps that give the same steps, and no estimates of sizes, in little memory."""
        few = copy(self)
        few._statistics = [replace(s, sample=s.sample[:0]) for s in self._statistics[:1]]
        return few

    @property
    def is_empty(self) -> bool:
        """Whether no tensor has a step to choose."""
        return not self._statistics

    @property
    def default(self) -> float:
        """The relative step with which hardly any network loses accuracy."""
        return min(self._harmless, _COARSEST_DEFAULT)

    @property
    def _harmless(self) -> float:
        return _DEFAULT * self._typical / math.sqrt(self._depth)

    def coarseness(self, relative: float) -> float:
        """The ratio of a relative step to one with which hardly any network loses accuracy."""
        return relative / self._harmless

    def step(self, statistics: Statistics, relative: float) -> float:
        """The step of a tensor for a relative step."""
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
        """Estimated step of a tensor, divided by the relative step.

        Args:
            lowness: 0 for the rule of high rates, 1 for the rule of low rates; between them they are blended.
        """
        fine = statistics.scale * statistics.tolerance / self._typical
        if not lowness:
            return fine
        coarse = self._typical_scale * math.pow(statistics.norm / self._typical_norm, _NORM_POWER)
        return math.pow(fine, 1 - lowness) * math.pow(coarse, lowness)

    @staticmethod
    def _lowness(relative: float) -> float:
        """How much the rule of low rates counts, from 0 to 1."""
        low, high = _LOW_RATES
        return min(max(math.log(relative / low) / math.log(high / low), 0.0), 1.0)

    def vector_step(self, values: Floats, relative: float, sensitivity: float = 0.0) -> float:
        """Step of a short tensor, relative to its root mean square.

        Its relative noise is less than that of the large tensors by the ratio of the numbers of values.
        """
        if sensitivity > 0:
            return relative * self._unit / (math.sqrt(sensitivity) * root_mean_square(values))
        return relative * math.sqrt(values.size / self._typical_size)

    @property
    def n_values(self) -> list[int]:
        """Number of values of each tensor."""
        return [s.n_values for s in self._statistics]

    def estimates(self, relative: float) -> list[float]:
        """Estimates of the bytes of the codes of each tensor with a relative step."""
        return [s.entropy_nbytes(self.step(s, relative)) for s in self._statistics]

    def estimate(self, relative: float) -> float:
        """Estimate of the bytes of all codes with a relative step."""
        return sum(self.estimates(relative))
