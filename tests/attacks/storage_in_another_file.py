"""A dataset of HDF5 takes its values from another file, such as a secret."""

from __future__ import annotations

from pathlib import Path

from .common import convert, outcome

RULE = "only regular files of the folder of the checkpoint are opened"


def write(folder: Path) -> Path:
    import h5py

    (folder / "secret").write_bytes(b"secret..")
    path = folder / "model.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (8,), "u1", external=[(str(folder / "secret"), 0, 8)])
    return path


def others(folder: Path) -> dict[str, str]:
    import h5py

    with h5py.File(write(folder)) as file:
        return {"h5py": outcome(lambda: bytes(file["w"][:]))}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
