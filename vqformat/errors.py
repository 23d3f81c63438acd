"""Every exception that vqformat raises on purpose (SPEC section 1, "Errors")."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VqmError(Exception):
    """Base of all of vqformat's own errors.

    Attributes:
        error_class: The class of SPEC section 1: ``truncated``, ``checksum``, ``limit``, ``unsupported``
            or ``format``; empty where the file is not at fault.
    """

    error_class = ""


class FormatError(VqmError, ValueError):
    """A file breaks a rule of SPEC.md.

    Args:
        message: What was found, what was allowed, in which tensor.
        clause: Id of the rule, such as ``"HDR-001"``.
        offset: Byte of the file where it was found, if known.
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
    """A value exceeds SPEC section 14 or a budget set by the caller."""

    error_class = "limit"


class UnsupportedError(FormatError, NotImplementedError):
    """Well formed, but of a version, chunk type, flag, dtype, stage or coding unknown here."""

    error_class = "unsupported"


class EncodeError(VqmError, ValueError):
    """The input, or what was asked for, cannot be written."""


class ConversionError(VqmError, ValueError):
    """A checkpoint of another format cannot be read or written."""


class TensorNotFoundError(VqmError, KeyError):
    """No tensor has this name."""

    def __init__(self, name: str, names: Iterable[str] = ()) -> None:
        self.name = name
        self._names = names
        super().__init__(name)

    def __str__(self) -> str:
        """The message, with near matches: looked for only when it is shown."""
        near = difflib.get_close_matches(self.name, list(self._names), n=3) if isinstance(self.name, str) else []
        hint = f"; near matches: {', '.join(map(repr, near))}" if near else ""
        return f"no tensor {self.name!r}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return TensorNotFoundError, (self.name, list(self._names))
