"""Peak memory and time of large conversions, against loading the same files with their own frameworks.

Makes a sharded safetensors model of 4 GB and Keras 3 weights of 1 GB, in a folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import ROOT, median, print_table, write_json

LAYER_NBYTES = 1 << 26  # a dense kernel of 4096 x 4096 float32
LAYERS_PER_SHARD = 16

# Each runs in a process of its own, whose last line says how much memory it had at most (ru_maxrss would count what
# this process had when it forked), and how much of what it has at its end is a file, mapped
PEAK = """
status = dict(line.split(":") for line in open("/proc/self/status"))
print(*(int(status[key].split()[0]) << 10 for key in ("VmHWM", "RssFile")))
"""
CONVERT = """
import sys
from vqformat.converters import convert
convert(sys.argv[1], sys.argv[2], overwrite=True)
"""
LOSSLESS = CONVERT.replace("overwrite", "lossless=True, overwrite")
EXTRACT = """
import sys
from vqformat.converters import extract
extract(sys.argv[1], sys.argv[2], overwrite=True)
"""
LOAD_SAFETENSORS = """
import json, pathlib, sys
from safetensors.numpy import load_file
index = pathlib.Path(sys.argv[1])
tensors = {}
for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
    tensors.update(load_file(index.parent / shard))
"""
LOAD_KERAS = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras
n_layers = int(sys.argv[2])
model = keras.Sequential([keras.Input((4096,)), *(keras.layers.Dense(4096, use_bias=False) for _ in range(n_layers))])
model.load_weights(sys.argv[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--safetensors", type=float, default=4, metavar="GB", help="size of the one (%(default)s)")
    parser.add_argument("--hdf5", type=float, default=1, metavar="GB", help="size of the other (%(default)s)")
    parser.add_argument("--folder", help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        n_layers = round(args.safetensors * 1e9 / LAYER_NBYTES)
        index = make_safetensors(folder, n_layers)
        n_keras = round(args.hdf5 * 1e9 / LAYER_NBYTES)
        weights = make_keras(folder / "model.weights.h5", n_keras)
        vqm, back = folder / "out.vqm", folder / "back"
        works = {
            "safetensors: load all, its package": (LOAD_SAFETENSORS, index),
            "safetensors: convert": (CONVERT, index, vqm),
            "safetensors: extract": (EXTRACT, vqm, back.with_suffix(".safetensors")),
            "safetensors: convert --lossless": (LOSSLESS, index, vqm),
            "HDF5: model.load_weights, Keras": (LOAD_KERAS, weights, n_keras),
            "HDF5: convert": (CONVERT, weights, vqm),
            "HDF5: extract": (EXTRACT, vqm, back.with_suffix(".weights.h5")),
            "HDF5: convert --lossless": (LOSSLESS, weights, vqm),
        }
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
        for _ in range(args.repeats):
            for name, (code, *arguments) in works.items():
                runs[name].append(measure(code, *map(str, arguments)))
    rows = {name: (median([s for s, _ in of]), median([n for _, n in of])) for name, of in runs.items()}
    print_table(("work", "s", "peak MB"), [(name, f"{s:.1f}", f"{n / 1e6:.0f}") for name, (s, n) in rows.items()])
    for kind, nbytes in (("safetensors", n_layers * LAYER_NBYTES), ("HDF5", n_keras * LAYER_NBYTES)):
        load = next(row for name, row in rows.items() if name.startswith(f"{kind}: ") and "convert" not in name)
        convert = rows[f"{kind}: convert"]
        print(f"{kind}, {nbytes / 1e9:.1f} GB: convert takes {convert[0] / load[0]:.1f} times as long as loading and"
              f" {convert[1] / load[1]:.2f} of its memory")  # fmt: skip
    for name, of in runs.items():
        print(f"noise: {name} {min(s for s, _ in of):.1f}-{max(s for s, _ in of):.1f} s, {len(of)} runs")
    write_json(args.json, {name: {"seconds": s, "peak_nbytes": n} for name, (s, n) in rows.items()})


def kernels(n_layers: int) -> Callable[[int], object]:
    """Layer number -> its kernel: normal numbers, whose scale differs from layer to layer."""
    import numpy as np

    base = np.random.default_rng(0).standard_normal((4096, 4096), np.float32)
    return lambda layer: np.roll(base, 997 * layer) * np.float32(0.01 + 0.02 * layer / n_layers)


def make_safetensors(folder: Path, n_layers: int) -> Path:
    """A sharded model, and its index."""
    from safetensors.numpy import save_file

    kernel = kernels(n_layers)
    places = {}
    n_shards = -(-n_layers // LAYERS_PER_SHARD)
    for number in range(n_shards):
        shard = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        layers = range(number * LAYERS_PER_SHARD, min((number + 1) * LAYERS_PER_SHARD, n_layers))
        tensors = {f"layers.{layer}.weight": kernel(layer) for layer in layers}
        save_file(tensors, folder / shard)
        places.update(dict.fromkeys(tensors, shard))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": n_layers * LAYER_NBYTES}, "weight_map": places}))
    return index


def make_keras(path: Path, n_layers: int) -> Path:
    """The weights of a Sequential of dense layers without biases, as Keras 3 lays them out."""
    import h5py

    kernel = kernels(n_layers)
    with h5py.File(path, "w") as file:
        for layer in range(n_layers):
            name = f"dense_{layer}" if layer else "dense"
            variables = file.create_group(f"layers/{name}/vars")
            variables.attrs["name"] = name
            variables["0"] = kernel(layer)
    return path


def measure(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of a process, mapped files not counted."""
    import time

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PEAK, *arguments], check=True, capture_output=True, text=True,
                          env=environment)  # fmt: skip
    peak, mapped = map(int, done.stdout.split()[-2:])
    return time.perf_counter() - start, peak - mapped


if __name__ == "__main__":
    main()
