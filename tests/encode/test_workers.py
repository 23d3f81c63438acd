"""Tensors that workers encode: the bytes of the file are those that one process writes."""

from __future__ import annotations

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
                                                             "preset fast {'sqnr': 25}", "dtype bf16 default",
                                                             "lossless"]))
def test_an_executor_gives_the_same_bytes(name: str) -> None:
    options = dict(encodings()[name])
    tensors = model(options.pop("dtype", "f32"))
    tensors |= {"copy": tensors["embedding.weight"].copy(), "tied": tensors["fc.weight"]}
    executor = PickledCalls()

    assert vqformat.save(tensors, executor=executor, **options) == vqformat.save(tensors, **options)
    assert bool(executor.n_calls) != (name == "layers share a codebook")  # these stay in one process


@pytest.mark.parametrize("options", some_of(
    [{"preset": "small", "bits": 3}, {"recipe": "rq:stages=2,entries=16", "ratio": 7}], [{"preset": "small", "bits": 3}]
), ids=str)  # fmt: skip
def test_processes_give_the_same_bytes(options: dict[str, Any]) -> None:
    assert vqformat.save(model(), workers=2, **options) == vqformat.save(model(), **options)


def test_threads_give_the_same_bytes() -> None:
    with ThreadPoolExecutor(3) as executor:
        assert vqformat.save(model(), executor=executor, bits=3) == vqformat.save(model(), bits=3)


def test_a_writer_takes_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        with vqformat.writer(tmp_path / f"{workers}.vqm", workers=workers) as writer:
            writer.add_layer("a", model())
            writer.add_layer("b", {"b." + name: array for name, array in model().items()})

    assert (tmp_path / "1.vqm").read_bytes() == (tmp_path / "2.vqm").read_bytes()


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_workers_are_counted_from_one(workers: Any) -> None:
    with pytest.raises(vqformat.EncodeError, match="workers is"):
        vqformat.save(model(), workers=workers)


def test_an_error_in_a_worker_names_the_tensor_as_without() -> None:
    tensors = {**model(), "bad": np.full((100, 100), np.nan, np.float32)}
    messages = []
    for executor in (None, PickledCalls()):
        with pytest.raises(vqformat.EncodeError) as err:
            vqformat.save(tensors, recipe={"bad": "pq"}, executor=executor)
        messages.append(str(err.value))

    assert messages[0] == messages[1]
    assert "'bad'" in messages[0]


def test_workers_share_the_processors() -> None:
    with worker_pool.opened_pool(2, None, None) as pool:
        assert pool is not None
        n_threads = {pool._executor.submit(os.getenv, "OPENBLAS_NUM_THREADS").result() for _ in range(6)}

    assert n_threads == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def kill_one(*_: Any) -> None:
    import multiprocessing

    for process in multiprocessing.active_children()[:1]:
        process.kill()


def test_a_worker_that_was_killed_is_told_of() -> None:
    with pytest.raises(vqformat.EncodeError, match="a worker process ended"):
        vqformat.save(model(), workers=2, preset="small", progress=kill_one)


def test_progress_counts_all_weights_of_all_workers() -> None:
    calls = []

    vqformat.save(model(), workers=2, progress=lambda name, done, total: calls.append((name.number, done, total,
                                                                                         name.share)))  # fmt: skip

    assert [share for *_, share in calls] == sorted(share for *_, share in calls)
    assert calls[-1][3] == 1.0
    for number in {number for number, *_ in calls}:
        done = [done for n, done, *_ in calls if n == number]
        assert done == sorted(done)
    assert {done for number, done, *_ in calls if number == 2} & {sum(w.size for w in model().values())}


def large_model(path: Path, n: int = 40) -> Path:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    save_file({f"w{i}": random.standard_normal((256, 512)).astype(np.float32) for i in range(n)}, path)
    return path


def children_of(process: int) -> list[int]:
    return [int(n) for task in Path(f"/proc/{process}/task").glob("*/children") for n in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list processes in /proc")
@pytest.mark.parametrize("how", some_of([signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
                                        [signal.SIGINT, signal.SIGKILL]))  # fmt: skip
def test_workers_end_with_the_run(tmp_path: Path, how: signal.Signals) -> None:
    source = large_model(tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "vqformat", "convert", str(source), "--preset", "small", "--workers", "2",
               "--resume"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: bool(list(tmp_path.glob("*.part/*"))))
    children = children_of(process.pid)

    process.send_signal(how)

    process.communicate(timeout=60)
    assert len(children) >= 2
    wait_for(lambda: not any(Path(f"/proc/{child}/task").exists() for child in children))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
