"""Small valid files of each format, from which converters.py makes damaged ones."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Files = dict[str, bytes]  # by name; the first is opened, the others lie beside it


def small_files(folder: Path) -> dict[str, Files]:
    """Valid files by name; formats whose package is absent are left out."""
    bases: dict[str, Files] = {}
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 30)).astype("<f4")

    stream = io.BytesIO()
    np.savez(stream, a=values, b=np.arange(9))
    files = {"a.npz": stream.getvalue()}
    stream = io.BytesIO()
    np.save(stream, values[:3])
    files["a.npy"] = stream.getvalue()
    for name, make in (("HDF5", _hdf5_files), ("safetensors", _safetensors), ("PyTorch", _pytorch), ("ONNX", _onnx),
                       ("GGUF", _gguf), ("PyTorch's others", _pytorch_others), ("TensorFlow", _tensorflow),
                       ("Flax", _flax)):  # fmt: skip
        try:
            made = make(values, folder)
        except ImportError as err:
            print(f"left out {name}: {err}")
            continue
        for key, value in made.items():
            if isinstance(value, dict):
                bases[key] = value
            else:
                files[key] = value
    bases.update((name, {name: data}) for name, data in files.items())
    for stem, source in {"keras": "model.keras", "tree": "gzip.h5", "legacy": "hard_link_twice-legacy.h5",
                         "onnx": "a.onnx", "pytorch": "checkpoint.pt"}.items():  # fmt: skip
        if source in files:
            bases[f"{stem}.vqm"] = {f"{stem}.vqm": _vqm(folder / source, files[source])}
    return dict(sorted(bases.items()))


def _vqm(path: Path, data: bytes) -> bytes:
    from vqformat.converters import convert

    path.write_bytes(data)
    stream = io.BytesIO()
    convert(path, stream, lossless=True, include_optimizer=True)
    return stream.getvalue()


def _hdf5_files(values: Any, folder: Path) -> dict[str, Any]:
    import h5py
    import hostile

    files: dict[str, Any] = {}
    for case in hostile.CASES:
        if case.name in ("hard_link_twice-legacy", "weight_names_in_parts", "newest_structures", "weights_deflated",
                         "hard_link_twice-keras", "attribute_nan-tree", "type_bool-legacy"):  # fmt: skip
            path = folder / f"{case.name}{case.suffix}"
            case.write(path, True)
            files[path.name] = path.read_bytes()
    for name, options in {"contiguous.h5": {}, "gzip.h5": {"chunks": (7, 11), "compression": "gzip"},
                          "shuffle.h5": {"chunks": (7, 11), "compression": "gzip", "shuffle": True,
                                         "fletcher32": True}}.items():  # fmt: skip
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file.create_dataset("dense/kernel", data=values, **options)  # type: ignore[arg-type]
            file["dense/bias"] = np.arange(9)
            file.attrs["note"] = "a note"
            file["dense"].attrs["names"] = np.array(["kernel", "bias"], object)
        files[name] = stream.getvalue()

    def weights(*layers: str) -> bytes:
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            for layer in layers:
                file[f"{layer}/vars/0"] = values
                file[f"{layer}/vars/1"] = values[0]
                file[f"{layer}/vars"].attrs["name"] = layer.rpartition("/")[2]
            file.create_group("layers/re_lu/vars")
        return stream.getvalue()

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"class_name": "Sequential"}')
        archive.writestr("model.weights.h5", weights("layers/dense", "layers/dense_1", "optimizer"))
    files["model.keras"] = stream.getvalue()
    shards = [f"model_{i:05}.weights.h5" for i in range(2)]
    index = {"metadata": {"total_size": 5}, "weight_map": {"/layers/dense/vars": shards, "/optimizer/vars": shards[1]}}
    files["shards.json"] = {"model.weights.json": json.dumps(index).encode(), shards[0]: weights("layers/dense"),
                            shards[1]: weights("layers/dense_1", "optimizer")}  # fmt: skip
    return files


def _safetensors(values: Any, folder: Path) -> dict[str, Any]:
    from safetensors.numpy import save

    data = save({"a": values, "b": np.arange(9)})
    index = {"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}
    sharded = {"model.safetensors.index.json": json.dumps(index).encode(), "1.safetensors": data}
    return {"a.safetensors": data, "sharded-st.json": sharded}


def _pytorch(values: Any, folder: Path) -> dict[str, Any]:
    import torch

    def save(value: Any, *, is_zip: bool = True) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, _use_new_zipfile_serialization=is_zip)
        return stream.getvalue()

    state = {"a": torch.from_numpy(values), "b": torch.arange(9), "c": torch.ones(3, 4).t()}
    state["d"] = state["a"]
    optimizer = {"state": {0: {"exp_avg": torch.ones(20, 30), "step": torch.tensor(3.0)}},
                 "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0], "note": b"x"}]}  # fmt: skip
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(layers, torch.zeros(1, 1, 8, 8)), stream)
    index = {"weight_map": {"a": "1.bin", "b": "1.bin", "z": "2.bin"}}
    return {"zip.pt": save(state), "legacy.pt": save(state, is_zip=False), "script.pt": stream.getvalue(),
            "checkpoint.pt": save({"model": state, "optimizer": optimizer, "epoch": 3, "loss": float("nan")}),
            "sharded.json": {"a.bin.index.json": json.dumps(index).encode(), "1.bin": save(state),
                             "2.bin": save({"z": torch.ones(5)}, is_zip=False)}}  # fmt: skip


def _onnx(values: Any, folder: Path) -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 20])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 30])
    constant = helper.make_tensor("b", TensorProto.FLOAT, [30], np.arange(30.0))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "a"], ["z"]),
                               helper.make_node("Add", ["z", "b"], ["y"])], "g", [x], [y],
                              [numpy_helper.from_array(values, "a"), constant])  # fmt: skip
    return {"a.onnx": helper.make_model(graph).SerializeToString()}


def _gguf(values: Any, folder: Path) -> dict[str, Any]:
    import gguf

    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_array("tokens", ["a", "b"])
    writer.add_tensor("a", values)
    quantized = gguf.quants.quantize(np.ones((2, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"a.gguf": (folder / "a.gguf").read_bytes()}


def _pytorch_others(values: Any, folder: Path) -> dict[str, Any]:
    import test_distributed
    import test_torch_export

    checkpoint = test_distributed.sharded(folder / "distributed")
    names = [".metadata", "__0_0.distcp", "__1_0.distcp"]
    test_torch_export.archive(folder / "a.pt2", {"w": test_torch_export.described()})
    old = {"serialized_exported_program.json": b"{}",
           "serialized_state_dict.pt": test_torch_export.saved({"w": test_distributed.WHOLE})}  # fmt: skip
    test_torch_export.write(folder / "old.pt2", old)
    return {"distributed": {name: (checkpoint / name).read_bytes() for name in names},
            "a.pt2": (folder / "a.pt2").read_bytes(), "old.pt2": (folder / "old.pt2").read_bytes()}  # fmt: skip


def _tensorflow(values: Any, folder: Path) -> dict[str, Any]:
    import test_tensorflow
    import test_tflite

    index = test_tensorflow.write(folder / "a", test_tensorflow.TF2)
    data = (folder / "a.data-00000-of-00001").read_bytes()
    manifest = [{"paths": ["a.bin"], "weights": [
        {"name": "a", "shape": [20, 30], "dtype": "float32"},
        {"name": "b", "shape": [4], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}}]}]
    rows = test_tflite.rows_of([0, 1], [], [test_tflite.dense(2), test_tflite.csr([0, 1, 3], [2, 0, 1])])
    tensors = [test_tflite.tensor("w", test_tflite.INT8, (3,), quantization=([0.5, 1, 2], [0, 0, 0], 0)),
               test_tflite.tensor("s", buffer=2, sparsity=rows)]  # fmt: skip
    old = test_tensorflow.write(folder / "b", test_tensorflow.TF1, n_shards=2)
    parts = {name: (folder / name).read_bytes() for name in ("b.data-00000-of-00002", "b.data-00001-of-00002")}
    saved = {"saved_model.pb": b"\x08\x01\x12\x00", "variables/variables.index": index.read_bytes(),
             "variables/variables.data-00000-of-00001": data}
    return {"checkpoint": {"a.index": index.read_bytes(), "a.data-00000-of-00001": data},
            "checkpoint-1": {"b.index": old.read_bytes(), **parts}, "savedmodel": saved,
            "model.json": {"model.json": json.dumps({"weightsManifest": manifest}).encode(),
                           "a.bin": values.tobytes() + bytes(4)},
            "a.tflite": test_tflite.model(tensors, [b"\1\2\3", bytes(range(12))])}  # fmt: skip


def _flax(values: Any, folder: Path) -> dict[str, Any]:
    import test_flax

    tree = {"params": {"w": test_flax.array(values)}, "b": test_flax.chunked(), "step": 3, "note": "x"}
    return {"a.msgpack": test_flax.packed(tree)}
