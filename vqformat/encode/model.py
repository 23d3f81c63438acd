"""A whole model: what each tensor becomes, and in which layer."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ..describe import describe
from ..dtypes import BY_NAME
from ..errors import EncodeError
from ..records import AliasRecord, Layout, make_view
from ..writer import EncodedTensor, Writer
from . import fine, quantize
from .assemble import QuantizedStage, assemble
from .budget import Statistics, Steps, meet
from .orient import by_columns, by_rows, reals, view_matrix
from .recipe import Method, Recipe
from .report import Report, TensorReport, sqnr_db
from .source import SourceTensor, check_name, fits_float32, native
from .uniform import encode_uniform

Array = npt.NDArray[Any]
SMALLEST_COARSE = 256  # elements; tensors below it, and those of one axis, are coded finely
_MAX_LAYER_TENSORS = 256
_MAX_LAYER_NBYTES = 1 << 26  # decoded
DEFAULT_STEP = 0.25  # times the root mean square of all weights on grids: at most a point lost on six networks


@dataclass(frozen=True)
class Options:
    """What the caller asks of the encoder.

    Attributes:
        recipe: Methods by name; where it has none the encoder chooses.
        bits: Bits a weight of the whole file.
        ratio: Bytes of the tensors over bytes of the file.
        lossless: Every bit kept, whatever else is asked.
        seed: Of everything random.
        progress: Called with a tensor's name, weights done and weights in all.
    """

    recipe: Recipe | None = None
    bits: float | None = None
    ratio: float | None = None
    lossless: bool = False
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        given = {"bits": self.bits, "ratio": self.ratio, "lossless": self.lossless or None}
        asked = [name for name, value in given.items() if value is not None]
        if len(asked) > 1:
            raise EncodeError(f"{' and '.join(asked)} exclude each other")
        for name, value in (("bits", self.bits), ("ratio", self.ratio)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise EncodeError(f"{name} is {value}; a number above 0 is allowed")


def encode_model(
    tensors: Sequence[SourceTensor],
    target: str | os.PathLike[str] | BinaryIO,
    metadata: dict[str, Any] | None = None,
    options: Options | None = None,
    *,
    overwrite: bool = True,
) -> Report:
    """Encode tensors, in their order, into a file.

    Raises:
        EncodeError: A tensor, the metadata or the options cannot be written, or a budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    return _Encoder(tensors, options or Options()).write(target, metadata, overwrite)


def layer_name(tensor: str) -> str:
    """The tensor's name up to its last ``.`` or ``/`` (SPEC section 17)."""
    return tensor[: max(tensor.rfind("."), tensor.rfind("/"), 0)]


@dataclass(frozen=True)
class _Result:
    encoded: EncodedTensor | AliasRecord
    report: TensorReport


