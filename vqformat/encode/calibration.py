"""The result of a calibration: statistics of a model that ``vqformat.torch`` or ``vqformat.onnx`` has gathered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import EncodeError
from ..files import NewFile

Floats = npt.NDArray[np.float32]
_FORMAT = 1  # version of the format of a saved calibration


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor.

    Attributes:
        importance: Mean squared derivative of the model's outputs with respect to the elements of the tensor, for one
            input; 0 if unknown.
        moments: Second moments of the inputs of the layer; None if unknown. ``moments[g]`` has the diagonal blocks of
            group g, ``(n, n)`` each. Inputs are in the order of the weight's axes other than the first.
        n_observed: Number of input vectors from which the moments were computed.
        row_counts: How often each row of a table was looked up, ``(rows,)``; None for other tensors.
    """

    importance: float = 0.0
    moments: tuple[tuple[Floats, ...], ...] | None = None
    n_observed: int = 0
    row_counts: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of a model, gathered with some of its inputs.

    Attributes:
        tensors: Statistics of each tensor, by its name in the state dict.
        inputs: Some of the batches, for corrections, which run the model.
        loss: Which errors of the outputs corrections reduce: ``"values"`` or ``"logits"``.
    """

    tensors: Mapping[str, TensorStatistics]
    inputs: list[object] = field(default_factory=list)
    loss: str = "values"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the statistics to a NumPy archive, without the inputs.

        Args:
            path: Path of the archive.
            overwrite: Whether an existing file may be replaced.

        Raises:
            FileExistsError: The file exists and ``overwrite`` is false.
        """
        arrays: dict[str, npt.NDArray[np.generic]] = {"format": np.array(_FORMAT), "loss": np.array(self.loss)}
        for i, (name, statistics) in enumerate(self.tensors.items()):
            arrays[f"{i}/name"] = np.array(name)
            arrays[f"{i}/importance"] = np.array(statistics.importance)
            arrays[f"{i}/n_observed"] = np.array(statistics.n_observed)
            if statistics.row_counts is not None:
                arrays[f"{i}/row_counts"] = statistics.row_counts
            for g, group in enumerate(statistics.moments or ()):
                for b, block in enumerate(group):
                    arrays[f"{i}/moments/{g}/{b}"] = block
        with NewFile(path, overwrite=overwrite) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that ``save`` has written.

        Args:
            path: Path of the file.

        Raises:
            EncodeError: The file was not written by ``save``, or it is damaged.
            OSError: The file cannot be read.
        """
        with open(path, "rb") as stream:
            try:
                with np.load(stream, allow_pickle=False) as archive:
                    arrays = {key: archive[key] for key in archive.files}
                version, loss = int(arrays.pop("format")), str(arrays.pop("loss", "values"))
                tensors = dict(map(_statistics, _by_tensor(arrays))) if version == _FORMAT else {}
            except Exception as err:  # NumPy and zipfile may raise anything for a damaged file
                raise EncodeError(f"{os.fspath(path)!r} is no saved calibration") from err
        if version != _FORMAT:
            raise EncodeError(f"{os.fspath(path)!r} holds a calibration of another version of this package")
        return cls(tensors, loss=loss)


Arrays = dict[str, npt.NDArray[np.generic]]


def _by_tensor(arrays: Arrays) -> list[Arrays]:
    """For each tensor its arrays, by the part of the key after the number of the tensor."""
    found: dict[str, Arrays] = {}
    for key, array in arrays.items():
        number, _, rest = key.partition("/")
        found.setdefault(number, {})[rest] = array
    return list(found.values())


def _statistics(arrays: Arrays) -> tuple[str, TensorStatistics]:
    groups: dict[int, dict[int, Floats]] = {}
    for key, array in arrays.items():
        if key.startswith("moments/"):
            group, block = map(int, key.split("/")[1:])
            groups.setdefault(group, {})[block] = np.asarray(array, np.float32)
    moments = tuple(tuple(blocks[b] for b in sorted(blocks)) for _, blocks in sorted(groups.items()))
    counts = arrays.get("row_counts")
    return str(arrays["name"]), TensorStatistics(
        float(arrays["importance"]),
        moments or None,
        int(arrays["n_observed"]),
        None if counts is None else np.asarray(counts, np.int64),
    )
