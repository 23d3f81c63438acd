"""Encoded tensors on their way into a file: which of them make a layer, and the report of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..records import AliasRecord
from ..writer import EncodedTensor, Writer
from .quantize import SharedBook
from .report import Report, TensorReport

_MAX_LAYER_TENSORS = 256
_MAX_LAYER_NBYTES = 1 << 26  # decoded


@dataclass(frozen=True)
class Result:
    """A tensor encoded, and what is to be said of it."""

    encoded: EncodedTensor | AliasRecord
    report: TensorReport
    notes: tuple[str, ...] = ()


def layer_name(tensor: str) -> str:
    """The tensor's name up to its last ``.`` or ``/`` (SPEC section 17)."""
    return tensor[: max(tensor.rfind("."), tensor.rfind("/"), 0)]


def write_results(
    writer: Writer, results: Iterable[Result], book: Callable[[int], SharedBook], source_nbytes: int
) -> Report:
    """Write results in layers: tensors that follow each other and whose names have the same beginning.

    Where no name has a beginning, a layer could be the whole model: it ends when it is large.

    Args:
        book: The shared codebook of a number; each is written before the first layer that uses it.
        source_nbytes: For the report.
    """
    report = Report(source_nbytes=source_nbytes)
    layer: list[EncodedTensor | AliasRecord] = []
    layer_nbytes = n_books = 0
    name = ""

    def end_layer() -> None:
        nonlocal layer, layer_nbytes, n_books
        numbers = [n for tensor in layer if isinstance(tensor, EncodedTensor) for n in tensor.record.book_numbers()]
        while n_books <= max(numbers, default=-1):  # they are numbered as they come to be used
            n_books = writer.add_book(book(n_books).record, book(n_books).section) + 1
        if layer:
            writer.add_layer(name, layer)
        layer, layer_nbytes = [], 0

    for result in results:
        report.tensors.append(result.report)
        report.notes.extend(result.notes)
        is_full = len(layer) >= _MAX_LAYER_TENSORS or layer_nbytes >= _MAX_LAYER_NBYTES
        if is_full or name != layer_name(result.report.name):
            end_layer()
        name = layer_name(result.report.name)
        layer.append(result.encoded)
        layer_nbytes += result.report.n_elements * 4
    end_layer()
    writer.close()
    report.file_nbytes, report.section_nbytes = writer.nbytes, writer.section_nbytes
    return report


class Nowhere:
    """A stream that forgets, to learn the size of a file."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass
