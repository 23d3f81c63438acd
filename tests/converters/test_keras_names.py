"""Names, order and dtypes of the tensors of Keras files, and of what an optimizer knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hdf5_trees import WEIGHTS, arrays_of, error_of, same_bits, tree_at
from keras_zoo import KINDS, SUFFIXES, Zoo, keras

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError
from vqformat.read.sequential import SequentialReader

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")
L = keras.layers

pytestmark = [
    pytest.mark.usefixtures("forked_libhdf5"),
    # Keras says that the state of an optimizer is not there
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
    pytest.mark.filterwarnings("ignore:A total of .* objects could not be loaded"),
]


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
