"""``vqm convert --dask``, with a real cluster of two worker processes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run, write_matrices

import vqformat

distributed = pytest.importorskip("distributed", reason="not installed: pip install 'vqformat[dask]'")
Cluster = tuple[str, list[subprocess.Popen[bytes]]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_matrices(tmp_path / "model.safetensors", 16, (128, 512))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The address of a scheduler, and the processes of its two workers."""
    file = tmp_path / "scheduler.json"

    def start(module: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--scheduler-file", str(file), "--no-dashboard"]
        return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
    try:
        wait_for(file.exists)
        options = ("--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
        processes += [start("dask_worker", *options) for _ in range(2)]
        address = json.loads(file.read_text())["address"]
        with distributed.Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(source: Path, cluster: Cluster, run: Run) -> None:
    address, workers = cluster
    part = source.with_suffix(".vqm.part")

    def kill_a_worker() -> None:
        wait_for(lambda: part.is_dir() and len(list(part.iterdir())) > 2)
        workers[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()

    result = run("convert", source, "--preset", "small", "--bits", "3", "--dask", address, "--resume")

    killer.join()
    assert result.code == 0, result.err
    assert workers[0].wait() != 0
    assert workers[1].poll() is None
    assert run("convert", source, "--preset", "small", "--bits", "3", "-o", source.with_name("b.vqm")).code == 0
    assert source.with_suffix(".vqm").read_bytes() == source.with_name("b.vqm").read_bytes()


def test_arrays_are_sent_to_a_cluster_from_python(cluster: Cluster) -> None:
    model = {f"w{i}": np.random.default_rng(i).standard_normal((100, 100)).astype(np.float32) for i in range(5)}

    with distributed.Client(cluster[0]) as client:
        assert vqformat.save(model, executor=client.get_executor()) == vqformat.save(model)


def test_a_scheduler_that_does_not_answer_is_named(
    source: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqformat.cli.cluster._TIMEOUT_S", 1)

    run("convert", source, "--dask", "tcp://127.0.0.1:9").failed_with("tcp://127.0.0.1:9")
