"""The exceptions of vqformat (SPEC section 1, "Errors")."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

_MOST_NAMES, _LONGEST_NAME = 5000, 128  # that are searched for similar ones: the time is that of all pairs of letters


class VqmError(Exception):
    """Base class of the exceptions of vqformat.

    Attributes:
        error_class: The error class of SPEC section 1: ``truncated``, ``checksum``, ``limit``, ``unsupported`` or
            ``format``. Empty for an error that is not one of a ``.vqm`` file.
    """

    error_class = ""


class FormatError(VqmError, ValueError):
    """A file breaks a rule of SPEC.md.

    Args:
        message: The tensor, what was found, and what is allowed.
        clause: Id of the rule, such as ``"HDR-001"``.
        offset: Offset in the file at which it was found; None if unknown.
    """

    error_class = "format"

    def __init__(self, message: str, *, clause: str = "", offset: int | None = None) -> None:
        self.message = message
        self.clause = clause
        self.offset = offset
        super().__init__(message)

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.message}{where}" + (f" [{self.clause}]" if self.clause else "")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.clause, self.offset)


def _rebuild(cls: type[FormatError], message: str, clause: str, offset: int | None) -> FormatError:
    return cls(message, clause=clause, offset=offset)


class TruncatedError(FormatError):
    """The file ends before something that it announces."""

    error_class = "truncated"


class ChecksumError(FormatError):
    """Bytes differ from their CRC-32 or SHA-256."""

    error_class = "checksum"


class LimitError(FormatError):
    """A value exceeds a limit of SPEC section 14, or a limit that the caller has set."""

    error_class = "limit"


class UnsupportedError(FormatError, NotImplementedError):
    """A file has a version, chunk type, flag, dtype, stage or coding that this reader does not support."""

    error_class = "unsupported"


class EncodeError(VqmError, ValueError):
    """A tensor or the metadata cannot be written, or the options cannot be met."""


class ConversionError(VqmError, ValueError):
    """A checkpoint of another format cannot be read or written."""


class TensorNotFoundError(VqmError, KeyError):
    """No tensor has this name."""

    def __init__(self, name: str, names: Iterable[str] = ()) -> None:
        self.name = name
        self._names = names
        super().__init__(name)

    def __str__(self) -> str:
        """The message with similar names. They are searched here, not in ``__init__``: many errors are never shown."""
        names = [name for name in islice(self._names, _MOST_NAMES) if len(name) <= _LONGEST_NAME]
        is_short = isinstance(self.name, str) and len(self.name) <= _LONGEST_NAME
        near = difflib.get_close_matches(self.name, names, n=3) if is_short else []
        hint = f"; near matches: {', '.join(map(repr, near))}" if near else ""
        return f"no tensor {self.name!r}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return TensorNotFoundError, (self.name, list(self._names))
