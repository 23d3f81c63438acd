"""Valid files: exactly at a limit or at the end of a width, sums that need wide integers (SPEC 4, 5, 12.5, 13, 14)."""

from __future__ import annotations

import numpy as np
from vqmbuilder import Section, chunk, file, layr, meta, rle_blocks, section, zstd_section
from vqmtensors import F32, Codebook, LowRank, alias, empty, raw, tensor
from vqmtrellis import Freq, Trellis, frequencies

from fixture_cases import Case, valid
from fixture_cases.bases import ROWS, codes, noise, small
from fixture_cases.trellis_bases import coded

ZEROS = b"\0" * 64


def cases() -> list[Case]:
    return [*limits(), *widths(), *strings(), *frames(), *sums(), *states()]


def sealed(data: bytes) -> Section:
    """A section, compressed if that makes it shorter."""
    packed = zstd_section(data)
    return packed if len(packed.stored) < len(data) else section(data)


def limits() -> list[Case]:
    widest = Codebook(np.zeros((1, 1), int), np.zeros((1, 1, 4_096), F32))
    name = "n" * 1_024
    long = raw(name, "u8", [1], b"\5")

    def book(dim: int, entries: int, groups: int) -> Case:
        field = next(name for name, n in [("dim", dim), ("entries", entries), ("groups", groups)] if n > 1)
        item = chunk(b"BOOK", [dim, entries, groups, 9], [sealed(bytes(2 * dim * entries * groups))])
        return valid(f"book-{field}-limit", f"a BOOK of the most {field}; no stage uses it", "BOK-002 LIM-001",
                     file(item, layr("", small())))  # fmt: skip

    most = chunk(b"note", b"no frame", is_compressed=True, meta_plain=2**24)
    return [
        valid("dim-4096", "a codebook of the greatest dim", "CBK-001 LIM-001",
              file(layr("", tensor("a", "f32", [4_096], widest, seal=sealed)))),
        book(4_096, 1, 1), book(1, 65_536, 1), book(1, 1, 2**20),
        valid("ancillary-meta-16-mib", "an unknown ancillary chunk with meta_plain at its limit", "CHK-006 LIM-001",
              file(meta(), most, layr("", small()))),
        valid("alias-1024-bytes", "an alias whose target has the longest name", "ALI-001 LIM-001",
              file(layr("", long, alias("b", long), is_compressed=True), index_changes={"is_compressed": True})),
    ]  # fmt: skip


def widths() -> list[Case]:
    """The column of sizes in INDX at the ends of each width."""
    return [
        valid(f"index-column-{size}", f"a size of {size:,}: the column of sizes has integers of {n_bytes} bytes",
              "MET-009", file(layr("", empty("a", "u8", [0, size]))))
        for size, n_bytes in [(255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**32 - 1, 4), (2**32, 8)]
    ]  # fmt: skip


def strings() -> list[Case]:
    mark = "\ufeff"
    marked = [raw(name, "u8", [1], bytes([i])) for i, name in enumerate(["a", mark + "a"])]
    special = {"__proto__": {"polluted": True}, "constructor": 1, "toString": "text", "length": 3}
    names = [raw(name, "u8", [1], bytes([i])) for i, name in enumerate(["__proto__", "constructor", "1", "0"])]
    return [
        valid("byte-order-mark", "U+FEFF at the beginning of strings is kept: in a key, a value, names, the generator",
              "MET-003 TEN-002",
              file(meta({"k": mark + "v", mark + "k": mark}, generator=mark), layr(mark + "l", *marked))),
        valid("metadata-empty-key", "a map of two bytes for a pair, with nothing after it", "MET-004 MET-005",
              file(meta({"": 0}))),
        valid("names-of-objects", "keys and names that JavaScript's objects have of their own", "MET-004 TEN-001",
              file(meta(special), layr("__proto__", *names))),
    ]  # fmt: skip


