"""Tensors and storages as the pickles of PyTorch describe them. Whoever knows the file checks them against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vqformat.format.dtypes import BY_NAME

from . import strided_storage
from .inert_pickle import Call, Global, Persistent
from .strided_storage import LARGEST, STORAGE_DTYPES

_STORAGE_DTYPES = {**STORAGE_DTYPES, "QInt8": "i8", "QUInt8": "u8", "QInt32": "i32"}
# Name of a dtype of PyTorch -> SPEC name
TORCH_DTYPES = {**strided_storage.TORCH_DTYPES, "qint8": "i8", "quint8": "u8", "qint32": "i32",
                "float4_e2m1fn_x2": "f4_e2m1fn"}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """Memory that tensors share.

    Attributes:
        dtype: Name in SPEC 7.1, or that of PyTorch if a ``.vqm`` has none; None for bytes of no dtype.
        offset: Of the first byte, where this is a view of another storage.
    """

    key: str
    dtype: str | None
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a pickle; sizes and strides are in elements. Its fields have not been checked."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    stride: Any
    is_conj: bool = False
    is_neg: bool = False
    is_exact: bool = False

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two tensors that share everything."""
        storage = self.storage
        return (storage.key, storage.offset, self.dtype, self.offset, self.shape, self.stride, self.is_conj,
                self.is_neg)  # fmt: skip

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """The shape in elements; PyTorch counts pairs of 4-bit elements along the last axis."""
        shape: tuple[int, ...] = self.shape
        return (*shape[:-1], 2 * shape[-1]) if self.dtype == "f4_e2m1fn" and shape else shape


def storage_of(value: Any) -> Storage | None:
    """The storage that a persistent id describes; None if it does not."""
    id = value.id if isinstance(value, Persistent) else None
    if not isinstance(id, tuple) or len(id) < 5 or id[0] != "storage" or not isinstance(id[2], str):
        return None
    kind = id[1].name if isinstance(id[1], Global) else ""
    if not kind.endswith("Storage"):
        return None
    dtype = None if kind == "UntypedStorage" else _STORAGE_DTYPES.get(kind[:-7], kind[:-7])
    view = id[5] if len(id) > 5 else None
    offset = 0
    if isinstance(view, tuple) and len(view) == 3 and type(view[1]) is int and 0 <= view[1] <= LARGEST:
        offset = view[1] * itemsize_of(dtype)
    return Storage(id[2], dtype, offset)


def n_elements_of_storage(value: Persistent) -> Any:
    """The number of elements that a persistent id gives."""
    return value.id[4]


def tensor_in(storage: Storage, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> Tensor:
    """A tensor of a dtype that the storage has, or that is given."""
    shape = tuple(shape) if isinstance(shape, list) else shape
    stride = tuple(stride) if isinstance(stride, list) else stride
    return Tensor(storage, dtype or storage.dtype or "u8", offset, shape, stride)


def exact(tensor: Tensor) -> Tensor:
    """A tensor that is no weight."""
    return replace(tensor, is_exact=True)


def itemsize_of(dtype: str | None) -> int:
    """Bytes of an element; 1 for a dtype that a ``.vqm`` does not have."""
    return BY_NAME[dtype].numpy.itemsize if dtype in BY_NAME else 1


def size_of(value: Any) -> Any:
    """The tuple in a torch.Size."""
    if isinstance(value, Call) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0]
    return tuple(value) if isinstance(value, list) else value


def attributes_of(state: Any) -> Any:
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


# Functions of torch._utils that rebuild a plain tensor -> the least number of arguments
_REBUILD = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}


def tensor_of(value: Any) -> Tensor | None:
    """The plain tensor that a call rebuilds, also as a parameter; None for all else."""
    function = value.function if isinstance(value, Call) else None
    if not isinstance(function, Global) or function.module != "torch._utils":
        return None
    arguments = value.arguments
    if not isinstance(arguments, tuple) or not arguments:
        return None
    if function.name == "_rebuild_parameter" and arguments[0] is not value:
        inner = arguments[0]
        is_parameter = isinstance(inner, Call) and str(inner.function) == str(function)
        return None if is_parameter else tensor_of(inner)
    if function.name not in _REBUILD or len(arguments) < _REBUILD[function.name]:
        return None
    if function.name == "_rebuild_tensor_v3":
        return rebuilt(arguments, 7, name_of_dtype(arguments[6]))
    return rebuilt(arguments, 6)


def name_of_dtype(value: Any) -> str:
    """SPEC name of a dtype of PyTorch, or its own name if a ``.vqm`` has none."""
    name = value.name if isinstance(value, Global) else f"a {type(value).__name__}"
    return TORCH_DTYPES.get(name, name)


def rebuilt(arguments: tuple[Any, ...], flags_at: int, dtype: str | None = None) -> Tensor | None:
    """The tensor that a call with these arguments rebuilds; None if its storage is described in an unknown way.

    Args:
        flags_at: Position of the flags that say whether it is conjugate or negative.
        dtype: Where the storage has none.
    """
    storage, offset, shape, stride = arguments[:4]
    found = storage_of(storage) or _inner_storage(storage)
    if found is None:
        return None
    flags = arguments[flags_at] if len(arguments) > flags_at else None
    if isinstance(flags, Call) and isinstance(flags.arguments, tuple) and flags.arguments:
        flags = flags.arguments[0]  # TorchScript adds a type to the dict
    flags = flags if isinstance(flags, dict) else {}
    tensor = tensor_in(found, offset, size_of(shape), size_of(stride), dtype)
    return replace(tensor, is_conj=bool(flags.get("conj")), is_neg=bool(flags.get("neg")))


def _inner_storage(value: Any) -> Storage | None:
    """The storage inside a TypedStorage that was pickled as an object."""
    state = attributes_of(value.state) if isinstance(value, Call) else None
    return storage_of(state.get("_untyped_storage")) if isinstance(state, dict) else None
