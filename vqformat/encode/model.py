"""A whole model: what each tensor becomes, and in which layer."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .budget import Statistics, Steps, meet, root_mean_square
from .orient import by_columns, by_rows, reals, view_matrix
from .recipe import Method, Recipe
from .report import Report, TensorReport, sqnr_db
from .source import SourceTensor, check_name, check_shape, fits_float32, native
from .uniform import encode_uniform
from .writing import Nowhere, Result, write_results

Array = npt.NDArray[Any]
SMALLEST_COARSE = 256  # elements; tensors below it are coded finely
SMALLEST_COARSE_VECTOR = 1 << 16  # elements of a tensor of one axis: shorter ones are biases, norms and the like
_EXACT = 0.0  # in place of a step: what the encoder may choose is stored exactly
_EXACT_FROM = 0.5  # of the bytes of the tensors: smaller budgets are below what floats compress to
_LEAST_SQNR_DB = 1.0  # of a tensor on a grid; less is hardly better than nothing
DEFAULT_STEP = 0.18  # times the root mean square of all weights on grids: at most a point lost on six networks


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
        if self.lossless and self.recipe is not None:
            raise EncodeError("lossless and a recipe exclude each other; the recipe's default can be lossless")
        for name, value in (("bits", self.bits), ("ratio", self.ratio)):
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (is_number and math.isfinite(value) and value > 0):
                raise EncodeError(f"{name} is {value!r}; a number above 0 is allowed")

    @property
    def has_budget(self) -> bool:
        return self.bits is not None or self.ratio is not None


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


class _Encoder:
    """Encodes one model; holds what the passes learn."""

    def __init__(self, tensors: Sequence[SourceTensor], options: Options) -> None:
        self.tensors = tensors
        self.options = options
        self._statistics: dict[str, Statistics] = {}
        self._steps = Steps([])
        self._fixed: dict[str, Result] = {}  # results that no step changes, where there is a budget
        self._fallen: dict[str, str] = {}  # why a tensor is not coded by the method of its wildcard
        self._books: dict[str, quantize.SharedBook] = {}
        self._book_numbers: dict[str, int] = {}
        names = set()
        for tensor in tensors:
            check_name(tensor.name)
            check_shape(tensor.name, tensor.shape)
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
            self._train_books()
            self._gather()
            goal = self._goal_nbytes()
            if goal is None:
                results = self._encode(DEFAULT_STEP)
                return self._write_all(writer, results)
            return self._write_all(writer, self._meet(goal, metadata))

    # What each tensor is to become

    def _method(self, tensor: SourceTensor) -> Method | None:
        """What the recipe asks for; None where the encoder chooses."""
        if self.options.lossless or (tensor.is_exact and not self._is_named(tensor)):
            return quantize.LOSSLESS
        if self.options.recipe is None or tensor.name in self._fallen:
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

    def _is_named(self, tensor: SourceTensor) -> bool:
        """Whether a pattern of the recipe decides about the tensor."""
        return self.options.recipe is not None and self.options.recipe.names(tensor.name)

    def _is_coarse(self, tensor: SourceTensor) -> bool:
        """Whether the encoder may put the tensor on a grid."""
        if not BY_NAME[tensor.dtype].arithmetic or not tensor.shape:
            return False
        return prod(tensor.shape) >= (SMALLEST_COARSE if len(tensor.shape) > 1 else SMALLEST_COARSE_VECTOR)

    def _gather(self) -> None:
        """First pass: deviation and a sample of each tensor whose step is to be chosen.

        With a budget, vector methods are run too: where one fails, the tensor needs a step.
        """
        for tensor in self.tensors:
            if tensor.alias_of is not None or not prod(tensor.shape):
                continue
            method = self._method(tensor)
            if self.options.has_budget and method is not None and method.is_vector:
                result = self._encode_tensor(tensor, DEFAULT_STEP)
                if tensor.name not in self._fallen:
                    self._fixed[tensor.name] = result
                    continue
                method = None
            if self._has_step(tensor, method):
                array = tensor.load()
                if fits_float32(array):
                    self._statistics[tensor.name] = Statistics.of(reals(array))
        self._steps = Steps(list(self._statistics.values()))

    def _has_step(self, tensor: SourceTensor, method: Method | None) -> bool:
        """Whether the encoder is to choose the tensor's step."""
        if method is None:
            return self._is_coarse(tensor)
        return method.name == "uniform" and not quantize.has_fixed_step(method)

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
            arrays = [(tensor, native(tensor)) for tensor in members]
            matrices = [view_matrix(reals(array), _layout(method, tensor)) for tensor, array in arrays
                        if fits_float32(array)]  # fmt: skip
            if matrices:
                self._books[name] = quantize.train_shared(matrices, method, seed=self.options.seed)

    # Budgets

    def _goal_nbytes(self) -> float | None:
        if not self._n_weights():
            return None  # nothing to make smaller
        if self.options.bits is not None:
            return self.options.bits * self._n_weights() / 8
        if self.options.ratio is not None:
            return self._source_nbytes() / self.options.ratio
        return None

    def _n_weights(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors if tensor.alias_of is None)

    def _source_nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor.alias_of is None)

    def _meet(self, goal: float, metadata: dict[str, Any] | None) -> list[Result]:
        """Results whose file just meets the budget.

        Raises:
            EncodeError: Even the coarsest steps give a larger file.
        """
        best: list[Result] = []
        best_nbytes = 0
        smallest_nbytes = sys.maxsize

        def encode(step: float) -> int:
            nonlocal best, best_nbytes, smallest_nbytes
            results = list(self._encode(step))
            with Writer(cast(BinaryIO, Nowhere()), metadata) as writer:
                nbytes = self._write_all(writer, results).file_nbytes
            smallest_nbytes = min(smallest_nbytes, nbytes)
            if best_nbytes < nbytes <= goal:
                best, best_nbytes = results, nbytes
            return nbytes

        if goal >= _EXACT_FROM * self._source_nbytes() and encode(_EXACT) <= goal:
            return best
        meet(self._steps, goal, encode)
        if not best:
            raise EncodeError(self._unmet(goal, smallest_nbytes))
        return best

    def _unmet(self, goal: float, smallest_nbytes: int) -> str:
        """Why a budget cannot be met, and what can."""
        fixed_nbytes = sum(result.report.stored_nbytes for result in self._fixed.values())
        if self.options.bits is not None:
            bits = math.ceil(800 * smallest_nbytes / self._n_weights()) / 100
            possible = f"{bits:.2f} bits a weight are"
        else:
            ratio = math.floor(100 * self._source_nbytes() / smallest_nbytes) / 100
            possible = f"a ratio of {ratio:.2f} is"
        return (f"a file of {goal:.0f} bytes was asked for; the smallest possible has {smallest_nbytes}: {possible}"
                f" possible, with {fixed_nbytes} bytes in tensors that no step changes")  # fmt: skip

    # Encoding

    def _encode(self, relative_step: float) -> Iterator[Result]:
        total = sum(prod(tensor.shape) for tensor in self.tensors)
        done = 0
        for tensor in self.tensors:
            result = self._fixed.get(tensor.name)
            if result is None or (relative_step == _EXACT and self._method(tensor) is None):
                result = self._encode_tensor(tensor, relative_step)
                is_fixed = relative_step != _EXACT and tensor.name not in self._statistics
                if self.options.has_budget and is_fixed:
                    self._fixed[tensor.name] = result
            done += prod(tensor.shape)
            if self.options.progress is not None:
                self.options.progress(tensor.name, done, total)
            yield result

    def _encode_tensor(self, tensor: SourceTensor, relative_step: float) -> Result:
        if tensor.alias_of is not None:
            report = TensorReport(tensor.name, tensor.dtype, tensor.shape, f"alias of {tensor.alias_of}", 0, math.nan)
            return Result(AliasRecord(tensor.name, tensor.alias_of), report)
        array = native(tensor)
        if not array.size:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.nan)
        method = self._method(tensor)
        if method is not None and method.name == "raw":
            return self._result(tensor, fine.encode_raw(tensor.name, tensor.dtype, array), math.inf)
        is_arithmetic = BY_NAME[tensor.dtype].arithmetic and fits_float32(array)
        if not is_arithmetic and method is not None and method.name not in ("lossless", "fine"):
            self._fall(tensor, method, "it holds NaN, infinity or values beyond float32")
        is_exact = relative_step == _EXACT if method is None else method.name == "lossless"
        if not is_arithmetic or is_exact:
            return self._result(tensor, fine.encode_exact(tensor.name, tensor.dtype, array), math.inf)
        if method is not None and quantize.is_vector_method(method):
            try:
                return self._encode_by_method(tensor, array, method)
            except EncodeError as err:
                self._fall(tensor, method, str(err))
                method = None
        if method is not None and method.name == "fine":
            return self._encode_finely(tensor, array)
        if method is None and not self._is_coarse(tensor):
            return self._encode_finely(tensor, array)
        return self._encode_on_grid(tensor, array, method, relative_step)

    def _fall(self, tensor: SourceTensor, method: Method, why: str) -> None:
        """Note that a method cannot code a tensor; one that was asked for by its very name must.

        Raises:
            EncodeError: It was.
        """
        assert self.options.recipe is not None
        if not self.options.recipe.method_for(tensor.name).is_wildcard:
            raise EncodeError(f"tensor {tensor.name!r}: {why}; {method} cannot code it")
        self._fallen[tensor.name] = f"tensor {tensor.name!r}: {why}; the encoder chose in place of {method}"

    def _encode_finely(self, tensor: SourceTensor, array: Array) -> Result:
        encoded, rounded = fine.encode_fine(tensor.name, tensor.dtype, array)
        sqnr = sqnr_db(reals(array), reals(rounded))
        return self._result(tensor, encoded, sqnr, None if math.isinf(sqnr) else "rounded finely")

    def _encode_on_grid(
        self, tensor: SourceTensor, array: Array, method: Method | None, relative_step: float
    ) -> Result:
        values = reals(array)
        if method is not None and quantize.has_fixed_step(method):
            step = quantize.uniform_step(method, root_mean_square(values), 0.0)
        else:
            statistics = self._statistics.get(tensor.name) or Statistics.of(values)
            steps = Steps([statistics]) if self._steps.is_empty else self._steps
            step = steps.step(statistics, relative_step or DEFAULT_STEP)
        encoded, sqnr = encode_uniform(tensor.name, tensor.dtype, tensor.shape, values, step)
        result = self._result(tensor, encoded, sqnr)
        if method is not None or sqnr >= _LEAST_SQNR_DB:
            return result
        if not self.options.has_budget:
            return self._encode_finely(tensor, array)
        note = f"tensor {tensor.name!r} has an SQNR of {sqnr:.1f} dB only: the budget leaves it no more bits"
        return replace(result, notes=(*result.notes, note))

    def _encode_by_method(self, tensor: SourceTensor, array: Array, method: Method) -> Result:
        values = reals(array)
        layout = _layout(method, tensor)
        matrix = np.ascontiguousarray(view_matrix(values, layout))
        view = make_view(tensor.shape, BY_NAME[tensor.dtype].is_complex, layout)
        name = quantize.shared_name(method)
        stages: list[QuantizedStage]
        if name:
            stages = quantize.quantize_with_book(matrix, view, method, self._books[name], self._book_number(name),
                                                 seed=self.options.seed, dtype=tensor.dtype)  # fmt: skip
            self._book_numbers.setdefault(name, self._book_number(name))
        else:
            stages = quantize.quantize(matrix, view, method, seed=self.options.seed, dtype=tensor.dtype)
        encoded = assemble(tensor.name, tensor.dtype, tensor.shape, layout, stages)
        decoded = stages[0].values(view)
        for stage in stages[1:]:
            decoded += stage.values(view)
        return self._result(tensor, encoded, sqnr_db(matrix, decoded))

    def _book_number(self, name: str) -> int:
        """Of a shared codebook: they are numbered as they come to be used."""
        return self._book_numbers.get(name, len(self._book_numbers))

    def _result(self, tensor: SourceTensor, encoded: EncodedTensor, sqnr: float, method: str | None = None) -> Result:
        report = TensorReport(tensor.name, tensor.dtype, tensor.shape, method or describe(encoded.record),
                              encoded.stored_nbytes, sqnr)  # fmt: skip
        return Result(encoded, report, (self._fallen[tensor.name],) if tensor.name in self._fallen else ())

    def _write_all(self, writer: Writer, results: Iterable[Result]) -> Report:
        return write_results(writer, results, self._numbered_book, self._source_nbytes())

    def _numbered_book(self, number: int) -> quantize.SharedBook:
        return next(self._books[name] for name, n in self._book_numbers.items() if n == number)


def _layout(method: Method, tensor: SourceTensor) -> Layout:
    shape = (*tensor.shape, 2) if BY_NAME[tensor.dtype].is_complex else tensor.shape
    return by_columns(shape) if quantize.by_columns(method) else by_rows(shape)
