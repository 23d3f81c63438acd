"""A whole model: what each tensor becomes, and how a budget is met."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ..decode.tables import Floats
from ..errors import EncodeError
from ..format.chunkwriter import ChunkWriter, EncodedTensor
from ..format.describe import describe
from ..format.dtypes import BY_NAME
from ..format.records import AliasRecord, Layout, make_view
from . import constants
from .budget import Goal, Outcome
from .calibration import TensorStatistics
from .draft import DraftedSteps
from .meeting import EXACT, Attempt, Meeting, Trials
from .methods import fast, fine, quantize
from .methods.assemble import QuantizedStage, assemble, sum_of_stages
from .methods.layout import by_columns, by_rows, reals, view_matrix
from .methods.uniform import encode_uniform
from .methods.vectors import encode_vector
from .options import Options
from .recipe import Method
from .report import Report, TensorReport, as_decoded, decibel, energy, sqnr_db
from .results import Layers, Nowhere, Result
from .sensitivity import Statistics, Steps, root_mean_square
from .small import quantize as small
from .small import table_rows as lookups
from .small.coded import CodedTensor
from .small.decorrelate import Habit
from .small.feedback import Factors
from .source import SourceTensor, check_name, check_shape, fits_float32, native
from .spool import Spool

Array = npt.NDArray[Any]
SMALLEST_COARSE = 256  # elements; tensors below it are coded finely
SMALLEST_COARSE_VECTOR = 1 << 16  # elements of a tensor of one axis: shorter ones are biases, norms and the like
# Times as coarse as what is harmless: of seven networks six lost 7 to 95 points there, one 2; at half of that 0 to 12.
# Preset small keeps sums of errors small; calibrated, errors of weights are made up for by other weights
_RUIN, _RUIN_SMALL, _RUIN_CALIBRATED = 9.0, 16.0, 32.0
_BEARABLE = 4.0
_EXACT_FROM = 0.5  # of the bytes of the tensors: smaller budgets are below what floats compress to
_LEAST_SQNR_DB = 1.0  # of a tensor on a grid; less is hardly better than nothing
_MAX_CORRECTIONS = 6  # rounds until corrected tensors fit a budget
_CORRECTION_SHARE = 0.001  # of a budget, and bytes, that are kept for what corrected tensors take more
_CORRECTION_NBYTES = 16
_FIRST_HABIT, _STRONGEST_HABIT = 0.01, 0.32  # see Habit: twice as strong at each further step of a search
_NO_TENSOR = "no tensor is of a kind and a size to be coded more finely or coarsely"  # why a budget is missed
_DRAFTED = 1 << 20  # weights from which on drafts are made before a search for a budget
_MINOR = 1  # of the format, unless everything is exact


def encode_model(
    tensors: Sequence[SourceTensor],
    target: str | os.PathLike[str] | BinaryIO,
    metadata: dict[str, Any] | None = None,
    options: Options | None = None,
    *,
    overwrite: bool = True,
) -> Report:
    """Encode tensors, in their order, into a file.

    Raises:
        EncodeError: A tensor, the metadata or the options cannot be written, or a budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    options = options or Options()
    names = check_tensors(tensors, set())
    known = {} if options.calibration is None else options.calibration.tensors
    if known and names and not names & known.keys():
        raise EncodeError(f"the calibration is of another model: it knows {min(known)!r} and others, and no tensor"
                          f" that is to be written, such as {min(names)!r}")  # fmt: skip
    unused = options.recipe.unused(names) if options.recipe is not None else []
    if unused:
        near = difflib.get_close_matches(unused[0], names, n=3)
        hint = f"; near matches: {', '.join(map(repr, near))}" if near else ""
        raise EncodeError(f"the pattern {unused[0]!r} matches no tensor that an earlier one does not{hint}")
    with open_writer(target, metadata, options, overwrite=overwrite) as writer:
        return ModelEncoder(tensors, options, metadata).write(writer)


def check_tensors(tensors: Iterable[SourceTensor], names: set[str]) -> set[str]:
    """The names of a file's tensors with those of further ones.

    Raises:
        EncodeError: A name or shape is not allowed, or a name comes twice.
    """
    names = set(names)
    for tensor in tensors:
        check_name(tensor.name)
        check_shape(tensor.name, tensor.shape)
        if tensor.name in names:
            raise EncodeError(f"two tensors have the name {tensor.name!r}")
        names.add(tensor.name)
    return names


