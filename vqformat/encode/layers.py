"""Writing encoded tensors to a file: grouping them into layers, sharing tables, and making the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..format.chunkwriter import EncodedTensor
from ..format.dtypes import BY_NAME
from ..format.records import AliasRecord
from ..format.sharded_writer import ShardedWriter
from ..format.stage_summary import stage_summary
from .methods.quantize import SharedBook
from .new_model import ModelWriter
from .report import Report, TensorReport, decibel
from .small.coded_tensor import CodedTensor
from .small.entropy_coding import Pool

_MAX_LAYER_TENSORS = 256
_MAX_LAYER_NBYTES = 1 << 26  # decoded
# Smaller layers are stored in one chunk, since the overhead of a chunk is as large as a small tensor
_SMALL_LAYER_NBYTES = 1 << 21
_OWN_TABLES_BITS = 1 << 21  # a tensor whose codes take more bits has frequency tables of its own


@dataclass(frozen=True)
class Result:
    """An encoded tensor, its report and its notes.

    Attributes:
        encoded: The tensor. A ``CodedTensor`` has no tables yet; they are made when its layer is written.
        layer: Number and name of its layer; None if the layer follows from the name of the tensor.
        energy, noise: Sums of squares of values and of errors, if the tensor was coded coarsely; else 0.
        source_nbytes: Bytes of the tensor in the source; 0 for an alias.
        holder: Of an alias that is not the same array as its target: the alias whose array it is, see ``Copies``.
    """

    encoded: EncodedTensor | AliasRecord | CodedTensor
    report: TensorReport
    notes: tuple[str, ...] = ()
    layer: tuple[int, str] | None = None
    energy: float = 0.0
    noise: float = 0.0
    source_nbytes: int = 0
    holder: str | None = None


def layer_name(tensor: str) -> str:
    """The tensor's name up to its last ``.`` or ``/`` (SPEC section 18)."""
    return tensor[: max(tensor.rfind("."), tensor.rfind("/"), 0)]


class LayerWriter:
    """Groups results into layers, writes them, and makes the report.

    Consecutive tensors with the same ``layer`` make a layer; if they have none, those with the same prefix of names do.
    In that case small layers are joined. A very large layer is split.

    Args:
        writer: Writes the chunks.
        book: Returns the shared codebook with a number. It is written before the first layer that uses it. None if
            tensors share no codebooks.
    """

    def __init__(self, writer: ModelWriter, book: Callable[[int], SharedBook] | None = None) -> None:
        self._writer, self._book = writer, book
        self._small_nbytes = _SMALL_LAYER_NBYTES
        if isinstance(writer, ShardedWriter):
            self._small_nbytes = min(self._small_nbytes, writer.max_nbytes)
        self._report = Report()
        self._energy = self._noise = 0.0
        self._sqnr_db: dict[str, float] = {}  # of the tensors written so far
        self._results: list[Result] = []
        self._layers: list[str | tuple[int, str]] = []  # the layers of the results that wait to be written
        self._nbytes = 0  # decoded bytes of these results
        self._n_books = 0

    def add(self, result: Result) -> None:
        """Add the next tensor. It may write the layer of the tensors before it."""
        layer = result.layer or layer_name(result.report.name)
        nbytes = BY_NAME[result.report.dtype].nbytes(result.report.n_elements)
        is_full = len(self._results) >= _MAX_LAYER_TENSORS or self._nbytes >= _MAX_LAYER_NBYTES
        is_next = bool(self._layers) and layer != self._layers[-1]
        if is_full or (is_next and (result.layer or self._nbytes + nbytes > self._small_nbytes)):
            self.end()
        if not self._layers or layer != self._layers[-1]:
            self._layers.append(layer)
        self._results.append(result)
        self._nbytes += nbytes
        self._note(result)

    def _note(self, result: Result) -> None:
        self._report.notes.extend(result.notes)
        self._energy, self._noise = self._energy + result.energy, self._noise + result.noise
        self._report.source_nbytes += result.source_nbytes

    def close(self) -> Report:
        """Write the last layer, close the file, and return the report."""
        self.end()
        self._writer.close()
        report = self._report
        report.file_nbytes, report.section_nbytes = self._writer.nbytes, self._writer.section_nbytes
        report.sqnr_db = decibel(self._energy, self._noise)
        if isinstance(self._writer, ShardedWriter) and len(self._writer.files) > 1:
            report.files.extend(self._writer.files)
        return report

    def end(self) -> None:
        """Write the tensors that wait as a layer, if there are any."""
        if not self._results:
            return
        tensors = self._coded()
        numbers = [n for tensor in tensors if isinstance(tensor, EncodedTensor) for n in tensor.record.book_numbers()]
        while self._n_books <= max(numbers, default=-1):  # codebooks are numbered in the order of their first use
            assert self._book is not None
            shared = self._book(self._n_books)
            self._n_books = self._writer.add_book(shared.record, shared.section) + 1
        names = [layer if isinstance(layer, str) else layer[1] for layer in self._layers]
        holders = {result.report.name: result.holder for result in self._results if result.holder is not None}
        self._writer.add_layer(_common(names), tensors, holders)
        for result, tensor in zip(self._results, tensors, strict=True):
            report = result.report
            if isinstance(result.encoded, CodedTensor) and isinstance(tensor, EncodedTensor):
                report = replace(report, method=stage_summary(tensor.record), stored_nbytes=tensor.stored_nbytes)
            if isinstance(tensor, AliasRecord) and result.holder == report.name:
                report = replace(report, sqnr_db=self._sqnr_db[tensor.target])
            self._sqnr_db[report.name] = report.sqnr_db
            self._report.tensors.append(report)
        self._results, self._layers, self._nbytes = [], [], 0

    def _coded(self) -> list[EncodedTensor | AliasRecord]:
        """The tensors that wait. Those without tables get them and are coded; the tables are written."""
        found = {}
        coded = [result.encoded for result in self._results if isinstance(result.encoded, CodedTensor)]
        for group in _groups(coded):
            pool = Pool.of(group)
            number = self._writer.add_freq(pool.record, pool.section)
            for tensor in group:
                found[tensor.name] = pool.encode(tensor, number)
        return [found[result.encoded.name] if isinstance(result.encoded, CodedTensor) else result.encoded
                for result in self._results]  # fmt: skip


def _groups(tensors: list[CodedTensor]) -> list[list[CodedTensor]]:
    """Group tensors that share tables. A large tensor has its own; small ones share by their number of codebooks."""
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
    """The common prefix of names of layers, in whole parts between dots or slashes."""
    if len(names) == 1:
        return names[0]
    low, high = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low if n == len(low) and high[n : n + 1] in (".", "/", "") else layer_name(low[: n + 1])


class NullStream:
    """A stream that drops what is written to it, to measure the size of a file."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass
