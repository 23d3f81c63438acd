"""``hf://`` paths and repositories, through huggingface_hub, from a server on this machine."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from cli_runs import Run

import vqformat
from vqformat import load_file, safe_open
from vqformat.hub import local_folder

hub = pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub is not installed: pip install 'vqformat[transformers]'")  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the library

REPOSITORY, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"
PATH = f"hf://{REPOSITORY}/model.vqm"


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks for about one repository, and notes which bytes it has sent."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.sent: list[tuple[str, int]] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.server.files[name]), "oid": "0" * 40}

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = json.loads(text)["paths"] if text.startswith("{") else [
            unquote(pair.partition("=")[2]) for pair in text.split("&") if pair.startswith("paths=")]  # fmt: skip
        found = [self._entry(name) for name in names if name in self.server.files]
        self._answer(json.dumps(found).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/") and "/tree/" in path:
            self._answer(json.dumps([self._entry(name) for name in self.server.files]).encode())
            return
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            document = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(document).encode(), Content_Type="application/json")
            return
        name = path.partition("/resolve/")[2].partition("/")[2]
        data = self.server.files.get(name)
        if data is None:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        headers = {"ETag": f'"{abs(hash(name)):x}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range")
        if asked is not None:
            start, last = (int(number or len(data)) for number in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {start}-{min(last, len(data) - 1)}/{len(data)}"
            data = data[start : last + 1]
        if self.command == "GET":
            self.server.sent.append((name, len(data)))
        self._answer(data, 200 if asked is None else 206, **headers)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {f"layer{i}.weight": rng.standard_normal((64, 512), np.float32) for i in range(8)}


@pytest.fixture
def server(arrays: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"model.vqm": vqformat.save(arrays, lossless=True), "config.json": b"{}", "model.safetensors": b"x"}
    constants = import_module("huggingface_hub.constants")
    hub.HfFileSystem.clear_instance_cache()
    with Hub(files) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
    hub.HfFileSystem.clear_instance_cache()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_opening_takes_two_reads_and_a_layer_one_more(server: Hub, arrays: dict[str, Any]) -> None:
    with safe_open(PATH) as file:
        assert file.keys() == list(arrays)
        assert len(server.sent) == 2
        found = file["layer3.weight"]

    assert np.array_equal(found, arrays["layer3.weight"])
    assert len(server.sent) == 3


def test_a_revision_may_be_given(server: Hub, arrays: dict[str, Any]) -> None:
    with safe_open(f"hf://{REPOSITORY}@{COMMIT}/model.vqm") as file:
        assert len(file) == len(arrays)


def test_loading_is_one_read(server: Hub, arrays: dict[str, Any]) -> None:
    assert same(load_file(PATH), arrays)
    assert len(server.sent) == 1


def test_streaming_and_verifying(server: Hub, arrays: dict[str, Any]) -> None:
    assert same({name: array for layer in vqformat.stream(PATH) for name, array in layer.items()}, arrays)
    assert len(vqformat.verify(PATH)) == 64


def test_a_pickle_opens_it_again(server: Hub, arrays: dict[str, Any]) -> None:
    with safe_open(PATH) as file:
        data = pickle.dumps(file)

    with pickle.loads(data) as again:
        assert np.array_equal(again["layer0.weight"], arrays["layer0.weight"])


def test_a_file_that_is_not_there(server: Hub) -> None:
    with pytest.raises(FileNotFoundError):
        safe_open(f"hf://{REPOSITORY}/other.vqm")


def test_a_repository_is_fetched_without_its_other_weights(server: Hub) -> None:
    folder = local_folder(REPOSITORY, ["config.json", "*.vqm"])

    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.vqm"]


def test_commands(server: Hub, tmp_path: Path, run: Run) -> None:
    assert "8 tensors" in run("info", PATH).out
    assert f"{PATH}: ok" in run("verify", PATH).out
    assert run("extract", PATH, "-o", tmp_path / "out.npz").code == 0
    assert run("convert", PATH, "-o", tmp_path / "out.vqm", "--preset", "fast").code == 0
    assert run("diff", PATH, tmp_path / "out.npz").code == 0


def test_streamed_models_read_it(server: Hub, arrays: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from vqformat.torch import load_model, stream_model

    def model() -> Any:
        return torch.nn.ModuleDict({f"layer{i}": torch.nn.Linear(512, 64, bias=False) for i in range(8)})

    streamed, loaded = model(), model()
    for keep in ("file", "memory"):
        stream_model(streamed, PATH, keep=keep)  # type: ignore[arg-type]
        assert np.array_equal(streamed["layer1"].weight[:2].detach().numpy(), arrays["layer1.weight"][:2])
    load_model(loaded, PATH)
    assert np.array_equal(loaded["layer7"].weight.detach().numpy(), arrays["layer7.weight"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(ImportError, match=r"needs huggingface_hub; run: pip install huggingface_hub"):
        load_file(PATH)


@pytest.mark.parametrize("name", ["model.vqm.index.json", "model.vqm"])
def test_shards_are_found_by_their_index(
    server: Hub, arrays: dict[str, Any], tmp_path: Path, name: str, run: Run
) -> None:
    vqformat.save_file(arrays, tmp_path / "model.vqm", lossless=True, max_shard_size="300kB")
    server.files = {path.name: path.read_bytes() for path in tmp_path.glob("model*")}
    assert len(server.files) == 5
    path = f"hf://{REPOSITORY}/{name}"

    with safe_open(path) as file:
        found = file["layer7.weight"]
        assert {sent[0] for sent in server.sent} == {"model.vqm.index.json", "model-00004-of-00004.vqm"}
        assert np.array_equal(found, arrays["layer7.weight"])
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.keys() == list(arrays)
    assert same(load_file(path), arrays)
    assert run("verify", path).code == 0
    assert "4 shards" in run("info", path).out
