"""Encoding a whole model into a file, so that a budget is met."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np

from ..errors import EncodeError, near_names
from ..format.chunkwriter import ChunkWriter, EncodedTensor
from ..format.dtypes import BY_NAME
from ..format.records import AliasRecord
from ..sizes import Size
from .budget_search import EXACT, Attempt, BudgetSearch, Trials
from .disk_list import DiskList
from .layers import LayerWriter, NullStream, Result
from .new_model import ModelWriter, open_writer
from .options import Options
from .plan import Plan
from .progress import Passes, Phase
from .report import Report
from .requested_goal import NO_TENSOR, RequestedGoal, why_missed
from .ruin import note_ruin
from .sensitivity import Steps
from .shared_codebooks import SharedCodebooks
from .size_drafts import DraftedSteps
from .small.coded_tensor import CodedTensor
from .small.draft import Drafted
from .source import SourceTensor, check_tensors, fits_float32, native
from .step_search import Goal, Outcome
from .task import Draft, Encoding, Job
from .tensor_work import HERE, TensorWork, Workplace
from .worker_pool import opened_pool

_EXACT_FROM = 0.5  # budgets below this share of the tensors' bytes cannot be met without loss
_MAX_CORRECTIONS = 6  # rounds until a file with corrected tensors meets a budget
_CORRECTION_SHARE = 0.001  # share of a budget, and number of bytes, reserved for the growth of corrected tensors
_CORRECTION_NBYTES = 16
_DRAFTED = 1 << 20  # least number of weights for which drafts are made before a budget search


def encode_model(
    tensors: Sequence[SourceTensor],
    target: str | os.PathLike[str] | BinaryIO,
    metadata: dict[str, Any] | None = None,
    options: Options | None = None,
    *,
    overwrite: bool = True,
    max_shard_size: Size | None = None,
    place: Workplace = HERE,
) -> Report:
    """Encode tensors, in their order, into a file.

    Args:
        target: Path, or a binary stream.
        metadata: The user's metadata.
        options: None for the defaults.
        overwrite: Whether an existing file may be replaced.
        max_shard_size: See ``open_writer``.
        place: See ``ModelEncoder.write``.

    Returns:
        A report on each tensor.

    Raises:
        EncodeError: A tensor or the metadata cannot be written, options do not fit the tensors, or a budget cannot be
            met.
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
        hint = near_names(unused[0], [tensor.name for tensor in tensors])
        raise EncodeError(f"the pattern {unused[0]!r} matches no tensor that earlier patterns leave{hint}")
    with open_writer(target, metadata, options, overwrite=overwrite, max_shard_size=max_shard_size) as writer:
        return ModelEncoder(tensors, options, metadata).write(writer, place)


