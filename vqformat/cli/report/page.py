"""The page of a report: HTML without scripts, fonts or pictures from elsewhere. All text of files is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape as html_escape
from pathlib import Path

from ... import __version__
from ...text import count, counted, escape
from .advice import Advice, advice
from .charts import Charts
from .compare import comparison
from .measure import MeasuredFile
from .sections import bytes_map, codes_chart, errors_chart, histograms, loss_map, tensor_table, words_used

# No scripts, and nothing that a browser would fetch
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(files: Sequence[MeasuredFile], source: str | None, charts: Charts) -> str:
    """The page on files.

    Args:
        files: At least one.
        source: Name of the file with which they were compared; None for none.
    """
    names = ", ".join(_text(file.name) for file in files)
    parts = [f"<header><h1>{names}</h1>{_origin(files, source)}</header>"]
    if len(files) == 1:
        (file,) = files
        parts += [_tiles(file), _next(advice(file)), *_sections(file, charts)]
    else:
        parts.append(comparison(files, charts))
        for file in files:
            inner = "\n".join([_tiles(file), _next(advice(file)), *_sections(file, charts)])
            parts.append(f"<details><summary>{_text(file.name)} by itself</summary>{inner}</details>")
    parts += [words_used(files), f"<footer>Written by vqformat {__version__}. The charts are drawn by matplotlib."
              " The page has no scripts and loads nothing.</footer>"]  # fmt: skip
    return _DOCUMENT.format(title=names, policy=_POLICY, style=_style(), body="\n".join(parts))


_DOCUMENT = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}: report</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text("utf-8")


def _text(text: str) -> str:
    """Text of a file or of the command line, safe in HTML and without control characters."""
    return html_escape(escape(text))


def _origin(files: Sequence[MeasuredFile], source: str | None) -> str:
    generators = sorted({file.contents.generator for file in files})
    written = f"written by {_text(', '.join(generators))}"
    against = f", compared with {_text(source)}" if source is not None else ""
    what = f"{len(files)} files side by side, " if len(files) > 1 else f"vqm {files[0].contents.version}, "
    return f'<p class="quiet">{what}{written}{against}</p>'


def _tiles(file: MeasuredFile) -> str:
    contents = file.contents
    layers = counted(contents.n_layers, "layer")
    tiles = [("file", _size(contents.file_nbytes)), ("times smaller", f"{file.ratio:.2f}×"),
             ("bits per weight", f"{file.bits_per_weight:.3f}"), ("weights", _large(contents.n_elements)),
             ("tensors", f"{count(len(contents.tensors))} <small>in {layers}</small>")]  # fmt: skip
    if file.has_source:
        sqnr = file.sqnr_db
        tiles.append(("SQNR of all weights", "exact" if sqnr == float("inf") else f"{sqnr:.1f} <small>dB</small>"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)
    return f'<dl class="tiles">{items}</dl>'


def _size(nbytes: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{_short(nbytes / size)} <small>{unit}</small>"
    return f"{nbytes} <small>bytes</small>"


def _large(n: int) -> str:
    for unit, size in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if n >= size:
            return f"{_short(n / size)} <small>{unit}</small>"
    return count(n)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _next(items: Sequence[Advice]) -> str:
    if not items:
        return ""
    rows = "".join(f"<li><b>{html_escape(seen)}</b> {_with_code(todo)}</li>" for seen, todo in items)
    return f'<section><h2>What to do next</h2><ul class="next">{rows}</ul></section>'


def _with_code(text: str) -> str:
    """A text in HTML; what is in backticks is code."""
    text = re.sub(r"`([^`]{24,})`", r'<code class="long">\1</code>', html_escape(text))
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def _sections(file: MeasuredFile, charts: Charts) -> list[str]:
    parts = [bytes_map(file), loss_map(file), errors_chart(file, charts), histograms(file, charts),
             codes_chart(file, charts), tensor_table(file)]  # fmt: skip
    return [f"<section>{part}</section>" for part in parts if part]
