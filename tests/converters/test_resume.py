"""Conversions that are stopped and resumed: the file has the bytes of one that nothing has stopped."""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import some_of
from safetensors.numpy import save_file

from vqformat.converters import convert
from vqformat.encode import outcome_file, tensor_work
from vqformat.encode.progress import TensorProgress
from vqformat.errors import EncodeError

N_TENSORS = 6
OPTIONS: list[dict[str, Any]] = [
    {}, {"preset": "small", "bits": 3}, {"preset": "fast", "sqnr": 20}, {"lossless": True},
    {"recipe": "kmeans:entries=8,share=one"}, {"recipe": {"w1": "pq", "*": "uniform"}, "ratio": 6},
]  # fmt: skip
STOPS = list(product([3, 11, 17, 29], OPTIONS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "model.safetensors")


def make_source(path: Path, seed: int = 0, shape: tuple[int, int] = (64, 96)) -> Path:
    random = np.random.default_rng(seed)
    tensors = {f"w{i}": (0.1 * random.standard_normal(shape)).astype(np.float32) for i in range(N_TENSORS)}
    save_file({**tensors, "x copy": tensors["w2"].copy(), "bias": np.ones(40, np.float32)}, path)
    return path


def stopping_after(n_calls: int) -> Callable[..., None]:
    calls = []

    def progress(name: TensorProgress, done: int, total: int) -> None:
        calls.append(name)
        if len(calls) == n_calls:
            raise KeyboardInterrupt

    return progress


def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors whose jobs are done from now on, here."""
    found: list[str] = []
    do = tensor_work.run.__globals__["do"]
    monkeypatch.setitem(tensor_work.run.__globals__, "do", lambda *args: found.append(args[1].name) or do(*args))
    return found


@pytest.mark.parametrize(("n_calls", "options"), some_of(
    STOPS, [(n_calls, options) for n_calls, options in STOPS
            if (n_calls == 11 and options == OPTIONS[2]) or (n_calls in (3, 17) and options != OPTIONS[2])]
), ids=str)  # fmt: skip
def test_a_conversion_that_was_stopped_is_resumed(source: Path, n_calls: int, options: dict[str, Any]) -> None:
    undisturbed, target = source.with_name("a.vqm"), source.with_name("b.vqm")
    convert(source, undisturbed, **options)
    try:
        convert(source, target, resume=True, progress=stopping_after(n_calls), **options)
    except KeyboardInterrupt:
        assert not target.exists()
        assert Path(f"{target}.part").is_dir()

    convert(source, target, resume=True, overwrite=True, **options)

    assert target.read_bytes() == undisturbed.read_bytes()
    assert not Path(f"{target}.part").exists()


def stopped(source: Path, n_calls: int = 15, **options: Any) -> Path:
    """The target of a conversion that was stopped."""
    target = source.with_name("stopped.vqm")
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, resume=True, progress=stopping_after(n_calls), **options)
    return target


def kept(target: Path) -> list[Path]:
    return sorted(Path(f"{target}.part").iterdir())


def test_finished_tensors_are_not_encoded_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = stopped(source, preset="small")
    n_kept = len(kept(target))
    found = runs(monkeypatch)

    convert(source, target, resume=True, preset="small")

    assert n_kept >= 2
    assert len(found) == N_TENSORS - n_kept


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_a_damaged_tensor_is_encoded_again(source: Path, how: str) -> None:
    target = stopped(source)
    path = kept(target)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-9], "changed": data, "empty": b""}[how])

    convert(source, target, resume=True)

    convert(source, source.with_name("a.vqm"))
    assert target.read_bytes() == source.with_name("a.vqm").read_bytes()


@pytest.mark.parametrize("change", ["source", "options"])
def test_nothing_is_used_that_is_of_another_source_or_of_other_options(
    source: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = stopped(source)
    if change == "source":
        make_source(source, 1)
    found = runs(monkeypatch)

    convert(source, target, resume=True, seed=1 if change == "options" else 0)

    assert len(found) == N_TENSORS


def test_what_a_stopped_conversion_left_is_removed_and_told_of(source: Path) -> None:
    target = stopped(source)

    report = convert(source, target)

    assert not Path(f"{target}.part").exists()
    assert [note for note in report.notes if "stopped.vqm.part" in note and "resumed" in note]


def test_a_large_source_is_kept_without_being_asked(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.encode.outcome_folder.LARGE_NBYTES", 1000)
    target = source.with_name("b.vqm")

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, resume=None, progress=stopping_after(15))

    assert kept(target)


def test_a_folder_of_somebody_else_is_left_alone(source: Path) -> None:
    target = source.with_name("b.vqm")
    theirs = Path(f"{target}.part", "thesis.tex")
    theirs.parent.mkdir()
    theirs.write_text("")

    for resume in (False, True):
        with pytest.raises(EncodeError, match="is in the way"):
            convert(source, target, resume=resume)

    assert theirs.exists()


def test_a_goal_that_cannot_be_met_leaves_no_folder(source: Path) -> None:
    with pytest.raises(EncodeError):
        convert(source, source.with_name("b.vqm"), resume=True, size=100)

    assert not source.with_name("b.vqm.part").exists()


def test_a_stream_cannot_be_resumed(source: Path) -> None:
    with pytest.raises(EncodeError, match="has a name"):
        convert(source, io.BytesIO(), resume=True)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("n_parts", [0, 3, 1 << 40])
def test_an_outcome_that_lies_about_its_parts_is_refused(tmp_path: Path, n_parts: int) -> None:
    body = struct.pack("<Q", n_parts)
    (tmp_path / "name").write_bytes(body + struct.pack("<I8s", zlib.crc32(body), b"vqm part"))
    assert outcome_file.is_whole(str(tmp_path), "name")

    with pytest.raises(EncodeError, match="was not written by a conversion"):
        outcome_file.read(str(tmp_path), "name", is_kept=True)


def test_an_outcome_runs_no_code(tmp_path: Path) -> None:
    outcome_file.write(_Evil(), str(tmp_path), "name")

    with pytest.raises(EncodeError, match=r"system is not allowed"):
        outcome_file.read(str(tmp_path), "name", is_kept=True)
    for allowed in (outcome_file.packed, np.save, subprocess.run):
        with pytest.raises(pickle.UnpicklingError):
            outcome_file.unpacked([pickle.dumps(allowed)])


@pytest.mark.parametrize("workers", some_of([1, 2], [2]))
def test_a_conversion_that_was_killed_is_resumed(tmp_path: Path, workers: int) -> None:
    source = make_source(tmp_path / "model.safetensors", shape=(256, 512))
    target = tmp_path / "b.vqm"
    command = [sys.executable, "-m", "vqformat", "convert", str(source), "-o", str(target), "--preset", "small",
               "--workers", str(workers), "--resume"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and len(list(tmp_path.glob("b.vqm.part/*"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_kept = len(kept(target))

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    convert(source, tmp_path / "a.vqm", preset="small")
    assert n_kept >= 2
    assert target.read_bytes() == (tmp_path / "a.vqm").read_bytes()
