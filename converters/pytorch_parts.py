"""What a checkpoint has besides plain values and containers, and the forms in which pickles have common things."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inert_pickle import Call, Global
from .pickled_tensors import TORCH_DTYPES

_MAX_FIELDS = 256


class LeftOut:
    """Stands for what a ``.vqm`` cannot keep.

    Attributes:
        what: In a few words.
        has_tensors: Whether a user would miss numbers.
    """

    def __init__(self, what: str, *, has_tensors: bool = False) -> None:
        self.what, self.has_tensors = what[:300], has_tensors


class Compound:
    """A tensor in several parts, quantized or sparse.

    Or a long list of numbers, text or bytes, which is stored as a tensor.

    Attributes:
        tag: Of SPEC section 18.
        parts: The content of the tag: plain values, and tensors, the first of which has the compound's own name.
        suffixes: Of the names of the tensors in ``parts``, in order.
        is_plain: Whether this is no tensor for PyTorch.
    """

    def __init__(self, tag: str, parts: list[Any], suffixes: list[str]) -> None:
        self.tag, self.parts, self.suffixes = tag, parts, suffixes
        self.is_plain = tag in ("numbers", "long_text", "long_bytes")


class Bare:
    """Stands for an object of PyTorch that is no tensor: a dtype or a device.

    Attributes:
        tag: Of SPEC section 18.
        text: The content of the tag.
    """

    def __init__(self, tag: str, text: str) -> None:
        self.tag, self.text = tag, text


def unwrapped(call: Call) -> Call:
    """Calls of the functions that make an object of a class that is their argument, as calls of the class."""
    function, arguments = call.function, call.arguments
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        return call
    made = call
    name = (function.module, function.name)
    if name in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")) and len(arguments) == 3:
        base = arguments[2]
        made = Call(arguments[0], ())
        made.items = dict(base) if isinstance(base, dict) else {}
        made.elements = list(base) if isinstance(base, (list, tuple)) else []
    elif name in (("copyreg", "__newobj__"), ("copy_reg", "__newobj__")) and arguments:
        made = Call(arguments[0], arguments[1:])
    if made is not call:
        made.state = call.state
        made.items.update(call.items)
        made.elements.extend(call.elements)
    return made


def numbers_of(values: list[Any]) -> np.ndarray[Any, Any] | None:
    """An array of float64 or int64 with the values of a list; None if it has others."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return np.array(values, np.float64)
    if kinds == {int} and min(values) >= -(1 << 63) and max(values) < 1 << 63:
        return np.array(values, np.int64)
    return None


def bytes_of(value: Any) -> bytes | None:
    """Bytes, also where a pickle has them as a text to be encoded."""
    if isinstance(value, Call) and isinstance(value.function, Global) and isinstance(value.arguments, tuple):
        if value.function.name in ("bytes", "bytearray") and not value.arguments:
            return b""
        value, *encoding = value.arguments
        if isinstance(value, Call) and value.function is not None and str(value.function) == "_codecs.encode":
            return bytes_of(value)
        if isinstance(value, str) and encoding in (["latin1"], ["latin-1"]):
            return value.encode("latin-1")
    if isinstance(value, str):  # of Python 2
        return value.encode("latin-1")
    return value if isinstance(value, bytes) else None


def dtype_of(value: Any) -> np.dtype[Any] | None:
    """The dtype of NumPy that a pickle has; None if it is of Python objects, or of several fields."""
    if not isinstance(value, Call) or not isinstance(value.function, Global) or value.function.name != "dtype":
        return None
    code = value.arguments[0]
    if isinstance(code, Global):  # of ml_dtypes
        import ml_dtypes

        known = ("bfloat16", *(name for name in TORCH_DTYPES if name.startswith("float8")))
        return np.dtype(getattr(ml_dtypes, code.name)) if code.module == "ml_dtypes" and code.name in known else None
    if not isinstance(code, str) or len(code) > 12 or not code[:1].isalpha() or code[0] not in "biufcSU":
        return None
    state = value.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else ""
    return np.dtype(order + code)


def fields_of(value: Any) -> np.dtype[Any] | None:
    """The dtype of NumPy of several fields that a pickle has; None if it is another, or if a field is no number."""
    state = value.state if isinstance(value, Call) and isinstance(value.function, Global) else None
    if not isinstance(state, tuple) or len(state) < 6 or not isinstance(state[4], dict) or len(state[4]) > _MAX_FIELDS:
        return None
    formats: list[np.dtype[Any] | None] = []
    offsets = []
    for field in state[4].values():
        if not isinstance(field, tuple) or len(field) < 2 or type(field[1]) is not int:
            return None
        formats.append(dtype_of(field[0]))
        offsets.append(field[1])
    if not all(isinstance(name, str) for name in state[4]) or any(
            found is None or found.kind not in "biufc" for found in formats):  # fmt: skip
        return None
    try:
        return np.dtype({"names": list(state[4]), "formats": formats, "offsets": offsets, "itemsize": state[5]})
    except (ValueError, TypeError, OverflowError):
        return None
