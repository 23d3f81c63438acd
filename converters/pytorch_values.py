"""What the placeholders of a checkpoint's pickle stand for: tensors, containers and plain values; objects, as far as
their parts can be told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from vqformat.errors import ConversionError
from vqformat.format.checkpoint import MAX_DEPTH, NOTHING, Named, join_keys, key_to_json, plain_to_json

from .inert_pickle import Call, Global, Persistent
from .pytorch_storage import (
    TORCH_DTYPES,
    Storage,
    Tensor,
    brief,
    exact,
    size_of_storage,
    storage_of,
    tensor_in,
)

_MAX_STRINGS = 1 << 20  # of an array of strings
_MAX_MODULES = 1 << 16  # in one; those that are shared could make 2^n names
_LONG_LIST = 4096  # numbers: such a list is stored as a tensor

# Modules whose functions no checkpoint calls: whoever wants one called wants to run code
_HOSTILE_MODULES = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "commands", "webbrowser", "ctypes",
    "importlib", "code", "codeop", "marshal", "asyncio.subprocess", "multiprocessing.util", "pickle", "_pickle",
})  # fmt: skip
_HOSTILE_BUILTINS = frozenset({"eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint"})


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

    Or a long list of numbers, which is stored as a tensor.

    Attributes:
        tag: Of SPEC section 18.
        parts: The content of the tag: plain values, and tensors, the first of which has the compound's own name.
        suffixes: Of the names of the tensors in ``parts``, in order.
    """

    def __init__(self, tag: str, parts: list[Any], suffixes: list[str]) -> None:
        self.tag, self.parts, self.suffixes = tag, parts, suffixes


class Bare:
    """Stands for an object of PyTorch that is no tensor: a dtype or a device.

    Attributes:
        tag: Of SPEC section 18.
        text: The content of the tag.
    """

    def __init__(self, tag: str, text: str) -> None:
        self.tag, self.text = tag, text


class HostileError(Exception):
    """A checkpoint would run code; the message names it."""


