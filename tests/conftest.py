"""What several test files need."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, or they wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# pytest rewrites the asserts of all modules of Hypothesis, as it has a plugin. Where no byte code may be written, that
# takes a second in each process: these are imported as they are.
_finders = sys.meta_path[:]
sys.meta_path[:] = [finder for finder in _finders if not type(finder).__module__.startswith("_pytest.")]
import hypothesis  # noqa: E402
import hypothesis.extra.numpy  # noqa: E402

sys.meta_path[:] = _finders

pytest_plugins = ["cli_runs", "saved_models"]  # their fixtures

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
CHECKPOINT = FIXTURES / "checkpoints" / "lenet300_100_mnist.pt"

sys.path.insert(0, str(Path(__file__).resolve().parent))  # strategies, vqmbuilder, minidecoder

from examples import register_profiles  # noqa: E402

register_profiles()
hypothesis.settings.load_profile("brief")  # --hypothesis-profile loads another


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """The garbage collector never visits the million objects that are there once tests are collected."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def forget(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let modules be imported anew, until the end of the test: what other tests see are those from before."""
    for package, _, name in (module.rpartition(".") for module in modules):
        if hasattr(sys.modules[package], name):
            monkeypatch.setattr(sys.modules[package], name, getattr(sys.modules[package], name))  # put back at the end
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real models that is no part of the project; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("VQFORMAT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set VQFORMAT_DATA to where the benchmark models lie")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on how many random numbers those before it have taken."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(0)  # that of the processor; torch.manual_seed notes the stack for each GPU


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of files on this machine."""
    from remote_files import Server

    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def http(server: Any) -> Iterator[Any]:
    """fsspec's file system; a server that does not answer ends the test."""
    import aiohttp
    import fsspec

    files = fsspec.filesystem("http", skip_instance_cache=True,
                              client_kwargs={"timeout": aiohttp.ClientTimeout(total=300)})  # fmt: skip
    yield files
    if files._session is not None:
        files.close_session(files.loop, files._session)


@pytest.fixture
def remote(server: Any, http: Any) -> Callable[[bytes], Any]:
    """Opens bytes over HTTP by fsspec, whose own reading ahead is off: every read is a request."""
    return lambda data: http.open(server.url(data), "rb", cache_type="none")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What streamed models decode during the test."""
    from streamed_models import watch_decoding

    return watch_decoding(monkeypatch)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models of Keras, each built and saved once."""
    from keras_zoo import Zoo

    return Zoo(tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="session")
def _hdf5_server() -> Iterator[Any]:
    import hdf5_server

    if hdf5_server.IS_POSSIBLE and find_spec("h5py") is not None:
        server = hdf5_server.Server()
        yield server
        server.close()
    else:
        yield None


@pytest.fixture
def forked_libhdf5(_hdf5_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 files are read by forks of one process, where this is possible; test_hdf5.py reads them as users do."""
    if _hdf5_server is not None:
        monkeypatch.setattr(import_module("vqformat.converters.hdf5"), "subprocess", _hdf5_server)


@pytest.fixture
def use_numpy() -> Iterator[Callable[[], Any]]:
    """To be called before a test is about how NumPy decodes; kernels decode each payload by itself."""
    from vqformat import native

    before = native.backend()
    yield lambda: native.use("numpy")
    native.use(before)
