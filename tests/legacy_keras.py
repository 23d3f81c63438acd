"""Legacy Keras files (``.h5``), laid out as Keras 0.3, 1, 2 and tf.keras 2 wrote them; made with h5py alone.

Each builder names the code of that time that it follows. Values count up, so that no two tensors are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Weights = Sequence[tuple[str, npt.NDArray[Any]]]

HDF5_OBJECT_HEADER_LIMIT = 64512  # bytes of an attribute (Keras 2.2, keras/engine/saving.py)


class Values:
    """Arrays whose elements count on from one to the next."""

    def __init__(self) -> None:
        self.next = 1

    def __call__(self, *shape: int, dtype: str = "<f4") -> npt.NDArray[Any]:
        size = int(np.prod(shape, dtype=np.int64))
        array = np.arange(self.next, self.next + size).reshape(shape).astype(dtype) / np.dtype(dtype).type(8)
        self.next += size
        return array.astype(dtype)


def save_names(group: h5py.Group, name: str, data: Sequence[str]) -> None:
    """A list of names as one attribute, or several where it is too large.

    Keras 2.2 and tf.keras 2, ``save_attributes_to_hdf5_group``. Keras 1 to 2.1 had the first branch only. An empty
    list becomes an attribute of no float64, as NumPy makes of ``[]``.
    """
    whole = np.asarray([text.encode() for text in data])
    n_parts = 1
    parts = [whole]
    while any(part.nbytes > HDF5_OBJECT_HEADER_LIMIT for part in parts):
        n_parts += 1
        parts = np.array_split(whole, n_parts)
    for number, part in enumerate(parts):
        group.attrs[f"{name}{number}" if n_parts > 1 else name] = part


def save_layers(group: h5py.Group, layers: Mapping[str, Weights], *, version: str, backend: str = "tensorflow") -> None:
    """Layers with their weights (``save_weights_to_hdf5_group``, the same from Keras 1 on but for two attributes)."""
    save_names(group, "layer_names", list(layers))
    if version:
        group.attrs["backend"] = backend.encode()
        group.attrs["keras_version"] = version.encode()
    for layer, weights in layers.items():
        save_weights(group.create_group(layer), weights)


def save_weights(group: h5py.Group, weights: Weights) -> None:
    save_names(group, "weight_names", [name for name, _ in weights])
    for name, array in weights:
        group.create_dataset(name, data=array)


def keras_0(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Weights of Keras 0.3 (keras/models.py, ``Sequential.save_weights``): numbered layers, no names at all."""
    values = Values()
    layers = [[values(4, 3), values(4)], [], [values(4, 2)]]
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = len(layers)
        for k, weights in enumerate(layers):
            group = file.create_group(f"layer_{k}")
            group.attrs["nb_params"] = len(weights)
            for n, array in enumerate(weights):
                group.create_dataset(f"param_{n}", data=array)
    return {f"layer_{k}/param_{n}": array for k, weights in enumerate(layers) for n, array in enumerate(weights)}


def keras_1(path: Path, *, is_whole: bool, n_convolutions: int = 11) -> dict[str, npt.NDArray[Any]]:
    """A file of Keras 1.2 (keras/engine/topology.py, ``save_weights_to_hdf5_group``, keras/models.py ``save_model``).

    Names of weights have the layer's name and ``_W``, no scopes. There was no attribute ``backend``, nor
    ``keras_version`` with the weights.

    Returns:
        Tensors by the names that the user sees, in order.
    """
    values = Values()
    layers: dict[str, Weights] = {"input_1": []}
    expected: dict[str, npt.NDArray[Any]] = {}
    for k in range(1, n_convolutions + 1):
        name = f"convolution2d_{k}"
        weights = {"W": values(2, 2, 1, 2), "b": values(2)}
        layers[name] = [(f"{name}_{key}", array) for key, array in weights.items()]
        layers[f"activation_{k}"] = []
        expected |= {f"{name}/{key}": array for key, array in weights.items()}
    name = "batchnormalization_1"
    weights = {key: values(2) for key in ("gamma", "beta", "running_mean", "running_std")}
    layers[name] = [(f"{name}_{key}", array) for key, array in weights.items()]
    expected |= {f"{name}/{key}": array for key, array in weights.items()}
    with h5py.File(path, "w") as file:
        if is_whole:
            file.attrs["keras_version"] = b"1.2.2"
            file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"name": "model_1"}}).encode()
            file.attrs["training_config"] = json.dumps({"loss": "mse", "metrics": []}).encode()
        save_layers(file.create_group("model_weights") if is_whole else file, layers, version="")
        if is_whole:  # SGD of Keras 1: iterations and momenta, all variables without a name of their own
            state = [("Variable_1:0", values()), ("Variable_2:0", values(2, 2, 1, 2))]
            save_weights(file.create_group("optimizer_weights"), state)
    return expected


