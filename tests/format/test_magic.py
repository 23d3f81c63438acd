"""``fixtures/vqm.magic``: file(1) knows a .vqm."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import FIXTURES


@pytest.mark.skipif(shutil.which("file") is None, reason="the command file is not installed")
@pytest.mark.parametrize("option, told", [
    ("--brief", "vqm compressed model, version 1.7"), ("--mime-type", "application/vnd.vqm"), ("--extension", "vqm"),
])  # fmt: skip
def test_file_tells_what_a_vqm_is(option: str, told: str) -> None:
    command = ["file", option, "--brief", "-m", str(FIXTURES / "vqm.magic"), str(FIXTURES / "valid" / "minor-7.vqm")]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == told
