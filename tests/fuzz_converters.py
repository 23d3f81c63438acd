"""Feeds damaged checkpoints to the converters; a command of its own, not a test.

    python tests/fuzz_converters.py [--seconds N] [--seed S] [--keep FOLDER] [--only PATTERN] [--spawn]

Small valid files of each format that can be written here are mutated, their bytes or their structure (members of zip
archives, opcodes of pickles, values of JSON), and converted in child processes; ``.vqm`` files get a mutated
``vqm.source`` and are extracted. A file may load or raise VqmError or ImportError. Any other exception, a crash, more
than 10 s or more than 1 GB is counted, and the file kept with ``--keep``. The exit status is 1 if there was one.

libhdf5 crashes and hangs in a process of its own, which is no fault: such files are refused, and counted as "child …".
That process is forked here, which takes less time than to start it; ``--spawn`` starts it as users do.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import itertools
import json
import multiprocessing
import os
import pickletools
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent / "converters")]

SECONDS_PER_FILE = 10
MEMORY_NBYTES = 1 << 30
SILENCE_S = 2.0  # of the process with libhdf5

Outcome = tuple[str, str]  # kind and text: ("loads", ""), ("refused", …), ("EXCEPTION", …), ("CRASH", "SIGSEGV"), …
Files = dict[str, bytes]  # by name; the first is opened, the others lie beside it
GOOD = ("loads", "refused", "unwritable")  # and "child …"

# Format of a vqm.source -> what is extracted
SUFFIXES = {"keras": (".keras", ".weights.h5", ".h5"), "tree": (".h5", ".pt"), "legacy": (".h5",), "onnx": (".onnx",),
            "pytorch": (".pt", ".safetensors")}  # fmt: skip


def small_files(folder: Path) -> dict[str, Files]:
    """Valid files by name; formats whose package is absent are left out."""
    bases: dict[str, Files] = {}
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 30)).astype("<f4")

    stream = io.BytesIO()
    np.savez(stream, a=values, b=np.arange(9))
    files = {"a.npz": stream.getvalue()}
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
    return {"checkpoint": {"a.index": index.read_bytes(), "a.data-00000-of-00001": data},
            "model.json": {"model.json": json.dumps({"weightsManifest": manifest}).encode(),
                           "a.bin": values.tobytes() + bytes(4)},
            "a.tflite": test_tflite.model(tensors, [b"\1\2\3", bytes(range(12))])}  # fmt: skip


def _flax(values: Any, folder: Path) -> dict[str, Any]:
    import test_flax

    tree = {"params": {"w": test_flax.array(values)}, "b": test_flax.chunked(), "step": 3, "note": "x"}
    return {"a.msgpack": test_flax.packed(tree)}


WORDS = (b"\xff\xff\xff\xff", b"\xff" * 8, bytes(4), bytes(8), b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x01\0\0\0",
         b"\0\0\0\0\1\0\0\0", b"\xff\xff", b"\0\x10")  # fmt: skip


def mutate(files: Files, rng: np.random.Generator, others: list[bytes]) -> Files | None:
    """One of the files changed; None if it became what cannot be written."""
    files = dict(files)
    name = list(files)[int(rng.integers(len(files)))]
    data = files[name]
    if name.endswith(".vqm"):
        changed = mutate_vqm(data, rng)
        if changed is None:
            return None
        files[name] = changed
    elif name == ".metadata" and rng.integers(3):
        files[name] = mutate_pickle(data, rng)
    elif data.startswith(b"PK") and rng.integers(3):
        files[name] = mutate_zip(data, rng, others)
    elif data.startswith(b"{") and rng.integers(3):
        files[name] = json.dumps(mutate_value(json.loads(data), rng), default=repr).encode("utf-8", "replace")
    else:
        files[name] = mutate_bytes(data, rng, others)
    return files


def mutate_zip(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """An archive around other contents, its CRCs right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    main = [i for i, (name, _) in enumerate(members) if name.endswith(("/data.pkl", ".h5"))]
    chosen = main[0] if main and rng.integers(4) else int(rng.integers(len(members)))
    name, content = members[chosen]
    if name.endswith(".pkl") and rng.integers(3):
        content = mutate_pickle(content, rng)
    else:
        content = mutate_bytes(content, rng, others)
    members[chosen] = name, content
    match int(rng.integers(20)):
        case 0:
            members.pop(int(rng.integers(len(members))))
        case 1:
            members.append((f"{members[0][0]}{TEXTS[int(rng.integers(len(TEXTS)))]}"[:1000], content))
        case 2:
            members.append((name.rpartition("/")[0] + "/constants.pkl", b"."))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if rng.integers(4) else zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def mutate_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """Opcodes taken out, doubled, swapped, or with another argument."""
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    opcodes = [data[start:end] for start, end in itertools.pairwise(starts)]
    for _ in range(int(rng.integers(1, 4))):
        i, j = (int(rng.integers(1, len(opcodes) - 1)) for _ in range(2))
        match int(rng.integers(6)):
            case 0:
                opcodes[i] = b""
            case 1:
                opcodes[i] += opcodes[i]
            case 2:
                opcodes[i], opcodes[j] = opcodes[j], opcodes[i]
            case 3:
                opcodes[i] = opcodes[j]
            case 4:
                opcodes[i] = OPCODES[int(rng.integers(len(OPCODES)))]
            case _:  # a number
                numbers = [k for k, code in enumerate(opcodes) if code[:1] in (b"K", b"M", b"J", b"q", b"h")]
                if numbers:
                    k = numbers[int(rng.integers(len(numbers)))]
                    opcodes[k] = opcodes[k][:1] + rng.bytes(max(1, len(opcodes[k]) - 1))
    return b"".join(opcodes)


