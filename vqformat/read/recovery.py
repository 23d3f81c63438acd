"""Writing a new file with what is whole in a damaged one. Sections are copied as they are stored."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ..errors import FormatError
from ..format.chunkwriter import ChunkWriter, EncodedTensor
from ..format.crc import check_crc
from ..format.records import AliasRecord, BookRecord, TensorRecord
from ..format.sections import Section, SectionEntry
from .random_access import RandomInput
from .surveyed import Survey, SurveyedLayer, SurveyedTable, joined


def write_whole(
    surveys: Sequence[tuple[Survey, BinaryIO]], target: str | os.PathLike[str], *, overwrite: bool
) -> None:
    """Write the whole tensors of a model, their tables and the metadata to a new file.

    One layer is in memory at a time.

    Args:
        surveys: The survey of the file, or of each shard, and its stream.

    Raises:
        FormatError: No tensor is whole.
        FileExistsError: The new file exists and ``overwrite`` is false.
    """
    found = joined([found for found, _ in surveys])
    if not found.n_whole and (found.tensors or found.faults):
        raise FormatError("no tensor of it is whole")
    minor = max(struct.unpack_from("<H", found.header, 10)[0] for found, _ in surveys)
    with ChunkWriter(target, found.metadata, overwrite=overwrite, minor=minor) as writer:
        for each, stream in surveys:
            _write_parts(each, RandomInput(stream), writer)


def _write_parts(found: Survey, source: RandomInput, writer: ChunkWriter) -> None:
    """Write the whole parts of one file."""
    books: dict[int, int] = {}  # number in the damaged file -> number in the new one
    freqs: dict[int, int] = {}
    for part in found.parts:
        if isinstance(part, SurveyedTable):
            section = _copied(source, *part.section)
            if isinstance(part.record, BookRecord):
                books[part.number] = writer.add_book(part.record, section)
            else:
                freqs[part.number] = writer.add_freq(part.record, section)
        elif tensors := list(_whole_tensors(part, source, books, freqs)):
            writer.add_layer(part.name, tensors, found.holders)


def _whole_tensors(
    layer: SurveyedLayer, source: RandomInput, books: dict[int, int], freqs: dict[int, int]
) -> Iterator[EncodedTensor | AliasRecord]:
    for tensor in layer.tensors:
        record = tensor.record
        if tensor.faults or record is None:
            continue
        if isinstance(record, TensorRecord):
            sections = [_copied(source, entry, start) for entry, start in tensor.sections]
            yield EncodedTensor(record.renumbered(books, freqs), sections)
        else:
            yield record


def _copied(source: RandomInput, entry: SectionEntry, start: int) -> Section:
    data = source.read_at(start, entry.nbytes, "a section")
    check_crc(data, entry.crc, "a section", "SEC-001", start)  # the file may have changed since the survey
    return Section(data, entry.is_zstd)
