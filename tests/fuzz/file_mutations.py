"""Damaged .vqm files whose checksums are right: a fault in records, sections, frames or chunks is met where it is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np
import zstandard
from vqmbuilder import Chunk, Entry, File, Section, frame, pack, section

from fuzz.checkpoint_mutations import mutate_bytes, mutate_value
from fuzz.frames import odd_frame, odd_section

# Sizes, ids and counts beside limits of SPEC 14 and ends of integers
INTEGERS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 15, 16, 17, 22, 23, 31, 32, 33, 64, 127, 128, 255, 256, 257, 511, 512, 1023,
            1024, 4095, 4096, 4097, 65_535, 65_536, 65_537, 2**20, 2**20 + 1, 2**22, 2**22 + 1, 2**24, 2**24 + 1, 2**28,
            2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**58 - 1, 2**58, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -120,
            -121, -(2**22) - 1, -(2**23) - 1, -(2**63))  # fmt: skip


@dataclass(frozen=True)
class Indexed:
    """A tensor of a changed record, as the index lists it."""

    entry: Entry


def mutate(model: File, others: Sequence[File], rng: np.random.Generator) -> bytes | None:
    """The file with one to three faults, seldom more; None if that cannot be written.

    Args:
        model: A valid file.
        others: Valid files from which chunks and sections are taken.
    """
    try:
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            model = _changed(model, others, rng)
        data = model.build()
    except (OverflowError, ValueError, struct.error, UnicodeEncodeError, zstandard.ZstdError):
        return None
    if rng.integers(12) == 0:  # bytes that no checksum follows, or a file cut short
        return data[: int(rng.integers(len(data)))] if rng.integers(3) == 0 else mutate_bytes(data, rng, [data])
    return data


def _changed(model: File, others: Sequence[File], rng: np.random.Generator) -> File:
    other = others[int(rng.integers(len(others)))]
    match int(rng.integers(16)):
        case 0:
            return _changed_file(model, rng)
        case 1 | 2:
            return replace(model, chunks=_changed_chunks(model.chunks, other.chunks, rng))
    at = _chunk_number(model, rng)
    item = model.chunks[at]
    match int(rng.integers(16)):
        case 0 | 1 | 2 | 3 | 4 | 5 | 6:
            item = _changed_records(item, rng)
        case 7:
            item = replace(item, meta=mutate_bytes(item.meta, rng, [item.meta]))
        case 8:
            item = _changed_head(item, rng)
        case _ if item.sections:
            item = replace(item, sections=_changed_sections(item.sections, other, rng))
        case _:
            item = _changed_records(item, rng)
    return replace(model, chunks=(*model.chunks[:at], item, *model.chunks[at + 1 :]))


def _chunk_number(model: File, rng: np.random.Generator) -> int:
    """Mostly a LAYR, BOOK or FREQ chunk."""
    with_tables = [i for i, item in enumerate(model.chunks) if item.type in (b"LAYR", b"BOOK", b"FREQ")]
    if with_tables and rng.integers(8):
        return with_tables[int(rng.integers(len(with_tables)))]
    return int(rng.integers(len(model.chunks)))


def _changed_file(model: File, rng: np.random.Generator) -> File:
    match int(rng.integers(7)):
        case 0:
            return replace(model, header=mutate_bytes(model.header, rng, [model.header])[:16].ljust(16, b"\0"))
        case 1:
            return replace(model, footer_header=mutate_bytes(model.header, rng, [model.header])[:16].ljust(16, b"\0"))
        case 2:
            return replace(model, index_offset=_integer(rng) & 2**64 - 1)
        case 3:
            return replace(model, tail=rng.bytes(int(rng.choice([1, 16, 70]))))
        case 4:
            return replace(model, footer_crc=int(rng.integers(2**32)))
        case 5:
            head = {key: _integer(rng) & 2**32 - 1 for key in ("flags", "meta_stored", "meta_plain", "n_sections")}
            key = list(head)[int(rng.integers(4))]
            return replace(model, index_changes={**model.index_changes, key: head[key]})
        case _:
            value: Any = rng.bytes(int(rng.choice([0, 1, 2, 4, 8, 32])))
            value = value if rng.integers(4) else _integer(rng)
            return replace(model, index={**model.index, int(rng.integers(10)): value})


def _changed_chunks(
    chunks: tuple[Chunk, ...], others: tuple[Chunk, ...], rng: np.random.Generator
) -> tuple[Chunk, ...]:
    found = list(chunks)
    i, j = (int(rng.integers(len(found))) for _ in range(2))
    match int(rng.integers(5)):
        case 0:
            del found[i]
        case 1:
            found.insert(j, found[i])
        case 2:
            found[i], found[j] = found[j], found[i]
        case 3:
            found.insert(i + 1, others[int(rng.integers(len(others)))])
        case _:
            kinds = [b"META", b"BOOK", b"FREQ", b"LAYR", b"INDX", b"note", b"NOTE", b"no\0e", b"layr"]
            found[i] = replace(found[i], type=kinds[int(rng.integers(len(kinds)))])
    return tuple(found)


def _changed_head(item: Chunk, rng: np.random.Generator) -> Chunk:
    """Fields of the chunk's header, or of its body around metadata and sections."""
    number = _integer(rng) & 2**32 - 1
    match int(rng.integers(9)):
        case 0:
            return replace(item, flags=int(rng.choice([0, 1, 2, 3, 2**31])))
        case 1:
            return replace(item, meta_stored=number)
        case 2:
            return replace(item, meta_plain=number)
        case 3:
            return replace(item, n_sections=number)
        case 4:
            return replace(item, padding=b"\1")
        case 5:
            return replace(item, gap=bytes(int(rng.choice([1, 64]))))
        case 6:
            return replace(item, body_crc=number)
        case 7:
            return replace(item, is_compressed=not item.is_compressed)
        case _:
            stored = odd_frame(item.meta, rng)
            if rng.integers(2):
                stored = mutate_bytes(stored, rng, [stored])
            return replace(item, is_compressed=True, meta_frame=stored)


def _changed_records(item: Chunk, rng: np.random.Generator) -> Chunk:
    """Another value in the metadata. The index follows, most of the time, so that it is not what is wrong."""
    try:
        value = msgpack.unpackb(item.meta, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException):
        return item
    for _ in range(int(rng.choice([1, 1, 2]))):
        value = _with_other_number(value, rng) if rng.integers(5) else mutate_value(value, rng)
    meta = pack(value)
    frames = {"meta_frame": odd_frame(meta, rng)} if item.is_compressed else {}
    tensors: tuple[Any, ...] = item.tensors
    if item.type == b"LAYR" and rng.integers(6):
        tensors = _entries(value, item)
    return replace(item, meta=meta, tensors=tensors, **frames)


def _with_other_number(value: Any, rng: np.random.Generator) -> Any:
    """One of the integers changed: a little, to one that is beside a limit, or to one that stands elsewhere."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(item, (dict, list)):
                visit(item)
            elif type(item) is int:
                places.append((node, key))

    if isinstance(value, (dict, list)):
        visit(value)
    if places:
        node, key = places[int(rng.integers(len(places)))]
        other, other_key = places[int(rng.integers(len(places)))]
        match int(rng.integers(3)):
            case 0:
                node[key] += int(rng.choice([-2, -1, 1, 2]))
            case 1:
                node[key] = _integer(rng)
            case _:
                node[key] = other[other_key]
    return value


def _integer(rng: np.random.Generator) -> int:
    return INTEGERS[int(rng.integers(len(INTEGERS)))]


def _entries(value: Any, item: Chunk) -> tuple[Any, ...]:
    """What the index says of the tensors of changed records, as far as it can say it."""
    records = value[1] if isinstance(value, list) and len(value) > 1 and isinstance(value[1], list) else []
    found: list[Any] = []
    for i, record in enumerate(records):
        if not isinstance(record, list) or len(record) < 2 or not isinstance(record[0], str):
            continue
        name = record[0].encode("utf-8", "surrogatepass")
        if isinstance(record[1], str):
            old = item.tensors[i].entry if i < len(item.tensors) else Entry(b"", 0, ())
            found.append(Indexed(replace(old, name=name, target=record[1].encode("utf-8", "surrogatepass"))))
        elif len(record) > 2 and isinstance(record[2], list):
            shape = tuple(size for size in record[2] if type(size) is int and 0 <= size < 2**64)[:255]
            dtype = record[1] if type(record[1]) is int and 0 <= record[1] < 256 else 0
            found.append(Indexed(Entry(name, dtype, shape)))
    return tuple(found)


def _changed_sections(sections: tuple[Section, ...], other: File, rng: np.random.Generator) -> tuple[Section, ...]:
    found = list(sections)
    i, j = (int(rng.integers(len(found))) for _ in range(2))
    frames = [k for k, part in enumerate(found) if part.is_zstd]
    kind = int(rng.integers(16))
    if kind in (9, 10) and frames:
        i = frames[int(rng.integers(len(frames)))]
    item = found[i]
    match kind:
        case 0 | 1 | 2 | 3 | 4:  # other plain bytes
            plain = _plain(item)
            changed = mutate_bytes(plain, rng, [plain])
            if rng.integers(4):  # of the size that the records tell, so that their meaning is met
                changed = changed[: len(plain)].ljust(len(plain), b"\0")
            found[i] = odd_section(changed, rng) if rng.integers(2) else section(changed)
        case 9 | 10 if frames:  # other stored bytes
            found[i] = Section(mutate_bytes(item.stored, rng, [item.stored]), is_zstd=True)
        case 5 | 6 | 7 | 8 | 9 | 10:  # one bit of them: the size stays
            plain = bytearray(_plain(item))
            if plain:
                plain[int(rng.integers(len(plain)))] ^= 1 << int(rng.integers(8))
            found[i] = odd_section(bytes(plain), rng) if rng.integers(2) else section(bytes(plain))
        case 11:  # a frame that says another size, or has something behind it
            plain = _plain(item)
            stored = frame(plain, size_bytes=8) + (frame(b"") if rng.integers(2) else b"\x50\x2a\x4d\x18\0\0\0\0")
            found[i] = Section(stored, is_zstd=True)
        case 12:
            found[i] = replace(item, length=_integer(rng) & 2**32 - 1)
        case 13:
            found[i], found[j] = found[j], found[i]
        case _:
            more = [part for chunk in other.chunks for part in chunk.sections]
            match int(rng.integers(4)):
                case 0:
                    del found[i]
                case 1:
                    found.insert(j, item)
                case 2 if more:
                    found[i] = more[int(rng.integers(len(more)))]
                case _:
                    found[i] = replace(item, is_zstd=not item.is_zstd)
    return tuple(found)


def _plain(item: Section) -> bytes:
    if not item.is_zstd:
        return item.stored
    try:
        return zstandard.ZstdDecompressor().decompress(item.stored, max_output_size=1 << 20)
    except zstandard.ZstdError:
        return item.stored
