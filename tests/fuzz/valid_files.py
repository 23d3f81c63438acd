"""Valid files at random, most of which no encoder would write, and what they hold.

Tensors, stages, layouts, chunks, metadata and zstd frames are mixed in all ways that SPEC.md allows. They are assembled
by ``vqmbuilder`` and ``vqmtensors``, which compute the decoded bytes from codes in memory: no decoder takes part.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import MAGIC, Chunk, File, Section, chunk, layr, meta, u16, u32
from vqmtensors import DTYPES, Layout, Stage, Tensor, alias, empty, raw, sparse, tensor

from fuzz.frames import odd_frame, odd_section
from fuzz.stages import LARGEST, Shared, View, random_stage

LARGEST_HALF = 60_000  # of the bounds of a f16 tensor
ARITHMETIC = ("f16", "bf16", "f32", "f64", "c64", "c128")
TEXTS = ("", "a", "w", "layer.0/weight", "\ufeffx", "__proto__", "constructor", "\n\x1b[31m", "\"\\", "x" * 1000, "é",
         "\U0001f989", "\uffff", "a\u0301", "\x7f", "\u202e", "..", "/", "NaN")  # fmt: skip


def random_file(rng: np.random.Generator) -> File:
    """A valid file. Each of its chunks knows its tensors, and these their decoded bytes."""
    shared, chunks, names = Shared(), [_meta(rng)], dict[str, Tensor]()
    for _ in range(int(rng.choice([0, 1, 1, 2, 2, 3]))):
        if rng.integers(4) == 0:
            chunks.append(_ancillary(rng))
        layer = _layer(names, shared, rng)
        # Shared tables come before their first use, together or one by one; some are of no use
        chunks += shared.chunks
        shared.chunks = []
        chunks.append(layer)
    minor = int(rng.choice([0, 1, 2, 2, 3, 65_535]))  # any: readers go by the ids (HDR-002)
    model = File(tuple(chunks), MAGIC + u16(1) + u16(minor) + u32(0))
    return _with_compressed_index(model, rng) if rng.integers(3) == 0 else model


def _with_compressed_index(model: File, rng: np.random.Generator) -> File:
    data = model.build()
    start = int.from_bytes(data[-12:-4], "little") + 24
    plain = data[start : start + int.from_bytes(data[start - 12 : start - 8], "little")]
    stored = odd_frame(plain, rng)
    changes = {"is_compressed": True, "meta_frame": stored}
    return replace(model, index_changes=changes) if len(stored) < len(plain) else model  # CHK-005


def _compressed(item: Chunk, rng: np.random.Generator) -> Chunk:
    """The chunk, its metadata a frame if that is smaller (CHK-005), and not always."""
    stored = odd_frame(item.meta, rng)
    is_taken = len(stored) < len(item.meta) and rng.integers(3) > 0
    return replace(item, is_compressed=True, meta_frame=stored) if is_taken else item


def _meta(rng: np.random.Generator) -> Chunk:
    values = {_text(rng): _value(rng, int(rng.integers(1, 12))) for _ in range(int(rng.integers(0, 4)))}
    if rng.integers(60) == 0:
        values["large"] = bytes(70_000)  # the index has no copy of it
    return _compressed(meta(values, generator=_text(rng)), rng)


def _text(rng: np.random.Generator) -> str:
    if rng.integers(3):
        return TEXTS[int(rng.integers(len(TEXTS)))]
    points = rng.integers(0, 0x2FFFF, int(rng.integers(0, 40)))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def _value(rng: np.random.Generator, depth: int) -> Any:
    match int(rng.integers(9 if depth else 7)):
        case 0:
            return None
        case 1:
            return bool(rng.integers(2))
        case 2:
            bits = int(rng.integers(65))
            return (1 << bits) - int(rng.integers(1, 3)) if bits else 0
        case 3:
            bits = int(rng.integers(64))
            return -(1 << bits) + int(rng.integers(0, 2))
        case 4:
            return _text(rng) * int(rng.choice([1, 1, 1, 5, 60]))
        case 5:
            return rng.bytes(int(rng.choice([0, 1, 255, 256, 300])))
        case 6:
            return 2**53 + int(rng.integers(-2, 3))
        case 7:
            count = int(rng.choice([0, 1, 2, 3, 16, 17])) if depth < 3 else 1
            return [_value(rng, depth - 1) for _ in range(count)]
        case _:
            count = int(rng.choice([0, 1, 2, 17])) if depth < 3 else 1
            return {_text(rng): _value(rng, depth - 1) for _ in range(count)}


def _ancillary(rng: np.random.Generator) -> Chunk:
    """A chunk of an unknown type, in which little has a meaning: frames that are none, metadata that are none."""
    kind = bytes(rng.choice(list(b"abcxyz"), 1).tolist() + rng.choice(list(b"abcXYZ"), 3).tolist())
    sections = []
    for _ in range(int(rng.integers(0, 4))):
        data = rng.bytes(int(rng.choice([0, 1, 20, 4095, 4096, 5000])))
        sections.append(Section(data, is_zstd=bool(rng.integers(2))))
    data = rng.bytes(int(rng.choice([0, 1, 30])))
    is_compressed = bool(rng.integers(2))
    # CHK-005 is not tested
    sizes = {"meta_plain": int(rng.integers(2**20))} if rng.integers(2) else {}
    return chunk(kind, data, sections, is_compressed=is_compressed, meta_frame=data, **sizes)


def _layer(names: dict[str, Tensor], shared: Shared, rng: np.random.Generator) -> Chunk:
    """A LAYR chunk. ``names`` has the tensors of the file so far, no aliases, and gets those of the layer."""
    tensors: list[Tensor] = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        name = _text(rng).replace("\0", "")[:250] or "w"
        while name in names:
            name = f"{name[:240]}{int(rng.integers(10**6))}"
        targets = [target for key, target in names.items() if target.name == key]
        if targets and rng.integers(6) == 0:
            target = targets[int(rng.integers(len(targets)))]
            tensors.append(alias(name, target))
            names[name] = target  # taken; its name differs from the target's
        else:
            names[name] = _tensor(name, shared, rng)
            tensors.append(names[name])
    return _compressed(layr(_text(rng), *tensors), rng)


def _tensor(name: str, shared: Shared, rng: np.random.Generator) -> Tensor:
    match int(rng.integers(8)):
        case 0:
            return _empty(name, rng)
        case 1 | 2:
            return _exact(name, rng)
        case _:
            return _arithmetic(name, shared, rng)


def _empty(name: str, rng: np.random.Generator) -> Tensor:
    """No elements, sizes beside a 0 as large as they may be (TEN-003)."""
    shape = [int(rng.choice([0, 1, 2, 7])) for _ in range(int(rng.choice([1, 2, 3, 32])))]
    shape[int(rng.integers(len(shape)))] = 0
    if rng.integers(3) == 0 and len(shape) > 1:
        most = (2**58 - 1) // math.prod(size or 1 for size in shape)
        at = int(rng.integers(len(shape)))
        shape[at] = shape[at] and most * shape[at] if rng.integers(2) else 0
        shape[at - 1] = 0
    return empty(name, list(DTYPES)[int(rng.integers(len(DTYPES)))], shape)


def _shape(rng: np.random.Generator, most: int) -> list[int]:
    """Sizes of at least 1, with at most so many elements; up to 32 of them."""
    shape = [1] * int(rng.choice([0, 1, 1, 2, 2, 2, 3, 4, 5, 32]))
    for at in rng.permutation(len(shape))[:6].tolist():
        left = most // math.prod(shape)
        shape[at] = int(rng.integers(1, max(2, min(left, int(rng.choice([4, 20, most])) + 1))))
    return shape


def _blocks(rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int]:
    """Numbers of rows and columns of a block (LAY-004)."""
    match int(rng.integers(4)):
        case 0 | 1 if rows > 1:
            return int(rng.integers(1, rows)), 0
        case 2 if columns > 1:
            return 1, int(rng.integers(1, columns))
    return 0, 0


def _exact(name: str, rng: np.random.Generator) -> Tensor:
    """A raw or sparse raw stage of any dtype and bits."""
    dtype = list(DTYPES)[int(rng.integers(len(DTYPES)))]
    kind = DTYPES[dtype]
    shape = _shape(rng, int(rng.choice([20, 20, 100, 1000])))
    n = math.prod(shape)
    layout = Layout(n_row_axes=int(rng.integers(len(shape) + 1)))
    rows, columns = layout.view_shape(shape)
    block_rows, block_columns = _blocks(rows, columns, rng)
    if (-(-rows // (block_rows or rows))) * (-(-columns // (block_columns or columns))) > 300:
        block_rows = block_columns = 0
    layout = replace(layout, block_rows=block_rows, block_columns=block_columns)
    n_bytes = -(-n * kind.bits // 8)
    data = _exact_bytes(dtype, n, n_bytes, rng)
    has_layout = layout != Layout() or rng.integers(2)
    options: dict[str, Any] = {"layout": layout if has_layout else None, "seal": lambda part: odd_section(part, rng)}
    if kind.bits > 8 and rng.integers(2):
        marked = rng.integers(0, n, int(rng.integers(0, 4))).tolist()
        return sparse(name, dtype, shape, data, split=int(rng.integers(1, 3)), marked=marked, **options)
    return raw(name, dtype, shape, data, split=int(rng.integers(3)) if kind.bits > 8 else 0, **options)


def _exact_bytes(dtype: str, n: int, n_bytes: int, rng: np.random.Generator) -> bytes:
    """Decoded bytes: noise, few values, or mostly bare words."""
    kind = DTYPES[dtype]
    match int(rng.integers(3)):
        case 0:
            data = np.frombuffer(rng.bytes(n_bytes), np.uint8).copy()
        case 1:
            data = np.full(n_bytes, int(rng.integers(256)), np.uint8)
        case _:
            words = np.frombuffer(rng.bytes(n_bytes), np.uint8).reshape(-1, kind.word).copy()
            words[rng.integers(0, 4, len(words)) > 0] = 0
            words[rng.integers(0, 4, len(words)) == 0, -1] ^= 128
            data = words.reshape(-1)
    if dtype == "bool":
        data &= 1
    if kind.bits == 4 and n % 2:
        data[-1] &= 15
    return data.tobytes()


def _arithmetic(name: str, shared: Shared, rng: np.random.Generator) -> Tensor:
    """A sum of up to 4 stages, seldom 16, in any view, order and grid of blocks."""
    dtype = ARITHMETIC[int(rng.integers(len(ARITHMETIC)))]
    parts = DTYPES[dtype].parts
    shape = _shape(rng, int(rng.choice([8, 24, 60]))) if rng.integers(250) else [1, int(rng.integers(1, 6000))]
    whole = [*shape, 2] if parts == 2 else shape  # S of SPEC 7.2
    layout = _layout(whole, rng)
    rows, columns = layout.view_shape(whole)
    view = View(rows, columns, layout.block_rows, layout.block_columns)
    stages: list[Stage] = []
    bound = 0.0
    for _ in range(int(rng.choice([1, 1, 1, 2, 2, 3, 4])) if rng.integers(40) else 16):
        stage, most = random_stage(view, shared, rng)
        if bound + most < LARGEST:
            stages.append(stage)
            bound += most
    if not stages:
        return raw(name, dtype, shape, bytes(math.prod(shape) * DTYPES[dtype].bits // 8))
    if dtype == "f16" and bound > LARGEST_HALF:
        dtype = "bf16"
    classes = {}
    for bit, key, n in ((1, "row_classes", rows), (2, "column_classes", columns)):
        if layout.order & bit:
            classes[key] = rng.integers(0, int(rng.choice([1, 2, 256])), n).tolist()
    given = layout if layout != Layout() or rng.integers(2) else None
    return tensor(name, dtype, shape, *stages, layout=given, seal=lambda data: odd_section(data, rng), **classes)


def _layout(sizes: list[int], rng: np.random.Generator) -> Layout:
    rank = len(sizes)
    axes = None
    if rank > 1 and rng.integers(2):
        found = tuple(rng.permutation(rank).tolist())
        axes = found if found != tuple(range(rank)) else None  # LAY-001
    layout = Layout(axes, int(rng.integers(rank + 1)), int(rng.choice([0, 0, 1, 2, 3])))
    rows, columns = layout.view_shape(sizes)
    block_rows, block_columns = _blocks(rows, columns, rng)
    return replace(layout, block_rows=block_rows, block_columns=block_columns)