def open_writer(
    target: str | os.PathLike[str] | BinaryIO, metadata: dict[str, Any] | None, options: Options, *, overwrite: bool
) -> ChunkWriter:
    """The writer of the chunks of a file that these options lead to."""
    return ChunkWriter(target, metadata, overwrite=overwrite, minor=0 if options.lossless else _MINOR)


class ModelEncoder:
    """Encodes one model, or one layer; holds what the passes learn.

    Args:
        metadata: Of the file: it counts where the size of the file does.
        is_part: Whether these are only some of the file's tensors.
    """

    def __init__(
        self, tensors: Sequence[SourceTensor], options: Options, metadata: dict[str, Any] | None = None, *,
        is_part: bool = False,
    ) -> None:  # fmt: skip
        self.tensors = tensors
        self._is_part = is_part
        self.options = options
        self._metadata = metadata
        self._constants: set[str] = set()  # tensors that nobody trained
        self._statistics: dict[str, Statistics] = {}
        self._steps = Steps([])
        self._fixed: dict[str, Result] = {}  # results that no step changes, where there is a budget
        self._kinds: dict[str, tuple[int, bool]] = {}  # how each tensor of preset small was coded at the step before
        self._ladders: dict[str, fast.Ladder] = {}  # of preset fast
        self._between: tuple[str, bool] | None = None  # the tensor that is to be of any size, see _encode_between
        self._habit_strength = _FIRST_HABIT
        self._fallen: dict[str, str] = {}  # why a tensor is not coded by the method of its wildcard
        self._step = options.step or 0.0  # relative; where there is a goal, that of the results that meet it
        self._factors: dict[str, Factors | None] = {}
        self._books: dict[str, quantize.SharedBook] = {}
        self._book_numbers: dict[str, int] = {}
        self._folder: str | None = None
        self.missed: list[str] = []  # notes on a goal that is not met, once there are results

    def write(self, writer: ChunkWriter) -> Report:
        """Encode the model, and end the file with it."""
        report = self._write_all(writer, self.results(writer.folder))
        if self.options.sqnr is not None and not self._statistics and self._n_weights():
            outcome = Outcome(report.file_nbytes, report.sqnr_db)
            self.missed = self._notes_on(Goal(sqnr_db=self.options.sqnr), outcome, _NO_TENSOR)
        report.note_missed(self.missed)
        self._note_ruin(report)
        return report

    def _note_ruin(self, report: Report) -> None:
        """Say so where steps are so coarse that networks of this kind do not work any more."""
        coarseness = self._steps.coarseness(self._step)
        most = _RUIN_SMALL if self.options.preset == "small" else _RUIN
        if self._steps.is_empty or coarseness <= (most if self.options.calibration is None else _RUIN_CALIBRATED):
            return
        bearable = self._step * _BEARABLE / coarseness
        nbytes = report.file_nbytes + self._steps.estimate(bearable) - self._steps.estimate(self._step)
        report.note_ruined(f"this model will most likely not work: its weights are rounded {coarseness:.0f} times as"
                           " coarsely as hardly any network minds; try a ratio of"
                           f" {report.source_nbytes / nbytes:.2g}")  # fmt: skip

    def results(self, folder: str | None) -> Iterable[Result]:
        """The tensors, encoded.

        Args:
            folder: For what does not fit in memory while a budget is being met; None for the system's.
        """
        self._folder = folder
        self._train_books()
        self._gather()
        goal = self._goal()
        if self.options.correct is not None:
            return self._corrected(goal)
        return self._encode(self._step) if goal is None else self._met(goal)

    # What each tensor is to become

    def _method(self, tensor: SourceTensor) -> Method | None:
        """What the recipe asks for; None where the encoder chooses."""
        if self.options.lossless or (tensor.is_exact and not self._is_named(tensor)):
            return quantize.LOSSLESS
        if tensor.name in self._constants and not self._is_named(tensor):
            return quantize.LOSSLESS
        if self.options.recipe is None or tensor.name in self._fallen:
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

    def _is_named(self, tensor: SourceTensor) -> bool:
        """Whether a pattern of the recipe decides about the tensor."""
        return self.options.recipe is not None and self.options.recipe.names(tensor.name)

    def _is_coarse(self, tensor: SourceTensor) -> bool:
        """Whether the encoder may put the tensor on a grid."""
        if not BY_NAME[tensor.dtype].arithmetic or not tensor.shape:
            return False
        is_vector = sum(size > 1 for size in tensor.shape) < 2  # factors of channels have axes of 1 beside theirs
        return prod(tensor.shape) >= (SMALLEST_COARSE_VECTOR if is_vector else SMALLEST_COARSE)

    def _gather(self) -> None:
        """First pass: deviation and a sample of each tensor whose step is to be chosen.

        With a budget, vector methods are run too: where one fails, the tensor needs a step.
        """
        for tensor in self.tensors:
            if tensor.alias_of is not None or not prod(tensor.shape):
                continue
            method = self._method(tensor)
            if self.options.has_budget and method is not None and method.is_vector:
                result = self._encode_tensor(tensor, 1.0)
                if tensor.name not in self._fallen:
                    self._fixed[tensor.name] = result
                    continue
                method = None
            is_free = method is None and BY_NAME[tensor.dtype].arithmetic
            if is_free or self._has_step(tensor, method):
                self._look_at(tensor, tensor.load(), is_free=is_free, has_step=self._has_step(tensor, method))
        self._steps = Steps(list(self._statistics.values()), by_deviation=self.options.sqnr is not None,
                            is_part=self._is_part)  # fmt: skip
        self._step = self.options.step or self._steps.default

    def _look_at(self, tensor: SourceTensor, array: Array, *, is_free: bool, has_step: bool) -> None:
        """Note whether the tensor is a constant, or what its step follows from.

        Args:
            is_free: Whether the encoder may choose how it is coded.
            has_step: Whether that would be on a grid.
        """
        if not fits_float32(array):
            return
        if is_free and constants.is_constant(array, tensor.dtype, is_short=not has_step):
            self._constants.add(tensor.name)
        elif has_step:
            self._statistics[tensor.name] = Statistics.of(reals(array), self._sensitivity(tensor),
                                                          is_recurrent=tensor.in_sequence)  # fmt: skip

    def _known(self, tensor: SourceTensor) -> TensorStatistics:
        """What calibration found of a tensor; nothing without it."""
        known = self.options.calibration.tensors if self.options.calibration is not None else {}
        return known.get(tensor.name, TensorStatistics())

    def _feedback(self, tensor: SourceTensor) -> Factors | None:
        """What feedback needs to know of the inputs of a tensor's layer."""
        if tensor.name not in self._factors:
            self._factors[tensor.name] = Factors.of(self._known(tensor), tensor.shape[0])
        return self._factors[tensor.name]

    def _sensitivity(self, tensor: SourceTensor) -> float:
        """What the model loses by a squared error of an element, if the others make up for it."""
        known = self._known(tensor)
        factors = self._feedback(tensor) if self._is_coarse(tensor) else None
        if factors is not None:
            return known.importance * factors.share_left
        return known.importance * (1.0 if known.row_counts is None else lookups.share_of_middle(known.row_counts))

    def _row_scales(self, tensor: SourceTensor) -> Floats | None:
        """Of a table, if it is known how often its rows are looked up."""
        counts = self._known(tensor).row_counts
        return None if counts is None else lookups.row_scales(counts)

    def _has_step(self, tensor: SourceTensor, method: Method | None) -> bool:
        """Whether the encoder is to choose the tensor's step."""
        if method is None:
            return self._is_coarse(tensor)
        return method.name == "uniform" and not quantize.has_fixed_step(method)

    def _train_books(self) -> None:
        """Codebooks that several tensors share, before the first of them is written."""
        groups: dict[str, list[SourceTensor]] = {}
        for tensor in self.tensors:
            method = self._method(tensor)
            name = quantize.shared_name(method) if method is not None else None
            if name and tensor.alias_of is None and prod(tensor.shape):
                groups.setdefault(name, []).append(tensor)
        for name, members in groups.items():
            methods = {self._method(tensor) for tensor in members}
            if len(methods) > 1:
                raise EncodeError(f"layers that share codebook {name!r} have different methods: "
                                  + ", ".join(sorted(map(str, methods))))  # fmt: skip
            method = next(iter(methods))
            assert method is not None
            arrays = [(tensor, native(tensor)) for tensor in members]
            matrices = [view_matrix(reals(array), _layout(method, tensor)) for tensor, array in arrays
                        if fits_float32(array)]  # fmt: skip
            if matrices:
                self._books[name] = quantize.train_shared(matrices, method, seed=self.options.seed)

    # Budgets

    def _goal(self) -> Goal | None:
        if not self._n_weights():
            return None  # nothing to make smaller
        options = self.options
        if options.sqnr is not None:
            return Goal(sqnr_db=options.sqnr) if self._statistics else None
        if options.bits is not None:
            return Goal(options.bits * self._n_weights() / 8)
        if options.ratio is not None:
            return Goal(self._source_nbytes() / options.ratio)
        return None if options.size is None else Goal(options.size)

    def _n_weights(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors if tensor.alias_of is None)

    def _source_nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor.alias_of is None)

    def _meet(self, goal: Goal, first_step: float | None = None) -> Meeting:
        """Results that just meet a goal, if any do.

        Args:
            first_step: The first to try, if that is known.

        Raises:
            EncodeError: Even the coarsest steps give a larger file, or the finest one that is not good enough.
        """
        ways = [self._encode_between]
        if goal.nbytes is None and self.options.preset == "fast":
            ways.append(partial(self._encode_between, by_entries=True))
        meeting = Meeting(goal, Trials(self._encode_kept, ways, self._measure))
        is_generous = goal.nbytes is not None and goal.nbytes >= _EXACT_FROM * self._source_nbytes()
        if not (is_generous and meeting.try_step(EXACT).meets(goal)):
            meeting.run(self._steps if first_step else self._drafted(goal), first_step)
        if meeting.within is None:
            assert meeting.beyond is not None
            if goal.nbytes is None:
                possible = f"{meeting.beyond.outcome.sqnr_db:.1f} dB are possible"
                raise EncodeError(f"an SQNR of {goal.sqnr_db} dB was asked for; {possible}, or lossless coding")
            raise EncodeError(self._unmet(goal.nbytes, meeting.beyond.outcome.nbytes))
        self._step = meeting.within.step
        return meeting

    def _met(self, goal: Goal) -> Sequence[Result]:
        """Results that meet a goal, and a note if they could be nearer to it."""
        meeting = self._meet(goal)
        assert meeting.within is not None
        self.missed = self._notes_on(goal, meeting.within.outcome, self._why(goal, meeting))
        return meeting.within.results

    def _drafted(self, goal: Goal) -> Steps:
        """The steps, with good estimates of sizes where passes over the whole model take long."""
        n_weights = sum(s.n_values for s in self._statistics.values())
        if goal.nbytes is None or self.options.preset != "small" or n_weights < _DRAFTED:
            return self._steps
        loads = {tensor.name: partial(_values, tensor) for tensor in self.tensors}
        return DraftedSteps(list(self._statistics.values()), [loads[name] for name in self._statistics], goal.nbytes)

    def _corrected(self, goal: Goal | None) -> Sequence[Result]:
        """Results whose short tensors fit what became of the weights."""
        if goal is None:
            return self._correct(self._encode_kept(self._step))
        if goal.nbytes is None:
            return self._correct(self._met(goal))
        best: Attempt | None = None
        why = "corrections of short tensors take more bytes or less each time"
        aim = goal.nbytes * (1 - _CORRECTION_SHARE) - _CORRECTION_NBYTES
        step = None
        for _ in range(_MAX_CORRECTIONS):  # they may take some bytes more or less
            try:
                meeting = self._meet(Goal(aim), step)
            except EncodeError:
                break  # they leave too little
            assert meeting.within is not None
            step = self._step or None
            results = self._correct(meeting.within.results)
            outcome = self._measure(results)
            if outcome.meets(goal) and (best is None or outcome.is_nearer(best.outcome, goal)):
                best, why = Attempt(self._step, results, outcome), self._why(goal, meeting)
            if outcome.meets(goal) and outcome.is_near(goal):
                break
            aim += goal.nbytes * (1 - _CORRECTION_SHARE) - outcome.nbytes
        if best is None:
            results = self._met(goal)
            self.missed = [*self.missed, "short tensors are as they were: corrected, they do not fit the budget"]
            return results
        self._step = best.step
        self.missed = self._notes_on(goal, best.outcome, why)
        return best.results

    def _correct(self, results: Sequence[Result]) -> Sequence[Result]:
        assert self.options.correct is not None
        if self._step == EXACT:
            return results
        values = self.options.correct((result.report.name, result.encoded.array()) for result in results
                                      if isinstance(result.encoded, CodedTensor))  # fmt: skip

        def corrected(tensor: SourceTensor, result: Result) -> Result:
            array = values.get(tensor.name)
            is_short = result.noise == 0 and isinstance(result.encoded, EncodedTensor)
            if array is None or not is_short or self._method(tensor) is not None or not fits_float32(array):
                return result
            news = replace(tensor, load=partial(np.asarray, array))
            return self._encode_short(news, native(news), self._step)

        return self._keep(map(corrected, self.tensors, results))

    def _encode_kept(self, step: float) -> Sequence[Result]:
        """All tensors at a step; how they were coded matters more from one step to the next."""
        results = self._keep(self._encode(step))
        self._habit_strength = min(2 * self._habit_strength, _STRONGEST_HABIT)
        return results

    def _encode_between(self, number: int, step: float, *, by_entries: bool = False) -> Result:
        """One tensor at a step, which is to be of any size.

        Args:
            by_entries: Whether preset ``fast`` gives it any number of entries instead of codebooks that add up.
        """
        self._between = self.tensors[number].name, by_entries
        result = self._encode_tensor(self.tensors[number], step)
        self._between = None
        return result

    def _measure(self, results: Iterable[Result]) -> Outcome:
        """What a file of these results would be."""
        with ChunkWriter(cast(BinaryIO, Nowhere()), self._metadata) as writer:
            report = self._write_all(writer, results)
        return Outcome(report.file_nbytes, report.sqnr_db)

    def _keep(self, results: Iterable[Result]) -> Sequence[Result]:
        """Results for several passes."""
        return Spool(results, folder=self._folder)

    def _notes_on(self, goal: Goal, outcome: Outcome, why: str) -> list[str]:
        """What is to be said of a goal that could be met better, and of why it is not."""
        if outcome.is_near(goal):
            return []
        options = self.options
        if options.sqnr is not None:
            asked, reached = f"an SQNR of {options.sqnr:g} dB was", f"{outcome.sqnr_db:.2f} dB is"
        elif options.bits is not None:
            asked, reached = f"{options.bits:g} bits a weight were", f"{8 * outcome.nbytes / self._n_weights():.4g} is"
        elif options.ratio is not None:
            asked, reached = f"a ratio of {options.ratio:g} was", f"{self._source_nbytes() / outcome.nbytes:.4g} is"
        else:
            asked, reached = f"a file of {options.size:,g} bytes was", f"{outcome.nbytes:,} is"
        return [f"{asked} asked for; {reached} what was reached: {why}"]

    def _why(self, goal: Goal, meeting: Meeting) -> str:
        """Why no file is nearer to a goal."""
        assert meeting.within is not None
        if self._steps.is_empty:
            return _NO_TENSOR
        if meeting.within.step == EXACT:
            return "every bit is kept"
        if meeting.beyond is None:
            return f"nothing {'finer' if goal.nbytes is not None else 'coarser'} is possible"
        if goal.nbytes is not None:
            return f"sizes jump, the next larger file that was found has {meeting.beyond.outcome.nbytes:,} bytes"
        return f"files jump, the next smaller one that was found has {meeting.beyond.outcome.sqnr_db:.2f} dB"

    def _unmet(self, nbytes: float, smallest_nbytes: int) -> str:
        """Why a budget cannot be met, and what can."""
        fixed_nbytes = sum(result.report.stored_nbytes for result in self._fixed.values())
        if self.options.bits is not None:
            bits = math.ceil(800 * smallest_nbytes / self._n_weights()) / 100
            possible = f"{bits:.2f} bits a weight are"
        elif self.options.ratio is not None:
            ratio = math.floor(100 * self._source_nbytes() / smallest_nbytes) / 100
            possible = f"a ratio of {ratio:.2f} is"
        else:
            possible = "so many bytes are"
        return (f"a file of {nbytes:.0f} bytes was asked for; the smallest possible has {smallest_nbytes}: {possible}"
                f" possible, with {fixed_nbytes} bytes in tensors that no step changes")  # fmt: skip

    # Encoding

    def _encode(self, relative_step: float) -> Iterator[Result]:
        total = sum(prod(tensor.shape) for tensor in self.tensors)
        done = 0
        for tensor in self.tensors:
            result = self._fixed.get(tensor.name)
            if result is None or (relative_step == EXACT and self._method(tensor) is None):
                result = self._encode_tensor(tensor, relative_step)
                if self.options.has_budget and relative_step != EXACT and self._is_fixed(tensor):
                    self._fixed[tensor.name] = result
            done += prod(tensor.shape)
            if self.options.progress is not None:
                self.options.progress(tensor.name, done, total)
            yield result

    def _is_fixed(self, tensor: SourceTensor) -> bool:
        """Whether no step changes what the tensor becomes."""
        if tensor.name in self._statistics:
            return False
        is_vector = self._method(tensor) is None and BY_NAME[tensor.dtype].arithmetic and prod(tensor.shape) > 0
        return not is_vector or tensor.alias_of is not None

    def _encode_tensor(self, tensor: SourceTensor, relative_step: float) -> Result:
        if tensor.alias_of is not None:
            report = TensorReport(tensor.name, tensor.dtype, tensor.shape, f"alias of {tensor.alias_of}", 0, math.nan)
            return Result(AliasRecord(tensor.name, tensor.alias_of), report, layer=tensor.layer)
        array = native(tensor)
        if not array.size:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.nan)
        method = self._method(tensor)
        if method is not None and method.name == "raw":
            return self._result(tensor, fine.encode_raw(tensor.name, tensor.dtype, array), math.inf)
        is_arithmetic = BY_NAME[tensor.dtype].arithmetic and fits_float32(array)
        if not is_arithmetic and method is not None and method.name not in ("lossless", "fine"):
            self._fall(tensor, method, "it holds NaN, infinity or values beyond float32")
        is_exact = relative_step == EXACT if method is None else method.name == "lossless"
        if not is_arithmetic or is_exact:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.inf)
        if method is not None and quantize.is_vector_method(method):
            try:
                return self._encode_by_method(tensor, array, method)
            except EncodeError as err:
                self._fall(tensor, method, str(err))
                method = None
        if method is not None and method.name == "fine":
            return self._encode_finely(tensor, array)
        if method is None and not self._is_coarse(tensor):
            return self._encode_short(tensor, array, relative_step)
        return self._encode_on_grid(tensor, array, method, relative_step)

    def _fall(self, tensor: SourceTensor, method: Method, why: str) -> None:
        """Note that a method cannot code a tensor; one that was asked for by its very name must.

        Raises:
            EncodeError: It was.
        """
        assert self.options.recipe is not None
        if not self.options.recipe.method_for(tensor.name).is_wildcard:
            raise EncodeError(f"tensor {tensor.name!r}: {why}; {method} cannot code it")
        self._fallen[tensor.name] = f"tensor {tensor.name!r}: {why}; the encoder chose in place of {method}"

    def _encode_finely(self, tensor: SourceTensor, array: Array, step: float | None = None) -> Result:
        """A short tensor; the step is that of a budget, relative to its root mean square."""
        encoded, rounded = encode_vector(tensor.name, tensor.dtype, array, step)
        sqnr = sqnr_db(reals(array), reals(rounded))
        method = f"rounded to {describe(encoded.record)}" if not encoded.record.is_raw else "rounded finely"
        return self._result(tensor, encoded, sqnr, None if math.isinf(sqnr) else method)

    def _encode_short(self, tensor: SourceTensor, array: Array, relative_step: float) -> Result:
        """A tensor that is small and sensitive: finely, or if a budget says so less finely, by its size."""
        if not self.options.has_budget or self.options.sqnr is not None:
            return self._encode_finely(tensor, array)
        values = reals(array)
        if self._steps.is_empty or not values.any():
            return self._encode_finely(tensor, array)
        step = self._steps.vector_step(values, relative_step, self._sensitivity(tensor))
        return self._encode_finely(tensor, array, step)

    def _encode_on_grid(
        self, tensor: SourceTensor, array: Array, method: Method | None, relative_step: float
    ) -> Result:
        values = reals(array)
        if method is not None and quantize.has_fixed_step(method):
            step = quantize.uniform_step(method, root_mean_square(values), 1.0)
        else:
            statistics = self._statistics.get(tensor.name) or Statistics.of(values)
            steps = Steps([statistics]) if self._steps.is_empty else self._steps
            step = steps.step(statistics, relative_step or steps.default)
        result = self._encode_coarsely(tensor, values, step, "default" if method is not None else self.options.preset)
        if method is not None or result.report.sqnr_db >= _LEAST_SQNR_DB:
            return result
        if not self.options.has_budget:
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
                                       least_noise=self.options.sqnr is not None,
                                       factors=self._feedback(tensor),
                                       row_scales=self._row_scales(tensor),
                                       habit=None if kind is None else Habit(kind, self._habit_strength))  # fmt: skip
                self._kinds[tensor.name] = found.kind
                encoded, signal, noise = found.coded, found.energy, found.noise
            case "fast":
                choice = self._choice(tensor, values, step)
                encoded, signal, noise = fast.encode(tensor.name, tensor.dtype, tensor.shape, values, choice,
                                                     seed=self.options.seed)  # fmt: skip
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
            widths = fast.ENTRIES if self.options.has_budget else fast.QUICK_ENTRIES
            ladder = self._ladders[tensor.name] = fast.Ladder.of(values, widths, seed=self.options.seed)
        match self._between:
            case (tensor.name, True):
                return fast.Choice(ladder.any_entries_at(step))
            case (tensor.name, False):
                matrix = fast.as_matrix(values)
                return fast.choose_within(ladder.nbytes_at(step, matrix.size), matrix.shape)
        return fast.Choice(ladder.entries_at(step))

    def _encode_by_method(self, tensor: SourceTensor, array: Array, method: Method) -> Result:
        values = reals(array)
        layout = _layout(method, tensor)
        matrix = np.ascontiguousarray(view_matrix(values, layout))
        view = make_view(tensor.shape, BY_NAME[tensor.dtype].is_complex, layout)
        name = quantize.shared_name(method)
        stages: list[QuantizedStage]
        if name:
            stages = quantize.quantize_with_book(matrix, view, method, self._books[name], self._book_number(name),
                                                 seed=self.options.seed, dtype=tensor.dtype)  # fmt: skip
            self._book_numbers.setdefault(name, self._book_number(name))
        else:
            stages = quantize.quantize(matrix, view, method, seed=self.options.seed, dtype=tensor.dtype)
        encoded = assemble(tensor.name, tensor.dtype, tensor.shape, layout, stages)
        return self._result(tensor, encoded, sqnr_db(matrix, as_decoded(sum_of_stages(stages, view), tensor.dtype)))

    def _book_number(self, name: str) -> int:
        """Of a shared codebook: they are numbered as they come to be used."""
        return self._book_numbers.get(name, len(self._book_numbers))

    def _result(
        self, tensor: SourceTensor, encoded: EncodedTensor | CodedTensor, sqnr: float, method: str | None = None
    ) -> Result:
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, method or "", 0, sqnr)
        if isinstance(encoded, EncodedTensor):
            report = replace(report, method=method or describe(encoded.record), stored_nbytes=encoded.stored_nbytes)
        notes = (self._fallen[tensor.name],) if tensor.name in self._fallen else ()
        return Result(encoded, report, notes, tensor.layer)

    def _write_all(self, writer: ChunkWriter, results: Iterable[Result]) -> Report:
        layers = Layers(writer, self._numbered_book)
        for result in results:
            layers.add(result)
        return layers.close()

    def _numbered_book(self, number: int) -> quantize.SharedBook:
        return next(self._books[name] for name, n in self._book_numbers.items() if n == number)


def _values(tensor: SourceTensor) -> Floats:
    return reals(native(tensor))


def _layout(method: Method, tensor: SourceTensor) -> Layout:
    shape = (*tensor.shape, 2) if BY_NAME[tensor.dtype].is_complex else tensor.shape
    return by_columns(shape) if quantize.by_columns(method) else by_rows(shape)
