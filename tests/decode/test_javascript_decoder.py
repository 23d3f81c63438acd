"""The decoder in JavaScript reads all fixtures right, and models that the encoder writes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from index_faults import OTHER_DIGEST, index_faults

import vqformat

FOLDER = FIXTURES / "decoders" / "javascript"


@pytest.fixture(scope="module")
def node() -> str:
    """The command ``node``, version 18 or later."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("node is not installed")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 18:
        pytest.skip(f"node {version.strip()} is older than version 18")
    return command


def run(node: str, *args: str | Path, data: bytes = b"") -> tuple[int, Any]:
    done = subprocess.run([node, *map(str, args)], input=data, capture_output=True, check=False, timeout=300)
    assert not done.stderr, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def test_all_fixtures_whole_in_pieces_by_the_index_and_by_ranges(node: str) -> None:
    code, report = run(node, FOLDER / "conformance.mjs", FIXTURES)

    assert report["failures"] == []
    assert report["right"] == report["files"] == len(json.loads((FIXTURES / "manifest.json").read_text()))
    assert code == 0


def test_wrong_fields_of_the_index(node: str, tmp_path: Path) -> None:
    manifest = []
    for fault, data in index_faults():
        (tmp_path / fault).write_bytes(data)
        manifest.append({"file": fault, "comment": fault, "clauses": [], "sha256": hashlib.sha256(data).hexdigest(),
                         "error": "checksum" if fault == OTHER_DIGEST else "format"})  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    _, report = run(node, FOLDER / "conformance.mjs", tmp_path)

    assert report["failures"] == []


@pytest.mark.parametrize("preset", ["default", "fast", "small"])
def test_files_of_the_encoder(node: str, tmp_path: Path, preset: str) -> None:
    rng = np.random.default_rng(1)
    arrays = {"fc1.weight": rng.standard_normal((96, 64), np.float32), "fc1.bias": rng.standard_normal(96, np.float32),
              "half": rng.standard_normal((64, 48)).astype(np.float16), "steps": np.arange(5)}  # fmt: skip
    path = tmp_path / "model.vqm"
    vqformat.save_file(arrays, path, bits=3, preset=preset)

    code, found = run(node, FOLDER / "vqmcat.mjs", "-", data=path.read_bytes())

    expected = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in vqformat.load_file(path).items()}
    assert {tensor["name"]: tensor["sha256"] for tensor in found["tensors"]} == expected
    assert code == 0


def test_a_refused_file(node: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.vqm"
    path.write_bytes((FIXTURES / "valid" / "aliases.vqm").read_bytes()[:100])

    code, found = run(node, FOLDER / "vqmcat.mjs", path)

    assert (code, found["error"], found["clause"]) == (1, "truncated", "REA-001")
