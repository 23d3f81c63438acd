"""The structure of a PyTorch checkpoint as JSON, its tensors by name (SPEC section 18): metadata has no floats."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from typing import Any

from ..errors import ConversionError

MAX_DEPTH = 64
MAX_TEXT_NBYTES = 8 << 20  # of the metadata's 16 MiB
_MAX_INT_BITS = 2040  # what torch.load reads with weights_only
# A container that is met again is written again, unless it has more values than this, or has been written so often with
# tensors in it: shared containers could make 2^n values. Then a reference takes its place.
_SMALL = 64
_MOST_TIMES = 4
_MAX_KEY_PARTS = 64  # of a tuple

Leaf = Callable[[Any, list[Any]], Any]
Special = Callable[[list[Any]], Any]


class Named:
    """A container that stands for an object of a class.

    Attributes:
        name: Of the class, with its module.
        value: A dict of the object's attributes or items, a list of its elements, a tuple of its arguments, or its one
            argument, where that is plain.
    """

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


def to_json(root: Any, leaf: Leaf, skipped: Container[int] = ()) -> str:
    """The structure of a checkpoint, as ``from_json`` takes it.

    Args:
        root: Dicts (with ``_metadata``, as ``state_dict()`` gives them, or without), lists, tuples, sets, plain values,
            ``Named`` objects; and other things, for which ``leaf`` is called. Keys of dicts and elements of sets are
            what ``key_to_json`` knows.
        leaf: From a value and the keys that lead to it, the JSON of the value: of a tensor, or of what is left out.
        skipped: ``id`` of values that are not written: a dict has no such item, elsewhere None takes its place.

    Raises:
        ConversionError: It is nested deeper than ``MAX_DEPTH``.
    """
    return json.dumps(_Writer(leaf, skipped).write(root, []), separators=(",", ":"), allow_nan=False)


class _Writer:
    def __init__(self, leaf: Leaf, skipped: Container[int]) -> None:
        self._leaf, self._skipped = leaf, skipped
        self._n_values = self._n_tensors = 0  # written so far
        self._n_containers = 0
        self._numbers: dict[int, int] = {}  # id of a container -> its number
        self._times: dict[int, int] = {}  # id of a container -> how often it has been written
        self._sizes: dict[int, int] = {}  # id of a container without tensors -> values in it
        self._open: set[int] = set()  # ids of containers that are being written
        self._kept: list[Any] = []  # so that no id is given again

    def write(self, value: Any, keys: list[Any]) -> Any:
        self._n_values += 1
        if id(value) in self._skipped:
            return None
        if isinstance(value, Named):
            return {"object": [value.name, self.write(value.value, keys)]}
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            return self._container(value, keys)
        plain = plain_to_json(value)
        if plain is not NOTHING:
            return plain
        node = self._leaf(value, keys)
        self._n_tensors += isinstance(node, dict) and "left_out" not in node
        return node

    def _container(self, value: Any, keys: list[Any]) -> Any:
        if len(keys) >= MAX_DEPTH:
            raise ConversionError(f"the checkpoint is nested deeper than {MAX_DEPTH} levels")
        if id(value) in self._open and not isinstance(value, (dict, list)):
            return {"left_out": "a tuple that contains itself"}
        if id(value) in self._open or self._is_often(value):
            return {"same": self._numbers[id(value)]}
        self._numbers[id(value)] = self._n_containers
        self._times[id(value)] = self._times.get(id(value), 0) + 1
        self._open.add(id(value))
        self._n_containers += 1
        self._kept.append(value)
        before = self._n_values, self._n_tensors
        node: Any
        if isinstance(value, dict):
            node = self._dict(value, keys)
        else:
            tag = "list" if isinstance(value, list) else "tuple" if isinstance(value, tuple) else "set"
            if tag == "set":  # its order differs from run to run
                node = {tag: sorted(map(key_to_json, value), key=repr)}
            else:
                node = {tag: [self.write(item, [*keys, i]) for i, item in enumerate(value)]}
        self._open.discard(id(value))
        if self._n_tensors == before[1]:
            self._sizes[id(value)] = self._n_values - before[0]
        return node

    def _is_often(self, value: Any) -> bool:
        times = self._times.get(id(value), 0)
        if id(value) in self._sizes:
            return times > 0 and self._sizes[id(value)] > _SMALL
        return times >= _MOST_TIMES

    def _dict(self, value: dict[Any, Any], keys: list[Any]) -> Any:
        pairs = []
        for key, item in value.items():
            if id(item) in self._skipped:
                continue
            node = self.write(item, [*keys, key])
            # The short form of what state dicts are full of
            is_short = node == {"tensor": key} and isinstance(key, str)
            pairs.append([key] if is_short else [key_to_json(key), node])
        metadata = getattr(value, "_metadata", None)
        if isinstance(metadata, dict):
            return {"state_dict": [pairs, self.write(metadata, [*keys, "_metadata"])]}
        return {"ordered" if isinstance(value, OrderedDict) else "dict": pairs}


NOTHING = object()


def plain_to_json(value: Any) -> Any:
    """The JSON of a value that has no parts, or NOTHING."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int) and value.bit_length() < _MAX_INT_BITS:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, complex):
        return {"complex": [plain_to_json(value.real), plain_to_json(value.imag)]}
    return {"bytes": value.hex()} if isinstance(value, bytes) else NOTHING


