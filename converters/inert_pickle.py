"""Pickles read by a machine of our own: it makes plain values, containers and placeholders, and runs nothing.

Python's unpickler hashes and allocates what a file tells it to, before anybody can object. This one does neither.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

_MAX_OPCODES = 10_000_000  # each makes an object of up to some hundred bytes
_MAX_KEY_DEPTH = 8  # of tuples in a key: hashing a deep one ends the process
_MARK: Any = object()

# Modules whose functions no checkpoint calls: whoever wants one called wants to run code
_HOSTILE_MODULES = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "commands", "webbrowser", "ctypes",
    "importlib", "code", "codeop", "marshal", "asyncio.subprocess", "multiprocessing.util", "pickle", "_pickle",
})  # fmt: skip
_HOSTILE_BUILTINS = frozenset({"eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint"})


class PickleError(Exception):
    """A pickle that cannot be read, with the reason."""


class HostileError(PickleError):
    """A pickle that names a function which can run code."""


class Input(Protocol):
    """What a pickle is read from; ``read`` gives less where less is left."""

    def read(self, n: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class Global:
    """Stands for a class or function."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call:
    """Stands for the result of a call that was not made, an object in most cases.

    Attributes:
        function: What would be called: a ``Global`` in any honest pickle.
        arguments: Its arguments: a tuple in any honest pickle.
        state: What the object's attributes would be set from.
        items: Keys and values that would be set, as in a dict.
        elements: Values that would be appended, as to a list.
    """

    __slots__ = ("arguments", "elements", "function", "items", "state")

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function, self.arguments = function, arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []


class Persistent:
    """Stands for what the pickle's writer keeps elsewhere, a tensor's storage."""

    __slots__ = ("id",)

    def __init__(self, id: Any) -> None:
        self.id = id


def unpickle(stream: Input, *, max_opcodes: int = _MAX_OPCODES) -> Any:
    """What a pickle holds; the stream is then at its end.

    Raises:
        PickleError: It is damaged, or has more in it than any checkpoint has.
        HostileError: It names a function that can run code.
    """
    machine = _Machine()
    position: int | None = None
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            position = at
            if count > max_opcodes:
                raise PickleError(f"its pickle has more than {max_opcodes} opcodes")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleError(f"its pickle has the opcode {opcode.name}, which no checkpoint needs")
            step(machine, argument)
    except HostileError:
        raise
    except PickleError as err:
        raise PickleError(f"{err}, at byte {position}") from err
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as err:
        where = "at its first byte" if position is None else f"at or after byte {position}"
        reason = f" ({err})" if isinstance(err, ValueError) else ""
        raise PickleError(f"its pickle is damaged {where}{reason}") from err
    if len(machine.stack) != 1:
        raise PickleError(f"its pickle leaves {len(machine.stack)} objects, and one was expected")
    return machine.stack[0]


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("its pickle has a mark in the wrong place")
        return value

    def pop_to_mark(self) -> list[Any]:
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleError("its pickle has no mark where one is needed")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise PickleError("its pickle has a mark in the wrong place")
        return self.stack[-1]


def _push(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _ignore(machine: _Machine, argument: Any) -> None:
    pass


def _tuple(n: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(n)]
        machine.stack.append(tuple(reversed(values)))

    return step


def _tuple_to_mark(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.pop_to_mark()))


def _list_to_mark(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.pop_to_mark())


def _dict_to_mark(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine.top(), values)


