"""Show for each abuse what becomes of it, as a table in markdown."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from . import NAMES, attack

warnings.simplefilter("ignore")
print("| abuse | others | here | rule |\n|---|---|---|---|")
for name in NAMES:
    module = attack(name)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        others = "; ".join(f"{who} {what}" for who, what in module.others(Path(first)).items())
        ours = module.ours(Path(second))
    print("| " + " | ".join(text.replace("|", "\\|") for text in (module.__doc__, others, ours, module.RULE)) + " |")