def key_to_json(key: Any) -> Any:
    """The JSON of a dict's key, or NOTHING: plain, or a tuple of plain values."""
    if isinstance(key, tuple) and len(key) <= _MAX_KEY_PARTS:
        parts = [plain_to_json(part) for part in key]
        return NOTHING if NOTHING in parts else {"tuple": parts}
    return plain_to_json(key)


def from_json(
    text: str, tensors: Mapping[str, Any], specials: Mapping[str, Special], left_out: list[tuple[str, str]]
) -> Any:
    """The checkpoint of a structure that ``to_json`` wrote, or somebody else.

    Args:
        tensors: By name. One that the structure has twice is the same object twice.
        specials: For a tag that stands for an object of PyTorch, what makes it from the tag's content, whose parts are
            read. It raises ValueError, TypeError or RuntimeError for content that is wrong.
        left_out: For each value that the structure tells to be left out, gets its keys joined by dots, and what it was.

    Raises:
        ConversionError: The text is no such structure, or names a tensor that is not there.
    """
    reader = _Reader(tensors, specials, left_out)
    try:
        node = json.loads(text, parse_constant=_refuse)
        found = reader.read(node, [])
    except (ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, LookupError) as err:
        if isinstance(err, ConversionError):
            raise
        raise _broken(" ".join(str(err).split())[:200] or type(err).__name__) from err
    return None if found is NOTHING else found


