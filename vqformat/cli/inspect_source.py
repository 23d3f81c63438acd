"""``vqm info`` of checkpoints that are no ``.vqm``: names, dtypes and shapes, as ``convert`` would take them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqformat.converters import open_source

from ..contents import source_digest
from ..folding import fold, merged, without_numbers
from ..text import count, counted, escape, one_line, shape_text, table
from .files import label, select
from .text import message, table_width

if TYPE_CHECKING:
    from ..encode.source import SourceTensor


def describe_source(
    args: argparse.Namespace, file: str, path: Path, names: list[str]
) -> tuple[list[str], dict[str, Any]]:
    """What is in a checkpoint: the lines to print, and the JSON document."""
    with open_source(path) as source:
        chosen = set(select([tensor.name for tensor in source.tensors], names))
        tensors = [tensor for tensor in source.tensors if tensor.name in chosen]
        originals = [tensor for tensor in source.tensors if tensor.alias_of is None]
        digest = source_digest(source.tensors) if args.digest else None
    nbytes = sum(tensor.nbytes for tensor in originals)
    n_weights = sum(tensor.n_elements for tensor in originals)
    file_nbytes = path.stat().st_size if path.is_file() else None
    document = {"file": file, "format": source.format, "metadata": source.metadata, "n_tensors": len(source.tensors),
                "n_weights": n_weights, "tensors_nbytes": nbytes, "file_nbytes": file_nbytes,
                "content_digest": digest, "notes": source.notes,
                "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape,
                             "nbytes": tensor.nbytes, "alias_of": tensor.alias_of} for tensor in tensors]}  # fmt: skip
    for note in [] if args.quiet or args.json else source.notes:
        message("note", one_line(note))
    lines = []
    if not names:
        n_aliases = len(source.tensors) - len(originals)
        aliases = f" ({n_aliases:,} {'alias' if n_aliases == 1 else 'aliases'})" if n_aliases else ""
        of_file = "" if file_nbytes is None else f"; the file has {count(file_nbytes)}"
        lines = [f"file      {label(file)}", f"format    {source.format}",
                 f"content   {counted(len(source.tensors), 'tensor')}{aliases}, {counted(n_weights, 'weight')}",
                 f"size      {count(nbytes)} bytes of tensors{of_file}",
                 *([] if digest is None else [f"contents  {digest}"]), ""]  # fmt: skip
    if not args.quiet:
        lines += _table(tensors, verbose=args.verbose, unfold=args.all or args.verbose or bool(names))
    return lines, document


def _table(tensors: list[SourceTensor], *, verbose: bool, unfold: bool) -> list[str]:
    if not tensors:
        return ["no tensors"]
    rows = [("tensor", "dtype", "shape", "bytes")]
    targets = [f"alias of {escape(tensor.alias_of)}" if tensor.alias_of is not None else "" for tensor in tensors]
    kinds = [(tensor.dtype, tensor.shape, without_numbers(target))
             for tensor, target in zip(tensors, targets, strict=True)]  # fmt: skip
    for row in fold([tensor.name for tensor in tensors], kinds, unfold=unfold):
        first = tensors[row.members[0]]
        nbytes = count(sum(tensors[i].nbytes for i in row.members))
        alias = merged([targets[i] for i in row.members])
        rows.append((escape(row.label), first.dtype, shape_text(first.shape), alias or nbytes))
    return table(rows, "<<<>", table_width(sys.stdout, verbose=verbose))
