"""Abuses of model files: one short script for each.

Each script has ``others(folder)``, which gives for each library that reads such files what it does with one, and
``ours(folder)``, which gives what this package does. ``RULE`` is what stops the abuse, with the clause of SPEC.md if it
has one. ``python -m attacks`` (in the folder ``tests``) shows a table.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

_HELPERS = {"__init__", "__main__", "common", "test_attacks"}
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _HELPERS)


def attack(name: str) -> ModuleType:
    return importlib.import_module(f"attacks.{name}")
