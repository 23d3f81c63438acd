"""Encoding one tensor by its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EncodeError
from ..format.chunkwriter import EncodedTensor
from ..format.dtypes import BY_NAME
from ..format.layout import make_view
from ..format.records import AliasRecord
from ..format.stage_summary import stage_summary
from .budget_search import EXACT
from .layers import Result
from .methods import exact, fast, fine, quantize
from .methods.assemble import Collect, QuantizedStage, assemble, sum_of_stages
from .methods.layout import ShortFloats, layout_for, reals, short_reals, view_matrix
from .methods.minifloat import encode_minifloat
from .methods.uniform import encode_uniform
from .plan import Plan
from .recipe import Method
from .report import TensorReport, as_decoded, decibel, sqnr_db
from .sensitivity import Statistics, Steps, root_mean_square
from .shared_codebooks import SharedCodebooks
from .small import small
from .small.coded_tensor import CodedTensor
from .small.decorrelate import Hysteresis
from .small.decorrelate import Plan as GridPlan
from .small.draft import Drafted, draft
from .source import SourceTensor, StoredForm, fits_float32, native

Array = npt.NDArray[Any]
_LEAST_SQNR_DB = 1.0  # least SQNR of a tensor on a grid; below it the tensor is nearly lost
_KEPT_NBYTES = 1 << 26  # of the plans that are kept from one step of a search to the next
_FIRST_HYSTERESIS, _STRONGEST_HYSTERESIS = 0.01, 0.32  # strengths; doubled at each further step of a search


@dataclass(frozen=True)
class TensorState:
    """What is remembered of a tensor, for the next step of a search.

    Attributes:
        kind, plan: Kind and plan of its coding at an earlier step, for preset ``small``; None if there are none.
        curve: Its rate and distortion, for preset ``fast``; None if they have not been measured.
        hysteresis_strength: See ``Hysteresis``; the same for all tensors.
    """

    kind: tuple[int, bool] | None
    plan: GridPlan | None
    curve: fast.RateDistortionCurve | None
    hysteresis_strength: float


class TensorEncoder:
    """Encodes tensors with any step. It remembers how each was coded, for the next step of a search.

    Args:
        collect: See ``methods.assemble``.
    """

    def __init__(
        self, plan: Plan, books: SharedCodebooks, collect: Collect, hysteresis_strength: float = _FIRST_HYSTERESIS
    ) -> None:
        self._plan, self._options, self._books, self._collect = plan, plan.options, books, collect
        self._kinds: dict[str, tuple[int, bool]] = {}  # preset small: kind of each tensor at the step before
        self._kept: dict[str, GridPlan] = {}  # preset small: plans of tensors at an earlier step
        self._kept_nbytes = 0
        self._hysteresis_strength = hysteresis_strength
        self._curves: dict[str, fast.RateDistortionCurve] = {}  # preset fast
        self._between: tuple[str, bool] | None = None  # set by encode_between: name of the tensor, and by_entries

    def state(self, name: str) -> TensorState:
        """What is remembered of a tensor."""
        return TensorState(self._kinds.get(name), self._kept.get(name), self._curves.get(name),
                           self._hysteresis_strength)  # fmt: skip

    def resume(self, name: str, state: TensorState) -> None:
        """Remember of a tensor what another encoder remembers of it. ``strengthen_hysteresis`` is not concerned."""
        if state.kind is not None:
            self._kinds[name] = state.kind
        if state.curve is not None:
            self._curves[name] = state.curve
        if state.plan is not None:
            self._keep(name, state.plan)
        elif name in self._kept:
            self._kept_nbytes -= self._kept.pop(name).nbytes

    def strengthen_hysteresis(self) -> None:
        """Make changes of the kind of coding less likely at the next step of a search, so that sizes converge."""
        self._hysteresis_strength = min(2 * self._hysteresis_strength, _STRONGEST_HYSTERESIS)

    def encode(self, tensor: SourceTensor, relative_step: float) -> Result:
        """Encode a tensor.

        Args:
            relative_step: See ``sensitivity.Steps``; or ``EXACT``.

        Raises:
            EncodeError: Its values are not those of its description, or a method that the recipe asks for by the name
                of the tensor cannot code it.
        """
        if tensor.alias_of is not None or self._plan.equal.find(tensor) is not None:
            return self.as_alias(tensor)
        method = self._plan.method(tensor)
        is_exact = relative_step == EXACT if method is None else method.name == "lossless"
        if tensor.form is not None and (is_exact or not BY_NAME[tensor.dtype].arithmetic):
            return self._keep_form(tensor, tensor.form)
        array = native(tensor)
        if self._plan.equal.find(tensor, array) is not None:
            return self.as_alias(tensor)
        if not array.size:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.nan)
        if method is not None and method.name == "raw":
            encoded = fine.encode_raw(tensor.name, tensor.dtype, array, collect=self._collect)
            return self._result(tensor, encoded, math.inf)
        is_arithmetic = BY_NAME[tensor.dtype].arithmetic and fits_float32(array)
        if not is_arithmetic and method is not None and method.name not in ("lossless", "fine"):
            self._plan.reject_method(tensor, method, "it holds NaN, infinity or values beyond float32")
        if not is_arithmetic and tensor.form is not None:
            return self._keep_form(tensor, tensor.form)
        if not is_arithmetic or is_exact:
            # A mask or a table of positions is no weight that was dequantized: as bytes it is small enough
            is_weight = is_arithmetic and tensor.name not in self._plan.constants
            as_bytes = fine.encode_lossless if self._options.lossless else fine.encode_exact
            encode = partial(exact.encode, is_lossless=self._options.lossless) if is_weight else as_bytes
            thorough = self._options.preset == "small"
            encoded = encode(tensor.name, tensor.dtype, array, thorough=thorough, collect=self._collect)
            return self._result(tensor, encoded, math.inf)
        if method is not None and quantize.is_vector_method(method):
            try:
                return self._encode_by_method(tensor, array, method)
            except EncodeError as err:
                self._plan.reject_method(tensor, method, str(err))
                method = None
        if method is not None and method.name == "fine":
            return self._encode_finely(tensor, array)
        if method is None and not self._plan.is_coarse(tensor):
            return self.encode_short(tensor, array, relative_step)
        return self._encode_on_grid(tensor, array, method, relative_step)

    def as_alias(self, tensor: SourceTensor) -> Result:
        """A tensor that is tied to an earlier one, or a copy of one. What is tied to a copy has the copy as holder."""
        name, targets = tensor.alias_of or tensor.name, self._plan.equal.targets
        target = targets.get(name, name)
        what, source_nbytes = f"alias of {name}", 0
        if tensor.alias_of is None:
            what, source_nbytes = f"copy of {target}", tensor.source_nbytes
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, what, 0, math.nan)
        return Result(AliasRecord(tensor.name, target), report, layer=tensor.layer, source_nbytes=source_nbytes,
                      holder=name if name in targets else None)  # fmt: skip

    def _keep_form(self, tensor: SourceTensor, form: StoredForm) -> Result:
        """A tensor that is quantized already, as it is."""
        encoded = form.encode()
        return self._result(tensor, encoded, math.inf, f"{form.name} as {stage_summary(encoded.record)}")

    def encode_between(self, tensor: SourceTensor, step: float, *, by_entries: bool = False) -> Result:
        """Encode a tensor so that its size changes gradually with the step.

        Args:
            by_entries: For preset ``fast``: whether its codebook may have any number of entries. If not, a second
                codebook is added.
        """
        self._between = tensor.name, by_entries
        result = self.encode(tensor, step)
        self._between = None
        return result

    def _encode_finely(self, tensor: SourceTensor, array: Array, step: float | None = None) -> Result:
        """Encode a short tensor finely.

        Args:
            step: Step for a budget, relative to its root mean square; None without a budget.
        """
        encoded, rounded = encode_minifloat(tensor.name, tensor.dtype, array, step)
        sqnr = sqnr_db(reals(array), reals(rounded))
        method = f"rounded to {stage_summary(encoded.record)}" if not encoded.record.is_raw else "rounded finely"
        return self._result(tensor, encoded, sqnr, None if math.isinf(sqnr) else method)

    def encode_short(self, tensor: SourceTensor, array: Array, relative_step: float) -> Result:
        """Encode a short tensor finely; with a size budget, as finely as its number of values requires."""
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
        values = short_reals(array)
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

    def _encode_coarsely(self, tensor: SourceTensor, values: ShortFloats, step: float, preset: str) -> Result:
        """Encode a tensor by a preset, with about the noise of a uniform grid with this step.

        Args:
            values: See ``layout.short_reals``.
        """
        encoded: EncodedTensor | CodedTensor
        match preset:
            case "small":
                found = small.quantize(tensor.name, tensor.dtype, tensor.shape, values, step,
                                       settings=self._settings(tensor, values, step))  # fmt: skip
                self._remember(tensor.name, found.plan)
                encoded, signal, noise = found.coded, found.energy, found.noise
            case "fast":
                choice = self._choice(tensor, values, step)
                encoded, signal, noise = fast.encode(tensor.name, tensor.dtype, tensor.shape, values, choice,
                                                     seed=self._options.seed, collect=self._collect)  # fmt: skip
            case _:
                encoded, grid = encode_uniform(tensor.name, tensor.dtype, tensor.shape, values, step,
                                               is_table=tensor.is_table, collect=self._collect)  # fmt: skip
                signal = grid.energy
                noise = signal / 10 ** (grid.sqnr_db / 10)
        result = self._result(tensor, encoded, decibel(signal, noise))
        return replace(result, energy=signal, noise=noise)

    def _settings(self, tensor: SourceTensor, values: ShortFloats, step: float) -> small.Settings:
        kind = self._kinds.get(tensor.name)
        hysteresis = None
        if kind is not None:
            hysteresis = Hysteresis(kind, self._hysteresis_strength, self._kept.get(tensor.name))
        factors = self._plan.feedback(tensor)
        if factors is not None:
            factors = factors.at(step / (root_mean_square(values) or 1.0))
        return small.Settings(tensor.output_axis, tensor.is_table, self._options.sqnr is not None, factors,
                              self._plan.row_scales(tensor), hysteresis)  # fmt: skip

    def draft(self, tensor: SourceTensor, step: float) -> Drafted:
        """Make a draft of a tensor with its step. Its plan is kept for this step."""
        values = short_reals(native(tensor))
        planned = small.make_plan(tensor.name, tensor.dtype, tensor.shape, values, step,
                                  settings=self._settings(tensor, values, step))  # fmt: skip
        if self._plan.method(tensor) is None:
            self._remember(tensor.name, planned.plan)
        return draft(planned)

    def _remember(self, name: str, plan: GridPlan) -> None:
        """Remember the kind of a tensor and, unless kept plans take too much memory, its plan for the next step."""
        self._kinds[name] = plan.kind
        self._keep(name, plan)

    def _keep(self, name: str, plan: GridPlan) -> None:
        before = self._kept.pop(name, None)
        self._kept_nbytes += plan.nbytes - (before.nbytes if before is not None else 0)
        if self._options.has_budget and self._kept_nbytes <= _KEPT_NBYTES:
            self._kept[name] = plan
        else:
            self._kept_nbytes -= plan.nbytes

    def _choice(self, tensor: SourceTensor, values: ShortFloats, step: float) -> fast.Choice:
        """The codebooks of preset ``fast`` for a tensor. With a budget, more widths of codes are allowed."""
        curve = self._curves.get(tensor.name)
        if curve is None:
            widths = fast.ENTRIES if self._options.has_budget else fast.QUICK_ENTRIES
            curve = self._curves[tensor.name] = fast.RateDistortionCurve.of(values, widths, seed=self._options.seed)
        match self._between:
            case (tensor.name, True):
                return fast.Choice(curve.any_entries_at(step))
            case (tensor.name, False):
                matrix = fast.as_matrix(values)
                return fast.choose_within(curve.nbytes_at(step, matrix.size), matrix.shape)
        return fast.Choice(curve.entries_at(step))

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
        encoded = assemble(tensor.name, tensor.dtype, tensor.shape, layout, stages, collect=self._collect)
        return self._result(tensor, encoded, sqnr_db(matrix, as_decoded(sum_of_stages(stages, view), tensor.dtype)))

    def _result(
        self, tensor: SourceTensor, encoded: EncodedTensor | CodedTensor, sqnr: float, method: str | None = None
    ) -> Result:
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, method or "", 0, sqnr)
        if isinstance(encoded, EncodedTensor):
            method = method or stage_summary(encoded.record)
            report = replace(report, method=method, stored_nbytes=encoded.stored_nbytes)
        notes = (self._plan.rejected[tensor.name],) if tensor.name in self._plan.rejected else ()
        return Result(encoded, report, notes, tensor.layer, source_nbytes=tensor.source_nbytes)
