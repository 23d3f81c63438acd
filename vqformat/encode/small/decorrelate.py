"""What of a matrix a trellis is to code: transform coefficients, what principal components leave, or the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...decode.tables import Floats
from ...format.layout import Layout, make_view
from ..methods.assemble import QuantizedStage, sum_of_stages
from . import principal_components, trellis
from .contexts import Contexts, find_contexts
from .error_weights import power_at
from .tiles import cuts_rows
from .transform import Transform, find_group, find_transform

FINER = 0.62  # a trellis's step, of that of a scalar grid of the same noise
# Step and price of a bit could be chosen together; over a wide range of both only the rate that they lead to matters
PRICE = 0.15  # of a bit, in squared steps
LARGEST_POINT = 16_000  # in steps of the grid: an index is half of it, and tables have 2**14 entries at most (FRQ-001)
# Share of its bits that components must save a matrix, times the share of energy that codes leave out: they leave as
# much of what a weight does, components nothing, and that shifts the balance between the two
_LEAST_GAIN = 0.04
_MANY_BITS = 3.0  # of a code: from here on errors are those of a fine grid, and a sample would be too small for a trial
_INPUT_CORRELATION = 0.3  # of the inputs of neighbouring taps


@dataclass(frozen=True)
class Hysteresis:
    """How a matrix was coded when its step was another one: sizes that jump from plan to plan meet no budget.

    Attributes:
        kind: Rows of the transform, 0 without one, and whether there are components.
        strength: Share of the bits of a code that any other kind must save.
    """

    kind: tuple[int, bool]
    strength: float


@dataclass(frozen=True)
class Plan:
    """How a matrix is coded.

    Attributes:
        contexts: Of what the trellis codes.
        bits: Of a weight, with all that goes with it; of a trial as ``trellis.expected_bits`` says. They are to be
            compared with those of other plans of the same matrix and step.
        transform: Whose coefficients the trellis codes.
        components: Low-rank stages, packed, that come before it.
    """

    contexts: Contexts
    bits: float
    transform: Transform | None
    components: tuple[QuantizedStage, ...]

    @property
    def kind(self) -> tuple[int, bool]:
        """See ``Hysteresis``."""
        return self.transform.size if self.transform is not None else 0, bool(self.components)

    def points(self, matrix: Floats, unit: Floats | np.float32) -> Floats:
        """What the trellis codes of a matrix, in steps of the grid: a new array.

        Args:
            unit: As for ``find_plan``.
        """
        return _points(_left_by(self.components, matrix) if self.components else matrix, self.transform, unit)


def find_plan(
    matrix: Floats, taps: tuple[int, ...] | None, step: float, unit: Floats | np.float32, largest: float, *,
    least_noise: bool, hysteresis: Hysteresis | None = None,
) -> Plan:  # fmt: skip
    """The way that should take the fewest bits.

    Args:
        matrix: ``(R, C)``, finite; rows are inputs.
        taps: Of a kernel, along each axis, the rows of each input one after another; () if no axis tells which inputs
            are neighbours; None for no transform.
        step: Of the grid.
        unit: The step, times the scales of the rows.
        largest: Finite value of the tensor's dtype.
        least_noise: Whether only the squared error counts.
        hysteresis: How it was coded before.
    """
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    typical_bits = find_contexts(np.divide(matrix, unit, dtype=np.float32)).expected_bits
    power = 0.0 if least_noise else power_at(typical_bits)

    def plan(left: Floats, transform: Transform | None, components: list[QuantizedStage]) -> Plan | None:
        """None if points are too large."""
        if transform is not None and not 1.1 * LARGEST_POINT * step * transform.gain < largest / 2:
            return None  # VAL-002: tensors that share its tables may have points as large as any, feedback included
        points = _points(left, transform, unit)
        if np.abs(points).max(initial=0) > 1.001 * LARGEST_POINT:  # the step allows for that of the matrix, to rounding
            return None
        contexts = find_contexts(points)
        bits = principal_components.n_bits(components, view)
        if transform is not None:
            bits += transform.n_bits
        if typical_bits < _MANY_BITS:
            fit: trellis.Fit = "points" if not least_noise else "means" if transform is None else "gain"
            of_code = trellis.expected_bits(points, contexts, PRICE, fit, power)
        else:
            of_code = contexts.entropy(points, FINER)
        return Plan(contexts, of_code + bits / matrix.size, transform, tuple(components))

    def plans(left: Floats, components: list[QuantizedStage]) -> list[Plan]:
        """For what components leave, without a transform and with one."""
        groups = [taps] if taps else []
        if taps == ():
            sizes = {find_group(left, step), hysteresis.kind[0] if hysteresis is not None else 0}
            groups = [(size,) for size in sorted(sizes) if size]
        correlation = 0.0 if least_noise else _INPUT_CORRELATION
        transforms = [None, *(find_transform(left, group, correlation) for group in groups)]
        return [found for transform in transforms if (found := plan(left, transform, components))]

    def cost(plan: Plan) -> float:
        """Bits, with what a kind must save to be taken: those of a trial may be negative, so that no factor will do."""
        must_save = 0.0
        if plan.components and not least_noise:
            must_save += _LEAST_GAIN * 4.0**-typical_bits
        if hysteresis is not None and plan.kind != hysteresis.kind:
            must_save += hysteresis.strength
        return plan.bits + must_save * typical_bits

    best = min(plans(matrix, []), key=cost)
    components = [] if cuts_rows(matrix.shape[1]) else principal_components.find_stages(matrix, best.contexts.slope)
    if components:
        left = _left_by(components, matrix)
        if principal_components.bound(components, view) + float(np.abs(left).max()) < largest / 2:  # VAL-002
            best = min([best, *plans(left, components)], key=cost)
    return best


def _points(matrix: Floats, transform: Transform | None, unit: Floats | np.float32) -> Floats:
    """A matrix, or its coefficients, in steps of the grid."""
    if transform is None:
        return np.divide(matrix, unit, dtype=np.float32)
    points = transform.forward(matrix)
    points /= unit
    return points


def _left_by(components: Sequence[QuantizedStage], matrix: Floats) -> Floats:
    """What components leave of a matrix."""
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    left: Floats = sum_of_stages(components, view)
    return np.subtract(matrix, left, out=left)
