"""Open files and streamed models in the workers of a DataLoader, and in other processes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import begin, end, needs_fork

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from streamed_models import CASES, deep, file_of, filled, run, same, seeded, streamed  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import vqformat  # noqa: E402
from vqformat import torch as vt  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@cache
def rows() -> bytes:
    table = np.random.default_rng(0).standard_normal((3000, 200)).astype(np.float32)
    return vqformat.save({f"part.{i}": table + i for i in range(4)})


@cache
def expected() -> dict[str, Any]:
    return vt.load(rows())


class Rows(Dataset[bool]):
    """Compares rows of an open file with those that it should have."""

    def __init__(self, f: Any) -> None:
        self.f = f
        self.slices = {name: f.get_slice(name) for name in f}

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> bool:
        name = f"part.{i % 4}"
        whole = torch.equal(self.f[name], expected()[name])
        return whole and torch.equal(self.slices[name][i * 40 : i * 40 + 40], expected()[name][i * 40 : i * 40 + 40])


@pytest.mark.parametrize(("method", "source"), [
    pytest.param("fork", "path", marks=needs_fork), pytest.param("fork", "bytes", marks=needs_fork), ("spawn", "path"),
])  # fmt: skip
def test_workers_of_a_data_loader_read_one_open_file(method: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(rows())

    with vqformat.safe_open(path if source == "path" else io.BytesIO(rows()), framework="pt") as f:
        f["part.0"]
        n_workers = 2 if method == "fork" else 1  # a spawned one imports PyTorch
        loader = DataLoader(Rows(f), batch_size=8, num_workers=n_workers, multiprocessing_context=method, timeout=300)
        for batch in loader:
            assert bool(batch.all())
            f["part.2"]  # at the same time


def check(model: torch.nn.Module, inputs: tuple[Any, ...], aims: list[Tensor], times: int = 1) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        for _ in range(times):
            assert same(run(model.eval(), *inputs), aims)


def aims_of(make: Callable[[], torch.nn.Module], inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return run(filled(make).eval(), *inputs)


@needs_fork
def test_forked_processes_run_a_streamed_model_that_decodes_ahead(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(file_of(deep))
    x = torch.randn(5, 128)
    aims = aims_of(deep, (x,))
    model = vt.stream_model(seeded(deep, 2), path, prefetch=2)
    check(model, (x,), aims, times=2)  # its thread has been started

    children = [begin("fork", check, model, (x,), aims, 5) for _ in range(2)]
    check(model, (x,), aims, times=5)

    end(*children)


def test_a_spawned_process_runs_a_streamed_model(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(file_of(deep))
    x = torch.randn(5, 128)
    model = vt.stream_model(seeded(deep, 2), path)

    end(begin("spawn", check, model, (x,), aims_of(deep, (x,))))


@pytest.mark.parametrize("name", ["conv2d", "lstm", "attention", "encoder", "embedding"])
def test_models_of_all_kinds_are_pickled(name: str) -> None:
    case = CASES[name]
    model = streamed(case.make)
    with torch.no_grad():
        aims = run(filled(case.make).eval(), *case.inputs(), **case.named)

        again = pickle.loads(pickle.dumps(model)).eval()

        assert same(run(again, *case.inputs(), **case.named), aims)
        assert same(run(model.eval(), *case.inputs(), **case.named), aims)


def test_tied_weights_stay_tied_in_a_pickle() -> None:
    model: Any = CASES["tied"].make()
    layers = torch.nn.ModuleList([model.embed, model.head])  # the model itself has a lambda
    stream = io.BytesIO()
    vt.save_model(layers, stream)
    vt.stream_model(layers, stream)

    again = pickle.loads(pickle.dumps(layers))

    assert again[0].weight is again[1].weight
    assert torch.equal(again[0].weight + 0, layers[0].weight + 0)


def test_a_pickle_of_a_model_has_the_path_and_not_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(file_of(deep))

    data = pickle.dumps(vt.stream_model(seeded(deep, 2), path))

    assert len(data) < 50_000
    assert b"model.vqm" in data