def mutate_vqm(data: bytes, rng: np.random.Generator) -> bytes | None:
    """A file with the same tensors and another ``vqm.source``; None if that cannot be written."""
    from vqformat.converters import convert
    from vqformat.errors import VqmError

    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "a.vqm"
        path.write_bytes(data)
        from vqformat import safe_open

        with safe_open(path) as file:
            origin = copy.deepcopy(file.metadata()["vqm.source"])
        if isinstance(origin.get("checkpoint"), str) and rng.integers(2):
            structure = json.loads(origin["checkpoint"])
            for _ in range(int(rng.integers(1, 4))):
                structure = mutate_value(structure, rng)
            origin["checkpoint"] = json.dumps(structure, default=repr)
        elif isinstance(origin.get("graph"), bytes) and rng.integers(4):
            origin["graph"] = mutate_bytes(origin["graph"], rng, [origin["graph"]])
        else:
            for _ in range(int(rng.integers(1, 4))):
                origin = mutate_value(origin, rng)
        stream = io.BytesIO()
        try:
            convert(path, stream, lossless=True, metadata={"vqm.source": origin})
        except VqmError:
            return None
        return stream.getvalue()


TEXTS = ("", "a", "\0", "a\0b", ".", "..", "/", "a/b", "a//b", "../x", "/a", "dense", "dense/kernel", "layers/dense",
         "layers/dense/vars/0/x", "layers/dense/vars/0", "optimizer", "x" * 70_000, "a/" * 3000 + "a", "é€😀", "nan",
         "utf-8", "ascii", "<f4", "<f8", "<f2", "|S0", "|S1", "|S5", "<U4", "|V0", "|V4", "|O", "|b1", "<c8", "<m8[s]",
         ">f4", "|S2000000000", "<f16", "f4,f4", "(2,)<f4", "tensor", "dict", "list", "bytes", "float", "keras", "hdf5",
         "keras-legacy", "keras-weights", "pytorch", "onnx", "config.json", "model.weights.h5", "model.weights.h5/x",
         "assets/", "c:x", "CON", "a\\b")  # fmt: skip