class _Reader:
    def __init__(
        self, tensors: Mapping[str, Any], specials: Mapping[str, Special], left_out: list[tuple[str, str]]
    ) -> None:
        self._tensors, self._specials, self._left_out = tensors, specials, left_out
        self._containers: list[Any] = []  # by number; NOTHING while a tuple or set is read

    def read(self, node: Any, keys: list[Any]) -> Any:
        """The value of a node; NOTHING for what was left out."""
        if len(keys) > MAX_DEPTH:
            raise _broken(f"it is nested deeper than {MAX_DEPTH} levels")
        if node is None or isinstance(node, (bool, int, float, str)):
            if isinstance(node, int) and node.bit_length() >= _MAX_INT_BITS:
                raise _broken(f"an integer has {node.bit_length()} bits")
            return node
        if not isinstance(node, dict) or len(node) != 1:
            raise _broken("a value is neither plain nor an object with one tag")
        ((tag, content),) = node.items()
        if tag in self._specials and isinstance(content, (str, list)):
            parts = content if isinstance(content, list) else [content]
            return self._specials[tag]([self.read(part, [*keys, i]) for i, part in enumerate(parts)])
        if tag not in _CONTENTS or type(content) is not _CONTENTS[tag]:
            raise _broken(f"the tag {tag[:40]!r} with a {type(content).__name__}")
        return getattr(self, f"_read_{tag}")(content, keys)

    def _read_tensor(self, name: str, _: list[Any]) -> Any:
        if name not in self._tensors:
            raise _broken(f"it names the tensor {name[:80]!r}, which the file does not have")
        return self._tensors[name]

    def _read_dict(self, pairs: list[Any], keys: list[Any], into: dict[Any, Any] | None = None) -> dict[Any, Any]:
        result = {} if into is None else into
        self._containers.append(result)
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) not in (1, 2) or (len(pair) == 1 and type(pair[0]) is not str):
                raise _broken("an item of a dict is no pair of a plain key and a value")
            key = self._key(pair[0])
            if key in result:
                raise _broken(f"a dict has the key {str(key)[:40]!r} twice")
            value = self.read(pair[1] if len(pair) == 2 else {"tensor": key}, [*keys, key])
            if value is not NOTHING:
                result[key] = value
        return result

    def _key(self, node: Any) -> Any:
        if isinstance(node, dict) and list(node) == ["tuple"] and isinstance(node["tuple"], list):
            return tuple([self._key(part) for part in node["tuple"]])
        if not _is_plain(node):
            raise _broken("an item of a dict is no pair of a plain key and a value")
        return self.read(node, [])

    def _read_ordered(self, pairs: list[Any], keys: list[Any]) -> dict[Any, Any]:
        return self._read_dict(pairs, keys, OrderedDict())

    def _read_state_dict(self, content: list[Any], keys: list[Any]) -> dict[Any, Any]:
        if len(content) != 2 or not isinstance(content[0], list):
            raise _broken("a state dict that is no pair of items and metadata")
        state = self._read_dict(content[0], keys, OrderedDict())
        state._metadata = self.read(content[1], [*keys, "_metadata"])  # type: ignore[attr-defined]
        return state

    def _read_list(self, items: list[Any], keys: list[Any]) -> list[Any]:
        result: list[Any] = []
        self._containers.append(result)
        for i, item in enumerate(items):
            value = self.read(item, [*keys, i])
            result.append(None if value is NOTHING else value)
        return result

    def _read_tuple(self, items: list[Any], keys: list[Any]) -> tuple[Any, ...]:
        number = len(self._containers)
        self._containers.append(NOTHING)
        values = [self.read(item, [*keys, i]) for i, item in enumerate(items)]
        self._containers[number] = found = tuple(None if value is NOTHING else value for value in values)
        return found

    def _read_set(self, items: list[Any], keys: list[Any]) -> set[Any]:
        number = len(self._containers)
        self._containers.append(NOTHING)
        self._containers[number] = found = {self._key(item) for item in items}
        return found

    def _read_same(self, number: int, keys: list[Any]) -> Any:
        found = self._containers[number] if 0 <= number < len(self._containers) else NOTHING
        if found is NOTHING:
            raise _broken(f"it refers to the container {number}, which is not before it")
        return found

    def _read_object(self, content: list[Any], keys: list[Any]) -> Any:
        if len(content) != 2 or not isinstance(content[0], str):
            raise _broken("an object that is no pair of a name and a value")
        return self.read(content[1], keys)

    def _read_left_out(self, what: str, keys: list[Any]) -> Any:
        self._left_out.append((join_keys(keys), what))
        return NOTHING

    def _read_bytes(self, text: str, _: list[Any]) -> bytes:
        return bytes.fromhex(text)

    def _read_float(self, text: str, _: list[Any]) -> float:
        if text not in ("nan", "inf", "-inf"):
            raise _broken(f"the float {text[:40]!r}")
        return float(text)

    def _read_complex(self, parts: list[Any], _: list[Any]) -> complex:
        if len(parts) != 2 or not all(_is_plain(part) for part in parts):
            raise _broken("a complex number that is no pair of floats")
        real, imaginary = (self.read(part, []) for part in parts)
        return complex(real, imaginary)


_CONTENTS: dict[str, type] = {
    "tensor": str, "dict": list, "ordered": list, "state_dict": list, "list": list, "tuple": list, "set": list,
    "same": int, "object": list, "left_out": str, "bytes": str, "float": str, "complex": list,
}  # fmt: skip


def _is_plain(node: Any) -> bool:
    return not isinstance(node, (dict, list)) or (
        isinstance(node, dict) and len(node) == 1 and next(iter(node)) in ("float", "bytes", "complex")
    )


def join_keys(keys: list[Any]) -> str:
    """Keys joined by dots, for people; those that are long are cut."""
    return ".".join(str(key)[:200] if not isinstance(key, int) or key.bit_length() < 256 else "…" for key in keys)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _broken(why: str) -> ConversionError:
    return ConversionError(f"the structure of the PyTorch checkpoint in vqm.source cannot be read: {why}; extract to"
                           " .safetensors or .npz")  # fmt: skip
