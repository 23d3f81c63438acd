"""The sections of a report on one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape as html_escape

from ...folding import fold, merged, without_numbers
from ...text import count, counted, decibel, escape, number, shape_text
from ..diff import Distance
from ..legend import words
from .charts import Charts
from .measure import Measured, MeasuredFile
from .tree_map import Cell, breakable, tree_map

_SQNR_KEYS = ((10.0, "below 10 dB"), (15.0, "10 to 15 dB"), (20.0, "15 to 20 dB"), (30.0, "20 to 30 dB"),
              (40.0, "30 to 40 dB"), (math.inf, "40 dB or more, or exact"))  # fmt: skip
_BIT_KEYS = ((2.0, "below 2 bits/weight"), (4.0, "2 to 4 bits/weight"), (6.0, "4 to 6 bits/weight"),
             (9.0, "6 to 9 bits/weight"), (17.0, "9 to 17 bits/weight"),
             (math.inf, "17 bits/weight or more"))  # fmt: skip
_FEWEST_CODES = 4096  # of a tensor in the chart of entropies: few codes do not tell their frequencies
_FEWEST_LAYERS = 3  # for a chart by layer; of fewer it is by tensor
_GOOD_DB = 20.0


def text(value: str) -> str:
    """Text of a file, safe in HTML and without control characters."""
    return html_escape(escape(value))


def _class(value: float, keys: Sequence[tuple[float, str]]) -> int:
    return next(i for i, (end, _) in enumerate(keys) if value < end or end == math.inf)


def _key(letter: str, keys: Sequence[tuple[float, str]], used: set[int]) -> str:
    items = "".join(f'<li><i class="{letter}{i}"></i>{label}</li>' for i, (_, label) in enumerate(keys) if i in used)
    return f'<ul class="key">{items}</ul>'


def by_layer(tensors: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The tensors of each layer."""
    layers: dict[str, list[Measured]] = {}
    for tensor in tensors:
        layers.setdefault(tensor.summary.layer, []).append(tensor)
    return layers


def by_layer_or_tensor(tensors: Sequence[Measured]) -> tuple[dict[str, list[Measured]], str]:
    """The tensors of each layer, or each tensor by itself if the layers are few; and what the groups are."""
    layers = by_layer(tensors)
    if len(layers) < _FEWEST_LAYERS:
        return {tensor.name: [tensor] for tensor in tensors}, "tensor"
    return layers, "layer"


def bytes_map(file: MeasuredFile) -> str:
    """Where the bytes are, as a tree map."""
    has_errors = file.has_source
    keys, letter = (_SQNR_KEYS, "q") if has_errors else (_BIT_KEYS, "b")
    used: set[int] = set()

    def cell(tensor: Measured) -> Cell:
        bits = tensor.summary.bits_per_weight
        value = tensor.sqnr_db if has_errors else bits
        at = _class(math.inf if math.isnan(value) else value, keys)
        used.add(at)
        sqnr = f", {_decibels(tensor.sqnr_db)}" if has_errors and not math.isnan(tensor.sqnr_db) else ""
        return Cell(escape(tensor.name), tensor.stored_nbytes,
                    f"{count(tensor.stored_nbytes)} bytes, {bits:.2f} bits/weight{sqnr}", f"{letter}{at}")  # fmt: skip

    groups = [(escape(layer), [cell(tensor) for tensor in tensors]) for layer, tensors in by_layer(file.stored).items()]
    label = f"Tree map of the bytes of {counted(len(file.stored), 'tensor')}; the table has the same numbers"
    drawn = tree_map(groups, label)
    if not drawn:
        return ""
    colour = "SQNR" if has_errors else "bits per weight"
    return (f"<h2>Where the bytes are</h2><p>Areas are bytes, frames are layers, and colours show the {colour}.</p>"
            f"{drawn}{_key(letter, keys, used)}")  # fmt: skip


