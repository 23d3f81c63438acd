"""Writing tensors to an ONNX model: they are put into the graph of the source model."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.bits import pack_nibbles
from vqformat.format.dtypes import BY_NAME

from ..onnx import MAX_NBYTES, initializers, parse_model
from ..source import Source

if TYPE_CHECKING:
    from onnx import ModelProto

_ELSEWHERE = "extract to .safetensors, .pt or .npz"


def write_onnx(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Fill the graph with the tensors, as raw_data, and write the model. It is in memory twice at the end.

    Raises:
        ConversionError: The source was not an ONNX model, tensors do not fit its graph, or the model exceeds 2 GiB.
    """
    model = _graph(source)
    by_name = {tensor.name: tensor for tensor in tensors}
    taken, *_ = initializers(model)
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
    nbytes = model.ByteSize() + sum(each.nbytes + 64 for each in taken)  # 64: for protobuf tags and lengths
    if nbytes > MAX_NBYTES:
        raise ConversionError(f"the ONNX model would have {nbytes:,} bytes, and at most {MAX_NBYTES:,} are possible;"
                              f" {_ELSEWHERE}")  # fmt: skip
    for each, tensor in found:
        if each.count:
            data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
            each.proto.raw_data = pack_nibbles(data) if BY_NAME[each.dtype].bits == 4 else data.tobytes()
    stream.write(model.SerializeToString(deterministic=True))


def _graph(source: Source) -> ModelProto:
    origin = source.origin.get("format", "somewhere unknown")
    if origin != "onnx":
        raise ConversionError(f"the .vqm came from {origin!r}, not ONNX: there is no graph; {_ELSEWHERE}")
    graph = source.origin.get("graph")
    if not isinstance(graph, bytes):
        raise ConversionError(f"the .vqm came from ONNX, but has no graph: it was too large; {_ELSEWHERE}")
    return parse_model(graph, "the graph in the .vqm")
