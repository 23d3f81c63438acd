"""Packing of codes into bytes: SPEC section 10, and the 4-bit elements of section 8.

A code array is one-dimensional and of an unsigned integer dtype, ``uint8`` where ``entries <= 256``, else
``uint16``.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

Planes = tuple[tuple[int, int], ...]  # (base, digits per byte) of each plane; () is dense packing
Codes = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def code_width(entries: int) -> int:
    """Width in bits of a densely packed code: 0 for 1 entry, 16 for 65,536 entries."""
    return (entries - 1).bit_length()


def code_dtype(entries: int) -> type[np.uint8] | type[np.uint16]:
    """NumPy dtype of the codes of a codebook with so many entries."""
    return np.uint8 if entries <= 256 else np.uint16


def n_planes(planes: Planes) -> int:
    """Number of sections that hold the codes of a block."""
    return len(planes) or 1


def payload_nbytes(n_codes: int, entries: int, planes: Planes) -> list[int]:
    """Plain size of each section that holds ``n_codes`` codes."""
    if not planes:
        return [(n_codes * code_width(entries) + 7) // 8]
    return [(n_codes + per_byte - 1) // per_byte for _, per_byte in planes]


def pack(codes: Codes, entries: int, planes: Planes) -> list[bytes]:
    """Pack codes ``(n_codes,)``, each below ``entries``, into the plain bytes of one section for each plane."""
    if not planes:
        return [_pack_dense(codes, code_width(entries))]
    if len(planes) == 1:
        return [_pack_digits(codes.astype(np.uint8), *planes[0])]
    sections = []
    rest = codes.astype(np.uint32)
    for base, per_byte in planes:
        sections.append(_pack_digits((rest % base).astype(np.uint8), base, per_byte))
        rest //= base
    return sections


def unpack(payloads: list[Bytes], n_codes: int, entries: int, planes: Planes) -> Codes:
    """Unpack and check the codes of a block (COD-001, COD-002, COD-005).

    Args:
        payloads: The plain bytes of each section, of the sizes that ``payload_nbytes`` gives.

    Returns:
        Array ``(n_codes,)``, possibly a view of a payload.

    Raises:
        FormatError: A code is outside the codebook, a byte outside its base, or padding is not zero.
    """
    if planes:
        codes = _unpack_planes(payloads, n_codes, entries, planes)
        covered = prod(base for base, _ in planes)
    else:
        codes = _unpack_dense(payloads[0], n_codes, code_width(entries))
        covered = 1 << code_width(entries)
    if covered > entries and n_codes:  # COD-001
        largest = int(codes.max())
        if largest >= entries:
            at = int(np.argmax(codes >= entries))
            raise FormatError(f"code {int(codes[at])} (number {at} of the block) is outside the codebook of"
                              f" {entries} entries", clause="COD-001")  # fmt: skip
    return codes


def _pack_dense(codes: Codes, width: int) -> bytes:
    if width == 0:
        return b""
    if width == 8:
        return codes.astype(np.uint8).tobytes()
    if width == 16:
        return codes.astype("<u2").tobytes()
    # (n_codes, 16): the bits of each code, least significant bit first
    bits = np.unpackbits(codes.astype("<u2")[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, :width].reshape(-1), bitorder="little").tobytes()


def _unpack_dense(payload: Bytes, n_codes: int, width: int) -> Codes:
    if width == 0:
        return np.zeros(n_codes, np.uint8)
    used_bits = n_codes * width
    if used_bits % 8 and payload[-1] >> (used_bits % 8):  # COD-002
        raise FormatError(f"the bits after the last code are not zero: last byte {payload[-1]:#04x}, of which"
                          f" {used_bits % 8} bits are used", clause="COD-002")  # fmt: skip
    if width == 8:
        return payload
    if width == 16:
        return payload.view("<u2")
    if width in (1, 2, 4):
        return np.take(_digit_table(1 << width, 8 // width), payload, axis=0).reshape(-1)[:n_codes]
    return _unpack_words(payload, n_codes, width)


def _unpack_words(payload: Bytes, n_codes: int, width: int) -> Codes:
    """Unpack codes of width 3, 5, 6, 7 or 9..15: 8 codes take ``width`` bytes, and each lies in at most 3 of them."""
    n_groups = (n_codes + 7) // 8
    padded = np.zeros(n_groups * width + 2, np.uint8)
    padded[: payload.size] = payload
    groups = padded[: n_groups * width].reshape(n_groups, width)
    codes = np.empty((n_groups, 8), np.uint8 if width <= 8 else np.uint16)
    for i in range(8):
        first, shift = divmod(i * width, 8)
        word = groups[:, first].astype(np.uint32)
        for k in range(1, (shift + width + 7) // 8):
            word |= groups[:, first + k].astype(np.uint32) << np.uint32(8 * k)
        codes[:, i] = (word >> np.uint32(shift)) & np.uint32((1 << width) - 1)
    return codes.reshape(-1)[:n_codes]


def _pack_digits(digits: Bytes, base: int, per_byte: int) -> bytes:
    if per_byte == 1:
        return digits.tobytes()
    padded = digits
    if digits.size % per_byte:
        padded = np.zeros(-(-digits.size // per_byte) * per_byte, np.uint8)
        padded[: digits.size] = digits
    columns = padded.reshape(-1, per_byte).T
    packed = columns[-1].copy()
    for column in columns[-2::-1]:  # base ** per_byte is 256 or less, so that nothing overflows
        packed *= np.uint8(base)
        packed += column
    data: bytes = packed.tobytes()
    return data


def _unpack_planes(payloads: list[Bytes], n_codes: int, entries: int, planes: Planes) -> Codes:
    if len(planes) == 1:
        return _unpack_digits(payloads[0], n_codes, *planes[0])
    codes = np.zeros(n_codes, np.uint32)
    weight = 1
    for payload, (base, per_byte) in zip(payloads, planes, strict=True):
        codes += _unpack_digits(payload, n_codes, base, per_byte).astype(np.uint32) * np.uint32(weight)
        weight *= base
    if codes.max(initial=0) < entries:
        return codes.astype(code_dtype(entries))
    return codes  # not narrowed: the caller finds the code that is too large (COD-001)


def check_plane_bytes(payload: Bytes, n_codes: int, base: int, per_byte: int) -> None:
    """Raise FormatError unless all bytes are in range and the padding digits of the last byte are zero (COD-005)."""
    count = base**per_byte
    if count < 256 and payload.size and int(payload.max()) >= count:
        at = int(np.argmax(payload >= count))
        raise FormatError(f"byte {int(payload[at])} (number {at} of the section) does not hold {per_byte} digits"
                          f" of base {base}: at most {count - 1}", clause="COD-005")  # fmt: skip
    used = n_codes % per_byte
    if used and int(payload[-1]) >= base**used:
        raise FormatError(f"the digits after the last code are not zero: last byte {payload[-1]}, of which {used}"
                          f" digits of base {base} are used", clause="COD-005")  # fmt: skip


def _unpack_digits(payload: Bytes, n_codes: int, base: int, per_byte: int) -> Bytes:
    check_plane_bytes(payload, n_codes, base, per_byte)
    if per_byte == 1:
        return payload
    return np.take(_digit_table(base, per_byte), payload, axis=0, mode="clip").reshape(-1)[:n_codes]


@lru_cache(maxsize=256)
def _digit_table(base: int, per_byte: int) -> Bytes:
    """Digits of every byte value: (256, per_byte), the least significant first."""
    values = np.arange(256)[:, None] // base ** np.arange(per_byte)[None, :]
    return (values % base).astype(np.uint8)


def pack_nibbles(nibbles: Bytes) -> bytes:
    """Pack 4-bit elements ``(n,)``, one in each byte, into two in each byte, the first in bits 0 to 3 (RAW-002)."""
    padded = np.zeros(nibbles.size + nibbles.size % 2, np.uint8)
    padded[: nibbles.size] = nibbles & 15
    return (padded[0::2] | padded[1::2] << 4).tobytes()


def unpack_nibbles(payload: Bytes, n_elements: int) -> Bytes:
    """The inverse of ``pack_nibbles``.

    Returns:
        Array ``(n_elements,)``, one element in each byte.

    Raises:
        FormatError: The unused half of the last byte is not zero (RAW-002).
    """
    if n_elements % 2 and payload[-1] >> 4:
        raise FormatError(f"the unused bits of the last byte are not zero: {payload[-1]:#04x}", clause="RAW-002")
    out = np.empty((payload.size, 2), np.uint8)
    np.bitwise_and(payload, 15, out=out[:, 0])
    np.right_shift(payload, 4, out=out[:, 1])
    return out.reshape(-1)[:n_elements]
