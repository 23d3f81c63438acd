"""Sizes of files of preset small, estimated before they are made."""

import numpy as np
import pytest
from examples import some_of

from vqformat.encode.sensitivity import Statistics
from vqformat.encode.size_drafts import DraftedSteps, bits_of_code
from vqformat.encode.small import small
from vqformat.encode.small.entropy_coding import Pool
from vqformat.encode.step_search import solve
from vqformat.numpy import save


@pytest.mark.parametrize("step", some_of([0.1, 0.4, 1.0], [0.4]))
def test_a_draft_by_a_plan_tells_the_size_of_codes(step: float) -> None:
    random = np.random.default_rng(1)
    common = random.standard_normal((384, 1)) * random.standard_normal((1, 1024))  # a principal component
    w = (random.standard_normal((384, 1024)) + common).astype(np.float32)

    planned = small.make_plan("w", "f32", w.shape, w, step, settings=small.Settings())

    coded = small.quantize("w", "f32", w.shape, w, step).coded
    assert planned.plan.components
    nbytes = Pool.of([coded]).encode(coded, 0).stored_nbytes
    assert planned.bits_of_code() == pytest.approx(8 * nbytes / w.size, rel=0.02)


@pytest.mark.parametrize("bits", some_of([1.5, 3.0, 5.0], [3.0]))
def test_a_draft_tells_the_step_of_a_size(bits: float) -> None:
    random = np.random.default_rng(1)
    w = (random.standard_normal((384, 1024)) * random.lognormal(0, 0.5, (384, 1))).astype(np.float32)
    nbytes = bits * w.size / 8

    steps = DraftedSteps([Statistics.of(w)], lambda steps, _: [bits_of_code(w, steps[0])], nbytes)

    file = save({"w": w}, preset="small", step=solve(steps.estimate, nbytes))
    assert len(file) == pytest.approx(nbytes, rel=0.03)  # by entropies it would be 7 to 20 % less
