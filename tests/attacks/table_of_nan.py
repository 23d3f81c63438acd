"""A codebook holds NaN, which spreads through a model when it is used."""

from __future__ import annotations

from pathlib import Path

from .common import load, outcome

RULE = "values of tables, steps and scales are finite (CBK-008, BOK-002)"
FIXTURES = Path(__file__).parent.parent.parent / "fixtures"


def others(folder: Path) -> dict[str, str]:
    import numpy as np
    from safetensors.numpy import load as load_safetensors
    from safetensors.numpy import save

    return {"safetensors": outcome(lambda: load_safetensors(save({"w": np.array([np.nan])})))}


def ours(folder: Path) -> str:
    return outcome(lambda: load(FIXTURES / "invalid/bok-002-nan.vqm"))