def frames() -> list[Case]:
    n = 2**20 + 1  # the content size takes four bytes
    wide = raw("a", "c128", [n], bytes(16 * n), seal=lambda data: zstd_section(data, blocks=rle_blocks(0, len(data))))
    ramp = bytes(range(100)) + b"\7" * 100
    packed = noise(1, 4_096)

    def one(name: str, comment: str, clauses: str, **options: int | bytes) -> Case:
        item = raw("a", "u8", [len(ramp)], ramp, seal=lambda data: zstd_section(data, **options))
        return valid(name, comment, clauses, file(layr("", item)))

    return [
        valid("zstd-single-segment", "a frame of one segment of 16 MiB + 16, for which no window is tested", "SEC-007",
              file(layr("", wide))),
        one("zstd-window-mantissa", "a window of 7.5 MiB: the mantissa is 7", "SEC-007", window=12 << 3 | 7),
        one("zstd-dictionary-0-one-byte", "a Dictionary_ID of one byte that is zero", "SEC-008", dictionary=b"\0"),
        one("zstd-dictionary-0-four-bytes", "a Dictionary_ID of four bytes that is zero", "SEC-008",
            dictionary=bytes(4)),
        one("zstd-longest-header", "a frame header of 18 bytes: window, dictionary and content size at their longest",
            "SEC-006 SEC-008", dictionary=bytes(4), window=0, size_bytes=8),
        one("zstd-dictionary-0-window", "a Dictionary_ID of four bytes that is zero, after a window", "SEC-008",
            dictionary=bytes(4), window=0),
        valid("ancillary-aligned", "a plain section of 4,096 bytes of an unknown chunk is aligned, too", "SEC-002",
              file(meta(), chunk(b"note", b"", [section(b"abc"), section(packed)]), layr("", small()))),
    ]  # fmt: skip


def sums() -> list[Case]:
    size = 8
    weights = np.full((size, size), 127, np.int8)
    weights[np.arange(size), np.arange(size)] = -128
    steep = Trellis(codes(2, (size, 3), 5), Freq(8, (bytes([20] * 5),) * 2), (2, 3), step=2.0**-20, zero=-(2**22),
                    matrix=weights, trellis=(11, 4))  # fmt: skip
    # 16,777,217 and 16,777,219 are odd and above 2^24: adding in binary32 loses their last bit
    odd = Trellis(np.array([[0, 1], [1, 0]]), Freq(3, (bytes([20] * 2),)), (1, 1), step=1.0, zero=-(2**22 - 1),
                  matrix=np.array([[3, 5], [1, -1]], np.int8))  # fmt: skip
    u = np.array([[65_534, 0, 65_534, 1], [0, 0, 0, 0], [65_534, 65_533, 65_532, 65_531], [32_767, 1, 2, 3]])
    wide = LowRank(u, u.T.copy(), 65_535, 65_535, np.array([2.0**-10], F32), np.array([0.3], F32))
    tiny = LowRank(codes(1, (4, 3), 7), codes(2, (3, 5), 5), 7, 5, np.array([2.0**-147, 3 * 2.0**-140, 1, 0.5], F32),
                   np.array([0.75, 2.0**-146, 0.3, 3 * 2.0**-148, 2.0**-126], F32), size_r=1, size_c=1)  # fmt: skip
    tiny_steps = Codebook(np.array([[0, 1, 2, 6, 7, 4]]), steps=np.array([3 * 2.0**-149], F32), zero=4, entries=8)
    return [
        valid("progression-subnormals", "a subnormal step and its multiples are kept", "CNV-006 CBK-005",
              file(layr("", tensor("a", "f32", [6], tiny_steps)))),
        valid("raw-c64-17", "17 elements of c64, as bytes and as byte planes", "RAW-002 RAW-003",
              file(layr("", *[raw(str(n), "c64", [17], noise(n, 136), split=n) for n in (0, 1)]))),
        coded("transform-beyond-int32", "sums beyond 2^32", "TRL-006", steep),
        coded("transform-beyond-2-24", "sums that need more than 24 bits on the way", "TRL-006", odd),
        valid("low-rank-beyond-int32", "product sums beyond 2^31", "LOW-001",
              file(layr("", tensor("a", "f32", [4, 4], wide, layout=ROWS)))),
        valid("low-rank-subnormals", "subnormal scales and products of a low-rank stage are kept", "CNV-006",
              file(layr("", tensor("a", "f32", [4, 5], tiny, layout=ROWS)))),
    ]  # fmt: skip


def states() -> list[Case]:
    of = Freq(14, (bytes([1, 190, 200, 205, 210, 195, 207]),))
    chosen = [0, 4, 5, 0, 3, 3, 6, 1, 3]
    assert after_first_code(of, chosen) == 2**16 - 1
    stage = Trellis(np.array([chosen]), of, (1, 9), step=0.5)
    return [coded("trellis-state-65535", "a state of 65,535 before the next word", "ANS-002", stage)]


def after_first_code(of: Freq, chosen: list[int]) -> int:
    """The state of a sequence when its first code is known and the next word is not yet read."""
    found, x = frequencies(of.precision, of.tables[0]), 2**16
    for code in reversed(chosen):
        if x >= found[code] << 32 - of.precision:
            x >>= 16
        before, x = x, (x // found[code] << of.precision) + x % found[code] + sum(found[:code])
    return before
