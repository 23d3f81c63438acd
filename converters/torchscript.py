"""Reading the tensors of TorchScript archives, without PyTorch and without running their code."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.dtypes import BY_NAME, of_array
from vqformat.format.limits import MAX_NAME_NBYTES, MAX_TENSORS

from .inert_pickle import Call, Global, HostileError, PickleError, unpickle
from .pickled_tensors import Tensor, rebuilt, tensor_of
from .source import Source
from .strided_storage import Strided, array_of, check_strided, n_spanned
from .zip_archive import Archive

_MAX_PICKLE_NBYTES = 64 << 20
_MAX_CODE_NBYTES = 16 << 20  # of one file
_MAX_DEPTH = 64
_LONGEST_TEXT = 500  # characters of an error or note
_Number = np.float64 | np.int64


def open_torchscript(path: Path) -> Source:
    """Open an archive written by ``torch.jit.save``. Tensors have the names and the order of ``state_dict()``.

    Other tensors among a module's attributes come after its own, and are exact. The constants of the code come last:
    they are the weights of a model that was frozen.

    Raises:
        ConversionError: It is damaged, has no tensors, or is refused as unsafe.
    """
    archive = Archive(path)
    try:
        return _Model(archive).source()
    except BaseException:
        archive.close()
        raise


class _Model:
    """An archive whose pickle has been loaded."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._path = archive.path
        self._members = set(archive.names())
        tops = [name.removesuffix("data.pkl") for name in archive.names() if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(tops) != 1:
            raise self._refuse(f"it has {len(tops)} members data.pkl")
        self._top = tops[0]
        if self._read("byteorder", 16).strip() == b"big":
            raise self._refuse("its tensors are big-endian; save it again on a little-endian machine")
        self._left_out: list[str] = []
        self._exact: set[str] = set()
        self._codes: dict[str, str] = {}
        self._opened: tuple[str, BinaryIO] | None = None
        self._root = self._unpickle()

    def _refuse(self, why: str) -> ConversionError:
        # Names from the file can have any length and any characters
        why = "".join(c if c.isprintable() else "?" for c in why[:_LONGEST_TEXT]) + "…" * (len(why) > _LONGEST_TEXT)
        return ConversionError(f"{str(self._path)!r} is a TorchScript archive that cannot be read: {why}")

    def _read(self, name: str, limit: int) -> bytes:
        """The bytes of a member; empty if it does not exist."""
        name = self._top + name
        if name not in self._members:
            return b""
        if self._archive.nbytes(name) > limit:
            raise self._refuse(f"{name!r} has {self._archive.nbytes(name)} bytes; at most {limit} are allowed")
        return self._archive.read(name)

    def _load(self, name: str) -> Any:
        try:
            return unpickle(io.BytesIO(self._read(name, _MAX_PICKLE_NBYTES)))
        except HostileError as err:
            raise self._refuse(str(err)) from err
        except PickleError as err:
            raise self._refuse(f"{err}; fetch or save it again") from err

    def _unpickle(self) -> Call:
        root = self._load("data.pkl")
        if not _is_object(root) or not isinstance(root.state, dict):
            raise self._refuse("it holds no module")
        return root

    def source(self) -> Source:
        """The source. Equal tensors of the same memory are aliases."""
        found: dict[str, Tensor | _Number] = {}
        for name, tensor in self._walk(self._root, [], [0]):
            if name in found:
                raise self._refuse(f"two tensors would have the name {name!r}")
            found[name] = tensor
        constants = self._constants()
        if constants.keys() & found.keys():
            raise self._refuse("an attribute has the name of a constant")
        found.update(constants)
        if not found:
            more = f" ({'; '.join(self._left_out[:2])})" if self._left_out else ""
            raise self._refuse(f"it has no parameters, buffers or other tensors{more}")
        sources = []
        targets: dict[tuple[str, Strided], str] = {}
        for name, tensor in found.items():
            if isinstance(tensor, np.generic):
                sources.append(_source_of_number(name, tensor))
                continue
            member, strided = self._check(name, tensor, "constants" if name in constants else "data")
            target = targets.setdefault((member, strided), name) if strided.n_elements else name
            sources.append(SourceTensor(name, strided.dtype, strided.shape, self._loader(name, member, strided),
                                        None if target == name else target,
                                        is_exact=name in self._exact))  # fmt: skip
        notes = [*self._left_out, "left out the code of the archive: its tensors alone are kept"]
        return Source("torchscript", sources, {}, notes, {"format": "torchscript"}, self._close, self._left_out)

    def _constants(self) -> dict[str, Tensor]:
        """The tensors among the constants, by the names that they have in the code."""
        if f"{self._top}constants.pkl" not in self._members:
            return {}
        constants = self._load("constants.pkl")
        if not isinstance(constants, (tuple, list)) or len(constants) > MAX_TENSORS:
            raise self._refuse("its constants are no tuple")
        found = {}
        for i, (_, value) in enumerate(_items(constants)):
            if isinstance(value, Tensor):
                found[f"CONSTANTS.c{i}"] = value
            elif what := _what(value):
                self._left_out.append(f"left out 'CONSTANTS.c{i}': {what}")
        return found

    def _walk(self, value: Any, keys: list[str], count: list[int]) -> Iterator[tuple[str, Tensor | _Number]]:
        """Names and tensors of a module: its own, then those of its submodules.

        Args:
            keys: Keys that lead to the module.
            count: Number of attributes visited so far, in a list, so that recursive calls share it.
        """
        if len(keys) > _MAX_DEPTH:
            raise self._refuse(f"its modules are nested deeper than {_MAX_DEPTH} levels")
        declared = self._declared(value.function) if _is_object(value) else None
        items = _items(value.state if _is_object(value) else value)
        if declared is not None:
            items.sort(key=lambda item: declared.get(item[0], len(declared)))
        inner: list[tuple[Any, list[str]]] = []
        for key, item in items:
            path = [*keys, key]
            count[0] += 1
            if count[0] > MAX_TENSORS:  # n nested shared objects could make 2^n names
                raise self._refuse(f"it has more than {MAX_TENSORS} attributes")
            if isinstance(item, Tensor):
                name = ".".join(path)
                if len(name) > MAX_NAME_NBYTES:
                    raise self._refuse(f"the name {name[:40]!r}… is longer than {MAX_NAME_NBYTES} bytes")
                if declared is not None and key not in declared:
                    self._exact.add(name)
                yield name, item
            elif parts := _quantized(item):
                self._exact.update(".".join([*path, key]) for key in parts if key)
                yield from ((".".join([*path, key]) if key else ".".join(path), part) for key, part in parts.items())
            elif isinstance(item.state if _is_object(item) else item, (dict, list, tuple)):
                inner.append((item, path))
            elif what := _what(item):
                self._left_out.append(f"left out {'.'.join(path)[:_LONGEST_TEXT]!r}: {what}")
        for item, path in inner:
            yield from self._walk(item, path, count)

    def _declared(self, module: Global) -> dict[str, int] | None:
        """Positions of a class's parameters and buffers, by name, as its code declares them; None without code.

        The text of the code is searched. It is not run.
        """
        if module.module not in self._codes:
            member = f"code/{module.module.replace('.', '/')}.py"
            self._codes[module.module] = self._read(member, _MAX_CODE_NBYTES).decode(errors="replace")
        start = re.search(rf"^class {re.escape(module.name)}\b.*\n((?:[ \t].*\n?)*)", self._codes[module.module], re.M)
        if start is None:
            return None
        declared: list[str] = []
        for kind in ("parameters", "buffers"):
            names = re.search(rf"^  __{kind}__ = \[(.*)\]$", start[1], re.M)
            if names is None:
                return None
            declared += re.findall(r'"([^"]*)"', names[1])
        return {name: i for i, name in enumerate(declared)}

    def _check(self, name: str, tensor: Tensor, folder: str) -> tuple[str, Strided]:
        """The member that a tensor is in, of a folder of the archive, and where in it."""
        member = f"{self._top}{folder}/{tensor.storage.key}"
        if member not in self._members or tensor.storage.offset:
            raise self._refuse(f"tensor {name!r} is in {member!r}, which is not there, or in a view of it")
        try:
            return member, check_strided(tensor.offset, tensor.shape, tensor.stride, tensor.dtype,
                                         self._archive.nbytes(member), is_conj=tensor.is_conj, is_neg=tensor.is_neg,
                                         )  # fmt: skip
        except ValueError as err:
            raise self._refuse(f"tensor {name!r} in {member!r}: {err}") from err

    def _loader(self, name: str, member: str, tensor: Strided) -> Callable[[], npt.NDArray[Any]]:
        dtype = BY_NAME[tensor.dtype].numpy

        def load() -> npt.NDArray[Any]:
            if not tensor.n_elements:
                return np.empty(tensor.shape, dtype)
            nbytes = n_spanned(tensor.shape, tensor.stride) * dtype.itemsize
            stream = self._open(member)
            stream.seek(tensor.offset * dtype.itemsize)
            data = stream.read(nbytes)
            if len(data) != nbytes:
                raise ConversionError(f"{str(self._path)!r} became shorter while {name!r} was read")
            return array_of(data, tensor.dtype, tensor.shape, tensor.stride, is_conj=tensor.is_conj,
                            is_neg=tensor.is_neg)  # fmt: skip

        return load

    def _open(self, member: str) -> BinaryIO:
        """The file of a storage. The last one stays open, because opening one checks its CRC."""
        if self._opened is None or self._opened[0] != member:
            self._close_storage()
            self._opened = member, self._archive.open(member)
        return self._opened[1]

    def _close_storage(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _close(self) -> None:
        self._close_storage()
        self._archive.close()


def _quantized(value: Any) -> dict[str, Tensor | _Number]:
    """The integers of a quantized tensor, its scales and zero points, by suffix; nothing of another value."""
    if not isinstance(value, Call) or str(value.function) != "torch._utils._rebuild_qtensor":
        return {}
    arguments = value.arguments if isinstance(value.arguments, tuple) else ()
    if len(arguments) < 5:
        return {}
    values, scheme = rebuilt(arguments, len(arguments)), arguments[4]
    if values is None or not isinstance(scheme, tuple) or len(scheme) not in (3, 4):
        return {}
    scale, zero_point = scheme[1:3]
    if isinstance(scale, float) and type(zero_point) is int and -(1 << 63) <= zero_point < 1 << 63:
        return {"": values, "scale": np.float64(scale), "zero_point": np.int64(zero_point)}
    scales, zero_points = tensor_of(scale), tensor_of(zero_point)
    if scales is None or zero_points is None:
        return {}
    return {"": values, "scale": scales, "zero_point": zero_points}


def _source_of_number(name: str, number: _Number) -> SourceTensor:
    array = np.array(number)
    return SourceTensor(name, of_array(array, name).name, (), lambda: array, is_exact=True)


# Functions of TorchScript that give their first argument with a type
_TYPED = frozenset({"restore_type_tag", *(f"build_{kind}list" for kind in ("int", "tensor", "double", "bool"))})


def _items(value: Any) -> list[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [(_key(key), _resolved(item)) for key, item in pairs]


def _key(key: Any) -> str:
    is_short = isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 64)
    return str(key) if is_short else f"a {type(key).__name__}"


def _resolved(value: Any) -> Any:
    """A container, a plain value or a ``Tensor`` in place of the call that makes it; other calls stay."""
    for _ in range(_MAX_DEPTH):
        function = value.function if isinstance(value, Call) else None
        if not isinstance(function, Global) or not isinstance(value.arguments, tuple):
            break
        if function.module == "torch.jit._pickle" and function.name in _TYPED and value.arguments:
            value = value.arguments[0]
        elif str(function) == "collections.OrderedDict":
            return value.items
        else:
            return tensor_of(value) or value
    return value


def _is_object(value: Any) -> TypeGuard[Call]:
    """Whether this is an object of a class of the archive's code; its attributes are its state."""
    function = value.function if isinstance(value, Call) else None
    return isinstance(function, Global) and f"{function.module}.".startswith("__torch__.")


def _what(value: Any) -> str:
    """A description of a value that is left out; empty if it has no numbers that a user could need."""
    if _is_object(value):
        return f"packed weights or another object of {value.function.name[:80]!r}"
    if isinstance(value, Call):
        return _OPAQUE.get(str(value.function), f"an object of {str(value.function)[:80]!r}")
    return ""


_OPAQUE = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch.jit._pickle.build_tensor_from_id": "a tensor of an old archive",
    "torch.device": "a device",
}
