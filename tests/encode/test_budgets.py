"""Budgets: met to 1 % or 0.1 dB, or the report says what was reached."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat.encode.budget_search import BudgetSearch, Trials
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.encode.layers import Result
from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.report import Report, TensorReport
from vqformat.encode.sensitivity import Statistics, Steps
from vqformat.encode.source import source_tensors
from vqformat.encode.step_search import Goal, Outcome
from vqformat.errors import EncodeError

Array = np.ndarray[Any, Any]
Model = dict[str, Array]

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f64": np.float64}
SHAPES = [(32, 300), (100, 150), (128, 64), (64, 16, 3, 3), (10, 900), (24, 40, 5)]


def random_model(seed: int, kind: str, n_matrices: int) -> Model:
    """Weights and biases of some layers, of any distribution and scale."""
    rng = np.random.default_rng(seed)
    model: Model = {}
    for i in range(n_matrices):
        dtype = DTYPES[kind if kind != "mixed" else rng.choice(list(DTYPES))]
        shape = SHAPES[rng.integers(len(SHAPES))]
        draw: Callable[..., Array] = [rng.standard_normal, lambda size: rng.standard_t(4, size=size),
                                      lambda size: rng.laplace(size=size)][rng.integers(3)]  # fmt: skip
        model[f"{i}.weight"] = (draw(shape) * 10.0 ** rng.uniform(-3, 1)).astype(dtype)
        model[f"{i}.bias"] = (rng.standard_normal(shape[0]) / 10).astype(dtype)
    return model


def matrices(model: Model) -> Iterable[tuple[str, Array]]:
    return ((name, array) for name, array in model.items() if array.ndim > 1)


def calibration_of(model: Model) -> Calibration:
    """As if inputs had been seen whose neighbours are alike."""
    known = {}
    for i, (name, array) in enumerate(matrices(model)):
        n = array[0].size
        x = np.random.default_rng(i).standard_normal((200, n)).cumsum(axis=1)
        moment = ((x - x.mean(axis=1, keepdims=True)) / np.sqrt(n)).astype(np.float32)
        known[name] = TensorStatistics(10.0**-i, ((moment.T @ moment / 200,),), 200)
    return Calibration(known)


def encode(model: Model, **options: Any) -> tuple[bytes, Report]:
    stream = io.BytesIO()
    report = encode_model(source_tensors(model), stream, None, Options(**options))
    return stream.getvalue(), report


def measured_db(model: Model, data: bytes) -> float:
    """Of all matrices together, as they are in the file."""
    loaded = vqformat.load(data)
    signal = noise = 0.0
    for name, array in matrices(model):
        original = array.astype(np.float64)
        signal += float(np.square(original).sum())
        noise += float(np.square(original - loaded[name].astype(np.float64)).sum())
    return float(10 * np.log10(signal / noise)) if noise else np.inf


def goal_nbytes(model: Model, option: str, value: float) -> float:
    if option == "bits":
        return value * sum(array.size for array in model.values()) / 8
    return sum(array.nbytes for array in model.values()) / value if option == "ratio" else value


def check(model: Model, option: str, value: float, **options: Any) -> bool:
    """Whether a budget is met; if it is not, that must be said."""
    try:
        data, report = encode(model, **{option: value}, **options)
    except EncodeError as err:
        assert "possible" in str(err)
        return False
    if option == "sqnr":
        found = measured_db(model, data)
        assert report.sqnr_db == pytest.approx(found, abs=0.05)
        assert found >= value - 0.001
        is_met = found <= value + 0.101
    else:
        nbytes = goal_nbytes(model, option, value)
        assert len(data) == report.file_nbytes <= nbytes
        is_met = len(data) >= 0.99 * nbytes
    assert bool(report.missed) == (not is_met)
    assert set(report.missed) <= set(report.notes)
    return is_met


@st.composite
def budgets(draw: st.DrawFn, model: Model) -> tuple[str, float]:
    """An option and its value: of files of 1.3 to 8 bits a weight, or 4 to 45 dB."""
    option = draw(st.sampled_from(["bits", "ratio", "size", "sqnr"]))
    if option == "sqnr":
        return option, draw(st.integers(40, 450)) / 10
    bits = draw(st.integers(130, 800)) / 100
    n_weights = sum(array.size for array in model.values())
    nbytes = sum(array.nbytes for array in model.values())
    values = {"bits": bits, "ratio": round(8 * nbytes / n_weights / bits, 3), "size": bits * n_weights // 8}
    return option, values[option]


random_models = st.builds(random_model, st.integers(0, 9999), st.sampled_from([*DTYPES, "mixed"]), st.integers(1, 3))


class TestAnyBudget:
    """It is met or missed aloud, whatever the model."""

    @examples(12)
    @given(data=st.data(), preset=st.sampled_from(["default", "fast"]))
    def test_quick_presets(self, data: st.DataObject, preset: str) -> None:
        model = data.draw(random_models)
        check(model, *data.draw(budgets(model)), preset=preset)

    @examples(1)
    @given(data=st.data(), is_calibrated=st.booleans())
    def test_small(self, data: st.DataObject, is_calibrated: bool) -> None:
        model = data.draw(random_models)
        calibration = calibration_of(model) if is_calibrated else None
        check(model, *data.draw(budgets(model)), preset="small", calibration=calibration)


# Widths of the preset fast


@pytest.mark.parametrize(("option", "value"), [("bits", 4), ("ratio", 5), ("sqnr", 22)])
def test_fast_meets_budgets_with_tensors_of_several_dtypes(option: str, value: float) -> None:
    normal = np.random.default_rng(0).standard_normal
    model = {name: normal((100, 90)).astype(dtype) for name, dtype in DTYPES.items()}
    assert check(model, option, value, preset="fast")


@pytest.mark.parametrize("bits", some_of([1.3, 1.9, 2.3, 3.3, 4.5, 5.3, 6.5, 7.8, 9], [1.3, 3.3, 5.3, 9]))
def test_fast_meets_sizes_with_a_single_tensor(bits: float) -> None:
    weights = np.random.default_rng(0).standard_normal((128, 200)).astype(np.float32)
    assert check({"w": weights}, "bits", bits, preset="fast")


def test_fast_without_a_budget_has_quick_widths_only() -> None:
    _, report = encode(random_model(1, "f32", 3), preset="fast", step=None)
    assert {t.method for t in report.tensors if len(t.shape) > 1} <= {f"codebook {n}" for n in (2, 4, 16, 256)}


# SQNR


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("preset", ["default", "fast", "small"])
def test_the_sqnr_is_that_after_rounding_to_the_dtype(kind: str, preset: str) -> None:
    model = random_model(6, kind, 2)
    for sqnr_db in (44, 48) if preset != "fast" else (40,):
        assert check(model, "sqnr", sqnr_db, preset=preset) or preset == "fast"


@pytest.mark.parametrize("preset", ["default", "fast", "small"])
def test_weights_that_no_step_makes_a_little_worse_say_so(preset: str) -> None:
    signs = np.where(np.random.default_rng(0).standard_normal((64, 64)) > 0, np.float32(1), np.float32(-1))

    _, report = encode({"w": signs}, sqnr=40, preset=preset)

    assert len(report.missed) == 1 and report.missed[0].startswith("an SQNR of 40 dB was asked for;")


@pytest.mark.parametrize("preset", ["default", "fast", "small"])
def test_subnormal_weights_have_an_sqnr_too(preset: str) -> None:
    weights = (np.random.default_rng(0).standard_normal((64, 64)) * 3e-7).astype(np.float16)
    check({"w": weights}, "sqnr", 15, preset=preset)


def test_nothing_on_a_grid_is_no_sqnr() -> None:
    _, report = encode({"b": np.ones(20, np.float32)}, sqnr=20)
    assert len(report.missed) == 1 and "no tensor is of a kind" in report.missed[0]


def test_a_uniform_method_codes_zeros() -> None:
    data, report = encode({"w": np.zeros((64, 64), np.float32)}, recipe=None, bits=4)
    assert not vqformat.load(data)["w"].any() and report.missed

    data = vqformat.save({"w": np.zeros((64, 64), np.float32)}, recipe="uniform:bits=4")
    assert not vqformat.load(data)["w"].any()


# What lies between two files


def meeting_of(sizes: Callable[[int, float], int], n_tensors: int, nbytes: float) -> tuple[int, list[int]]:
    """The size of the file that was found, and sizes of its tensors; each is a function of number and step."""

    def result(number: int, step: float) -> Result:
        report = TensorReport(str(number), "f32", (100,), "", sizes(number, step), 20.0)
        return Result(None, report)  # type: ignore[arg-type]

    def total(results: Iterable[Result]) -> int:
        return sum(result.report.stored_nbytes for result in results)

    steps = Steps([Statistics.of(np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32))])
    search = BudgetSearch(Goal(nbytes), Trials(
        lambda step: [result(i, step) for i in range(n_tensors)], [result],
        lambda results: Outcome(total(results), 20.0)))  # fmt: skip
    search.run(steps)
    assert search.within is not None
    return search.within.outcome.nbytes, [result.report.stored_nbytes for result in search.within.results]


def test_sizes_that_jump_are_met_by_some_tensors_of_each() -> None:
    nbytes, sizes = meeting_of(lambda number, step: 100 if step < 0.5 else 50, 200, 15_030)
    assert nbytes == 15_000
    assert sorted(set(sizes)) == [50, 100]


def test_one_tensor_makes_up_for_what_is_left() -> None:
    def sizes(number: int, step: float) -> int:
        return int(1500 / step) if number == 2 else 3000 if step < 0.5 else 1000

    nbytes, _ = meeting_of(sizes, 4, 9_100)

    assert 0.99 * 9_100 <= nbytes <= 9_100


def test_a_jump_of_a_single_tensor_is_said() -> None:
    model = {"w": np.zeros((64, 64), np.float32), "b": np.arange(300, dtype=np.int64)}

    _, report = encode(model, size=2000)

    assert report.missed[0].startswith("a file of 2,000 bytes was asked for; ")


@pytest.mark.parametrize(("options", "beginning"), [
    ({"bits": 30}, "30 bits a weight were asked for; "), ({"ratio": 1.05}, "a ratio of 1.05 was asked for; "),
])  # fmt: skip
def test_a_file_that_keeps_every_bit_may_be_smaller(options: dict[str, float], beginning: str) -> None:
    _, report = encode(random_model(0, "f32", 1), **options)
    assert report.missed[0].startswith(beginning) and report.missed[0].endswith("every bit is kept")


# Corrections


@pytest.mark.parametrize("ratio", [10, 25])
def test_corrected_tensors_leave_a_budget_met(ratio: float) -> None:
    """Corrections take more bytes, each time another number of them."""
    normal = np.random.default_rng(0).standard_normal
    model: Model = {f"{i}.weight": normal((64, 100)).astype(np.float32) for i in range(3)}
    model |= {f"{i}.bias": np.ones(64, np.float32) for i in range(3)}
    calls = 0

    def correct(weights: Iterable[tuple[str, Array]]) -> Mapping[str, Array]:
        nonlocal calls
        calls += 1
        rng = np.random.default_rng(calls)
        return {f"{i}.bias": (1 + rng.standard_normal(64) * rng.uniform(0, 1)).astype(np.float32) for i in range(3)}

    assert check(model, "ratio", ratio, preset="small", correct=correct)


def test_weights_that_are_exact_need_no_correction() -> None:
    def correct(weights: Iterable[tuple[str, Array]]) -> Mapping[str, Array]:
        raise AssertionError("nothing has changed")

    model = random_model(0, "f32", 1)
    data, _ = encode(model, ratio=1.05, preset="small", correct=correct)
    assert all(np.array_equal(array, model[name]) for name, array in vqformat.load(data).items())