def loss_map(file: MeasuredFile) -> str:
    """Where the expected loss comes from, as a tree map; empty if it is not known."""
    total = file.loss
    if not total:
        return ""
    used: set[int] = set()

    def cell(tensor: Measured) -> Cell:
        at = _class(tensor.sqnr_db, _SQNR_KEYS)
        used.add(at)
        loss, of_bytes = tensor.loss / total, tensor.stored_nbytes / file.contents.file_nbytes
        return Cell(escape(tensor.name), tensor.loss, f"{loss:.1%} of the loss, {of_bytes:.1%} of the bytes, "
                    f"{_decibels(tensor.sqnr_db)}", f"q{at}")  # fmt: skip

    groups = [(escape(layer), [cell(tensor) for tensor in tensors if tensor.loss > 0])
              for layer, tensors in by_layer(file.stored).items()]  # fmt: skip
    how = ("Areas are squared errors, weighted by the sensitivity that the calibration has measured."
           if file.loss_is_measured else
           "The file does not hold how sensitive its tensors are. Areas are squared errors, weighted by what the"
           " encoder expects from size, scale and gain of each tensor. <code>--calibration FILE</code> takes what was"
           " measured.")  # fmt: skip
    label = "Tree map of the expected loss by tensor"
    return (f"<h2>Where the expected loss comes from</h2><p>{how}</p>"
            f"{tree_map([group for group in groups if group[1]], label)}{_key('q', _SQNR_KEYS, used)}")  # fmt: skip


def layer_sqnr(tensors: Sequence[Measured]) -> float:
    """SQNR of all weights of a layer that were compared; nan if there are none."""
    total = Distance()
    for tensor in tensors:
        if tensor.distance is not None and tensor.is_weight:
            total.join(tensor.distance)
    return total.sqnr_db


def errors_chart(file: MeasuredFile, charts: Charts) -> str:
    """Error and SQNR by layer."""
    groups, what = by_layer_or_tensor(file.stored)
    layers = {name: layer_sqnr(tensors) for name, tensors in groups.items()}
    known = {name: value for name, value in layers.items() if math.isfinite(value)}
    if not known:
        return ""
    label = (f"Chart of the SQNR of {counted(len(known), what)}, from {min(known.values()):.1f} to"
             f" {max(known.values()):.1f} dB")  # fmt: skip
    drawn = charts.dots([escape(name) for name in known], [("SQNR", list(known.values()))], "SQNR, dB", label,
                        low=(_GOOD_DB, f"{_GOOD_DB:g} dB: errors of a tenth"))  # fmt: skip
    exact = len(layers) - len(known)
    more = f" {counted(exact, what)} without errors {'is' if exact == 1 else 'are'} left out." if exact else ""
    notes = "".join(f"<li>{text(note)}</li>" for note in file.notes[:12])
    return (f"<h2>Error by {what}</h2><p>SQNR of the weights of each {what}: 20 dB is an error of a tenth, 40 dB of a"
            f' hundredth.{more}</p><div class="chart">{drawn}</div>{f"<ul>{notes}</ul>" if notes else ""}')  # fmt: skip


def histograms(file: MeasuredFile, charts: Charts) -> str:
    """Weights against reconstruction points, and errors, of the largest tensors."""
    shown = sorted((tensor for tensor in file.stored if tensor.histogram is not None),
                   key=lambda tensor: -tensor.stored_nbytes)  # fmt: skip
    if not shown:
        return ""
    cards = []
    for tensor in shown:
        found = tensor.histogram
        assert found is not None
        points = f"; {count(found.points[0].size)} points" if found.points is not None else ""
        sqnr = f"; {_decibels(tensor.sqnr_db)}" if not math.isnan(tensor.sqnr_db) else ""
        label = f"Histogram of {escape(tensor.name)}"
        cards.append(f"<figure><figcaption><b>{breakable(escape(tensor.name))}</b><br><small>{text(tensor.summary.method)}{points}"
                     f"{sqnr}</small></figcaption>{charts.histogram(found, label)}</figure>")  # fmt: skip
    if file.has_source:
        what = ("Blue areas are the weights of the source. Orange marks below are the values that the file can give"
                " (reconstruction points); an orange line is their histogram where they are too many. Violet areas are"
                " the errors.")  # fmt: skip
    else:
        what = ("Orange lines are the values that the file gives (reconstruction points), as high as they are frequent;"
                " an area is their histogram where they are too many.")  # fmt: skip
    of = f" The largest of {counted(len(file.stored), 'tensor')} are shown." if len(shown) < len(file.stored) else ""
    return (f"<h2>{'Weights and reconstruction points' if file.has_source else 'Values'}</h2><p>{what}{of}</p>"
            f'<div class="cards">{"".join(cards)}</div>')  # fmt: skip


