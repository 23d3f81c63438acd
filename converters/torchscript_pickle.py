"""Loading the pickle of a TorchScript archive with placeholders for all classes and functions: nothing is imported."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from .strided_storage import STORAGE_DTYPES

_MAX_CLASSES = 1 << 16

# The opcodes that PyTorch's own pickler writes; a model needs no others
_OPCODES = frozenset({
    "PROTO", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4",
    "BINFLOAT", "BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "NEWOBJ", "BUILD",
    "REDUCE", "BINPERSID",
})  # fmt: skip


class PickleError(Exception):
    """A pickle that cannot be that of a model. The message is the reason."""


def unpickle(data: bytes, *, known: Callable[[str, str], Any] | None = None,
             opcodes: frozenset[str] = frozenset()) -> Any:  # fmt: skip
    """Load a pickle, with the classes below in place of its own.

    Args:
        known: What stands for a name of a module, asked before TorchScript's own names: a value, or ``Object`` for a
            class of ``Object``'s, or None if it does not know the name.
        opcodes: Those that are allowed besides the ones of PyTorch's own pickler.

    Raises:
        PickleError: It needs other objects than tensors and modules, or was not written by PyTorch.
        Exception: Any type that ``pickle`` raises for damaged data.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES and opcode.name not in opcodes:
            raise PickleError(f"its pickle has the opcode {opcode.name}, which PyTorch does not write")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > len(data):  # the unpickler allocates a table of this size
            raise PickleError(f"its pickle counts {argument} objects in {len(data)} bytes")
    return _Unpickler(data, known).load()


# The objects that the unpickler makes. A pickle may set attributes of objects. These are safe: tuples have no
# attributes, and the other classes store or refuse what is set.


class Storage(NamedTuple):
    dtype: str
    key: str


class Tensor(NamedTuple):
    """The fields of a tensor in a pickle, unchecked; sizes and strides count elements."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    is_conj: bool
    is_neg: bool


class Object:
    """Placeholder for an object of a class of the archive's code. Its attributes are in ``state``."""

    module = ""
    name = ""
    state: Any = None

    def __new__(cls, *_: Any) -> Object:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Function:
    """A function that a pickle may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise PickleError("it changes a function")


class Opaque(Function):
    """Placeholder for a value that is not supported; calling it returns itself."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, *_: Any) -> Opaque:
        return self


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = False, _hooks: Any = None,
                    view: Any = None) -> Tensor:  # fmt: skip
    view = view if isinstance(view, dict) else {}
    return Tensor(storage, offset, shape, stride, bool(view.get("conj")), bool(view.get("neg")))


_SAME = Function(lambda value, *_: value)

_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _SAME,
    ("torch._utils", "_rebuild_qtensor"): Opaque("a quantized tensor"),
    ("torch.jit._pickle", "build_tensor_from_id"): Opaque("a tensor of an old archive"),
    **{("torch.jit._pickle", f"build_{kind}list"): _SAME for kind in ("int", "tensor", "double", "bool")},
    ("torch.jit._pickle", "restore_type_tag"): _SAME,
    ("torch", "device"): Opaque("a device"),
    ("torch", "per_tensor_affine"): None,
    ("torch", "per_channel_affine"): None,
    ("torch", "per_channel_affine_float_qparams"): None,
}


class _Unpickler(pickle.Unpickler):
    """Makes only the objects above: no name is imported, and no code is run."""

    def __init__(self, data: bytes, known: Callable[[str, str], Any] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._known = known
        self._classes: dict[tuple[str, str], type[Object]] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = None if self._known is None else self._known(module, name)
        if found is Object:
            return self._class(module, name)
        if found is not None:
            return found
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch" and name.endswith("Storage"):
            return STORAGE_DTYPES.get(name.removesuffix("Storage"), name)
        if module != "__torch__" and not module.startswith("__torch__."):
            raise PickleError(f"it needs {module[:80]}.{name[:80]}; nothing but tensors is loaded, since a pickle can"
                               " run code")  # fmt: skip
        return self._class(module, name)

    def _class(self, module: str, name: str) -> type[Object]:
        if (module, name) not in self._classes:
            if len(self._classes) == _MAX_CLASSES:
                raise PickleError(f"it has more than {_MAX_CLASSES} classes")
            self._classes[module, name] = type("Object", (Object,), {"module": module, "name": name})
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str):
            raise PickleError("a storage is described in another way than PyTorch does")
        return Storage(dtype, key)
