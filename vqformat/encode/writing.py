"""Encoded tensors on their way into a file: which of them make a layer, which share tables, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..describe import describe
from ..dtypes import BY_NAME
from ..records import AliasRecord
from ..writer import EncodedTensor, Writer
from .coded import CodedTensor, Pool
from .quantize import SharedBook
from .report import Report, TensorReport, decibel

_MAX_LAYER_TENSORS = 256
_MAX_LAYER_NBYTES = 1 << 26  # decoded
# Smaller layers are stored together, for a chunk takes as much as a small tensor
_SMALL_LAYER_NBYTES = 1 << 21
_OWN_TABLES_BITS = 1 << 21  # a tensor of so many bits has tables of its own


@dataclass(frozen=True)
class Result:
    """A tensor encoded, and what is to be said of it.

    Attributes:
        encoded: A ``CodedTensor`` waits for its tables.
        energy, noise: Sums of squares of values and errors, where the tensor was coded coarsely.
        loss: What the model is expected to lose by it, compared with others.
    """

    encoded: EncodedTensor | AliasRecord | CodedTensor
    report: TensorReport
    notes: tuple[str, ...] = ()
    energy: float = 0.0
    noise: float = 0.0
    loss: float = 0.0


def layer_name(tensor: str) -> str:
    """The tensor's name up to its last ``.`` or ``/`` (SPEC section 18)."""
    return tensor[: max(tensor.rfind("."), tensor.rfind("/"), 0)]


def write_results(
    writer: Writer, results: Iterable[Result], book: Callable[[int], SharedBook], source_nbytes: int,
    *, is_trial: bool = False,
) -> Report:  # fmt: skip
    """Write results in layers: tensors that follow each other and whose names have the same beginning.

    Args:
        book: The shared codebook of a number; each is written before the first layer that uses it.
        source_nbytes: For the report.
        is_trial: Whether only sizes count: entropy-coded payloads are then as long as they would be, and empty.
    """
    layers = _Layers(writer, book, is_trial=is_trial)
    report = Report(source_nbytes=source_nbytes)
    energy = noise = loss = 0.0
    losses = []
    for result in results:
        layers.add(result)
        report.notes.extend(result.notes)
        energy, noise, loss = energy + result.energy, noise + result.noise, loss + result.loss
        losses.append(result.loss)
    layers.end()
    writer.close()
    report.tensors = [replace(tensor, loss_share=part / loss if loss else 0.0)
                      for tensor, part in zip(layers.reports, losses, strict=True)]  # fmt: skip
    report.file_nbytes, report.section_nbytes = writer.nbytes, writer.section_nbytes
    report.sqnr_db = decibel(energy, noise)
    return report


class _Layers:
    """Tensors gathered to layers, and small layers to one.

    Attributes:
        reports: Of all tensors so far written.
    """

    def __init__(self, writer: Writer, book: Callable[[int], SharedBook], *, is_trial: bool) -> None:
        self._writer, self._book, self._is_trial = writer, book, is_trial
        self.reports: list[TensorReport] = []
        self._results: list[Result] = []
        self._names: list[str] = []  # of the layers in hand
        self._nbytes = 0  # of their tensors, decoded
        self._n_books = 0

    def add(self, result: Result) -> None:
        """A further tensor; may write those before it."""
        name = layer_name(result.report.name)
        nbytes = BY_NAME[result.report.dtype].nbytes(result.report.n_elements)
        is_full = len(self._results) >= _MAX_LAYER_TENSORS or self._nbytes >= _MAX_LAYER_NBYTES
        is_next = bool(self._names) and name != self._names[-1]
        if is_full or (is_next and self._nbytes + nbytes > _SMALL_LAYER_NBYTES):
            self.end()
        if not self._names or name != self._names[-1]:
            self._names.append(name)
        self._results.append(result)
        self._nbytes += nbytes

    def end(self) -> None:
        """Write the tensors in hand as a layer, if there are any."""
        if not self._results:
            return
        tensors = self._coded()
        numbers = [n for tensor in tensors if isinstance(tensor, EncodedTensor) for n in tensor.record.book_numbers()]
        while self._n_books <= max(numbers, default=-1):  # they are numbered as they come to be used
            shared = self._book(self._n_books)
            self._n_books = self._writer.add_book(shared.record, shared.section) + 1
        self._writer.add_layer(_common(self._names), tensors)
        for result, tensor in zip(self._results, tensors, strict=True):
            report = result.report
            if isinstance(result.encoded, CodedTensor) and isinstance(tensor, EncodedTensor):
                report = replace(report, method=describe(tensor.record), stored_nbytes=tensor.stored_nbytes)
            self.reports.append(report)
        self._results, self._names, self._nbytes = [], [], 0

    def _coded(self) -> list[EncodedTensor | AliasRecord]:
        """The tensors in hand, those that wait for tables coded; the tables are written."""
        found = {}
        coded = [result.encoded for result in self._results if isinstance(result.encoded, CodedTensor)]
        for group in _groups(coded):
            pool = Pool.of(group)
            number = self._writer.add_freq(pool.record, pool.section)
            for tensor in group:
                found[tensor.name] = pool.encode(tensor, number, is_trial=self._is_trial)
        return [found[result.encoded.name] if isinstance(result.encoded, CodedTensor) else result.encoded
                for result in self._results]  # fmt: skip


def _groups(tensors: list[CodedTensor]) -> list[list[CodedTensor]]:
    """Which tensors share tables: large ones none, small ones all that have the same number of codebooks."""
    groups: list[list[CodedTensor]] = []
    shared: dict[int, list[CodedTensor]] = {}
    for tensor in tensors:
        if tensor.indices.size * tensor.contexts.expected_bits > _OWN_TABLES_BITS:
            groups.append([tensor])
        elif tensor.n_books in shared:
            shared[tensor.n_books].append(tensor)
        else:
            groups.append(shared.setdefault(tensor.n_books, [tensor]))
    return groups


def _common(names: list[str]) -> str:
    """What names of layers have in common at their beginning, in whole parts."""
    if len(names) == 1:
        return names[0]
    low, high = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low if n == len(low) and high[n : n + 1] in (".", "/", "") else layer_name(low[: n + 1])


class Nowhere:
    """A stream that forgets, to learn the size of a file."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass
