"""Docstrings of the public names, of which ``.ci/api`` makes pages."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import ROOT

# Each with the package that it cannot be imported without
MODULES = {"vqformat": "numpy", "vqformat.numpy": "numpy", "vqformat.torch": "torch", "vqformat.keras": "keras",
           "vqformat.onnx": "onnx", "vqformat.converters": "numpy", "vqformat.transformers": "torch",
           "vqformat.diffusers": "torch", "vqformat.peft": "torch"}  # fmt: skip


def public_names(module: Any) -> Iterator[tuple[str, Any]]:
    own = [name for name, value in vars(module).items()
           if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__]  # fmt: skip
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        yield name, value
        for member, of_class in vars(value).items():
            is_documented = isinstance(of_class, (property, classmethod, staticmethod)) or inspect.isfunction(of_class)
            if is_documented and not member.startswith("_"):
                yield f"{name}.{member}", getattr(of_class, "__func__", of_class)


def parameters(value: Any) -> list[str]:
    """Those of a function; a class tells those of its constructor in its own docstring, if it has one."""
    if inspect.isclass(value):
        value = vars(value).get("__init__") if not hasattr(value, "__dataclass_fields__") else None
    if not inspect.isfunction(value):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_tell_their_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("keras") is None and name == "vqformat.keras":
        pytest.skip("keras is not installed")
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    if find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    module = import_module(name)
    assert module.__doc__

    faults = []
    for path, value in public_names(module):
        text = inspect.getdoc(value) or ""
        if not text:
            faults.append(f"{path} has no docstring")
        elif "Args:" in text or len(parameters(value)) > 1:
            told = set(re.findall(r"\w+", " ".join(re.findall(r"^ {4}(\S.*?):", text, re.MULTILINE))))
            faults += [f"{path}: {parameter} is not told" for parameter in parameters(value) if parameter not in told]
    assert faults == []


def test_pages_are_made_of_these_modules() -> None:
    assert set(re.findall(r"\bvqformat(?:\.\w+)?\b", (ROOT / ".ci" / "api").read_text("utf-8"))) >= MODULES.keys()