class Interpreter:
    """Makes values of placeholders; the same placeholder gives the same value.

    Attributes:
        arrays: Bytes of the arrays of NumPy, by the key of the storage that stands for them.
        notes: What became something else.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, bytes] = {}
        self.notes: list[str] = []
        self._made: dict[int, Any] = {}  # by the id of the placeholder or container
        self._kept: list[Any] = []  # so that no id is given again
        self._noted: dict[str, list[str]] = {}  # class -> where its objects are
        self._n_modules = 0

    def interpret(self, root: Any) -> Any:
        """The checkpoint.

        Raises:
            ConversionError: It is nested deeper than ``MAX_DEPTH``.
            HostileError: It would run code.
        """
        try:
            value = self._value(root, [], is_inside=False)
        except RecursionError as err:
            raise ConversionError(f"nested deeper than {MAX_DEPTH} levels") from err
        for name, places in self._noted.items():
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            self.notes.append(f"kept the parts of {', '.join(map(repr, places[:3]))}{more}, without the class {name}")
        return value

    def _value(self, value: Any, keys: list[Any], *, is_inside: bool) -> Any:
        """The value of a placeholder.

        Args:
            is_inside: Whether this is a part of an object; such parts may be nested endlessly, and are left out then.
        """
        if isinstance(value, Global):
            return self._global(value)
        if plain_to_json(value) is not NOTHING:
            return value
        if len(keys) >= MAX_DEPTH:
            if is_inside:
                return LeftOut(f"nested deeper than {MAX_DEPTH} levels")
            raise ConversionError(f"nested deeper than {MAX_DEPTH} levels")
        made = self._made.get(id(value), NOTHING)
        if made is not NOTHING:
            return made
        self._kept.append(value)
        if isinstance(value, list) and len(value) >= _LONG_LIST and (numbers := _numbers(value)) is not None:
            found = Compound("numbers", [exact(self._array(numbers))], [""])
            self._made[id(value)] = found
            return found
        if isinstance(value, (dict, list)):
            container: Any = {} if isinstance(value, dict) else []
            self._made[id(value)] = container  # before its parts: they may contain it
            if isinstance(value, dict):
                self._fill(container, value, keys, is_inside=is_inside)
            else:
                container.extend(self._value(item, [*keys, i], is_inside=is_inside) for i, item in enumerate(value))
            return container
        self._made[id(value)] = LeftOut("an object or tuple that contains itself")
        made = self._other(value, keys, is_inside=is_inside)
        self._made[id(value)] = made
        return made

    def _other(self, value: Any, keys: list[Any], *, is_inside: bool) -> Any:
        if isinstance(value, tuple):
            return tuple([self._value(item, [*keys, i], is_inside=is_inside) for i, item in enumerate(value)])
        if isinstance(value, Persistent):
            storage = storage_of(value)
            if storage is None:
                return LeftOut("what lies in another file")
            size = size_of_storage(value)
            return tensor_in(storage, 0, (size,), (1,))
        if isinstance(value, Call):
            return self._call(value, keys, is_inside=is_inside)
        return LeftOut(f"a {type(value).__name__} that is too large")

    def _fill(self, into: dict[Any, Any], items: dict[Any, Any], keys: list[Any], *, is_inside: bool) -> None:
        for key, item in items.items():
            plain = key
            if key_to_json(key) is NOTHING:
                plain = self._key(key, into)
            into[plain] = self._value(item, [*keys, plain], is_inside=is_inside)

    def _key(self, key: Any, taken: dict[Any, Any]) -> Any:
        """What stands for a key that is no plain value: the plain value that it is, or a text."""
        plain = self._value(key, [], is_inside=True)
        if key_to_json(plain) is not NOTHING and plain not in taken:
            return plain
        what = str(key.function) if isinstance(key, Call) else str(key) if isinstance(key, Global) else brief(key)
        text, n = what[:200], 2
        while text in taken:
            text, n = f"{what[:200]}#{n}", n + 1
        self.notes.append(f"the key {text!r} stands for an object")
        return text

    def _global(self, value: Global) -> Any:
        if value.module == "torch" and value.name in TORCH_DTYPES:
            return Bare("dtype", value.name)
        _check_harmless(value)
        return LeftOut(f"the class or function {value}")

    # Objects

    def _call(self, call: Call, keys: list[Any], *, is_inside: bool) -> Any:
        call = _unwrapped(call)
        function = call.function
        if not isinstance(function, Global):
            return LeftOut("the result of a computation")
        _check_harmless(function)
        arguments = call.arguments if isinstance(call.arguments, tuple) else ()
        known = _KNOWN.get((function.module, function.name))
        if known is not None:
            try:
                found = known(self, call, arguments, keys)
            except (ValueError, TypeError, IndexError, OverflowError, LookupError, UnicodeError, AttributeError):
                found = LeftOut(f"a {function} that is not as it should be", has_tensors=True)
            if found is not NOTHING:
                return found
        state = _attributes(call.state)
        if isinstance(state, dict) and isinstance(_attributes(state.get("_parameters")), dict):
            return self._module(function, state, keys)
        return self._object(function, call, state, arguments, keys)

    def _object(self, function: Global, call: Call, state: Any, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        """What can be told of an object of any class."""
        value: Any
        if call.items:
            value = {}
            self._fill(value, call.items, keys, is_inside=True)
        elif call.elements:
            value = [self._value(item, [*keys, i], is_inside=True) for i, item in enumerate(call.elements)]
        elif isinstance(state, dict) and state:
            value = {}
            self._fill(value, state, keys, is_inside=True)
        elif arguments and not any(isinstance(part, (Call, Global)) and isinstance(
                self._value(part, keys, is_inside=True), LeftOut) for part in arguments):  # fmt: skip
            value = tuple([self._value(item, [*keys, i], is_inside=True) for i, item in enumerate(arguments)])
        elif isinstance(call.state, (list, tuple)) and call.state:
            value = self._value(call.state, keys, is_inside=True)
        else:
            return LeftOut(f"an object of the class {function}")
        self._noted.setdefault(str(function)[:200], []).append(join_keys(keys))
        return Named(str(function)[:300], value)

    # Modules

    def _module(self, function: Global, state: dict[Any, Any], keys: list[Any]) -> Any:
        """The state dict of a pickled module, its tensors at the names that state_dict() gives."""
        found: OrderedDict[Any, Any] = OrderedDict()
        self._add_module(found, state, "", keys, [])
        if not found:
            return LeftOut(f"a module of the class {function}, without tensors")
        self.notes.append(f"{join_keys(keys) or 'the checkpoint'!r} is a whole module of the class {function}: kept its"
                          " state dict, without the class and its attributes")  # fmt: skip
        return found

    def _add_module(self, found: dict[Any, Any], state: dict[Any, Any], prefix: str, keys: list[Any],
                    above: list[int]) -> None:  # fmt: skip
        self._n_modules += 1
        if self._n_modules > _MAX_MODULES:
            raise ConversionError(f"it has more than {_MAX_MODULES} modules")
        if len(above) > MAX_DEPTH or id(state) in above:
            raise ConversionError(f"modules are nested deeper than {MAX_DEPTH} levels, or contain themselves")
        transient = state.get("_non_persistent_buffers_set")
        names = transient.arguments if isinstance(transient, Call) else ()
        skipped = set()
        if isinstance(transient, Call):
            parts = [*transient.elements, *(part for part in names if isinstance(part, list) for part in part)]
            skipped = {part for part in parts if isinstance(part, str)}
        for kind in ("_parameters", "_buffers"):
            for key, item in (_attributes(state.get(kind)) or {}).items():
                if key in skipped or not isinstance(key, str):
                    continue
                value = self._value(item, [*keys, f"{prefix}{key}"], is_inside=True)
                if value is not None:
                    found[f"{prefix}{key}"] = value
        lost = [key for key, item in state.items() if isinstance(key, str) and (
            key not in ("_parameters", "_buffers", "_modules") and self._is_tensor(item))]  # fmt: skip
        lost += [key for key in skipped if self._is_tensor((_attributes(state.get("_buffers")) or {}).get(key))]
        for key in lost:
            place = join_keys([*keys, f"{prefix}{key}"])
            self.notes.append(f"left out {place!r}: an attribute that is neither a parameter nor a persistent buffer")
        for key, item in (_attributes(state.get("_modules")) or {}).items():
            inner = _attributes(_unwrapped(item).state) if isinstance(item, Call) else None
            if isinstance(inner, dict) and isinstance(key, str):
                self._add_module(found, inner, f"{prefix}{key}.", keys, [*above, id(state)])

    def _is_tensor(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(isinstance(item, Call) and self._is_tensor(item) for item in value[:100])
        function = value.function if isinstance(value, Call) else None
        return isinstance(function, Global) and function.name.startswith("_rebuild_")

    # Tensors of PyTorch

    def _tensor(self, arguments: tuple[Any, ...], metadata_at: int, dtype: str | None = None) -> Any:
        storage, offset, shape, stride = arguments[:4]
        found = storage_of(storage)
        if found is None:
            found = self._inner_storage(storage)
        if found is None:
            return LeftOut("a tensor without a storage that can be read", has_tensors=True)
        shape = _unwrapped_size(shape)
        flags = arguments[metadata_at] if len(arguments) > metadata_at else None
        flags = flags if isinstance(flags, dict) else {}
        tensor = tensor_in(found, offset, shape, _unwrapped_size(stride), dtype)
        if flags.get("conj") or flags.get("neg"):
            return Tensor(found, tensor.dtype, offset, tensor.shape, tensor.stride, bool(flags.get("conj")),
                          bool(flags.get("neg")))  # fmt: skip
        return tensor

    def _inner_storage(self, value: Any) -> Storage | None:
        """The storage inside a TypedStorage that was pickled as an object."""
        state = _attributes(value.state) if isinstance(value, Call) else None
        return storage_of(state.get("_untyped_storage")) if isinstance(state, dict) else None

    def tensor_v2(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        return self._tensor(arguments, 6)

    def tensor_v3(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        dtype = arguments[6].name
        return self._tensor(arguments, 7, TORCH_DTYPES.get(dtype, dtype))

    def first(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        """Of what wraps a tensor, the tensor."""
        return self._value(arguments[0], keys, is_inside=True)

    def subclass(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        rebuild, kind, inner = arguments[:3]
        found = self._value(Call(rebuild, inner), keys, is_inside=True)
        if str(kind) not in ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"):
            self._noted.setdefault(str(kind)[:200], []).append(join_keys(keys))
        return found

    def quantized(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        values = self._tensor(arguments, len(arguments))
        scheme, *rest = arguments[4]
        if isinstance(values, LeftOut):
            return values
        if scheme.name == "per_tensor_affine":
            scale, zero_point = (self._array(np.array(value, dtype)) for value, dtype in zip(rest, "dq", strict=True))
            parts = [scheme.name, values, scale, zero_point, None]
        else:
            scales, zero_points, axis = rest
            pair = [self._value(part, keys, is_inside=True) for part in (scales, zero_points)]
            if not all(isinstance(part, Tensor) for part in pair) or type(axis) is not int:
                raise ValueError
            parts = [scheme.name, values, *map(exact, pair), axis]
        return Compound("quantized", parts, ["", ".scale", ".zero_point"])

    def sparse(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        layout, data = arguments
        layout = layout.arguments[0] if isinstance(layout, Call) else layout.name
        *tensors, size = data if not isinstance(data[-1], bool) and len(data) in (3, 4) else data[:-1]
        found = [self._value(part, keys, is_inside=True) for part in tensors]
        size = _unwrapped_size(size)
        if not all(isinstance(part, Tensor) for part in found) or not all(type(n) is int for n in size):
            raise ValueError
        kind = layout.removeprefix("torch.")
        suffixes = [".indices", ""] if kind == "sparse_coo" else [".compressed_indices", ".indices", ""]
        if len(found) != len(suffixes):
            raise ValueError
        # Values first: they have the tensor's own name
        return Compound("sparse", [kind, found[-1], *found[:-1], *size], [suffixes[-1], *suffixes[:-1]])

    def attribute(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        return LeftOut("a function, a method or an attribute of a class")

    def without_values(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        return LeftOut("a tensor on the meta device, which has no values")

    # NumPy

    def array(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        """An array by _reconstruct, which takes its contents as a state."""
        if not isinstance(call.state, tuple) or len(call.state) != 5:
            return LeftOut("an array of NumPy without values")
        _, shape, dtype, is_fortran, data = call.state
        return self._array_of(dtype, shape, "F" if is_fortran is True else "C", data, keys)

    def array_from_buffer(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        data, dtype, shape, order = arguments[:4]
        if isinstance(data, Call):
            data = data.arguments[0]
        return self._array_of(dtype, shape, "F" if order == "F" else "C", data, keys)

    def _array_of(self, dtype: Any, shape: Any, order: Any, data: Any, keys: list[Any]) -> Any:
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError
        if isinstance(data, list):  # Python objects
            values = [self._value(item, [*keys, i], is_inside=True) for i, item in enumerate(data)]
            self.notes.append(f"{join_keys(keys)!r} is an array of Python objects: kept as a list")
            return values if prod(shape) == len(values) else LeftOut("an array of Python objects")
        found = _dtype(dtype)
        data = _bytes(data)
        if data is None or found is None or len(data) != prod(shape) * found.itemsize:
            kind = "a dtype that a .vqm cannot hold" if found is None else "bytes that do not fit its shape"
            return LeftOut(f"an array of NumPy of {kind}", has_tensors=True)
        array: Any = np.ndarray(shape, found, data, order=order)
        if found.kind in "SU":
            if array.size > _MAX_STRINGS:
                return LeftOut("an array of texts that is too large")
            return array.tolist()
        self.notes.append(f"{join_keys(keys)!r} is an array of NumPy: kept as a tensor")
        return self._array(array)

    def _array(self, array: Any) -> Tensor:
        """A tensor with the values of an array, and exact if it is a scalar."""
        from vqformat.format.dtypes import of_array

        dtype = of_array(array, "")
        data = np.ascontiguousarray(array, dtype.numpy).tobytes()
        key = f"numpy/{len(self.arrays)}"
        self.arrays[key] = data
        shape = array.shape
        strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        tensor = Tensor(Storage(key, dtype.name), dtype.name, 0, shape, strides)
        return tensor if array.ndim else exact(tensor)

    def scalar(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        """A scalar of NumPy: the plain value that it is."""
        dtype, data = _dtype(arguments[0]), _bytes(arguments[1])
        if dtype is None or data is None or len(data) != dtype.itemsize:
            raise ValueError
        value = np.ndarray((), dtype, data)[()]
        plain = value.item() if hasattr(value, "item") else value
        return plain if plain_to_json(plain) is not NOTHING else float(value)

    # Python

    def ordered(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        found: OrderedDict[Any, Any] = OrderedDict()
        self._made[id(call)] = found  # before its parts: they may contain it
        items = dict(call.items)
        if arguments and isinstance(arguments[0], list):  # as Python 2 pickled it
            items = {pair[0]: pair[1] for pair in arguments[0] if isinstance(pair, (list, tuple)) and len(pair) == 2
                     and key_to_json(pair[0]) is not NOTHING} | items  # fmt: skip
        self._fill(found, items, keys, is_inside=False)
        state = _attributes(call.state)
        metadata = state.get("_metadata") if isinstance(state, dict) else None
        if metadata is not None:
            value = self._value(metadata, [*keys, "_metadata"], is_inside=True)
            value = value.value if isinstance(value, Named) else value
            if isinstance(value, dict):
                found._metadata = value  # type: ignore[attr-defined]
        return found

    def default_dict(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        found: dict[Any, Any] = {}
        self._made[id(call)] = found
        items = call.items or (arguments[0] if arguments and isinstance(arguments[0], dict) else {})
        self._fill(found, items, keys, is_inside=False)
        return found

    def deque(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        items = call.elements or (arguments[0] if arguments and isinstance(arguments[0], list) else [])
        return [self._value(item, [*keys, i], is_inside=True) for i, item in enumerate(items)]

    def set(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        items = [*call.elements, *(arguments[0] if arguments and isinstance(arguments[0], list) else [])]
        values = [self._value(item, keys, is_inside=True) for item in items]
        if any(key_to_json(value) is NOTHING for value in values):
            return Named("builtins.set", values)
        return set(values)

    def size(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        return _unwrapped_size(call)

    def device(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        kind, *index = arguments
        if not isinstance(kind, str) or not all(type(n) is int for n in index):
            raise ValueError
        return Bare("device", ":".join([kind, *map(str, index)]))

    def encoded(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        data = _bytes(call)
        if data is None:
            raise ValueError
        return data

    def byte_stream(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        state = call.state[0] if isinstance(call.state, tuple) and call.state else next(iter(arguments), b"")
        data = _bytes(state)
        if data is None:
            raise ValueError
        self.notes.append(f"{join_keys(keys)!r} is a file in memory: kept as bytes")
        return data

    def complex(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        return complex(*arguments)

    def path(self, call: Call, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        if not all(isinstance(part, str) for part in arguments):
            raise ValueError
        parts = [part for part in arguments if part]
        return "/".join(parts).replace("//", "/", 1) if parts and parts[0] == "/" else "/".join(parts)


def _check_harmless(function: Global) -> None:
    module, name = function.module, function.name
    if module in _HOSTILE_MODULES or module.split(".")[0] in ("subprocess", "ctypes", "importlib") or (
            module in ("builtins", "__builtin__") and name in _HOSTILE_BUILTINS):  # fmt: skip
        raise HostileError(str(function)[:200])


def _unwrapped(call: Call) -> Call:
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


def _unwrapped_size(value: Any) -> Any:
    """The tuple in a torch.Size."""
    if isinstance(value, Call) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0]
    return tuple(value) if isinstance(value, list) else value


def _attributes(state: Any) -> Any:
    """The dict of an object's attributes, of which some may be in slots; of a dict that is an object, its items."""
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        return {**(state[0] or {}), **(state[1] or {})}
    if isinstance(state, Call) and isinstance(state.function, Global) and state.function.name == "OrderedDict":
        items = dict(state.items)
        if isinstance(state.arguments, tuple) and state.arguments and isinstance(state.arguments[0], list):
            items = {pair[0]: pair[1] for pair in state.arguments[0] if isinstance(pair, list) and len(pair) == 2
                     and isinstance(pair[0], str)} | items  # fmt: skip
        return items
    return state


