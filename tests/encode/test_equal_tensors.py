"""Equal tensors that are not views of each other are stored once, and are tensors of their own when they are loaded."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from arrays import weights
from examples import some_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays as any_arrays

import vqformat
from vqformat.encode import equal_tensors
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.source import SourceTensor

WAYS = [{}, {"lossless": True}, {"preset": "fast"}, {"preset": "small"}, {"step": 0.2}, {"sqnr": 20},
        {"preset": "fast", "sqnr": 20}, {"preset": "small", "sqnr": 20}, {"recipe": "pq:dim=2,entries=16"},
        {"recipe": {"*": "raw"}}]  # fmt: skip
TAKES_LONGER = {"preset": "fast", "sqnr": 20}
MAX_COPY_NBYTES = 256  # a record, a ``copy`` chunk, and padding


def info_of(data: bytes) -> dict[str, tuple[str | None, str | None]]:
    """For each tensor the name of which it is an alias, and that of which it is a copy."""
    with vqformat.safe_open(io.BytesIO(data)) as file:
        return {name: (file.info(name).alias_of, file.info(name).copy_of) for name in file}


@pytest.mark.parametrize("options", some_of(WAYS, [way for way in WAYS if way != TAKES_LONGER]), ids=str)
def test_two_equal_tensors_take_the_bytes_of_one(options: dict[str, Any]) -> None:
    w = weights(256, 300)

    one = vqformat.save({"a": w}, **options)
    two = vqformat.save({"a": w, "b": w.copy()}, **options)

    assert len(one) <= len(two) <= len(one) + MAX_COPY_NBYTES
    assert info_of(two) == {"a": (None, None), "b": (None, "a")}
    loaded = vqformat.load(two)
    assert np.array_equal(loaded["a"], vqformat.load(one)["a"]) and np.array_equal(loaded["b"], loaded["a"])


# CPY-002
def test_a_change_of_one_does_not_change_the_other() -> None:
    w = weights(64, 64)

    loaded = vqformat.load(vqformat.save({"a": w, "b": w.copy(), "c": w.copy()}, lossless=True))
    loaded["a"][:] = 1
    loaded["b"][:] = 2

    assert np.array_equal(loaded["c"], w) and (loaded["a"] == 1).all() and (loaded["b"] == 2).all()


@given(st.lists(any_arrays(), min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=5), st.booleans())
def test_copies_of_any_dtype_keep_every_bit(values: list[Any], repeats: list[int], is_turned: bool) -> None:
    bases = [np.resize(value, (2500, 4)) if value.size else value for value in values]
    model = {f"w{i}": base for i, base in enumerate(bases)}
    for i, at in enumerate(repeats):
        base = bases[at % len(bases)]
        model[f"r{i}"] = np.asfortranarray(base) if is_turned else base.copy()

    data = vqformat.save(model, lossless=True)

    loaded = vqformat.load(data)
    assert list(loaded) == list(model)
    for name, array in model.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].tobytes() == np.ascontiguousarray(array).tobytes()
    assert len({id(array) for array in loaded.values()}) == len(model)
    alone = {name: vqformat.load(vqformat.save({name: array}, lossless=True))[name] for name, array in model.items()}
    assert [np.array_equal(alone[name].view(np.uint8), loaded[name].view(np.uint8))
            for name in model if alone[name].size and alone[name].ndim].count(False) == 0  # fmt: skip
    vqformat.verify(io.BytesIO(data))


@given(st.integers(0, 299_999), st.integers(1, 255))
def test_tensors_that_differ_in_one_byte_are_no_copies(at: int, flip: int) -> None:
    w = np.zeros(300_000, np.uint8)
    other = w.copy()
    other[at] ^= flip

    data = vqformat.save({"a": w, "b": other}, lossless=True)

    assert info_of(data)["b"] == (None, None)
    assert np.array_equal(vqformat.load(data)["b"], other)


def test_equal_checksums_are_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_tensors, "crc32", lambda data, before=0: 0)
    model = {"a": weights(40, 40), "b": weights(40, 40, seed=1), "c": weights(40, 40, seed=2)}

    loaded = vqformat.load(vqformat.save(model | {"d": model["a"].copy()}, lossless=True))

    assert all(np.array_equal(loaded[name], array) for name, array in model.items())
    assert np.array_equal(loaded["d"], model["a"])


def test_small_tensors_stay_as_they_are() -> None:
    w = weights(31, 33)

    assert info_of(vqformat.save({"a": w, "b": w.copy()})) == {"a": (None, None), "b": (None, None)}


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"ratio": 6}, {"preset": "small", "ratio": 6}], ids=str)
def test_what_is_tied_to_a_copy_stays_tied_to_it(options: dict[str, Any]) -> None:
    w = weights(200, 100)
    average = w.copy()

    data = vqformat.save({"embed": w, "head": w, "ema.embed": average, "ema.head": average}, **options)

    assert info_of(data) == {"embed": (None, None), "head": ("embed", None), "ema.embed": (None, "embed"),
                             "ema.head": ("ema.embed", None)}  # fmt: skip
    loaded = vqformat.load(data)
    assert loaded["embed"] is loaded["head"] and loaded["ema.embed"] is loaded["ema.head"]
    assert loaded["embed"] is not loaded["ema.embed"]


def test_the_ratio_counts_copies_and_not_aliases() -> None:
    w = weights(512, 512)
    stream = io.BytesIO()

    report = vqformat.save_file({"a": w, "b": w.copy(), "c": w}, stream, lossless=True)

    assert report.source_nbytes == 2 * w.nbytes
    assert [tensor.method for tensor in report.tensors[1:]] == ["copy of a", "alias of a"]
    assert (report.tensors[1].stored_nbytes, report.tensors[1].sqnr_db) == (0, np.inf)


# The options of two tensors differ
@pytest.mark.parametrize("recipe", [{"b": "lossless"}, {"b": "pq:dim=2,entries=16"}, {"a": "raw"}], ids=str)
def test_tensors_of_different_methods_are_coded_each_by_its_own(recipe: Mapping[str, str]) -> None:
    w = weights(100, 100)

    assert info_of(vqformat.save({"a": w, "b": w.copy()}, recipe=recipe))["b"] == (None, None)


@pytest.mark.parametrize(("is_exact", "copy_of"), [(False, None), (True, "a")])
def test_with_a_calibration_only_exact_tensors_are_copies(is_exact: bool, copy_of: str | None) -> None:
    w = weights(100, 100)
    tensors = [SourceTensor(name, "f32", w.shape, w.copy, is_exact=is_exact) for name in "ab"]
    stream = io.BytesIO()

    encode_model(tensors, stream, options=Options(preset="small", calibration=Calibration({"a": TensorStatistics()})))

    assert info_of(stream.getvalue())["b"] == (None, copy_of)


@pytest.mark.parametrize("options", [{}, {"lossless": True}], ids=str)
def test_a_tensor_is_loaded_again_only_to_be_compared(options: dict[str, Any]) -> None:
    loads: Counter[str] = Counter()

    def tensor(name: str, seed: int) -> SourceTensor:
        def load() -> Any:
            loads[name] += 1
            return weights(100, 100, seed=seed)

        return SourceTensor(name, "f32", (100, 100), load)

    encode_model([tensor("a", 0), tensor("b", 1), tensor("c", 0), tensor("d", 2)], io.BytesIO(),
                 options=Options(**options))  # fmt: skip

    n = 1 if options else 2  # statistics, and values
    assert loads == {"a": n + 2, "b": n, "c": 1, "d": n}


# An alias has a target before it (ALI-001)
def test_an_order_of_methods_makes_no_alias_of_a_later_tensor() -> None:
    w = np.full((64, 64), 0.5, np.float32)
    model = {"a": w, "b": w.copy(), "mask": w.copy()}

    loaded = vqformat.load(vqformat.save(model, recipe={"m*": "uniform:step=0.1"}, sqnr=20))

    assert all(loaded[name].shape == w.shape for name in model)


class TestWriter:
    def test_copies_in_one_layer_and_their_tied_names_in_later_ones(self) -> None:
        w, stream = weights(100, 100), io.BytesIO()

        with vqformat.writer(stream, lossless=True) as writer:
            writer.add_layer("one", {"a": w, "b": w.copy()})
            writer.add_layer("two", {"c": w.copy()})
            writer.add_alias("d", "b")
            writer.add_alias("e", "a")

        assert info_of(stream.getvalue()) == {"a": (None, None), "b": (None, "a"), "c": (None, None),
                                              "d": ("b", None), "e": ("a", None)}  # fmt: skip
        loaded = vqformat.load(stream.getvalue())
        assert loaded["d"] is loaded["b"] and loaded["e"] is loaded["a"] and loaded["a"] is not loaded["b"]

    def test_copies_in_several_layers_where_close_encodes_all(self) -> None:
        w, stream = weights(100, 100), io.BytesIO()

        with vqformat.writer(stream, ratio=6) as writer:
            for name in "abc":
                writer.add_layer(name, {name: w.copy()})

        assert info_of(stream.getvalue()) == {"a": (None, None), "b": (None, "a"), "c": (None, "a")}
