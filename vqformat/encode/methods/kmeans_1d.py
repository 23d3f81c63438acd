"""k-means of scalars, by prefix sums of the sorted values, and the nearest level of each value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.bits import Codes, code_dtype
from .layout import ShortFloats
from .sampling import Doubles, Seed, sample_indices

SAMPLE = 1 << 22  # training values; a quarter of it if they have weights
_SAMPLE_PER_ENTRY = 256  # training values for each entry, at least
_STRIDE = 1.8  # factor of the movement of a level towards the mean of its values, see kmeans.py
_LEAST_GAIN = 1e-7  # a round that reduces the distortion by a smaller share is the last
_KEY_SHIFT = np.uint32(13)  # the upper 19 bits of a float32 select a cell of the code table


def kmeans_1d(
    values: ShortFloats, entries: int, *, seed: Seed = 0, iterations: int = 1000,
    weights: npt.NDArray[Any] | None = None,
) -> Doubles:  # fmt: skip
    """Levels that represent scalars with little squared error (Lloyd 1982; Max 1960).

    The initial density of levels is the cube root of the density of values, which is optimal for many levels (Panter
    and Dite 1951). Lloyd's rounds take microseconds, because they use prefix sums of the sorted values.

    Args:
        values: ``(n,)``, finite, at least one.
        entries: Most levels.
        iterations: Most rounds. It ends earlier when a round gains little.
        weights: Weights of the squared errors, ``(n,)``, at least 0; None for 1.

    Returns:
        Ascending levels, ``(k,)`` with ``1 ≤ k ≤ entries``. If there are at most ``entries`` distinct values, the
        levels are exactly these.
    """
    chosen = training_places(values.size, entries, seed, are_weighted=weights is not None)
    if chosen.size < values.size:
        values = values[chosen]
        weights = None if weights is None else weights[chosen]
    values = values.astype(np.float32, copy=False)
    if weights is None:
        ordered, masses = np.sort(values), None
    else:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        masses = _prefix_sums(weights[order].astype(np.float64))
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if starts.size < entries:
        return np.asarray(ordered[np.append(0, starts)], np.float64)
    heights = ordered.astype(np.float64)
    if masses is not None:
        heights *= np.diff(masses)
    return _lloyd_1d(ordered, _prefix_sums(heights), masses, _compand(ordered, masses, entries), iterations)


def training_places(n: int, entries: int, seed: Seed, *, are_weighted: bool) -> npt.NDArray[np.intp]:
    """Ascending numbers of the values, of n, on which levels are trained."""
    limit = max(SAMPLE // 4 if are_weighted else SAMPLE, entries * _SAMPLE_PER_ENTRY)
    return sample_indices(n, limit, seed)


def _prefix_sums(values: Doubles) -> Doubles:
    sums = np.empty(values.size + 1)
    sums[0] = 0.0
    np.cumsum(values, out=sums[1:])
    return sums


def _compand(ordered: Floats, masses: Doubles | None, entries: int) -> Doubles:
    """Initial levels, whose density is the cube root of the density of the values.

    Args:
        ordered: Ascending values.
        masses: Prefix sums of their weights; None without weights.
    """
    n_quantiles = min(ordered.size - 1, max(1024, 8 * entries))
    at = np.linspace(0, ordered.size - 1, n_quantiles + 1).astype(np.intp)
    quantiles = ordered[at].astype(np.float64)
    gaps = np.diff(quantiles)
    mass = 1.0 if masses is None else np.diff(masses[at])
    # The density is mass / gap. An interval gets levels in proportion to gap · density^(1/3) = (mass · gap²)^(1/3)
    share = _prefix_sums(np.cbrt(mass * gaps**2))
    if not share[-1] > 0:
        share = _prefix_sums(gaps)
    wanted = (np.arange(entries) + 0.5) / entries * share[-1]
    return np.asarray(np.interp(wanted, share, quantiles))


def _lloyd_1d(
    ordered: Floats, sums: Doubles, masses: Doubles | None, levels: Doubles, iterations: int
) -> Doubles:
    """Lloyd's rounds. Levels that have no values move into the cells with the largest squared error.

    Args:
        ordered: Ascending values.
        sums: Prefix sums of the weighted values.
        masses: Prefix sums of the weights; None without weights.
        levels: Initial levels.
    """
    n = ordered.size
    for done in range(iterations):
        bounds = _midpoints(levels)
        ends = np.concatenate(([0], np.searchsorted(ordered, bounds), [n]))
        mass = np.diff(ends if masses is None else masses[ends]).astype(np.float64)
        used = mass > 0
        first, last = ordered[ends[:-1][used]], ordered[ends[1:][used] - 1]
        # Differences of prefix sums lose precision, so a mean may be outside its cell
        means = np.clip(np.diff(sums[ends])[used] / mass[used], first, last)
        widths = last.astype(np.float64) - first
        costs = mass[used] * widths**2
        n_empty = levels.size - means.size
        if n_empty:
            split = np.argsort(-costs, kind="stable")[:n_empty]
            split = split[widths[split] > 0]
            if split.size:
                quarter = widths[split] / 4
                added = np.minimum(means[split] + quarter, last[split])
                means[split] = np.maximum(means[split] - quarter, first[split])
                means = np.concatenate((means, added))
            levels = np.sort(means)
            continue
        gain = float(np.sum(mass * (means - levels) ** 2))  # exact decrease of the squared error
        if gain <= _LEAST_GAIN * float(np.sum(costs)) / 12 or done + 1 == iterations:
            return means
        levels = np.sort(levels + _STRIDE * (means - levels))
    return levels


def _midpoints(levels: npt.NDArray[np.floating]) -> Floats:
    """For each two neighbouring levels the least float32 that belongs to the upper one: midpoints, rounded up.

    With rounding to nearest, the midpoint of 0 and the least subnormal would be 0, and 0 would belong to the subnormal.
    """
    exact = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    bounds = exact.astype(np.float32)
    return np.where(bounds < exact, np.nextafter(bounds, np.float32(np.inf)), bounds)


def nearest_1d(values: ShortFloats, levels: npt.NDArray[np.floating]) -> Codes:
    """For each value the code of the nearest of ascending levels, in the shape of ``values``."""
    bounds = _midpoints(levels)
    dtype = code_dtype(levels.size)
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.size < 1 << 18:
        return np.searchsorted(bounds, flat.astype(np.float32), side="right").astype(dtype).reshape(values.shape)
    table, is_split = _code_table(bounds, dtype)
    codes = np.empty(flat.size, dtype)
    for start in range(0, flat.size, 1 << 18):
        part = flat[start : start + (1 << 18)].astype(np.float32, copy=False)
        keys = (part.view(np.uint32) >> _KEY_SHIFT).astype(np.intp)
        found = np.take(table, keys, mode="clip")
        unsure = np.flatnonzero(np.take(is_split, keys, mode="clip"))
        found[unsure] = np.searchsorted(bounds, part[unsure], side="right")
        codes[start : start + (1 << 18)] = found
    return codes.reshape(values.shape)


def _code_table(bounds: Floats, dtype: type[Any]) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """For each value of the upper 19 bits of a float32: the code of these floats, and whether a bound is among them."""
    n_cells = 1 << (32 - int(_KEY_SHIFT))
    # Bit patterns as integers in the order of the floats. A bound of 0 becomes -0, so that the cell of -0 is split, too
    patterns = np.where(bounds == 0, np.float32(-0.0), bounds).astype(np.float32).view(np.uint32)
    ordered = np.where(patterns >> 31 == 1, ~patterns, patterns | np.uint32(1 << 31))
    splits = np.bincount((ordered >> _KEY_SHIFT).astype(np.intp), minlength=n_cells)
    codes = np.cumsum(splits) - splits
    half = n_cells // 2
    # From the order of the floats to that of bit patterns: positive floats ascending, then negative ones descending
    codes = np.concatenate((codes[half:], codes[:half][::-1]))
    return codes.astype(dtype), np.concatenate((splits[half:], splits[:half][::-1])) > 0
