"""The page that shows a .vqm, in a browser without a window."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

import vqformat

VIEWER = FIXTURES / "decoders" / "javascript"
HARNESS = Path(__file__).with_name("viewer_harness.html")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WEIGHT = np.random.default_rng(1).standard_normal((96, 64), np.float32)


class Handler(SimpleHTTPRequestHandler):
    """Serves the viewer, the harness and the files of the test, and takes the results."""

    files: Path
    results: Queue[dict[str, Any]]

    def translate_path(self, path: str) -> str:
        if path == "/harness.html":
            return str(HARNESS)
        if path.startswith("/files/"):
            return str(self.files / path.removeprefix("/files/"))
        return super().translate_path(path)

    def do_POST(self) -> None:
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the harness saw."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    folder = tmp_path_factory.mktemp("viewer")
    tensors = {"fc1.weight": WEIGHT, "fc1.bias": WEIGHT[0], "evil\u202e<b>": np.arange(3)}
    vqformat.save_file(tensors, folder / "model.vqm", {"note": "a <i>note</i>"}, bits=4)
    (folder / "cut.vqm").write_bytes((folder / "model.vqm").read_bytes()[:-5])
    handler = type("TestHandler", (Handler,), {"files": folder, "results": Queue()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(VIEWER)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    page = f"http://127.0.0.1:{server.server_port}/harness.html"
    process = subprocess.Popen([browser, *options, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield handler.results.get(timeout=120)
    except Empty:
        pytest.fail("the browser gave no results")
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_the_viewer_shows(seen: dict[str, Any]) -> None:
    assert "failed" not in seen, seen["failed"]
    assert seen["names"] == ["fc1.weight", "fc1.bias", "evil\\u{202e}<b>"]
    assert "tensors3" in seen["facts"]
    assert "a <i>note</i>" in seen["metadata"]
    assert any(chart.startswith("Histogram of the values") for chart in seen["charts"])
    assert any(chart.startswith("Histogram: Codes of ") for chart in seen["charts"])
    assert seen["filtered"] == ["fc1.bias"]


def test_a_tensor_is_saved_as_npy(seen: dict[str, Any], tmp_path: Path) -> None:
    array = np.load(io.BytesIO(bytes(seen["npy"])), allow_pickle=False)

    assert (array.dtype, array.shape) == (np.float32, (96, 64))
    assert np.corrcoef(array.ravel(), WEIGHT.ravel())[0, 1] > 0.98


def test_the_viewer_verifies_and_refuses(seen: dict[str, Any]) -> None:
    assert seen["verdict"].startswith("Every byte is right: 3 tensors")
    assert "truncated" in seen["refusal"]


def test_nothing_leaves_the_browser(seen: dict[str, Any]) -> None:
    assert seen["connection"] == "refused"


def test_a_narrow_screen_and_the_keyboard(seen: dict[str, Any]) -> None:
    assert seen["overflow"] == 0
    assert seen["focusable"] == 0
    assert seen["focus"] == "details-title"
