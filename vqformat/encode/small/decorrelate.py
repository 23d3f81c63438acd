"""The choice of what a trellis codes: the weights, transform coefficients, or the residual of principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...decode.tables import Floats
from ...format.layout import Layout, make_view
from ..methods.assemble import QuantizedStage, sum_of_stages
from ..methods.layout import largest_magnitude
from . import principal_components, trellis
from .contexts import Contexts, find_contexts
from .error_weights import power_at
from .tiles import cuts_rows
from .transform import Transform, find_group, find_transform

FINER = 0.62  # step of a trellis, relative to that of a scalar grid with the same noise
# The cost of a bit, in squared steps. It could be chosen together with the step, but over a wide range of both only the
# resulting rate matters
PRICE = 0.15
LARGEST_POINT = 16_000  # in steps. The index is half of it, and a table has at most 2**14 entries (FRQ-001)
# Share of bits that components must save, times 4^-bits, the share of energy that quantization removes. Quantized
# weights lose this share of their energy; components lose nothing, which changes the balance between the two
_LEAST_GAIN = 0.04
_MANY_BITS = 3.0  # for more bits a code the entropy is used: its noise is known, and a trial would need a larger sample
_INPUT_CORRELATION = 0.3  # assumed correlation of the inputs of neighbouring taps
_NEAR_STEP = 1.2  # largest ratio of two steps with the same plan, for a hysteresis without strength
_NEAR_GROWTH = 10  # of the logarithm of this ratio with the strength: for a strength of 0.32 the ratio is 2.15


@dataclass(frozen=True)
class Plan:
    """How a matrix is coded.

    Attributes:
        contexts: Contexts of what the trellis codes.
        bits: Estimated bits for each weight, side information included; see ``trellis.expected_bits``. They can be
            compared only with those of other plans for the same matrix and step.
        transform: The transform whose coefficients the trellis codes; None without.
        components: Low-rank stages, packed, whose residual is coded.
        step: Step of the grid for which transform and components were found.
    """

    contexts: Contexts
    bits: float
    transform: Transform | None
    components: tuple[QuantizedStage, ...]
    step: float

    @property
    def kind(self) -> tuple[int, bool]:
        """See ``Hysteresis``."""
        return self.transform.size if self.transform is not None else 0, bool(self.components)

    @property
    def nbytes(self) -> int:
        """Memory of the components, about."""
        return sum(codes.nbytes for q in self.components for codes in (q.codes, q.right_codes)
                   if isinstance(codes, np.ndarray))  # fmt: skip

    def points(self, matrix: Floats, unit: Floats | np.float32) -> Floats:
        """The values that the trellis codes, in steps of the grid, as a new array.

        Args:
            unit: As for ``find_plan``.
        """
        return _points(_left_by(self.components, matrix) if self.components else matrix, self.transform, unit)


@dataclass(frozen=True)
class Hysteresis:
    """A preference for the kind of coding that was used at the previous step of a search.

    Without it the kind could change at each step, and sizes would jump, so that no budget could be met.

    Attributes:
        kind: Rows of the transform (0 without one), and whether there are components.
        strength: Share of the bits that another kind must save to be chosen. The larger it is, the further a step may
            be from that of the plan that is kept.
        plan: The plan of an earlier step, which is kept if the step is near to it; None if it is not known any more.
    """

    kind: tuple[int, bool]
    strength: float
    plan: Plan | None = None

    def plan_for(self, step: float) -> Plan | None:
        """The plan to keep for this step; None if a plan must be found."""
        # Two plans of one kind, found for different steps, differ in size and noise at the same step. A goal between
        # them is met by one plan only, so a search that goes on must come to keep it
        near = _NEAR_STEP ** (1 + _NEAR_GROWTH * self.strength)
        is_near = self.plan is not None and 1 / near < step / self.plan.step < near
        return self.plan if is_near else None


def find_plan(
    matrix: Floats, taps: tuple[int, ...] | None, step: float, unit: Floats | np.float32, largest: float, *,
    least_noise: bool, hysteresis: Hysteresis | None = None,
) -> Plan:  # fmt: skip
    """Find the plan that should take the fewest bits.

    Args:
        matrix: ``(R, C)``, finite; rows are inputs.
        taps: Number of taps of a kernel along each axis, if the taps of each input are consecutive rows; () if
            neighbouring inputs are unknown and must be found; None for no transform.
        step: Step of the grid.
        unit: The step times the scales of the rows.
        largest: Largest finite value of the tensor's dtype.
        least_noise: Whether only the squared error counts.
        hysteresis: The preference for the kind used before.
    """
    kept = hysteresis.plan_for(step) if hysteresis is not None else None
    if kept is not None:
        points = kept.points(matrix, unit)
        if _fits(points, kept.transform, step, largest):
            return replace(kept, contexts=find_contexts(points))
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    plain = _points(matrix, None, unit)
    plain_contexts = find_contexts(plain)
    typical_bits = plain_contexts.expected_bits
    power = 0.0 if least_noise else power_at(typical_bits)

    def plan(left: Floats, transform: Transform | None, components: list[QuantizedStage]) -> Plan | None:
        """A plan; None if grid points would be too large."""
        is_plain = left is matrix and transform is None
        points = plain if is_plain else _points(left, transform, unit)
        if not _fits(points, transform, step, largest):
            return None
        contexts = plain_contexts if is_plain else find_contexts(points)
        bits = principal_components.n_bits(components, view)
        if transform is not None:
            bits += transform.n_bits
        if typical_bits < _MANY_BITS:
            fit: trellis.Fit = "points" if not least_noise else "means" if transform is None else "gain"
            of_code = trellis.expected_bits(points, contexts, PRICE, fit, power)
        else:
            of_code = contexts.entropy(points, FINER)
        return Plan(contexts, of_code + bits / matrix.size, transform, tuple(components), step)

    def plans(left: Floats, components: list[QuantizedStage]) -> list[Plan]:
        """Plans for the residual of components, without and with a transform."""
        groups = [taps] if taps else []
        if taps == ():
            sizes = {find_group(left, step), hysteresis.kind[0] if hysteresis is not None else 0}
            groups = [(size,) for size in sorted(sizes) if size]
        correlation = 0.0 if least_noise else _INPUT_CORRELATION
        transforms = [None, *(find_transform(left, group, correlation) for group in groups)]
        return [found for transform in transforms if (found := plan(left, transform, components))]

    def cost(plan: Plan) -> float:
        """Bits plus what a kind must save to be chosen. It is added, not a factor, since bits of a trial can be < 0."""
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


def _fits(points: Floats, transform: Transform | None, step: float, largest: float) -> bool:
    """Whether grid points are not too large. Arguments are those of ``find_plan``."""
    # VAL-002: tensors with the same tables may have points up to LARGEST_POINT; feedback adds 10 %
    if transform is not None and not 1.1 * LARGEST_POINT * step * transform.gain < largest / 2:
        return False
    return largest_magnitude(points) <= 1.001 * LARGEST_POINT  # the step keeps the matrix below it, up to rounding


def _points(matrix: Floats, transform: Transform | None, unit: Floats | np.float32) -> Floats:
    """A matrix, or its transform coefficients, in steps of the grid."""
    if transform is None:
        return np.divide(matrix, unit, dtype=np.float32)
    points = transform.forward(matrix)
    points /= unit
    return points


def _left_by(components: Sequence[QuantizedStage], matrix: Floats) -> Floats:
    """The residual of a matrix after components."""
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    left: Floats = sum_of_stages(components, view)
    return np.subtract(matrix, left, out=left)