def _numbers(values: list[Any]) -> np.ndarray[Any, Any] | None:
    """An array of float64 or int64 with the values of a list; None if it has others."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return np.array(values, np.float64)
    if kinds == {int} and min(values) >= -(1 << 63) and max(values) < 1 << 63:
        return np.array(values, np.int64)
    return None


def _bytes(value: Any) -> bytes | None:
    """Bytes, also where a pickle has them as a text to be encoded."""
    if isinstance(value, Call) and isinstance(value.function, Global) and isinstance(value.arguments, tuple):
        if value.function.name in ("bytes", "bytearray") and not value.arguments:
            return b""
        value, *encoding = value.arguments
        if isinstance(value, str) and encoding in (["latin1"], ["latin-1"]):
            return value.encode("latin-1")
    if isinstance(value, str):  # of Python 2
        return value.encode("latin-1")
    return value if isinstance(value, bytes) else None


def _dtype(value: Any) -> np.dtype[Any] | None:
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


_Known = Callable[[Interpreter, Call, tuple[Any, ...], list[Any]], Any]
_UTILS = "torch._utils"
_KNOWN: dict[tuple[str, str], _Known] = {
    (_UTILS, "_rebuild_tensor"): Interpreter.tensor_v2,
    (_UTILS, "_rebuild_tensor_v2"): Interpreter.tensor_v2,
    (_UTILS, "_rebuild_tensor_v3"): Interpreter.tensor_v3,
    (_UTILS, "_rebuild_parameter"): Interpreter.first,
    (_UTILS, "_rebuild_parameter_with_state"): Interpreter.first,
    (_UTILS, "_rebuild_device_tensor_from_numpy"): Interpreter.first,
    (_UTILS, "_rebuild_xla_tensor"): Interpreter.first,
    (_UTILS, "_rebuild_device_tensor_from_cpu_tensor"): Interpreter.first,
    (_UTILS, "_rebuild_qtensor"): Interpreter.quantized,
    (_UTILS, "_rebuild_sparse_tensor"): Interpreter.sparse,
    (_UTILS, "_rebuild_sparse_csr_tensor"): Interpreter.sparse,
    (_UTILS, "_rebuild_meta_tensor_no_storage"): Interpreter.without_values,
    ("torch._tensor", "_rebuild_from_type_v2"): Interpreter.subclass,
    ("torch.nn.parameter", "Parameter"): lambda self, call, arguments, keys: (
        self.first(call, arguments, keys) if arguments else NOTHING),
    ("torch", "Size"): Interpreter.size,
    ("torch", "device"): Interpreter.device,
    ("builtins", "getattr"): Interpreter.attribute,
    ("__builtin__", "getattr"): Interpreter.attribute,
    ("collections", "OrderedDict"): Interpreter.ordered,
    ("collections", "defaultdict"): Interpreter.default_dict,
    ("collections", "Counter"): Interpreter.default_dict,
    ("collections", "deque"): Interpreter.deque,
    ("_codecs", "encode"): Interpreter.encoded,
    ("_io", "BytesIO"): Interpreter.byte_stream,
    ("io", "BytesIO"): Interpreter.byte_stream,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Interpreter.array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Interpreter.scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Interpreter.array_from_buffer for core in ("core", "_core")},
    **{(module, kind): Interpreter.set for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    **{(module, kind): Interpreter.encoded for module in ("builtins", "__builtin__")
       for kind in ("bytes", "bytearray")},
    **{(module, "complex"): Interpreter.complex for module in ("builtins", "__builtin__")},
    **{(module, f"{pure}{kind}Path"): Interpreter.path for module in ("pathlib", "pathlib._local")
       for pure in ("", "Pure") for kind in ("Posix", "Windows")},
}  # fmt: skip
