"""TensorFlow.js models to .vqm: their JSON and shards, quantized weights, and refusals."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat import ConversionError
from vqformat.converters import convert, extract, open_source

F4 = np.array([1.5, -2, 3], "<f4").tobytes()


def weight(name: str = "w", shape: Any = (3,), dtype: Any = "float32", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape) if isinstance(shape, tuple) else shape, "dtype": dtype, **more}


def write(folder: Path, weights: Any, shards: dict[str, bytes], *, paths: Any = None, **more: Any) -> Path:
    """A layers model of one group of weights."""
    for name, data in shards.items():
        (folder / name).write_bytes(data)
    manifest = [{"paths": list(shards) if paths is None else paths, "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"format": "layers-model", "weightsManifest": manifest, **more}))
    return folder / "model.json"


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


class TestReading:
    @pytest.mark.parametrize("part", ["", "model.json"])
    def test_a_model(self, tmp_path: Path, part: str) -> None:
        weights = [weight("dense/kernel", (3, 1)), weight("dense/bias", (), "int32"), weight("flag", (2,), "bool")]
        write(tmp_path, weights, {"group1-shard1of1.bin": F4 + struct.pack("<i??", -5, True, False)},
              generatedBy="keras v3", convertedBy=None, modelTopology={"a": 1},
              userDefinedMetadata={"labels": ["a"], "task": "digits", "vqm.source": "x"})  # fmt: skip

        report = convert(tmp_path / part, tmp_path / "a.vqm", lossless=True)

        assert {name: array.tolist() for name, array in vqformat.load_file(tmp_path / "a.vqm").items()} == {
            "dense/kernel": [[1.5], [-2], [3]], "dense/bias": -5, "flag": [True, False]}  # fmt: skip
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            assert file.metadata() == {"task": "digits", "format": "layers-model", "generatedBy": "keras v3",
                                       "vqm.source": {"format": "tfjs"}}  # fmt: skip
        assert report.notes[0] == "left out the model's topology: its weights alone are kept"
        assert "'vqm.source'" in report.notes[1]

    @pytest.mark.parametrize("cut", [1, 4, 7, 12])
    def test_weights_that_lie_in_several_shards(self, tmp_path: Path, cut: int) -> None:
        weights = [weight("a", (1,)), weight("b", (2,))]
        path = write(tmp_path, weights, {"a.bin": F4[:cut], "b.bin": b"", "c.bin": F4[cut:]})

        assert {name: array.tolist() for name, array in arrays_of(path).items()} == {"a": [1.5], "b": [-2, 3]}

    def test_a_manifest_of_several_groups(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(F4)
        (tmp_path / "b.bin").write_bytes(F4)
        manifest = [{"paths": ["./a.bin"], "weights": [weight("a")]}, {"paths": ["b.bin"], "weights": [weight("b")]}]
        (tmp_path / "net-weights_manifest.json").write_text(json.dumps(manifest), encoding="utf-8-sig")

        assert list(arrays_of(tmp_path / "net-weights_manifest.json")) == list(arrays_of(tmp_path)) == ["a", "b"]

    @pytest.mark.parametrize(("dtype", "quantization", "data", "expected"), [
        ("float32", {"dtype": "uint8", "scale": 0.5, "min": -1}, b"\0\2\xff", [-1, 0, 126.5]),
        ("float32", {"dtype": "uint16", "scale": 2, "min": 0.25}, b"\0\0\1\0\0\1", [0.25, 2.25, 512.25]),
        ("int32", {"dtype": "uint8", "scale": 0.5, "min": -1}, b"\0\1\3", [-1, 0, 1]),
    ])  # fmt: skip
    def test_quantized_weights_become_what_they_stand_for(self, tmp_path: Path, dtype: str, quantization: Any,
                                                          data: bytes, expected: list[float]) -> None:  # fmt: skip
        path = write(tmp_path, [weight(dtype=dtype, quantization=quantization)], {"a.bin": data})

        with open_source(path) as source:
            array = source.tensors[0].load()
            assert array.tolist() == expected and array.dtype == dtype == source.tensors[0].load().dtype
            assert "1 weights are quantized already" in source.notes[0]

    def test_float16_stays_float16(self, tmp_path: Path) -> None:
        data = np.array([1, 2, 3], "<f2").tobytes()
        path = write(tmp_path, [weight(quantization={"dtype": "float16"})], {"a.bin": data})

        array = arrays_of(path)["w"]

        assert array.dtype == np.float16 and array.tolist() == [1, 2, 3]

    def test_text_is_passed_over(self, tmp_path: Path) -> None:
        data = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0) + F4
        path = write(tmp_path, [weight("words", (2,), "string"), weight()], {"a.bin": data})

        with open_source(path) as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert source.tensors[0].load().tolist() == [1.5, -2, 3]
            assert source.notes == ["left out 'words': text"]

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_extraction(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        convert(write(tmp_path, [weight()], {"a.bin": F4}), tmp_path / "a.vqm", lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert arrays_of(tmp_path / f"b{suffix}")["w"].tolist() == [1.5, -2, 3]


UINT8 = {"dtype": "uint8", "scale": 1, "min": 0}
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ([weight(shape=(4,))], {}, "needs 16 bytes"), ([weight(shape=(2,))], {}, "take 8 bytes"), ([], {}, "take 0 bytes"),
    ([weight(shape=(1 << 50,))], {}, "needs 4503599627370496 bytes"), ([weight(shape=(1 << 60,))], {}, "shape"),
    ([weight(shape=(1 << 40, 1 << 40))], {}, "must be below"), ([weight(shape=(-3,))], {}, "shape"),
    ([weight(shape=(3.0,))], {}, "shape"), ([weight(shape=(True, 3))], {}, "shape"), ([weight(shape=3)], {}, "'w'"),
    ([weight(shape=(1,) * 40)], {}, "shape"), ([weight(dtype="float8")], {}, "float8"), ([weight(dtype=[])], {}, "'w'"),
    ([weight("")], {}, "is empty"), ([weight("a\0")], {}, "U\\+0000"),
    ([weight(shape=()), weight(shape=(2,))], {}, "the name 'w'"),
    ([3], {}, "'3'"), ([{}], {}, "has no 'name'"), ([weight(quantization=3)], {}, "'w'"),
    ([weight(quantization={})], {}, "has no 'dtype'"),
    ([weight(quantization={"dtype": "uint8"})], {}, "has no 'scale'"),
    ([weight(quantization={**UINT8, "scale": "x"})], {}, "could not convert"),
    ([weight(quantization={**UINT8, "scale": 1e400})], {}, "scale inf"),
    ([weight("t", (1 << 50,), "string")], {}, "strings do not fit"), ([weight("t", (1,), "string")], {}, "longer than"),
    ([weight()], {"paths": ["b.bin"]}, "not beside it: 'b.bin'"),
    ([weight()], {"paths": ["../a.bin"]}, "a plain file name"),
    ([weight()], {"paths": ["https://host/a.bin"]}, "a plain file name"),
    ([weight()], {"paths": [3]}, "not beside it: '3'"),
    ([weight()], {"paths": ["a.bin", "./a.bin"]}, "a shard twice"), ([weight()], {"paths": ["."]}, "a plain file name"),
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("weights", "options", "complaint"), REFUSED, ids=lambda value: str(value)[:60])
    def test_damage_is_named(self, tmp_path: Path, weights: Any, options: dict[str, Any], complaint: str) -> None:
        path = write(tmp_path, weights, {"a.bin": F4}, **options)

        tracemalloc.start()
        with pytest.raises(ConversionError, match=complaint) as caught:
            arrays_of(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20 and "TensorFlow.js" in str(caught.value) and len(str(caught.value)) < 900

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
    @pytest.mark.parametrize("kind", ["pipe", "endless"])
    def test_a_shard_that_never_ends(self, tmp_path: Path, kind: str) -> None:
        path = write(tmp_path, [weight()], {}, paths=["a.bin"])
        os.mkfifo(tmp_path / "a.bin") if kind == "pipe" else (tmp_path / "a.bin").symlink_to("/dev/zero")

        with pytest.raises(ConversionError, match="a pipe, a device or a folder"):
            arrays_of(path)

    def test_a_shard_that_becomes_shorter(self, tmp_path: Path) -> None:
        with open_source(write(tmp_path, [weight()], {"a.bin": F4})) as source:
            (tmp_path / "a.bin").write_bytes(F4[:-1])
            with pytest.raises(ConversionError, match="became shorter"):
                source.tensors[0].load()
