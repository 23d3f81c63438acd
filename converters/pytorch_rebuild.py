"""The calls by which pickles rebuild tensors of PyTorch, arrays of NumPy and objects of Python, and what each gives.

A function here takes the interpreter, the call, its arguments and the keys that lead to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from vqformat.format.checkpoint import NOTHING, Named, join_keys, key_to_json, plain_to_json
from vqformat.format.dtypes import of_array

from .inert_pickle import Call
from .pickled_tensors import Storage, Tensor, attributes_of, exact, name_of_dtype, rebuilt, size_of
from .pytorch_parts import Bare, Compound, LeftOut, bytes_of, dtype_of, fields_of

if TYPE_CHECKING:
    from .pytorch_values import Interpreter

_MAX_STRINGS = 1 << 20  # of an array of strings


def _tensor(arguments: tuple[Any, ...], metadata_at: int, dtype: str | None = None) -> Any:
    found = rebuilt(arguments, metadata_at, dtype)
    return LeftOut("a tensor without a storage that can be read", has_tensors=True) if found is None else found


def tensor_v2(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return _tensor(arguments, 6)


def tensor_v3(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return _tensor(arguments, 7, name_of_dtype(arguments[6]))


def first(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    """Of what wraps a tensor, the tensor."""
    return interpreter.value(arguments[0], keys, is_inside=True)


def parameter_with_state(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    _note_attributes(interpreter, arguments[3:], keys)
    return first(interpreter, call, arguments, keys)


def _note_attributes(interpreter: Interpreter, states: tuple[Any, ...], keys: list[Any]) -> None:
    state = attributes_of(states[0]) if states else None
    found = [key for key in state if isinstance(key, str) and key[:1] != "_"] if isinstance(state, dict) else []
    if found:
        names = ", ".join(repr(key[:80]) for key in found[:4]) + ", …" * (len(found) > 4)
        interpreter.notes.append(f"left out attributes of the tensor {join_keys(keys)!r}: {names}")


def subclass(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    rebuild, kind, inner = arguments[:3]
    found = interpreter.value(Call(rebuild, inner), keys, is_inside=True)
    state = attributes_of(arguments[3]) if len(arguments) > 3 else None
    if isinstance(found, LeftOut) and isinstance(state, dict) and state:
        # A wrapper has no values of its own: tensors among its attributes have them
        found = Named(str(kind)[:300], interpreter.value(state, keys, is_inside=True))
    else:
        _note_attributes(interpreter, arguments[3:], keys)
    if str(kind) not in ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"):
        interpreter.noted.setdefault(str(kind)[:200], []).append(join_keys(keys))
    return found


def quantized(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    values = _tensor(arguments, len(arguments))
    scheme, *rest = arguments[4]
    if isinstance(values, LeftOut):
        return values
    if scheme.name == "per_tensor_affine":
        scale, zero_point = (array_tensor(interpreter, np.array(value, dtype))
                             for value, dtype in zip(rest, "dq", strict=True))  # fmt: skip
        parts = [scheme.name, values, scale, zero_point, None]
    else:
        scales, zero_points, axis = rest
        pair = [interpreter.value(part, keys, is_inside=True) for part in (scales, zero_points)]
        if not all(isinstance(part, Tensor) for part in pair) or type(axis) is not int:
            raise ValueError
        parts = [scheme.name, values, *map(exact, pair), axis]
    return Compound("quantized", parts, ["", ".scale", ".zero_point"])


def sparse(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    layout, data = arguments
    layout = layout.arguments[0] if isinstance(layout, Call) else layout.name
    *tensors, size = data if not isinstance(data[-1], bool) and len(data) in (3, 4) else data[:-1]
    found = [interpreter.value(part, keys, is_inside=True) for part in tensors]
    size = size_of(size)
    if not all(isinstance(part, Tensor) for part in found) or not all(type(n) is int for n in size):
        raise ValueError
    kind = layout.removeprefix("torch.")
    suffixes = [".indices", ""] if kind == "sparse_coo" else [".compressed_indices", ".indices", ""]
    if len(found) != len(suffixes):
        raise ValueError
    # Values first: they have the tensor's own name
    return Compound("sparse", [kind, found[-1], *found[:-1], *size], [suffixes[-1], *suffixes[:-1]])


def attribute(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return LeftOut("a function, a method or an attribute of a class")


def without_values(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return LeftOut("a tensor on the meta device, which has no values")



def array(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    """An array by _reconstruct, which takes its contents as a state."""
    if not isinstance(call.state, tuple) or len(call.state) != 5:
        return LeftOut("an array of NumPy without values")
    _, shape, dtype, is_fortran, data = call.state
    return _array_of(interpreter, dtype, shape, data, order="F" if is_fortran is True else "C", keys=keys)


def array_from_buffer(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    data, dtype, shape, order = arguments[:4]
    if isinstance(data, Call):
        data = data.arguments[0]
    return _array_of(interpreter, dtype, shape, data, order="F" if order == "F" else "C", keys=keys)


def _array_of(
    interpreter: Interpreter, dtype: Any, shape: Any, data: Any, *, order: Any, keys: list[Any]
) -> Any:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError
    if isinstance(data, list):  # Python objects
        values = [interpreter.value(item, [*keys, i], is_inside=True) for i, item in enumerate(data)]
        interpreter.notes.append(f"{join_keys(keys)!r} is an array of Python objects: kept as a list")
        return values if prod(shape) == len(values) else LeftOut("an array of Python objects")
    data = bytes_of(data)
    fields = fields_of(dtype)
    if fields is not None and data is not None and len(data) == prod(shape) * fields.itemsize:
        rows: Any = np.ndarray(shape, fields, data, order=order)
        interpreter.notes.append(f"{join_keys(keys)!r} is an array of NumPy of several fields: kept as a dict of them")
        return Named("numpy.ndarray", {name: array_tensor(interpreter, rows[name]) for name in fields.names or ()})
    found = dtype_of(dtype)
    if data is None or found is None or len(data) != prod(shape) * found.itemsize:
        kind = "a dtype that a .vqm cannot hold" if found is None else "bytes that do not fit its shape"
        return LeftOut(f"an array of NumPy of {kind}", has_tensors=True)
    array: Any = np.ndarray(shape, found, data, order=order)
    if found.kind in "SU":
        if array.size > _MAX_STRINGS:
            return LeftOut("an array of texts that is too large")
        return array.tolist()
    interpreter.noted_arrays.append(join_keys(keys))
    return array_tensor(interpreter, array)


def array_tensor(interpreter: Interpreter, array: Any) -> Tensor:
    """A tensor with the values of an array, and exact if it is a scalar."""
    dtype = of_array(array, "")
    data = np.ascontiguousarray(array, dtype.numpy).tobytes()
    key = f"numpy/{len(interpreter.arrays)}"
    interpreter.arrays[key] = data
    shape = array.shape
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    tensor = Tensor(Storage(key, dtype.name), dtype.name, 0, shape, strides)
    return tensor if array.ndim else exact(tensor)


def scalar(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    """A scalar of NumPy: the plain value that it is."""
    dtype, data = dtype_of(arguments[0]), bytes_of(arguments[1])
    if dtype is None:
        return LeftOut("a scalar of NumPy of a dtype that a .vqm cannot hold")
    if data is None or len(data) != dtype.itemsize:
        raise ValueError
    value = np.ndarray((), dtype, data)[()]
    plain = value.item() if hasattr(value, "item") else value
    return plain if plain_to_json(plain) is not NOTHING else float(value)



def ordered(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    found: OrderedDict[Any, Any] = OrderedDict()
    interpreter.made[id(call)] = found  # before its parts: they may contain it
    items = dict(call.items)
    if arguments and isinstance(arguments[0], list):  # as Python 2 pickled it
        items = {pair[0]: pair[1] for pair in arguments[0] if isinstance(pair, (list, tuple)) and len(pair) == 2
                 and key_to_json(pair[0]) is not NOTHING} | items  # fmt: skip
    interpreter.fill(found, items, keys, is_inside=False)
    state = attributes_of(call.state)
    metadata = state.get("_metadata") if isinstance(state, dict) else None
    if metadata is not None:
        value = interpreter.value(metadata, [*keys, "_metadata"], is_inside=True)
        value = value.value if isinstance(value, Named) else value
        if isinstance(value, dict):
            found._metadata = value  # type: ignore[attr-defined]
    return found


def default_dict(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    found: dict[Any, Any] = {}
    interpreter.made[id(call)] = found
    items = call.items or (arguments[0] if arguments and isinstance(arguments[0], dict) else {})
    interpreter.fill(found, items, keys, is_inside=False)
    return found


def deque(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    items = call.elements or (arguments[0] if arguments and isinstance(arguments[0], list) else [])
    return [interpreter.value(item, [*keys, i], is_inside=True) for i, item in enumerate(items)]


def set_of(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    items = [*call.elements, *(arguments[0] if arguments and isinstance(arguments[0], list) else [])]
    values = [interpreter.value(item, keys, is_inside=True) for item in items]
    if any(key_to_json(value) is NOTHING for value in values):
        return Named("builtins.set", values)
    return set(values)


def size(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return size_of(call)


def device(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    kind, *index = arguments
    if not isinstance(kind, str) or not all(type(n) is int for n in index):
        raise ValueError
    return Bare("device", ":".join([kind, *map(str, index)]))


def encoded(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    data = bytes_of(call)
    if data is None:
        raise ValueError
    return interpreter.value(data, keys, is_inside=True)


def byte_stream(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    state = call.state[0] if isinstance(call.state, tuple) and call.state else next(iter(arguments), b"")
    data = bytes_of(state)
    if data is None:
        raise ValueError
    interpreter.notes.append(f"{join_keys(keys)!r} is a file in memory: kept as bytes")
    return interpreter.value(data, keys, is_inside=True)


def complex_of(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    return complex(*arguments)


def path_of(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    if not all(isinstance(part, str) for part in arguments):
        raise ValueError
    interpreter.notes.append(f"{join_keys(keys)!r} is a path: kept as text")
    return str(PurePosixPath(*arguments))


def text_of(interpreter: Interpreter, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise ValueError
    return arguments[0]


_Known = Callable[["Interpreter", Call, tuple[Any, ...], list[Any]], Any]
_UTILS = "torch._utils"
KNOWN: dict[tuple[str, str], _Known] = {
    (_UTILS, "_rebuild_tensor"): tensor_v2,
    (_UTILS, "_rebuild_tensor_v2"): tensor_v2,
    (_UTILS, "_rebuild_tensor_v3"): tensor_v3,
    (_UTILS, "_rebuild_parameter"): first,
    (_UTILS, "_rebuild_parameter_with_state"): parameter_with_state,
    (_UTILS, "_rebuild_device_tensor_from_numpy"): first,
    (_UTILS, "_rebuild_xla_tensor"): first,
    (_UTILS, "_rebuild_device_tensor_from_cpu_tensor"): first,
    (_UTILS, "_rebuild_qtensor"): quantized,
    (_UTILS, "_rebuild_sparse_tensor"): sparse,
    (_UTILS, "_rebuild_sparse_csr_tensor"): sparse,
    (_UTILS, "_rebuild_meta_tensor_no_storage"): without_values,
    ("torch._tensor", "_rebuild_from_type_v2"): subclass,
    ("torch.nn.parameter", "Parameter"): lambda interpreter, call, arguments, keys: (
        first(interpreter, call, arguments, keys) if arguments else NOTHING),
    ("torch", "Size"): size,
    ("torch", "device"): device,
    ("torch.torch_version", "TorchVersion"): text_of,
    ("builtins", "getattr"): attribute,
    ("__builtin__", "getattr"): attribute,
    ("collections", "OrderedDict"): ordered,
    ("collections", "defaultdict"): default_dict,
    ("collections", "Counter"): default_dict,
    ("collections", "deque"): deque,
    ("_codecs", "encode"): encoded,
    ("_io", "BytesIO"): byte_stream,
    ("io", "BytesIO"): byte_stream,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): array_from_buffer for core in ("core", "_core")},
    **{(module, kind): set_of for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    **{(module, kind): encoded for module in ("builtins", "__builtin__")
       for kind in ("bytes", "bytearray")},
    **{(module, "complex"): complex_of for module in ("builtins", "__builtin__")},
    **{(module, f"{pure}{kind}Path"): path_of for module in ("pathlib", "pathlib._local")
       for pure in ("", "Pure") for kind in ("Posix", "Windows")},
}  # fmt: skip
