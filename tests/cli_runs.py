"""Runs of the command ``vqm``, in this process and in others."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.cli import main
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.records import AliasRecord

Run = Callable[..., "Result"]

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\r\nb\u202egnp.exe\u2028c\\d"
HOSTILE_ESCAPED = r"a\x1b]0;owned\x07\x1b[2J\r\nb\u202egnp.exe\u2028c\\d"


class Result:
    """What a run left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def failed_with(self, *words: str) -> None:
        """It failed with one line on stderr that has these words, and nothing on stdout."""
        assert (self.code, self.out) == (1, "")
        assert self.err.startswith("vqm: error: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        for word in words:
            assert word in self.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str | Path) -> Result:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as err:  # by argparse
            assert isinstance(err.code, int)
            code = err.code
        out, err_text = capsys.readouterr()
        return Result(code, out, err_text)

    return run


def vqm(*args: str | Path, data: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "vqformat", *map(str, args)]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=600, **options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small .vqm with an alias, a scalar, an empty tensor and a name that attacks the terminal."""
    path = tmp_path / "model.vqm"
    with ChunkWriter(path, {"note": "x\x1b[31m", "vqm.source": {"format": "npz"}}) as writer:
        weight = np.array([[1, 2, 3], [4, 5, 6]], "<f4")
        writer.add_layer("fc1", [assemble_raw("fc1.weight", "f32", weight, 0, compress=False),
                                 assemble_raw("fc1.bias", "f16", np.array([0.5, -2], "<f2"), 0, compress=False),
                                 AliasRecord("fc1.tied", "fc1.weight")])  # fmt: skip
        writer.add_layer("", [assemble_raw("step", "i64", np.array(7, "<i8"), 0, compress=False),
                              assemble_raw("none", "f32", np.zeros((0, 3), "<f4"), 0),
                              assemble_raw(HOSTILE, "u8", np.array([9], np.uint8), 0, compress=False)])  # fmt: skip
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A checkpoint that needs neither torch nor safetensors."""
    path = tmp_path / "net.npz"
    rng = np.random.default_rng(1)
    np.savez(path, **{"fc1.weight": rng.standard_normal((64, 48), np.float32),
                      "fc1.bias": rng.standard_normal(64, np.float32), "step": np.array(3)})  # fmt: skip
    return path


def as_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def write_matrices(path: Path, n: int, shape: tuple[int, int]) -> Path:
    """Write a safetensors file of random matrices, ``w0``, ``w1``, …."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    save_file({f"w{i}": random.standard_normal(shape).astype(np.float32) for i in range(n)}, path)
    return path
