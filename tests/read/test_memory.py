"""Reading and writing in little memory: each call in a process of its own, that the system gives no more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pytest
from examples import some_of

import vqformat
from vqformat.read.survey import survey

pytestmark = pytest.mark.skipif(not memory.IS_KNOWN, reason="memory is told by /proc/self/status, which is Linux's")

PRESETS = ("fast", "default", "small")
MOST_PRESETS = some_of(PRESETS, PRESETS[:2])  # to make the large layers with small takes half a minute
WIDTH = 4096
ROWS = (64, 2048, 1024)  # of the layers
LARGEST_MB = 4 * max(ROWS) * WIDTH / memory.MB  # 33.6
STACKS_MB = 24  # that the system counts as taken for two threads and what they need
TOTAL_MB = 4 * sum(ROWS) * WIDTH / memory.MB  # 51.4


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a model with a preset: layers and a table, or the table alone."""
    folder = tmp_path_factory.mktemp("memory")

    @cache
    def make(preset: str, has_layers: bool = True) -> Path:
        random = np.random.default_rng(0)
        tensors = {"embed.weight": random.standard_normal((40_000, 64), np.float32)}
        if has_layers:
            tensors |= {f"layers.{i}.weight": random.standard_normal((n, WIDTH), np.float32)
                        for i, n in enumerate(ROWS)}  # fmt: skip
        path = folder / f"{preset}-{has_layers}.vqm"
        vqformat.save_file(tensors, path, preset=preset)
        return path

    return make


def stream_layers(path: Path) -> int:
    return sum(layer[name].size for layer in vqformat.stream(path, threads=2) for name in layer)


@pytest.mark.parametrize("preset", MOST_PRESETS)
def test_a_stream_takes_its_largest_layer(preset: str, file_of: Callable[..., Path]) -> None:
    bound_mb = 1.1 * LARGEST_MB + 16

    peak_mb, n = memory.measure(stream_layers, file_of(preset), limit_mb=bound_mb + STACKS_MB)

    assert n == sum(ROWS) * WIDTH + 40_000 * 64
    assert peak_mb <= bound_mb


def stream_into(path: Path, folder: Path) -> None:
    for layer in vqformat.stream(path, threads=2):
        for tensor in layer.tensors():
            tensor.decode_into(np.memmap(folder / "out", np.float32, "w+", shape=tensor.shape))


def open_into(path: Path, folder: Path) -> None:
    with vqformat.safe_open(path, threads=2) as file:
        for name in file:
            part = file.get_slice(name)
            part.decode_into(np.memmap(folder / "out", np.float32, "w+", shape=tuple(part.get_shape())))


def stream_blocks(path: Path, folder: Path) -> None:
    for layer in vqformat.stream(path):
        for tensor in layer.tensors():
            for _, values in tensor.blocks():
                values.sum()


def open_blocks(path: Path, folder: Path) -> None:
    with vqformat.safe_open(path) as file:
        for name in file:
            for _, values in file.get_slice(name).blocks():
                values.sum()


def digest(path: Path, folder: Path) -> None:
    vqformat.content_digest(path, threads=1)


def survey_all(path: Path, folder: Path) -> None:
    with open(path, "rb") as file:
        survey(file)


@pytest.mark.parametrize("work", [stream_into, open_into, stream_blocks,
                                  *(pytest.param(work, marks=pytest.mark.exhaustive)
                                    for work in (open_blocks, digest, survey_all))])  # fmt: skip
@pytest.mark.parametrize("preset", MOST_PRESETS)
def test_blocks_take_no_more_than_24_mb(preset: str, work: Any, file_of: Callable[..., Path], tmp_path: Path) -> None:
    assert memory.measure(work, file_of(preset), tmp_path, limit_mb=24 + STACKS_MB).peak_mb <= 24


