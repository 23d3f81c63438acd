"""Bounds (VAL-002) just below and just above the greatest number, so that each factor and each rounding counts.

Each case is a pair: a valid file, and one that a greater scale or step makes invalid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from vqmbuilder import layr
from vqmtensors import F32, Codebook, LowRank, Scale, Tensor, tensor
from vqmtrellis import Freq, Trellis

from fixture_cases import Case, invalid, valid
from fixture_cases.bases import ROWS, column
from fixture_cases.trellis_bases import model

LEAST_INFINITE = 65_520  # in f16
FREQ = Freq(6, (bytes([20] * 11),) * 2)
SHORT = Freq(6, (bytes([20] * 3),) * 2)


def cases() -> list[Case]:
    with np.errstate(over="ignore"):  # what invalid files would decode to
        return [*factors(), *roundings(), *overflows()]


def pair(name: str, comment: str, make: Callable[[F32], Tensor], n: float, of: Freq = FREQ) -> list[Case]:
    """The greatest step or scale for which ``f32(n · step)`` is less than 65,520, and the next one."""
    step = F32(LEAST_INFINITE / n)
    while F32(n) * step >= LEAST_INFINITE:
        step = np.nextafter(step, F32(0))
    while F32(n) * np.nextafter(step, F32(1e9)) < LEAST_INFINITE:
        step = np.nextafter(step, F32(1e9))
    above = np.nextafter(step, F32(1e9))
    return [
        valid(f"bound-edge-{name}", f"f16: {comment}, just below 65,520", "VAL-002",
              model(of.chunk(), layr("", make(step)))),
        invalid(f"val-002-edge-{name}", "format", f"f16: {comment}, not below 65,520; "
                f"sibling: valid/bound-edge-{name}.vqm", "VAL-002", model(of.chunk(), layr("", make(above)))),
    ]  # fmt: skip


def codebook(zero: int, entries: int, step: float, scale: float | None = None) -> Tensor:
    stage = Codebook(np.array([[0, 1, 2]]), steps=np.array([step], F32), zero=zero, entries=entries,
                     scale=None if scale is None else Scale(np.array([scale], F32)))  # fmt: skip
    return tensor("a", "f16", [3], stage)


def trellis(zero: int, step: float, pair: tuple[int, int] | None = None, of: Freq = FREQ, **fields: Any) -> Tensor:
    stage = Trellis(np.array([[0, 1, 2], [2, 0, 1]]), of, (1, 3), step=step, zero=zero, trellis=pair, **fields)
    return tensor("a", "f16", [2, 3], stage, layout=ROWS)


def factors() -> list[Case]:
    two = (11, 4)
    matrix = np.array([[-100, 3], [29, 4]], np.int8)  # the sum of magnitudes of a column is 129

    def product(rank: int, a: float, b: float) -> Tensor:
        u, v = np.full((rank, rank), 3), np.full((rank, rank), 4)
        stage = LowRank(u, v, 7, 9, np.array([a], F32), np.array([b], F32))
        return tensor("a", "f16", [rank, rank], stage, layout=ROWS)

    return [
        *pair("progression-zero", "21 · step, the entry 0 being the greatest", lambda s: codebook(21, 23, s), 21),
        *pair("progression-last", "21 · step, the last entry being the greatest", lambda s: codebook(1, 23, -s), 21),
        *pair("trellis-zero", "9 · step, the code 0 being the greatest", lambda s: trellis(9, s), 9),
        *pair("trellis-last", "7 · step, the last code being the greatest", lambda s: trellis(3, -s), 7),
        *pair("trellis-two-zero", "2 · 9 · step, the code 0 being the greatest", lambda s: trellis(9, s, two), 18),
        *pair("trellis-two-last", "(2 · 7 + 1) · step, the last code being the greatest", lambda s: trellis(3, s, two),
              15),
        *pair("transform-zero", "129 · 18 · step", lambda s: trellis(9, s, two, matrix=matrix), 129 * 18),
        *pair("transform-last", "129 · 15 · step", lambda s: trellis(3, s, two, matrix=matrix), 129 * 15),
        *pair("transform-none", "129 · 7 · step, without trellis", lambda s: trellis(3, -s, matrix=matrix), 129 * 7),
        *pair("low-rank-rows", "3 · 3 · 4 · row scale", lambda s: product(3, -s, 1), 36),
        *pair("low-rank-columns", "3 · 3 · 4 · column scale", lambda s: product(3, 1, -s), 36),
        *pair("trellis-scale", "7 · step · scale", lambda s: trellis(3, 1, scale=Scale(np.array([-s], F32))), 7),
    ]  # fmt: skip


def roundings() -> list[Case]:
    """Numbers found by search: with one rounding less, the bound would lie on the other side of 65,520."""

    def one(name: str, is_valid: bool, item: Tensor, of: Freq = SHORT) -> Case:
        text = f"f16: a bound that one rounding less, {name.replace('-', ' ')}, would "
        clauses, made = "VAL-002 CNV-006", model(of.chunk(), layr("", item))
        if is_valid:
            return valid(f"bound-rounded-{name}", text + "make too large", clauses, made)
        return invalid(f"val-002-rounded-{name}", "format", text + "allow", clauses, made)

    def product(rank: int, half_u: int, half_v: int, a: float, b: float) -> Tensor:
        u, v = np.full((rank, rank), half_u), np.full((rank, rank), half_v + 1)
        stage = LowRank(u, v, 2 * half_u + 1, 2 * half_v + 1, np.array([a], F32), np.array([b], F32))
        return tensor("a", "f16", [rank, rank], stage, layout=ROWS)

    def transform(zero: int, rest: int, step: float, scale: float) -> Tensor:
        matrix = np.array([[-128, 1], [rest, 2]], np.int8)
        return trellis(zero, step, (11, 4), SHORT, matrix=matrix, scale=Scale(np.array([scale], F32)))

    def summed(first: float, scale: float, entry: float) -> Tensor:
        stages = [Codebook(np.array([[0, 0]]), column(first)),
                  Codebook(np.array([[1, 1]]), column(entry, 0), scale=Scale(np.array([scale], F32)))]  # fmt: skip
        return tensor("a", "f16", [2], *stages)

    def second(first: float, stage: LowRank | Trellis) -> Tensor:
        shape = [3, 3] if isinstance(stage, LowRank) else [2, 3]
        return tensor("a", "f16", shape, Codebook(np.zeros(shape, int), column(first)), stage, layout=ROWS)

    def product_3(a: float, b: float) -> LowRank:
        return LowRank(np.full((3, 3), 3), np.full((3, 3), 4), 7, 9, np.array([a], F32), np.array([b], F32))

    def scaled(step: float, scale: float) -> Trellis:
        chosen = np.array([[0, 1, 2], [2, 0, 1]])
        return Trellis(chosen, FREQ, (1, 3), step=step, zero=3, scale=Scale(np.array([scale], F32)))

    return [
        one("low-rank-of-the-integer", True, product(5, 26185, 22322, 8.906069706426933e-05, 0.2517283260822296)),
        one("low-rank-of-the-integer", False, product(2, 26567, 24444, 7.07362632965669e-05, 0.71315997838974)),
        one("low-rank-of-rows", True, product(5, 28039, 28700, 5.8206951507600024e-05, 0.27975934743881226)),
        one("low-rank-of-rows", False, product(3, 30379, 25116, 7.90321355452761e-05, 0.3621804118156433)),
        one("progression", True, codebook(180, 182, 0.7340268492698669, 495.8946533203125)),
        one("progression", False, codebook(21, 23, 0.2649518549442291, 11775.7236328125)),
        one("of-the-second-stage", True, summed(6362.25830078125, 0.8416392803192139, 70288.7109375)),
        one("of-the-second-stage", False, summed(41711.4765625, 1.5494331121444702, 15365.9560546875)),
        one("of-a-second-low-rank-stage", True,
            second(2151.677490234375, product_3(0.6032246351242065, 2918.035888671875))),
        one("of-a-second-low-rank-stage", False,
            second(54844.98046875, product_3(1.7372161149978638, 170.69163513183594))),
        one("of-a-second-trellis-stage", True, second(2619.46240234375, scaled(1.039404273033142, 8645.1357421875)),
            FREQ),
        one("of-a-second-trellis-stage", False, second(16185.853515625, scaled(1.7877484560012817, 3942.24072265625)),
            FREQ),
        one("transform-of-the-integer", True, transform(2629294, 77, 8.98264715942787e-06, 6.766226768493652)),
        one("transform-of-the-integer", False, transform(2223015, 104, 2.659263373061549e-06, 23.8864803314209)),
        one("transform-of-the-step", False, transform(2 - 3306061, 48, 4.907400125375716e-06, 11.472784042358398)),
    ]  # fmt: skip


def overflows() -> list[Case]:
    """Scales that would bring an infinite product back."""

    def one(name: str, comment: str, *stages: Codebook | LowRank | Trellis) -> Case:
        item = tensor("a", "f32", [2, 3], *stages, layout=ROWS)
        return invalid(f"val-002-way-{name}", "format", f"{comment} overflows, times the scale it would not", "VAL-002",
                       model(FREQ.chunk(), layr("", item)))  # fmt: skip

    codes, small = np.array([[0, 1, 2], [2, 0, 1]]), Scale(np.array([2.0**-100], F32))
    great = np.array([2.0**126], F32)
    product = LowRank(np.full((2, 2), 6), np.full((2, 3), 8), 7, 9, great, np.array([2.0**-100], F32))
    matrix = np.array([[-100, 3], [29, 4]], np.int8)
    return [
        one("low-rank", "rank · 3 · 4 · row scale", product),
        one("progression", "22 · step", Codebook(codes, steps=great, entries=23, scale=small)),
        one("trellis", "10 · step", Trellis(codes, FREQ, (1, 3), step=2.0**126, scale=small)),
        one("transform", "1,290 · step", Trellis(codes, FREQ, (1, 3), step=2.0**118, matrix=matrix, scale=small)),
    ]
