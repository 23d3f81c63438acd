"""The words of the tables of ``vqm convert``, ``vqm info`` and ``vqm diff``, explained."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence

_MOST_COLUMNS = 110

# Word of a table, as a pattern -> how the legend shows it, and its meaning
_WORDS = (
    (r", [\d,]+ alike", "0-11, 12 alike", "tensors of repeated layers in one row: bytes are their sum, bits/weight"
     " their mean; other numbers are the least and the largest. --all gives each tensor a row"),
    ("bits/weight", "bits/weight", "stored bits of a tensor, divided by the number of its values; total: of the file"),
    ("SQNR", "SQNR dB", "signal-to-quantization-noise ratio of the values: 20 is an error of a tenth, 40 of a"
     " hundredth. Most networks work well from 20 to 25 on, and not below 3"),
    ("exact", "exact", "every bit is kept"),
    ("grid", "grid N", "each value is rounded to one of N equidistant values"),
    ("codebook", "codebook NxD", "each value (or D neighbours) becomes a code, the number of one of N in a table"),
    ("shared", "shared I", "the codebook number I of the file, which several tensors use"),
    ("by segment|by row group", "by segment", "with a codebook for each range of columns; by row group: of rows"),
    ("scaled", "scaled", "with a factor for each row or group of values"),
    ("trellis", "trellis S", "the grid is trellis-coded with S states: as good as a finer grid of the same size"),
    ("transform", "transform N", "N rows at a time are replaced by sums of them, so that what they have in common is"
     " coded once"),
    ("entropy-coded", "entropy-coded", "frequent codes take fewer bits"),
    ("low-rank", "low-rank R", "a product of two matrices with R columns and R rows"),
    (r" \+ ", "A + B", "the sum of two codings: the second codes what the first leaves"),
    (r"float e\d", "float eXmY", "rounded to a float of X bits of exponent and Y of fraction"),
    ("fixed point", "fixed point", "rounded to a multiple of a power of two"),
    ("rounded", "rounded", "small tensors are rounded so finely that it does not matter"),
    ("raw", "raw", "the bytes of the tensor as they are, or compressed without loss"),
    ("planes", "planes", "bytes of values are grouped by their places, which compresses better; rotated: the sign"
     " bit is moved to the end; without zeros: zeros are left out"),
    ("alias of", "alias of T", "another name of tensor T (tied weights); it takes no bytes"),
    ("copy of", "copy of T", "equal to tensor T, and loaded as an array of its own; it takes no bytes"),
    ("empty", "empty", "a tensor without values"),
    ("shared tables", "shared tables", "codebooks and tables of frequencies that serve several tensors"),
    ("overhead", "overhead", "bytes of the file that are no weights: names, shapes, checksums, the index"),
    ("ratio", "ratio", "bytes of the tensors, divided by bytes of the file"),
)  # fmt: skip


def legend(lines: Sequence[str] | None = None) -> list[str]:
    """The lines of the legend.

    Args:
        lines: Those of a table, whose words are explained; None for all words.
    """
    rows = words(None if lines is None else "\n".join(lines))
    indent = max((len(shown) for shown, _ in rows), default=0) + 2
    columns = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    texts = (f"{shown:{indent}}{meaning}" for shown, meaning in rows)
    return [line for text in texts for line in textwrap.wrap(text, columns, subsequent_indent=" " * indent)]


def words(text: str | None = None) -> list[tuple[str, str]]:
    """The words of a text, and what they mean; None for all words."""
    return [(shown, meaning) for pattern, shown, meaning in _WORDS if text is None or re.search(pattern, text)]