def keras_2(path: Path, *, is_whole: bool, version: str = "2.0.5") -> dict[str, npt.NDArray[Any]]:
    """A file of Keras 2.0 (keras/engine/topology.py, keras/models.py): scopes that TensorFlow counted up, Adam's state.

    Returns:
        Tensors by the names that the user sees, in order; those of the optimizer last.
    """
    values = Values()
    conv, dense = {"kernel": values(3, 3, 1, 2), "bias": values(2)}, {"kernel": values(8, 3), "bias": values(3)}
    norm = {key: values(2) for key in ("gamma", "beta", "moving_mean", "moving_variance")}
    separable = {"depthwise_kernel": values(2, 2, 2, 1), "pointwise_kernel": values(1, 1, 2, 2)}
    layers: dict[str, Weights] = {
        "input_1": [],
        "conv2d_1": [(f"conv2d_1/{key}:0", array) for key, array in conv.items()],
        "batch_normalization_1": [(f"batch_normalization_1_1/{key}:0", array) for key, array in norm.items()],
        "activation_1": [],
        "separable_conv2d_1": [(f"separable_conv2d_1/{key}:0", array) for key, array in separable.items()],
        "dense_1": [(f"dense_1_3/{key}:0", array) for key, array in dense.items()],
    }
    state = [("iterations:0", np.float32(7)), *((f"Variable_{104 + k}:0", values(k + 1)) for k in range(3))]
    with h5py.File(path, "w") as file:
        if is_whole:
            file.attrs["keras_version"] = version.encode()
            file.attrs["backend"] = b"tensorflow"
            file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"name": "model_1"}}).encode()
            file.attrs["training_config"] = json.dumps({"optimizer_config": {"class_name": "Adam"}}).encode()
        save_layers(file.create_group("model_weights") if is_whole else file, layers, version=version)
        if is_whole:
            save_weights(file.create_group("optimizer_weights"), [(name, np.asarray(array)) for name, array in state])
    parts = {"conv2d_1": conv, "batch_normalization_1": norm, "separable_conv2d_1": separable, "dense_1": dense}
    expected = {f"{layer}/{key}": array for layer, part in parts.items() for key, array in part.items()}
    if is_whole:
        expected |= {f"optimizer/{name.removesuffix(':0')}": np.asarray(array) for name, array in state}
    return expected


def tf_keras_2(path: Path, *, is_whole: bool, float_dtype: str = "<f4") -> dict[str, npt.NDArray[Any]]:
    """A file of tf.keras 2.11 (keras/saving/legacy/hdf5_format.py) that Keras 3 loads too: a model in a model, Adam.

    Sequential of InputLayer(4), Dense(5) ``dense``, Dropout, Sequential ``head`` of Dense(3) ``hid`` and Dense(2).

    Args:
        float_dtype: Of the weights; ``>f4`` is what a big-endian machine wrote.

    Returns:
        Tensors by the names that the user sees, in order; those of the optimizer last.
    """
    values = Values()
    shapes = {"dense/kernel": (4, 5), "dense/bias": (5,), "hid/kernel": (5, 3), "hid/bias": (3,),
              "dense_1/kernel": (3, 2), "dense_1/bias": (2,)}  # fmt: skip
    arrays = {name: values(*shape, dtype=float_dtype) for name, shape in shapes.items()}
    weights = [(f"{name}:0", array) for name, array in arrays.items()]
    layers: dict[str, Weights] = {"dense": weights[:2], "dropout": [], "head": weights[2:]}
    moments = [(f"Adam/{name}/{moment}:0", values(*shape, dtype=float_dtype))
               for moment in "mv" for name, shape in shapes.items()]  # fmt: skip
    state = [("Adam/iter:0", np.asarray(3, "<i8")), *moments]
    with h5py.File(path, "w") as file:
        if is_whole:
            file.attrs["keras_version"] = b"2.11.0"
            file.attrs["backend"] = b"tensorflow"
            file.attrs["model_config"] = json.dumps(_tf_keras_config()).encode()
            adam = {"name": "Adam", "learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07}
            file.attrs["training_config"] = json.dumps({
                "loss": "mean_squared_error", "metrics": None, "weighted_metrics": None, "loss_weights": None,
                "optimizer_config": {"class_name": "Adam", "config": adam}}).encode()  # fmt: skip
        group = file.create_group("model_weights") if is_whole else file
        save_layers(group, layers, version="2.11.0")
        save_weights(group.create_group("top_level_model_weights"), [])
        if is_whole:
            save_weights(file.create_group("optimizer_weights"), state)
    expected = {name if name in ("dense/kernel", "dense/bias") else f"head/{name}": array
                for name, array in arrays.items()}  # fmt: skip
    if is_whole:
        expected |= {f"optimizer/{name.removesuffix(':0')}": array for name, array in state}
    return expected


def _tf_keras_config() -> dict[str, Any]:
    def dense(name: str, units: int) -> dict[str, Any]:
        return {"class_name": "Dense", "config": {
            "name": name, "trainable": True, "dtype": "float32", "units": units, "activation": "linear",
            "use_bias": True, "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
            "bias_initializer": {"class_name": "Zeros", "config": {}}, "kernel_regularizer": None,
            "bias_regularizer": None, "activity_regularizer": None, "kernel_constraint": None,
            "bias_constraint": None}}  # fmt: skip

    def sequential(name: str, inputs: int, layers: list[dict[str, Any]]) -> dict[str, Any]:
        first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, inputs], "dtype": "float32",
                                                        "sparse": False, "name": f"{name}_input"}}  # fmt: skip
        return {"class_name": "Sequential", "config": {"name": name, "layers": [first, *layers]}}

    dropout = {"class_name": "Dropout", "config": {"name": "dropout", "trainable": True, "dtype": "float32",
                                                   "rate": 0.5, "noise_shape": None, "seed": None}}  # fmt: skip
    head = sequential("head", 5, [dense("hid", 3), dense("dense_1", 2)])
    return sequential("sequential", 4, [dense("dense", 5), dropout, head])


