"""A task: what is to be done with one tensor, and all that the result depends on, so that any process can do it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native.crc import crc32
from .equal_tensors import crc_of_pieces
from .layers import Result
from .options import Options
from .outcome_file import is_whole, packed, write
from .plan import Look, Looked, Plan, PlanPart
from .section_store import SectionStore
from .shared_codebooks import SharedCodebooks
from .small.draft import Drafted
from .source import SourceTensor, native
from .tensor import TensorEncoder, TensorState

Array = npt.NDArray[Any]
# Opens a source again, in any process: returns its tensors. It is compared with the one that a thread has open.
# Raises SourceAbsentError if the same source is not to be found there.
Opener = Callable[[], Sequence[SourceTensor]]


class SourceAbsentError(Exception):
    """A worker cannot open the source: it is on another machine."""


@dataclass(frozen=True)
class Encoding:
    """Encode the tensor with a relative step, see ``TensorEncoder.encode``."""

    step: float


@dataclass(frozen=True)
class Draft:
    """Make a draft of the tensor with a step, see ``TensorEncoder.draft``."""

    step: float


Job = Encoding | Draft | Look


@dataclass(frozen=True)
class Held:
    """The array of a tensor that is sent with its task."""

    array: Array

    def __call__(self) -> Array:
        return self.array


@dataclass(frozen=True)
class Reopened:
    """A tensor of a source that a worker opens itself.

    Attributes:
        number: Of the tensor in the source.
    """

    opener: Opener
    number: int

    def find(self, tensor: SourceTensor) -> SourceTensor:
        """The tensor as the source has it.

        Raises:
            SourceAbsentError: The source is not there, or another one is.
        """
        if getattr(_opened, "opener", None) != self.opener:
            _opened.tensors, _opened.opener = self.opener(), self.opener
        tensors = _opened.tensors
        found = tensors[self.number] if self.number < len(tensors) else None
        if found is None or (found.name, found.dtype, found.shape) != (tensor.name, tensor.dtype, tensor.shape):
            raise SourceAbsentError
        return replace(tensor, load=found.load, form=found.form)

    def __call__(self) -> Array:
        raise AssertionError("a tensor is to be found in its source first")


ABSENT = "absent"  # in place of the name of a file
_opened = threading.local()  # threads may not share a file


@dataclass(frozen=True)
class Task:
    """A task for a worker.

    Attributes:
        tensor: The tensor; for another process its ``load`` is a ``Held`` or a ``Reopened``.
        options: The options of the encoder, without what concerns other tensors.
        part: The part of the plan that concerns the tensor.
        state: What the encoder remembers of it.
        is_waiting: Whether it is to be compared with other tensors, by their checksums.
        folder: Folder into which the outcome is written; None if it is to be returned.
        key: Digest of all of this but the values of the tensor; None if outcomes of an earlier run are not used.
        number: Of the task in this run.
        temporary: Folder of temporary files; None for the system's.
    """

    tensor: SourceTensor
    options: Options
    part: PlanPart
    state: TensorState
    job: Job
    is_waiting: bool
    folder: str | None
    key: str | None
    number: int
    temporary: str | None


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        value: A ``Result``, a ``Looked`` or a ``Drafted``.
        state: What is to be remembered of the tensor.
        rejected: Why the method of its wildcard cannot code it; None if it can.
        crc: See ``equal_tensors.crc_of_pieces``; None if the tensor need not be compared.
    """

    value: Result | Looked | Drafted
    state: TensorState
    rejected: str | None
    crc: int | None


@dataclass
class _Once:
    """Gives an array that is in memory to the first who asks for it, and keeps no reference to it."""

    again: Callable[[], Array]
    arrays: list[Array] = field(default_factory=list)

    def __call__(self) -> Array:
        return self.arrays.pop() if self.arrays else self.again()


def do(job: Job, tensor: SourceTensor, encoder: TensorEncoder) -> Result | Looked | Drafted:
    """Do a job. The tensor has been found to be no copy of another one, or the encoder finds that out."""
    match job:
        case Encoding(step):
            return encoder.encode(tensor, step)
        case Draft(step):
            return encoder.draft(tensor, step)
        case Look():
            return job.at(tensor, tensor.load())


def run(task: Task) -> Any:
    """Run a task.

    Returns:
        The name of a file with the outcome; or, without a folder, the outcome as ``outcome_file.packed`` gives it; or
        ``ABSENT`` if the worker cannot open the source.
    """
    tensor = task.tensor
    if isinstance(tensor.load, Reopened):
        try:
            tensor = tensor.load.find(tensor)
        except SourceAbsentError:
            return ABSENT
    name = f"{task.number}"
    crc = None
    if task.is_waiting or task.key is not None:
        array = native(tensor)
        if task.is_waiting:
            crc = crc_of_pieces(tensor, array)
        if task.key is not None:
            name = outcome_name(task.key, tensor, array)
            if task.folder is not None and is_whole(task.folder, name):
                return name
        tensor = replace(tensor, load=_Once(tensor.load, [array]))
        del array
    plan = Plan.of_part(tensor, task.options, task.part)
    encoder = TensorEncoder(plan, SharedCodebooks(), SectionStore(task.temporary).collect,
                            task.state.hysteresis_strength)  # fmt: skip
    encoder.resume(tensor.name, task.state)
    value = do(task.job, tensor, encoder)
    outcome = Outcome(value, encoder.state(tensor.name), plan.rejected.get(tensor.name), crc)
    if task.folder is None:
        return packed(outcome)
    write(outcome, task.folder, name)
    return name


def outcome_name(key: str, tensor: SourceTensor, array: Array) -> str:
    """The name of the file of an outcome, which depends on the values of the tensor, too.

    Args:
        key: See ``Task``.
        array: As ``native`` gives it.
    """
    data = array if tensor.form is None else np.ascontiguousarray(tensor.form.load())
    crc = crc32(data.reshape(-1).view(np.uint8).data)
    return hashlib.sha256(f"{key} {data.nbytes} {crc}".encode()).hexdigest()[:40]
