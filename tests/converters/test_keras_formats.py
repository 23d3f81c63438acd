"""Keras files to other formats, and what makes no Keras file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hdf5_trees import arrays_of, assert_same
from keras_zoo import Zoo, state_of

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")

pytestmark = [
    pytest.mark.usefixtures("forked_libhdf5"),
    # Keras says that the state of an optimizer is not there
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
    pytest.mark.filterwarnings("ignore:A total of .* objects could not be loaded"),
]


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