def codes_chart(file: MeasuredFile, charts: Charts) -> str:
    """The entropy of codes against the stored size."""
    shown = [tensor for tensor in file.stored if tensor.n_elements >= _FEWEST_CODES and tensor.stored_nbytes]
    if not shown:
        return ""
    stored = [tensor.summary.bits_per_weight for tensor in shown]
    entropy = [tensor.entropy_bits / tensor.n_elements for tensor in shown]
    label = f"Chart of stored bits against the entropy of the codes of {counted(len(shown), 'tensor')}"
    drawn = charts.entropies(stored, entropy, [tensor.stored_nbytes for tensor in shown], label)
    total = sum(tensor.stored_nbytes for tensor in shown)
    ideal = sum(tensor.entropy_bits for tensor in shown) / 8
    if not ideal:
        return ""
    return (f"<h2>Code entropy and stored size</h2><p>An ideal coder of single codes would need {count(round(ideal))}"
            f" bytes for these {counted(len(shown), 'tensor')}, which take {count(total)}:"
            f" {_change(total / ideal - 1)}. Below the line the coding uses what codes tell of others. Above it there"
            " are codebooks, scales, and bits that an entropy coder would save. Areas are bytes.</p>"
            f'<div class="chart">{drawn}</div>')  # fmt: skip


def tensor_table(file: MeasuredFile) -> str:
    """All tensors, repeated layers folded, by their bytes."""
    if not file.tensors:
        return "<p>The file has no tensors.</p>"
    kinds = [(tensor.summary.dtype, tensor.summary.shape, without_numbers(tensor.summary.method))
             for tensor in file.tensors]  # fmt: skip
    folded = fold([tensor.name for tensor in file.tensors], kinds)
    rows = [(row.label, [file.tensors[i] for i in row.members]) for row in folded]
    sizes = [sum(tensor.stored_nbytes for tensor in alike) for _, alike in rows]
    order = sorted(range(len(rows)), key=lambda i: -sizes[i])
    total, largest = file.contents.file_nbytes, max(sizes)
    head = ["tensor", "dtype", "shape", "method", "bits/weight", "entropy", *["SQNR dB"] * file.has_source, "bytes",
            "% of file", ""]  # fmt: skip
    n_text = 4
    body = []
    for i in order:
        label, alike = rows[i]
        first = alike[0]
        n = sum(tensor.n_elements for tensor in alike)
        cells = ["-", "-"] if not first.has_bytes or not n else [
            f"{8 * sizes[i] / n:.3f}", number(sum(tensor.entropy_bits for tensor in alike) / n, ".3f")]  # fmt: skip
        if file.has_source:
            distance = Distance()
            for tensor in alike:
                distance.join(tensor.distance or Distance())
            cells.append(decibel(distance.sqnr_db))
        cells += [count(sizes[i]) if first.has_bytes else "-", f"{100 * sizes[i] / total:.1f}"]
        method = merged([tensor.summary.method for tensor in alike])
        bar = f'<span class="bar" style="width:{100 * sizes[i] / largest:.1f}%"></span>' if largest else ""
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr><th scope="row" class="text">{text(label)}</th><td class="text">{first.summary.dtype}</td>'
                    f'<td class="text">{shape_text(first.summary.shape)}</td>'
                    f'<td class="text method">{text(method)}</td>{numbers}<td class="bars">{bar}</td>'
                    "</tr>")  # fmt: skip
    heads = "".join(f'<th scope="col"{_of_text(i < n_text)}>{name}</th>' for i, name in enumerate(head))
    span = len(head) - 3
    feet = [("shared tables", file.shared_nbytes)] * bool(file.shared_nbytes)
    feet += [("overhead", file.contents.overhead_nbytes), ("total", total)]
    foot = "".join(f'<tr><th scope="row" class="text" colspan="{span}">{name}</th><td>{count(nbytes)}</td>'
                   f"<td>{100 * nbytes / total:.1f}</td><td></td></tr>" for name, nbytes in feet)  # fmt: skip
    return (f'<h2>All tensors</h2><div class="scroll" role="region" aria-label="All tensors" tabindex="0"><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody><tfoot>{foot}</tfoot></table>"
            "</div>")  # fmt: skip


def _of_text(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def words_used(files: Sequence[MeasuredFile]) -> str:
    """The words of the tables, explained."""
    methods = "\n".join({tensor.summary.method for file in files for tensor in file.tensors})
    columns = "bits/weight SQNR overhead" + " shared tables" * any(file.shared_nbytes for file in files)
    rows = [("entropy", "bits/weight that an ideal coder needs if it codes each code by itself; estimated from a"
             " sample, and too small for tensors of few values"), *words(f"{methods}\n{columns}")]  # fmt: skip
    items = "".join(f"<dt>{html_escape(word)}</dt><dd>{html_escape(meaning)}</dd>" for word, meaning in rows)
    return f"<details><summary>The words of the table</summary><dl class=\"words\">{items}</dl></details>"


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact" if value > 0 else "no SQNR"


def _change(share: float) -> str:
    return f"{abs(share):.1%} {'more' if share >= 0 else 'less'}"
