"""Reading ONNX models: initializers and large constants become tensors, and the rest of the graph is stored as bytes.

Only the protobuf classes of the onnx package are used. Its checker, its shape inference and its reader of external data
are not safe for untrusted files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vqformat.encode.source import SourceTensor, check_name
from vqformat.errors import ConversionError, EncodeError, missing_package
from vqformat.format.limits import MAX_RANK

from .file_region import file_bytes
from .onnx_cutting import Place, read_model
from .source import Source

try:
    from google.protobuf.message import DecodeError
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto
except ImportError as err:
    raise missing_package("ONNX models need", "onnx", err) from err

from .onnx_values import DTYPES, MAX_GRAPH_NBYTES, Initializer, embed, loader

_FEW = 16  # a tensor of at most so many elements is kept exactly: it may be the scales of a Resize or bounds of a Clip


def open_onnx(path: Path) -> Source:
    """Open a model. It is read at once, except for large initializers and external data.

    Raises:
        ConversionError: It is damaged, or not an ONNX model, or its external data is not in a file in its folder.
        EncodeError: A ``.vqm`` cannot hold a shape.
    """
    data, places = read_model(path)
    return open_model(path, parse_model(data, repr(str(path))), places)


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

    def take(name: str, proto: TensorProto, others: list[TensorProto], number: int | None = None, *,
             is_constant: bool = False) -> None:  # fmt: skip
        reason = _why_left(name, proto)
        if reason:
            others.append(proto)
            reasons.add(reason)
            return
        unique = name
        while unique in taken:
            seen[name] += 1
            unique = f"{name}#{seen[name] + 1}"
        taken[unique] = Initializer(unique, proto, DTYPES[proto.data_type][0], tuple(proto.dims), is_constant,
                                    number)  # fmt: skip

    for n_before, graph in enumerate(_graphs(model)):
        if isinstance(graph, GraphProto):
            for number, proto in enumerate(graph.initializer):
                take(proto.name, proto, left, None if n_before else number)  # the main graph comes first
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
    if proto.data_type not in DTYPES:
        known = {value: name.lower() for name, value in TensorProto.DataType.items()}
        return f"dtype {known.get(proto.data_type, proto.data_type)}"
    if len(proto.dims) > MAX_RANK:
        return f"more than {MAX_RANK} axes"
    try:
        check_name(name if isinstance(name, str) else "")  # protobuf gives bytes if it is not UTF-8
    except EncodeError:
        return "a name that a .vqm cannot have"
    return ""


def open_model(path: Path, model: ModelProto, places: Mapping[int, Place] = MappingProxyType({})) -> Source:
    """Make a source from a model. The values of its tensors are removed from the model.

    Args:
        path: Path of the model; external data is beside it.
        places: For initializers whose values have been cut out, by number, where these are in the file.
    """
    for number, place in places.items():
        proto = model.graph.initializer[number]
        if _why_left(proto.name, proto):  # its values stay in the graph
            proto.raw_data = file_bytes(path, *place).tobytes()
    taken, left, constants, reasons = initializers(model)
    has_external_data = bool(still_outside([*(each.proto for each in taken), *left, *constants]))
    axes, recurrent = _output_axes(model), _recurrent(model)
    notes: list[str] = []
    tensors = []
    for each in taken:
        load = loader(path, each, None if each.number is None else places.get(each.number))
        axis = axes.get(each.name, 0) if len(each.shape) == 2 else 0
        tensors.append(SourceTensor(each.name, each.dtype, each.shape, load, is_exact=each.count <= _FEW,
                                    output_axis=axis, is_recurrent=each.name in recurrent))  # fmt: skip
        each.strip()
    if left:
        notes.append(f"{_of(left, 'initializer')} in the graph, not compressed: {', '.join(sorted(reasons))}")
    if constants:
        notes.append(f"{_of(constants, 'constant')} in nodes of the graph, not compressed")
    embed(path, model, [*left, *constants, *_sparse_parts(model)])
    outside = still_outside(left + constants)
    if outside:
        entries = [entry for proto in outside for entry in proto.external_data]
        locations = sorted({repr(entry.value) for entry in entries if entry.key == "location"})
        notes.append(f"{len(outside)} of them keep their data in {', '.join(locations[:8])}, which the graph still"
                     " needs beside it")  # fmt: skip
    origin: dict[str, Any] = {"format": "onnx"}
    graph = model.SerializeToString(deterministic=True)
    if len(graph) <= MAX_GRAPH_NBYTES:
        origin["graph"] = graph
    else:
        notes.append(f"left out the graph: it has {len(graph):,} bytes without the initializers, and"
                     f" {MAX_GRAPH_NBYTES:,} are allowed; the .vqm cannot be extracted to .onnx")  # fmt: skip
    return Source("onnx", tensors, {}, notes, origin, has_external_data=has_external_data)


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
