"""Writing tensors to an ONNX model: they are put into the graph of the source model."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.bits import pack_nibbles
from vqformat.format.dtypes import BY_NAME

from ..onnx import initializers, parse_model, still_outside
from ..onnx_cutting import MAX_NBYTES
from ..onnx_values import Initializer
from ..source import Source
from .data_file import DataFile

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_SMALL_NBYTES = 1024  # smaller tensors stay in the model, as the onnx package leaves them: shape inference needs some
_OVERHEAD_NBYTES = 64  # of a tensor, for protobuf tags and lengths
_LOCATION_NBYTES = 512  # at most, of the name, offset and length of external data
_ALIGNMENT = 4096  # so that programs can map the values into memory
_ELSEWHERE = "extract to .safetensors, .pt or .npz"


def write_onnx(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str],
               data: DataFile | None = None) -> None:  # fmt: skip
    """Fill the graph with the tensors and write the model.

    The values become raw_data in the model, which is in memory twice at the end. If the model exceeds the 2 GiB that
    protobuf allows, they become external data in a file beside it, and one tensor at a time is in memory.

    Args:
        data: The file beside the model; None if there can be none.

    Raises:
        ConversionError: The source was not an ONNX model, tensors do not fit its graph, or the graph exceeds 2 GiB.
        FileExistsError: The file beside the model exists and must not be replaced.
    """
    model = _graph(source)
    by_name = {tensor.name: tensor for tensor in tensors}
    taken, left, constants, _ = initializers(model)
    found = []
    for each in taken:
        tensor = by_name.pop(each.name, None)
        if tensor is None:
            raise ConversionError(f"tensor {each.name!r} is missing: an ONNX model needs all of its initializers;"
                                  f" extract without names, or {_ELSEWHERE}")  # fmt: skip
        if (tensor.dtype, tensor.shape) != (each.dtype, each.shape):
            raise ConversionError(f"tensor {each.name!r} has dtype {tensor.dtype} and shape {tensor.shape}, but the"
                                  f" graph expects {each.dtype} and {each.shape}; {_ELSEWHERE}")  # fmt: skip
        each.strip()
        found.append((each, tensor))
    if by_name:
        raise ConversionError(f"tensor {next(iter(by_name))!r} is no initializer of the ONNX graph; {_ELSEWHERE}")
    needed = sorted({_location(proto) for proto in still_outside(left + constants)})
    outside = _to_put_outside(model, taken, may_be_outside=data is not None)
    if data is not None and outside:
        if data.name in needed:
            raise ConversionError(f"the graph needs a file {data.name!r} of its source, and the values of this model"
                                  " would replace it; give another name")  # fmt: skip
        _write_outside(data, [(each, tensor) for each, tensor in found if each.name in outside])
        notes.append(f"an ONNX model of more than 2 GiB keeps values in a second file: {data.name!r} belongs beside it")
    if needed:
        notes.append(f"the graph needs {', '.join(map(repr, needed[:8]))} of its source beside it")
    for each, tensor in found:
        if each.count and each.name not in outside:
            each.proto.raw_data = _raw_data(tensor)
    stream.write(model.SerializeToString(deterministic=True))


def _to_put_outside(model: ModelProto, taken: list[Initializer], *, may_be_outside: bool) -> set[str]:
    """Names of the tensors whose values do not fit the model: none, the larger initializers, or constants too.

    Not all programs find the external data of constants.
    """
    large = {each.name for each in taken if each.nbytes >= _SMALL_NBYTES}
    constants = {each.name for each in taken if each.is_constant}
    choices = [set[str](), large - constants, large] if may_be_outside else [set[str]()]
    for outside in choices:
        inside_nbytes = sum(each.nbytes for each in taken if each.name not in outside)
        overhead_nbytes = _OVERHEAD_NBYTES * len(taken) + _LOCATION_NBYTES * len(outside)
        nbytes = model.ByteSize() + inside_nbytes + overhead_nbytes
        if nbytes <= MAX_NBYTES:
            return outside
    raise ConversionError(f"the ONNX model would have {nbytes:,} bytes, and at most {MAX_NBYTES:,} are possible;"
                          f" {_ELSEWHERE}")  # fmt: skip


def _write_outside(data: DataFile, found: list[tuple[Initializer, SourceTensor]]) -> None:
    """Write values to the file beside the model, one tensor at a time."""
    name = data.name
    stream = data.open()
    end = 0
    for each, tensor in found:
        offset = end + -end % _ALIGNMENT
        raw = _raw_data(tensor)
        stream.write(bytes(offset - end))
        stream.write(raw)
        end = offset + len(raw)
        each.put_outside(name, offset, len(raw))


def _raw_data(tensor: SourceTensor) -> bytes:
    data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
    return pack_nibbles(data) if BY_NAME[tensor.dtype].bits == 4 else data.tobytes()


def _location(proto: TensorProto) -> str:
    return next((str(entry.value) for entry in proto.external_data if entry.key == "location"), "")


def _graph(source: Source) -> ModelProto:
    origin = source.origin.get("format", "somewhere unknown")
    if origin != "onnx":
        raise ConversionError(f"the .vqm came from {origin!r}, not ONNX: there is no graph; {_ELSEWHERE}")
    graph = source.origin.get("graph")
    if not isinstance(graph, bytes):
        raise ConversionError(f"the .vqm came from ONNX, but has no graph: it was too large; {_ELSEWHERE}")
    return parse_model(graph, "the graph in the .vqm")
