"""The tensors that the encoder gets: their description, and checks of names, shapes and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EncodeError
from ..format.chunkwriter import EncodedTensor
from ..format.dtypes import BY_NAME, of_array
from ..format.limits import MAX_NAME_NBYTES, MAX_RANK
from .methods.layout import largest_magnitude
from .sensitivity import has_recurrent_name

Array = npt.NDArray[Any]
_LARGEST = float(np.finfo(np.float32).max) / 16  # so that sums of stages and products with scales do not overflow
_SMALLEST = 2.0**-110  # least value of a tensor's largest magnitude, so that its steps and scales are normal numbers
_FEWEST_ROWS, _TALL = 4096, 8  # a table has at least so many rows, and so many times more rows than columns
_PIECE = 1 << 16  # values that are looked at together
_SHAPE_PRODUCT = 1 << 58  # with 16 bytes an element, the size in bytes fits a signed 64-bit integer


@dataclass(frozen=True)
class StoredForm:
    """How a tensor is quantized in its source, where that can be kept to the bit.

    Attributes:
        name: Of the form, such as ``"Q4_0"``.
        nbytes: In the source.
        load: Its bytes in the source.
        encode: The tensor, encoded so that ``load`` can be had from it again. Its record may be of another dtype and
            shape.
    """

    name: str
    nbytes: int
    load: Callable[[], npt.NDArray[np.uint8]]
    encode: Callable[[], EncodedTensor]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor to be encoded. Its values are loaded when they are needed.

    Attributes:
        name: Name of the tensor.
        dtype: Name in SPEC 7.1.
        shape: Its shape.
        load: Returns its array, with any strides and byte order; 4-bit elements take one byte each.
        alias_of: Name of an earlier tensor of which it is an alias; else None.
        is_exact: Whether every bit is kept because it is not a weight, unless a pattern of the recipe matches it.
        output_axis: For a weight of two or more axes, the axis of the layer's outputs.
        is_looked_up: Whether its rows are known to be looked up one by one.
        is_recurrent: Whether it is known to be the kernel of a recurrent layer.
        layer: Number and name of its layer in the file; None if the layer follows from its name.
        form: How it is quantized in its source. It stays so, unless the options ask for another coding.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    alias_of: str | None = None
    is_exact: bool = False
    output_axis: int = 0
    is_looked_up: bool = False
    is_recurrent: bool = False
    layer: tuple[int, str] | None = None
    form: StoredForm | None = None

    @property
    def is_table(self) -> bool:
        """Whether its rows are looked up one by one, as far as known or by its name or shape."""
        is_tall = len(self.shape) == 2 and self.shape[0] >= max(_FEWEST_ROWS, _TALL * self.shape[1])
        return self.is_looked_up or is_tall or "embed" in self.name.lower()

    @property
    def in_sequence(self) -> bool:
        """Whether it is the kernel of a recurrent layer, as far as known or by its name."""
        return self.is_recurrent or has_recurrent_name(self.name)

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(self.n_elements)

    @property
    def source_nbytes(self) -> int:
        """Bytes in the source: fewer than ``nbytes`` where it is quantized already."""
        return self.nbytes if self.form is None else self.form.nbytes


def source_tensors(tensors: Mapping[str, Array]) -> list[SourceTensor]:
    """Describe arrays for the encoder. Equal views of the same memory become aliases (WRI-002).

    Raises:
        EncodeError: A name is not a string, or a value is not an array that a ``.vqm`` can hold.
    """
    if not isinstance(tensors, Mapping):
        raise EncodeError(f"tensors is a {type(tensors).__name__}, not a mapping from names to arrays")
    sources = []
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise EncodeError(f"the name {name!r} is a {type(name).__name__}, not a string")
        if not isinstance(value, (np.ndarray, np.generic)):
            raise EncodeError(f"tensor {name!r} is a {type(value).__name__}, not a NumPy array")
        array = np.asarray(value)
        dtype = of_array(array, name)
        key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str, dtype.name)
        target = seen.get(key) if array.size else None
        if target is None:
            seen[key] = name
        sources.append(SourceTensor(name, dtype.name, array.shape, lambda array=array: array, target))  # type: ignore[misc]
    return sources


def check_name(name: str) -> None:
    """Raise EncodeError unless a tensor may have this name (TEN-001)."""
    check_layer_name(name)
    if not name or "\0" in name:
        raise EncodeError(f"the name {name!r} is empty or has a character U+0000")


def check_layer_name(name: str) -> None:
    """Raise EncodeError unless a layer may have this name (LYR-001)."""
    if not isinstance(name, str):
        raise EncodeError(f"the name {name!r} is a {type(name).__name__}, not a string")
    try:
        nbytes = len(name.encode())
    except UnicodeEncodeError as err:
        raise EncodeError(f"the name {name!r} is no Unicode text: {err.reason}") from err
    if nbytes > MAX_NAME_NBYTES:
        raise EncodeError(f"the name {name[:40]!r}… has {nbytes} bytes; at most {MAX_NAME_NBYTES} are allowed")


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise EncodeError unless a tensor may have this shape (TEN-003)."""
    if len(shape) > MAX_RANK:
        raise EncodeError(f"tensor {name!r} has {len(shape)} axes; at most {MAX_RANK} are allowed")
    product = prod(size for size in shape if size)
    if product >= _SHAPE_PRODUCT:
        raise EncodeError(f"tensor {name!r} has shape {shape}, whose sizes other than 0 have the product {product};"
                          f" it must be below {_SHAPE_PRODUCT}")  # fmt: skip


