"""Models of Keras of every kind, and the files that Keras makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")

pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'vqformat[test]'")
L = keras.layers

KINDS = ["keras", "folder", "weights", "shards", "h5"]
FORMATS = {"keras": "keras", "folder": "keras", "weights": "keras-weights", "shards": "keras-weights",
           "h5": "keras-legacy"}  # fmt: skip
SUFFIXES = {"keras": ".keras", "weights": ".weights.h5", "h5": ".h5"}  # by which a kind comes back as it was


def state_of(model: Any) -> dict[str, Any]:
    """A model's variables by their paths, without the model's own name; the state of random generators is not saved."""
    state = {}
    for variable in model.variables:
        first, _, rest = variable.path.partition("/")
        if "seed_generator" not in variable.path:
            state[rest if first == model.name else variable.path] = keras.ops.convert_to_numpy(variable)
    return state


@keras.saving.register_keras_serializable("vqformat_test")
class Affine(L.Layer):
    """A layer that no table knows."""

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight(shape=(input_shape[-1],), initializer="uniform", name="factor")
        self.shift = self.add_weight(shape=(input_shape[-1],), initializer="uniform", name="shift")

    def call(self, x: Any) -> Any:
        return x * self.factor + self.shift


@keras.saving.register_keras_serializable("vqformat_test")
class Subclassed(keras.Model):
    """A model with a list of layers and a layer of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = [L.Dense(4, name=f"block{k}") for k in range(3)]
        self.affine = Affine(name="affine")

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.affine(x)


def cnn() -> Any:
    head = keras.Sequential([keras.Input((8,)), L.Dense(6, name="hid"), L.Dense(3, name="out")], name="head")
    x = inputs = keras.Input((6, 6, 2))
    for layer in (L.Conv2D(4, 3), L.BatchNormalization(), L.Dropout(0.1), L.Flatten(), L.Dense(8), head):
        x = layer(x)
    model = keras.Model(inputs, x, name="cnn")
    model.compile("adam", keras.losses.MeanSquaredError())  # Keras 3 cannot load "mse" from its own .h5
    model.train_on_batch(np.linspace(-1, 1, 144, dtype="f4").reshape(2, 6, 6, 2), np.ones((2, 3), "f4"))
    return model


def recurrent() -> Any:
    inputs = keras.Input((5,), dtype="int32")
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(L.Embedding(11, 4)(inputs))
    return keras.Model(inputs, L.GRU(4)(x))


def attention() -> Any:
    inputs = keras.Input((5, 8))
    return keras.Model(inputs, L.Dense(3)(L.LayerNormalization()(L.MultiHeadAttention(2, 4)(inputs, inputs))))


def separable() -> Any:
    x = inputs = keras.Input((6, 6, 4))
    for layer in (L.SeparableConv2D(4, 3), L.GroupNormalization(2), L.DepthwiseConv2D(2), L.PReLU()):
        x = layer(x)
    return keras.Model(inputs, x)


def subclassed() -> Any:
    model = Subclassed(name="net")
    model(np.ones((1, 3), "f4"))
    return model


def shared() -> Any:
    twice, inputs = L.Dense(4, name="twice"), keras.Input((4,))
    return keras.Model(inputs, twice(twice(inputs)))


def half() -> Any:
    return keras.Sequential([keras.Input((4,)), L.Dense(3, dtype="bfloat16"), L.Dense(2)], name="half")


def many() -> Any:
    return keras.Sequential([keras.Input((3,)), *(L.Dense(3, use_bias=k % 2 == 0) for k in range(12))], name="many")


def spaces() -> Any:  # the torch backend has no dots in names
    return keras.Sequential([keras.Input((4,)), L.Dense(3, name="fc in"), L.Dense(2, name="Größe 2")], name="spaces")


def standardized() -> Any:
    layers = [L.Normalization(mean=[1.0, 2.0], variance=[3.0, 4.0]), L.Conv1D(3, 2), L.Conv2DTranspose(2, 2),
              L.Conv3D(2, 2), L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"), L.SimpleRNN(3),
              L.BatchNormalization(scale=False, center=False), L.RMSNormalization(), L.UnitNormalization()]  # fmt: skip
    inputs = keras.Input((6, 2))
    x = layers[1](layers[0](inputs))
    x = layers[3](L.Reshape((6, 4, 2, 1))(layers[2](L.Reshape((5, 3, 1))(x))))
    x = layers[5](layers[4](L.Reshape((10, 3))(x)))
    return keras.Model(inputs, layers[8](layers[7](layers[6](x))))


BUILDERS: dict[str, Callable[[], Any]] = {
    "cnn": cnn, "recurrent": recurrent, "attention": attention, "separable": separable, "subclassed": subclassed,
    "shared": shared, "half": half, "many": many, "spaces": spaces, "standardized": standardized,
}  # fmt: skip
NAMES_OF_OWN = {"subclassed": [f"blocks/block{k}/{part}" for k in range(3) for part in ("kernel", "bias")]
                + ["affine/0", "affine/1"]}  # fmt: skip


@dataclass
class Zoo:
    """Each model once, with its files."""

    folder: Path
    models: dict[str, Any] = field(default_factory=dict)
    blanks: dict[str, Any] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)

    def build(self, name: str, seed: int) -> Any:
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        model = BUILDERS[name]()
        for variable in model.trainable_variables:  # biases are zero when new
            noise = np.random.default_rng(seed).normal(0, 0.1, variable.shape)
            variable.assign_add(keras.ops.cast(noise, variable.dtype))
        return model

    def model(self, name: str) -> Any:
        if name not in self.models:
            self.models[name] = self.build(name, seed=1)
        return self.models[name]

    def blank(self, name: str) -> Any:
        """A model of the same layers, whose variables are zero."""
        if name not in self.blanks:
            self.blanks[name] = self.build(name, seed=9)
        for variable in self.blanks[name].variables:
            if "seed_generator" not in variable.path:
                variable.assign(np.zeros(variable.shape))
        return self.blanks[name]

    def file(self, name: str, kind: str) -> Path:
        if (name, kind) not in self.files:
            self.files[name, kind] = self._save(self.model(name), self.folder / name, kind)
        return self.files[name, kind]

    def _save(self, model: Any, base: Path, kind: str) -> Path:
        base.mkdir(exist_ok=True)
        if kind == "keras":
            path = base / "model.keras"
            model.save(path)
        elif kind == "folder":
            path = base / "folder"
            keras.saving.save_model(model, path, zipped=False)
        elif kind == "h5":
            path = base / "model.h5"
            model.save(path)
        elif kind == "weights":
            path = base / "model.weights.h5"
            model.save_weights(path)
        else:
            path = base / "shards" / "model.weights.json"
            path.parent.mkdir()
            sizes = [array.nbytes for array in state_of(model).values()]
            model.save_weights(path, max_shard_size=max(max(sizes) + 64, sum(sizes) * 0.6) / 2**30)
        return path

    def inputs(self, name: str) -> Any:
        shape = (2, 3) if name == "subclassed" else (2, *self.model(name).input_shape[1:])
        random = np.random.default_rng(5)
        return random.integers(0, 11, shape) if name == "recurrent" else random.normal(size=shape).astype("f4")

    def outputs(self, name: str, model: Any) -> Any:
        return keras.ops.convert_to_numpy(model(self.inputs(name), training=False))


def expected_names(name: str, kind: str, model: Any) -> list[str]:
    if kind != "h5" and name in NAMES_OF_OWN:
        return NAMES_OF_OWN[name]
    return list(state_of(model))
