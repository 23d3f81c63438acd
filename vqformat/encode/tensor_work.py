"""The work on the tensors of a model, one after another: done here, or by workers; or found done by an earlier run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EncodeError
from ..version import __version__
from . import outcome_file
from .calibration import Calibration, TensorStatistics
from .methods import quantize
from .plan import Look, Plan, PlanPart
from .progress import Passes
from .section_store import SectionStore
from .shared_codebooks import SharedCodebooks
from .small.small import FEEDBACK_ROUNDS
from .source import SourceTensor, native
from .task import ABSENT, Draft, Encoding, Held, Job, Opener, Outcome, Reopened, Task, do, outcome_name, run
from .tensor import TensorEncoder
from .worker_pool import WorkerPool

_SMALLEST = 1 << 12  # elements; a smaller tensor takes a worker longer to get than this process to encode


@dataclass(frozen=True)
class Workplace:
    """Where the work is done.

    Attributes:
        pool: The workers; None if this process does all work.
        opener: Opens the source in a worker; None if arrays are sent.
        outcomes: Folder of the outcomes of an earlier run and of this one, which are kept; None if none are.
        temporary: Folder of temporary files; None for the system's.
    """

    pool: WorkerPool | None = None
    opener: Opener | None = None
    outcomes: str | None = None
    temporary: str | None = None


HERE = Workplace()


class TensorWork:
    """Does jobs for the tensors of a model, in order, and tells of their progress.

    What needs other tensors stays in this process: copies of tensors, codebooks that tensors share, and what is
    remembered from one step of a search to the next. The outcomes are the same wherever jobs are done.

    Attributes:
        encoder: Encodes tensors in this process.
    """

    def __init__(self, plan: Plan, books: SharedCodebooks, passes: Passes, place: Workplace) -> None:
        self._plan, self._passes, self._place = plan, passes, place
        self.encoder = TensorEncoder(plan, books, SectionStore(place.temporary).collect)
        self._numbers = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
        self._opener = place.opener
        self._options = replace(plan.options, progress=None, correct=None, calibration=None, workers=1, executor=None)
        self._calibrated: dict[str, str] = {}  # digests of what a calibration knows of tensors
        self._keys: dict[str, str] = {}  # of the last task of each tensor, on which its state depends
        self._n_tasks = 0
        self._folder = place.outcomes or (place.pool.folder if place.pool is not None else None)
        self._is_remote = place.pool is not None and place.pool.folder is None

    def values(self, jobs: Iterable[tuple[SourceTensor, Job | None]]) -> Iterator[tuple[SourceTensor, Any]]:
        """Do jobs.

        Returns:
            For each tensor, in order: a ``Result`` for an ``Encoding``; a ``Drafted`` for a ``Draft``; a ``Looked`` for
            a ``Look``, or None if the tensor is a copy; None without a job.
        """
        if self._place.pool is None:
            for tensor, job in jobs:
                yield tensor, self._here(tensor, job)
            return
        items = (((tensor, job), self._task(tensor, job)) for tensor, job in jobs)
        with contextlib.closing(self._place.pool.outcomes(items, self._tell)) as found:
            for (tensor, job), raw in found:
                if job is None or raw is None:
                    yield tensor, self._here(tensor, job)
                else:
                    yield tensor, self._taken(tensor, job, raw)

    def _tell(self, item: tuple[SourceTensor, Job | None]) -> None:
        self._passes.passed(item[0].name)

    def _here(self, tensor: SourceTensor, job: Job | None) -> Any:
        """Do a job in this process."""
        is_fed_back = isinstance(job, Encoding) and self._plan.options.calibration is not None
        with self._passes.tensor(tensor.name, times=FEEDBACK_ROUNDS if is_fed_back else 1):
            if job is None:
                return None
            if self._place.pool is None and self._place.outcomes is not None and self._is_task(tensor, job):
                return self._taken(tensor, job, run(self._task_for(tensor, job)))
            if isinstance(job, Look):
                array = native(tensor) if self._plan.equal.is_waiting(tensor) else tensor.load()
                return None if self._plan.equal.find(tensor, array) is not None else job.at(tensor, array)
            return do(job, tensor, self.encoder)

    def _is_task(self, tensor: SourceTensor, job: Job) -> bool:
        """Whether a job needs no other tensor, and is large enough."""
        if tensor.alias_of is not None or tensor.name in self._plan.equal.targets or tensor.n_elements < _SMALLEST:
            return False
        if isinstance(job, Look):
            return self._place.pool is not None
        method = self._plan.method(tensor)
        return method is None or not quantize.shared_name(method)

    def _task(self, tensor: SourceTensor, job: Job | None) -> Task | str | None:
        """What workers are to do; None if the job is for this process, or the name of its outcome if that is known."""
        if job is None or not self._is_task(tensor, job) or (self._opener is None and tensor.form is not None):
            return None
        task = self._task_for(tensor, job)
        if self._is_remote and task.key is not None:  # the worker may not see the folder
            name = outcome_name(task.key, tensor, native(tensor))
            if outcome_file.is_whole(self._folder or "", name):
                return name
        return self._portable(task)

    def _portable(self, task: Task) -> Task:
        """A task for another process."""
        tensor = task.tensor
        load = Held(native(tensor)) if self._opener is None else Reopened(self._opener, self._numbers[tensor.name])
        task = replace(task, tensor=replace(tensor, load=load, form=None))
        return replace(task, folder=None, key=None, temporary=None) if self._is_remote else task

    def _task_for(self, tensor: SourceTensor, job: Job) -> Task:
        part, options = self._plan.part(tensor), self._options
        calibration = self._plan.options.calibration
        if calibration is not None and tensor.name in calibration.tensors:
            known = calibration.tensors[tensor.name]
            if part.has_factors:
                known = replace(known, moments=None)
            options = replace(options, calibration=Calibration({tensor.name: known}))
        is_kept = self._place.outcomes is not None and not isinstance(job, Look)
        self._n_tasks += 1
        return Task(tensor, options, part, self.encoder.state(tensor.name), job,
                    is_waiting=self._plan.equal.is_waiting(tensor) and not isinstance(job, Draft),
                    folder=None if isinstance(job, Look) else self._folder,
                    key=self._key(tensor, job, part) if is_kept else None, number=self._n_tasks,
                    temporary=self._place.temporary)  # fmt: skip

    def _taken(self, tensor: SourceTensor, job: Job, raw: Any) -> Any:
        """The value of an outcome; what is to be remembered of the tensor is taken over."""
        outcome = self._outcome(tensor, job, raw)
        if outcome.crc is not None and self._plan.equal.find(tensor, crc=outcome.crc) is not None:
            return self.encoder.as_alias(tensor) if isinstance(job, Encoding) else None
        if not isinstance(job, Look):
            self.encoder.resume(tensor.name, outcome.state)
            if outcome.rejected is not None:
                self._plan.rejected[tensor.name] = outcome.rejected
        return outcome.value

    def _outcome(self, tensor: SourceTensor, job: Job, raw: Any) -> Outcome:
        pool, kept = self._place.pool, self._place.outcomes
        if raw == ABSENT and pool is not None:
            if not self._is_remote or tensor.form is not None:
                raise EncodeError(f"tensor {tensor.name!r}: its source was changed, moved or removed meanwhile")
            self._opener = None
            raw = pool.run(self._portable(self._task_for(tensor, job)))
        if isinstance(raw, str):
            found: Outcome = outcome_file.read(self._folder or "", raw, is_kept=kept is not None)
            return found
        if kept is not None and not isinstance(job, Look):
            key = self._keys[tensor.name]
            outcome_file.write_packed(raw, kept, outcome_name(key, tensor, native(tensor)))
        unpacked: Outcome = outcome_file.unpacked(raw)
        return unpacked

    def _key(self, tensor: SourceTensor, job: Job, part: PlanPart) -> str:
        """A digest of all on which an outcome depends but the values of the tensor."""
        steps = sorted((name, value) for name, value in vars(part.steps).items() if name != "_statistics")
        text = repr((__version__, self._options, _described(tensor), job,
                     self._plan.method(tensor), part.is_constant, part.rejected, part.statistics, steps,
                     self._calibration_digest(tensor.name), self._keys.get(tensor.name)))  # fmt: skip
        self._keys[tensor.name] = hashlib.sha256(text.encode()).hexdigest()
        return self._keys[tensor.name]

    def _calibration_digest(self, name: str) -> str:
        """A digest of what the calibration knows of a tensor; empty if there is none."""
        calibration = self._plan.options.calibration
        if calibration is None:
            return ""
        if name not in self._calibrated:
            self._calibrated[name] = _digest(calibration.tensors.get(name, TensorStatistics()))
        return self._calibrated[name]


def _described(tensor: SourceTensor) -> tuple[object, ...]:
    """All that is known of a tensor but its values."""
    values = [getattr(tensor, field.name) for field in fields(tensor) if field.name not in ("load", "form")]
    return *values, None if tensor.form is None else tensor.form.name


def _digest(known: TensorStatistics) -> str:
    found = hashlib.sha256(repr((known.importance, known.n_observed)).encode())
    arrays: list[npt.NDArray[Any]] = [block for group in known.moments or () for block in group]
    if known.row_counts is not None:
        arrays.append(known.row_counts)
    for array in arrays:
        found.update(repr((array.dtype.str, array.shape)).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
