"""Budgets of a model: sizes and qualities that are met, and what is said of those that cannot be."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from examples import some_of
from saved_models import Model, normal, save, saved_and_loaded

import vqformat.numpy as vqm
from vqformat.encode.sensitivity import Statistics, Steps
from vqformat.encode.step_search import Goal, Outcome, meet
from vqformat.errors import EncodeError


@pytest.mark.parametrize(
    "options",
    [{"bits": "3"}, {"ratio": "8"}, {"bits": True}, {"bits": float("nan")}, {"ratio": 0}, {"ratio": [4]}, {"bits": 1j}],
    ids=str,
)  # fmt: skip
def test_budgets_are_numbers_above_0(options: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="a number above 0"):
        save({"w": normal(32, 32)}, **options)


def test_budgets_may_be_numbers_of_numpy() -> None:
    assert save({"w": normal(64, 64)}, bits=np.float32(4))[1].file_nbytes <= 2048


def test_lossless_and_a_recipe_exclude_each_other() -> None:
    with pytest.raises(EncodeError, match="lossless and a recipe exclude each other"):
        save({"w": normal(32, 32)}, lossless=True, recipe="pq")


@pytest.mark.parametrize("ratio", [8, 20, 40])
def test_ratio_is_met_within_one_percent(lenet: Model, ratio: float) -> None:
    source_nbytes = sum(array.nbytes for array in lenet.values())

    data, report = save(lenet, ratio=ratio)

    assert 0.99 * source_nbytes / ratio <= len(data) <= source_nbytes / ratio
    assert report.ratio == pytest.approx(ratio, rel=0.0102)


@pytest.mark.parametrize("bits_per_weight", [0.8, 2, 6])
def test_bits_are_met_within_one_percent(lenet: Model, bits_per_weight: float) -> None:
    goal = bits_per_weight * sum(array.size for array in lenet.values()) / 8

    data, _ = save(lenet, bits=bits_per_weight)

    assert 0.99 * goal <= len(data) <= goal


@pytest.mark.parametrize(("preset", "nbytes"), some_of(
    product(["default", "small"], [25_000, 60_000, 140_000]), [("default", 25_000), ("small", 60_000)]
))  # fmt: skip
def test_sizes_are_met_to_a_percent(lenet: Model, preset: str, nbytes: int) -> None:
    data, _ = save(lenet, size=nbytes, preset=preset)
    assert 0.99 * nbytes <= len(data) <= nbytes


@pytest.mark.parametrize(("preset", "sqnr_db"), some_of(
    product(["default", "small"], [3.0, 12.0, 33.3]), [("default", 33.3), ("small", 12.0)]
))  # fmt: skip
def test_an_sqnr_is_met_to_a_tenth(lenet: Model, preset: str, sqnr_db: float) -> None:
    data, report = save(lenet, sqnr=sqnr_db, preset=preset)

    decoded = vqm.load(data)
    weights = [name for name, array in lenet.items() if array.ndim > 1]
    noise = sum(float(np.square(lenet[name] - decoded[name], dtype=np.float64).sum()) for name in weights)
    signal = sum(float(np.square(lenet[name], dtype=np.float64).sum()) for name in weights)
    assert 10 * np.log10(signal / noise) == pytest.approx(report.sqnr_db, abs=0.01)
    assert sqnr_db <= report.sqnr_db <= sqnr_db + 0.1


def test_presets_are_ordered_by_size_and_keep_budgets(lenet: Model) -> None:
    lenet = {**lenet, "fc1.weight": lenet["fc1.weight"][:100]}  # a third of it takes a third of the time
    sizes = {preset: len(save(lenet, sqnr=15, preset=preset)[0]) for preset in ("small", "default", "fast")}
    assert sizes["small"] < 0.93 * sizes["default"] < 0.93 * sizes["fast"]
    assert save(lenet, ratio=9, preset="fast")[1].ratio >= 9  # of whole bits: not always near


@pytest.mark.parametrize("steepness", [0.5, 1, 10, 30])
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
def test_a_size_is_met_however_it_goes_with_the_step(steepness: float, share: float) -> None:
    steps = Steps([Statistics.of(normal(300, 200))])
    tried = []

    def encode(step: float) -> Outcome:  # up to a step of 0.9 as estimated, then of another slope
        nbytes = steps.estimate(min(step, 0.9)) * max(1.0, step / 0.9) ** -steepness
        tried.append(int(nbytes))
        return Outcome(int(nbytes) + 1, 0.0)

    nbytes = share * steps.estimate(0.9)
    meet(steps, Goal(nbytes), encode)
    assert 0.99 * nbytes <= max(n for n in tried if n <= nbytes)


def test_a_fixed_step_stays_and_the_others_meet_the_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    data, report = save(model, bits=3, recipe={"a": "uniform:bits=4"})

    assert 0.99 * 49152 <= len(data) <= 49152
    first, second = report.tensors
    assert first.bits_per_weight == pytest.approx(4, abs=0.15)
    assert second.bits_per_weight == pytest.approx(2, abs=0.15)


def test_uniform_without_a_step_takes_part_in_the_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    _, report = save(model, bits=3, recipe={"a": "uniform"})

    assert [tensor.bits_per_weight for tensor in report.tensors] == pytest.approx([3, 3], abs=0.1)


def test_vector_methods_keep_their_bits_under_a_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    data, report = save(model, bits=3, recipe={"a": "kmeans:entries=4"})

    assert 0.99 * 49152 <= len(data) <= 49152
    assert report.tensors[0].bits_per_weight < 2.1


def test_a_generous_budget_is_spent_on_no_loss() -> None:
    model = {"a": normal(128, 128), "b": normal(100)}
    exact = len(save(model, lossless=True)[0])

    loaded, report = saved_and_loaded(model, bits=32)

    assert report.file_nbytes == exact
    assert all(loaded[name].tobytes() == array.tobytes() for name, array in model.items())


def test_a_generous_budget_leaves_the_recipe_its_tensors() -> None:
    model = {"a": normal(128, 128), "b": normal(128, 128)}

    loaded, report = saved_and_loaded(model, ratio=1.0, recipe={"a": "kmeans:entries=4"})

    assert report.tensors[0].bits_per_weight < 3
    assert loaded["b"].tobytes() == model["b"].tobytes()


def test_larger_budgets_give_larger_files() -> None:
    model = {"a": normal(128, 128), "b": normal(100)}

    sizes = [save(model, bits=n)[1].file_nbytes for n in (1, 2, 4, 8, 12, 14, 20, 30)]

    assert all(later > 0.97 * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] > 1.5 * sizes[3]


@pytest.mark.parametrize(("options", "possible"), [
    ({"ratio": 100}, r"a ratio of \d+\.\d\d is possible"), ({"bits": 0.5}, r"\d+\.\d\d bits a weight are possible"),
])  # fmt: skip
def test_a_budget_that_cannot_be_met_says_what_can(options: dict[str, Any], possible: str) -> None:
    model = {"a": normal(64, 64), "bias": normal(4000)}

    with pytest.raises(EncodeError, match=possible) as caught:
        save(model, **options)

    assert "bytes in tensors that no step changes" in str(caught.value)


def test_the_possible_ratio_is_possible() -> None:
    model = {"a": normal(64, 64), "bias": normal(4000)}
    with pytest.raises(EncodeError) as caught:
        save(model, ratio=100)
    ratio = float(str(caught.value).partition("a ratio of ")[2].partition(" ")[0])

    assert save(model, ratio=ratio)[1].ratio >= ratio


@pytest.mark.parametrize("model", [{}, {"e": np.empty((0, 3), np.float32)}], ids=["no tensors", "no elements"])
@pytest.mark.parametrize("options", [{"bits": 2}, {"ratio": 8}], ids=str)
def test_an_empty_model_meets_any_budget(model: Model, options: dict[str, Any]) -> None:
    loaded, _ = saved_and_loaded(model, **options)

    assert loaded.keys() == model.keys()


def test_tensors_that_no_step_changes_are_encoded_once() -> None:
    calls: list[str] = []

    with pytest.raises(EncodeError, match="smallest possible"):
        save({"a": normal(100), "b": normal(100)}, ratio=8,
             progress=lambda name, done, total: calls.append(name) if name.phase == "encoding" else None)  # fmt: skip

    assert calls == ["a", "b"]
