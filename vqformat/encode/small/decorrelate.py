"""The choice of what a trellis codes: the weights, transform coefficients, or the residual of principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, overload

import numpy as np

from ...decode.tables import Floats
from ...format.layout import Layout, make_view
from ..methods.assemble import QuantizedStage, decoder_of_sum
from ..methods.layout import ShortFloats, largest_magnitude
from . import principal_components, trellis
from .bands import Grouped, Points, Rows, Source, bands
from .bands import largest as largest_of
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
        side_bits: Bits of transform and components.
    """

    contexts: Contexts
    bits: float
    transform: Transform | None
    components: tuple[QuantizedStage, ...]
    step: float
    side_bits: float

    @property
    def kind(self) -> tuple[int, bool]:
        """See ``Hysteresis``."""
        return self.transform.size if self.transform is not None else 0, bool(self.components)

    @property
    def nbytes(self) -> int:
        """Memory of the components, about."""
        return sum(codes.nbytes for q in self.components for codes in (q.codes, q.right_codes)
                   if isinstance(codes, np.ndarray))  # fmt: skip

    def points(self, matrix: Source, unit: Floats | np.float32, *, is_held: bool) -> Points:
        """The values that the trellis codes, in steps of the grid.

        Args:
            unit: As for ``find_plan``.
            is_held: Whether they are in memory, up to the division by the unit; if not, they are made when they are
                asked for.
        """
        coded = _coded(matrix, self.components, self.transform, is_held=is_held)
        return Points(coded, unit, largest=None if self.kind[0] or self.components else matrix.largest)


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
    matrix: ShortFloats | Source, taps: tuple[int, ...] | None, step: float, unit: Floats | np.float32,
    largest: float, *, least_noise: bool, hysteresis: Hysteresis | None = None,
) -> Plan:  # fmt: skip
    """Find the plan that should take the fewest bits.

    Only one array of the size of the matrix is in memory at a time.

    Args:
        matrix: ``(R, C)``, finite; rows are inputs. What a source holds is not needed any more afterwards.
        taps: Number of taps of a kernel along each axis, if the taps of each input are consecutive rows; () if
            neighbouring inputs are unknown and must be found; None for no transform.
        step: Step of the grid.
        unit: The step times the scales of the rows.
        largest: Largest finite value of the tensor's dtype.
        least_noise: Whether only the squared error counts.
        hysteresis: The preference for the kind used before.
    """
    source = Source.of(matrix)
    kept = hysteresis.plan_for(step) if hysteresis is not None else None
    if kept is not None:
        points = kept.points(source, unit, is_held=True)
        if _fits(points, kept.transform, step, largest):
            return replace(kept, contexts=find_contexts(points))
        del points
    view = make_view(source.shape, False, Layout(n_row_axes=1))
    plain = find_contexts(Points(source.array(), unit))
    typical_bits = plain.expected_bits
    power = 0.0 if least_noise else power_at(typical_bits)

    def plan(coded: ShortFloats, transform: Transform | None, components: Sequence[QuantizedStage]) -> Plan | None:
        """A plan; None if grid points would be too large."""
        points = Points(coded, unit, largest=source.largest if transform is None and not components else None)
        if not _fits(points, transform, step, largest):
            return None
        contexts = plain if not components and transform is None else find_contexts(points)
        bits = principal_components.n_bits(components, view)
        if transform is not None:
            bits += transform.n_bits
        if typical_bits < _MANY_BITS:
            fit: trellis.Fit = "points" if not least_noise else "means" if transform is None else "gain"
            of_code = trellis.expected_bits(points, contexts, PRICE, fit, power)
        else:
            of_code = contexts.entropy(points, FINER)
        return Plan(contexts, of_code + bits / prod(source.shape), transform, tuple(components), step, bits)

    def plans(components: Sequence[QuantizedStage]) -> list[Plan]:
        """Plans for the residual of components, without and with a transform."""
        left = _coded(source, components, None, is_held=True)
        # VAL-002
        if components and principal_components.bound(components, view) + largest_magnitude(left) >= largest / 2:
            return []
        groups = [taps] if taps else []
        if taps == ():
            sizes = {find_group(left, step), hysteresis.kind[0] if hysteresis is not None else 0}
            groups = [(size,) for size in sorted(sizes) if size]
        correlation = 0.0 if least_noise else _INPUT_CORRELATION
        transforms = [find_transform(left, group, correlation) for group in groups]
        found = [plan(left, None, components)]
        del left
        for transform in transforms:
            if transform is not None:
                found.append(plan(_coded(source, components, transform, is_held=True), transform, components))
        return [each for each in found if each is not None]

    def cost(plan: Plan) -> float:
        """Bits plus what a kind must save to be chosen. It is added, not a factor, since bits of a trial can be < 0."""
        must_save = 0.0
        if plan.components and not least_noise:
            must_save += _LEAST_GAIN * 4.0**-typical_bits
        if hysteresis is not None and plan.kind != hysteresis.kind:
            must_save += hysteresis.strength
        return plan.bits + must_save * typical_bits

    best = min(plans([]), key=cost)
    if not cuts_rows(source.shape[1]):
        components = principal_components.find_stages(source.array(), best.contexts.slope)
        if components:
            best = min([best, *plans(components)], key=cost)
    return best


def _fits(points: Points, transform: Transform | None, step: float, largest: float) -> bool:
    """Whether grid points are not too large. Arguments are those of ``find_plan``."""
    # VAL-002: tensors with the same tables may have points up to LARGEST_POINT; feedback adds 10 %
    if transform is not None and not 1.1 * LARGEST_POINT * step * transform.gain < largest / 2:
        return False
    return largest_of(points) <= 1.001 * LARGEST_POINT  # the step keeps the matrix below it, up to rounding


@overload
def _coded(
    source: Source, components: Sequence[QuantizedStage], transform: Transform | None, *, is_held: Literal[True]
) -> ShortFloats: ...
@overload
def _coded(
    source: Source, components: Sequence[QuantizedStage], transform: Transform | None, *, is_held: bool
) -> Rows: ...
def _coded(
    source: Source, components: Sequence[QuantizedStage], transform: Transform | None, *, is_held: bool
) -> Rows:
    """What a trellis codes of a matrix: the residual of components, or its transform coefficients.

    Args:
        is_held: Whether it is an array. Then the source holds none, unless it is the same.
    """
    if not components and transform is None:
        return source.array() if is_held else source
    left: Rows = source
    if components:
        view = make_view(source.shape, False, Layout(n_row_axes=1))
        decode = decoder_of_sum(components, view)
        left = Grouped(source.shape, 1, lambda rows: source[rows] - decode(rows))
    if is_held:
        source.release()
        if transform is not None:
            return transform.forward(left)
        held = np.empty(source.shape, np.float32)
        for rows in bands(source.shape):
            held[rows] = left[rows]
        return held
    if transform is None:
        return left
    return Grouped(source.shape, transform.size, lambda rows: transform.forward(left[rows]))