def check_tensors(tensors: Iterable[SourceTensor], names: set[str]) -> set[str]:
    """Check names and shapes of tensors.

    Args:
        names: Names of the tensors that the file has already.

    Returns:
        These names and those of the tensors.

    Raises:
        EncodeError: A name or a shape is not allowed, or two tensors have the same name.
    """
    names = set(names)
    for tensor in tensors:
        check_name(tensor.name)
        check_shape(tensor.name, tensor.shape)
        if tensor.name in names:
            raise EncodeError(f"two tensors have the name {tensor.name!r}")
        names.add(tensor.name)
    return names


def native(tensor: SourceTensor) -> Array:
    """Load the array of a tensor, in C order and little-endian; bools become 0 or 1.

    Raises:
        EncodeError: Shape or dtype are not those of the description.
    """
    array = np.asarray(tensor.load())
    if array.shape != tensor.shape:
        raise EncodeError(f"tensor {tensor.name!r} was announced with shape {tensor.shape} and has {array.shape}")
    expected = BY_NAME[tensor.dtype].numpy
    if array.dtype != expected and array.dtype.name != expected.name:  # names take NumPy some time
        raise EncodeError(f"tensor {tensor.name!r} was announced as {expected} and is {array.dtype}")
    if expected == np.bool_:
        array = array.view(np.uint8) != 0  # DTY-001
    return np.ascontiguousarray(array, dtype=expected).reshape(tensor.shape)  # ascontiguousarray makes 0-d 1-d


def fits_float32(array: Array) -> bool:
    """Whether all values are finite and in the range of float32. Others can only be stored raw (SPEC 7)."""
    values = np.ascontiguousarray(array).reshape(-1)
    if np.iscomplexobj(values):
        values = values.view(values.real.dtype)
    largest = 0.0
    with np.errstate(invalid="ignore"):  # NaN is expected
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            piece = piece.astype(np.float32) if piece.itemsize < 4 else piece
            found = largest_magnitude(piece)
            if not found < _LARGEST:
                return False
            largest = max(largest, found)
    return largest == 0 or largest >= _SMALLEST


def overlap_notes(by_storage: Mapping[Any, Sequence[tuple[int, int, int, str]]]) -> list[str]:
    """A note for each tensor whose bytes overlap those of another.

    Args:
        by_storage: For each storage, for each of its tensors: start, end, position and name.
    """
    found = []
    for extents in by_storage.values():
        reach, other = 0, ""
        for start, end, position, name in sorted(extents, key=lambda extent: (extent[0], extent[2])):
            if start < reach:
                found.append((position, f"{name!r} and {other!r} are views that overlap: each is stored on its own"))
            if end > reach:
                reach, other = end, name
    return [note for _, note in sorted(found)]
