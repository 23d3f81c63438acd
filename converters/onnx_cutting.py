"""The bytes of an ONNX model without its large initializers, which stay in the file until they are loaded.

A parsed model holds all values, beside the bytes that it is parsed from. They are cut out of these bytes before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vqformat.errors import ConversionError

from .file_region import file_bytes
from .model_folder import open_regular
from .protobuf import BYTES, Span, spans

MAX_NBYTES = (1 << 31) - 1  # limit of a protobuf message

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # numbers of fields of ModelProto, GraphProto and TensorProto
_CUT_NBYTES = 1 << 16  # so many bytes of an initializer, or more, are cut out
_MOST_FIELDS = 1 << 20  # of a graph
_MOST_FIELDS_OF_TENSOR = 1 << 7


class Place(NamedTuple):
    """Where the values of an initializer are in the file."""

    offset: int
    nbytes: int


def read_model(path: Path) -> tuple[bytes, dict[int, Place]]:
    """Read a model, without the values of large initializers of its main graph.

    Returns:
        The bytes of the model; and for initializers without their values, by number, where these are in the file.

    Raises:
        ConversionError: It is no regular file, has more than 2 GiB, or becomes shorter while it is read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    if size > MAX_NBYTES:
        raise ConversionError(f"{str(path)!r} has more than the 2 GiB that an ONNX model can have")
    data = file_bytes(path, 0, size).data
    places: dict[int, Place] = {}
    try:
        return b"".join(_parts_of_model(data, places)), places
    except ValueError:
        return bytes(data), {}  # damaged or unusual: the parser tells


def _parts_of_model(data: memoryview, places: dict[int, Place]) -> Iterator[bytes | memoryview]:
    has_graph = False
    for span in _few(data, _MOST_FIELDS):
        if span.number != _GRAPH or span.kind != BYTES:
            yield data[span.start : span.end]
            continue
        if has_graph:
            raise ValueError("two graphs, which a parser joins")
        has_graph = True
        yield from _field(_GRAPH, list(_parts_of_graph(data[span.value : span.end], span.value, places)))


def _parts_of_graph(data: memoryview, offset: int, places: dict[int, Place]) -> Iterator[bytes | memoryview]:
    """The parts of a graph that stay.

    Args:
        offset: Of the graph in the file.
        places: Those of the values that are cut out are added.
    """
    n = 0
    for span in _few(data, _MOST_FIELDS):
        if span.number != _INITIALIZER or span.kind != BYTES:
            yield data[span.start : span.end]
            continue
        tensor = data[span.value : span.end]
        raw = _large_values(tensor)
        if raw is None:
            yield data[span.start : span.end]
        else:
            places[n] = Place(offset + span.value + raw.value, raw.end - raw.value)
            yield from _field(_INITIALIZER, [tensor[: raw.start], tensor[raw.end :]])
        n += 1


def _large_values(tensor: memoryview) -> Span | None:
    """The field of the values, if they are large."""
    if len(tensor) < _CUT_NBYTES:
        return None
    raw = [span for span in _few(tensor, _MOST_FIELDS_OF_TENSOR) if span.number == _RAW_DATA]
    is_large = len(raw) == 1 and raw[0].kind == BYTES and raw[0].end - raw[0].value >= _CUT_NBYTES
    return raw[0] if is_large else None


def _few(data: memoryview, most: int) -> Iterator[Span]:
    found = spans(data)
    yield from islice(found, most)
    if next(found, None) is not None:
        raise ValueError(f"more than {most} fields")


def _field(number: int, parts: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """A field of these bytes."""
    yield bytes([number << 3 | BYTES])
    rest = sum(map(len, parts))
    while rest >= 0x80:
        yield bytes([rest & 0x7F | 0x80])
        rest >>= 7
    yield bytes([rest])
    yield from parts
