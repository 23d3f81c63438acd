"""What the container costs: bytes beside the sections, size of the index, time to open a file of many tensors."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import CHECKPOINT, Memcpy, load_checkpoint, median, print_table, seconds, time_together, write_json

import vqformat
from vqformat.format.container import FOOTER_NBYTES, read_footer

# EfficientNet's blocks (Tan & Le 2019, table 1): expansion, kernel, channels out, repeats; a few repeats less than B0,
# so that there are about 250 tensors.
STAGES = ((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 2), (6, 5, 112, 2), (6, 5, 192, 3), (6, 3, 320, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=100_000, help="tensors of the model to open (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="times it is opened (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [
            container(Path(folder), "LeNet-300-100, 16x", load_checkpoint(CHECKPOINT), ratio=16),
            container(Path(folder), "EfficientNet-like, 10x", efficientnet(), ratio=10),
        ]
        many = many_tensors(args.tensors)
        sizes.append(container(Path(folder), f"{args.tensors} tensors, lossless", many, lossless=True))
        print_table(
            ("model", "tensors", "file bytes", "ratio", "overhead", "of the file", "a tensor", "index"),
            [(s["model"], s["tensors"], s["file_nbytes"], f"{s['ratio']:.2f}", s["overhead_nbytes"],
              f"{s['overhead_nbytes'] / s['file_nbytes']:.2%}", f"{s['overhead_nbytes'] / s['tensors']:.1f}",
              s["index_nbytes"]) for s in sizes],
        )  # fmt: skip
        opening = open_times(Path(folder, "model.vqm"), many, args.repeats)
    print(Memcpy().noise())
    write_json(args.json, {"sizes": sizes, "opening": opening})


def container(folder: Path, model: str, tensors: dict[str, np.ndarray], **options: Any) -> dict[str, Any]:
    """Sizes of the parts of a model's file."""
    path = folder / "model.vqm"
    report = None

    def save() -> None:
        nonlocal report
        report = vqformat.save_file(tensors, path, **options)

    elapsed = seconds(save)
    assert report is not None
    footer_offset = report.file_nbytes - FOOTER_NBYTES
    _, index_offset = read_footer(path.read_bytes()[footer_offset:], footer_offset)
    return {"model": model, "tensors": len(tensors), "file_nbytes": report.file_nbytes, "ratio": report.ratio,
            "overhead_nbytes": report.overhead_nbytes, "save_seconds": elapsed,
            "index_nbytes": footer_offset - index_offset}  # fmt: skip


def efficientnet() -> dict[str, np.ndarray]:
    """A convolutional network's tensors: names and shapes of EfficientNet, values from a seed."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def conv(name: str, *shape: int, bias: bool = False) -> None:
        deviation = (2 / np.prod(shape[1:])) ** 0.5
        tensors[f"{name}.weight"] = (rng.standard_normal(shape) * deviation).astype(np.float32)
        if bias:
            tensors[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.05).astype(np.float32)

    def norm(name: str, channels: int) -> None:
        for part, mean in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            values = mean + 0.1 * rng.standard_normal(channels)
            tensors[f"{name}.{part}"] = np.abs(values).astype(np.float32) if mean else values.astype(np.float32)

    conv("features.0.0", 32, 3, 3, 3)
    norm("features.0.1", 32)
    channels = 32
    for i, (expansion, kernel, out, repeats) in enumerate(STAGES, 1):
        for j in range(repeats):
            wide, squeezed = channels * expansion, max(1, channels // 4)
            block = f"features.{i}.{j}.block"
            part = 0
            if expansion > 1:
                conv(f"{block}.0.0", wide, channels, 1, 1)
                norm(f"{block}.0.1", wide)
                part = 1
            conv(f"{block}.{part}.0", wide, 1, kernel, kernel)
            norm(f"{block}.{part}.1", wide)
            conv(f"{block}.{part + 1}.fc1", squeezed, wide, 1, 1, bias=True)
            conv(f"{block}.{part + 1}.fc2", wide, squeezed, 1, 1, bias=True)
            conv(f"{block}.{part + 2}.0", out, wide, 1, 1)
            norm(f"{block}.{part + 2}.1", out)
            channels = out
    conv("features.8.0", 1280, channels, 1, 1)
    norm("features.8.1", 1280)
    conv("classifier.1", 1000, 1280, bias=True)
    return tensors


def many_tensors(n: int) -> dict[str, np.ndarray]:
    """Tiny tensors, four to a layer."""
    values = np.random.default_rng(0).standard_normal((n, 4), np.float32)
    parts = ("weight", "bias", "scale", "shift")
    return {f"model.layers.{i // 40}.block.{i // 4 % 10}.{parts[i % 4]}": values[i] for i in range(n)}


def open_times(path: Path, tensors: dict[str, np.ndarray], repeats: int) -> list[dict[str, Any]]:
    """Time to open the file of many tensors, and to have its first, middle and last tensor besides."""
    names = list(tensors)
    wanted = [names[0], names[len(names) // 2], names[-1]]

    def vqm(count: int) -> None:
        with vqformat.safe_open(path) as file:
            for name in wanted[:count]:
                file[name]

    works: dict[str, Callable[[], Any]] = {}
    for count in (0, 1, 3):
        works[f"vqformat, {count} tensors"] = lambda count=count: vqm(count)
    try:
        import safetensors
        from safetensors.numpy import save_file
    except ImportError:
        print("safetensors is not installed: no comparison with it")
    else:
        other = path.with_suffix(".safetensors")
        save_file(tensors, other)

        def opened(count: int) -> None:
            with safetensors.safe_open(other, "np") as file:
                for name in wanted[:count]:
                    file.get_tensor(name)

        for count in (0, 1, 3):
            works[f"safetensors, {count} tensors"] = lambda count=count: opened(count)
        header_nbytes = 8 + int.from_bytes(other.read_bytes()[:8], "little")
        print(f"\nsafetensors: {other.stat().st_size} bytes, of which {header_nbytes} header")
    times = time_together(works, repeats)
    print_table(
        (f"opening {len(tensors)} tensors", "ms", "min", "max"),
        [(name, *(f"{1e3 * value:.1f}" for value in (median(t), min(t), max(t)))) for name, t in times.items()],
    )
    return [{"what": name, "seconds": elapsed} for name, elapsed in times.items()]


if __name__ == "__main__":
    main()
