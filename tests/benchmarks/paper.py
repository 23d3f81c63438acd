"""Gong et al. 2014 (arXiv 1412.6115) again: accuracy against compression of the dense layers, for each of its methods.

Beside them stands what the encoder does by itself: a grid and entropy coding, on all tensors. Every point is a real
file, and its compression is counted as in the paper: bytes of the dense weights in float32 over the bytes that the
file stores for them, codebooks included. For the paper's methods all other tensors are kept exact.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import DATA, load_checkpoint, print_table
from paper_methods import FAMILIES, OURS, formula_bits, recipe_for
from paper_networks import Judge, Network, Tensors, networks

import vqformat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALLOWED_DROP = 1.0  # points
PAPER_RANGE = (16, 24)  # what the paper reports for a loss of 1 %


# Measuring


@dataclass(frozen=True)
class Point:
    """A file and what became of the network.

    Attributes:
        dense_ratio: Bytes of the dense weights over those that the file stores for them.
        formula_ratio: The same by the paper's formulas; nan for our own method.
        file_ratio: Bytes of all tensors over those of the file.
        sqnr_db: Of the dense weights together.
        accuracy, drop: In percent and points; nan without test images.
    """

    network: str
    family: str
    setting: str
    dense_ratio: float
    formula_ratio: float
    file_ratio: float
    sqnr_db: float
    accuracy: float
    drop: float

    def rounded(self) -> dict[str, str]:
        digits = {"dense_ratio": 3, "formula_ratio": 3, "file_ratio": 3, "sqnr_db": 2, "accuracy": 2, "drop": 2}
        return {key: f"{value:.{digits[key]}f}" if key in digits else value for key, value in asdict(self).items()}


def measure(network: Network, original: Tensors, judge: Judge | None, folder: Path) -> Iterator[Point]:
    """Every setting of every method on a network."""
    reference = judge.accuracy(original) if judge else math.nan
    dense_nbytes = sum(original[name].nbytes for name in network.weights)
    path = folder / "model.vqm"
    for family in FAMILIES:
        for setting in family.settings:
            formula = math.nan
            if family.name == OURS:
                try:
                    report = vqformat.save_file(original, path, ratio=float(setting))
                except vqformat.EncodeError as err:  # no grid is coarse enough
                    print(f"{network.name}, ratio {setting}: {err}")
                    continue
            else:
                recipe = recipe_for(setting, network)
                report = vqformat.save_file(original, path, recipe=recipe)
                methods = {name: recipe.method_for(name).method for name in network.weights}
                bits = sum(
                    formula_bits(method.terms[0], original[name].shape) for name, method in methods.items() if method
                )
                formula = 8 * dense_nbytes / bits
            tensors = vqformat.load_file(path)
            with vqformat.safe_open(path) as file:
                stored = sum(file.info(name).stored_nbytes for name in network.weights)
            accuracy = judge.accuracy(tensors) if judge else math.nan
            yield Point(network.name, family.name, setting, dense_nbytes / stored, formula, report.ratio,
                        sqnr_db([(original[name], tensors[name]) for name in network.weights]), accuracy,
                        reference - accuracy)  # fmt: skip


def sqnr_db(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Signal-to-quantization-noise ratio of all pairs together."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a, _ in pairs)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    return 10 * math.log10(signal / noise) if noise else math.inf


def summary(points: Sequence[Point], titles: dict[str, str]) -> list[tuple[str, ...]]:
    """For each network and method, the largest compression of the dense layers that is still good enough."""
    rows: list[tuple[str, ...]] = []
    for name, title in titles.items():
        for family in FAMILIES:
            own = [p for p in points if (p.network, p.family) == (name, family.name)]
            good = [p for p in own if p.drop <= ALLOWED_DROP]
            best = max(good, key=lambda p: p.dense_ratio, default=None)
            if best is not None:
                setting = best.setting if family.name != OURS else f"ratio={best.setting}"
                formula = f"{best.formula_ratio:.1f}" if family.name != OURS else "-"
                rows.append((title, family.label, f"{best.dense_ratio:.1f}", formula, f"{best.file_ratio:.1f}",
                             f"{best.drop:.2f}", setting))  # fmt: skip
            elif own:
                least = min(own, key=lambda p: p.drop)
                rows.append((title, family.label, "-", "-", "-", f"{least.drop:.2f}", f"at least, {least.setting}"))
    return rows


def error_summary(points: Sequence[Point], titles: dict[str, str]) -> list[tuple[str, ...]]:
    """For each network and method, the least error at the paper's compression: what is left without images."""
    rows: list[tuple[str, ...]] = []
    for name, title in titles.items():
        for family in FAMILIES:
            enough = [p for p in points if (p.network, p.family) == (name, family.name)
                      and p.dense_ratio >= PAPER_RANGE[0]]  # fmt: skip
            if enough:
                best = max(enough, key=lambda p: p.sqnr_db)
                rows.append((title, family.label, f"{best.dense_ratio:.1f}", f"{best.sqnr_db:.2f}", best.setting))
    return rows


# Figure


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other of the method surpasses both in accuracy and compression."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.dense_ratio, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best[::-1]


