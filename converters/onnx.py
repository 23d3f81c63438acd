"""Reading ONNX models: initializers and large constants become tensors, and the rest of the graph is stored as bytes.

Only the protobuf classes of the onnx package are used. Its checker, its shape inference and its reader of external data
are not safe for untrusted files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.bits import unpack_nibbles
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_RANK

from .model_folder import inside, open_regular, read_file
from .source import Source

try:
    from google.protobuf.message import DecodeError
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto
except ImportError as err:
    raise ImportError("ONNX models need the onnx package; run: pip install 'vqformat[onnx]'") from err

MAX_NBYTES = (1 << 31) - 1  # limit of a protobuf message
MAX_GRAPH_NBYTES = 15 << 20  # leaves room for other metadata in META, which has at most 16 MiB
_FEW = 16  # a tensor of at most so many elements is kept exactly: it may be the scales of a Resize or bounds of a Clip

# TensorProto.DataType -> dtype name in SPEC, and the field of values that are not in raw_data
_DTYPES = {
    1: ("f32", "float_data"), 2: ("u8", "int32_data"), 3: ("i8", "int32_data"), 4: ("u16", "int32_data"),
    5: ("i16", "int32_data"), 6: ("i32", "int32_data"), 7: ("i64", "int64_data"), 9: ("bool", "int32_data"),
    10: ("f16", "int32_data"), 11: ("f64", "double_data"), 12: ("u32", "uint64_data"), 13: ("u64", "uint64_data"),
    14: ("c64", "float_data"), 15: ("c128", "double_data"), 16: ("bf16", "int32_data"),
    17: ("f8_e4m3fn", "int32_data"), 18: ("f8_e4m3fnuz", "int32_data"), 19: ("f8_e5m2", "int32_data"),
    20: ("f8_e5m2fnuz", "int32_data"), 21: ("u4", "int32_data"), 22: ("i4", "int32_data"),
    23: ("f4_e2m1fn", "int32_data"), 24: ("f8_e8m0fnu", "int32_data"),
}  # fmt: skip
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_WORDS = {"float_data": "<f4", "double_data": "<f8", "int32_data": "<i4", "int64_data": "<i8", "uint64_data": "<u8"}


@dataclass(frozen=True)
class Initializer:
    """An initializer, or the value of a Constant node, that a ``.vqm`` can hold."""

    name: str
    proto: TensorProto
    dtype: str
    shape: tuple[int, ...]
    is_constant: bool

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(self.count)

    def strip(self) -> None:
        """Remove the values from the proto; for external data also the reference to the file."""
        remove_values(self.proto, has_elements=self.count > 0)

    def put_outside(self, location: str, offset: int, length: int) -> None:
        """Say in the proto that the values are in a file beside the model."""
        self.proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            self.proto.external_data.add(key=key, value=str(value))


def remove_values(proto: TensorProto, *, has_elements: bool = True) -> None:
    """Remove the values; for external data also the reference to the file."""
    for field in _FIELDS:
        proto.ClearField(field)
    if has_elements:  # without elements raw_data may be set or not, and stays so
        proto.ClearField("raw_data")
    if proto.data_location == TensorProto.EXTERNAL:
        proto.ClearField("data_location")
        proto.ClearField("external_data")


def open_onnx(path: Path) -> Source:
    """Open a model. It is read at once, except for external data.

    Raises:
        ConversionError: It is damaged, or not an ONNX model, or its external data is not in a file in its folder.
        EncodeError: A ``.vqm`` cannot hold a shape.
    """
    what = repr(str(path))
    if path.stat().st_size > MAX_NBYTES:
        raise ConversionError(f"{what} has more than the 2 GiB that an ONNX model can have")
    return open_model(path, parse_model(read_file(path, MAX_NBYTES), what))


def parse_model(data: bytes, what: str) -> ModelProto:
    """Parse a model that has a graph.

    Args:
        what: Name of the model, for error texts.

    Raises:
        ConversionError: The bytes are not such a model.
    """
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as err:
        raise ConversionError(f"{what} is no ONNX model, or damaged or cut short ({err})") from err
    if not model.HasField("graph"):
        raise ConversionError(f"{what} is no ONNX model, or cut short: it has no graph")
    return model


def initializers(model: ModelProto) -> tuple[list[Initializer], list[TensorProto], list[TensorProto], set[str]]:
    """Find the tensors of all graphs. The result is the same before and after their values are removed.

    Returns:
        The tensors to take out of the graph, with unique names (a further ``w`` becomes ``w#2``); the initializers that
        stay in the graph; the constants that stay; and the reasons why.
    """
    taken: dict[str, Initializer] = {}
    left: list[TensorProto] = []
    constants: list[TensorProto] = []
    reasons: set[str] = set()
    seen: Counter[str] = Counter()

    def take(name: str, proto: TensorProto, others: list[TensorProto], *, is_constant: bool = False) -> None:
        reason = _why_left(name, proto)
        if reason:
            others.append(proto)
            reasons.add(reason)
            return
        unique = name
        while unique in taken:
            seen[name] += 1
            unique = f"{name}#{seen[name] + 1}"
        taken[unique] = Initializer(unique, proto, _DTYPES[proto.data_type][0], tuple(proto.dims), is_constant)

    for graph in _graphs(model):
        if isinstance(graph, GraphProto):
            for proto in graph.initializer:
                take(proto.name, proto, left)
            if graph.sparse_initializer:
                left += [sparse.values for sparse in graph.sparse_initializer]
                reasons.add("sparse")
        for node in graph.node:
            for attribute in node.attribute:
                constants += attribute.tensors
                if attribute.HasField("t"):
                    count = prod(attribute.t.dims[:MAX_RANK])  # the product of many axes could take hours
                    if node.op_type == "Constant" and len(node.output) == 1 and count > _FEW:
                        # exporters put weights of inner graphs here
                        take(node.output[0], attribute.t, constants, is_constant=True)
                    else:
                        constants.append(attribute.t)
    return list(taken.values()), left, constants, reasons


def _graphs(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """All graphs and functions, each before the graphs that it contains. protobuf limits the depth."""
    waiting: list[GraphProto | FunctionProto] = [*reversed(model.functions), model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        inner: list[GraphProto | FunctionProto] = []
        for node in graph.node:
            for attribute in node.attribute:
                inner += [attribute.g] * attribute.HasField("g")
                inner += attribute.graphs
        waiting += reversed(inner)


def _why_left(name: str, proto: TensorProto) -> str:
    """Why this cannot become a tensor; empty if it can. It does not depend on the values."""
    if proto.data_type not in _DTYPES:
        known = {value: name.lower() for name, value in TensorProto.DataType.items()}
        return f"dtype {known.get(proto.data_type, proto.data_type)}"
    if len(proto.dims) > MAX_RANK:
        return f"more than {MAX_RANK} axes"
    try:
        check_name(name if isinstance(name, str) else "")  # protobuf gives bytes if it is not UTF-8
    except EncodeError:
        return "a name that a .vqm cannot have"
    return ""


def open_model(path: Path, model: ModelProto) -> Source:
    """Make a source from a model. The values of its tensors are removed from the model.

    Args:
        path: Path of the model; external data is beside it.
    """
    taken, left, constants, reasons = initializers(model)
    axes, recurrent = _output_axes(model), _recurrent(model)
    notes: list[str] = []
    tensors = []
    for each in taken:
        load = _loader(path, each)
        axis = axes.get(each.name, 0) if len(each.shape) == 2 else 0
        tensors.append(SourceTensor(each.name, each.dtype, each.shape, load, is_exact=each.count <= _FEW,
                                    output_axis=axis, is_recurrent=each.name in recurrent))  # fmt: skip
        each.strip()
    if left:
        notes.append(f"{_of(left, 'initializer')} in the graph, not compressed: {', '.join(sorted(reasons))}")
    if constants:
        notes.append(f"{_of(constants, 'constant')} in nodes of the graph, not compressed")
    _embed(path, model, [*left, *constants, *_sparse_parts(model)])
    outside = still_outside(left + constants)
    if outside:
        entries = [entry for proto in outside for entry in proto.external_data]
        places = sorted({repr(entry.value) for entry in entries if entry.key == "location"})
        notes.append(f"{len(outside)} of them keep their data in {', '.join(places[:8])}, which the graph still needs"
                     " beside it")  # fmt: skip
    origin: dict[str, Any] = {"format": "onnx"}
    graph = model.SerializeToString(deterministic=True)
    if len(graph) <= MAX_GRAPH_NBYTES:
        origin["graph"] = graph
    else:
        notes.append(f"left out the graph: it has {len(graph):,} bytes without the initializers, and"
                     f" {MAX_GRAPH_NBYTES:,} are allowed; the .vqm cannot be extracted to .onnx")  # fmt: skip
    return Source("onnx", tensors, {}, notes, origin)


def still_outside(protos: list[TensorProto]) -> list[TensorProto]:
    """Those tensors whose values are in a file beside the model."""
    return [proto for proto in protos if proto.data_location == TensorProto.EXTERNAL]


def _sparse_parts(model: ModelProto) -> Iterator[TensorProto]:
    """The indices of sparse initializers, and both parts of sparse constants; other functions have the rest."""
    for graph in _graphs(model):
        if isinstance(graph, GraphProto):
            yield from (sparse.indices for sparse in graph.sparse_initializer)
        for node in graph.node:
            for attribute in node.attribute:
                for sparse in [attribute.sparse_tensor] * attribute.HasField("sparse_tensor"):
                    yield from (sparse.values, sparse.indices)


def _output_axes(model: ModelProto) -> dict[str, int]:
    """For the name of each matrix of a MatMul or Gemm, the axis of the outputs."""
    axes = {}
    for graph in _graphs(model):
        for node in graph.node:
            if node.op_type in ("MatMul", "Gemm") and len(node.input) > 1:
                is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
                axes[node.input[1]] = 0 if is_transposed else 1
    return axes


def _recurrent(model: ModelProto) -> set[str]:
    """Names of the weights of recurrent layers."""
    return {name for graph in _graphs(model) for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")
            for name in node.input[1:3]}  # fmt: skip


def _of(protos: list[TensorProto], what: str) -> str:
    nbytes = sum(proto.ByteSize() for proto in protos)
    return f"{len(protos)} {what}{'s stay' if len(protos) > 1 else ' stays'} ({nbytes:,} bytes)"


def _loader(path: Path, each: Initializer) -> Callable[[], npt.NDArray[Any]]:
    where = f"{str(path)!r}: tensor {each.name!r}"
    if any(size < 0 for size in each.shape) or each.proto.HasField("segment"):
        raise ConversionError(f"{where} has shape {each.shape} or is a part of a tensor, which cannot be read")
    check_shape(each.name, each.shape)
    dtype, shape, nbytes = each.dtype, each.shape, each.nbytes
    if each.proto.data_location == TensorProto.EXTERNAL:
        file, offset, length = _outside(path, each.proto, where, nbytes)
        if length != nbytes:
            raise ConversionError(f"{where} of shape {shape} and dtype {dtype} needs {nbytes} bytes, but has {length}"
                                  " outside the model")  # fmt: skip

        def load() -> npt.NDArray[Any]:
            data = np.fromfile(file, np.uint8, nbytes, offset=offset)
            if data.size < nbytes:
                raise ConversionError(f"{str(file)!r} became shorter while it was read")
            return _array(data, dtype, shape)

        return load
    kept = _inside(each, where)
    return lambda: _array(np.frombuffer(kept, np.uint8), dtype, shape)


def _entries(proto: TensorProto) -> dict[str, str]:
    """Where external data is; a value that is no text becomes empty."""
    return {entry.key: entry.value if isinstance(entry.value, str) else "" for entry in proto.external_data}


def _outside(path: Path, proto: TensorProto, where: str, nbytes: int) -> tuple[Path, int, int]:
    """File, offset and length of external data. For safety, the file must be in the folder of the model or below it.

    Args:
        nbytes: The length if the model does not tell it.
    """
    entries = _entries(proto)
    location = entries.get("location", "")
    file = inside(path, location, f"{where} has its data in")
    try:
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
    except (FileNotFoundError, NotADirectoryError):
        raise ConversionError(f"{where} has its data in {location!r}, which is not beside it") from None
    except ConversionError as err:
        raise ConversionError(f"{where} has its data in another file, and {err}") from err
    numbers = [entries.get("offset", "0"), entries.get("length", str(nbytes))]
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise ConversionError(f"{where} has offset and length {numbers} in {location!r}")
    offset, length = map(int, numbers)
    if offset + length > size:
        raise ConversionError(f"{where} has its data in {length} bytes at {offset} of {location!r}, which has {size}")
    return file, offset, length


def _embed(path: Path, model: ModelProto, protos: list[TensorProto]) -> None:
    """Put the external data of tensors that stay in the graph into it, unless they are too large together.

    A tensor without a length is left as it is: the size of its dtype may be unknown.
    """
    places = []
    for proto in protos:
        if proto.data_location == TensorProto.EXTERNAL and "length" in _entries(proto):
            where = f"{str(path)!r}: tensor {proto.name!r}"
            places.append((proto, *_outside(path, proto, where, 0)))
    if model.ByteSize() + sum(length for *_, length in places) > MAX_GRAPH_NBYTES:
        return
    for proto, file, offset, length in places:
        with open_regular(file) as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) < length:
            raise ConversionError(f"{str(file)!r} became shorter while it was read")
        remove_values(proto)
        proto.raw_data = data


def _inside(each: Initializer, where: str) -> bytes:
    """The values inside a model, in the form of raw_data. Sizes are checked before memory is allocated."""
    field = _DTYPES[each.proto.data_type][1]
    others = [other for other in _FIELDS if other != field and len(getattr(each.proto, other))]
    values = getattr(each.proto, field)
    raw: bytes = each.proto.raw_data
    if others or (raw and len(values)):
        raise ConversionError(f"{where} has its data twice, or in the wrong field")
    if not len(values):
        if len(raw) != each.nbytes:
            raise ConversionError(f"{where} of shape {each.shape} and dtype {each.dtype} needs {each.nbytes} bytes, but"
                                  f" {len(raw)} are there")  # fmt: skip
        return raw
    info = BY_NAME[each.dtype]
    expected = (each.count + 1) // 2 if info.bits == 4 else each.count * (1 + info.is_complex)
    if len(values) != expected:
        raise ConversionError(f"{where} of shape {each.shape} and dtype {each.dtype} needs {expected} values, but"
                              f" {len(values)} are there")  # fmt: skip
    words = np.dtype(_WORDS[field])
    if words.kind == "f":  # serialized, because conversion to Python floats changes NaN payloads
        packed = TensorProto()
        getattr(packed, field).MergeFrom(values)
        message: bytes = packed.SerializeToString()
        return message[-expected * words.itemsize :]
    array: npt.NDArray[Any] = np.fromiter(values, words, expected)
    array = array != 0 if each.dtype == "bool" else array.astype(f"<u{max(info.bits // 8, 1)}")
    return array.tobytes()


def _array(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    info = BY_NAME[dtype]
    if dtype == "bool":
        data = (data != 0).view(np.uint8)
    if info.bits == 4:
        data = unpack_nibbles(data, 2 * data.size)[: prod(shape)]
        if dtype == "i4":  # ml_dtypes extends the sign into the upper half of the byte
            data = (data ^ np.uint8(8)) - np.uint8(8)
    return data.view(info.numpy).reshape(shape)
