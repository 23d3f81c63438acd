"""The plan for each tensor of a model: its method, how finely it is coded, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.tables import Floats
from ..errors import EncodeError
from ..format.dtypes import BY_NAME
from . import constant_tensors
from .calibration import TensorStatistics
from .equal_tensors import EqualTensors
from .methods import quantize
from .methods.layout import short_reals
from .options import Options
from .recipe import Method
from .sensitivity import Statistics, Steps
from .small import table_rows
from .small.error_feedback import Factors
from .source import SourceTensor, fits_float32

Array = npt.NDArray[Any]
SMALLEST_COARSE = 256  # elements; smaller tensors are coded finely
SMALLEST_COARSE_VECTOR = 1 << 16  # elements of a tensor of one axis; shorter ones are biases, norms and so on


@dataclass(frozen=True)
class Look:
    """What a look at a tensor is to find.

    Attributes:
        is_free: Whether the encoder chooses how the tensor is coded.
        has_step: Whether the encoder chooses its step.
        sensitivity: See ``Statistics``.
    """

    is_free: bool
    has_step: bool
    sensitivity: float

    def at(self, tensor: SourceTensor, array: Array) -> Looked:
        """Find whether a tensor is a constant or has scales; if not, gather its statistics."""
        array = np.ascontiguousarray(array).reshape(array.shape)  # once: each test would copy it
        if not fits_float32(array):
            return Looked()
        if self.is_free and constant_tensors.is_constant(array, tensor.dtype, is_short=not self.has_step):
            return Looked(is_constant=True)
        if not self.has_step:
            return Looked()
        if self.is_free and constant_tensors.are_scales(array):
            return Looked(are_scales=True)
        return Looked(statistics=Statistics.of(short_reals(array), self.sensitivity, is_recurrent=tensor.in_sequence))


@dataclass(frozen=True)
class Looked:
    """What a look at a tensor has found: that it was not trained, or its statistics, or neither."""

    is_constant: bool = False
    are_scales: bool = False
    statistics: Statistics | None = None


@dataclass(frozen=True)
class PlanPart:
    """The part of a plan that concerns one tensor, without values of any other.

    Attributes:
        is_constant, are_scales, rejected, statistics: See ``Plan``.
        steps: The steps of all tensors, without their samples.
        factors: See ``Plan.feedback``.
        has_factors: Whether ``factors`` have been computed.
    """

    is_constant: bool
    are_scales: bool
    rejected: str | None
    statistics: Statistics | None
    steps: Steps
    factors: Factors | None
    has_factors: bool


class Plan:
    """The plan for each tensor, from the recipe, the options, the calibration and the values of the tensors.

    Args:
        is_part: Whether these are only some of the file's tensors.

    Attributes:
        statistics: By name, the statistics of each tensor whose step is to be chosen. ``note`` adds to it.
        steps: The steps of these tensors. ``set_steps`` sets it.
        constants: Names of the tensors that were not trained. ``note`` adds to it.
        scales: Names of the tensors of scales, which are coded finely. ``note`` adds to it.
        rejected: By name, why a tensor is not coded by the method of its wildcard.
        equal: Finds the tensors that are copies of others.
    """

    def __init__(self, tensors: Sequence[SourceTensor], options: Options, *, is_part: bool = False) -> None:
        self.tensors, self.options, self._is_part = tensors, options, is_part
        self.constants: set[str] = set()
        self.scales: set[str] = set()
        self.statistics: dict[str, Statistics] = {}
        self.steps = self._few_steps = Steps([])
        self.rejected: dict[str, str] = {}
        self._factors: dict[str, Factors | None] = {}
        self.equal = EqualTensors(tensors, options, self.method)

    def method(self, tensor: SourceTensor) -> Method | None:
        """The method of a tensor by the recipe; None if the encoder chooses.

        Raises:
            EncodeError: The recipe has a method that cannot code the dtype of the tensor.
        """
        method = self._asked_method(tensor)
        is_kept = tensor.form is not None and not self.options.codes_anew
        return quantize.LOSSLESS if method is None and is_kept else method

    def _asked_method(self, tensor: SourceTensor) -> Method | None:
        if self.options.lossless or (tensor.is_exact and not self.is_named(tensor)):
            return quantize.LOSSLESS
        if tensor.name in self.constants and not self.is_named(tensor):
            return quantize.LOSSLESS
        if tensor.name in self.scales and not self.is_named(tensor):
            return quantize.FINE
        if self.options.recipe is None or tensor.name in self.rejected:
            return None
        method, is_wildcard = self.options.recipe.method_for(tensor.name)
        if method is None:
            return None
        if quantize.is_vector_method(method) or method.name == "uniform":
            is_matrix = len(tensor.shape) > 1 and BY_NAME[tensor.dtype].arithmetic
            if is_wildcard and not is_matrix:
                return None
            if not BY_NAME[tensor.dtype].arithmetic:
                raise EncodeError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which {method} cannot code")
        return method

    def is_named(self, tensor: SourceTensor) -> bool:
        """Whether a pattern of the recipe matches the tensor."""
        return self.options.recipe is not None and self.options.recipe.names(tensor.name)

    def is_coarse(self, tensor: SourceTensor) -> bool:
        """Whether the encoder may quantize the tensor to a coarse grid."""
        if not BY_NAME[tensor.dtype].arithmetic or not tensor.shape:
            return False
        is_vector = sum(size > 1 for size in tensor.shape) < 2  # scales of channels may have further axes of length 1
        return prod(tensor.shape) >= (SMALLEST_COARSE_VECTOR if is_vector else SMALLEST_COARSE)

    def part(self, tensor: SourceTensor) -> PlanPart:
        """The part of the plan that concerns one tensor."""
        statistics = self.statistics.get(tensor.name)
        if statistics is not None:
            statistics = replace(statistics, sample=statistics.sample[:0])
        return PlanPart(tensor.name in self.constants, tensor.name in self.scales, self.rejected.get(tensor.name),
                        statistics, self._few_steps, self._factors.get(tensor.name),
                        tensor.name in self._factors)  # fmt: skip

    @classmethod
    def of_part(cls, tensor: SourceTensor, options: Options, part: PlanPart) -> Plan:
        """A plan for one tensor, which is as the plan for all."""
        plan = cls([tensor], options)
        plan.steps = part.steps
        if part.is_constant:
            plan.constants.add(tensor.name)
        if part.are_scales:
            plan.scales.add(tensor.name)
        if part.rejected is not None:
            plan.rejected[tensor.name] = part.rejected
        if part.statistics is not None:
            plan.statistics[tensor.name] = part.statistics
        if part.has_factors:
            plan._factors[tensor.name] = part.factors
        return plan

    def look(self, tensor: SourceTensor) -> Look | None:
        """What a look at a tensor is to find before its step is chosen; None if it need not be looked at."""
        method = self.method(tensor)
        is_free = method is None and BY_NAME[tensor.dtype].arithmetic
        has_step = self.has_step(tensor, method)
        if not (is_free or has_step):
            return None
        return Look(is_free=is_free, has_step=has_step, sensitivity=self.sensitivity(tensor) if has_step else 0.0)

    def note(self, tensor: SourceTensor, looked: Looked) -> None:
        """Note what a look at a tensor has found."""
        if looked.is_constant:
            self.constants.add(tensor.name)
        elif looked.are_scales:
            self.scales.add(tensor.name)
        elif looked.statistics is not None:
            self.statistics[tensor.name] = looked.statistics

    def set_steps(self) -> None:
        """Find the steps of all tensors, once all have been looked at."""
        self.steps = Steps(list(self.statistics.values()), by_deviation=self.options.sqnr is not None,
                           is_part=self._is_part)  # fmt: skip
        self._few_steps = self.steps.without_samples()

    def _known(self, tensor: SourceTensor) -> TensorStatistics:
        """Statistics of a tensor in the calibration; empty ones if there are none."""
        known = self.options.calibration.tensors if self.options.calibration is not None else {}
        return known.get(tensor.name, TensorStatistics())

    def feedback(self, tensor: SourceTensor) -> Factors | None:
        """The factors for error feedback, from the inputs of the tensor's layer; None if these are unknown."""
        if tensor.name not in self._factors:
            self._factors[tensor.name] = Factors.of(self._known(tensor), tensor.shape[tensor.output_axis])
        return self._factors[tensor.name]

    def sensitivity(self, tensor: SourceTensor) -> float:
        """The loss by a squared error of an element, after other elements have compensated it; 0 if unknown."""
        known = self._known(tensor)
        factors = self.feedback(tensor) if self.is_coarse(tensor) else None
        if factors is not None:
            return known.importance * factors.share_left
        return known.importance * (1.0 if known.row_counts is None else table_rows.share_of_middle(known.row_counts))

    def row_scales(self, tensor: SourceTensor) -> Floats | None:
        """Scales of the rows of a table, if it is known how often they are looked up; else None."""
        counts = self._known(tensor).row_counts
        return None if counts is None else table_rows.row_scales(counts)

    def has_step(self, tensor: SourceTensor, method: Method | None) -> bool:
        """Whether the encoder chooses the step of the tensor."""
        if method is None:
            return self.is_coarse(tensor)
        return method.name == "uniform" and not quantize.has_fixed_step(method)

    def reject_method(self, tensor: SourceTensor, method: Method, why: str) -> None:
        """Record that a method cannot code a tensor, so that the encoder chooses.

        Raises:
            EncodeError: The recipe names the tensor itself, not by a wildcard.
        """
        assert self.options.recipe is not None
        if not self.options.recipe.method_for(tensor.name).is_wildcard:
            raise EncodeError(f"tensor {tensor.name!r}: {why}; {method} cannot code it")
        self.rejected[tensor.name] = f"tensor {tensor.name!r}: {why}; the encoder chose in place of {method}"
