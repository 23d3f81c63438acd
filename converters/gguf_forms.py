"""The block types of GGUF whose arithmetic is that of codebook stages: scales and codes, from blocks and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.decode.tables import widen
from vqformat.format.bits import Planes
from vqformat.format.layout import Layout
from vqformat.format.records import TensorRecord
from vqformat.format.stages import CodebookStage, ProgressionSource, Scale, TableSource

Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.uint16]  # bits of f16 or bf16
Parts = tuple[list[Scales], Bytes]  # of each stage (n_blocks, groups of a block); codes, (n_blocks, weights of a block)

_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled
_NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockForm:
    """A type of GGUF whose arithmetic is that of codebook stages (SPEC section 9).

    The value of a weight is scale times entry. Where blocks have minima, it is the sum of that and of the minimum, each
    rounded to float32 once: the order in which gguf rounds.

    Attributes:
        weights, nbytes: Of a block.
        group: Weights that share a scale.
        entries: Of the codebook.
        planes: How codes are packed: so that whole codes lie in a byte, whose frequencies compress well.
        zero: Code of 0, where entries are integers that follow each other.
        table: The entries, where they are not.
        has_minimum: Whether a second stage has the minima, as scales of an entry 1.
        split: From blocks to scales and codes.
        join: The inverse. Some types have several bytes for the same codes: then it gives one of them.
    """

    weights: int
    nbytes: int
    group: int
    entries: int
    planes: Planes
    zero: int
    split: Callable[[Bytes], Parts]
    join: Callable[[Parts], Bytes]
    table: tuple[int, ...] = ()
    scale_dtype: str = "f16"
    has_minimum: bool = False

    def record(self, name: str, shape: tuple[int, ...]) -> TensorRecord:
        """The record of a tensor in one block."""
        n_rows, n_columns = prod(shape[:-1]), shape[-1]
        scale = Scale(self.scale_dtype, int(n_rows > 1), self.group if n_columns > self.group else 0)
        source = TableSource("f16") if self.table else ProgressionSource(self.zero)
        stages = [CodebookStage(1, self.entries, source, scale=scale, planes=self.planes)]
        if self.has_minimum:
            stages.append(CodebookStage(1, 1, ProgressionSource(-1), scale=scale))
        return TensorRecord(name, "f32", shape, Layout(n_row_axes=len(shape) - 1), tuple(stages))

    def resident(self, scales: Sequence[Scales]) -> list[bytes]:
        """Plain bytes of the resident sections."""
        one = np.array([1], "<f4").tobytes()
        entries = np.array(self.table, "<f2").tobytes() if self.table else one
        firsts = [entries, one][: len(scales)]
        return [section for first, values in zip(firsts, scales, strict=True) for section in (first, values.tobytes())]

    def is_exact(self, scales: Sequence[Scales]) -> bool:
        """Whether a tensor may have these scales (CBK-008, VAL-002)."""
        values = [widen(values.tobytes(), self.scale_dtype) for values in scales]
        largest = max(map(abs, self.table)) if self.table else max(self.zero, self.entries - 1 - self.zero)
        with np.errstate(over="ignore", invalid="ignore"):
            bounds = [np.abs(v).max() * np.float32(n) for v, n in zip(values, (largest, 1), strict=False)]
        return bool(np.isfinite(bounds).all())


def _nibbles(data: Bytes) -> Bytes:
    """Low halves of all bytes of a block, then their high halves."""
    n = data.shape[1]
    out = np.empty((data.shape[0], 2 * n), np.uint8)
    np.bitwise_and(data, 15, out=out[:, :n])
    np.right_shift(data, 4, out=out[:, n:])
    return out


def _join_nibbles(codes: Bytes) -> Bytes:
    n = codes.shape[1] // 2
    return codes[:, :n] & np.uint8(15) | codes[:, n:] << np.uint8(4)


def _scales(data: Bytes) -> Scales:
    return np.ascontiguousarray(data).view("<u2")


def _bytes(scales: Scales) -> Bytes:
    return np.ascontiguousarray(scales, "<u2").view(np.uint8)


def _legacy(n_scales: int, *, has_high: bool) -> dict[str, Any]:
    """Blocks of 32: scales, in some types a fifth bit of each code in 4 bytes, two codes in each further byte."""
    at = 2 * n_scales

    def split(blocks: Bytes) -> Parts:
        codes = _nibbles(blocks[:, at + 4 * has_high :])
        if has_high:
            codes |= np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little") << 4
        return [_scales(blocks[:, 2 * i : 2 * i + 2]) for i in range(n_scales)], codes

    def join(parts: Parts) -> Bytes:
        scales, codes = parts
        high = [np.packbits(codes >> 4, axis=1, bitorder="little")] if has_high else []
        return np.concatenate([*map(_bytes, scales), *high, _join_nibbles(codes)], axis=1)

    nbytes = at + 4 * has_high + 16
    entries, per_byte = (32, 1) if has_high else (16, 2)
    return {"weights": 32, "nbytes": nbytes, "group": 32, "entries": entries, "planes": ((entries, per_byte),),
            "split": split, "join": join}  # fmt: skip


def _split_q8_0(blocks: Bytes) -> Parts:
    return [_scales(blocks[:, :2])], blocks[:, 2:] ^ np.uint8(128)


def _join_q8_0(parts: Parts) -> Bytes:
    scales, codes = parts
    return np.concatenate([_bytes(scales[0]), codes ^ np.uint8(128)], axis=1)


def _split_mxfp4(blocks: Bytes) -> Parts:
    exponents = blocks[:, :1].astype(np.uint16)  # of 2^(e - 128): the entries are doubled
    scales = np.where(exponents < 2, np.uint16(0x20) << exponents, exponents - np.uint16(1) << np.uint16(7))
    return [scales.astype("<u2")], _nibbles(blocks[:, 1:])


def _join_mxfp4(parts: Parts) -> Bytes:
    (scales,), codes = parts
    exponents = np.where(scales < 0x80, scales >> 6, (scales >> 7) + 1).astype(np.uint8)
    return np.concatenate([exponents, _join_nibbles(codes)], axis=1)


# f16 of half of each unsigned E4M3 number but the last, which is NaN: in ascending order
_HALF_E4M3 = np.array([m * 2.0**-10 if e == 0 else (8 + m) * 2.0 ** (e - 11) for e in range(16) for m in range(8)],
                      "<f2").view("<u2")[:127]  # fmt: skip


def _split_nvfp4(blocks: Bytes) -> Parts:
    scales = _HALF_E4M3[np.minimum(blocks[:, :4], 126)]
    quarters = blocks[:, 4:].reshape(-1, 8)  # a group of 16 each
    return [scales], _nibbles(quarters).reshape(-1, 64)


def _join_nvfp4(parts: Parts) -> Bytes:
    (scales,), codes = parts
    numbers = np.searchsorted(_HALF_E4M3, scales).astype(np.uint8)
    return np.concatenate([numbers, _join_nibbles(codes.reshape(-1, 16)).reshape(-1, 32)], axis=1)


def _split_tq2_0(blocks: Bytes) -> Parts:
    data = np.ascontiguousarray(blocks[:, :64]).reshape(-1, 2, 32)
    codes = np.empty((len(data), 2, 4, 32), np.uint8)
    for i in range(4):
        np.right_shift(data, np.uint8(2 * i), out=codes[:, :, i])
    codes &= np.uint8(3)
    return [_scales(blocks[:, 64:])], codes.reshape(-1, 256)


def _join_tq2_0(parts: Parts) -> Bytes:
    (scales,), codes = parts
    quarters = codes.reshape(-1, 2, 4, 32)
    data = quarters[:, :, 0].copy()
    for i in range(1, 4):
        data |= quarters[:, :, i] << np.uint8(2 * i)
    return np.concatenate([data.reshape(-1, 64), _bytes(scales)], axis=1)


# TQ1_0 has five digits of base 3, the first the highest, as a fraction: a byte is ceil(number · 256 / 243).
_TERNARY = ((32, 5), (16, 5), (4, 4))  # bytes of a run, digits of each


def _split_tq1_0(blocks: Bytes) -> Parts:
    codes = np.empty((len(blocks), 256), np.uint8)
    at = done = 0
    for n_bytes, n_digits in _TERNARY:
        fraction = blocks[:, at : at + n_bytes].copy()
        for _ in range(n_digits):
            # floor(3 · fraction / 256) is the next digit; the product modulo 256 is the fraction that is left
            np.add(fraction > 85, fraction > 170, out=codes[:, done : done + n_bytes], dtype=np.uint8)
            fraction *= np.uint8(3)
            done += n_bytes
        at += n_bytes
    return [_scales(blocks[:, 52:])], codes


def _join_tq1_0(parts: Parts) -> Bytes:
    (scales,), codes = parts
    runs = []
    at = 0
    for n_bytes, n_digits in _TERNARY:
        number = codes[:, at : at + n_bytes].copy()
        for i in range(1, 5):
            number *= np.uint8(3)
            if i < n_digits:
                number += codes[:, at + i * n_bytes : at + (i + 1) * n_bytes]
        # NumPy divides an array by one number faster than it looks up a table
        runs.append(((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
        at += n_bytes * n_digits
    return np.concatenate([*runs, _bytes(scales)], axis=1)


FORMS: dict[str, BlockForm] = {
    "Q4_0": BlockForm(zero=8, **_legacy(1, has_high=False)),
    "Q4_1": BlockForm(zero=0, has_minimum=True, **_legacy(2, has_high=False)),
    "Q5_0": BlockForm(zero=16, **_legacy(1, has_high=True)),
    "Q5_1": BlockForm(zero=0, has_minimum=True, **_legacy(2, has_high=True)),
    "Q8_0": BlockForm(32, 34, 32, 256, (), 128, _split_q8_0, _join_q8_0),
    "IQ4_NL": BlockForm(zero=0, table=_NON_LINEAR, **_legacy(1, has_high=False)),
    "MXFP4": BlockForm(32, 17, 32, 16, ((16, 2),), 0, _split_mxfp4, _join_mxfp4, table=_FP4, scale_dtype="bf16"),
    "NVFP4": BlockForm(64, 36, 16, 16, ((16, 2),), 0, _split_nvfp4, _join_nvfp4, table=_FP4),
    "TQ1_0": BlockForm(256, 54, 256, 3, ((3, 5),), 1, _split_tq1_0, _join_tq1_0),
    "TQ2_0": BlockForm(256, 66, 256, 4, ((4, 4),), 1, _split_tq2_0, _join_tq2_0),
}
