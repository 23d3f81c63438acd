"""What a hostile file is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOOD = np.arange(12, dtype="<f4").reshape(3, 4)  # beside the fault, in every file
VICTIM = np.arange(100, 112, dtype="<f4")  # where the fault is, in the sibling
SECRET = np.full(12, 666, dtype="<f4")  # in a file that nothing may read
OTHER = np.zeros(5, dtype="<f4")  # what may be read or not
MIB = 1 << 20

REFUSED = "refused"
EITHER = "either"  # refused, or opened without the object: GOOD is there, SECRET is not
HARMLESS = "harmless"  # GOOD and VICTIM are there, in the sibling too

Patch = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """A hostile file and its sibling.

    Attributes:
        write: Writes the hostile file (True) or its sibling (False).
        outcome: REFUSED, EITHER or HARMLESS: what becomes of the hostile one.
        text: Pattern that the error's text matches beside the file's name: the object and what was found.
        abuse: A sentence on what the file abuses.
        package: What must be installed to write it.
        hangs: Whether libhdf5 may run for ever on it.
    """

    name: str
    suffix: str
    write: Callable[[Path, bool], None]
    outcome: str
    text: str
    abuse: str
    package: str = "h5py"
    hangs: bool = False


CASES: list[Case] = []


def secret_folder(folder: Path) -> Path:
    """Beside a hostile file: a folder that nothing may read."""
    (folder / "secret").mkdir(exist_ok=True)
    return folder / "secret"


def whole(suffix: str, text: str = "", outcome: str = REFUSED, package: str = "h5py") -> Any:
    """Register a function that writes a whole file."""

    def register(write: Callable[[Path, bool], None]) -> Any:
        CASES.append(Case(write.__name__, suffix, write, outcome, text, str(write.__doc__), package))
        return write

    return register
