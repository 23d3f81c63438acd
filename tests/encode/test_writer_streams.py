"""Writing to streams and pipes: those that take a part, that break, that are read meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layered_models import Recorder, flat, model, written

import vqformat
from vqformat import TruncatedError


@pytest.mark.parametrize("options", [{}, {"preset": "small"}, {"bits": 5}], ids=str)
def test_what_a_stream_has_got_when_it_stops_is_no_file_but_its_layers_can_be_had(options: dict[str, Any]) -> None:
    layers = model(3)
    stream = Recorder()

    with pytest.raises(RuntimeError), vqformat.writer(stream, **options) as w:
        for i, (name, tensors) in enumerate(layers.items()):
            if i == 2:
                raise RuntimeError
            w.add_layer(name, tensors)

    with pytest.raises(TruncatedError):
        vqformat.load(stream.data)
    with pytest.warns(UserWarning, match="ends early"):
        there = vqformat.load(stream.data, allow_partial=True)
    n_written = 0 if "bits" in options else 2  # a budget has to know all before anything is written
    assert list(there) == [name for tensors in list(layers.values())[:n_written] for name in tensors]


class Slow(Recorder):
    """A raw stream that takes some bytes at a time."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data[:1000]))


def test_streams_that_take_a_part_are_given_the_rest() -> None:
    stream = Slow()
    with vqformat.writer(stream) as w:
        for name, tensors in model().items():
            w.add_layer(name, tensors)

    assert stream.data == written(model())
    assert w.report.file_nbytes == len(stream.data)


def test_streams_that_do_not_wait_are_refused() -> None:
    class Full(Recorder):
        def write(self, data: Any) -> Any:
            return None

    with pytest.raises(BlockingIOError, match="a blocking one is needed"):
        vqformat.writer(Full())
    with pytest.raises(TypeError, match="expected a path or a binary stream, not int"):
        vqformat.writer(3)


class Full(io.RawIOBase):
    """A stream that breaks after some bytes."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return len(data)


@pytest.mark.parametrize("nbytes", [10, 100, 5000, 15_000])
def test_a_stream_that_breaks_ends_the_file(nbytes: int) -> None:
    with pytest.raises(OSError, match="No space left"), vqformat.writer(Full(nbytes)) as w:
        for name, tensors in model().items():
            w.add_layer(name, tensors)


def test_a_broken_stream_is_not_gone_on_with() -> None:
    w = vqformat.writer(Full(200))
    with pytest.raises(OSError, match="No space left"):
        w.add_layer("", model()["layers.0"])

    with pytest.raises(ValueError, match="ended by an error"):
        w.close()


def test_a_reader_at_the_end_of_a_pipe_has_a_layer_before_the_next_is_written() -> None:
    inlet, outlet = os.pipe()
    layers = model(3)
    got: list[str] = []
    seen = [threading.Event() for _ in layers]

    def read() -> None:
        with open(inlet, "rb", buffering=0) as source:
            for layer, event in zip(vqformat.stream(source), seen, strict=True):  # type: ignore[arg-type]
                got.extend(layer)
                assert all(np.isfinite(array).all() for array in layer.values())
                event.set()

    reader = threading.Thread(target=read)
    reader.start()
    with open(outlet, "wb", buffering=0) as sink, vqformat.writer(sink) as w:  # type: ignore[arg-type]
        for (name, tensors), event in zip(layers.items(), seen, strict=True):
            w.add_layer(name, tensors)
            assert event.wait(300)
    reader.join()

    assert got == list(flat(layers))


@pytest.mark.parametrize("options", [["--preset", "fast"], ["--ratio", "6"]], ids=str)
def test_convert_writes_to_a_pipe(tmp_path: Path, options: list[str]) -> None:
    np.savez(tmp_path / "model.npz", **flat(model()))
    command = [sys.executable, "-m", "vqformat", "convert", "model.npz", "-o", "-", "-q", *options]

    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        names = [name for layer in vqformat.stream(process.stdout) for name in layer]  # type: ignore[arg-type]

    assert process.returncode == 0
    assert names == list(flat(model()))
    assert os.listdir(tmp_path) == ["model.npz"]
