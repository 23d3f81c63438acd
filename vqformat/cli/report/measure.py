"""What a report says of a file: sizes, errors, entropies and histograms, measured one tensor at a time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...encode.calibration import Calibration
from ...encode.methods.layout import short_reals
from ...encode.sensitivity import Statistics
from ...encode.source import fits_float32, native
from ...folding import fold
from ...format.dtypes import BY_NAME
from ...read.sharded import indexed_reader
from ...read.shards import opened_model
from ..diff import Distance, reals
from ..inspect import Contents, TensorSummary
from .entropy import code_entropy_bits

if TYPE_CHECKING:
    from ...encode.source import SourceTensor

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MOST_HISTOGRAMS = 24  # of a page, those of the largest tensors
_FEWEST_VALUES = 64  # of a tensor with a histogram
_SAMPLE = 1 << 17  # values of a histogram
_BINS = 64
_MOST_POINTS = 512  # reconstruction points that are shown one by one
_TAIL = 0.0005  # share of the values beyond either end of a histogram


@dataclass(frozen=True)
class Histogram:
    """Histograms of a tensor, of a sample of its values.

    Attributes:
        edges: Of the bins of values.
        weights: Share of the source's weights in each bin; None without a source.
        decoded: Share of the decoded values in each bin.
        points: The reconstruction points, and the share of values that each has; None if they are too many.
        error_edges, errors: The same for the errors; None without a source.
    """

    edges: Floats
    weights: Floats | None
    decoded: Floats
    points: tuple[Floats, Floats] | None
    error_edges: Floats | None
    errors: Floats | None


@dataclass
class Measured:
    """What is known of a tensor of a file.

    Attributes:
        entropy_bits: For all its codes; see ``code_entropy_bits``.
        distance: From the source; None if that is not known.
        loss: Expected loss by its errors, in a unit that is the same for all tensors; nan if unknown.
    """

    summary: TensorSummary
    entropy_bits: float = math.nan
    distance: Distance | None = None
    loss: float = math.nan
    histogram: Histogram | None = None

    @property
    def name(self) -> str:
        return self.summary.name

    @property
    def stored_nbytes(self) -> int:
        return self.summary.stored_nbytes

    @property
    def n_elements(self) -> int:
        return prod(self.summary.shape)

    @property
    def has_bytes(self) -> bool:
        """Whether it is stored itself, and is no alias or copy."""
        return self.summary.alias_of is None and self.summary.copy_of is None

    @property
    def is_weight(self) -> bool:
        return BY_NAME[self.summary.dtype].arithmetic

    @property
    def sqnr_db(self) -> float:
        return math.nan if self.distance is None else self.distance.sqnr_db

    @property
    def is_raw(self) -> bool:
        return self.summary.method.startswith("raw")


@dataclass
class MeasuredFile:
    """What is known of a file.

    Attributes:
        has_source: Whether its tensors were compared with those of a source.
        loss_is_measured: Whether the expected loss is from a calibration; else it is the encoder's estimate.
        notes: What could not be compared, and why.
    """

    name: str
    contents: Contents
    tensors: list[Measured] = field(default_factory=list)
    has_source: bool = False
    loss_is_measured: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return self.contents.tensors_nbytes / self.contents.file_nbytes

    @property
    def bits_per_weight(self) -> float:
        n = self.contents.n_elements
        return 8 * self.contents.file_nbytes / n if n else 0.0

    @property
    def stored(self) -> list[Measured]:
        """The tensors that have bytes."""
        return [tensor for tensor in self.tensors if tensor.has_bytes]

    @property
    def shared_nbytes(self) -> int:
        """Bytes of codebooks and tables of frequencies that serve several tensors."""
        return self.contents.section_nbytes - sum(tensor.stored_nbytes for tensor in self.tensors)

    @property
    def sqnr_db(self) -> float:
        """Of all weights together."""
        total = Distance()
        for tensor in self.stored:
            if tensor.distance is not None and tensor.is_weight:
                total.join(tensor.distance)
        return total.sqnr_db

    @property
    def loss(self) -> float:
        """The expected loss by the errors of all tensors; 0 if it is unknown."""
        return math.fsum(tensor.loss for tensor in self.tensors if math.isfinite(tensor.loss))


def measure(
    name: str,
    path: str | os.PathLike[str],
    source: Mapping[str, SourceTensor] | None,
    calibration: Calibration | None,
    *,
    n_histograms: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> MeasuredFile:
    """Measure a ``.vqm``.

    Args:
        name: Of the file, for the page.
        source: The tensors from which the file was made, by name; None if they are not known.
        calibration: Of the model, for the expected loss.
        n_histograms: Number of its largest tensors that get histograms.

    Raises:
        VqmError: The file or the source is refused.
    """
    with opened_model(path, in_order=False) as model, contextlib.ExitStack() as stack:
        contents = Contents(model)
        reader = indexed_reader(model)
        stack.callback(reader.close)
        file = MeasuredFile(name, contents, has_source=source is not None, loss_is_measured=calibration is not None)
        with_histogram = _with_histogram(contents.tensors, n_histograms)
        for i, summary in enumerate(contents.tensors):
            if progress is not None:
                progress(summary.name, i, len(contents.tensors))
            tensor = Measured(summary)
            file.tensors.append(tensor)
            if not tensor.has_bytes:
                continue
            tensor.entropy_bits = code_entropy_bits(reader, summary.name)
            original = None if source is None else source.get(summary.name)
            if source is not None and original is None:
                file.notes.append(f"{summary.name} is not in the source")
            elif original is not None and original.shape != summary.shape:
                file.notes.append(f"{summary.name} has another shape in the source")
                original = None
            if original is None and summary.name not in with_histogram:
                continue
            decoded = reader.tensor(summary.name)
            before = None if original is None else native(original)
            if before is not None:
                tensor.distance = Distance()
                tensor.distance.add(before, decoded)
                tensor.loss = _loss(tensor, before, calibration)
            if summary.name in with_histogram:
                tensor.histogram = _histogram(before, decoded)
    return file


def _with_histogram(tensors: Sequence[TensorSummary], n_most: int) -> set[str]:
    """The names of the largest tensors, which get histograms. Of tensors that are alike at most three are taken."""
    candidates = [tensor for tensor in tensors if tensor.stored_nbytes and tensor.n_elements >= _FEWEST_VALUES
                  and BY_NAME[tensor.dtype].arithmetic]  # fmt: skip
    kinds = [(tensor.dtype, tensor.shape) for tensor in candidates]
    chosen = []
    for row in fold([tensor.name for tensor in candidates], kinds):
        places = {row.members[0], row.members[len(row.members) // 2], row.members[-1]}
        chosen += [candidates[i] for i in places]
    return {tensor.name for tensor in sorted(chosen, key=lambda tensor: (-tensor.stored_nbytes, tensor.name))[:n_most]}


def _loss(tensor: Measured, before: Array, calibration: Calibration | None) -> float:
    """The expected loss by the errors of a tensor.

    A calibration has measured the squared change of the outputs by a squared error of an element. Without one it is
    estimated as the encoder does: errors are harmful relative to the scale of the tensor and to the tolerance that its
    size and gain give it.
    """
    distance = tensor.distance
    if distance is None or not tensor.is_weight or not math.isfinite(distance.error):
        return math.nan
    if not distance.error:
        return 0.0
    if calibration is not None:
        statistics = calibration.tensors.get(tensor.name)
        return math.nan if statistics is None else statistics.importance * distance.error
    if not fits_float32(before):
        return math.nan
    of_values = Statistics.of(short_reals(before))
    allowed = of_values.scale * of_values.tolerance
    return tensor.n_elements * (distance.rms / allowed) ** 2 if allowed else math.nan


def _histogram(before: Array | None, decoded: Array) -> Histogram | None:
    """Histograms of a tensor; None if it has no range, as a constant one."""
    values = _sample(decoded)
    weights = None if before is None else _sample(before)
    finite = np.isfinite(values) if weights is None else np.isfinite(values) & np.isfinite(weights)
    values = values[finite]
    shown = values
    if weights is not None:
        weights = weights[finite]
        shown = np.concatenate([values, weights])
    if shown.size < 2 or shown.min() == shown.max():
        return None
    low, high = np.quantile(shown, [_TAIL, 1 - _TAIL])
    if low == high:
        low, high = shown.min(), shown.max()
    edges = np.linspace(low, high, _BINS + 1)
    points, counts = np.unique(values, return_counts=True)
    errors = error_edges = None
    if weights is not None:
        difference = values - weights
        reach = float(np.quantile(np.abs(difference), 1 - _TAIL))
        if reach:
            error_edges = np.linspace(-reach, reach, _BINS + 1)
            errors = np.histogram(difference, error_edges)[0] / values.size
    return Histogram(
        edges,
        None if weights is None else np.histogram(weights, edges)[0] / weights.size,
        np.histogram(values, edges)[0] / values.size,
        (points, counts / values.size) if points.size <= _MOST_POINTS else None,
        error_edges,
        errors,
    )


def _sample(array: Array) -> Floats:
    """Some values of a tensor, from all of its parts."""
    flat = np.ascontiguousarray(array).reshape(-1)
    stride = max(1, flat.size // _SAMPLE) | 1  # odd, so that the sample is not from few columns
    return reals(flat[::stride])
