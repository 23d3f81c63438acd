"""Formats that are told and not read, and what is no file: one message says what it is and what would help."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from vqformat import ConversionError
from vqformat.converters import open_source


def message_of(path: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and len(text) < 900
    return text


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


DARKNET = struct.pack("<iiiQ", 0, 2, 5, 32_013_312) + np.ones(30, "<f4").tobytes()
DESCRIPTION = field(1, field(1, b"input"))

FILES: list[tuple[str, bytes, str]] = [
    ("model.mlmodel", b"\x08\x06" + field(2, DESCRIPTION) + bytes(40), "Core ML model.*coremltools"),
    ("renamed.bin", b"\x08\x06" + field(2, DESCRIPTION) + bytes(40), "Core ML model.*coremltools"),
    ("model.ort", b"\x14\0\0\0ORTM" + bytes(100), r"ONNX Runtime.*that \.onnx file"),
    ("model.pte", b"\x14\0\0\0ET12" + bytes(100), "ExecuTorch.*torch.export.save"),
    ("model.weights", DARKNET, r"Darknet.*\.cfg"), ("model.caffemodel", b"\x12\x03abc", "Caffe.*numpy.savez"),
    ("renamed", field(1, b"LeNet") + b"\xa2\x06\x04abcd", "Caffe.*numpy.savez"),
    ("model.param", b"7767517\n2 2\nInput data 0 1 data\n", "ncnn"),
    ("frozen.pb", field(1, field(1, b"x") + field(2, b"Placeholder")), "frozen graph.*SavedModel"),
    ("model.params", b"\x12\x01" + bytes(40), "MXNet.*ONNX"),
    ("model.xml", b'<?xml version="1.0"?>\n<net name="a" version="11">', "OpenVINO.*ONNX"),
    ("model.joblib", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94.", "joblib.*numpy.savez"),
    ("model.joblib.z", b"\x78\x9c" + bytes(40), "zlib.*joblib.*numpy.savez"),
    ("model.bin", b"tjgg\3\0\0\0" + bytes(40), "GGML.*GGUF.*llama"),
    ("model.engine", b"ftrt" + bytes(40), "TensorRT.*made from"),
    ("model.rknn", b"RKNN" + bytes(40), "RKNN.*made from"),
    ("model.mat", b"MATLAB 5.0 MAT-file" + bytes(40), "MATLAB.*loadmat"),
    ("model.parquet", b"PAR1" + bytes(40), "Parquet.*numpy.savez"),
    ("model.p", b"(dp0\nVw\n", "pickle of protocol 0.*numpy.savez"),
    ("model.lz4", b"\x04\x22\x4d\x18" + bytes(40), "lz4; decompress"), ("model.rar", b"Rar!\x1a\x07\0", "RAR.*unpack"),
    ("model.pkl", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x15sklearn.linear_model\x94.", "scikit-learn.*numpy.savez"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "text"), FILES, ids=[name for name, _, _ in FILES])
def test_the_message_names_the_format_and_a_way_out(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)

    said = message_of(tmp_path / name)

    assert re.search(text, said) and len(said.replace(str(tmp_path), "")) < 300


def test_the_weights_of_ncnn(tmp_path: Path) -> None:
    (tmp_path / "a.param").write_bytes(b"7767517\n2 2\n")
    (tmp_path / "a.bin").write_bytes(bytes(100))

    assert "ncnn" in message_of(tmp_path / "a.bin")


def test_an_onnx_model_is_no_core_ml_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")
    weight = onnx.numpy_helper.from_array(np.ones((4, 5), np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    (tmp_path / "a").write_bytes(onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString())

    with open_source(tmp_path / "a") as source:
        assert source.format == "onnx"


def test_a_core_ml_package(tmp_path: Path) -> None:
    (tmp_path / "a" / "Data" / "com.apple.CoreML").mkdir(parents=True)
    (tmp_path / "a" / "Manifest.json").write_text("{}")

    assert "Core ML" in message_of(tmp_path / "a")


@pytest.mark.parametrize("sign", ["manifest.ocdbt", "_CHECKPOINT_METADATA", "default/manifest.ocdbt"])
def test_an_orbax_checkpoint(tmp_path: Path, sign: str) -> None:
    (tmp_path / "a" / sign).parent.mkdir(parents=True)
    (tmp_path / "a" / sign).write_bytes(b"{}")

    text = message_of(tmp_path / "a")

    assert "Orbax" in text and "flax.serialization.to_bytes" in text


@pytest.mark.parametrize("place", [".", "global_step5"])
def test_a_checkpoint_of_deepspeed(tmp_path: Path, place: str) -> None:
    (tmp_path / "a" / place).mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (tmp_path / "a" / place / name).write_bytes(b"x")

    assert "zero_to_fp32.py" in message_of(tmp_path / "a")


def test_pickled_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"w": 1}], object))

    text = message_of(tmp_path / "a.npy")

    assert "pickled Python objects, which are never loaded" in text and "numpy.savez" in text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.msgpack"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)

    assert "give '-' as the file" in message_of(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "model.safetensors.index.json",
                                  "model.json", ".metadata", "saved_model.pb", "a.index", "model.weights.h5"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_folder_with_a_file_that_never_ends(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")

    with pytest.raises(ConversionError):
        open_source(folder)


def test_an_index_with_a_byte_order_mark(tmp_path: Path) -> None:
    index = b'\xef\xbb\xbf{"metadata": {}, "weight_map": {"w": "a.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_bytes(index)

    with pytest.raises(ConversionError, match=r"'a\.safetensors'"):
        open_source(tmp_path / "model.safetensors.index.json")
