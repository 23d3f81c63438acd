"""What the placeholders of a checkpoint's pickle stand for: tensors, containers and plain values; objects, as far as
their parts can be told."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqformat.errors import ConversionError
from vqformat.format.checkpoint import MAX_DEPTH, NOTHING, Named, join_keys, key_to_json, plain_to_json

from .inert_pickle import Call, Global, Persistent
from .pickled_tensors import TORCH_DTYPES, attributes_of, exact, n_elements_of_storage, storage_of, tensor_in
from .pytorch_modules import is_module, module
from .pytorch_parts import Bare, Compound, LeftOut, numbers_of, unwrapped
from .pytorch_rebuild import KNOWN, array_tensor
from .strided_storage import brief

_LONG_LIST = 4096  # numbers: such a list is stored as a tensor
_OTHER_DTYPES = ("complex32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")
_LONG_TEXT = 1 << 18  # bytes or characters: such a text is stored as a tensor
_FEW_ARRAYS = 8  # of which each has a note of its own


class Interpreter:
    """Makes values of placeholders; the same placeholder gives the same value.

    Attributes:
        arrays: Bytes of the arrays of NumPy, by the key of the storage that stands for them.
        notes: What became something else.
        made: Values by the ``id`` of the placeholder or container.
        noted: For each class of objects whose parts are kept, where they are.
        noted_arrays: Where arrays of NumPy are.
        n_modules: Modules found so far.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, bytes] = {}
        self.notes: list[str] = []
        self.made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is given again
        self.noted: dict[str, list[str]] = {}
        self.noted_arrays: list[str] = []
        self.n_modules = 0

    def interpret(self, root: Any) -> Any:
        """The checkpoint.

        Raises:
            ConversionError: It is nested deeper than ``MAX_DEPTH``.
        """
        try:
            value = self.value(root, [], is_inside=False)
        except RecursionError as err:
            raise ConversionError(f"nested deeper than {MAX_DEPTH} levels") from err
        if len(self.noted_arrays) > _FEW_ARRAYS:
            self.notes.append(f"kept {len(self.noted_arrays)} arrays of NumPy as tensors")
        else:
            self.notes.extend(f"{place!r} is an array of NumPy: kept as a tensor" for place in self.noted_arrays)
        for name, places in self.noted.items():
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            self.notes.append(f"kept the parts of {', '.join(map(repr, places[:3]))}{more}, without the class {name}")
        return value

    def value(self, value: Any, keys: list[Any], *, is_inside: bool) -> Any:
        """The value of a placeholder.

        Args:
            is_inside: Whether this is a part of an object; such parts may be nested endlessly, and are left out then.
        """
        if isinstance(value, Global):
            return self._global(value)
        if isinstance(value, (str, bytes)) and len(value) >= _LONG_TEXT:
            return self._long_text(value)
        if plain_to_json(value) is not NOTHING:
            return value
        if len(keys) >= MAX_DEPTH:
            if is_inside:
                return LeftOut(f"nested deeper than {MAX_DEPTH} levels")
            raise ConversionError(f"nested deeper than {MAX_DEPTH} levels")
        made = self.made.get(id(value), NOTHING)
        if made is not NOTHING:
            return made
        self._kept.append(value)
        if isinstance(value, list) and len(value) >= _LONG_LIST and (numbers := numbers_of(value)) is not None:
            found = Compound("numbers", [exact(array_tensor(self, numbers))], [""])
            self.made[id(value)] = found
            return found
        if isinstance(value, (dict, list)):
            container: Any = {} if isinstance(value, dict) else []
            self.made[id(value)] = container  # before its parts: they may contain it
            if isinstance(value, dict):
                self.fill(container, value, keys, is_inside=is_inside)
            else:
                container.extend(self.value(item, [*keys, i], is_inside=is_inside) for i, item in enumerate(value))
            return container
        self.made[id(value)] = LeftOut("an object or tuple that contains itself")
        made = self._other(value, keys, is_inside=is_inside)
        self.made[id(value)] = made
        return made

    def _long_text(self, value: str | bytes) -> Compound:
        """A text or bytes, a tokenizer's model say, for which the metadata may have no room."""
        made = self.made.get(id(value))
        if made is None:
            self._kept.append(value)
            data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            tag = "long_text" if isinstance(value, str) else "long_bytes"
            tensor = exact(array_tensor(self, np.frombuffer(data, np.uint8)))
            self.made[id(value)] = made = Compound(tag, [tensor], [""])
        return made

    def _other(self, value: Any, keys: list[Any], *, is_inside: bool) -> Any:
        if isinstance(value, tuple):
            return tuple([self.value(item, [*keys, i], is_inside=is_inside) for i, item in enumerate(value)])
        if isinstance(value, Persistent):
            storage = storage_of(value)
            if storage is None:
                return LeftOut("what lies in another file")
            size = n_elements_of_storage(value)
            return tensor_in(storage, 0, (size,), (1,))
        if isinstance(value, Call):
            return self._call(value, keys, is_inside=is_inside)
        return LeftOut(f"a {type(value).__name__} that is too large")

    def fill(self, into: dict[Any, Any], items: dict[Any, Any], keys: list[Any], *, is_inside: bool) -> None:
        for key, item in items.items():
            plain = key
            if key_to_json(key) is NOTHING:
                plain = self._key(key, into)
            into[plain] = self.value(item, [*keys, plain], is_inside=is_inside)

    def _key(self, key: Any, taken: dict[Any, Any]) -> Any:
        """What stands for a key that is no plain value: the plain value that it is, or a text."""
        plain = self.value(key, [], is_inside=True)
        if key_to_json(plain) is not NOTHING and plain not in taken:
            return plain
        what = str(key.function) if isinstance(key, Call) else str(key) if isinstance(key, Global) else brief(key)
        if isinstance(plain, Named) and not isinstance(plain.value, (dict, list)):  # a member of an enumeration, say
            what = f"{plain.name}{brief(plain.value if isinstance(plain.value, tuple) else (plain.value,))}"
        text, n = what[:200], 2
        while text in taken:
            text, n = f"{what[:200]}#{n}", n + 1
        self.notes.append(f"the key {text!r} stands for an object")
        return text

    def _global(self, value: Global) -> Any:
        if value.module == "torch" and (value.name in TORCH_DTYPES or value.name in _OTHER_DTYPES):
            return Bare("dtype", value.name)
        return LeftOut(f"the class or function {value}")

    # Objects

    def _call(self, call: Call, keys: list[Any], *, is_inside: bool) -> Any:
        call = unwrapped(call)
        function = call.function
        if not isinstance(function, Global):
            return LeftOut("the result of a computation")
        arguments = call.arguments if isinstance(call.arguments, tuple) else ()
        known = KNOWN.get((function.module, function.name))
        if known is not None:
            try:
                found = known(self, call, arguments, keys)
            except (ValueError, TypeError, IndexError, OverflowError, LookupError, UnicodeError, AttributeError):
                found = LeftOut(f"a {function} that is not as it should be", has_tensors=True)
            if found is not NOTHING:
                return found
        state = attributes_of(call.state)
        if is_module(state):
            return module(self, function, state, keys)
        return self._object(function, call, state, arguments, keys)

    def _object(self, function: Global, call: Call, state: Any, arguments: tuple[Any, ...], keys: list[Any]) -> Any:
        """What can be told of an object of any class."""
        value: Any
        more = _attributes_beside(call.items, state)
        if call.items:
            value = {}
            self.fill(value, {**call.items, **({"__dict__": more} if more else {})}, keys, is_inside=True)
        elif call.elements and more:
            value = {}
            self.fill(value, {"elements": call.elements, "__dict__": more}, keys, is_inside=True)
        elif call.elements:
            value = [self.value(item, [*keys, i], is_inside=True) for i, item in enumerate(call.elements)]
        elif isinstance(state, dict) and state:
            value = {}
            self.fill(value, state, keys, is_inside=True)
        elif arguments and not any(isinstance(part, (Call, Global)) and isinstance(
                self.value(part, keys, is_inside=True), LeftOut) for part in arguments):  # fmt: skip
            value = tuple([self.value(item, [*keys, i], is_inside=True) for i, item in enumerate(arguments)])
            if len(value) == 1 and plain_to_json(value[0]) is not NOTHING:
                # A member of an enumeration, a str, int or float of another class, a Decimal: its value is kept
                value = value[0]
        elif isinstance(call.state, (list, tuple)) and call.state:
            value = self.value(call.state, keys, is_inside=True)
        else:
            return LeftOut(f"an object of the class {function}")
        self.noted.setdefault(str(function)[:200], []).append(join_keys(keys))
        return Named(str(function)[:300], value)


def _attributes_beside(items: dict[Any, Any], state: Any) -> dict[Any, Any]:
    """Those attributes of a dict or list of a class that are not its items as well."""
    if not isinstance(state, dict):
        return {}
    return {key: item for key, item in state.items() if key not in items or not _is_same(items[key], item)}


def _is_same(a: Any, b: Any) -> bool:
    plain = plain_to_json(a)
    return a is b or (plain is not NOTHING and plain == plain_to_json(b))