class ModelEncoder:
    """Encodes the tensors of one model, or of one layer, in as many passes as a budget needs.

    Args:
        metadata: Metadata of the file, whose size counts against a budget.
        is_part: Whether these are only some of the file's tensors.

    Attributes:
        plan: What each tensor is to become.
        missed: Notes on a goal that was missed; set when results have been made.
    """

    def __init__(
        self, tensors: Sequence[SourceTensor], options: Options, metadata: dict[str, Any] | None = None, *,
        is_part: bool = False,
    ) -> None:  # fmt: skip
        self.tensors, self.options, self._metadata = tensors, options, metadata
        self.plan = Plan(tensors, options, is_part=is_part)
        self._books = SharedCodebooks()
        self._place = HERE
        self._request = RequestedGoal(tensors, options)
        self._passes = Passes(options.progress, tensors, options.preset, is_part=is_part)
        self._fixed: dict[str, Result] = {}  # with a budget: results that no step changes
        self._step = options.step or 0.0  # relative step of the results
        self.missed: list[str] = []

    def write(self, writer: ModelWriter, place: Workplace = HERE) -> Report:
        """Encode all tensors, write them, and close the file.

        Args:
            place: Where to find the source, and outcomes of an earlier run. Workers are those of the options.
        """
        with opened_pool(self.options.workers, self.options.executor, writer.folder) as pool:
            results = self.results(replace(place, pool=pool, temporary=writer.folder))
            report = self._write_all(writer, results, "writing")
        if self.options.sqnr is not None and not self.plan.statistics and self._request.n_weights:
            outcome = Outcome(report.file_nbytes, report.sqnr_db)
            self.missed = self._request.notes_on(Goal(sqnr_db=self.options.sqnr), outcome, NO_TENSOR)
        report.note_missed(self.missed)
        note_ruin(report, self.plan.steps, self._step, self.options)
        return report

    def results(self, place: Workplace) -> Iterable[Result]:
        """Encode all tensors so that the goal, if any, is met."""
        self._place = place
        self._work = TensorWork(self.plan, self._books, self._passes, place)
        self._passes.is_search = self.options.has_budget and self.options.step is None
        self._passes.is_corrected = self.options.correct is not None
        self._books.train(self.plan, self._passes)
        self._passes.begin("statistics")
        self._gather()
        self._step = self.options.step or self.plan.steps.default
        goal = self._request.goal(has_steps=bool(self.plan.statistics))
        self._passes.is_search = goal is not None
        if self.options.correct is not None:
            return self._corrected(goal)
        return self._encode(self._step) if goal is None else self._met(goal)

    def _gather(self) -> None:
        """Look at each tensor whose step is to be chosen, in a first pass over all tensors.

        With a budget, tensors with vector methods are encoded, for no step changes their results.
        """
        for tensor, found in self._work.values((tensor, self._first_job(tensor)) for tensor in self.tensors):
            if isinstance(found, Result):
                if tensor.name not in self.plan.rejected:
                    self._fixed[tensor.name] = found
                    continue
                ((_, found),) = self._work.values([(tensor, self.plan.look(tensor))])
            if found is not None:
                self.plan.note(tensor, found)
        self._coarse = [i for i, tensor in enumerate(self.tensors) if tensor.name in self.plan.statistics]
        self.plan.set_steps()

    def _first_job(self, tensor: SourceTensor) -> Job | None:
        if tensor.alias_of is not None or not prod(tensor.shape):
            return None
        method = self.plan.method(tensor)
        is_vector = method is not None and method.is_vector
        return Encoding(1.0) if self.options.has_budget and is_vector else self.plan.look(tensor)

    def _meet(self, goal: Goal, first_step: float | None = None) -> BudgetSearch:
        """Search for a file that just meets a goal.

        Args:
            first_step: The step to try first; None for the estimated one.

        Raises:
            EncodeError: The goal cannot be met: the coarsest steps give a larger file, or the finest steps give one
                that is not good enough.
        """
        ways = [self._encode_between]
        if goal.nbytes is None and self.options.preset == "fast":
            ways.append(partial(self._encode_between, by_entries=True))
        some = self._encode_some if self.options.preset == "small" else None
        search = BudgetSearch(goal, Trials(self._encode_kept, ways, self._measure, some, self._coarse))
        is_generous = goal.nbytes is not None and goal.nbytes >= _EXACT_FROM * self._request.source_nbytes
        if not (is_generous and search.try_step(EXACT).meets(goal)):
            search.run(self.plan.steps if first_step else self._drafted(goal), first_step)
        if search.within is None:
            assert search.beyond is not None
            if goal.nbytes is None:
                possible = f"{search.beyond.outcome.sqnr_db:.1f} dB are possible"
                raise EncodeError(f"an SQNR of {goal.sqnr_db} dB was asked for; {possible}, or lossless coding")
            fixed_nbytes = sum(result.report.stored_nbytes for result in self._fixed.values())
            raise EncodeError(self._request.unmet(goal.nbytes, search.beyond.outcome.nbytes, fixed_nbytes))
        self._step = search.within.step
        return search

    def _met(self, goal: Goal) -> Sequence[Result]:
        """Results that meet a goal. Sets ``missed`` if they are not near to it."""
        search = self._meet(goal)
        assert search.within is not None
        self.missed = self._request.notes_on(goal, search.within.outcome, why_missed(goal, search, self.plan.steps))
        return search.within.results

    def _drafted(self, goal: Goal) -> Steps:
        """The steps. For a size goal and a large model of preset small, their estimates are corrected by drafts."""
        n_weights = sum(s.n_values for s in self.plan.statistics.values())
        if goal.nbytes is None or self.options.preset != "small" or n_weights < _DRAFTED:
            return self.plan.steps
        rounds = count()
        self._passes.begin("drafts", n_weights)

        def draft(steps: Sequence[float]) -> Iterator[Drafted]:
            if next(rounds):
                self._passes.begin("drafts", n_weights)
            jobs = ((self.tensors[i], Draft(step)) for i, step in zip(self._coarse, steps, strict=True))
            return (drafted for _, drafted in self._work.values(jobs))

        return DraftedSteps(list(self.plan.statistics.values()), draft, self._rest_nbytes, goal.nbytes)

    def _rest_nbytes(self, relative_step: float) -> float:
        """Bytes of a file of the tensors whose steps are not to be chosen, without aliases."""
        rest = [tensor for tensor in self.tensors if tensor.name not in self.plan.statistics]
        with ChunkWriter(cast(BinaryIO, NullStream()), self._metadata) as writer:
            layers = LayerWriter(writer, self._books.numbered)
            for result in self._results_of(rest, relative_step):
                if not isinstance(result.encoded, AliasRecord):
                    layers.add(result)
            return layers.close().file_nbytes

    def _corrected(self, goal: Goal | None) -> Sequence[Result]:
        """Results in which short tensors have been corrected for the quantized weights."""
        if goal is None:
            return self._correct(self._encode_kept(self._step))
        if goal.nbytes is None:
            return self._correct(self._met(goal))
        best: Attempt | None = None
        why = "corrections of short tensors take more bytes or less each time"
        aim = goal.nbytes * (1 - _CORRECTION_SHARE) - _CORRECTION_NBYTES
        step = None
        for _ in range(_MAX_CORRECTIONS):  # corrected tensors may take more or fewer bytes than before
            try:
                search = self._meet(Goal(aim), step)
            except EncodeError:
                break  # too few bytes are left for the weights
            assert search.within is not None
            step = self._step or None
            results = self._correct(search.within.results)
            outcome = self._measure(results)
            if outcome.meets(goal) and (best is None or outcome.is_nearer(best.outcome, goal)):
                best, why = Attempt(self._step, results, outcome), why_missed(goal, search, self.plan.steps)
            if outcome.meets(goal) and outcome.is_near(goal):
                break
            aim += goal.nbytes * (1 - _CORRECTION_SHARE) - outcome.nbytes
        if best is None:
            results = self._met(goal)
            self.missed = [*self.missed, "short tensors are as they were: corrected, they do not fit the budget"]
            return results
        self._step = best.step
        self.missed = self._request.notes_on(goal, best.outcome, why)
        return best.results

    def _correct(self, results: Sequence[Result]) -> Sequence[Result]:
        """Replace the results of short tensors by those of their corrected values."""
        assert self.options.correct is not None
        if self._step == EXACT:
            return results
        self._passes.begin("correction")
        with self._passes.tensor("correction"):
            values = self.options.correct((result.report.name, result.encoded.array()) for result in results
                                          if isinstance(result.encoded, CodedTensor))  # fmt: skip

        def corrected(tensor: SourceTensor, result: Result) -> Result:
            array = values.get(tensor.name)
            is_short = result.noise == 0 and isinstance(result.encoded, EncodedTensor)
            if array is None or not is_short or self.plan.method(tensor) is not None or not fits_float32(array):
                return result
            news = replace(tensor, load=partial(np.asarray, array))
            return self._work.encoder.encode_short(news, native(news), self._step)

        return self._keep(map(corrected, self.tensors, results))

    def _encode_kept(self, step: float) -> Sequence[Result]:
        """Encode all tensors with a step, and keep the results for several passes."""
        results = self._keep(self._encode(step))
        self._work.encoder.strengthen_hysteresis()
        return results

    def _encode_some(self, numbers: Sequence[int], step: float) -> Sequence[Result]:
        tensors = [self.tensors[number] for number in numbers]
        self._passes.begin("encoding", sum(tensor.n_elements for tensor in tensors))
        return self._keep(self._results_of(tensors, step))

    def _encode_between(self, number: int, step: float, *, by_entries: bool = False) -> Result:
        tensor = self.tensors[number]
        self._passes.begin("encoding", prod(tensor.shape))
        with self._passes.tensor(tensor.name):
            return self._work.encoder.encode_between(tensor, step, by_entries=by_entries)

    def _measure(self, results: Iterable[Result]) -> Outcome:
        """Size and quality of a file of these results; the file is not kept."""
        with ChunkWriter(cast(BinaryIO, NullStream()), self._metadata) as writer:
            report = self._write_all(writer, results, "measuring")
        return Outcome(report.file_nbytes, report.sqnr_db)

    def _keep(self, results: Iterable[Result]) -> Sequence[Result]:
        """Store results so that several passes can read them."""
        return DiskList(results, folder=self._place.temporary)

    def _encode(self, relative_step: float) -> Iterator[Result]:
        self._passes.begin("encoding")
        return self._results_of(self.tensors, relative_step)

    def _results_of(self, tensors: Iterable[SourceTensor], relative_step: float) -> Iterator[Result]:
        def job(tensor: SourceTensor) -> Job | None:
            is_known = tensor.name in self._fixed and not (relative_step == EXACT and self.plan.method(tensor) is None)
            return None if is_known else Encoding(relative_step)

        for tensor, result in self._work.values((tensor, job(tensor)) for tensor in tensors):
            if result is None:
                result = self._fixed[tensor.name]
            elif self.options.has_budget and relative_step != EXACT and self._is_fixed(tensor):
                self._fixed[tensor.name] = result
            yield result

    def _is_fixed(self, tensor: SourceTensor) -> bool:
        """Whether the result of a tensor is the same for all steps."""
        if tensor.name in self.plan.statistics:
            return False
        is_vector = self.plan.method(tensor) is None and BY_NAME[tensor.dtype].arithmetic and prod(tensor.shape) > 0
        return not is_vector or tensor.alias_of is not None

    def _write_all(self, writer: ModelWriter, results: Iterable[Result], phase: Phase) -> Report:
        layers = LayerWriter(writer, self._books.numbered)
        is_pass = isinstance(results, Sequence)  # not if each is encoded now, in a pass that tells of itself
        if is_pass:
            self._passes.begin(phase)
        name = None
        for result in results:
            layers.add(result)
            if is_pass and name is not None:
                self._passes.passed(name)
            name = result.report.name
        layers.end()
        if not is_pass:
            self._passes.begin(phase)
        if name is not None:
            self._passes.end(name)  # the last call comes before the file has its name: an exception discards the file
        return layers.close()
