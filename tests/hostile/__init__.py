"""Checkpoints that attack whoever opens them, each beside a sibling that is harmless but for the one fault.

They are written with h5py, zipfile and patched bytes; nothing of the package is used. ``CASES`` has them all:
``case.write(path, True)`` writes the hostile file, ``False`` its sibling, and ``case.abuse`` says what the file abuses.
What must not be read or run lies beside it: ``secret`` (a folder), ``ran`` (a folder that only running code makes).
"""

from __future__ import annotations

from . import archives, bombs, code, datatypes, heap, legacy, links, names, shards, sizes, storage
from .cases import CASES, EITHER, GOOD, HARMLESS, REFUSED, SECRET, VICTIM, Case

__all__ = ["CASES", "EITHER", "GOOD", "HARMLESS", "REFUSED", "SECRET", "VICTIM", "Case", "archives", "bombs", "code",
           "datatypes", "heap", "legacy", "links", "names", "shards", "sizes", "storage"]  # fmt: skip
