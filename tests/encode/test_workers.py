"""Tensors that workers encode: the bytes of the file are those that one process writes."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import some_of
from test_stable_bytes import encodings, model

import vqformat
from vqformat.encode import worker_pool
from vqformat.encode.calibration import Calibration, TensorStatistics


class PickledCalls(Executor):
    """Runs calls here, each after it has been pickled, as an executor on another machine would."""

    def __init__(self) -> None:
        self.n_calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.n_calls += 1
        fn, args = pickle.loads(pickle.dumps((fn, args)))
        try:
            future.set_result(pickle.loads(pickle.dumps(fn(*args))))
        except Exception as err:
            future.set_exception(err)
        return future


@pytest.mark.parametrize("name", some_of(list(encodings()), ["method pq", "preset small {'bits': 3}",
                                                             "preset fast {'sqnr': 25}", "lossless"]))
def test_an_executor_gives_the_same_bytes(name: str) -> None:
    options = dict(encodings()[name])
    tensors = model(options.pop("dtype", "f32"))
    tensors |= {"copy": tensors["embedding.weight"].copy(), "tied": tensors["fc.weight"]}
    executor = PickledCalls()

    assert vqformat.save(tensors, executor=executor, **options) == vqformat.save(tensors, **options)
    assert executor.n_calls
