"""A file that is open when the process is forked, or that is handed to another process in a pickle."""

from __future__ import annotations

import contextlib
import gzip
import io
import mmap
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import begin, end, needs_fork

import vqformat
from vqformat import safe_open
from vqformat.forks import RenewedByFork

# Python 3.12 and later warn of a fork while threads run, which is what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

Arrays = dict[str, np.ndarray[Any, Any]]
N_LAYERS = 6


@cache
def data() -> bytes:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.{name}": rng.standard_normal(shape).astype(np.float32)
               for i in range(N_LAYERS) for name, shape in (("weight", (150, 1800)), ("bias", (150,)))}  # fmt: skip
    return vqformat.save(tensors)


@cache
def expected() -> Arrays:
    return vqformat.load(data())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.vqm"
    path.write_bytes(data())
    return path


def check(f: Mapping[str, Any], times: int = 1) -> None:
    """Compare all tensors of a file, in an order of this process."""
    order = np.random.default_rng(os.getpid())
    for _ in range(times):
        for name in order.permutation(sorted(expected())):
            assert np.array_equal(f[name], expected()[name]), name


class InMemory:
    """A file that is nothing but ``seek`` and ``read``."""

    def __init__(self) -> None:
        self._file = io.BytesIO(data())

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, n: int) -> bytes:
        return self._file.read(n)


def temporary(path: Path) -> Any:
    file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
    file.write(data())
    return file


def mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


OPEN: dict[str, Callable[[Path], Any]] = {
    "a path": str,
    "a file": lambda path: open(path, "rb"),  # noqa: SIM115
    "an unbuffered file": lambda path: open(path, "rb", buffering=0),  # noqa: SIM115
    "a temporary file": temporary,
    "bytes": lambda path: io.BytesIO(data()),
    "a map": mapped,
    "another file": lambda path: InMemory(),
}


@contextmanager
def opened(kind: str, path: Path) -> Iterator[Any]:
    source = OPEN[kind](path)
    with contextlib.closing(source) if hasattr(source, "close") else contextlib.nullcontext(), safe_open(source) as f:
        yield f


@needs_fork
@pytest.mark.parametrize("kind", OPEN)
def test_processes_that_are_forked_read_the_same_open_file(kind: str, path: Path) -> None:
    with opened(kind, path) as f:
        check(f)
        children = [begin("fork", check, f, 4) for _ in range(3)]
        check(f, 4)
        end(*children)
        check(f)


@needs_fork
@pytest.mark.parametrize("kind", ["a path", "bytes", "another file"])
def test_a_fork_while_four_threads_read(kind: str, path: Path) -> None:
    with opened(kind, path) as f:
        is_over = threading.Event()
        failed: list[BaseException] = []

        def read() -> None:
            try:
                while not is_over.is_set():
                    check(f)
            except BaseException as err:
                failed.append(err)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                end(begin("fork", check, f))
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    assert not failed


@needs_fork
def test_a_file_that_cannot_be_opened_again_is_refused_in_a_forked_process_only(path: Path) -> None:
    with gzip.open(path.parent / "model.vqm.gz", "wb", compresslevel=1) as stream:
        stream.write(data())

    with gzip.open(path.parent / "model.vqm.gz", "rb") as stream, safe_open(stream) as f:  # type: ignore[arg-type]

        def child() -> None:
            with pytest.raises(OSError, match=r"GzipFile .* before this process was forked .*: open it here"):
                f["layers.1.weight"]

        end(begin("fork", child))
        check(f)


@needs_fork
def test_a_stream_goes_on_in_both_processes(path: Path) -> None:
    def finish(layers: Any) -> None:
        found = {name: array for layer in layers for name, array in layer.items()}
        assert all(np.array_equal(array, expected()[name]) for name, array in found.items())
        assert list(found) == list(expected())[2 * 2 :]

    with vqformat.stream(path) as layers:
        for _ in range(2):
            dict(next(layers))
        children = [begin("fork", finish, layers) for _ in range(2)]
        finish(layers)
        end(*children)


@pytest.fixture
def forked_when_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are renewed as in a forked process, as soon as a fork can meet them."""
    register = RenewedByFork.__init__

    def register_and_renew(self: RenewedByFork) -> None:
        register(self)
        self.renew_after_fork()

    monkeypatch.setattr(RenewedByFork, "__init__", register_and_renew)


@pytest.mark.usefixtures("forked_when_registered")
def test_a_fork_meets_only_complete_files(path: Path) -> None:
    with safe_open(io.BytesIO(path.read_bytes())) as f:
        assert np.array_equal(f["layers.1.bias"], expected()["layers.1.bias"])


@pytest.mark.usefixtures("forked_when_registered")
def test_a_fork_meets_only_complete_stores_of_weights(path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")
    weight_store = pytest.importorskip("vqformat.torch.weight_store")

    with safe_open(path, "pt") as f:
        assert weight_store.WeightStore(f, 2).tensor("layers.1.bias").shape == (150,)


# Pickles


@pytest.mark.parametrize("kind", ["a path", "a file", "an unbuffered file", "bytes", "another file"])
def test_a_pickled_file_is_opened_again(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)

    with opened(kind, Path("model.vqm")) as f:
        monkeypatch.chdir("/")
        again = pickle.loads(pickle.dumps(f))

    with again:
        check(again)


def test_a_spawned_process_gets_a_file_and_a_slice(path: Path) -> None:
    with safe_open(path) as f:
        end(begin("spawn", check_spawned, f, f.get_slice("layers.3.weight")))


def check_spawned(f: Any, part: Any) -> None:
    check(f)
    assert np.array_equal(part[5:10], expected()["layers.3.weight"][5:10])


def test_a_pickle_has_the_options(path: Path) -> None:
    with safe_open(path, max_tensor_bytes=1000, threads=1) as f, pickle.loads(pickle.dumps(f)) as again:
        assert again._threads == 1
        with pytest.raises(vqformat.LimitError):
            again["layers.0.weight"]


@pytest.mark.parametrize("kind", ["a temporary file", "a map"])
def test_what_has_no_path_cannot_be_pickled(kind: str, path: Path) -> None:
    with opened(kind, path) as f, pytest.raises(TypeError, match=r"a (BufferedRandom|mmap) cannot be pickled"):
        pickle.dumps(f)


@pytest.mark.parametrize("kind", ["a path", "a file"])
def test_a_file_that_is_not_at_its_path_any_more_cannot_be_pickled(kind: str, path: Path) -> None:
    with opened(kind, path) as f:
        path.replace(path.with_name("older.vqm"))
        with pytest.raises(TypeError, match=r"not at '.*model.vqm' any more"):
            pickle.dumps(f)
        path.write_bytes(data())
        with pytest.raises(TypeError, match=r"not at '.*model.vqm' any more"):
            pickle.dumps(f)


@pytest.mark.parametrize("kind", ["a path", "bytes"])
def test_a_closed_file_and_a_stream_cannot_be_pickled(kind: str, path: Path) -> None:
    with safe_open(OPEN[kind](path)) as f:
        pass
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(f)
    with vqformat.stream(OPEN[kind](path)) as layers, pytest.raises(TypeError, match="a stream is read once"):
        pickle.dumps(layers)
