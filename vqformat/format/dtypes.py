"""The dtypes of SPEC section 7.1, and the NumPy dtypes that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EncodeError, UnsupportedError, missing_package
from ..forks import cached_property


@dataclass(frozen=True)
class DType:
    """A dtype of the format.

    Attributes:
        id: Number in the file.
        name: Name in SPEC.md, ``"f32"``.
        numpy_name: Name of the NumPy dtype, ``"float32"``; of ml_dtypes where NumPy has none.
        bits: Bits of an element in the decoded bytes.
        arithmetic: Whether codebook and low-rank stages may hold it.
        word_nbytes: Bytes of the words that a raw stage splits; 0 if it cannot be split.
    """

    id: int
    name: str
    numpy_name: str
    bits: int
    arithmetic: bool = False
    word_nbytes: int = 0

    @property
    def is_complex(self) -> bool:
        return self.name in ("c64", "c128")

    @property
    def largest(self) -> float:
        """The largest finite value that a real of an arithmetic dtype can have. Decoding computes in float32."""
        return {"f16": 65504.0, "bf16": 3.3895313892515355e38}.get(self.name, float(np.finfo(np.float32).max))

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype, little-endian. Arrays of 4-bit dtypes have one element in each byte.

        Raises:
            ImportError: It needs ml_dtypes, which is not installed.
        """
        if hasattr(np, self.numpy_name):
            dtype: np.dtype[Any] = np.dtype(self.numpy_name).newbyteorder("<")
        else:
            dtype = np.dtype(getattr(_ml_dtypes(self.name), self.numpy_name))
        return dtype

    def nbytes(self, n_elements: int) -> int:
        """Bytes of ``n_elements`` elements in the decoded form of SPEC 7.1."""
        return (n_elements * self.bits + 7) // 8


def _ml_dtypes(name: str) -> Any:
    try:
        import ml_dtypes
    except ImportError as err:
        raise missing_package(f"dtype {name} needs", "ml_dtypes", err) from err
    return ml_dtypes


DTYPES = (
    DType(0, "bool", "bool", 8),
    DType(1, "u8", "uint8", 8),
    DType(2, "i8", "int8", 8),
    DType(3, "u16", "uint16", 16, word_nbytes=2),
    DType(4, "i16", "int16", 16, word_nbytes=2),
    DType(5, "u32", "uint32", 32, word_nbytes=4),
    DType(6, "i32", "int32", 32, word_nbytes=4),
    DType(7, "u64", "uint64", 64, word_nbytes=8),
    DType(8, "i64", "int64", 64, word_nbytes=8),
    DType(9, "f16", "float16", 16, arithmetic=True, word_nbytes=2),
    DType(10, "bf16", "bfloat16", 16, arithmetic=True, word_nbytes=2),
    DType(11, "f32", "float32", 32, arithmetic=True, word_nbytes=4),
    DType(12, "f64", "float64", 64, arithmetic=True, word_nbytes=8),
    DType(13, "c64", "complex64", 64, arithmetic=True, word_nbytes=4),
    DType(14, "c128", "complex128", 128, arithmetic=True, word_nbytes=8),
    DType(15, "f8_e4m3fn", "float8_e4m3fn", 8),
    DType(16, "f8_e5m2", "float8_e5m2", 8),
    DType(17, "f8_e4m3fnuz", "float8_e4m3fnuz", 8),
    DType(18, "f8_e5m2fnuz", "float8_e5m2fnuz", 8),
    DType(19, "f8_e8m0fnu", "float8_e8m0fnu", 8),
    DType(20, "u4", "uint4", 4),
    DType(21, "i4", "int4", 4),
    DType(22, "f4_e2m1fn", "float4_e2m1fn", 4),
)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_NUMPY_NAME = {dtype.numpy_name: dtype for dtype in DTYPES}

TABLE_DTYPES = ("f32", "f16", "bf16")  # of codebooks and scales


def by_id(id: int) -> DType:
    """The dtype with this number.

    Raises:
        UnsupportedError: There is none (TEN-006).
    """
    if id >= len(DTYPES):
        raise UnsupportedError(f"unknown dtype id {id}; known are 0 to {len(DTYPES) - 1}", clause="TEN-006")
    return DTYPES[id]


def of_array(array: np.ndarray[Any, Any], name: str) -> DType:
    """The dtype of an array of any byte order.

    Args:
        name: Name of the tensor, for error texts.

    Raises:
        EncodeError: The format has no such dtype.
    """
    dtype = _BY_NUMPY_NAME.get(array.dtype.name)
    if dtype is None:
        known = ", ".join(_BY_NUMPY_NAME)
        raise EncodeError(f"tensor {name!r} has dtype {array.dtype}, which a .vqm cannot hold; it holds {known}")
    return dtype
