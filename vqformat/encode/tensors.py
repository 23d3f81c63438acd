"""One tensor, encoded as the plan says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.tables import Floats
from ..errors import EncodeError
from ..format.chunkwriter import EncodedTensor
from ..format.describe import describe
from ..format.dtypes import BY_NAME
from ..format.records import AliasRecord, make_view
from .books import Books
from .meeting import EXACT
from .methods import exact, fast, fine, quantize
from .methods.assemble import QuantizedStage, assemble, sum_of_stages
from .methods.layout import layout_for, reals, view_matrix
from .methods.uniform import encode_uniform
from .methods.vectors import encode_vector
from .plan import Plan
from .recipe import Method
from .report import TensorReport, as_decoded, decibel, energy, sqnr_db
from .results import Result
from .sensitivity import Statistics, Steps, root_mean_square
from .small import small
from .small.coded import CodedTensor
from .small.decorrelate import Habit
from .source import SourceTensor, fits_float32, native

Array = npt.NDArray[Any]
_LEAST_SQNR_DB = 1.0  # of a tensor on a grid; less is hardly better than nothing
_FIRST_HABIT, _STRONGEST_HABIT = 0.01, 0.32  # see Habit: twice as strong at each further step of a search


class TensorEncoder:
    """Encodes tensors at any steps, and remembers how it did."""

    def __init__(self, plan: Plan, books: Books) -> None:
        self._plan, self._options, self._books = plan, plan.options, books
        self._kinds: dict[str, tuple[int, bool]] = {}  # how each tensor of preset small was coded at the step before
        self._habit_strength = _FIRST_HABIT
        self._ladders: dict[str, fast.Ladder] = {}  # of preset fast
        self._between: tuple[str, bool] | None = None  # the tensor that is to be of any size, see encode_between

    def keep_more_to_habits(self) -> None:
        """From one step of a search to the next it matters more how tensors were coded at the one before."""
        self._habit_strength = min(2 * self._habit_strength, _STRONGEST_HABIT)

    def encode(self, tensor: SourceTensor, relative_step: float) -> Result:
        if tensor.alias_of is not None:
            report = TensorReport(tensor.name, tensor.dtype, tensor.shape, f"alias of {tensor.alias_of}", 0, math.nan)
            return Result(AliasRecord(tensor.name, tensor.alias_of), report, layer=tensor.layer)
        array = native(tensor)
        if not array.size:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.nan)
        method = self._plan.method(tensor)
        if method is not None and method.name == "raw":
            return self._result(tensor, fine.encode_raw(tensor.name, tensor.dtype, array), math.inf)
        is_arithmetic = BY_NAME[tensor.dtype].arithmetic and fits_float32(array)
        if not is_arithmetic and method is not None and method.name not in ("lossless", "fine"):
            self._plan.fall(tensor, method, "it holds NaN, infinity or values beyond float32")
        is_exact = relative_step == EXACT if method is None else method.name == "lossless"
        if not is_arithmetic or is_exact:
            # A mask or a table of positions is no weight that was dequantized: as bytes it is small enough
            is_weight = is_arithmetic and tensor.name not in self._plan.constants
            encode = exact.encode if is_weight else fine.encode_exact
            thorough = self._options.preset == "small"
            return self._result(tensor, encode(tensor.name, tensor.dtype, array, thorough=thorough), math.inf)
        if method is not None and quantize.is_vector_method(method):
            try:
                return self._encode_by_method(tensor, array, method)
            except EncodeError as err:
                self._plan.fall(tensor, method, str(err))
                method = None
        if method is not None and method.name == "fine":
            return self._encode_finely(tensor, array)
        if method is None and not self._plan.is_coarse(tensor):
            return self.encode_short(tensor, array, relative_step)
        return self._encode_on_grid(tensor, array, method, relative_step)

    def encode_between(self, tensor: SourceTensor, step: float, *, by_entries: bool = False) -> Result:
        """A tensor at a step, which is to be of any size.

        Args:
            by_entries: Whether preset ``fast`` gives it any number of entries instead of codebooks that add up.
        """
        self._between = tensor.name, by_entries
        result = self.encode(tensor, step)
        self._between = None
        return result

    def _encode_finely(self, tensor: SourceTensor, array: Array, step: float | None = None) -> Result:
        """A short tensor; the step is that of a budget, relative to its root mean square."""
        encoded, rounded = encode_vector(tensor.name, tensor.dtype, array, step)
        sqnr = sqnr_db(reals(array), reals(rounded))
        method = f"rounded to {describe(encoded.record)}" if not encoded.record.is_raw else "rounded finely"
        return self._result(tensor, encoded, sqnr, None if math.isinf(sqnr) else method)

    def encode_short(self, tensor: SourceTensor, array: Array, relative_step: float) -> Result:
        """A tensor that is small and sensitive: finely, or if a budget says so less finely, by its size."""
        if not self._options.has_budget or self._options.sqnr is not None:
            return self._encode_finely(tensor, array)
        values = reals(array)
        if self._plan.steps.is_empty or not values.any():
            return self._encode_finely(tensor, array)
        step = self._plan.steps.vector_step(values, relative_step, self._plan.sensitivity(tensor))
        return self._encode_finely(tensor, array, step)

    def _encode_on_grid(
        self, tensor: SourceTensor, array: Array, method: Method | None, relative_step: float
    ) -> Result:
        values = reals(array)
        if method is not None and quantize.has_fixed_step(method):
            step = quantize.uniform_step(method, root_mean_square(values), 1.0)
        else:
            statistics = self._plan.statistics.get(tensor.name) or Statistics.of(values)
            steps = Steps([statistics]) if self._plan.steps.is_empty else self._plan.steps
            step = steps.step(statistics, relative_step or steps.default)
        result = self._encode_coarsely(tensor, values, step, "default" if method is not None else self._options.preset)
        if method is not None or result.report.sqnr_db >= _LEAST_SQNR_DB:
            return result
        if not self._options.has_budget:
            return self._encode_finely(tensor, array)
        note = (f"tensor {tensor.name!r} has an SQNR of {result.report.sqnr_db:.1f} dB only: the budget leaves it no"
                " more bits")  # fmt: skip
        return replace(result, notes=(*result.notes, note))

    def _encode_coarsely(self, tensor: SourceTensor, values: Floats, step: float, preset: str) -> Result:
        """A tensor on a grid of this step, or as good as on one."""
        encoded: EncodedTensor | CodedTensor
        match preset:
            case "small":
                kind = self._kinds.get(tensor.name)
                found = small.quantize(tensor.name, tensor.dtype, tensor.shape, values, step,
                                       output_axis=tensor.output_axis, is_table=tensor.is_table,
                                       least_noise=self._options.sqnr is not None,
                                       factors=self._plan.feedback(tensor),
                                       row_scales=self._plan.row_scales(tensor),
                                       habit=None if kind is None else Habit(kind, self._habit_strength))  # fmt: skip
                self._kinds[tensor.name] = found.kind
                encoded, signal, noise = found.coded, found.energy, found.noise
            case "fast":
                choice = self._choice(tensor, values, step)
                encoded, signal, noise = fast.encode(tensor.name, tensor.dtype, tensor.shape, values, choice,
                                                     seed=self._options.seed)  # fmt: skip
            case _:
                encoded, sqnr = encode_uniform(tensor.name, tensor.dtype, tensor.shape, values, step,
                                               is_table=tensor.is_table)  # fmt: skip
                signal = energy(values)
                noise = signal / 10 ** (sqnr / 10)
        result = self._result(tensor, encoded, decibel(signal, noise))
        return replace(result, energy=signal, noise=noise)

    def _choice(self, tensor: SourceTensor, values: Floats, step: float) -> fast.Choice:
        """How preset ``fast`` codes a tensor; with a budget its codes may be of more widths."""
        ladder = self._ladders.get(tensor.name)
        if ladder is None:
            widths = fast.ENTRIES if self._options.has_budget else fast.QUICK_ENTRIES
            ladder = self._ladders[tensor.name] = fast.Ladder.of(values, widths, seed=self._options.seed)
        match self._between:
            case (tensor.name, True):
                return fast.Choice(ladder.any_entries_at(step))
            case (tensor.name, False):
                matrix = fast.as_matrix(values)
                return fast.choose_within(ladder.nbytes_at(step, matrix.size), matrix.shape)
        return fast.Choice(ladder.entries_at(step))

    def _encode_by_method(self, tensor: SourceTensor, array: Array, method: Method) -> Result:
        values = reals(array)
        layout = layout_for(tensor.dtype, tensor.shape, by_column=quantize.by_columns(method))
        matrix = np.ascontiguousarray(view_matrix(values, layout))
        view = make_view(tensor.shape, BY_NAME[tensor.dtype].is_complex, layout)
        name = quantize.shared_name(method)
        stages: list[QuantizedStage]
        if name:
            stages = quantize.quantize_with_book(matrix, view, method, self._books.book(name), self._books.number(name),
                                                 seed=self._options.seed, dtype=tensor.dtype)  # fmt: skip
            self._books.use(name)
        else:
            stages = quantize.quantize(matrix, view, method, seed=self._options.seed, dtype=tensor.dtype)
        encoded = assemble(tensor.name, tensor.dtype, tensor.shape, layout, stages)
        return self._result(tensor, encoded, sqnr_db(matrix, as_decoded(sum_of_stages(stages, view), tensor.dtype)))

    def _result(
        self, tensor: SourceTensor, encoded: EncodedTensor | CodedTensor, sqnr: float, method: str | None = None
    ) -> Result:
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, method or "", 0, sqnr)
        if isinstance(encoded, EncodedTensor):
            report = replace(report, method=method or describe(encoded.record), stored_nbytes=encoded.stored_nbytes)
        notes = (self._plan.fallen[tensor.name],) if tensor.name in self._plan.fallen else ()
        return Result(encoded, report, notes, tensor.layer)
