"""What each tensor of a model is to become: by what method, how finely, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy.typing as npt

from ..decode.tables import Floats
from ..errors import EncodeError
from ..format.dtypes import BY_NAME
from . import constant_tensors
from .calibration import TensorStatistics
from .methods import quantize
from .methods.layout import reals
from .options import Options
from .recipe import Method
from .sensitivity import Statistics, Steps
from .small import table_rows
from .small.error_feedback import Factors
from .source import SourceTensor, fits_float32

Array = npt.NDArray[Any]
SMALLEST_COARSE = 256  # elements; tensors below it are coded finely
SMALLEST_COARSE_VECTOR = 1 << 16  # elements of a tensor of one axis: shorter ones are biases, norms and the like


class Plan:
    """What the recipe, the options, the calibration and the tensors themselves say of each tensor.

    Args:
        is_part: Whether these are only some of the file's tensors.

    Attributes:
        statistics: Of each tensor whose step is to be chosen, by name. ``gather`` finds them.
        steps: The steps of these tensors. ``gather`` finds them.
        constants: Names of tensors that nobody trained. ``gather`` finds them.
        rejected: By name, why a tensor is not coded by the method of its wildcard.
    """

    def __init__(self, tensors: Sequence[SourceTensor], options: Options, *, is_part: bool = False) -> None:
        self.tensors, self.options, self._is_part = tensors, options, is_part
        self.constants: set[str] = set()
        self.statistics: dict[str, Statistics] = {}
        self.steps = Steps([])
        self.rejected: dict[str, str] = {}
        self._factors: dict[str, Factors | None] = {}

    def method(self, tensor: SourceTensor) -> Method | None:
        """What the recipe asks for; None where the encoder chooses."""
        method = self._asked_method(tensor)
        is_kept = tensor.form is not None and not self.options.codes_anew
        return quantize.LOSSLESS if method is None and is_kept else method

    def _asked_method(self, tensor: SourceTensor) -> Method | None:
        if self.options.lossless or (tensor.is_exact and not self.is_named(tensor)):
            return quantize.LOSSLESS
        if tensor.name in self.constants and not self.is_named(tensor):
            return quantize.LOSSLESS
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
        """Whether a pattern of the recipe decides about the tensor."""
        return self.options.recipe is not None and self.options.recipe.names(tensor.name)

    def is_coarse(self, tensor: SourceTensor) -> bool:
        """Whether the encoder may put the tensor on a grid."""
        if not BY_NAME[tensor.dtype].arithmetic or not tensor.shape:
            return False
        is_vector = sum(size > 1 for size in tensor.shape) < 2  # factors of channels have axes of 1 beside theirs
        return prod(tensor.shape) >= (SMALLEST_COARSE_VECTOR if is_vector else SMALLEST_COARSE)

    def gather(self, encode_once: Callable[[SourceTensor], bool]) -> None:
        """First pass: deviation and a sample of each tensor whose step is to be chosen.

        Args:
            encode_once: Encodes a tensor by the vector method that is asked for, and says whether that was possible.
                It is called where there is a budget. A tensor for which it was not possible needs a step.
        """
        for tensor in self.tensors:
            if tensor.alias_of is not None or not prod(tensor.shape):
                continue
            method = self.method(tensor)
            if self.options.has_budget and method is not None and method.is_vector:
                if encode_once(tensor):
                    continue
                method = None
            is_free = method is None and BY_NAME[tensor.dtype].arithmetic
            if is_free or self.has_step(tensor, method):
                self._look_at(tensor, tensor.load(), is_free=is_free, has_step=self.has_step(tensor, method))
        self.steps = Steps(list(self.statistics.values()), by_deviation=self.options.sqnr is not None,
                           is_part=self._is_part)  # fmt: skip

    def _look_at(self, tensor: SourceTensor, array: Array, *, is_free: bool, has_step: bool) -> None:
        """Note whether the tensor is a constant, or what its step follows from.

        Args:
            is_free: Whether the encoder may choose how it is coded.
            has_step: Whether that would be on a grid.
        """
        if not fits_float32(array):
            return
        if is_free and constant_tensors.is_constant(array, tensor.dtype, is_short=not has_step):
            self.constants.add(tensor.name)
        elif has_step:
            self.statistics[tensor.name] = Statistics.of(reals(array), self.sensitivity(tensor),
                                                          is_recurrent=tensor.in_sequence)  # fmt: skip

    def _known(self, tensor: SourceTensor) -> TensorStatistics:
        """What calibration found of a tensor; nothing without it."""
        known = self.options.calibration.tensors if self.options.calibration is not None else {}
        return known.get(tensor.name, TensorStatistics())

    def feedback(self, tensor: SourceTensor) -> Factors | None:
        """What feedback needs to know of the inputs of a tensor's layer."""
        if tensor.name not in self._factors:
            self._factors[tensor.name] = Factors.of(self._known(tensor), tensor.shape[tensor.output_axis])
        return self._factors[tensor.name]

    def sensitivity(self, tensor: SourceTensor) -> float:
        """What the model loses by a squared error of an element, if the others make up for it."""
        known = self._known(tensor)
        factors = self.feedback(tensor) if self.is_coarse(tensor) else None
        if factors is not None:
            return known.importance * factors.share_left
        return known.importance * (1.0 if known.row_counts is None else table_rows.share_of_middle(known.row_counts))

    def row_scales(self, tensor: SourceTensor) -> Floats | None:
        """Of a table, if it is known how often its rows are looked up."""
        counts = self._known(tensor).row_counts
        return None if counts is None else table_rows.row_scales(counts)

    def has_step(self, tensor: SourceTensor, method: Method | None) -> bool:
        """Whether the encoder is to choose the tensor's step."""
        if method is None:
            return self.is_coarse(tensor)
        return method.name == "uniform" and not quantize.has_fixed_step(method)

    def reject_method(self, tensor: SourceTensor, method: Method, why: str) -> None:
        """Note that a method cannot code a tensor; one that was asked for by its very name must.

        Raises:
            EncodeError: It was.
        """
        assert self.options.recipe is not None
        if not self.options.recipe.method_for(tensor.name).is_wildcard:
            raise EncodeError(f"tensor {tensor.name!r}: {why}; {method} cannot code it")
        self.rejected[tensor.name] = f"tensor {tensor.name!r}: {why}; the encoder chose in place of {method}"
