"""Small files that ask for much memory or time. Each is valid, so a reader can refuse it only by a bound (LIM-002)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from vqmbuilder import Chunk, Entry, Section, chunk, file, frame, layr, libzstd, meta, rle_blocks, section
from vqmtensors import DTYPES, Layout, Tensor, alias, empty, raw, tensor
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


def many_tensors(n: int = 1_000_000, rank: int = 32, in_layer: int = 25_000) -> bytes:
    """Tensors without elements."""
    shape = (0,) * rank
    tensors = [empty(f"{i:07}", "u8", shape) for i in range(n)]
    return compact(*(layr("", *tensors[i : i + in_layer]) for i in range(0, n, in_layer)))


def long_names(n: int) -> bytes:
    """Tensors without elements whose names have 1,000 bytes."""
    return compact(layr("", *(empty(f"{i:01000}", "u8", (0,)) for i in range(n))))
