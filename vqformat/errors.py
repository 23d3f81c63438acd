"""The exceptions of vqformat (SPEC section 1, "Errors")."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
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
    """No tensor has this name.

    Args:
        name: What was asked for.
        names: Those that there are. The message has similar ones.
    """

    def __init__(self, name: str, names: Iterable[str] = ()) -> None:
        self.name = name
        self._names = names
        super().__init__(name)

    def __str__(self) -> str:
        """The message with similar names. They are searched here, not in ``__init__``: many errors are never shown."""
        names = [name for name in islice(self._names, _MOST_NAMES) if len(name) <= _LONGEST_NAME]
        is_short = isinstance(self.name, str) and len(self.name) <= _LONGEST_NAME
        hint = near_names(self.name, names) if is_short else ""
        return f"no tensor {self.name!r}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return TensorNotFoundError, (self.name, list(self._names))


_NEAR = 3  # names that an error lists
_IN_PATTERN = re.compile(r"\[!?([^]]*)\]|[*?]")  # a wildcard; of a set its characters are kept


def near_names(pattern: str, names: Sequence[str]) -> str:
    """What an error about a name or a pattern that matches nothing says of the names that there are.

    Returns:
        The names that are most alike, or else the first ones; empty if there are none.
    """
    # The whole name, then a part of one, then what is alike a little
    plain = _IN_PATTERN.sub(r"\1", pattern).lower().strip("./")
    known = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(plain, known, n=_NEAR)
    if not near and plain:
        parts = {part: name for name in reversed(names) for part in re.split(r"[./]", name.lower())}
        known |= parts
        near = difflib.get_close_matches(plain, parts, n=_NEAR)
    near = near or difflib.get_close_matches(plain, known, n=_NEAR, cutoff=0.5)
    if near:
        return f"; near matches: {', '.join(repr(known[name]) for name in near)}"
    if not names:
        return "; there are no tensors"
    more = f" and {len(names) - _NEAR:,} more" if len(names) > _NEAR else ""
    return f"; there are {', '.join(map(repr, names[:_NEAR]))}{more}"


_PACKAGES = {"google": "protobuf"}  # module -> package that has it, if the names differ


def missing_package(what: str, package: str, err: ImportError) -> ImportError:
    """The error that something needs a package which cannot be imported. It says how to install what is missing.

    Args:
        what: What needs it, with a verb: ``"GGUF files need"``.
        package: The package. Another one is named if that is what is missing, such as one that the package needs.
        err: What the import raised.
    """
    if not isinstance(err, ModuleNotFoundError):
        return ImportError(f"{what} {package}, which is installed but cannot be imported: {err}")
    module = (err.name or package).partition(".")[0]
    missing = _PACKAGES.get(module, module)
    also = "" if missing == package else f" and {missing}"
    return ImportError(f"{what} {package}{also}; run: pip install {missing}")