class _Encoder:
    """Encodes one model; holds what the passes learn."""

    def __init__(self, tensors: Sequence[SourceTensor], options: Options) -> None:
        self.tensors = tensors
        self.options = options
        self._statistics: dict[str, Statistics] = {}
        self._fixed: dict[str, _Result] = {}  # results that no step changes
        self._books: dict[str, quantize.SharedBook] = {}
        self._book_numbers: dict[str, int] = {}
        names = set()
        for tensor in tensors:
            check_name(tensor.name)
            if tensor.name in names:
                raise EncodeError(f"two tensors have the name {tensor.name!r}")
            names.add(tensor.name)
        unused = options.recipe.unused(names) if options.recipe is not None else []
        if unused:
            near = difflib.get_close_matches(unused[0], names, n=3)
            hint = f"; near matches: {', '.join(map(repr, near))}" if near else ""
            raise EncodeError(f"the pattern {unused[0]!r} matches no tensor that an earlier one does not{hint}")

    def write(
        self, target: str | os.PathLike[str] | BinaryIO, metadata: dict[str, Any] | None, overwrite: bool
    ) -> Report:
        with Writer(target, metadata, overwrite=overwrite) as writer:
            self._gather()
            self._train_books()
            goal = self._goal_nbytes()
            if goal is None:
                results = self._encode(DEFAULT_STEP)
                return self._write_all(writer, results)
            return self._write_all(writer, self._meet(goal, metadata))

    # What each tensor is to become

    def _method(self, tensor: SourceTensor) -> Method | None:
        """What the recipe asks for; None where the encoder chooses."""
        if self.options.lossless:
            return quantize.LOSSLESS
        if self.options.recipe is None:
            return None
        method, is_wildcard = self.options.recipe.method_for(tensor.name)
        if method is None:
            return None
        if quantize.is_vector_method(method) or method.name == "uniform":
            is_matrix = len(tensor.shape) > 1 and BY_NAME[tensor.dtype].arithmetic
            if is_wildcard and not is_matrix:
                return None
            if not BY_NAME[tensor.dtype].arithmetic:
                raise EncodeError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which {method} cannot code")
        return method

    def _is_coarse(self, tensor: SourceTensor) -> bool:
        """Whether the encoder may put the tensor on a grid."""
        return BY_NAME[tensor.dtype].arithmetic and len(tensor.shape) > 1 and prod(tensor.shape) >= SMALLEST_COARSE

    def _gather(self) -> None:
        """First pass: deviation and a sample of each tensor whose step is to be chosen."""
        for tensor in self.tensors:
            if tensor.alias_of is not None or not prod(tensor.shape):
                continue
            method = self._method(tensor)
            if (method is None and self._is_coarse(tensor)) or (method is not None and method.name == "uniform"):
                array = tensor.load()
                if fits_float32(array):
                    self._statistics[tensor.name] = Statistics.of(reals(array))
        self._steps = Steps(list(self._statistics.values()))

    def _train_books(self) -> None:
        """Codebooks that several tensors share, before the first of them is written."""
        groups: dict[str, list[SourceTensor]] = {}
        for tensor in self.tensors:
            method = self._method(tensor)
            name = quantize.shared_name(method) if method is not None else None
            if name and tensor.alias_of is None and prod(tensor.shape):
                groups.setdefault(name, []).append(tensor)
        for name, members in groups.items():
            methods = {self._method(tensor) for tensor in members}
            if len(methods) > 1:
                raise EncodeError(f"layers that share codebook {name!r} have different methods: "
                                  + ", ".join(sorted(map(str, methods))))  # fmt: skip
            method = next(iter(methods))
            assert method is not None
            matrices = [view_matrix(reals(tensor.load()), _layout(method, tensor)) for tensor in members]
            self._books[name] = quantize.train_shared(matrices, method, seed=self.options.seed)

    # Budgets

    def _goal_nbytes(self) -> float | None:
        if self.options.bits is not None:
            return self.options.bits * sum(prod(t.shape) for t in self.tensors if t.alias_of is None) / 8
        if self.options.ratio is not None:
            return self._source_nbytes() / self.options.ratio
        return None

    def _source_nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor.alias_of is None)

    def _meet(self, goal: float, metadata: dict[str, Any] | None) -> list[_Result]:
        """Results whose file just meets the budget."""
        kept: dict[float, list[_Result]] = {}

        def encode(step: float) -> int:
            kept[step] = list(self._encode(step))
            with Writer(cast(BinaryIO, _Nowhere()), metadata) as writer:
                return self._write_all(writer, kept[step]).file_nbytes

        return kept[meet(self._steps, goal, encode)]

    # Encoding

    def _encode(self, relative_step: float) -> Iterator[_Result]:
        total = sum(prod(tensor.shape) for tensor in self.tensors)
        done = 0
        for tensor in self.tensors:
            result = self._fixed.get(tensor.name)
            if result is None:
                result = self._encode_tensor(tensor, relative_step)
                has_budget = self.options.bits is not None or self.options.ratio is not None
                if has_budget and tensor.name not in self._statistics:
                    self._fixed[tensor.name] = result
            done += prod(tensor.shape)
            if self.options.progress is not None:
                self.options.progress(tensor.name, done, total)
            yield result

    def _encode_tensor(self, tensor: SourceTensor, relative_step: float) -> _Result:
        if tensor.alias_of is not None:
            report = TensorReport(tensor.name, tensor.dtype, tensor.shape, f"alias of {tensor.alias_of}", 0, math.nan)
            return _Result(AliasRecord(tensor.name, tensor.alias_of), report)
        array = native(tensor)
        if not array.size:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.nan)
        method = self._method(tensor)
        if method is not None and method.name == "raw":
            return self._result(tensor, fine.encode_raw(tensor.name, tensor.dtype, array), math.inf)
        is_arithmetic = BY_NAME[tensor.dtype].arithmetic and fits_float32(array)
        if not is_arithmetic or (method is not None and method.name == "lossless"):
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.inf)
        if method is not None and quantize.is_vector_method(method):
            try:
                return self._encode_by_method(tensor, array, method)
            except EncodeError as err:
                raise EncodeError(f"tensor {tensor.name!r}: {err}") from err
        statistics = self._statistics.get(tensor.name)
        if statistics is None or (method is not None and method.name == "fine"):
            encoded, rounded = fine.encode_fine(tensor.name, tensor.dtype, array)
            sqnr = sqnr_db(reals(array), reals(rounded))
            return self._result(tensor, encoded, sqnr, None if math.isinf(sqnr) else "rounded finely")
        values = reals(array)
        step = self._steps.step(statistics, relative_step)
        if method is not None:
            step = quantize.uniform_step(method, statistics.deviation, step)
        encoded, sqnr = encode_uniform(tensor.name, tensor.dtype, tensor.shape, values, step)
        return self._result(tensor, encoded, sqnr)

    def _encode_by_method(self, tensor: SourceTensor, array: Array, method: Method) -> _Result:
        values = reals(array)
        layout = _layout(method, tensor)
        matrix = np.ascontiguousarray(view_matrix(values, layout))
        view = make_view(tensor.shape, BY_NAME[tensor.dtype].is_complex, layout)
        name = quantize.shared_name(method)
        stages: list[QuantizedStage]
        if name:
            stages = quantize.quantize_with_book(matrix, view, method, self._books[name], self._book_number(name),
                                                 seed=self.options.seed, dtype=tensor.dtype)  # fmt: skip
        else:
            stages = quantize.quantize(matrix, view, method, seed=self.options.seed, dtype=tensor.dtype)
        encoded = assemble(tensor.name, tensor.dtype, tensor.shape, layout, stages)
        decoded = stages[0].values(view)
        for stage in stages[1:]:
            decoded += stage.values(view)
        return self._result(tensor, encoded, sqnr_db(matrix, decoded))

    def _book_number(self, name: str) -> int:
        return self._book_numbers.setdefault(name, len(self._book_numbers))

    def _result(self, tensor: SourceTensor, encoded: EncodedTensor, sqnr: float, method: str | None = None) -> _Result:
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, method or describe(encoded.record),
                              encoded.stored_nbytes, sqnr)  # fmt: skip
        return _Result(encoded, report)

    # Writing

    def _write_all(self, writer: Writer, results: Iterable[_Result]) -> Report:
        """Write results in layers: tensors that follow each other and whose names have the same beginning.

        Where no name has a beginning, a layer could be the whole model: it ends when it is large.
        """
        report = Report(source_nbytes=self._source_nbytes())
        layer: list[EncodedTensor | AliasRecord] = []
        layer_nbytes = 0
        name = None
        written: set[int] = set()
        for result in results:
            report.tensors.append(result.report)
            is_full = len(layer) >= _MAX_LAYER_TENSORS or layer_nbytes >= _MAX_LAYER_NBYTES
            if layer and (name != layer_name(result.report.name) or is_full):
                self._write_layer(writer, name or "", layer, written)
                layer, layer_nbytes = [], 0
            name = layer_name(result.report.name)
            layer.append(result.encoded)
            layer_nbytes += result.report.n_elements * 4
        if layer:
            self._write_layer(writer, name or "", layer, written)
        writer.close()
        report.file_nbytes, report.section_nbytes = writer.nbytes, writer.section_nbytes
        return report

    def _write_layer(
        self, writer: Writer, name: str, layer: list[EncodedTensor | AliasRecord], written: set[int]
    ) -> None:
        for tensor in layer:
            for number in tensor.record.book_numbers() if isinstance(tensor, EncodedTensor) else ():
                if number not in written:
                    book = next(self._books[n] for n, k in self._book_numbers.items() if k == number)
                    assert writer.add_book(book.record, book.section) == number
                    written.add(number)
        writer.add_layer(name, layer)


class _Nowhere:
    """A stream that forgets, to learn the size of a file."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass


def _layout(method: Method, tensor: SourceTensor) -> Layout:
    shape = (*tensor.shape, 2) if BY_NAME[tensor.dtype].is_complex else tensor.shape
    return by_columns(shape) if quantize.by_columns(method) else by_rows(shape)
