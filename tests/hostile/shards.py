"""Sharded models of Keras whose index leads elsewhere."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .cases import CASES, REFUSED, Case, secret_folder
from .keras_zip import weights_file

# Label: the files that the index says a layer is in, what that abuses
PLACES: dict[str, tuple[Any, str]] = {
    "upwards": (["../x.weights.h5"], "A file in the folder above."),
    "in_a_folder": (["secret/x.weights.h5"], "A file in another folder."),
    "absolute": ("ABSOLUTE", "A path from the root."),
    "missing": (["y.weights.h5"], "A file that is not there."),
    "backslash": (["secret\\x.weights.h5"], "A file in another folder, on Windows."),
}


def write_shards(place: Any, path: Path, is_hostile: bool) -> None:
    folder = path.with_suffix(".files")
    folder.mkdir(exist_ok=True)
    for file in (folder / "model_00000.weights.h5", secret_folder(path.parent) / "x.weights.h5"):
        file.write_bytes(weights_file())
    where = str(secret_folder(path.parent) / "x.weights.h5") if place == "ABSOLUTE" else place
    index = {"metadata": {"total_size": 96}, "weight_map": {
        "/layers/dense/vars": where if is_hostile else ["model_00000.weights.h5"]}}  # fmt: skip
    path.write_text(json.dumps(index))
    (path.parent / "model_00000.weights.h5").write_bytes(weights_file())


for _label, (_place, _abuse) in PLACES.items():
    CASES.append(Case(f"shards_{_label}", ".weights.json", functools.partial(write_shards, _place), REFUSED, "weights",
                      _abuse))  # fmt: skip
