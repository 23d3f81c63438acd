"""The sections of a report on several files: totals and layers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...folding import fold
from ...text import count, decibel, escape
from .charts import Charts
from .measure import Measured, MeasuredFile
from .sections import by_layer, by_layer_or_tensor, layer_sqnr, text

_MOST_SERIES = 4  # files in a chart
_OF_TEXT = ' class="text"'


def comparison(files: Sequence[MeasuredFile], charts: Charts) -> str:
    """Files side by side."""
    parts = [_totals(files), _charts(files[:_MOST_SERIES], charts), _tensors(files)]
    return "\n".join(f"<section>{part}</section>" for part in parts)


def _totals(files: Sequence[MeasuredFile]) -> str:
    has_source = any(file.has_source for file in files)
    head = ["file", "bytes", "times smaller", "bits/weight", *["SQNR dB"] * has_source, ""]
    largest = max(file.contents.file_nbytes for file in files)
    rows = []
    for file in files:
        nbytes = file.contents.file_nbytes
        cells = [count(nbytes), f"{file.ratio:.2f}", f"{file.bits_per_weight:.3f}"]
        cells += [decibel(file.sqnr_db)] * has_source
        rows.append([text(file.name), *cells, f'<span class="bar" style="width:{100 * nbytes / largest:.1f}%"></span>'])
    return f"<h2>Side by side</h2>{_table('Totals of the files', head, rows)}"


def _charts(files: Sequence[MeasuredFile], charts: Charts) -> str:
    layers: dict[str, list[list[Measured]]] = {}
    _, what = by_layer_or_tensor(files[0].stored)
    for i, file in enumerate(files):
        groups = by_layer(file.stored) if what == "layer" else {tensor.name: [tensor] for tensor in file.stored}
        for name, tensors in groups.items():
            layers.setdefault(name, [[] for _ in files])[i] = tensors
    names = [escape(name) for name in layers]

    def series(value: Callable[[Sequence[Measured]], float]) -> list[tuple[str, list[float]]]:
        return [(escape(file.name), [_finite(value(of_layer[i])) for of_layer in layers.values()])
                for i, file in enumerate(files)]  # fmt: skip

    bits = charts.dots(names, series(_bits), "bits/weight", f"Chart of the bits per weight of each {what}, by file",
                       from_zero=True)  # fmt: skip
    sqnr = charts.dots(names, series(layer_sqnr), "SQNR, dB", f"Chart of the SQNR of each {what}, by file")
    titled = (("Bits per weight", bits), ("SQNR", sqnr))
    return "".join(f'<h2>{title} by {what}</h2><div class="chart">{chart}</div>' for title, chart in titled if chart)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _bits(tensors: Sequence[Measured]) -> float:
    n = sum(tensor.n_elements for tensor in tensors)
    return 8 * sum(tensor.stored_nbytes for tensor in tensors) / n if n else math.nan


def _tensors(files: Sequence[MeasuredFile]) -> str:
    found: dict[str, list[Measured | None]] = {}
    for i, file in enumerate(files):
        for tensor in file.tensors:
            found.setdefault(tensor.name, [None] * len(files))[i] = tensor
    kinds = [tuple(None if tensor is None else (tensor.summary.shape, tensor.has_bytes) for tensor in some)
             for some in found.values()]  # fmt: skip
    of_files = list(found.values())
    rows = []
    for row in fold(list(found), kinds):
        alike = [of_files[i] for i in row.members]
        sizes = [sum(tensor.stored_nbytes for tensor in of_file if tensor is not None)
                 for of_file in zip(*alike, strict=True)]  # fmt: skip
        cells = ["-" if alike[0][i] is None else count(size) for i, size in enumerate(sizes)]
        rows.append((max(sizes), [text(row.label), *cells]))
    rows.sort(key=lambda row: -row[0])
    head = ["tensor", *(f"{text(file.name)}, bytes" for file in files)]
    return f"<h2>Bytes by tensor</h2>{_table('Bytes by tensor', head, [row for _, row in rows])}"


def _table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML. The first column has names, and the last one bars if its head is empty."""
    heads = "".join(f'<th scope="col"{"" if i else _OF_TEXT}>{name}</th>' for i, name in enumerate(head))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{_bars(name)}>{cell}</td>" for name, cell in zip(head[1:], rest, strict=True))
        body.append(f'<tr><th scope="row" class="text">{first}</th>{cells}</tr>')
    return (f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>")  # fmt: skip


def _bars(name: str) -> str:
    return "" if name else ' class="bars"'
