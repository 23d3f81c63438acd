"""The public API under type checkers: its use in README passes, misuse is told."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CHECKERS = {"mypy": ["--strict"], "pyright": ["--pythonpath", sys.executable]}
MISUSE = '''# pyright: strict
import torch
import vqformat
import vqformat.torch

vqformat.save_file({}, "model.vqm", preset="tiny")
vqformat.torch.save_file({}, "model.vqm", ration=3)
vqformat.search(torch.nn.Linear(1, 1), len)
vqformat.search({"a": 1}, lambda tensors: 1.0, bits=3)
vqformat.writer("model.vqm", ratio="12")
vqformat.safe_open("model.vqm", framework="pt").get_tensor("a").weight()
vqformat.load_file("model.vqm", framework="pt")
'''
FIRST_LINE = 6


def check(checker: str, path: Path) -> tuple[int, str]:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"needs {checker}; run: pip install '{checker}[nodejs]'" if checker == "pyright" else "needs mypy")
    command = [sys.executable, "-m", checker, *CHECKERS[checker], str(path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout + found.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("checker", CHECKERS)
def test_the_api_as_readme_uses_it_is_typed(checker: str) -> None:
    code, said = check(checker, ROOT / "tests" / "typed_use.py")

    assert code == 0, said


@pytest.mark.exhaustive
@pytest.mark.parametrize("checker", CHECKERS)
def test_each_misuse_of_the_api_is_told(checker: str, tmp_path: Path) -> None:
    path = tmp_path / "misuse.py"
    path.write_text(MISUSE)

    _, said = check(checker, path)

    lines = {int(line) for line in re.findall(r"misuse\.py:(\d+)", said)}
    assert lines == set(range(FIRST_LINE, len(MISUSE.splitlines()) + 1)), said
