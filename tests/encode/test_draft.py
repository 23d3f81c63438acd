"""Sizes of files of preset small, estimated before they are made."""

import numpy as np
import pytest
from examples import some_of

from vqformat.encode.sensitivity import Statistics
from vqformat.encode.size_drafts import DraftedSteps
from vqformat.encode.small import small
from vqformat.encode.small.draft import FINER_BY, Drafted, draft
from vqformat.encode.small.entropy_coding import Pool
from vqformat.encode.step_search import solve
from vqformat.numpy import save


def matrix() -> np.ndarray:
    """A principal component, and rows of different scales."""
    random = np.random.default_rng(1)
    common = random.standard_normal((384, 1)) * random.standard_normal((1, 1024))
    rows = random.lognormal(0, 0.5, (384, 1))
    return (random.standard_normal((384, 1024)) * rows + common).astype(np.float32)


def drafted(w: np.ndarray, step: float) -> Drafted:
    return draft(small.make_plan("w", "f32", w.shape, w, step, settings=small.Settings()))


def bits_of(w: np.ndarray, step: float) -> float:
    coded = small.quantize("w", "f32", w.shape, w, step).coded
    return 8 * Pool.of([coded]).encode(coded, 0).stored_nbytes / w.size


@pytest.mark.parametrize("step", some_of([0.1, 0.4, 1.0, 2.0, 3.0], [0.4, 2.0]))
def test_a_draft_tells_the_bits_of_a_tensor_at_two_steps(step: float) -> None:
    w = matrix()

    found = drafted(w, step)

    assert found.bits == pytest.approx(bits_of(w, step), rel=0.015)
    assert found.finer_bits == pytest.approx(bits_of(w, step / FINER_BY), rel=0.015)


def test_a_draft_of_a_matrix_smaller_than_its_sample_is_of_all_values() -> None:
    w = matrix()[:20, :51]

    assert drafted(w, 0.5).bits == pytest.approx(bits_of(w, 0.5), rel=0.02)


@pytest.mark.parametrize("bits", some_of([0.7, 1.5, 3.0, 5.0], [0.7, 3.0]))
def test_drafts_tell_the_step_of_a_size(bits: float) -> None:
    w = matrix()
    nbytes = bits * w.size / 8

    steps = DraftedSteps([Statistics.of(w)], lambda steps: [drafted(w, steps[0])], lambda _: 300.0, nbytes)

    file = save({"w": w}, preset="small", step=solve(steps.estimate, nbytes))
    assert len(file) == pytest.approx(nbytes, rel=0.015)  # by entropies it would be 7 to 20 % less


def test_drafts_are_made_again_where_the_step_was_not_near() -> None:
    w = matrix()
    tried = []

    def of_half(steps: list[float]) -> list[Drafted]:  # as if half of the matrix were zeros
        tried.append(steps[0])
        found = drafted(w, steps[0])
        return [Drafted(found.bits / 2, found.finer_bits / 2, found.n_entries)]

    DraftedSteps([Statistics.of(w)], of_half, lambda _: 0.0, 1.5 * w.size / 8)

    assert 2 <= len(tried) <= 3 and tried[-1] < 0.8 * tried[0]
