"""vqformat.keras: live Keras 3 models to .vqm and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat.converters import convert, extract
from vqformat.errors import ConversionError, EncodeError

os.environ.setdefault("KERAS_BACKEND", "torch")

pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'vqformat[test]'")
from vqformat.keras import load_weights, save_model  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
              pytest.mark.usefixtures("forked_libhdf5")]  # fmt: skip
L = keras.layers


def new_model() -> Any:
    image = keras.Input((12, 12, 1))
    x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="block1_conv1")(image))
    layers = [keras.Input((400,)), L.Dropout(0.1), L.Dense(32, "relu", name="hid"), L.Dense(3)]
    head = keras.Sequential(layers, name="head")
    return keras.Model(image, head(L.Flatten()(x)))


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    model = new_model()
    model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError())
    rng = np.random.default_rng(0)
    model.fit(rng.standard_normal((8, 12, 12, 1)), rng.standard_normal((8, 3)), verbose=0)
    return model


def weights_equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_names_are_those_of_the_variables(model: Any, tmp_path: Path) -> None:
    report = save_model(model, tmp_path / "m.vqm", lossless=True)

    paths = {variable.path: variable.numpy() for variable in model.weights}
    arrays = vqformat.load_file(tmp_path / "m.vqm")
    weights = {name: array for name, array in arrays.items() if "seed_generator" not in name}
    assert weights.keys() == paths.keys() >= {"block1_conv1/kernel", "norm/moving_variance", "head/hid/bias"}
    assert all(np.array_equal(array, paths[name]) for name, array in weights.items())
    assert any("--include-optimizer" in note for note in report.notes)


def test_weights_come_back_into_a_new_model(model: Any, tmp_path: Path) -> None:
    other = new_model()
    assert not weights_equal(model, other)
    save_model(model, tmp_path / "m.vqm", lossless=True)

    load_weights(other, tmp_path / "m.vqm")

    assert weights_equal(model, other)


def test_what_is_coded_comes_back_close(model: Any, tmp_path: Path) -> None:
    other = new_model()
    report = save_model(model, tmp_path / "m.vqm", {"trained on": "noise"}, bits=12)
    load_weights(other, tmp_path / "m.vqm")

    image = np.random.default_rng(1).standard_normal((4, 12, 12, 1))
    assert report.ratio > 1.5
    assert not weights_equal(model, other)
    assert np.allclose(model.predict(image, verbose=0), other.predict(image, verbose=0), atol=0.05)
    with vqformat.safe_open(tmp_path / "m.vqm") as file:
        assert file.metadata()["trained on"] == "noise"


def test_the_optimizer_is_kept_on_request(model: Any, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.vqm", include_optimizer=True)
    extract(tmp_path / "m.vqm", tmp_path / "m.keras")

    found = keras.saving.load_model(tmp_path / "m.keras").optimizer
    assert [type(found), len(found.variables)] == [type(model.optimizer), len(model.optimizer.variables)]
    for a, b in zip(found.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_weights_of_any_keras_file_load(model: Any, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"m{suffix}"
    (model.save_weights if suffix == ".weights.h5" else model.save)(source)
    convert(source, tmp_path / "m.vqm", lossless=True)
    other = new_model()

    load_weights(other, tmp_path / "m.vqm")

    assert weights_equal(model, other)


def test_the_same_model_makes_the_same_bytes(model: Any, tmp_path: Path) -> None:
    for name in ("a.vqm", "b.vqm"):
        save_model(model, tmp_path / name)
    assert (tmp_path / "a.vqm").read_bytes() == (tmp_path / "b.vqm").read_bytes()


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_model_or_framework_are_refused(model: Any, tmp_path: Path) -> None:
    vqformat.save_file({"w": np.ones(3, "f4")}, tmp_path / "other.vqm")
    with pytest.raises(ConversionError, match="did not come from Keras"):
        load_weights(model, tmp_path / "other.vqm")

    save_model(keras.Sequential([keras.Input((4,)), L.Dense(2)]), tmp_path / "small.vqm")
    with pytest.raises(ValueError, match=r"weights|layers|variables|objects"):
        load_weights(new_model(), tmp_path / "small.vqm")


def test_nothing_is_lost_when_it_fails(model: Any, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.vqm")
    before = (tmp_path / "m.vqm").read_bytes()

    with pytest.raises(FileExistsError):
        save_model(model, tmp_path / "m.vqm", overwrite=False)
    with pytest.raises(EncodeError):
        save_model(model, tmp_path / "m.vqm", bits=1e-6)

    assert (tmp_path / "m.vqm").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.vqm"]


def test_without_keras_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['keras'] = None; import vqformat.keras"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install keras" in done.stderr
