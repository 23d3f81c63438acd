"""vqformat.writer: a file layer by layer. Its file is tested in test_writer_files.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from layered_models import Model, flat, model, written
from strategies import arrays, names

import vqformat
from vqformat import EncodeError
from vqformat.encode.disk_list import DiskList

EVERY_WAY = [{}, {"preset": "fast"}, {"preset": "small"}, {"lossless": True}, {"step": 0.3}, {"sqnr": 15}, {"bits": 5},
             {"ratio": 8}, {"preset": "small", "ratio": 8}, {"size": 30_000},
             {"recipe": {"*.weight": "pq:dim=2,entries=16"}},
             {"recipe": {"*.weight": "kmeans:entries=8,share=all"}}]  # fmt: skip


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_layers_come_back_as_they_were_given(options: dict[str, Any]) -> None:
    layers = model()

    data = written(layers, **options)

    found = [(layer.name, list(layer)) for layer in vqformat.stream(io.BytesIO(data))]
    assert found == [(name, list(tensors)) for name, tensors in layers.items()]
    for name, array in vqformat.load(data).items():
        original = flat(layers)[name]
        assert (array.dtype, array.shape) == (original.dtype, original.shape)
        noise = np.mean((array - original) ** 2) / np.mean(np.square(original, dtype=np.float64))
        assert noise < 0.2
    vqformat.verify(io.BytesIO(data))


@given(st.dictionaries(names(), st.dictionaries(names(), arrays(), min_size=1, max_size=3), max_size=4))
@examples(40)
def test_lossless_layers_keep_every_bit(layers: Model) -> None:
    tensors = {f"{layer}.{name}": array for layer, tensors in layers.items() for name, array in tensors.items()}
    stream = io.BytesIO()
    with vqformat.writer(stream, {"of": "hypothesis"}, lossless=True) as w:
        for layer, inner in layers.items():
            w.add_layer(layer, {f"{layer}.{name}": inner[name] for name in inner})

    loaded = vqformat.load(stream.getvalue())

    assert list(loaded) == list(tensors)
    for name, array in loaded.items():
        assert array.dtype == tensors[name].dtype
        assert array.tobytes() == np.ascontiguousarray(tensors[name]).tobytes()
        assert array.shape == tensors[name].shape


@pytest.mark.parametrize(
    "options", [{"preset": "fast", "step": 0.2}, {"step": 0.2}, {"preset": "small", "step": 0.2}, {"lossless": True}],
    ids=str,
)  # fmt: skip
def test_a_layer_is_encoded_as_if_it_were_a_model_of_its_own(options: dict[str, Any]) -> None:
    layers = model(3)

    loaded = vqformat.load(written(layers, **options))

    for tensors in layers.values():
        alone = vqformat.load(vqformat.save(tensors, **options))
        for name in tensors:
            assert np.array_equal(loaded[name], alone[name])


def test_without_options_a_layer_is_coded_as_one_of_a_deep_network() -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((80, 96)).astype("float32")}

    def noise(data: bytes) -> float:
        return float(np.square(vqformat.load(data)["w"] - weights["w"]).sum())

    assert noise(written({"layer": weights})) < 0.5 * noise(vqformat.save(weights))


@pytest.mark.parametrize("options", [{"bits": 4}, {"ratio": 9}, {"preset": "small", "size": 20_000}], ids=str)
def test_budgets_are_those_of_the_whole_file(options: dict[str, Any]) -> None:
    layers = model()
    stream = io.BytesIO()

    with vqformat.writer(stream, **options) as w:
        for name, tensors in layers.items():
            w.add_layer(name, tensors)

    tensors = flat(layers)
    n_weights = sum(array.size for array in tensors.values())
    n_bytes = sum(array.nbytes for array in tensors.values())
    goal = next({"size": value, "ratio": n_bytes / value, "bits": n_weights * value / 8}[name]
                for name, value in options.items() if name != "preset")  # fmt: skip
    assert 0.99 * goal <= len(stream.getvalue()) <= goal
    assert w.report.source_nbytes == n_bytes


@pytest.mark.parametrize("preset", ["default", "small"])
def test_sqnr_is_met_by_every_layer(preset: str) -> None:
    layers = model()
    for i, tensors in enumerate(layers.values()):
        tensors[f"layers.{i}.weight"] *= np.float32(10.0**i)

    loaded = vqformat.load(written(layers, sqnr=20, preset=preset))

    for i in range(len(layers)):
        original = flat(layers)[f"layers.{i}.weight"].astype(np.float64)
        noise = loaded[f"layers.{i}.weight"] - original
        assert 10 * np.log10(np.sum(original**2) / np.sum(noise**2)) == pytest.approx(20.05, abs=0.1)


def test_aliases_are_of_layers_long_written() -> None:
    stream = io.BytesIO()
    table = model()["layers.0"]["layers.0.weight"]
    with vqformat.writer(stream) as w:
        w.add_layer("embed", {"embed.weight": table, "embed.same": table})
        w.add_layer("body", {"body.bias": table[0]})
        w.add_alias("head.weight", "embed.weight")
        w.add_alias("head.again", "head.weight")

    loaded = vqformat.load(stream.getvalue())

    assert list(loaded) == ["embed.weight", "embed.same", "body.bias", "head.weight", "head.again"]
    for name in ("embed.same", "head.weight", "head.again"):
        assert loaded[name] is loaded["embed.weight"]
    assert [layer.name for layer in vqformat.stream(io.BytesIO(stream.getvalue()))] == ["embed", "body", "head", "head"]


@pytest.mark.parametrize("options", [{}, {"ratio": 5}], ids=str)
def test_aliases_with_and_without_a_budget(options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with vqformat.writer(stream, **options) as w:
        w.add_layer("a", {"a.weight": model()["layers.0"]["layers.0.weight"]})
        w.add_alias("b.weight", "a.weight")

    loaded = vqformat.load(stream.getvalue())

    assert loaded["b.weight"] is loaded["a.weight"]


def test_memory_that_is_used_again_makes_no_alias() -> None:
    stream = io.BytesIO()
    buffer = np.zeros((64, 64), np.float32)
    with vqformat.writer(stream, lossless=True) as w:
        for i in range(3):
            buffer[:] = i
            w.add_layer("", {f"w{i}": buffer})

    loaded = vqformat.load(stream.getvalue())

    assert [loaded[f"w{i}"][0, 0] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"ratio": 5}], ids=str)
def test_layers_of_one_name_stay_layers(options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with vqformat.writer(stream, **options) as w:
        for i in range(3):
            w.add_layer("same", {f"{i}.weight": (i + 1) * model()["layers.0"]["layers.0.weight"]})

    found = [(layer.name, list(layer)) for layer in vqformat.stream(io.BytesIO(stream.getvalue()))]

    assert found == [("same", [f"{i}.weight"]) for i in range(3)]


def test_what_waits_is_in_any_order(tmp_path: Path) -> None:
    spool: DiskList[Any] = DiskList(["first"], folder=str(tmp_path))
    large = np.zeros(1 << 25, np.uint8)
    spool.append(large)  # too large for memory
    assert spool[0] == "first"
    spool.append("last")

    assert len(spool) == 3
    assert np.array_equal(spool[1], large)
    assert [item if isinstance(item, str) else item.size for item in spool] == ["first", large.size, "last"]
    assert (spool[-1], spool[:1]) == ("last", ["first"])
    with pytest.raises(IndexError):
        spool[3]


@pytest.mark.parametrize("options", [{"ratio": 4}, {"bits": 9}], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.complex64, np.int8,
                                   ml_dtypes.int4, np.bool_, np.float64])  # fmt: skip
def test_every_dtype_waits_for_a_budget(dtype: Any, options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    exact = np.arange(-4, 4).astype(dtype)
    with vqformat.writer(stream, recipe={"x": "raw"}, **options) as w:
        w.add_layer("", {"weight": np.random.default_rng(0).standard_normal((100, 99)).astype(np.float32)})
        w.add_layer("", {"x": exact, "scalar": exact[3], "empty": exact[:0]})

    loaded = vqformat.load(stream.getvalue())

    assert np.array_equal(loaded["x"], exact)
    assert loaded["scalar"].shape == ()
    assert (loaded["empty"].shape, loaded["empty"].dtype) == ((0,), exact.dtype)


def test_the_report_is_there_at_the_end() -> None:
    layers = model()
    stream = io.BytesIO()
    with vqformat.writer(stream) as w:
        with pytest.raises(ValueError, match="after the writer is closed"):
            _ = w.report
        for name, tensors in layers.items():
            w.add_layer(name, tensors)
    report = w.report

    assert report is w.close()
    assert report.file_nbytes == len(stream.getvalue())
    assert [tensor.name for tensor in report.tensors] == list(flat(layers))
    assert sum(tensor.stored_nbytes for tensor in report.tensors) <= report.section_nbytes
    assert report.source_nbytes == sum(array.nbytes for array in flat(layers).values())


@pytest.mark.parametrize("options", [{}, {"bits": 4}], ids=str)
def test_progress_counts_weights(options: dict[str, Any]) -> None:
    layers = model(3)
    told: list[tuple[str, int, int]] = []

    written(layers, progress=lambda name, done, total: told.append((name, done, total)), **options)

    n_weights = sum(array.size for array in flat(layers).values())
    assert told[-1] == ("layers.2.steps", n_weights, n_weights)
    assert all(done <= total for _, done, total in told)


def test_a_pattern_that_matches_nothing_is_a_warning_for_the_file_may_have_taken_hours() -> None:
    stream = io.BytesIO()

    with pytest.warns(UserWarning, match=r"'lm_haed\.\*' matched no tensor") as warned:  # noqa: SIM117
        with vqformat.writer(stream, recipe={"lm_haed.*": "raw"}) as w:
            w.add_layer("lm_head", {"lm_head.weight": np.ones((4, 4), np.float32)})

    assert warned[0].filename == __file__
    assert w.report.notes == [str(warned[0].message)]
    assert list(vqformat.load(stream.getvalue())) == ["lm_head.weight"]


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda w: w.add_layer("x", {"layers.0.weight": np.ones(3)}), "two tensors have the name 'layers.0.weight'"),
    (lambda w: w.add_layer("x", {"": np.ones(3)}), "is empty"),
    (lambda w: w.add_layer("x", {3: np.ones(3)}), "is a int, not a string"),
    (lambda w: w.add_layer("x", [np.ones(3)]), "is a list, not a mapping"),
    (lambda w: w.add_layer("x", {"a": [1.0]}), "is a list, not a NumPy array"),
    (lambda w: w.add_layer("x", {"a": np.array(["text"])}), "'a'"),
    (lambda w: w.add_layer(7, {"a": np.ones(3)}), "is a int, not a string"),
    (lambda w: w.add_layer("x" * 2000, {"a": np.ones(3)}), "2000 bytes; at most 1024"),
    (lambda w: w.add_layer("\ud800", {"a": np.ones(3)}), "no Unicode text"),
    (lambda w: w.add_alias(3, "layers.0.weight"), "is a int, not a string"),
    (lambda w: w.add_alias("a", ["layers.0.weight"]), "which has not been added"),
    (lambda w: w.add_alias("a", "nothing"), "'nothing', which has not been added"),
    (lambda w: w.add_alias("layers.0.bias", "layers.0.weight"), "two tensors have the name 'layers.0.bias'"),
    (lambda w: w.add_layer("x", {"x.pq": np.full((8, 8), np.nan, np.float32)}), "cannot code it"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_written_is_said_and_the_file_goes_on(wrong: Callable[[Any], Any], message: str) -> None:
    layers = model(2)
    stream = io.BytesIO()
    with vqformat.writer(stream, recipe={"x.pq": "pq"}) as w:
        w.add_layer("layers.0", layers["layers.0"])
        with pytest.raises(EncodeError, match=message):
            wrong(w)
        w.add_layer("layers.1", layers["layers.1"])
        w.add_layer("x", {"x.pq": np.ones((16, 16), np.float32)})

    assert list(vqformat.load(stream.getvalue())) == [*flat(layers), "x.pq"]


def test_closed_is_closed() -> None:
    w = vqformat.writer(io.BytesIO())
    report = w.close()

    assert w.close() is report
    with pytest.raises(ValueError, match="the writer is closed"):
        w.add_layer("", {"x": np.ones(3)})
    with pytest.raises(ValueError, match="the writer is closed"):
        w.add_alias("x", "y")


@pytest.mark.parametrize("options", [{}, {"ratio": 3}], ids=str)
def test_a_file_of_nothing_and_layers_of_nothing(options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with vqformat.writer(stream, **options) as w:
        w.add_layer("relu", {})

    assert vqformat.load(stream.getvalue()) == {}


def test_large_layers_become_several_of_the_name() -> None:
    stream = io.BytesIO()
    with vqformat.writer(stream) as w:
        w.add_layer("all", {f"w{i}": np.full(2, i, np.float32) for i in range(600)})

    found = [(layer.name, len(layer)) for layer in vqformat.stream(io.BytesIO(stream.getvalue()))]

    assert found == [("all", 256), ("all", 256), ("all", 88)]


def test_torch_tensors_in_layers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from vqformat.torch import load_file, writer

    weight = torch.randn(64, 32, dtype=torch.bfloat16)
    with writer(tmp_path / "model.vqm", lossless=True) as w:
        w.add_layer("a", {"a.weight": weight, "a.tied": weight, "a.t": weight.T})
        w.add_alias("b.weight", "a.weight")

    loaded = load_file(tmp_path / "model.vqm")

    assert loaded["a.tied"] is loaded["a.weight"] is loaded["b.weight"]
    assert torch.equal(loaded["a.t"], weight.T)
    assert loaded["a.weight"].dtype == torch.bfloat16
    with writer(io.BytesIO()) as other:
        for wrong in ([weight], torch.nn.Linear(3, 3)):
            with pytest.raises(EncodeError, match="not a mapping from names to tensors, as state_dict"):
                other.add_layer("a", wrong)
        with pytest.raises(EncodeError):
            other.add_layer("a", {"a": weight, "a.t": weight.T, "": weight})
    assert other.report.notes == []
    assert w.report.notes == ["'a.t' and 'a.weight' are views that overlap: each is stored on its own"]


def test_an_sqnr_that_a_layer_misses_is_noted() -> None:
    usual = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with vqformat.writer(io.BytesIO(), sqnr=20) as w:
        w.add_layer("signs", {"signs.w": np.sign(usual)})
        w.add_layer("usual", {"usual.w": usual})

    assert [note.partition(" dB was asked for")[0] for note in w.report.missed] == ["layer 'signs': an SQNR of 20"]
    assert w.report.notes == w.report.missed
