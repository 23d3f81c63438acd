"""Decodes files that come on stdin, each after its size (4 bytes, little-endian); prints a line of JSON for each way.

    python python_worker.py reference|mini MAX_TENSOR_BYTES MAX_TOTAL_BYTES [in-turn]

The reference reads with NumPy in some ways and with kernels in the others, in turn. With ``in-turn`` it reads each file
in one of its ways, in turn, and prints an empty object for the others.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "fixtures" / "decoders" / "python")]

import minidecoder  # noqa: E402
from vqmcat import decoded_bytes, tagged  # noqa: E402

import vqformat  # noqa: E402
from vqformat import native  # noqa: E402
from vqformat.format.dtypes import of_array  # noqa: E402
from vqformat.read.recovery import write_whole  # noqa: E402
from vqformat.read.survey import survey  # noqa: E402

Bounds = dict[str, int]


def sequential(data: bytes, bounds: Bounds) -> dict[str, Any]:
    """In one pass, with the digest tested; then all tensors, or layer by layer."""
    vqformat.verify(io.BytesIO(data), **bounds)
    if len(data) % 2:
        arrays = vqformat.load(data, **bounds)
        return {"tensors": [_tensor(name, array) for name, array in arrays.items()]}
    tensors, layers = dict[str, Any](), []
    with vqformat.stream(io.BytesIO(data), **bounds) as streamed:
        metadata = tagged(streamed.metadata)
        for layer in streamed:
            tensors |= {name: _tensor(name, layer[name]) | {"layer": len(layers)} for name in layer}
            tensors |= {name: tensors[target] | {"name": name, "layer": len(layers)}
                        for name, target in layer.aliases.items()}  # fmt: skip
            layers.append(layer.name)
    by_name = [tensors[name] for name in sorted(tensors)]  # a layer does not tell where its aliases stood
    return {"metadata": metadata, "layers": layers, "by name": by_name}


def by_index(data: bytes, bounds: Bounds) -> dict[str, Any]:
    """Each tensor, and a part of it, by the index."""
    with vqformat.safe_open(io.BytesIO(data), **bounds) as file:
        tensors = []
        for name in file:
            info, array = file.info(name), file[name]
            assert array.shape == info.shape, f"{name!r} has another shape than its record"
            if array.ndim and array.size:
                first = len(array) // 3
                part = file.get_slice(name)[first : first + 2]
                assert decoded_bytes(part) == decoded_bytes(array[first : first + 2]), f"another slice of {name!r}"
            found = _tensor(name, array)
            assert found["dtype"] == info.dtype, f"{name!r} has another dtype than its record"
            tensors.append(found)
        return {"metadata": tagged(file.metadata()), "tensors": tensors}


def recovered(data: bytes, bounds: Bounds) -> dict[str, Any]:
    """What ``vqm recover`` writes. It is a whole file, whatever the damage."""
    stream = io.BytesIO(data)
    found = survey(stream)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "recovered.vqm"
        write_whole([(found, stream)], path, overwrite=False)
        try:
            arrays = vqformat.load_file(path, **bounds)
        except vqformat.FormatError as err:
            if err.clause == "LIM-002":  # a survey has no bound of the caller
                raise
            raise AssertionError(f"recover writes a file that is refused: {err}") from err
    assert len(arrays) == found.n_whole, f"recover kept {len(arrays)} of {found.n_whole} tensors"
    return {"tensors": [_tensor(name, array) for name, array in arrays.items()]}


def _tensor(name: str, array: Any) -> dict[str, Any]:
    return {"name": name, "dtype": of_array(array, name).name, "shape": tagged(list(array.shape)),
            "sha256": hashlib.sha256(decoded_bytes(array)).hexdigest()}  # fmt: skip


def mini(data: bytes, bounds: Bounds) -> dict[str, Any]:
    return minidecoder.described(minidecoder.decode(io.BytesIO(data), **bounds))


def outcome(read: Callable[[bytes, Bounds], dict[str, Any]], data: bytes, bounds: Bounds) -> dict[str, Any]:
    """What it found, the class and rule of its refusal, or ``crash``."""
    try:
        return read(data, bounds)
    except (vqformat.VqmError, minidecoder.Refused) as err:
        clause = getattr(err, "clause", "")
        return {"error": getattr(err, "error_class", type(err).__name__), "clause": clause, "message": str(err)}
    except Exception as err:
        frames = traceback.extract_tb(err.__traceback__)[-3:]
        where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        return {"error": "crash", "message": f"{type(err).__name__}: {err} in {where}"}


def main() -> None:
    decoder, *numbers = (argument for argument in sys.argv[1:] if argument != "in-turn")
    turns = itertools.cycle([sequential, by_index] * 7 + [recovered]) if "in-turn" in sys.argv else None
    bounds = dict(zip(("max_tensor_bytes", "max_total_bytes"), map(int, numbers), strict=True))
    warnings.simplefilter("error")
    files, out = sys.stdin.buffer, sys.stdout.buffer
    kernels = native.available()[1:] or ["numpy"]
    backends = itertools.cycle([pair for name in kernels for pair in (("numpy", name), (name, "numpy"))])
    while head := files.read(4):
        data = files.read(int.from_bytes(head, "little"))
        if decoder == "mini":
            found = [outcome(mini, data, bounds)]
        else:
            found = []
            one, other = next(backends)
            turn = turns and next(turns)
            for read, backend in ((sequential, one), (by_index, other), (recovered, one)):
                native.use(backend)
                if turn is not None and turn is not read:
                    found.append({})
                elif turn is None and read is recovered and found[0].get("clause") == "LIM-002":
                    found.append(found[0])  # a survey would decode what is refused
                elif turn is None and read is recovered and "error" not in found[0] and zlib.crc32(data) % 4:
                    found.append({})  # what is whole is recovered now and then only: it takes the longest
                else:
                    found.append(outcome(read, data, bounds) | {"backend": backend})
        out.write("".join(json.dumps(item) + "\n" for item in found).encode())
        out.flush()


if __name__ == "__main__":
    main()
