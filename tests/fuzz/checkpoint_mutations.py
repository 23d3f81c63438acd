"""Mutations of checkpoints: of bytes, members of zip archives, opcodes of pickles, values of JSON."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickletools
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.checkpoints import Files

Mutation = Callable[[bytes, np.random.Generator], bytes]

WORDS = (b"\xff\xff\xff\xff", b"\xff" * 8, bytes(4), bytes(8), b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x01\0\0\0",
         b"\0\0\0\0\1\0\0\0", b"\xff\xff", b"\0\x10")  # fmt: skip


def mutate(
    files: Files, rng: np.random.Generator, others: list[bytes], containers: Mapping[str, Mutation]
) -> Files | None:
    """One of the files changed; None if it became what cannot be written.

    Args:
        containers: By the suffix of a file, what changes values in it and mends lengths and checksums.
    """
    files = dict(files)
    name = list(files)[int(rng.integers(len(files)))]
    data = files[name]
    if name.endswith(".vqm"):
        changed = mutate_vqm(data, rng)
        if changed is None:
            return None
        files[name] = changed
    elif (inside := containers.get(Path(name).suffix)) is not None and rng.integers(3):
        files[name] = inside(data, rng)
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
