"""``vqm diff``: the differences between the tensors of two files."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqformat.converters import open_source

from ..encode.source import native
from ..folding import fold
from ..format.dtypes import BY_NAME
from ..text import counted, decibel, escape, number, shape_text, table
from .files import STDIO, check_source, label, local_path, naming
from .legend import legend
from .parsers import UsageError
from .progress import progress_line
from .text import table_width, to_json

if TYPE_CHECKING:
    from ..encode.source import SourceTensor

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_PIECE = 1 << 20  # elements that are compared together, so that float64 copies are small


@dataclass
class Distance:
    """Sums over pairs of elements, from which the measures are computed. A is the original.

    A pair has no error if both elements are equal or both are NaN. The sums for SQNR and cosine include only pairs of
    finite elements.
    """

    n: int = 0
    max_abs: float = 0.0
    error: float = 0.0  # Σ (a − b)²
    power_a: float = 0.0  # Σ a²
    power_b: float = 0.0
    product: float = 0.0  # Σ a·b
    is_identical: bool = True  # bit for bit

    def add(self, a: Array, b: Array) -> None:
        """Add the elements of two tensors of the same shape."""
        self.is_identical &= a.dtype == b.dtype and _same_bits(a, b)
        flat_a, flat_b = _flat(a), _flat(b)
        for start in range(0, flat_a.size, _PIECE):
            self._add_piece(reals(flat_a[start : start + _PIECE]), reals(flat_b[start : start + _PIECE]))

    def _add_piece(self, a: Floats, b: Floats) -> None:
        self.n += a.size
        with np.errstate(all="ignore"):
            difference = np.abs(a - b)
            difference[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
            self.max_abs = float(np.maximum(self.max_abs, difference.max(initial=0)))  # np.maximum propagates NaN
            self.error += float(difference @ difference)
            finite = np.isfinite(a) & np.isfinite(b)
            if not finite.all():
                a, b = a[finite], b[finite]
            self.power_a += float(a @ a)
            self.power_b += float(b @ b)
            self.product += float(a @ b)

    def join(self, other: Distance) -> None:
        """Add the sums of another one."""
        self.n += other.n
        self.max_abs = float(np.maximum(self.max_abs, other.max_abs))
        self.error += other.error
        self.power_a += other.power_a
        self.power_b += other.power_b
        self.product += other.product
        self.is_identical &= other.is_identical

    @property
    def rms(self) -> float:
        """Root mean square of the errors; nan without elements."""
        return math.sqrt(self.error / self.n) if self.n else math.nan

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB; inf without errors, nan without elements."""
        if not self.n or math.isnan(self.error):
            return math.nan
        if not self.error:
            return math.inf
        ratio = self.power_a / self.error
        return 10 * math.log10(ratio) if 0 < ratio < math.inf else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both tensors; nan if one is 0 or not finite."""
        norm = math.sqrt(self.power_a) * math.sqrt(self.power_b)
        return max(-1.0, min(1.0, self.product / norm)) if 0 < norm < math.inf else math.nan


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1)


def reals(array: Array) -> Floats:
    """Elements of a flat array as float64. A complex element becomes two."""
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1).reshape(-1)
    return array.astype(np.float64)


def _same_bits(a: Array, b: Array) -> bool:
    return bool(np.array_equal(_flat(a).view(np.uint8), _flat(b).view(np.uint8)))


@dataclass
class _Row:
    """The comparison of two tensors of the same name. The distance is None if their shapes differ."""

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    distance: Distance | None
    is_alias: bool

    @property
    def agrees(self) -> bool:
        return self.shapes[0] == self.shapes[1] and self.dtypes[0] == self.dtypes[1]

    def to_json(self) -> dict[str, Any]:
        measures = {} if self.distance is None else _measures(self.distance)
        return {"name": self.name, "shapes": self.shapes, "dtypes": self.dtypes, **measures}


def _measures(distance: Distance) -> dict[str, Any]:
    return {"max_abs": distance.max_abs, "rms": distance.rms, "sqnr_db": distance.sqnr_db,
            "cosine": distance.cosine, "identical": distance.is_identical}  # fmt: skip


def run_diff(args: argparse.Namespace) -> int:
    """Run ``vqm diff``: compare two files. The exit code is 1 if names, shapes or dtypes differ."""
    if args.original == args.other == STDIO:
        raise UsageError("A and B cannot both be stdin")
    for file in (args.original, args.other):
        check_source(file)
    with _tensors(args.original) as a, _tensors(args.other) as b:
        common = [name for name in a if name in b]
        rows = []
        with progress_line(quiet=args.quiet) as progress:
            for i, name in enumerate(common):
                rows.append(_compare(args, a[name], b[name]))
                if progress is not None:
                    progress(name, i + 1, len(common))
    only = [[name for name in a if name not in b], [name for name in b if name not in a]]
    total = Distance()
    for row in rows:
        # Only weights: the numbers of integer tensors can be much larger
        if row.distance is not None and not row.is_alias and BY_NAME[row.dtypes[0]].arithmetic:
            total.join(row.distance)
    agrees = not any(only) and all(row.agrees for row in rows)
    is_same = agrees and all(row.distance is not None and row.distance.is_identical for row in rows)
    if args.json:
        document = {"a": args.original, "b": args.other, "same_structure": agrees, "same_contents": is_same,
                    "only_in_a": only[0], "only_in_b": only[1], "total": _measures(total)}  # fmt: skip
        print(to_json(document | {"tensors": [row.to_json() for row in rows]}))
    else:
        lines = [*_diff_text(args, rows, only, total), *["same contents"] * is_same]
        print("\n".join([*lines, *(["", *legend(lines)] if args.verbose else [])]))
    return 0 if agrees else 1


@contextlib.contextmanager
def _tensors(file: str) -> Iterator[dict[str, SourceTensor]]:
    with local_path(file) as path, open_source(path) as source:
        yield {tensor.name: tensor for tensor in source.tensors}


def _compare(args: argparse.Namespace, a: SourceTensor, b: SourceTensor) -> _Row:
    distance = None
    if a.shape == b.shape:
        distance = Distance()
        with naming(args.original):
            array_a = native(a)
        with naming(args.other):
            array_b = native(b)
        distance.add(array_a, array_b)
    return _Row(a.name, (a.dtype, b.dtype), (a.shape, b.shape), distance, a.alias_of is not None)


def _diff_text(args: argparse.Namespace, rows: list[_Row], only: Sequence[list[str]], total: Distance) -> list[str]:
    lines = []
    if rows:
        cells: list[tuple[str, ...]] = [("tensor", "shape", "max abs", "RMS error", "SQNR dB", "cosine")]
        if not args.quiet:
            cells += _folded([row for row in rows if row.distance], unfold=args.all or args.verbose)
        width = table_width(sys.stdout, verbose=args.verbose)
        lines += table([*cells, _cells("all weights", "", total)], "<<>>>>", width)
    for row in rows:
        name = escape(row.name)
        if row.distance is None:
            lines.append(f"{name}: shape {shape_text(row.shapes[0])} in A, {shape_text(row.shapes[1])} in B")
        if row.dtypes[0] != row.dtypes[1]:
            lines.append(f"{name}: dtype {row.dtypes[0]} in A, {row.dtypes[1]} in B")
    for side, file, names in zip("AB", (args.original, args.other), only, strict=True):
        if names:
            lines.append(f"{counted(len(names), 'tensor')} only in {side}, {label(file)}:")
            lines += [f"  {escape(name)}" for name in names]
    return lines or ["no tensors in either file"]


def _folded(rows: list[_Row], *, unfold: bool) -> list[tuple[str, ...]]:
    kinds = [(row.shapes, row.dtypes, row.distance is not None and row.distance.is_identical) for row in rows]
    cells = []
    for row in fold([row.name for row in rows], kinds, unfold=unfold):
        distance = Distance()
        for i in row.members:
            distance.join(rows[i].distance or Distance())
        cells.append(_cells(escape(row.label), shape_text(rows[row.members[0]].shapes[0]), distance))
    return cells


def _cells(name: str, shape: str, distance: Distance) -> tuple[str, ...]:
    sqnr = "identical" if distance.is_identical else decibel(distance.sqnr_db)
    return (name, shape, number(distance.max_abs, ".4g"), number(distance.rms, ".4g"), sqnr,
            number(distance.cosine, ".6f"))  # fmt: skip
