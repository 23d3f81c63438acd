"""Small ONNX models, and what is compared of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from vqformat.converters import convert, extract, open_source

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")
reference = pytest.importorskip("onnx.reference", reason="onnx without its reference evaluator")
pytest.importorskip("vqformat.converters.onnx")  # now, since the tests measure memory
h, nh, T = onnx.helper, onnx.numpy_helper, onnx.TensorProto

OUTSIDE = T.EXTERNAL
RNG = np.random.default_rng(7)
W = RNG.standard_normal((64, 48)).astype(np.float32)
B = RNG.standard_normal(48).astype(np.float32)


def model_of(initializers: list[Any], nodes: list[Any] | None = None, **more: Any) -> Any:
    """A model with these initializers, of which its graph makes no use."""
    x = h.make_tensor_value_info("x", T.FLOAT, ["n", 64])
    y = h.make_tensor_value_info("y", T.FLOAT, ["n", "m"])
    graph = h.make_graph(nodes or [h.make_node("Identity", ["x"], ["y"])], "g", [x], [y], initializers, **more)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def dense() -> Any:
    """x @ w + b."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["xw"]), h.make_node("Add", ["xw", "b"], ["y"])]
    return model_of([nh.from_array(W, "w"), nh.from_array(B, "b")], nodes)


def save(path: Path, model: Any) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def there_and_back(folder: Path, model: Any, **options: Any) -> tuple[Any, list[str]]:
    """The model out of a .vqm, and what was noted on the way in."""
    report = convert(save(folder / "a.onnx", model), folder / "a.vqm", overwrite=True, **options)
    extract(folder / "a.vqm", folder / "b.onnx", overwrite=True)
    return onnx.load(folder / "b.onnx"), report.notes


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def run(model: Any) -> Any:
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    return reference.ReferenceEvaluator(model).run(None, {"x": x})[0]


def every_dtype() -> dict[int, Any]:
    """Of each ONNX dtype, five elements: an odd number for those of 4 bits."""
    reals = [0.5, -1.5, 0, 6, 1]
    arrays = {T.INT4: np.array([-8, 7, -1, 0, 3], ml_dtypes.int4), T.UINT4: np.array([15, 0, 8, 7, 1], ml_dtypes.uint4),
              T.BOOL: np.array([True, False, True, True, False]), T.COMPLEX64: np.array([1 + 2j, -3j, 0, 5, 1], "c8"),
              T.COMPLEX128: np.array([1 + 2j, -3j, 0, 5, 1], "c16")}  # fmt: skip
    for kind in (T.FLOAT, T.DOUBLE, T.FLOAT16, T.BFLOAT16, T.FLOAT8E4M3FN, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2,
                 T.FLOAT8E5M2FNUZ, T.FLOAT4E2M1):  # fmt: skip
        arrays[kind] = np.array(reals).astype(h.tensor_dtype_to_np_dtype(kind))
    arrays[T.FLOAT8E8M0] = np.array([0, 127, 128, 254, 255], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    for kind in (T.INT8, T.INT16, T.INT32, T.INT64, T.UINT8, T.UINT16, T.UINT32, T.UINT64):
        limits = np.iinfo(h.tensor_dtype_to_np_dtype(kind))
        arrays[kind] = np.array([limits.min, limits.max, 0, 1, 100], limits.dtype)
    return arrays


def typed(kind: int, array: Any) -> Any:
    """The tensor with its values in the field of its dtype instead of raw_data."""
    tensor = T(name="t", data_type=kind, dims=array.shape)
    if array.dtype.kind == "c":
        array = array.view(array.real.dtype)
    field = h.tensor_dtype_to_field(kind)
    if kind in (T.INT4, T.UINT4, T.FLOAT4E2M1):
        array = np.frombuffer(nh.from_array(array).raw_data, np.uint8)
    elif field == "int32_data" and array.dtype.kind not in "iub":
        array = array.view(f"u{array.dtype.itemsize}")
    getattr(tensor, field).extend((array * 1).tolist() if kind == T.BOOL else array.tolist())
    return tensor


def outside(**entries: str) -> Any:
    """A float32 initializer of 12 bytes whose data lies in another file."""
    tensor = T(name="t", data_type=T.FLOAT, dims=[3], data_location=OUTSIDE)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def w_of(**fields: Any) -> Any:
    return model_of([T(**{"name": "w", "data_type": T.FLOAT, "dims": [2], **fields})])
