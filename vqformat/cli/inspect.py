"""``vqm info``."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ..decode.workers import n_threads
from ..errors import FormatError
from ..folding import fold, merged, without_numbers
from ..forks import cached_property
from ..format import metadata
from ..format.byte_stream import StreamInput
from ..format.chunks import LayerInfo, SharedRecords, parse_book_chunk, parse_freq_chunk, parse_meta
from ..format.container import HEADER_NBYTES, ChunkHead, begins_like_vqm, read_chunk_head
from ..format.copies import Copies
from ..format.dtypes import BY_NAME
from ..format.index import Index
from ..format.parse_records import Known
from ..format.records import AliasRecord, Record, TensorRecord
from ..format.stage_summary import stage_summary
from ..format.stages import Stage
from ..read.contents import read_contents
from ..read.indexed import IndexedReader
from ..read.shards import Shards, index_of, opened_model
from ..text import count, counted, escape, number, shape_text, shorten, table
from .files import check_source, for_each, label, local_path, looks_like_file, select
from .legend import legend
from .parsers import UsageError
from .text import table_width

_MOST_METHODS = 256  # that are kept for the next tensors
_SHOWN_METADATA = 12  # pairs that are shown without -v


class TensorSummary(NamedTuple):  # of which a file may have a million: a dataclass would take longer to make
    """A tensor of a file. An alias has dtype and shape of its target."""

    name: str
    layer: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    stored_nbytes: int
    alias_of: str | None = None
    copy_of: str | None = None

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_nbytes / self.n_elements if self.n_elements else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "layer": self.layer, "dtype": self.dtype, "shape": self.shape,
                "method": self.method, "bits_per_weight": self.bits_per_weight,
                "stored_nbytes": self.stored_nbytes, "alias_of": self.alias_of, "copy_of": self.copy_of}  # fmt: skip


class Contents:
    """The contents of a model, from the indexes and the heads of all chunks. No sections are read."""

    def __init__(self, source: BinaryIO | Shards) -> None:
        self.n_shards = 0
        self.file_nbytes = 0
        self.tensors: list[TensorSummary] = []
        self._by_name: dict[str, TensorSummary] = {}
        self._methods: dict[int, tuple[tuple[Stage, ...], str]] = {}  # by the id of the stages, which are kept
        self._copies = Copies()
        self.section_nbytes = self.n_books = self.n_freqs = self.n_layers = 0
        self.metadata: dict[str, Any] = {}
        self.generator = ""
        self.content_digest = ""  # computed on request only
        self._version = 0, 0
        if not isinstance(source, Shards):
            self.digest = self._add(source).digest
            return
        self.n_shards = len(source)
        for at in range(len(source)):
            with source.open(at) as stream:
                index = self._add(stream)
                source.check_digest(at, index.digest)
                source.check_names(at, index.names)
        self.digest = hashlib.sha256(source.text).digest()
        self.tensors = [self._by_name[name] for name in source.index.places]  # aliases come with their targets

    @property
    def version(self) -> str:
        """The version of the format; of a model in several files the highest one."""
        return "{}.{}".format(*self._version)

    def _add(self, stream: BinaryIO) -> Index:
        """Add what is in a file. Returns its index."""
        index = IndexedReader(stream).index
        self.file_nbytes += stream.seek(0, os.SEEK_END)
        n_before = len(self.tensors)
        stream.seek(0)
        header = StreamInput(stream).read(HEADER_NBYTES, "the header")
        self._version = max(self._version, (header[8] | header[9] << 8, header[10] | header[11] << 8))
        shared = SharedRecords()
        known: Known = {}
        for at in range(index.n_chunks):
            offset, _ = index.span(at)
            stream.seek(offset)
            source = StreamInput(stream)
            source.offset = offset
            chunk = read_chunk_head(source)
            self.section_nbytes += sum(entry.nbytes for entry in chunk.sections)
            if chunk.type == b"META":
                self.metadata = self.metadata or parse_meta(chunk.meta)
                self.generator = metadata.unpack(chunk.meta)[0]
            elif chunk.type == b"BOOK":
                shared.books.append(parse_book_chunk(chunk))
            elif chunk.type == b"FREQ":
                shared.freqs.append(parse_freq_chunk(chunk))
            elif chunk.type == b"LAYR":
                layer = LayerInfo.parse(chunk, shared, known)
                self._copies.add_chunk(chunk, layer.records)
                self._add_layer(chunk, layer)
            if chunk.type != b"LAYR":
                self._copies.add_chunk(chunk)
        self.n_books, self.n_freqs = self.n_books + shared.n_books, self.n_freqs + shared.n_freqs
        if [tensor.name for tensor in self.tensors[n_before:]] != index.names:
            raise FormatError("the index does not agree with the chunks", clause="IDX-001")
        return index

    def _add_layer(self, chunk: ChunkHead, layer: LayerInfo) -> None:
        self.n_layers += 1
        ends = [0, *accumulate([entry.nbytes for entry in chunk.sections])]
        firsts = layer.first_sections
        for record, first, end in zip(layer.records, firsts, firsts[1:], strict=False):
            tensor = self._tensor(record, layer.name, ends[end] - ends[first])
            self.tensors.append(tensor)
            self._by_name[tensor.name] = tensor

    def _tensor(self, record: Record, layer: str, stored_nbytes: int) -> TensorSummary:
        match record:
            case AliasRecord(name, target):
                original = self._by_name.get(target)
                if original is None:
                    raise FormatError(f"tensor {name!r}: its target {target!r} is no earlier tensor", clause="ALI-001")
                holder = self._copies.holders.get(name, target)
                is_copy = holder == name
                method = f"copy of {target}" if is_copy else f"alias of {holder}"
                return TensorSummary(name, layer, original.dtype, original.shape, method, 0,
                               *((None, target) if is_copy else (holder, None)))  # fmt: skip
            case TensorRecord():
                method = self._method(record)
                return TensorSummary(record.name, layer, record.dtype, record.shape, method, stored_nbytes)

    def _method(self, record: TensorRecord) -> str:
        """The stages of a record in words. Many records have the same stages, as objects."""
        stages, method = self._methods.get(id(record.stages), (None, ""))
        if stages is None:
            if len(self._methods) >= _MOST_METHODS:
                self._methods.clear()
            method = stage_summary(record)
            self._methods[id(record.stages)] = record.stages, method
        return method

    @cached_property
    def n_elements(self) -> int:
        return sum([tensor.n_elements for tensor in self.tensors if tensor.alias_of is None])

    @cached_property
    def tensors_nbytes(self) -> int:
        """Bytes of the tensors, decoded."""
        originals = (tensor for tensor in self.tensors if tensor.alias_of is None)
        return sum(BY_NAME[tensor.dtype].nbytes(tensor.n_elements) for tensor in originals)

    @property
    def overhead_nbytes(self) -> int:
        return self.file_nbytes - self.section_nbytes


def run_info(args: argparse.Namespace) -> int:
    """Run ``vqm info``: show what is in files."""
    if args.file is None:
        if not args.legend:
            raise UsageError("FILE is missing")
        print("\n".join(legend()))
        return 0
    # A further argument is a file if there is one of this name, or should be, and else the name of a tensor
    files = [args.file, *filter(looks_like_file, args.names)]
    names = [name for name in args.names if name not in files]
    explained: list[str] = []  # the lines whose words the legend explains

    def work(file: str) -> dict[str, Any] | None:
        check_source(file)
        if explained:
            print()
        lines, document = _describe(args, file, names)
        if not args.json:
            print("\n".join(lines))
            explained.extend(lines)
        return document

    code = for_each(args, files, work, sys.stdout)
    if explained and (args.legend or (args.verbose and not names)):
        print("\n".join(["", *legend(None if args.legend else explained)]))
    return code


def _describe(args: argparse.Namespace, file: str, names: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What is in a file: the lines to print, and the JSON document."""
    with local_path(file) as path:
        if not is_vqm(path):
            describe = importlib.import_module(".inspect_source", __package__).describe_source
            return cast("tuple[list[str], dict[str, Any]]", describe(args, file, path, names))
        with opened_model(path, in_order=False) as source:
            contents = Contents(source)
            chosen = set(select([tensor.name for tensor in contents.tensors], names))
            if args.digest:
                if not isinstance(source, Shards):
                    source.seek(0)
                contents.content_digest = read_contents(source, n_threads(None))[1]
    tensors = [tensor for tensor in contents.tensors if tensor.name in chosen]
    lines = [] if names else _summary(file, contents, verbose=args.verbose)
    if not args.quiet:
        lines += _tensor_table(tensors, verbose=args.verbose, unfold=args.all or args.verbose or bool(names))
    return lines, _info_json(file, contents, tensors) if args.json else {}