def look_up(path: Path) -> None:
    with vqformat.safe_open(path) as file:
        part = file.get_slice("embed.weight")
        for row in (0, 20_000, 39_999):
            part[row]
        part[[3, 30_000]]


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_take_a_few_blocks(preset: str, file_of: Callable[..., Path]) -> None:
    assert memory.measure(look_up, file_of(preset, has_layers=False), limit_mb=12 + STACKS_MB).peak_mb <= 12


def load(path: Path) -> int:
    return len(vqformat.load_file(path, threads=2))


@pytest.mark.parametrize("preset", MOST_PRESETS)
def test_load_file_holds_nothing_twice(preset: str, file_of: Callable[..., Path]) -> None:
    bound_mb = TOTAL_MB + 4 * 40_000 * 64 / memory.MB + 40

    peak_mb, n = memory.measure(load, file_of(preset), limit_mb=bound_mb + STACKS_MB)

    assert n == len(ROWS) + 1
    assert peak_mb <= bound_mb


def write_layers(path: Path, options: dict[str, Any], n_layers: int) -> None:
    random = np.random.default_rng(0)
    with vqformat.writer(path, **options) as w:
        for i in range(n_layers):
            w.add_layer(f"layers.{i}", {f"layers.{i}.weight": random.standard_normal((256, 1024), np.float32)})


@pytest.mark.parametrize("options", some_of([{"preset": "fast"}, {}, {"preset": "small"}, {"ratio": 6}],
                                            [{"preset": "fast"}, {}]), ids=str)  # fmt: skip
def test_a_writer_takes_no_more_for_more_layers(options: dict[str, Any], tmp_path: Path) -> None:
    few, many = (memory.measure(write_layers, tmp_path / "model.vqm", options, n).peak_mb for n in (2, 14))

    assert many <= few + 6  # 12.6 MB more were given


def import_torch() -> None:
    import torch

    import vqformat.torch  # noqa: F401

    torch.set_num_threads(1)
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64))  # its own buffers
    torch.nn.Linear(8, 8, device="meta")  # what is imported for that


def run_streamed(path: Path, options: dict[str, Any]) -> None:
    import torch

    from vqformat.torch import stream_model

    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    stream_model(model, path, **options)
    with torch.no_grad():
        for _ in range(5):
            model(torch.zeros(4, 1024))


def fill(path: Path) -> Any:
    import torch

    from vqformat.torch import load_model

    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    load_model(model, path)


@pytest.fixture(scope="module")
def linears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 16 linear layers of 4.2 MB each."""
    torch = pytest.importorskip("torch")
    from vqformat.torch import save_model

    path: Path = tmp_path_factory.mktemp("linears") / "model.vqm"
    save_model(torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16))), path)
    return path


@pytest.mark.parametrize(("options", "most_mb"), some_of(
    [({}, 32), ({"prefetch": 0}, 24), ({"keep": "memory"}, 44), ({"max_weight_bytes": 1 << 20}, 16)], [({}, 32)]
), ids=str)  # fmt: skip
def test_a_streamed_model_takes_some_weights(options: dict[str, Any], most_mb: int, linears: Path) -> None:
    peak_mb, _ = memory.measure(run_streamed, linears, options, prepare=import_torch, limit_mb=most_mb + 2 * STACKS_MB)

    assert peak_mb <= most_mb


def test_load_model_holds_one_tensor_beside_the_model(linears: Path) -> None:
    assert memory.measure(fill, linears, prepare=import_torch).peak_mb <= 67.2 + 4.2 + 20


TAKEN: list[bytes] = []


def take(n_mb: int) -> None:
    TAKEN.append(b"x" * (n_mb * 1_000_000))  # still there when it returns: seen however seldom memory is sampled


def test_the_harness_measures_and_limits() -> None:
    assert 40 <= memory.measure(take, 50).peak_mb <= 55
    with pytest.raises(RuntimeError, match="take: MemoryError"):
        memory.measure(take, 50, limit_mb=20)
    with pytest.raises(RuntimeError, match="take: TypeError"):
        memory.measure(take, "much")
