"""``vqm convert --dask``, with a real cluster of two worker processes on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("distributed", reason="not installed: pip install 'vqformat[dask]'")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    save_file({f"w{i}": random.standard_normal((256, 512)).astype(np.float32) for i in range(16)}, path)
    return path


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler, and the processes of its workers."""
    file, folder = tmp_path / "scheduler.json", str(tmp_path)
    def start(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", *command, "--scheduler-file", str(file)],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    scheduler = start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    workers = [start("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard",
                     "--local-directory", folder) for _ in range(2)]  # fmt: skip
    try:
        yield f"file:{file}", workers
    finally:
        for process in [*workers, scheduler]:
            process.kill()
            process.wait()
