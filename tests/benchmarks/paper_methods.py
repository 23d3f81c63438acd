"""The paper's methods, the settings that are tried of each, and what the paper counts for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paper_networks import Network

from vqformat.encode.methods.lowrank import rank_for_bits
from vqformat.encode.recipe import Recipe, Term, parse_method


@dataclass(frozen=True)
class Family:
    """A method and the settings that are tried.

    Attributes:
        settings: Methods for the dense layers; of the last family, ratios for the whole file.
    """

    name: str
    label: str
    colour: str
    marker: str
    settings: tuple[str, ...]


def _both_axes(*settings: str) -> tuple[str, ...]:
    """Rows of outputs, and rows of inputs: what is clustered, and how many codebooks, depends on it."""
    return (*settings, *(f"{setting},axis=columns" for setting in settings))


OURS = "grid"
FAMILIES = (
    Family("svd", "SVD, 8-bit factors", "#707070", "v", tuple(
        f"svd:bits={bits}" for bits in (0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 3.0, 4.0)
    )),
    Family("binary", "binarization", "#b8860b", "s", (
        "binary:scale=none", "binary:scale=tensor", "binary:scale=row", "binary:scale=column",
    )),
    Family("kmeans", "k-means", "#2a7ab9", "o", tuple(f"kmeans:entries={k}" for k in (2, 3, 4, 5, 6, 8, 12, 16, 32))),
    Family("rq-rows", "RQ of whole rows", "#e59abf", "P", _both_axes(
        *(f"rq:dim=0,entries={k},stages={t}" for k, t in ((16, 2), (64, 1), (64, 2), (64, 4), (128, 4))),
    )),
    Family("rq", "RQ of segments", "#9b59b6", "p", tuple(
        f"rq:dim={dim},entries={k},stages={t}"
        for dim, k, t in (*((8, k, 2) for k in (16, 32, 64, 128, 256)), *((4, k, 2) for k in (16, 32, 64)))
    )),
    Family("pq", "PQ", "#2e9e5b", "D", _both_axes(
        *(f"pq:dim=2,entries={k}" for k in (4, 8, 16)),
        *(f"pq:dim=4,entries={k}" for k in (8, 16, 32, 64)),
        *(f"pq:dim=8,entries={k}" for k in (16, 64)),
    )),
    Family(OURS, "vqformat's default", "#d1382c", "*", tuple(map(str, (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96)))),
)  # fmt: skip


def recipe_for(method: str, network: Network) -> Recipe:
    """The method for the dense weights; all else exact."""
    layers = {name: method for name in network.weights}
    if method.startswith("svd:"):  # of 10 rows: a lower rank would lose classes, and save next to nothing
        factor_bits = parse_method(method).terms[0]["factor_bits"]
        layers[network.weights[-1]] = f"svd:rank=10,factor_bits={factor_bits}"
    return Recipe(layers, default="lossless")


def formula_bits(term: Term, shape: tuple[int, ...]) -> float:
    """What the paper counts for a matrix: float32 codebooks and factors, codes of log2(entries) bits."""
    m, n = shape if term["axis"] == "rows" else shape[::-1]
    match term.name:
        case "binary":
            return m * n
        case "kmeans":
            return m * n * math.log2(term.integer("entries")) + 32 * term.integer("entries")
        case "svd":
            rank = term.integer("rank") or rank_for_bits(m, n, float(term["bits"]), term.integer("factor_bits"))
            return 32 * min(rank, m, n) * (m + n + 1)
    dim = min(term.integer("dim") or n, n)
    n_segments = math.ceil(n / dim)
    if term.name == "pq":
        entries = min(term.integer("entries"), m)
        return 32 * entries * n + m * n_segments * math.log2(entries)
    entries = min(term.integer("entries"), m * n_segments)
    return term.integer("stages") * (32 * entries * dim + m * n_segments * math.log2(entries))
