"""The API as README uses it, for type checkers: checked strictly, never run."""

from __future__ import annotations

import numpy as np
import torch

import vqformat
from vqformat import Recipe, load_file, safe_open, save_file, search, writer
from vqformat.torch import Calibration, calibrate, load_model, save_model


def arrays() -> float:
    tensors = {"fc.weight": np.zeros((300, 784), np.float32)}
    report = save_file(tensors, "model.vqm", metadata={"trained on": "MNIST"}, ratio=12, preset="small")
    save_file(tensors, "model.vqm", recipe=Recipe({"fc*": "pq:dim=4,entries=256"}))
    everything = load_file("model.vqm", threads=2)
    with safe_open("model.vqm", framework="np") as f:
        for name in f:
            print(f.keys()[0], name.upper(), f.info(name).shape, f.metadata())
        print(f.get_tensor("fc.weight").shape, f.get_slice("fc.weight")[10:20])
    with writer("model.vqm", ratio=8) as w:
        w.add_layer("fc", tensors)
    data: bytes = vqformat.save(tensors, bits=4.0)
    print(everything["fc.weight"].mean(), len(data))
    return report.ratio


def models() -> int:
    model = torch.nn.Linear(784, 10)
    calibration: Calibration = calibrate(model, [torch.randn(32, 784)])
    save_model(model, "model.vqm", ratio=20, calibration=calibration)
    missing, unexpected = load_model(model, "model.vqm")
    found = search(model, lambda network: float(network.weight.mean()), max_drop=0.01)
    return len(missing) + len(unexpected) + len(found.data)
