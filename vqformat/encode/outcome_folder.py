"""The folder beside a file that is being written, in which finished tensors are kept until the file is complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import EncodeError
from .worker_pool import WorkersLostError

SUFFIX = ".part"  # of the name of the folder, after that of the file
LARGE_NBYTES = 1 << 26  # from this size on, tensors are kept without being asked for
_OURS = re.compile(r"[0-9a-f]{40}(\.\d+\.tmp)?")


@dataclass(frozen=True)
class KeptOutcomes:
    """The folder.

    Attributes:
        path: Its path; None if nothing is kept.
        notes: What a user should know of a folder that was there before.
    """

    path: str | None = None
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def kept_outcomes(target: object, nbytes: int, *, resume: bool | None) -> Iterator[KeptOutcomes]:
    """Context in which finished tensors are kept. The folder is removed at the end.

    It stays if the work is stopped, and if it fails for a reason that may be gone later, such as a full disk.

    Args:
        target: The file. Nothing is kept for a stream.
        nbytes: Bytes of all tensors.
        resume: Whether to use what an earlier run has kept; None to keep tensors of a large model, for a later run;
            False to keep nothing.

    Raises:
        EncodeError: There is a folder of this name, and it is no such folder; or ``resume`` is asked for a stream.
    """
    if not isinstance(target, (str, os.PathLike)):
        if resume:
            raise EncodeError("only a file that has a name can be resumed")
        yield KeptOutcomes()
        return
    path = os.path.abspath(f"{os.fspath(target)}{SUFFIX}")
    notes = []
    if os.path.lexists(path) and not resume:
        _remove(path)
        notes.append(f"removed {path!r}, which an earlier conversion had left when it was stopped; it could have been"
                     " resumed")  # fmt: skip
    if not resume and (resume is not None or nbytes < LARGE_NBYTES):
        yield KeptOutcomes(None, tuple(notes))
        return
    if os.path.lexists(path):
        _check(path)
    os.makedirs(path, exist_ok=True)
    try:
        yield KeptOutcomes(path, tuple(notes))
    except WorkersLostError:
        raise
    except EncodeError:
        _remove(path)
        raise
    _remove(path)


def _check(path: str) -> None:
    """Raise EncodeError unless a folder has been made here."""
    is_ours = os.path.isdir(path) and not os.path.islink(path) and all(map(_OURS.fullmatch, os.listdir(path)))
    if not is_ours:
        raise EncodeError(f"{path!r} is in the way: it is no folder of a conversion that was stopped")


def _remove(path: str) -> None:
    _check(path)
    shutil.rmtree(path)