def _frozenset_to_mark(machine: _Machine, _: Any) -> None:
    machine.stack.append(Call(Global("builtins", "frozenset"), (machine.pop_to_mark(),)))


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")  # genops joins the two lines by a space
    machine.stack.append(_harmless(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError("its pickle names a class by what is no text")
    machine.stack.append(_harmless(module, name))


def _harmless(module: str, name: str) -> Global:
    top = module.partition(".")[0]
    if module in _HOSTILE_MODULES or top in ("subprocess", "ctypes", "importlib") or (
            module in ("builtins", "__builtin__") and name in _HOSTILE_BUILTINS):  # fmt: skip
        raise HostileError(f"it needs the Python object {f'{module}.{name}'[:200]}, which can run code and is never"
                           " called")  # fmt: skip
    return Global(module, name)


def _instance(machine: _Machine, argument: str) -> None:
    arguments = tuple(machine.pop_to_mark())
    _global(machine, argument)
    machine.stack.append(Call(machine.pop(), arguments))


def _object(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.pop_to_mark()
    machine.stack.append(Call(function, tuple(arguments)))


def _call(machine: _Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.stack.append(Call(machine.pop(), arguments))


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    machine.pop()
    _call(machine, _)


def _build(machine: _Machine, _: Any) -> None:
    state, target = machine.pop(), machine.top()
    if not isinstance(target, Call):
        raise PickleError(f"its pickle sets attributes of a {type(target).__name__}")
    target.state = state


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    _extend(machine.top(), [value])


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    _extend(machine.top(), values)


def _extend(target: Any, values: list[Any]) -> None:
    elements = target.elements if isinstance(target, Call) else target
    if not isinstance(elements, list):
        raise PickleError(f"its pickle appends to a {type(target).__name__}")
    elements.extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine.top(), [key, value])


def _set_items_to_mark(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    _set_items(machine.top(), values)


def _set_items(target: Any, values: list[Any]) -> None:
    items = target.items if isinstance(target, Call) else target
    if not isinstance(items, dict) or len(values) % 2:
        raise PickleError(f"its pickle sets items of a {type(target).__name__}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        _check_key(key, 0)
        items[key] = value


def _check_key(key: Any, depth: int) -> None:
    """Raise PickleError unless a key is plain, or a placeholder, which is equal to itself only."""
    if isinstance(key, tuple) and depth < _MAX_KEY_DEPTH and len(key) <= 64:
        for part in key:
            _check_key(part, depth + 1)
    elif not (key is None or isinstance(key, (bool, int, float, str, bytes, Global, Call, Persistent))):
        raise PickleError(f"its pickle has a {type(key).__name__} as a key")


def _add_items(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    target = machine.top()
    if not isinstance(target, Call):
        raise PickleError(f"its pickle adds to a {type(target).__name__}")
    target.elements.extend(values)


def _persistent(machine: _Machine, _: Any) -> None:
    id = machine.pop()
    # Legacy files of PyTorch have the class of a module with its source code: ("module", class, file, code)
    is_class = isinstance(id, tuple) and len(id) > 1 and id[0] == "module" and isinstance(id[1], Global)
    machine.stack.append(id[1] if is_class else Persistent(id))


def _put(machine: _Machine, argument: int) -> None:
    machine.memo[argument] = machine.top()


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: _Machine, argument: int) -> None:
    machine.stack.append(machine.memo[argument])


def _duplicate(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.top())


def _discard(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _discard_to_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _ignore),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
                     "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
                     "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push_argument),
    "BYTEARRAY8": lambda machine, argument: machine.stack.append(bytes(argument)),
    "NONE": _push(None), "NEWTRUE": _push(True), "NEWFALSE": _push(False), "MARK": _push(_MARK),
    "EMPTY_LIST": _push_new(list), "EMPTY_DICT": _push_new(dict), "EMPTY_TUPLE": _push(()),
    "EMPTY_SET": _push_new(lambda: Call(Global("builtins", "set"), ())),
    "TUPLE": _tuple_to_mark, "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "LIST": _list_to_mark, "DICT": _dict_to_mark, "FROZENSET": _frozenset_to_mark,
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "INST": _instance, "OBJ": _object,
    "REDUCE": _call, "NEWOBJ": _call, "NEWOBJ_EX": _call_with_keywords, "BUILD": _build,
    "APPEND": _append, "APPENDS": _appends, "SETITEM": _set_item, "SETITEMS": _set_items_to_mark,
    "ADDITEMS": _add_items, "BINPERSID": _persistent,
    "PUT": _put, "BINPUT": _put, "LONG_BINPUT": _put, "MEMOIZE": _memoize,
    "GET": _get, "BINGET": _get, "LONG_BINGET": _get,
    "DUP": _duplicate, "POP": _discard, "POP_MARK": _discard_to_mark,
}  # fmt: skip
