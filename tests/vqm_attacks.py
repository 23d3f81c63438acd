"""Small files that ask for much memory or time. Each is valid, so a reader can refuse it only by a bound (LIM-002)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from vqmbuilder import Chunk, Entry, Section, chunk, file, frame, layr, libzstd, meta, rle_blocks, section, u32
from vqmtensors import DTYPES, Layout, Tensor, alias, column, empty, raw, tensor
from vqmtrellis import Freq, Trellis

LARGEST_NBYTES = 1 << 28  # of a resident section or a BOOK
_WINDOW = 104  # zstd window descriptor of 8 MiB
_SHAPE = (1, 1024)  # of a tensor whose codes choose one of 65,536 entries


@cache
def zeros(nbytes: int) -> Section:
    """A section of zeros: 4 bytes for each 128 KiB."""
    return Section(frame(nbytes, blocks=rle_blocks(0, nbytes), window=_WINDOW), is_zstd=True)


def compact(*chunks: Chunk) -> bytes:
    """A file whose metadata are zstd frames where that is smaller; the index, if there are many tensors."""
    frames = {"is_compressed": True, "meta_frame": libzstd}
    packed = (replace(item, **frames) if len(item.meta) > 200 else item for item in chunks)
    n_tensors = sum(len(item.tensors) for item in chunks)
    return file(meta(), *packed, index_changes=frames if n_tensors > 100 else {}).build()


def _sum_of_codebooks(name: str, sources: list[list[int]], tables: list[Section]) -> Tensor:
    stages: list[object] = [[1, 1024, 65_536, source, 0, 0, 0, None, []] for source in sources]
    dtype = DTYPES["f32"].id
    record = [name, dtype, list(_SHAPE), [None, 1, 0, 0, 0], stages]
    sections = (*tables, *[section(bytes(2))] * len(stages))
    return Tensor(record, sections, Entry(name.encode(), dtype, _SHAPE), "f32", _SHAPE, bytes(4096))


def large_tables(n: int = 4) -> bytes:
    """A tensor of 4 kB whose n codebooks have 268 MB each."""
    return compact(layr("", _sum_of_codebooks("w", [[0, 11]] * n, [zeros(LARGEST_NBYTES)] * n)))


def large_books(n: int = 12) -> bytes:
    """A tensor of 4 kB for each of n BOOK chunks of 268 MB."""
    books = [chunk(b"BOOK", [1024, 65_536, 1, 11], [zeros(LARGEST_NBYTES)]) for _ in range(n)]
    return compact(*books, layr("", *(_sum_of_codebooks(f"w{i}", [[2, i]], []) for i in range(n))))


def large_freqs(n: int = 12) -> bytes:
    """n FREQ chunks of 4,194,304 entries, and a tensor for each."""
    freq = Freq(1, (b"\1",) * (1 << 21))
    freqs = [chunk(b"FREQ", [1, 1, 1 << 21], [Section(libzstd(b"".join(freq.tables)), is_zstd=True)])] * n
    codes = np.zeros((1, 1), np.intp)
    table = np.ones((1, 1), np.float32)
    return compact(*freqs, layr("", *(tensor(f"w{i}", "f32", (1, 1), Trellis(codes, Freq(1, (b"\1",)), (1, 1), table,
                                                                            number=i)) for i in range(n))))  # fmt: skip


def large_tensor(n_elements: int = 1 << 28) -> bytes:
    """A tensor of zeros."""
    blocks = [zeros(1 << 22)] * (n_elements >> 22)
    layout = Layout(None, 1, 0, 1, 0)
    shape = (n_elements >> 22, 1 << 22)
    record = ["w", DTYPES["u8"].id, list(shape), layout.record(), [[0, 0]]]
    return compact(layr("", Tensor(record, tuple(blocks), Entry(b"w", DTYPES["u8"].id, shape), "u8", shape, b"")))


def far_aliases(n_layers: int = 100, n_tensors: int = 1000, n_aliases: int = 400) -> bytes:
    """Layers of many tensors, and aliases whose targets are in one after another of these layers."""
    firsts = [raw(f"{i}", "u8", (1,), b"\0") for i in range(n_layers)]
    parts = [layr("", first, *(empty(f"{i}.{k}", "u8", (0,)) for k in range(n_tensors)))
             for i, first in enumerate(firsts)]  # fmt: skip
    return compact(*parts, layr("", *(alias(f"a{i}", firsts[i % n_layers]) for i in range(n_aliases))))


def many_lanes(n_blocks: int = 8000, *, has_classes: bool = True) -> bytes:
    """A row of blocks of 4 elements, each with a payload of one sequence."""
    codes = np.zeros((1, 4 * n_blocks), np.intp)
    classes = (1,) * codes.size if has_classes else ()
    freq = Freq(8, (bytes([17, 17]),) * 2)
    stage = Trellis(codes, freq, (1, 4), np.ones((1, 2), np.float32), column_classes=classes)
    return compact(freq.chunk(), layr("", tensor("w", "f32", codes.shape, stage, layout=Layout(None, 1, 0, 1, 4))))


def _arithmetic(
    name: str, shape: tuple[int, int], stages: list[object], sections: list[Section], block_rows: int = 0
) -> Tensor:
    """A tensor of float32 with these stages, whose values are not computed here."""
    record = [name, DTYPES["f32"].id, list(shape), Layout(None, 1, 0, block_rows, 0).record(), stages]
    return Tensor(record, tuple(sections), Entry(name.encode(), DTYPES["f32"].id, shape), "f32", shape, b"")


def many_sums(n: int) -> bytes:
    """Tensors of 16 MiB that are the sum of 16 stages, with codes of 0 bits."""
    stage = [1, 1, 1, [0, 11], 0, 0, 0, None, []]
    sections = [section(bytes(4))] * 16 + [section(b"")] * 16
    return compact(*(layr("", _arithmetic(f"w{i}", (1, 1 << 22), [stage] * 16, sections)) for i in range(n)))


def many_products(n: int, rank: int = 4096) -> bytes:
    """Tensors of 64 MiB, each a product of two matrices of high rank."""
    block_rows = 1024
    stage = [2, rank, [2, []], [2, []], [11, 0], [11, 0]]
    sections = [section(bytes(4))] * 2 + [zeros(rank * 4096 // 8)] + [zeros(block_rows * rank // 8)] * 4
    return compact(layr("", *(_arithmetic(f"w{i}", (4096, 4096), [stage], sections, block_rows) for i in range(n))))


def many_steps(n: int, lanes: int = 16) -> bytes:
    """Trellis stages of few sequences, which take many steps."""
    stage = [4, [1, 0], None, None, 0, 0, 0, [1, 64 * lanes]]
    sections = [section(bytes(4)), section(u32(1 << 16) * lanes)]
    tensors = (_arithmetic(f"w{i}", (lanes, 64 * lanes), [stage], sections) for i in range(n))
    return compact(Freq(1, (b"\1",)).chunk(), layr("", *tensors))


def many_slots(n: int) -> bytes:
    """Trellis stages of one element each, which use all 4,194,304 slots of a FREQ."""
    stage = [4, [1, 0], [11, 4], None, 3, 0, 0, [1, 1]]
    sections = [section(bytes(4)), section(b"\xff"), section(b"\xff"), section(u32(1 << 16))]
    tensors = (_arithmetic(f"w{i}", (1, 1), [stage], sections) for i in range(n))
    return compact(Freq(12, (b"\1",) * 1022).chunk(), layr("", *tensors))


def many_orders(n: int) -> bytes:
    """Tensors of 16 MiB whose axes are exchanged and whose rows are in another order."""
    stage = [1, 1, 1, [0, 11], 0, 0, 0, None, []]
    tensors = []
    for i in range(n):
        item = _arithmetic(f"w{i}", (2048, 2048), [stage], [zeros(1 << 22), section(bytes(4)), section(b"")])
        item.record[3] = Layout((1, 0), 2, 1, 0, 0).record()
        tensors.append(item)
    return compact(*(layr("", item) for item in tensors))


def many_words(n: int) -> bytes:
    """Sparse tensors of 16 MiB that have all words."""
    size = 1 << 22
    tensors = []
    for i in range(n):
        ones = [Section(frame(count, blocks=rle_blocks(byte, count), window=_WINDOW), is_zstd=True)
                for byte, count in ((255, size // 8), *[(1, size)] * 4)]  # fmt: skip
        sections = [ones[0], section(b""), *ones[1:]]
        tensors.append(_arithmetic(f"w{i}", (1, size), [[5, 2, column([size])]], sections))
    return compact(*(layr("", item) for item in tensors))


def large_aliases(n: int) -> bytes:
    """Aliases of a tensor of 16 MiB."""
    target = _arithmetic("w", (1, 1 << 22), [[1, 1, 1, [0, 11], 0, 0, 0, None, []]], [section(bytes(4)), section(b"")])
    return compact(layr("", target, *(alias(f"a{i}", target) for i in range(n))))


def many_tensors(n: int = 1_000_000, rank: int = 32, in_layer: int = 25_000) -> bytes:
    """Tensors without elements."""
    shape = (0,) * rank
    tensors = [empty(f"{i:07}", "u8", shape) for i in range(n)]
    return compact(*(layr("", *tensors[i : i + in_layer]) for i in range(0, n, in_layer)))


def long_names(n: int) -> bytes:
    """Tensors without elements whose names have 1,000 bytes."""
    return compact(layr("", *(empty(f"{i:01000}", "u8", (0,)) for i in range(n))))
