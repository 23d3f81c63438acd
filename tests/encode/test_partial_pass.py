"""Partial passes of a budget search."""

import numpy as np
import pytest

from vqformat.encode.partial_pass import find_part
from vqformat.numpy import save

N_VALUES = [1000, 50, 200, 100]


def nbytes(factor: float) -> np.ndarray:  # of 2 bits a value, less 1 bit if the step doubles
    return np.array(N_VALUES) * (2 - np.log2(factor)) / 8


@pytest.mark.parametrize(("change", "numbers"), [(-0.4, [1]), (0.4, [1]), (-1.5, [1, 3]), (3.0, [1, 3, 2])])
def test_the_first_tensors_change_by_what_is_wanted(change: float, numbers: list[int]) -> None:
    part = find_part(nbytes, N_VALUES, change, order=[1, 3, 2, 0])

    assert part is not None and part.numbers == numbers
    assert (nbytes(part.factor) - nbytes(1.0))[numbers].sum() == pytest.approx(change, rel=0.01)
    assert (part.factor > 1) == (change < 0)


@pytest.mark.parametrize("change", [-9.0, 9.0, 1e9])
def test_most_weights_are_not_coded_again(change: float) -> None:
    assert find_part(nbytes, N_VALUES, change, order=[1, 3, 2, 0]) is None


def test_tensors_that_no_step_changes_are_not_coded_again() -> None:
    assert find_part(lambda _: np.ones(4), N_VALUES, -0.4, order=[0, 1, 2, 3]) is None


def test_the_factor_is_corrected_by_what_a_part_has_changed() -> None:
    part = find_part(nbytes, N_VALUES, -0.4, order=[1, 3, 2, 0])
    assert part is not None

    assert part.corrected(-0.4, -0.8).factor == pytest.approx(part.factor**0.5)
    assert part.corrected(-0.4, 0.0).factor == 1.0


def model() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {f"fc{i}": random.standard_normal((64, 64 + 16 * i)).astype(np.float32) for i in range(6)}


@pytest.mark.parametrize("goal", [{"bits": 1.7}, {"bits": 2.9}, {"bits": 4.3}, {"sqnr": 14.0}], ids=str)
def test_a_file_near_a_goal_is_met_by_coding_some_tensors_again(
    goal: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def progress(name: str, done: int, total: int) -> None:
        if name.phase == "encoding" and done == total:  # type: ignore[attr-defined]
            passes.append(total)

    monkeypatch.setattr("vqformat.encode.model._DRAFTED", 1)

    data = save(model(), preset="small", progress=progress, **goal)

    n_weights = sum(array.size for array in model().values())
    assert sum(passes) < 2.6 * n_weights
    if "bits" in goal:
        assert 0.996 * goal["bits"] * n_weights / 8 <= len(data) <= goal["bits"] * n_weights / 8