def is_vqm(path: Path) -> bool:
    """Whether a path is a file that begins like a ``.vqm``, or stands for one in several files."""
    if index_of(path) is not None:
        return True
    if path.is_dir():
        return False
    with open(path, "rb") as stream:
        return begins_like_vqm(stream.read(HEADER_NBYTES))


def _info_json(file: str, contents: Contents, tensors: list[TensorSummary]) -> dict[str, Any]:
    return {"file": file, "format_version": contents.version, "generator": contents.generator,
            "digest": contents.digest.hex(), "content_digest": contents.content_digest or None,
            "metadata": contents.metadata, "n_tensors": len(contents.tensors),
            "n_shards": contents.n_shards, "n_layers": contents.n_layers,
            "n_books": contents.n_books, "n_freqs": contents.n_freqs, "n_weights": contents.n_elements,
            "file_nbytes": contents.file_nbytes, "section_nbytes": contents.section_nbytes,
            "overhead_nbytes": contents.overhead_nbytes,
            "tensors": [tensor.to_json() for tensor in tensors]}  # fmt: skip


def _summary(file: str, contents: Contents, *, verbose: bool) -> list[str]:
    overhead = contents.overhead_nbytes / contents.file_nbytes
    n_aliases = sum(tensor.alias_of is not None for tensor in contents.tensors)
    n_copies = sum(tensor.copy_of is not None for tensor in contents.tensors)
    further = [f"{n_aliases:,} {'alias' if n_aliases == 1 else 'aliases'}"] * bool(n_aliases)
    further += [f"{n_copies:,} {'copy' if n_copies == 1 else 'copies'}"] * bool(n_copies)
    aliases = f" ({', '.join(further)})" if further else ""
    parts = [counted(contents.n_layers, "layer"), counted(len(contents.tensors), "tensor") + aliases,
             counted(contents.n_elements, "weight")]  # fmt: skip
    if contents.n_shards:
        parts.insert(0, counted(contents.n_shards, "shard"))
    if contents.n_books:
        parts.append(counted(contents.n_books, "shared codebook"))
    size = f"{count(contents.file_nbytes)} bytes, of which {count(contents.overhead_nbytes)} overhead ({overhead:.1%})"
    if contents.n_elements:
        size += f"; {8 * contents.file_nbytes / contents.n_elements:.3f} bits/weight"
        size += f"; {contents.tensors_nbytes / contents.file_nbytes:.2f} times smaller than the tensors"
    lines = [f"file      {label(file)}",
             f"format    vqm {contents.version}, written by {escape(shorten(contents.generator))}",
             f"content   {', '.join(parts)}", f"size      {size}", f"digest    {contents.digest.hex()}"]  # fmt: skip
    if contents.content_digest:
        lines.append(f"contents  {contents.content_digest}")
    pairs = list(contents.metadata.items())
    source = contents.metadata.get("vqm.source")
    if not verbose and isinstance(source, dict) and isinstance(source.get("format"), str):
        lines.append(f"source    {escape(shorten(source['format']))}")  # the rest is for extract and can be long
        pairs.remove(("vqm.source", source))
    shown = pairs if verbose else pairs[:_SHOWN_METADATA]
    for i, (key, value) in enumerate(shown):
        text = escape(value) if isinstance(value, str) else repr(value)
        text = f"{escape(key)} = {text}"
        lines.append(f"{'' if i else 'metadata':10}{text if verbose else shorten(text)}")
    if len(pairs) > len(shown):
        lines.append(f"{'':10}and {len(pairs) - len(shown):,} more (-v shows all)")
    return [*lines, ""]


def _tensor_table(tensors: list[TensorSummary], *, verbose: bool, unfold: bool) -> list[str]:
    if not tensors:
        return ["no tensors"]
    rows: list[tuple[str, ...]] = [("tensor", "dtype", "shape", "method", "bits/weight", "bytes", "layer")]
    kinds = [(tensor.dtype, tensor.shape, without_numbers(tensor.method)) for tensor in tensors]
    for row in fold([tensor.name for tensor in tensors], kinds, unfold=unfold):
        alike = [tensors[i] for i in row.members]
        first = alike[0]
        nbytes = sum(tensor.stored_nbytes for tensor in alike)
        bits = number(sum(tensor.bits_per_weight for tensor in alike) / len(alike), ".3f")
        has_bytes = first.alias_of is None and first.copy_of is None
        cells = (bits, count(nbytes)) if has_bytes else ("-", "-")
        rows.append((escape(row.label), first.dtype, shape_text(first.shape),
                     escape(merged([tensor.method for tensor in alike])), *cells, escape(first.layer)))  # fmt: skip
    align, width = "<<<<>><", table_width(sys.stdout, verbose=verbose)
    return table(rows, align) if verbose else table([row[:-1] for row in rows], align[:-1], width)
