"""``vqm info`` of checkpoints that are no ``.vqm``: names, dtypes and shapes, as ``convert`` would take them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqformat.converters import open_source

from ..contents import source_digest
from .files import label, select
from .text import count, counted, escape, one_line, shape_text, table

if TYPE_CHECKING:
    from ..encode.source import SourceTensor


def describe_source(args: argparse.Namespace, file: str, path: Path, names: list[str]) -> dict[str, Any] | None:
    """Print what is in a checkpoint, or return it for a JSON document."""
    with open_source(path) as source:
        chosen = set(select([tensor.name for tensor in source.tensors], names))
        tensors = [tensor for tensor in source.tensors if tensor.name in chosen]
        notes, metadata, kind = source.notes, source.metadata, source.format
        originals = [tensor for tensor in source.tensors if tensor.alias_of is None]
        digest = source_digest(source.tensors) if args.digest else None
    nbytes = sum(tensor.nbytes for tensor in originals)
    file_nbytes = path.stat().st_size if path.is_file() else None
    if args.json:
        return {"file": file, "format": kind, "metadata": metadata, "n_tensors": len(source.tensors),
                "n_weights": sum(tensor.n_elements for tensor in originals), "tensors_nbytes": nbytes,
                "file_nbytes": file_nbytes, "content_digest": digest, "notes": notes,
                "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape,
                             "nbytes": tensor.nbytes, "alias_of": tensor.alias_of} for tensor in tensors]}  # fmt: skip
    for note in [] if args.quiet else notes:
        print(f"vqm: note: {one_line(note)}", file=sys.stderr)
    if not names:
        n_aliases = len(source.tensors) - len(originals)
        aliases = f" ({n_aliases:,} {'alias' if n_aliases == 1 else 'aliases'})" if n_aliases else ""
        weights = counted(sum(tensor.n_elements for tensor in originals), "weight")
        of_file = "" if file_nbytes is None else f"; the file has {count(file_nbytes)}"
        contents = "" if digest is None else f"contents  {digest}\n"
        print(f"file      {label(file)}\nformat    {kind}\ncontent   {counted(len(source.tensors), 'tensor')}{aliases},"
              f" {weights}\nsize      {count(nbytes)} bytes of tensors{of_file}\n{contents}")  # fmt: skip
    if not args.quiet:
        print("\n".join(_table(tensors)))
    return None


def _table(tensors: list[SourceTensor]) -> list[str]:
    if not tensors:
        return ["no tensors"]
    rows = [("tensor", "dtype", "shape", "bytes")]
    for tensor in tensors:
        nbytes = f"alias of {escape(tensor.alias_of)}" if tensor.alias_of is not None else count(tensor.nbytes)
        rows.append((escape(tensor.name), tensor.dtype, shape_text(tensor.shape), nbytes))
    return table(rows, "<<<>")
