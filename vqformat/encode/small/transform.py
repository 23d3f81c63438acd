"""Transform coding of neighbouring inputs, such as the taps of a kernel (SPEC 12.5).

The taps of a trained kernel are correlated, above all neighbouring ones; so are weights for neighbouring pixels in a
dense layer. In the basis of their principal components most of the energy is in few coefficients, and the others take
few bits (Karhunen-Loève transform: Goyal 2001, "Theoretical foundations of transform coding"; for weights: Young, Wang,
Taubman and Girod 2021, "Transform quantization for CNN compression").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.layout import Layout
from ...format.limits import MAX_BLOCK_ELEMENTS, MAX_TRANSFORM
from ..methods.layout import ShortFloats
from ..methods.sampling import sample_indices
from .bands import Rows, size_of
from .principal_components import pieces, signed
from .tiles import cuts_rows

_LARGEST = 127  # largest integer of a matrix
_ENTRY_BITS = 6  # stored bits of an integer, about
_BITS = 8 * 30  # stored bits of a transform besides its matrix
_LARGEST_SHARE = 0.25  # largest size of the matrix, relative to 1 bit for each weight
_SAMPLE = 1 << 19  # elements from which the correlation of neighbouring inputs is estimated
_LEAST_GAIN = 0.01  # least estimated gain, in bits for each weight
_CHANCE = 0.36  # apparent gain for independent numbers, in bits: this constant · size / number of groups
_IDLE = 0.03  # a tap whose variance is a smaller share of the largest variance is not transformed


@dataclass(frozen=True)
class Transform:
    """A linear transform of groups of ``size`` rows.

    Attributes:
        matrix: ``(size, size)`` int8. A coefficient k of 1 adds ``matrix[k, t] · unit`` to row t of its group.
        unit: Factor of the integers.
    """

    matrix: npt.NDArray[np.int8]
    unit: float

    @property
    def size(self) -> int:
        return len(self.matrix)

    @property
    def n_bits(self) -> int:
        """Approximate stored bits of the transform."""
        return _BITS + _ENTRY_BITS * self.matrix.size

    @property
    def sums(self) -> Floats:
        """For each coefficient what a value of 1 adds to the sum of its group, ``(size,)``."""
        sums: Floats = (self.matrix.sum(axis=1, dtype=np.float64) * self.unit).astype(np.float32)
        return sums

    @property
    def gain(self) -> float:
        """The largest magnitude of a value if all coefficients have magnitudes of at most 1."""
        return float(np.abs(self.matrix.astype(np.float64)).sum(axis=0).max()) * self.unit

    def forward(self, matrix: Rows) -> Floats:
        """Coefficients of a matrix, ``(R, C)``, as a new array. Row k of a group has its coefficients k."""
        return self._apply(np.linalg.inv(self.matrix * self.unit), matrix)

    def backward(self, coefficients: Floats) -> Floats:
        """The matrix of coefficients ``(R, C)``, up to rounding, as a new array."""
        return self._apply(self.matrix * self.unit, coefficients)

    def _apply(self, factor: npt.NDArray[np.floating[Any]], matrix: Rows) -> Floats:
        found = np.empty(matrix.shape, np.float32)
        for rows, part in pieces(matrix, self.size):
            groups = part.reshape(-1, self.size, matrix.shape[1])
            found[rows] = np.matmul(factor.T, groups).reshape(part.shape)
        return found


@dataclass(frozen=True)
class Kernel:
    """The taps of a convolution.

    Attributes:
        layout: A layout whose rows are the taps of all inputs, those of an input consecutive; columns are the outputs.
        taps: Number of taps along each axis.
    """

    layout: Layout
    taps: tuple[int, ...]


def find_kernel(shape: tuple[int, ...], output_axis: int) -> Kernel | None:
    """The kernel of a tensor of this shape; None if there are no taps, or too many for a transform.

    Args:
        output_axis: 0 if the axes of taps are the last ones, −1 if they are the first ones.
    """
    rank = len(shape)
    if rank < 3 or output_axis not in (0, -1):
        return None
    if output_axis == 0:
        axes, taps = (1, *range(2, rank), 0), shape[2:]
    else:
        axes, taps = (rank - 2, *range(rank - 2), rank - 1), shape[:-2]
    n_taps = math.prod(taps)
    n_outputs = shape[output_axis]
    if not 2 <= n_taps <= MAX_TRANSFORM or n_outputs < 2 or not _fits(n_taps, n_outputs, math.prod(shape)):
        return None
    return Kernel(Layout(axes, rank - 1), taps)


def _fits(size: int, n_columns: int, n_elements: int) -> bool:
    """Whether a group of ``size`` rows fits into a block, and the matrix of the transform is small enough."""
    fits_block = size * n_columns <= MAX_BLOCK_ELEMENTS and not cuts_rows(n_columns)
    return fits_block and size**2 * _ENTRY_BITS <= _LARGEST_SHARE * n_elements


def find_group(matrix: ShortFloats, step: float) -> int:
    """Find the best number of neighbouring inputs for a transform, such as the pixels of a row of a flattened image.

    Args:
        matrix: ``(R, C)``, finite; rows are inputs.
        step: Step of the grid.

    Returns:
        A divisor of R of at least 2; 0 if nothing is gained.
    """
    n_rows, n_columns = matrix.shape
    sizes = [size for size in range(2, MAX_TRANSFORM + 1) if n_rows % size == 0 and _fits(size, n_columns, matrix.size)]
    # take gives C order, which later steps need
    sample = matrix.take(sample_indices(n_columns, max(1, _SAMPLE // n_rows), 0), axis=1).astype(np.float64)
    noise = step * step / 4

    def bits(variances: npt.NDArray[np.float64]) -> float:
        return 0.5 * float(np.log2(1 + variances / noise).mean())

    grams = _grams(sample, sizes)
    best, best_bits = 0, bits(np.square(sample).mean(keepdims=True)) - _LEAST_GAIN
    for size in sizes:
        n = sample.size // size
        components = np.linalg.eigvalsh(grams[size] / n)
        cost = size**2 * _ENTRY_BITS / matrix.size + _CHANCE * size / n
        if (found := bits(np.maximum(components, 0)) + cost) < best_bits:
            best, best_bits = size, found
    return best


def _gram(matrix: Rows, size: int) -> npt.NDArray[np.float64]:
    """Products of the rows of a group with each other, summed over groups and columns: ``(size, size)``."""
    gram = np.zeros((size, size))
    for _, part in pieces(matrix, size):
        groups = part.reshape(-1, size, matrix.shape[1])
        gram += np.matmul(groups, groups.transpose(0, 2, 1)).sum(axis=0)
    return gram


def _grams(matrix: npt.NDArray[np.floating[Any]], sizes: list[int]) -> dict[int, npt.NDArray[np.float64]]:
    """The results of ``_gram`` for ascending sizes. A group whose size is a multiple has those of smaller groups."""
    grams: dict[int, npt.NDArray[np.float64]] = {}
    for size in sizes[::-1]:
        multiple = next((n for n in grams if n % size == 0), None)
        if multiple is None:
            grams[size] = _gram(matrix, size)
        else:
            parts = grams[multiple].reshape(multiple // size, size, multiple // size, size)
            grams[size] = np.einsum("isit->st", parts)
    return grams


def find_transform(matrix: Rows, taps: tuple[int, ...], correlation: float) -> Transform | None:
    """The transform of the taps of a kernel to their principal components. Equal steps give an equal squared error.

    Taps that inputs hardly ever reach keep their random initial values, often within one or few steps. A transform
    would spread these over many steps, so such taps are not transformed.

    If the inputs of neighbouring taps are correlated, as in images and sound, errors of equal sign add up in the
    output, and errors of alternating sign cancel out. A coefficient gets finer steps if its errors count more with such
    inputs: the components are those of ``Lᵀ w``, for taps w and inputs with the second moments ``L Lᵀ``.

    Args:
        matrix: ``(R, C)``, finite; the taps of each input are consecutive rows.
        taps: Number of taps along each axis.
        correlation: Correlation of the inputs of neighbouring taps, less than 1.

    Returns:
        The transform; None if the matrix is all zeros.
    """
    n_taps = math.prod(taps)
    gram = _gram(matrix, n_taps)
    variances = np.diagonal(gram) * (n_taps / size_of(matrix))
    if not variances.any():
        return None
    busy = np.flatnonzero(variances >= _IDLE * variances.max())
    places = np.indices(taps).reshape(len(taps), n_taps)[:, busy]
    apart = np.abs(places[:, :, None] - places[:, None, :]).sum(axis=0)
    lower = np.linalg.cholesky(np.power(correlation, apart))
    basis = signed(np.linalg.eigh(lower.T @ gram[np.ix_(busy, busy)] @ lower)[1].T[::-1])  # one component in each row
    of_busy = basis @ np.linalg.inv(lower)
    of_busy *= math.sqrt(busy.size / float(np.square(of_busy).sum()))
    back = np.eye(n_taps)
    back[np.ix_(busy, busy)] = of_busy
    significand, exponent = math.frexp(float(np.abs(back).max()) / _LARGEST)
    # 8 significant bits, so that rounding errors of the computation do not matter
    unit = math.ldexp(math.ceil(significand * 256), exponent - 8)
    return Transform(np.rint(back / unit).astype(np.int8), unit)