VALUES = (None, True, False, 0, 1, -1, 2, 255, 1 << 16, 1 << 31, -(1 << 31), (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
          b"", b"\0", b"\xff" * 8, bytes(70_000), [], {}, [[]], [0], [1 << 62, 4], [0, 1 << 62], [2] * 33,
          [-1, -1])  # fmt: skip
OPCODES = (b"N", b"(", b"0", b"1", b"2", b"]", b"}", b")", b"t", b"R", b"b", b"\x81", b"Q", b"s", b"u", b"a", b"e",
           b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"h\x00", b"q\x00", b"q\x01", b"\x85",
           b"\x86", b"\x87", b"\x88", b"G" + b"\x7f\xf0" + bytes(6), b"X\x01\0\0\0a", b"\x8f", b"\x93", b"\x95",
           b"r\xff\xff\xff\x0f", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch\ndevice\n",
           b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
           b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch\nSize\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
           b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
           b"cnumpy.core.multiarray\nscalar\n", b"cargparse\nNamespace\n")  # fmt: skip


def mutate_value(value: Any, rng: np.random.Generator) -> Any:
    """A tree of lists, dicts and plain values with one place changed."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, item in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(item, (dict, list)):
                visit(item)

    if not isinstance(value, (dict, list)):
        return value
    visit(value)
    if not places:
        return value
    node, key = places[int(rng.integers(len(places)))]
    other, other_key = places[int(rng.integers(len(places)))]
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    match int(rng.integers(9)):
        case 0 | 1:
            node[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        case 2 | 3:
            node[key] = text
        case 4:  # what is elsewhere
            node[key] = copy.deepcopy(other[other_key])
        case 5:
            del node[key]
        case 6 if isinstance(node, dict):
            node[text] = node.pop(key)
        case 6:
            node.insert(key, copy.deepcopy(node[key]))
        case 7:  # a changed text or number, or in more brackets
            found = node[key]
            if isinstance(found, str):
                node[key] = mutate_bytes(found.encode(), rng, [b"x"]).decode("utf-8", "replace")
            elif isinstance(found, bytes):
                node[key] = mutate_bytes(found, rng, [b"x"])
            elif isinstance(found, int):
                node[key] = found + int(rng.integers(-3, 4))
            else:
                node[key] = [found]
        case _:
            for _ in range(int(rng.integers(1, 80))):
                node[key] = [node[key]] if rng.integers(4) else {text[:20]: node[key]}
    return value


def mutate_bytes(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One to six changes, most of them where a file has its structure and not its values."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        if not found:
            break
        match int(rng.integers(9)):
            case 0 | 1:  # a bit
                found[_place(found, rng)] ^= 1 << int(rng.integers(8))
            case 2:  # a byte
                found[_place(found, rng)] = int(rng.integers(256))
            case 3 | 4:  # a word
                at, word = _place(found, rng), WORDS[int(rng.integers(len(WORDS)))]
                found[at : at + len(word)] = word
            case 5:  # a range of noise or zeros
                at, count = _place(found, rng), int(rng.integers(1, 40))
                found[at : at + count] = bytes(count) if rng.integers(2) else rng.bytes(count)
            case 6:  # a small number, up or down
                at = _place(found, rng)
                found[at] = (found[at] + int(rng.integers(-3, 4))) % 256
            case 7:  # a part of the file elsewhere in it
                at, to, count = _place(found, rng), _place(found, rng), int(rng.choice([4, 8, 16, 40, 300]))
                found[to : to + count] = found[at : at + count]
            case _ if rng.integers(4) == 0:  # cut, or spliced with another file
                at = int(rng.integers(len(found)))
                other = others[int(rng.integers(len(others)))]
                found = found[:at] if rng.integers(2) else found[:at] + bytearray(other[at:])
            case _:  # taken out, or put in
                at, count = _place(found, rng), int(rng.integers(1, 17))
                found[at : at + count] = b"" if rng.integers(2) else rng.bytes(2 * count)
    return bytes(found)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """A place in the file: anywhere, at its ends, or beside a byte of a run of few values."""
    match int(rng.integers(3)):
        case 0:
            return int(rng.integers(len(data)))
        case 1:
            return int(min(len(data) - 1, rng.integers(400)))
        case _:
            return int(max(0, len(data) - 1 - rng.integers(1500)))


def handle(path: Path) -> Outcome:
    """Convert a file, or extract a .vqm."""
    from vqformat.errors import VqmError

    try:
        if path.suffix == ".vqm":
            return extract_all(path)
        read(path)
    except (VqmError, ImportError) as err:
        return refused(str(err))
    except BaseException as err:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(err.__traceback__)]
        text = re.sub(r"[0-9]+", "#", str(err))[:160]
        return "EXCEPTION", f"{type(err).__name__}: {text} in {' > '.join(frames[-5:])}"
    return "loads", ""


def refused(text: str) -> Outcome:
    crash = re.search(r"libhdf5 crashed on it, exit code (-?\d+)", text)
    if crash:
        code = int(crash[1])
        return f"child {signal.Signals(-code).name if code < 0 else f'exit {code}'}", text
    return ("child hangs" if "reading it took more than" in text else "refused"), text


def read(path: Path) -> None:
    """Load all tensors, then make a .vqm of them."""
    from vqformat.converters import convert, open_source

    include_optimizer = bool(zlib.crc32(path.read_bytes()) & 1)
    with open_source(path, include_optimizer=include_optimizer) as source:
        for tensor in source.tensors:
            array = tensor.load()
            assert array.shape == tensor.shape, f"shape {array.shape} instead of {tensor.shape}"
    convert(path, io.BytesIO(), lossless=True, include_optimizer=include_optimizer)


def extract_all(path: Path) -> Outcome:
    """To each format that fits: a file that is there, or VqmError and nothing."""
    from vqformat.converters import extract
    from vqformat.errors import VqmError

    before = set(os.listdir(path.parent))
    texts = []
    for suffix in SUFFIXES[path.stem]:
        out = path.with_name("out" + suffix)
        try:
            extract(path, out)
        except (VqmError, ImportError) as err:
            texts.append(str(err))
            assert not out.exists(), "a file in spite of an error"
        else:
            assert out.is_file(), "no file, no error"
            out.unlink()
        assert set(os.listdir(path.parent)) == before, "other files were left"
    return ("refused" if len(texts) == len(SUFFIXES[path.stem]) else "loads"), "; ".join(texts)


class Forked:
    """Stands for ``subprocess.Popen`` in ``converters/hdf5.py``: the same program in a fork of this process."""

    def __init__(self, command: list[str], **_: Any) -> None:
        ours, theirs = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                signal.alarm(3 * SECONDS_PER_FILE)  # should the process that asked be killed
                os.dup2(theirs, 1)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.argv = command[2:7]
                from vqformat.converters.hdf5_walk import main as walk

                walk()
                sys.stdout.buffer.flush()
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(theirs)
        self.stdout = open(ours, "rb")  # noqa: SIM115

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


def child(pipe: Any, folder: str, is_spawned: bool) -> None:
    """Convert the files that come, one after the other; tell what became of each."""
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in C code too
    with contextlib.suppress(ImportError):
        from vqformat.converters import hdf5

        hdf5.SILENCE_S = SILENCE_S
        if not is_spawned:
            hdf5.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=None, PIPE=None)  # type: ignore[assignment]
    while (files := pipe.recv()) is not None:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        reset_high_water()
        signal.alarm(SECONDS_PER_FILE)
        outcome = handle(Path(folder) / next(iter(files)))
        signal.alarm(0)
        used = max(high_water(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
        is_large = used > MEMORY_NBYTES
        if is_large and outcome[0].startswith((*GOOD, "child")):
            outcome = "MEMORY", f"{used >> 26 << 6} MiB"
        for file in Path(folder).iterdir():
            file.unlink()
        pipe.send(outcome)
        if is_large:
            os._exit(0)  # the figure of the children cannot be reset


def reset_high_water() -> None:
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")


def high_water() -> int:
    """The most memory since it was reset, in bytes; where Linux does not tell, since the process began."""
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))


class Worker:
    """A child process that is started again when it dies."""

    def __init__(self, is_spawned: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._is_spawned = is_spawned
        self.process: Any = None
        self.restart()

    def restart(self) -> None:
        self.stop()
        for file in Path(self._folder.name).iterdir():
            file.unlink()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=child, args=(theirs, self._folder.name, self._is_spawned)
        )
        self.process.start()
        theirs.close()

    def handle(self, files: Files) -> Outcome:
        try:
            self.pipe.send(files)
            if not self.pipe.poll(SECONDS_PER_FILE + 5):
                self.process.kill()
                raise EOFError
            outcome: Outcome = tuple(self.pipe.recv())  # type: ignore[assignment]
            if outcome[0] == "MEMORY":
                self.restart()
            return outcome
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.restart()
            if code in (-signal.SIGALRM, -signal.SIGKILL):
                return "HANG", f"more than {SECONDS_PER_FILE} s"
            return "CRASH", signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files that were not handled well")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression for names of the files")
    parser.add_argument("--spawn", action="store_true", help="start libhdf5's process as users do")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only this file; in a folder that --keep made")
    args = parser.parse_args()

    warnings.simplefilter("ignore")  # of torch.jit
    read_once()
    worker = Worker(args.spawn)
    if args.again:
        others = {path.name: path.read_bytes() for path in args.again.parent.iterdir() if path != args.again}
        print(*worker.handle({args.again.name: args.again.read_bytes(), **others}))
        worker.stop()
        return 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        bases = {name: files for name, files in small_files(Path(folder)).items() if re.search(args.only, name)}
    rng = np.random.default_rng(args.seed)
    for name, files in bases.items():
        kind, text = worker.handle(files)
        if kind != "loads":
            print(f"{name} does not load unchanged: {kind} {text}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: collections.Counter[tuple[str, str, str]] = collections.Counter()
    names, others = list(bases), [data for files in bases.values() for data in files.values()]
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        name = names[int(rng.integers(len(names)))]
        changed = mutate(bases[name], rng, others)
        kind, text = ("unwritable", "") if changed is None else worker.handle(changed)
        counts[name, kind] += 1
        if kind not in GOOD and not kind.startswith("child"):
            number = bad[kind, name, text] = bad[kind, name, text] + 1
            if args.keep and number <= 3 and changed is not None:
                label = re.sub(r"\W+", "_", text)[:100]
                place = args.keep / f"{kind}-{label}-{sum(bad.values())}-{name}"
                place.mkdir(parents=True, exist_ok=True)
                for file, data in changed.items():
                    (place / file).write_bytes(data)
    worker.stop()
    report(names, counts, bad)
    return 1 if bad else 0


def read_once() -> None:
    """Import what the children need before they are forked."""
    import vqformat.converters  # noqa: F401

    for module in ("keras", "hdf5_walk", "onnx", "npz", "safetensors", "pytorch", "torchscript", "gguf", "export.keras",
                   "export.hdf5", "export.onnx", "export.npz", "export.safetensors", "export.pytorch"):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(f"vqformat.converters.{module}")


def report(names: list[str], counts: Any, bad: Any) -> None:
    kinds = [*GOOD, *sorted({kind for _, kind in counts} - set(GOOD))]
    print(f"{'':28}" + "".join(f"{kind:>15}" for kind in kinds))
    for name in [*names, "all"]:
        row = [sum(n for (file, k), n in counts.items() if k == kind and name in (file, "all")) for kind in kinds]
        print(f"{name:28}" + "".join(f"{n:15}" for n in row))
    by_text: collections.Counter[tuple[str, str]] = collections.Counter()
    for (kind, _, text), n in bad.items():
        by_text[kind, text] += n
    for (kind, text), n in by_text.most_common():
        print(f"{n:6} {kind} {text}")


if __name__ == "__main__":
    sys.exit(main())
