"""The API as README uses it, for type checkers: checked strictly by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import assert_type

import vqformat
from vqformat import Recipe, load_file, safe_open, save_file, search, stream, writer
from vqformat.torch import Calibration, calibrate, load_model, save_model
from vqformat.torch import load_file as load_tensors
from vqformat.torch import save_file as save_tensors

Array = npt.NDArray[Any]


def arrays() -> float:
    tensors = {"fc.weight": np.zeros((300, 784), np.float32)}
    report = save_file(tensors, "model.vqm", metadata={"trained on": "MNIST"}, ratio=12, preset="small")
    save_file(tensors, "model.vqm", recipe=Recipe({"fc*": "pq:dim=4,entries=256"}))
    everything = load_file("model.vqm", threads=2)
    assert_type(everything, dict[str, Array])
    with writer("model.vqm", ratio=8) as w:
        w.add_layer("fc", tensors)
    data: bytes = vqformat.save(tensors, bits=4.0)
    print(everything["fc.weight"].mean(), len(data))
    return report.ratio


def by_name() -> None:
    with safe_open("model.vqm", framework="np") as f:
        assert_type(f.keys(), list[str])
        for name in f:
            print(name.upper(), f.info(name).shape, f.metadata())
        assert_type(f["fc.weight"], Array)
        assert_type(f.get_tensor("fc.weight"), Array)
        assert_type(f.get_slice("fc.weight")[10:20, ..., 3], Array)
    with safe_open("model.vqm", framework="pt", device="cuda:0") as g:
        assert_type(g.get_tensor("fc.weight"), torch.Tensor)
        assert_type(g.get_slice("fc.weight")[:, 2], torch.Tensor)
    closed: vqformat.safe_open = f
    print(closed)


def layer_by_layer() -> None:
    for layer in stream("model.vqm"):
        for name, array in layer.items():
            assert_type(name, str)
            assert_type(array, Array)
    for layer_of_torch in stream("model.vqm", framework="pt"):
        for tensor in layer_of_torch.tensors():
            assert_type(tensor.decode(), torch.Tensor)


def evaluate(network: torch.nn.Linear) -> float:
    return float(network.weight.mean())


def models() -> int:
    model = torch.nn.Linear(784, 10)
    calibration: Calibration = calibrate(model, [torch.randn(32, 784)])
    save_model(model, "model.vqm", ratio=20, calibration=calibration)
    save_tensors(model.state_dict(), "model.vqm", sqnr=20, preset="fast")
    assert_type(load_tensors("model.vqm", device="cpu", threads=2), dict[str, torch.Tensor])
    missing, unexpected = load_model(model, "model.vqm")
    found = search(model, evaluate, max_drop=0.01, preset="small", calibration=calibration)
    return len(missing) + len(unexpected) + len(found.data)


def mappings(tensors: Mapping[str, Array]) -> bytes:
    def mean(filled: Mapping[str, Array]) -> float:
        return float(filled["fc.weight"].mean())

    return search(tensors, mean, max_evaluations=3).data
