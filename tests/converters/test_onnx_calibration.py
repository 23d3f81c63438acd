"""What is learnt of an ONNX model by running it, and files that are smaller for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from vqformat.converters import convert, extract

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="not installed: pip install 'vqformat[onnxruntime]'")

from vqformat.onnx import Calibration, calibrate  # noqa: E402

h, nh, T = onnx.helper, onnx.numpy_helper, onnx.TensorProto


def model_of(nodes: list[Any], arrays: dict[str, Any], *, constants: bool = False, inputs: str = "x",
             dtype: int = T.FLOAT) -> Any:  # fmt: skip
    """A model from ``x`` to ``y``, its arrays initializers or constants."""
    tensors = [nh.from_array(array, name) for name, array in arrays.items()]
    if constants:
        nodes = [h.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
        tensors = []
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info(name, dtype, None) for name in inputs],
                         [h.make_tensor_value_info("y", T.FLOAT, None)], tensors)  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def dense(w: Any, b: Any, **options: Any) -> Any:
    nodes = [h.make_node("MatMul", ["x", "w"], ["xw"]), h.make_node("Add", ["xw", "b"], ["y"])]
    return model_of(nodes, {"w": w, "b": b}, **options)


def run(model: Any, x: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(n: int, size: int, seed: int) -> Any:
    """Vectors that are nearly in a space of few dimensions, the same for any seed."""
    return normal(n, 8, seed=seed) @ normal(8, size, seed=77) + 0.1 * normal(n, size, seed=seed + 1)


def only_moments(found: Any) -> Any:
    ((block,),) = found.moments
    return block


class TestMoments:
    @pytest.mark.parametrize("constants", [False, True])
    def test_of_a_matrix_they_are_those_of_its_inputs(self, constants: bool) -> None:
        batches = [normal(5, 7, 20, seed=seed) for seed in range(3)]

        found = calibrate(dense(normal(20, 19), normal(19), constants=constants), batches).tensors

        x = np.concatenate(batches).reshape(-1, 20).astype(np.float64)
        np.testing.assert_allclose(only_moments(found["w"]), x.T @ x / len(x), atol=1e-5)
        assert found["w"].n_observed == 3 * 5 * 7
        assert found["b"].moments is None

    @pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
    def test_of_gemm(self, transposed: tuple[int, int]) -> None:
        a, b = transposed
        node = h.make_node("Gemm", ["x", "w"], ["y"], transA=a, transB=b)
        x = normal(30, 8)

        found = calibrate(model_of([node], {"w": normal(6, 8) if b else normal(8, 6)}), [x.T if a else x]).tensors

        np.testing.assert_allclose(only_moments(found["w"]), x.T @ x / 30, atol=1e-5)

    @given(st.data())
    @examples(60)
    def test_of_a_convolution_they_give_the_energy_of_its_outputs(self, data: st.DataObject) -> None:
        rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        inputs, outputs = (data.draw(st.integers(1, 2)) for _ in range(2))
        kernel = [data.draw(st.integers(2, 3)) for _ in range(rank)]
        options: dict[str, Any] = {"group": groups, "strides": [data.draw(st.integers(1, 2)) for _ in range(rank)]}
        padding = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
        if padding == "NOTSET":
            options["pads"] = [data.draw(st.integers(0, 1)) for _ in range(2 * rank)]
            options["dilations"] = [data.draw(st.integers(1, 2)) for _ in range(rank)]
        else:
            options["auto_pad"] = padding
        w = normal(groups * outputs, inputs, *kernel)
        model = model_of([h.make_node("Conv", ["x", "w"], ["y"], **options)], {"w": np.tile(w, (9, *[1] * (rank + 1)))})
        x = normal(2, groups * inputs, *[data.draw(st.integers(5, 7)) for _ in range(rank)], seed=1)
        w = np.tile(w, (9, *[1] * (rank + 1)))

        found = calibrate(model, [x]).tensors["w"]

        y = run(model, x)
        assert len(found.moments or ()) == groups and found.n_observed == y.size // len(w)
        energies = np.square(y, dtype=np.float64).mean(axis=(0, *range(2, 2 + rank)))
        for i, (weight, energy) in enumerate(zip(w.reshape(len(w), -1), energies, strict=True)):
            assert found.moments is not None
            (moments,) = found.moments[i * groups // len(w)]
            assert weight @ moments @ weight == pytest.approx(energy, rel=1e-3, abs=1e-4)

    def test_rows_of_a_table_are_counted(self) -> None:
        node = h.make_node("Gather", ["w", "x"], ["y"])

        found = calibrate(model_of([node], {"w": normal(6, 5)}, dtype=T.INT64), [np.array([[1, 2], [2, -1]])]).tensors

        assert found["w"].row_counts is not None and found["w"].row_counts.tolist() == [0, 1, 2, 0, 0, 1]

    def test_what_inner_layers_meet_is_seen_whatever_their_number(self) -> None:
        arrays = {f"w{i}": normal(8, 8, seed=i) / 3 for i in range(40)}
        names = ["x", *(f"h{i}" for i in range(39)), "y"]
        nodes = [h.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(40)]
        x = normal(10, 8, seed=99)

        found = calibrate(model_of(nodes, arrays), [x]).tensors

        for i in range(40):
            np.testing.assert_allclose(only_moments(found[f"w{i}"]), x.T @ x / 10, rtol=1e-3, atol=1e-6)
            x = x @ arrays[f"w{i}"]


class TestImportance:
    def test_it_is_the_mean_squared_derivative_for_one_input(self) -> None:
        x = np.full((4, 30), 2.0, np.float32)
        found = calibrate(dense(normal(30, 20), normal(20)), [x] * 8).tensors
        assert found["b"].importance == pytest.approx(1, rel=0.3)
        assert found["w"].importance == pytest.approx(4, rel=0.3)

    def test_of_logits_it_is_fisher_s_information(self) -> None:
        w, chances = np.zeros((2, 20), np.float32), np.linspace(1, 2, 20) / 30
        b = np.log(chances).astype(np.float32)

        found = calibrate(dense(w, b), [np.ones((1, 2), np.float32)] * 40, loss="logits").tensors

        assert found["b"].importance == pytest.approx((chances * (1 - chances)).mean(), rel=0.3)

    def test_each_of_several_outputs_counts_alike(self) -> None:
        nodes = [h.make_node("MatMul", ["x", "a"], ["y"]), h.make_node("MatMul", ["x", "b"], ["z"])]
        model = model_of(nodes, {"a": normal(30, 20), "b": 100 * normal(30, 20, seed=1)})
        model.graph.output.append(h.make_tensor_value_info("z", T.FLOAT, None))

        found = calibrate(model, [normal(10, 30, seed=i) for i in range(8)]).tensors

        assert found["a"].importance == pytest.approx(1e4 * found["b"].importance, rel=0.3)

    def test_the_same_seed_gives_the_same(self) -> None:
        model, x = dense(normal(30, 20), normal(20)), normal(4, 30)
        first, again, other = (calibrate(model, [x], seed=seed).tensors["w"].importance for seed in (1, 1, 2))
        assert first == again != other

    @pytest.mark.parametrize("array", [np.zeros((5, 5)), np.full((5, 5), np.nan), np.full((5, 5), np.inf)])
    def test_of_odd_tensors_nothing_is_known(self, array: Any) -> None:
        found = calibrate(dense(array.astype(np.float32), normal(5)), [normal(4, 5)]).tensors
        assert found["w"].importance == 0


class TestCalibrate:
    @pytest.mark.parametrize("constants", [False, True])
    def test_errors_of_outputs_are_some_times_smaller_at_the_same_bytes(self, tmp_path: Path, constants: bool) -> None:
        model = dense(normal(128, 128), normal(128), constants=constants)
        onnx.save(model, tmp_path / "a.onnx")
        calibrate(tmp_path / "a.onnx", [correlated(100, 128, seed) for seed in range(5)]).save(tmp_path / "c.npz")
        x, errors = correlated(50, 128, 9), []
        for calibration in (None, Calibration.load(tmp_path / "c.npz")):
            convert(tmp_path / "a.onnx", tmp_path / "a.vqm", preset="small", ratio=10, calibration=calibration,
                    overwrite=True)  # fmt: skip
            extract(tmp_path / "a.vqm", tmp_path / "b.onnx", overwrite=True)
            errors.append(np.square(run(onnx.load(tmp_path / "b.onnx"), x) - run(model, x)).mean())
        assert errors[0] > 4 * errors[1]

    def test_weights_may_lie_in_a_file_beside_the_model(self, tmp_path: Path) -> None:
        model = dense(normal(64, 64), normal(64))
        inside = calibrate(model, [normal(4, 64)]).tensors["w"]
        onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)

        found = calibrate(tmp_path / "a.onnx", [normal(4, 64)]).tensors

        assert found["w"].importance == inside.importance

    def test_half_precision(self) -> None:
        nodes = [h.make_node("MatMul", ["x", "w"], ["z"]), h.make_node("Cast", ["z"], ["y"], to=T.FLOAT)]
        model = model_of(nodes, {"w": normal(20, 20).astype(np.float16)}, dtype=T.FLOAT16)
        x = normal(50, 20).astype(np.float16)

        found = calibrate(model, [x]).tensors["w"]

        np.testing.assert_allclose(only_moments(found), x.T.astype(np.float32) @ x / 50, rtol=0.01, atol=0.01)
        assert math.isfinite(found.importance) and found.importance > 0

    def test_inputs_go_by_name(self) -> None:
        model = model_of([h.make_node("Add", ["a", "b"], ["s"]), h.make_node("MatMul", ["s", "w"], ["y"])],
                         {"w": normal(9, 9)}, inputs="ab")  # fmt: skip
        assert calibrate(model, [{"a": normal(2, 9), "b": normal(2, 9)}]).tensors["w"].n_observed == 2
        for batch, words in ((normal(2, 9), "a batch is a mapping"), ({"a": normal(2, 9)}, "the graph takes 'a', 'b'")):
            with pytest.raises(ValueError, match=words):
                calibrate(model, [batch])

    def test_no_batches_and_unknown_losses_are_refused(self) -> None:
        model = dense(normal(9, 9), normal(9))
        with pytest.raises(ValueError, match="no batches"):
            calibrate(model, [])
        with pytest.raises(ValueError, match="loss is 'logit'; 'values' or 'logits'"):
            calibrate(model, [normal(2, 9)], loss="logit")  # type: ignore[arg-type]

    def test_progress_says_how_many_batches_and_tensors_there_are(self) -> None:
        steps: list[tuple[str, int, int]] = []
        model = dense(normal(20, 20), normal(20))
        calibrate(model, [normal(2, 20)] * 2, progress=lambda *step: steps.append(step))
        assert steps == [("batch", 1, 2), ("batch", 2, 2), ("tensor", 1, 2), ("tensor", 2, 2)]