def draw(points: Sequence[Point], titles: dict[str, str], path: Path) -> None:
    """One panel a network: the best settings of a method joined, its others pale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(1, len(titles), figsize=(4.6 * len(titles), 5.2), squeeze=False)
    for i, (axis, (name, title)) in enumerate(zip(axes[0], titles.items(), strict=True)):
        _panel(axis, [p for p in points if p.network == name], title, is_first=not i)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, columnspacing=1.6,
                  handletextpad=0.5)  # fmt: skip
    figure.tight_layout(rect=(0, 0.12, 1, 1), w_pad=1.8)
    figure.savefig(path, dpi=120)


def _panel(axis: Axes, points: Sequence[Point], title: str, *, is_first: bool) -> None:
    reference = points[0].accuracy + points[0].drop
    low, high = reference - 4.2, reference + 0.4
    axis.axvspan(*PAPER_RANGE, color="#f3efe2", zorder=0, lw=0)
    axis.axhline(reference - ALLOWED_DROP, color="#444444", lw=1, ls=(0, (4, 3)), zorder=1)
    axis.axhline(reference, color="#444444", lw=1, zorder=1)
    svd = [p for p in points if p.family == "svd"]
    axis.plot([p.formula_ratio for p in svd], [p.accuracy for p in svd], "v:", color="#707070", ms=4.5, lw=1.4,
              label="SVD, float32 factors", zorder=2)  # fmt: skip
    for family in FAMILIES:
        own = [p for p in points if p.family == family.name]
        best = frontier(own)
        is_ours = family.name == OURS
        size = 11 if family.marker == "*" else 6
        others = [p for p in own if p not in best]
        axis.plot([p.dense_ratio for p in others], [p.accuracy for p in others], family.marker, color=family.colour,
                  ms=size * 0.7, alpha=0.3, mew=0, zorder=2)  # fmt: skip
        axis.plot([p.dense_ratio for p in best], [p.accuracy for p in best], color=family.colour, marker=family.marker,
                  ms=size, mew=0.6, mec="white", lw=2.4 if is_ours else 1.6, label=family.label,
                  ls="" if family.name == "binary" else "-",
                  zorder=4 if is_ours else 3)  # fmt: skip
    axis.set(xscale="log", xlim=(2.7, 170), ylim=(low, high), xlabel="compression of the dense layers")
    axis.set_title(f"{title} ({reference:.2f} %)", pad=24)
    ticks = (4, 8, 16, 32, 64, 128)
    axis.set_xticks(ticks, [f"{tick}×" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="y", color="#e6e6e6", lw=0.8, zorder=0)
    axis.set_axisbelow(True)
    axis.text(175, reference - ALLOWED_DROP, "−1\npoint", fontsize=10, color="#444444", ha="left", va="center")
    axis.text(math.sqrt(PAPER_RANGE[0] * PAPER_RANGE[1]), high, "the paper: 16–24×", fontsize=10.5, color="#8a7a45",
              ha="center", va="bottom")  # fmt: skip
    if is_first:
        axis.set_ylabel("test accuracy, %")


# The program


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of checkpoints and test images;"
                        " VQFORMAT_DATA sets its default")  # fmt: skip
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="only these, such as lenet300 alexsmall")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write paper.csv and paper.png there")
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing: table and figure from the paper.csv there"
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (%(default)s)")
    args = parser.parse_args()
    if args.redraw and not args.out:
        parser.error("--redraw needs --out")
    titles = {network.name: network.title for network in networks(args.data)}
    start = time.perf_counter()
    points = read_csv(args.out / "paper.csv") if args.redraw else measure_all(args)
    titles = {name: title for name, title in titles.items() if any(p.network == name for p in points)}
    print_table(
        ("network", "method", "dense", "by formula", "file", "SQNR dB", "accuracy", "drop", "setting"),
        [(p.network, p.family, *(text.replace("nan", "-") for text in list(p.rounded().values())[3:]), p.setting)
         for p in points],
    )  # fmt: skip
    if any(math.isfinite(p.accuracy) for p in points):
        print(f"\nlargest compression of the dense layers with a drop of at most {ALLOWED_DROP:g} point")
        print_table(("network", "method", "dense", "by formula", "file", "drop", "setting"), summary(points, titles))
        if args.out:
            draw(points, titles, args.out / "paper.png")
    else:
        print(f"\nbest SQNR of the dense weights at {PAPER_RANGE[0]}x or more")
        print_table(("network", "method", "dense", "SQNR dB", "setting"), error_summary(points, titles))
    print(f"{time.perf_counter() - start:.0f} s")


def measure_all(args: argparse.Namespace) -> list[Point]:
    """All points, written to the CSV file one by one."""
    import torch

    torch.set_num_threads(args.threads)
    points: list[Point] = []
    missing: list[str] = []
    stream = open(args.out / "paper.csv", "w", newline="") if args.out else None  # noqa: SIM115
    writer = csv.DictWriter(stream, [field.name for field in fields(Point)]) if stream else None
    if writer:
        writer.writeheader()
    with tempfile.TemporaryDirectory() as folder:
        for network in networks(args.data):
            if args.networks and network.name not in args.networks:
                continue
            if not network.checkpoint.exists():
                missing.append(network.checkpoint.name)
                continue
            has_images = (args.data / network.images).exists()
            if not has_images:
                missing.append(network.images)
            original = load_checkpoint(network.checkpoint)
            judge = Judge(network, original, args.data) if has_images else None
            for point in measure(network, original, judge, Path(folder)):
                points.append(point)
                if sys.stderr.isatty():
                    print(f"\r{network.name} {point.family} {point.setting}\033[K", end="", file=sys.stderr)
                if writer and stream:
                    writer.writerow(point.rounded())
                    stream.flush()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if stream:
        stream.close()
    if missing:
        print(f"not in {args.data} (see --data): {', '.join(missing)}; without images only errors of weights count")
    return points


def read_csv(path: Path) -> list[Point]:
    with open(path, newline="") as stream:
        numbers = [field.name for field in fields(Point)][3:]
        return [Point(row["network"], row["family"], row["setting"], *(float(row[name]) for name in numbers))
                for row in csv.DictReader(stream)]  # fmt: skip


if __name__ == "__main__":
    main()
