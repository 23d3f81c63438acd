"""Full disks, read errors and kills, for each command that writes: a clear error, nothing left behind, nothing lost."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import full_disk

import vqformat
from vqformat.cli import main
from vqformat.read.contents import read_contents
from vqformat.read.survey import survey

NBYTES = 120_000  # of a file that is written, at least
WEIGHTS = np.random.default_rng(0).standard_normal((2, 160, 160)).astype(np.float32)
KEY = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
-----END PRIVATE KEY-----
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model in several forms."""
    arrays = {"a": WEIGHTS[0], "b": WEIGHTS[1]}
    vqformat.save_file(arrays, tmp_path / "model.vqm", lossless=True)
    np.savez(tmp_path / "model.npz", **arrays)
    data = bytearray((tmp_path / "model.vqm").read_bytes())
    data[200] ^= 1
    (tmp_path / "damaged.vqm").write_bytes(data)
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_text("{}")
    return tmp_path


def commands(folder: Path) -> dict[str, list[str]]:
    """For each command that writes, its arguments."""
    model = str(folder / "model.vqm")

    def output(suffix: str) -> list[str]:
        return ["-o", str(folder / f"out{suffix}")]

    return {
        "convert": ["convert", str(folder / "model.npz"), "--lossless", "-q", *output(".vqm")],
        "convert to a size": ["convert", str(folder / "model.npz"), "--ratio", "1.5", "-q", *output(".vqm")],
        "extract": ["extract", model, "-q", *output(".npz")],
        "recover": ["recover", str(folder / "damaged.vqm"), *output(".vqm")],
        "report": ["report", model, *output(".html")],
        "sign": ["sign", model, "--key", str(folder / "key.pem")],
    }


TARGETS = {"extract": "out.npz", "report": "out.html", "sign": "model.vqm.sig"}
MODULES = {"report": "matplotlib", "sign": "cryptography"}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("has_old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("command", commands(Path()))
def test_a_full_disk_is_one_clear_error(command: str, has_old: bool, folder: Path, capsys: Any) -> None:
    pytest.importorskip(MODULES.get(command, "numpy"))
    target, arguments = folder / TARGETS.get(command, "out.vqm"), commands(folder)[command]
    if has_old:
        target.write_bytes(b"old")
        arguments.append("-f")
    before = everything(folder)

    for nbytes in (0, 10) if command == "sign" else (0, 1, 5000, 20_000):
        with full_disk(nbytes):
            code = main(arguments)
        error = capsys.readouterr().err
        assert code == 1 and error.startswith("vqm: error: ") and error.count("\n") == 1, error
        assert "file too large" in error.lower()
        assert everything(folder) == before

    assert main(arguments) == 0
    assert everything(folder).keys() == {*before, target.name}
    assert target.read_bytes() != b"old"


def test_a_full_disk_leaves_no_folder(folder: Path, capsys: Any) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"a": WEIGHTS[0], "b": WEIGHTS[1]}, folder / "models" / "model.safetensors")
    before = everything(folder)

    for nbytes in (0, 5000, 50_000):
        with full_disk(nbytes):
            code = main(["convert", str(folder / "models"), "-o", str(folder / "out"), "--lossless", "-q"])
        error = capsys.readouterr().err
        assert code == 1 and error.startswith("vqm: error: ") and error.count("\n") == 1, error
        assert everything(folder) == before and not (folder / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["convert", "extract", "info", "verify"])
def test_an_output_that_takes_no_bytes_is_an_error(command: str, folder: Path) -> None:
    arguments = {
        "convert": ["convert", "model.npz", "-o", "-", "--lossless", "-q"],
        "extract": ["extract", "model.vqm", "-o", "-", "--format", "npz", "-q"],
        "info": ["info", "model.vqm"],
        "verify": ["verify", "model.vqm"],
    }[command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "vqformat", *arguments], stdout=full, stderr=subprocess.PIPE,
                              text=True, check=False, cwd=folder)  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("vqm: error: ") and done.stderr.count("\n") == 1, done.stderr


class Failing(io.BytesIO):
    """A file that cannot be read beyond a place, as on a damaged disk."""

    def __init__(self, data: bytes, end: int) -> None:
        super().__init__(data)
        self._end = end

    def read(self, n: int | None = -1, /) -> bytes:
        at = self.tell()
        if n is None or n < 0 or at + n > self._end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(n)


def open_all(stream: Failing) -> None:
    with vqformat.safe_open(stream) as f:
        for name in f:
            f[name]


def stream_all(stream: Failing) -> None:
    for layer in vqformat.stream(stream):
        dict(layer)


@pytest.mark.parametrize("read", [vqformat.load_file, vqformat.verify, open_all, stream_all, read_contents, survey])
def test_a_read_error_is_passed_on(read: Callable[[Any], object], folder: Path) -> None:
    data = (folder / "model.vqm").read_bytes()

    for end in (0, 20, 100, 3000, len(data) // 2, len(data) - 30, len(data) - 1):
        with pytest.raises(OSError) as caught:
            read(Failing(data, end))
        assert caught.value.errno == errno.EIO


def killed_run(arguments: list[str], after_s: float) -> int:
    with subprocess.Popen([sys.executable, "-m", "vqformat", *arguments], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
    return process.returncode


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", commands(Path()))
def test_a_run_that_is_killed_at_any_moment_loses_nothing(command: str, folder: Path) -> None:
    pytest.importorskip(MODULES.get(command, "numpy"))
    target, arguments = folder / TARGETS.get(command, "out.vqm"), [*commands(folder)[command], "-f"]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "vqformat", *arguments], check=True, capture_output=True)
    duration, whole = time.monotonic() - began, target.read_bytes()
    moments = random.Random(0)

    for _ in range(5):
        target.write_bytes(b"old")
        before = everything(folder)
        killed_run(arguments, moments.uniform(0.3, 1.1) * duration)
        found = everything(folder)
        assert found[target.name] == b"old" or len(found[target.name]) == len(whole)
        assert {name: found[name] for name in before if name != target.name} == {
            name: data for name, data in before.items() if name != target.name
        }

    subprocess.run([sys.executable, "-m", "vqformat", *arguments], check=True, capture_output=True)
    assert everything(folder).keys() == before.keys()
