"""Each abuse of ``tests/attacks`` bounces off."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attacks import NAMES, attack

SPEC = (Path(__file__).parent.parent.parent / "SPEC.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_refused(name: str, tmp_path: Path) -> None:
    found = attack(name).ours(tmp_path)

    assert found.startswith(("refuses it: ", "opens it safely: "))
    for error in ("MemoryError", "RecursionError", "AssertionError", "AttributeError", "KeyError", "TypeError"):
        assert f"refuses it: {error}" not in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_shown_what_others_do(name: str, tmp_path: Path) -> None:
    for package in ("torch", "safetensors", "gguf", "h5py"):
        pytest.importorskip(package)

    assert all(isinstance(text, str) for text in attack(name).others(tmp_path).values())


@pytest.mark.parametrize("name", NAMES)
def test_a_script_says_what_is_abused_and_what_stops_it(name: str) -> None:
    module = attack(name)

    assert module.__doc__.endswith(".") and "\n" not in module.__doc__
    for clause in re.findall(r"[A-Z]{3}-\d{3}", module.RULE):
        assert f"**[{clause}]**" in SPEC