def many_layers(path: Path, n_layers: int = 320) -> dict[str, npt.NDArray[Any]]:
    """Weights of Keras 2.2 and on with more names of layers, and of weights in one, than an attribute can have."""
    values = Values()
    layers: dict[str, Weights] = {}
    for k in range(n_layers):
        name = f"{'a_long_name_as_layers_in_big_networks_have_' * 5}{k}"
        layers[name] = [(f"{name}/kernel:0", values(1, 2))] if k % 50 == 0 else []
    layers["mixed"] = [(f"{'cell_' * 40}{k}/bias:0", values(1)) for k in range(n_layers)]
    with h5py.File(path, "w") as file:
        save_layers(file, layers, version="2.2.4")
        assert "layer_names" not in file.attrs and "layer_names1" in file.attrs
        assert "weight_names1" in file["mixed"].attrs
    expected = {}
    for layer, weights in layers.items():
        for name, array in weights:
            plain = name.removesuffix(":0")
            expected[plain if plain.startswith(layer + "/") else f"{layer}/{plain}"] = array
    return expected


def clashing(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Two weights whose names would be ``dense/kernel``: each has the path of its dataset for a name."""
    values = Values()
    layers: dict[str, Weights] = {"dense": [("dense/kernel:0", values(2, 2)), ("dense_1/kernel:0", values(2, 3)),
                                            ("dense/bias:0", values(2))]}  # fmt: skip
    with h5py.File(path, "w") as file:
        save_layers(file, layers, version="2.3.1")
    arrays = dict(layers["dense"])
    return {"dense/dense/kernel:0": arrays["dense/kernel:0"], "dense/dense_1/kernel:0": arrays["dense_1/kernel:0"],
            "dense/bias": arrays["dense/bias:0"]}  # fmt: skip


def odd_scopes(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Names that tf.keras and Theano let pass: slashes in a layer's name, scopes of a wrapped layer, no scopes."""
    values = Values()
    names = {
        "block_1/conv": {"block_1/conv/kernel:0": "block_1/conv/kernel"},
        "time_distributed_1": {"dense_1/kernel:0": "time_distributed_1/dense_1/kernel",
                               "dense_1/bias:0": "time_distributed_1/dense_1/bias"},
        "bidirectional_1": {"bidirectional_1/forward_lstm_1/bias:0": "bidirectional_1/forward_lstm_1/bias"},
        "bert": {"tf_bert_model/bert/encoder/layer_._0/weight:0": "bert/encoder/layer_._0/weight"},
        "lstm_1": {"lstm_1_W_i": "lstm_1/W_i", "lstm_1_b_i": "lstm_1/b_i"},
        "theano": {"param_0": "theano/param_0", "param_1": "theano/param_1"},
        "größe": {"größe/scale:0": "größe/scale"},
    }  # fmt: skip
    arrays = {weight: values(2, k + 1) for weights in names.values() for k, weight in enumerate(weights)}
    with h5py.File(path, "w") as file:
        layers = {layer: [(weight, arrays[weight]) for weight in weights] for layer, weights in names.items()}
        save_layers(file, layers, version="2.2.4", backend="theano")
    return {name: arrays[weight] for weights in names.values() for weight, name in weights.items()}
