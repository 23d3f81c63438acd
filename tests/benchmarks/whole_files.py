"""Draws how many times smaller whole files are with at most one point of accuracy lost.

    python tests/benchmarks/whole_files.py

reads results/whole_files.csv and writes results/whole_files.png. Figures are of full test sets. `default`
loses at most 0.1 points.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).resolve().parent / "results"
COLOURS = {"NNCodec": "#b0b0b0", "default": "#9ecae1", "small": "#4292c6", "small, calibrated": "#08519c"}
HEIGHT = 0.8 / len(COLOURS)  # of a bar; networks are 1 apart


def draw() -> None:
    """Draw the figure."""
    with open(RESULTS / "whole_files.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    for i, (method, colour) in enumerate(COLOURS.items()):
        places = [number + (i - (len(COLOURS) - 1) / 2) * HEIGHT for number in range(len(rows))]
        ratios = [float(row[method]) for row in rows]
        label = {"NNCodec": "NNCodec (ISO/IEC 15938-17)", "default": "vqformat without options"}.get(method, method)
        bars = axes.barh(places, ratios, HEIGHT * 0.92, color=colour, label=label)
        axes.bar_label(bars, [f"{ratio:.3g}×" for ratio in ratios], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['network']}\n{row['task']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(float(row[method]) for row in rows for method in COLOURS))
    axes.set_xlabel("times smaller than float32, everything counted, at most one point of accuracy lost")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.19))
    figure.savefig(RESULTS / "whole_files.png", dpi=110)


if __name__ == "__main__":
    draw()
